"""The index: stored embeddings of many objects, searched by cosine similarity, filtered by modality, object and place.

One row is the unit vector of one (object, modality). Up to FLAT_LIMIT rows every vector is compared (exact); above, the
vectors are grouped in cells (FAISS's IVF) and the nearest cells are searched. Filters are applied inside the search,
never to its result: a filtered search returns k rows wherever k rows match. Files: `index_files.py`.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

from ..models.embeddings import EmbeddingTable, read_embedding_shards
from ..models.neighbour_prediction import NeighbourPredictor
from . import index_files
from .cone import Cone
from .index_files import EmbeddingIndexError, Manifest

FLAT_LIMIT = 50_000
"""Rows up to which every vector is compared; HNSW is no choice, for its recall collapses under selective filters."""
CELLS_PER_ROOT_ROW = 4
"""Cells of an IVF index: this times the square root of the rows."""
PROBED_CELLS = 16
TRAINING_ROWS_PER_CELL = 64
UNIT_LENGTH_BLOCK = 65_536

__all__ = ["EmbeddingIndex", "EmbeddingIndexError", "Neighbours"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The K most similar rows for each of Q queries, best first.

    Where fewer than K rows match, the rest hold row -1, similarity -inf, an empty `object_id` and NaN positions.
    """

    row: Int64[np.ndarray, "Q K"]
    similarity: Float32[np.ndarray, "Q K"]
    object_id: np.ndarray
    modality: np.ndarray
    ra: Float64[np.ndarray, "Q K"]
    dec: Float64[np.ndarray, "Q K"]

    def select(self, places: Sequence[int]) -> "Neighbours":
        """Of each query, the neighbours at these places, in this order."""
        chosen = np.asarray(places, np.int64)
        return Neighbours(**{f.name: getattr(self, f.name)[:, chosen] for f in fields(self)})


class EmbeddingIndex:
    """Rows of unit vectors with their objects; made by `build` or `load`, never changed after."""

    def __init__(
        self,
        vectors: Any,
        object_id: np.ndarray,
        modality: np.ndarray,
        ra: Float64[np.ndarray, " R"],
        dec: Float64[np.ndarray, " R"],
        labels: pa.Table,
        manifest: Manifest,
    ) -> None:
        self._vectors = vectors
        self.object_id, self.modality, self.ra, self.dec = object_id, modality, ra, dec
        self.labels = labels
        """One row for each labelled object: `object_id` and columns of numbers such as `scalar/redshift`."""
        self.manifest = manifest
        self._order = np.argsort(object_id, kind="stable")
        self._sorted_id = object_id[self._order]
        self._labelled: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.object_id)

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""
        return self.manifest.model_id

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the rows, sorted."""
        return tuple(self.manifest.num_rows_of_modality)

    @classmethod
    def build(
        cls,
        embeddings: EmbeddingTable | str | Path | Iterable[str | Path],
        labels: pa.Table | Mapping[str, Any] | None = None,
        *,
        name: str = "objects",
        flat_limit: int = FLAT_LIMIT,
    ) -> "EmbeddingIndex":
        """Build from embeddings (a table, a folder of shards, or shards) and labels of objects.

        `labels` is a table with `object_id` and columns of numbers named for modalities; NaN or null = unknown. `name`
        is that of the collection. Raises EmbeddingIndexError on vectors of no direction, rows and labels given twice,
        and labels of objects that are not there.
        """
        table = embeddings if isinstance(embeddings, EmbeddingTable) else read_embedding_shards(embeddings)
        if not len(table):
            raise EmbeddingIndexError("no embeddings to index")
        object_id, modality = np.array(table.object_id, object), np.array(table.modality, object)
        _check_rows_differ(table)
        label_table = _label_table(labels, set(table.object_id))
        vectors = _unit_length(table)
        faiss = index_files.import_faiss()
        num_rows, dimension = vectors.shape
        if num_rows <= flat_limit:
            stored: Any = faiss.IndexFlatIP(dimension)
            kind, reason = "flat", f"{num_rows} rows, at most {flat_limit}: every vector is compared, which is exact"
        else:
            cells = max(1, round(CELLS_PER_ROOT_ROW * math.sqrt(num_rows)))
            stored = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, cells, faiss.METRIC_INNER_PRODUCT)
            sample = np.random.default_rng(0).permutation(num_rows)[: TRAINING_ROWS_PER_CELL * cells]
            stored.train(vectors[np.sort(sample)])
            stored.nprobe = min(PROBED_CELLS, cells)
            kind = "ivf"
            reason = (
                f"{num_rows} rows, above {flat_limit}: {cells} cells, of which {stored.nprobe} are searched; IVF keeps "
                "its recall under filters, HNSW does not"
            )
        stored.add(vectors)
        if kind == "ivf":
            stored.make_direct_map()
        names, counts = np.unique(modality.astype(str), return_counts=True)
        manifest = Manifest(
            name=name,
            model_id=table.model_id,
            space=table.space,
            metric="inner product of unit vectors",
            dimension=dimension,
            num_rows=num_rows,
            num_objects=len(set(table.object_id)),
            num_rows_of_modality={str(n): int(c) for n, c in zip(names, counts, strict=True)},
            labels=tuple(label_table.column_names[1:]),
            index_type=kind,
            reason=reason,
        )
        return cls(stored, object_id, modality, table.ra, table.dec, label_table, manifest)

    def save(self, folder: str | Path, predictors: Mapping[str, NeighbourPredictor] | None = None) -> Manifest:
        """Write the index as a new folder, which appears whole or not at all; returns the manifest with checksums.

        `predictors` were calibrated with this index, by `predictor_key`; a server of the folder takes them. Raises
        EmbeddingIndexError if the folder exists and is not empty.
        """
        rows = pa.table(
            {
                "object_id": pa.array(self.object_id, pa.string()),
                "modality": pa.array(self.modality, pa.string()).dictionary_encode(),
                "ra": self.ra,
                "dec": self.dec,
            }
        )
        return index_files.write(folder, self._vectors, rows, self.labels, self.manifest, predictors)

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddingIndex":
        """Read a saved index. Raises EmbeddingIndexError if a file is missing or differs from its checksum."""
        vectors, rows, labels, manifest = index_files.read(folder)
        return cls(
            vectors,
            np.array(rows["object_id"].to_pylist(), object),
            np.array(rows["modality"].to_pylist(), object),
            rows["ra"].to_numpy(),
            rows["dec"].to_numpy(),
            labels,
            manifest,
        )

    def require_model(self, model_id: str) -> None:
        """Raises EmbeddingIndexError unless the vectors come from this model."""
        if self.model_id != model_id:
            raise EmbeddingIndexError(
                f"the index holds embeddings of model {self.model_id!r}, but the model to serve is {model_id!r}; "
                "embed the objects with this model and build the index anew"
            )

    def search(
        self,
        vectors: Float[np.ndarray, "Q D"],
        k: int,
        *,
        target_modality: str | None = None,
        exclude: Iterable[str] = (),
        exclude_each: Sequence[str] | None = None,
        cone: Cone | None = None,
        has_label: str | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """The `k` rows most similar to each query, among those that pass every filter.

        `target_modality` keeps rows of one modality, `exclude` drops objects for all queries, `exclude_each` drops one
        object for each query (itself), `cone` keeps objects on a part of the sky, `has_label` those that have this
        label. `exact` compares every vector, as small indexes and selective filters do in any case. Queries need not
        have unit length. Raises LookupError on an unknown modality or label, EmbeddingIndexError on queries of wrong
        width, without direction, or not finite.
        """
        queries = self._unit_queries(vectors)
        if k < 1:
            raise EmbeddingIndexError(f"k must be at least 1, found {k}")
        chosen = self._chosen_rows(target_modality, exclude, cone, has_label)
        num_chosen = len(self) if chosen is None else int(chosen.sum())
        # Each excluded object may hold several of the best places, so that many more are sought.
        own = None if exclude_each is None else [self.rows_of(i) for i in exclude_each]
        sought = min(num_chosen, k + (0 if own is None else max((len(rows) for rows in own), default=0)))
        if sought == 0:
            return self._neighbours(np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32))
        similarity, row = self._vectors.search(queries, sought, params=self._parameters(chosen, num_chosen, exact))
        if (row < 0).any():
            # The probed cells held too few rows that match.
            similarity, row = self._vectors.search(queries, sought, params=self._parameters(chosen, num_chosen, True))
        if own is not None:
            similarity, row = _drop_own(similarity, row, own, min(k, sought))
        return self._neighbours(row, similarity)

    def rows_of(self, object_id: str) -> Int[np.ndarray, " M"]:
        """The rows of an object, none if it is not there."""
        left, right = (np.searchsorted(self._sorted_id, object_id, side) for side in ("left", "right"))
        return np.sort(self._order[left:right])

    def vector(self, object_id: str, modality: str | None = None) -> Float32[np.ndarray, " D"]:
        """The unit vector of an object's `modality`; without one, the normalised mean over its modalities.

        Raises LookupError that names the nearest known object, or the modalities that the object has.
        """
        rows = self.rows_of(object_id)
        if not len(rows):
            raise LookupError(
                f"no object {object_id!r} in the index; the nearest known is {self.nearest_id(object_id)!r}"
            )
        if modality is not None:
            has = [str(self.modality[row]) for row in rows]
            if modality not in has:
                raise LookupError(f"object {object_id!r} has no {modality!r} in the index; it has {has}")
            rows = rows[[has.index(modality)]]
        mean = np.stack([self._vectors.reconstruct(int(row)) for row in rows]).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def nearest_id(self, object_id: str) -> str:
        """The known id that shares the longest beginning with this one."""
        place = int(np.searchsorted(self._sorted_id, object_id))
        beside = [self._sorted_id[i] for i in (place - 1, place) if 0 <= i < len(self._sorted_id)]
        return max(beside, key=lambda known: _common_length(known, object_id))

    def labels_of(self, object_id: str) -> dict[str, float]:
        """The known labels of an object by column; empty where it has none."""
        row = self._label_rows.get(object_id)
        values = {} if row is None else {name: self._label_values[name][row] for name in self.manifest.labels}
        return {name: float(value) for name, value in values.items() if not math.isnan(value)}

    def label_of_rows(self, name: str, row: Int[np.ndarray, "Q K"]) -> Float64[np.ndarray, "Q K"]:
        """The label `name` of the objects in these rows, NaN where unknown and for row -1. Raises LookupError."""
        if name not in self.manifest.labels:
            raise LookupError(f"the index has no label {name!r}; it has {list(self.manifest.labels)}")
        values = self._label_values[name]
        place = [self._label_rows.get(self.object_id[r], -1) if r >= 0 else -1 for r in row.reshape(-1)]
        return np.array([values[p] if p >= 0 else np.nan for p in place], np.float64).reshape(row.shape)

    @functools.cached_property
    def _label_rows(self) -> dict[str, int]:
        return {object_id: row for row, object_id in enumerate(self.labels["object_id"].to_pylist())}

    @functools.cached_property
    def _label_values(self) -> dict[str, np.ndarray]:
        return {name: _label_column(self.labels, name) for name in self.manifest.labels}

    def _is_labelled(self, name: str) -> Bool[np.ndarray, " R"]:
        if name not in self._labelled:
            self._labelled[name] = ~np.isnan(self.label_of_rows(name, np.arange(len(self))[None])[0])
        return self._labelled[name]

    @functools.cached_property
    def _rows_are(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(self.modality == name, bool) for name in self.modalities}

    def _unit_queries(self, vectors: Float[np.ndarray, "Q D"]) -> Float32[np.ndarray, "Q D"]:
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.dimension:
            raise EmbeddingIndexError(
                f"query vectors must have shape [queries, {self.manifest.dimension}], found {list(vectors.shape)}"
            )
        length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        wrong = ~(np.isfinite(length) & (length > 0))
        if wrong.any():
            raise EmbeddingIndexError(f"query {int(wrong.argmax())} has no direction: its length is {length[wrong][0]}")
        return np.ascontiguousarray(vectors / length, np.float32)

    def _chosen_rows(
        self, target_modality: str | None, exclude: Iterable[str], cone: Cone | None, has_label: str | None
    ) -> Bool[np.ndarray, " R"] | None:
        if target_modality is not None and target_modality not in self.modalities:
            raise LookupError(f"no modality {target_modality!r} in the index; it has {list(self.modalities)}")
        dropped = [self.rows_of(object_id) for object_id in exclude]
        if target_modality is None and cone is None and has_label is None and not dropped:
            return None
        chosen = np.ones(len(self), bool)
        if target_modality is not None:
            chosen &= self._rows_are[target_modality]
        if cone is not None:
            chosen &= cone.contains(self.ra, self.dec)
        if has_label is not None:
            chosen &= self._is_labelled(has_label)
        for rows in dropped:
            chosen[rows] = False
        return chosen

    def _parameters(self, chosen: Bool[np.ndarray, " R"] | None, num_chosen: int, exact: bool) -> Any:
        faiss = index_files.import_faiss()
        options: dict[str, Any] = {}
        if chosen is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        if self.manifest.index_type == "flat":
            return faiss.SearchParameters(**options)
        # Few rows match: visiting every cell costs no more than comparing them. Many: the fewer match, the more cells.
        every = exact or num_chosen <= FLAT_LIMIT
        probed = math.ceil(self._vectors.nprobe * len(self) / max(num_chosen, 1))
        return faiss.SearchParametersIVF(
            nprobe=self._vectors.nlist if every else min(self._vectors.nlist, probed), **options
        )

    def _neighbours(self, row: Int[np.ndarray, "Q K"], similarity: Float32[np.ndarray, "Q K"]) -> Neighbours:
        missing = row < 0
        place = np.where(missing, 0, row)
        return Neighbours(
            row=row.astype(np.int64),
            similarity=np.where(missing, np.float32(-np.inf), similarity),
            object_id=np.where(missing, "", self.object_id[place]),
            modality=np.where(missing, "", self.modality[place]),
            ra=np.where(missing, np.nan, self.ra[place]),
            dec=np.where(missing, np.nan, self.dec[place]),
        )


def _drop_own(
    similarity: Float32[np.ndarray, "Q S"],
    row: Int[np.ndarray, "Q S"],
    own: Sequence[np.ndarray],
    k: int,
) -> tuple[Float32[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    is_own = np.stack([np.isin(rows, mine) for rows, mine in zip(row, own, strict=True)])
    # A stable sort brings the others to the front, in their order.
    order = np.argsort(is_own, axis=1, kind="stable")[:, :k]
    kept = np.where(is_own, -1, row)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(kept, order, 1)


def _unit_length(table: EmbeddingTable) -> Float32[np.ndarray, "R D"]:
    vectors = np.empty(table.vectors.shape, np.float32)
    for start in range(0, len(table), UNIT_LENGTH_BLOCK):
        block = table.vectors[start : start + UNIT_LENGTH_BLOCK].astype(np.float32)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        wrong = ~(np.isfinite(length) & (length > 0))
        if wrong.any():
            row = start + int(wrong.argmax())
            raise EmbeddingIndexError(
                f"row {row} (object {table.object_id[row]}, {table.modality[row]}): the vector must be finite and not "
                f"zero; its length is {length[wrong][0]}"
            )
        vectors[start : start + UNIT_LENGTH_BLOCK] = block / length
    return vectors


def _check_rows_differ(table: EmbeddingTable) -> None:
    seen: set[tuple[str, str]] = set()
    for pair in zip(table.object_id, table.modality, strict=True):
        if pair in seen:
            raise EmbeddingIndexError(f"object {pair[0]} has {pair[1]} twice; an index holds one row for each")
        seen.add(pair)


def _label_table(labels: pa.Table | Mapping[str, Any] | None, known: set[str]) -> pa.Table:
    if labels is None:
        return pa.table({"object_id": pa.array([], pa.string())})
    given = labels if isinstance(labels, pa.Table) else pa.table(dict(labels))
    if "object_id" not in given.column_names:
        raise EmbeddingIndexError(f"labels must have a column object_id; found {given.column_names}")
    object_id = [str(i) for i in given["object_id"].to_pylist()]
    unknown = [i for i in object_id if i not in known]
    if unknown:
        raise EmbeddingIndexError(f"{len(unknown)} labelled objects have no embedding; the first: {unknown[0]!r}")
    if len(set(object_id)) < len(object_id):
        raise EmbeddingIndexError("labels: an object_id stands in two rows")
    columns = {name: _label_column(given, name) for name in given.column_names if name != "object_id"}
    return pa.table({"object_id": pa.array(object_id, pa.string()), **columns})


def _label_column(table: pa.Table, name: str) -> Float64[np.ndarray, " R"]:
    try:
        numbers = pc.fill_null(pc.cast(table[name], pa.float64()), math.nan).to_numpy()
    except pa.ArrowException as error:
        raise EmbeddingIndexError(f"label {name!r} must be a column of numbers; {error}") from None
    return np.where(np.isinf(numbers), np.nan, numbers)


def _common_length(first: str, second: str) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
