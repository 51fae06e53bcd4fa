"""The index where one machine is not enough: the same surface as `EmbeddingIndex`, with a Milvus engine behind it.

An engine is named by its address: `http://HOST:19530#NAME` (a server or a cluster), or `PATH.db#NAME` (milvus-lite, in
this process: for tests and notebooks). What the class promises it keeps on all of them; see docs/milvus.md.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Float64, Int

from ...models.embeddings import EmbeddingTable
from ...models.neighbour_prediction import NeighbourPredictor
from ..index.cone import Cone
from ..index.index_types import FLAT_LIMIT
from ..index.protocol import EmbeddingIndexError, Neighbours, Ranges, RowBlock
from ..index.queries import check_model, chosen_modalities, unit_queries
from ..index.stable_order import SPARE_ROWS, in_order
from . import build as milvus_build
from . import changes as milvus_changes
from .engine import MilvusAddress, MilvusEngine, quoted
from .manifest import CHANGING, READY, MilvusManifest, predictor_records
from .rows import POSITION, decode_number, field_ranges, filter_expression, number_fields, row_id
from .search import Found, nearest, neighbours, stored_vectors
from .source import MilvusSource, Numbers, ObjectNumbers

TARGET_RECALL = 0.97
_SAMPLE = 200
"""Ids with the longest common beginning that are looked at for the nearest."""


class MilvusIndex:
    """Rows of unit vectors in a Milvus collection; made by `build` or `open`.

    Searches see what this process added, and all that was added before it opened, at once; what others add meanwhile
    within about a second, and their new modalities and counts after `refresh`. One process at a time may change an
    index; nothing stops a second one but this sentence.
    """

    def __init__(self, engine: MilvusEngine, manifest: MilvusManifest) -> None:
        self._engine = engine
        self._manifest = manifest

    @classmethod
    def build(
        cls,
        place: str | Path,
        embeddings: EmbeddingTable | str | Path | Iterable[str | Path],
        labels: Numbers = None,
        *,
        metadata: Numbers = None,
        index_type: str | None = None,
        flat_limit: int = FLAT_LIMIT,
        target_recall: float = TARGET_RECALL,
        replace_old: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> "MilvusIndex":
        """Build at an address from embeddings (a table, a folder of shards, or shards); `publish` lets readers see it.

        One shard's ids, eight bytes for each row, and a batch of vectors are in memory. A build that was killed goes on
        where it was if it is asked for again. `labels`, `metadata`, `index_type` (flat, ivf, ivf_sq8, hnsw) and
        `target_recall` are those of `EmbeddingIndex.build`. `progress` is called with rows done and rows in all. Raises
        EmbeddingIndexError as that does, and if there is an index of this name and not `replace_old`.
        """
        engine = MilvusEngine(MilvusAddress.parse(place))
        _check_free(engine, replace_old)
        manifest = milvus_build.build(
            engine,
            MilvusSource(embeddings),
            ObjectNumbers(labels, "labels"),
            ObjectNumbers(metadata, "metadata"),
            index_type=index_type,
            flat_limit=flat_limit,
            target_recall=target_recall,
            progress=progress,
        )
        return cls(engine, manifest)

    def publish(self, predictors: Mapping[str, NeighbourPredictor] | None = None) -> MilvusManifest:
        """Let readers see a built index under its name, all at once, with predictors that were calibrated with it.

        An index that had the name before stays for those who have it open, until the next build.
        """
        self._manifest = milvus_build.publish(self._engine, self._manifest, predictor_records(predictors))
        return self._manifest

    @classmethod
    def open(cls, place: str | Path) -> "MilvusIndex":
        """Open a published index. Raises EmbeddingIndexError if the engine or the index is not there."""
        address = MilvusAddress.parse(place)
        if address.is_lite and not Path(address.uri).exists():
            raise EmbeddingIndexError(f"{address}: there is no such file of milvus-lite")
        engine = MilvusEngine(address)
        return cls(engine, _read(engine))

    @classmethod
    def check_is_new(cls, place: str | Path) -> None:
        """Raises EmbeddingIndexError if there is an index at this address already."""
        _check_free(MilvusEngine(MilvusAddress.parse(place)), False)

    @classmethod
    def drop(cls, place: str | Path) -> None:
        """Remove an index, all of its builds, and its record."""
        engine = MilvusEngine(MilvusAddress.parse(place))
        engine.forget(engine.address.name)
        for collection in engine.builds_of(engine.address.name):
            engine.drop(collection)

    def refresh(self) -> bool:
        """Take over what other processes have changed or built since; whether there was anything."""
        latest = _read(self._engine)
        is_new = latest != self._manifest
        self._manifest = latest
        return is_new

    def close(self) -> None:
        """End the connection. A file of milvus-lite is closed for all in this process; another one may open it then."""
        self._engine.close()

    def __enter__(self) -> "MilvusIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._manifest.num_rows

    @property
    def manifest(self) -> MilvusManifest:
        """What the index is."""
        return self._manifest

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""
        return self._manifest.model_id

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the rows, sorted."""
        return tuple(self._manifest.num_rows_of_modality)

    @property
    def predictors(self) -> dict[str, NeighbourPredictor]:
        """The predictors that the index was published with."""
        return self._manifest.read_predictors()

    def require_model(self, model_id: str) -> None:
        """Raises EmbeddingIndexError unless the vectors come from this model."""
        check_model(self.model_id, model_id)

    def add(
        self,
        embeddings: EmbeddingTable | str | Path | Iterable[str | Path],
        labels: pa.Table | Mapping[str, Any] | None = None,
        metadata: pa.Table | Mapping[str, Any] | None = None,
    ) -> None:
        """Add rows; an (object, modality) that is there is replaced. On return the engine has all of it in its log.

        `labels` may be of any object of the index. Both have columns that the index has, and an object keeps what is
        not given. Raises EmbeddingIndexError on another model, space or dimension, on a row given twice, and on labels
        of objects that are not there.
        """
        self._manifest = milvus_changes.add(
            self._engine,
            self._to_change(),
            MilvusSource(embeddings),
            ObjectNumbers(labels, "labels"),
            ObjectNumbers(metadata, "metadata"),
        )

    def remove(self, object_ids: Iterable[str]) -> None:
        """Remove all rows and labels of these objects. Raises LookupError, and removes none, if one is not there."""
        wanted = list(dict.fromkeys(object_ids))
        self._manifest = milvus_changes.remove(self._engine, self._to_change(), wanted)

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
        survey: str | None = None,
        where: Ranges | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """The `k` rows most similar to each query, among those that pass every filter; see `SearchIndex.search`.

        `exact` compares every vector. On another type than flat all rows that pass are read for it, which takes long.
        Similarities are the engine's own; where more than a few rows share the last place, it says which of them come.
        """
        manifest = self._manifest
        queries = unit_queries(vectors, manifest.dimension)
        if k < 1:
            raise EmbeddingIndexError(f"k must be at least 1, found {k}")
        fields = number_fields(manifest.labels, manifest.metadata)
        expression = filter_expression(
            None
            if target_modality is None and survey is None
            else chosen_modalities(self.modalities, target_modality, survey),
            [row_id(name, modality) for name in dict.fromkeys(exclude) for modality in self.modalities],
            cone,
            [] if has_label is None else [fields[f"label:{self._checked_label(has_label)}"]],
            field_ranges(where, fields),
        )
        spare = 0 if exclude_each is None else len(self.modalities)
        sought = k + SPARE_ROWS
        found = nearest(self._engine, manifest, queries, sought + spare, expression, cone, exact=exact)
        if exclude_each is not None:
            found = _without_own(found, [[row_id(name, m) for m in self.modalities] for name in exclude_each], sought)
        return in_order(neighbours(self._engine, manifest, found), k)

    def vector(self, object_id: str, modality: str | None = None) -> Float32[np.ndarray, " D"]:
        """The unit vector of an object's `modality`; without one, the normalised mean over its modalities.

        Raises LookupError that names the nearest known object, or the modalities that the object has.
        """
        rows = self._rows_of_known(object_id)
        if modality is not None:
            has = [row["modality"] for row in rows]
            if modality not in has:
                raise LookupError(f"object {object_id!r} has no {modality!r} in the index; it has {has}")
            rows = [rows[has.index(modality)]]
        stored = stored_vectors(self._engine, self._manifest, [row["id"] for row in rows])
        mean = np.stack(list(stored.values())).astype(np.float64).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def vectors(self, object_ids: Sequence[str], modality: str) -> Float32[np.ndarray, "B D"]:
        """The unit vectors of many objects, in their order. Raises LookupError that names the first that has none."""
        if modality not in self.modalities:
            raise LookupError(f"no modality {modality!r} in the index; it has {list(self.modalities)}")
        ids = [row_id(name, modality) for name in object_ids]
        stored = stored_vectors(self._engine, self._manifest, list(dict.fromkeys(ids)))
        for name, i in zip(object_ids, ids, strict=True):
            if i not in stored:
                self.vector(name, modality)  # raises, and says why
        found = [stored[i] for i in ids]
        return np.stack(found) if found else np.zeros((0, self._manifest.dimension), np.float32)

    def objects_with(self, modality: str) -> list[str]:
        """The ids of all objects that have a vector of this modality, sorted; empty if there is no such modality."""
        if modality not in self.modalities:
            return []
        expression = filter_expression([modality], [], None, [], {})
        blocks = self._engine.every_row(self._manifest.collection, expression, ["object_id"])
        return sorted(row["object_id"] for block in blocks for row in block)

    def row_blocks(self) -> Iterator[RowBlock]:
        """All rows that can be found, in blocks of bounded size."""
        manifest = self._manifest
        fields = number_fields(manifest.labels, ())
        columns = ["object_id", "modality", *POSITION, *fields.values()]
        for rows in self._engine.every_row(manifest.collection, "", columns, row_bytes=4 * manifest.dimension):
            stored = stored_vectors(self._engine, manifest, [row["id"] for row in rows])
            kept = [row for row in rows if row["id"] in stored]
            if not kept:
                continue
            ra, dec = (np.array([decode_number(row[name]) for row in kept], np.float64) for name in POSITION)
            yield RowBlock(
                object_id=np.array([row["object_id"] for row in kept], object),
                modality=np.array([row["modality"] for row in kept], object),
                ra=ra,
                dec=dec,
                labels={
                    name: np.array([decode_number(row[fields[f"label:{name}"]]) for row in kept], np.float64)
                    for name in manifest.labels
                },
                vectors=np.stack([stored[row["id"]] for row in kept]),
            )

    def modalities_of(self, object_id: str) -> tuple[str, ...]:
        """The modalities of an object, sorted; empty if it is not there."""
        return tuple(row["modality"] for row in self._rows_of(object_id))

    def position_of(self, object_id: str) -> tuple[float, float]:
        """`ra` and `dec` in degrees, ICRS; NaN where unknown. Raises LookupError if the object is not there."""
        positions = [tuple(decode_number(row[n]) for n in POSITION) for row in self._rows_of_known(object_id, POSITION)]
        ra, dec = next((p for p in positions if math.isfinite(p[1])), positions[0])
        return ra, dec

    def nearest_id(self, object_id: str) -> str:
        """The known id that shares the longest beginning with this one."""
        low, high, found = 0, len(object_id), self._ids_with("")
        while low < high:
            middle = (low + high + 1) // 2
            ids = self._ids_with(object_id[:middle])
            if ids:
                low, found = middle, ids
            else:
                high = middle - 1
        if not found:
            raise LookupError("the index holds no object")
        return min(found)

    def labels_of(self, object_id: str) -> dict[str, float]:
        """The known labels of an object by column; empty where it has none."""
        fields = number_fields(self._manifest.labels, ())
        rows = self._rows_of(object_id, list(fields.values()))
        values = {name: decode_number(rows[0][fields[f"label:{name}"]]) for name in self._manifest.labels if rows}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def label_of_rows(self, name: str, row: Int[np.ndarray, "Q K"]) -> Float64[np.ndarray, "Q K"]:
        """The label `name` of the objects in these rows, NaN where unknown and for row -1. Raises LookupError."""
        field = number_fields(self._manifest.labels, ())[f"label:{self._checked_label(name)}"]
        ids = np.unique(row[row >= 0]).tolist()
        known = {int(r["id"]): decode_number(r[field]) for r in self._rows_by_id(ids, [field])}
        values = [known.get(int(i), math.nan) for i in row.reshape(-1)]
        return np.array(values, np.float64).reshape(row.shape)

    def _to_change(self) -> MilvusManifest:
        """The latest manifest: a change starts from what is there, not from what this process read before."""
        current = self._engine.collection_behind(self._manifest.name)
        if current != self._manifest.collection:
            raise EmbeddingIndexError(
                f"{self._engine.address}: the index is not published, or was built anew since it was opened; "
                "publish or open it again, and change that"
            )
        return _read(self._engine)

    def _checked_label(self, name: str) -> str:
        if name not in self._manifest.labels:
            raise LookupError(f"the index has no label {name!r}; it has {list(self._manifest.labels)}")
        return name

    def _rows_by_id(self, ids: Sequence[int], columns: Sequence[str]) -> list[Any]:
        return self._engine.rows_by_id(self._manifest.collection, ids, columns)

    def _rows_of(self, object_id: str, columns: Sequence[str] = ()) -> list[Any]:
        rows = milvus_changes.rows_of(self._engine, self._manifest, [object_id], ["modality", *columns])
        return sorted(rows, key=lambda row: row["modality"])

    def _rows_of_known(self, object_id: str, columns: Sequence[str] = ()) -> list[Any]:
        rows = self._rows_of(object_id, columns)
        if not rows:
            nearest_id = self.nearest_id(object_id)
            raise LookupError(f"no object {object_id!r} in the index; the nearest known is {nearest_id!r}")
        return rows

    def _ids_with(self, beginning: str) -> list[str]:
        """Some ids that begin so. By order, not by `like`, which has letters of its own."""
        expression = ""
        if beginning:
            expression = f"object_id >= {quoted(beginning)} and object_id < {quoted(_after(beginning))}"
        rows = self._engine.some_rows(self._manifest.collection, expression, ["object_id"], _SAMPLE)
        return [row["object_id"] for row in rows]


def _read(engine: MilvusEngine) -> MilvusManifest:
    name = engine.address.name
    collection = engine.collection_behind(name)
    manifest = None if collection is None else MilvusManifest.read(engine, collection)
    if collection is None or manifest is None:
        begun = " (one was begun; build it again, and it goes on)" if engine.builds_of(name) else ""
        raise EmbeddingIndexError(f"{engine.address}: there is no index {name!r}{begun}")
    engine.load(collection)
    engine.catch_up(collection)
    if manifest.state == CHANGING:
        manifest = replace(milvus_changes.counted_anew(engine, manifest), state=READY)
    return manifest


def _check_free(engine: MilvusEngine, replace_old: bool) -> None:
    if not replace_old and engine.collection_behind(engine.address.name) is not None:
        raise EmbeddingIndexError(
            f"{engine.address}: there is something already; take another name, drop it, or ask to replace it"
        )


def _without_own(found: Found, own: Sequence[Sequence[int]], k: int) -> Found:
    is_own = np.stack([np.isin(row, mine) for row, mine in zip(found.row, own, strict=True)])
    # A stable sort brings the others to the front, in their order.
    order = np.argsort(is_own, axis=1, kind="stable")[:, :k]
    row = np.take_along_axis(np.where(is_own, -1, found.row), order, 1)
    similarity = np.take_along_axis(np.where(is_own, np.float32(-np.inf), found.similarity), order, 1)
    width = int((row >= 0).sum(1).max(initial=0))
    return Found(row[:, :width], similarity[:, :width])


def _after(beginning: str) -> str:
    """The least text above all that begin so."""
    kept = beginning.rstrip(chr(0x10FFFF))
    # No text may hold half of a surrogate pair.
    last = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if last == 0xD800 else last)
