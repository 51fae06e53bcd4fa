"""The index: stored embeddings of many objects, searched by cosine similarity, filtered by what is known of them.

One row is the unit vector of one (object, modality). The rows of each modality have a FAISS structure of their own,
chosen by their number (`index_types.py`). Filters are applied inside the search, never to its result: a filtered search
returns k rows wherever k rows match. A saved index takes additions and removals, each on disk when it returns
(`files.py`), and is memory-mapped, so that processes share it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

from ...models.embeddings import EmbeddingTable, open_shards
from ...models.neighbour_prediction import NeighbourPredictor
from . import changes as index_changes
from . import files as index_files
from .building import METRIC, RowSource, TableSource, build_parts, write_rows
from .cone import Cone
from .files import BuildSettings, Manifest
from .index_types import FLAT_LIMIT
from .labels import label_table
from .protocol import EmbeddingIndexError, Neighbours, Ranges, RowBlock
from .queries import check_model, chosen_modalities, unit_queries
from .recall import TARGET_RECALL
from .stable_order import SPARE_ROWS, Found, in_order, in_stable_order
from .state import IndexState, read_state, write_counts
from .vectors import BLOCK_ROWS, arranged, nearest_of

FEW_EXCLUDED = 32
"""Rows up to which excluded ones are sought along and dropped, which is cheaper than a filter."""

__all__ = ["EmbeddingIndex", "EmbeddingIndexError", "Neighbours"]


class EmbeddingIndex:
    """Rows of unit vectors with their objects; made by `build` or `load`. See `protocol.SearchIndex`."""

    def __init__(self, state: IndexState, *, is_saved: bool, draft: index_files.Draft | None = None) -> None:
        self._state = state
        self._is_saved = is_saved
        self._draft = draft  # its files are deleted with it

    def __len__(self) -> int:
        return self.manifest.num_rows

    @property
    def manifest(self) -> Manifest:
        """What the index is, and how well it finds."""
        return self._state.manifest

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""
        return self.manifest.model_id

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the rows, sorted."""
        return tuple(self.manifest.num_rows_of_modality)

    @property
    def labels(self) -> pa.Table:
        """One row for each labelled object: `object_id` and columns of numbers such as `scalar/redshift`."""
        return self._state.labels.table

    @classmethod
    def build(
        cls,
        embeddings: EmbeddingTable | str | Path | Iterable[str | Path],
        labels: pa.Table | Mapping[str, Any] | None = None,
        *,
        metadata: pa.Table | Mapping[str, Any] | None = None,
        name: str = "objects",
        index_type: str | None = None,
        flat_limit: int = FLAT_LIMIT,
        max_memory_gb: float | None = None,
        target_recall: float = TARGET_RECALL,
        draft_in: str | Path | None = None,
    ) -> "EmbeddingIndex":
        """Build from embeddings (a table, a folder of shards, or shards) and labels of objects.

        Shards are never in memory as a whole. `labels` is a table with `object_id` and columns of numbers named for
        modalities; NaN or null = unknown. `metadata` is such a table too: what is known of all objects, by whose ranges
        a search may be filtered; objects that have no embedding are passed over. `name` is that of the collection.
        `index_type` overrules the choice by size, for which structures may take `max_memory_gb` (default: half of the
        machine's). `target_recall` is that of the 10 nearest, for queries of the same and of other modalities. The
        files of the draft lie in a temporary folder of `draft_in` until `save`; where it is saved on the same file
        system, nothing is copied. Raises EmbeddingIndexError on vectors of no direction, rows and labels given twice,
        and labels of objects that are not there.
        """
        source = _source(embeddings)
        index_files.import_faiss()
        settings = BuildSettings(index_type, flat_limit, max_memory_gb, target_recall)
        draft = index_files.Draft(draft_in)
        folder = draft.folder / "base-0"
        written = write_rows(folder, source, metadata)
        if not written.rows.num_rows:
            raise EmbeddingIndexError("no embeddings to index")
        write_counts(folder, written)
        table = label_table(labels, written.rows["object_id"].combine_chunks())
        pq.write_table(table, folder / index_files.LABELS, compression="zstd")
        parts = build_parts(folder, written, settings)
        manifest = Manifest(
            name=name,
            model_id=source.model_id,
            space=source.space,
            metric=METRIC,
            dimension=source.dimension,
            num_rows=written.rows.num_rows,
            num_objects=pc.count_distinct(written.rows["object_id"]).as_py(),
            num_rows_of_modality=written.num_rows_of_modality,
            labels=tuple(table.column_names[1:]),
            metadata=tuple(n for n in written.rows.column_names if n not in ("object_id", "ra", "dec")),
            parts=parts,
            base=folder.name,
            settings=settings,
        )
        return cls(read_state(folder.parent, manifest), is_saved=False, draft=draft)

    def save(self, folder: str | Path, predictors: Mapping[str, NeighbourPredictor] | None = None) -> Manifest:
        """Write the index as a new folder, which appears whole or not at all; returns the manifest with checksums.

        `predictors` were calibrated with this index, by `predictor_key`; a server of the folder takes them. Raises
        EmbeddingIndexError if the folder exists and is not empty.
        """
        return index_files.save_new(self._state.folder, folder, self.manifest, predictors)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True, memory_map: bool = True) -> "EmbeddingIndex":
        """Open a saved index. Raises EmbeddingIndexError if a file is missing or differs from its checksum.

        `verify=False` leaves out the reading of every file that checksums need. With `memory_map`, structures stay on
        disk, are read where a search needs them, and are shared by all processes that do so.
        """
        return cls(index_changes.read_latest(Path(folder), verify=verify, memory_map=memory_map), is_saved=True)

    def refresh(self) -> bool:
        """Take over what other processes have changed since; whether there was anything."""
        latest = index_changes.newer(self._state) if self._is_saved else None
        if latest is not None:
            self._state = latest
        return latest is not None

    def add(
        self,
        embeddings: EmbeddingTable | str | Path | Iterable[str | Path],
        labels: pa.Table | Mapping[str, Any] | None = None,
        metadata: pa.Table | Mapping[str, Any] | None = None,
    ) -> None:
        """Add rows to a saved index; an (object, modality) that is there is replaced. On return all is on disk.

        `labels` may be of any object of the index; a number replaces the one that is known. `metadata` has columns that
        the index has; an object that is there keeps what is not given. Raises EmbeddingIndexError on another model,
        space or dimension, on a row given twice, and while another process changes the index.
        """
        self._change(lambda state: index_changes.add(state, _source(embeddings), labels, metadata))

    def remove(self, object_ids: Iterable[str]) -> None:
        """Remove all rows and labels of these objects from a saved index. On return they are gone from the folder too.

        Raises LookupError, and removes none, if one is not there.
        """
        wanted = list(dict.fromkeys(object_ids))
        self._change(lambda state: index_changes.remove(state, wanted))

    def compact(self) -> None:
        """Build the base anew from base and changes: additions join the structures, removals give their space back."""
        self._change(index_changes.compact)

    def require_model(self, model_id: str) -> None:
        """Raises EmbeddingIndexError unless the vectors come from this model."""
        check_model(self.model_id, model_id)

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
        """The `k` rows most similar to each query, among those that pass every filter.

        `target_modality` keeps rows of one modality, `survey` those of one survey (the part of a modality's name after
        the slash), `exclude` drops objects for all queries, `exclude_each` drops one object for each query (itself),
        `cone` keeps objects on a part of the sky, `has_label` those that have this label, `where` those whose metadata
        lie in these ranges, ends included. `exact` compares every vector, as small indexes and selective filters do in
        any case. Equal similarities are in order of object id, then modality, by Unicode code points. Queries need not
        have unit length. Raises LookupError on an unknown modality, survey, label or column, EmbeddingIndexError on
        queries of wrong width, without direction, or not finite.
        """
        state = self._state
        queries = unit_queries(vectors, state.manifest.dimension)
        if k < 1:
            raise EmbeddingIndexError(f"k must be at least 1, found {k}")
        names = chosen_modalities(list(state.manifest.num_rows_of_modality), target_modality, survey)
        chosen = _chosen_rows(state, cone, has_label, where)
        dropped = state.rows.rows_of_any(exclude)
        own = None if exclude_each is None else _own_rows(state, exclude_each)
        if len(dropped) > FEW_EXCLUDED:
            chosen = np.ones(len(state.rows), bool) if chosen is None else chosen.copy()
            chosen[dropped] = False
            dropped = dropped[:0]
        # Excluded rows may hold several of the best places, so that many more are sought.
        spare = len(dropped) + (0 if own is None else own.shape[1])

        def search(which: Int64[np.ndarray, " Q"], count: int) -> list[Found]:
            found = _search_parts(state, queries[which], count + spare, k + spare, names, chosen, exact)
            if not spare:
                return found
            return [_drop(*part, dropped, None if own is None else own[which], count) for part in found]

        similarity, row = in_stable_order(
            len(queries), k, search, lambda which, row: state.similarity(queries[which], row), state.rows.names_of
        )
        # Columns that hold nothing for any query are left out; what is missing is last in each row.
        width = min(k, int((row >= 0).sum(1).max(initial=0)))
        return _neighbours(state, row[:, :width], similarity[:, :width])

    @property
    def num_labelled(self) -> int:
        """Objects with a label."""
        return self.labels.num_rows

    def search_objects(
        self,
        vectors: Float[np.ndarray, "Q D"],
        k: int,
        *,
        has_label: str,
        exclude: Iterable[str] = (),
        exclude_each: Sequence[str] | None = None,
        cone: Cone | None = None,
    ) -> Neighbours:
        """The `k` labelled objects whose mean of unit vectors is most similar; see `ObjectSearch.search_objects`.

        The means are made when they are first asked for, and again after a change.
        """
        state, means = self._state, self._state.means
        queries = unit_queries(vectors, state.manifest.dimension)
        if k < 1:
            raise EmbeddingIndexError(f"k must be at least 1, found {k}")
        chosen = _chosen_rows(state, cone, has_label, None)
        assert chosen is not None
        is_wanted = (means.row >= 0) & chosen[means.row]
        is_wanted &= ~np.isin(means.row, state.rows.rows_of_any(exclude))
        sought = k + SPARE_ROWS
        spare = 0 if exclude_each is None else 1
        similarity, place = means.search(queries, is_wanted, min(sought + spare, int(is_wanted.sum())))
        row = np.where(place < 0, -1, means.row[place])
        if exclude_each is not None:
            similarity, row = _drop(similarity, row, np.zeros(0, np.int64), _own_rows(state, exclude_each), sought)
        width = int((row >= 0).sum(1).max(initial=0))
        row, similarity = row[:, :width], similarity[:, :width]
        at = np.where(row < 0, -1, state.labels.place[row])
        return in_order(replace(_neighbours(state, row, similarity), modality=means.modalities(at)), k)

    def vector(self, object_id: str, modality: str | None = None) -> Float32[np.ndarray, " D"]:
        """The unit vector of an object's `modality`; without one, the normalised mean over its modalities.

        Raises LookupError that names the nearest known object, or the modalities that the object has.
        """
        state = self._state
        rows = self._rows_of_known(state, object_id)
        if modality is not None:
            has = list(self.modalities_of(object_id))
            if modality not in has:
                raise LookupError(f"object {object_id!r} has no {modality!r} in the index; it has {has}")
            rows = rows[[has.index(modality)]]
        mean = state.unit_vectors(rows).astype(np.float64).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def vectors(self, object_ids: Sequence[str], modality: str) -> Float32[np.ndarray, "B D"]:
        """The unit vectors of many objects, in their order. Raises LookupError that names the first that has none."""
        state = self._state
        ids = list(object_ids)
        if modality not in state.rows.modality_names:
            raise LookupError(f"no modality {modality!r} in the index; it has {list(self.modalities)}")
        row = state.rows.rows_of_each(ids, modality)
        if (row < 0).any():
            self.vector(ids[int((row < 0).argmax())], modality)  # raises, and says why
        return state.unit_vectors(row)

    def objects_with(self, modality: str) -> list[str]:
        """The ids of all objects that have a vector of this modality, sorted; empty if there is no such modality."""
        rows = self._state.rows
        if modality not in rows.modality_names:
            return []
        return sorted(rows.object_ids(rows.rows_with(modality)).to_pylist())

    def row_blocks(self) -> Iterator[RowBlock]:
        """All rows that can be found, in blocks of bounded size; of the index as it is when this is first asked."""
        state = self._state
        alive = np.arange(len(state.rows)) if state.rows.alive is None else np.flatnonzero(state.rows.alive)
        names = np.array(state.rows.modality_names, object)
        for start in range(0, len(alive), BLOCK_ROWS):
            row = alive[start : start + BLOCK_ROWS]
            yield RowBlock(
                object_id=state.rows.object_ids(row).to_numpy(zero_copy_only=False),
                modality=names[state.rows.modality_codes(row)],
                ra=state.rows.column("ra", row),
                dec=state.rows.column("dec", row),
                labels={name: state.labels.of_rows(name, row) for name in state.manifest.labels},
                vectors=state.unit_vectors(row),
            )

    def modalities_of(self, object_id: str) -> tuple[str, ...]:
        """The modalities of an object, sorted; empty if it is not there."""
        rows = self._state.rows
        return tuple(rows.modality_names[code] for code in rows.modality_codes(rows.rows_of(object_id)))

    def position_of(self, object_id: str) -> tuple[float, float]:
        """`ra` and `dec` in degrees, ICRS; NaN where unknown. Raises LookupError if the object is not there."""
        state = self._state
        rows = self._rows_of_known(state, object_id)
        known = rows[np.isfinite(state.rows.column("dec", rows))]
        first = (known if len(known) else rows)[:1]
        return float(state.rows.column("ra", first)[0]), float(state.rows.column("dec", first)[0])

    def rows_of(self, object_id: str) -> Int64[np.ndarray, " M"]:
        """The rows of an object, none if it is not there; in order of modality."""
        return self._state.rows.rows_of(object_id)

    def nearest_id(self, object_id: str) -> str:
        """The known id that shares the longest beginning with this one."""
        return self._state.rows.nearest_id(object_id)

    def labels_of(self, object_id: str) -> dict[str, float]:
        """The known labels of an object by column; empty where it has none."""
        return self._state.labels.of_object(object_id)

    def label_of_rows(self, name: str, row: Int[np.ndarray, "Q K"]) -> Float64[np.ndarray, "Q K"]:
        """The label `name` of the objects in these rows, NaN where unknown and for row -1. Raises LookupError."""
        _check_label(self._state, name)
        return self._state.labels.of_rows(name, row)

    def _rows_of_known(self, state: IndexState, object_id: str) -> Int64[np.ndarray, " M"]:
        rows = state.rows.rows_of(object_id)
        if not len(rows):
            nearest = state.rows.nearest_id(object_id)
            raise LookupError(f"no object {object_id!r} in the index; the nearest known is {nearest!r}")
        return rows

    def _change(self, change: Any) -> None:
        if not self._is_saved:
            raise EmbeddingIndexError("this index is not saved yet: save it, load the folder, and change that")
        self._state = index_changes.change(self._state, change)


def _source(embeddings: EmbeddingTable | str | Path | Iterable[str | Path]) -> RowSource:
    return TableSource(embeddings) if isinstance(embeddings, EmbeddingTable) else open_shards(embeddings)


def _chosen_rows(
    state: IndexState, cone: Cone | None, has_label: str | None, where: Ranges | None
) -> Bool[np.ndarray, " R"] | None:
    """Which rows pass the filters, None for all."""
    filters = []
    if has_label is not None:
        _check_label(state, has_label)
        filters.append(state.labels.is_known(has_label))
    if cone is not None:
        filters.append(state.rows.in_cone(cone))
    if where:
        unknown = sorted(set(where) - set(state.manifest.metadata))
        if unknown:
            raise LookupError(f"the index has no metadata {unknown[0]!r}; it has {list(state.manifest.metadata)}")
        filters.append(state.rows.in_ranges(where))
    if state.rows.alive is not None:
        filters.append(state.rows.alive)
    if not filters:
        return None
    return filters[0] if len(filters) == 1 else np.logical_and.reduce(filters)


def _check_label(state: IndexState, name: str) -> None:
    if name not in state.manifest.labels:
        raise LookupError(f"the index has no label {name!r}; it has {list(state.manifest.labels)}")


def _own_rows(state: IndexState, object_ids: Sequence[str]) -> Int64[np.ndarray, "Q M"]:
    """The rows of each of these objects, -2 in places that one has not."""
    rows = [state.rows.rows_of_each(list(object_ids), name) for name in state.manifest.num_rows_of_modality]
    return np.where(np.stack(rows, 1) < 0, -2, np.stack(rows, 1))


def _search_parts(
    state: IndexState,
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    wanted: int,
    names: list[str],
    chosen: Bool[np.ndarray, " R"] | None,
    exact: bool,
) -> list[Found]:
    """The `k` best rows of each part of these modalities and of the tail, looked for as `wanted` are; -1 fills up."""
    found = []
    for name in names:
        part = state.parts.get(name)
        if part is None:
            continue
        mine = None if chosen is None else chosen[part.rows.start : part.rows.stop]
        count = len(part.rows) if mine is None else int(mine.sum())
        if count:
            found.append(part.search(queries, min(k, count), mine, exact=exact, wanted=wanted))
    if len(state.tail):
        tail = state.rows.is_of(names) if chosen is None else state.rows.is_of(names) & chosen[len(state.base) :]
        place = np.flatnonzero(tail)
        if len(place):
            units = state.tail_units if tail.all() else state.tail_units[place]
            number = np.broadcast_to(place + len(state.base), (len(queries), len(place)))
            found.append(nearest_of(queries @ units.T, number, min(k, len(place))))
    return found


def _drop(
    similarity: Float32[np.ndarray, "Q S"],
    row: Int64[np.ndarray, "Q S"],
    dropped: Int64[np.ndarray, " E"],
    own: Int64[np.ndarray, "Q M"] | None,
    k: int,
) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
    is_dropped = np.isin(row, dropped)
    if own is not None:
        is_dropped |= (row[:, :, None] == own[:, None, :]).any(2)
    # A stable sort brings the others to the front, in their order.
    order = np.argsort(is_dropped, axis=1, kind="stable")[:, :k]
    kept = np.where(is_dropped, -1, row)
    similarity, kept = arranged(order, similarity, kept)
    return similarity, kept


def _neighbours(state: IndexState, row: Int64[np.ndarray, "Q K"], similarity: Float32[np.ndarray, "Q K"]) -> Neighbours:
    flat = row.reshape(-1)
    missing = flat < 0
    is_whole = not missing.any()
    place = flat if is_whole else np.where(missing, 0, flat)
    names = np.array([*state.rows.modality_names, ""], object)
    object_id = state.rows.object_ids(place).to_numpy(zero_copy_only=False)
    modality = names[state.rows.modality_codes(place)]
    ra, dec = (state.rows.column(name, place) for name in ("ra", "dec"))
    if not is_whole:
        object_id[missing] = ""
        modality[missing] = ""
        ra, dec = (np.where(missing, np.nan, values) for values in (ra, dec))
        similarity = np.where(row < 0, np.float32(-np.inf), similarity)
    shape = row.shape
    return Neighbours(
        row=row,
        similarity=similarity,
        object_id=object_id.reshape(shape),
        modality=modality.reshape(shape),
        ra=ra.reshape(shape),
        dec=dec.reshape(shape),
    )
