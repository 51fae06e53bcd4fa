"""An index as it is at one version: all that a search needs, read from its folder, and never changed.

A change makes a new state, which takes over from the old one what did not change; whoever searches in the old one
meanwhile is not disturbed.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float32, Int64

from . import files as index_files
from .building import WrittenRows, open_vectors
from .files import Manifest
from .index_types import copy_to_gpus, open_structure
from .labels import Labels, read_labels
from .object_means import ObjectMeans, object_means
from .part import SearchablePart
from .protocol import EmbeddingIndexError
from .rows import IndexRows, TailRows
from .vectors import BLOCK_ROWS, StoredVectors

_COUNTS = b"num_rows_of_modality"


@dataclass(frozen=True, eq=False)
class IndexState:
    """One version of an index. `tail` holds the vectors of rows that were added to the base."""

    folder: Path
    manifest: Manifest
    rows: IndexRows
    base: StoredVectors
    tail: StoredVectors
    parts: dict[str, SearchablePart]
    labels: Labels

    @functools.cached_property
    def tail_units(self) -> Float32[np.ndarray, "T D"]:
        """The vectors of the tail at unit length; they are few, and every search compares them."""
        return self.tail.unit(slice(None))

    @functools.cached_property
    def means(self) -> ObjectMeans:
        """The labelled objects by the mean of their vectors; every labelled row is read when this is first asked."""
        return object_means(self.rows, self.labels, self.unit_vectors, self.manifest.dimension)

    def unit_vectors(self, row: Int64[np.ndarray, " B"]) -> Float32[np.ndarray, "B D"]:
        """The vectors of these rows at unit length."""
        if not len(self.tail):
            return self.base.unit(row)
        found = np.empty((len(row), self.manifest.dimension), np.float32)
        in_tail = row >= len(self.base)
        found[~in_tail] = self.base.unit(row[~in_tail])
        found[in_tail] = self.tail.unit(row[in_tail] - len(self.base))
        return found

    def similarity(
        self, queries: Float32[np.ndarray, "Q D"], row: Int64[np.ndarray, "Q S"]
    ) -> Float32[np.ndarray, "Q S"]:
        """The similarity of each unit query to its own rows; -inf for row -1."""
        in_base = self.base.similarity(queries, np.where(row < len(self.base), row, -1))
        if not len(self.tail):
            return in_base
        return np.maximum(in_base, self.tail.similarity(queries, np.maximum(row - len(self.base), -1)))


@dataclass(frozen=True, eq=False)
class LiveRows:
    """The rows of a state that are alive, but for some that are about to be replaced, as the source of a new base."""

    state: IndexState
    dropped: Int64[np.ndarray, " G"]

    @property
    def space(self) -> str:
        """`encoder` or `aligned`."""
        return self.state.manifest.space

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""
        return self.state.manifest.model_id

    @property
    def dimension(self) -> int:
        """Their width."""
        return self.state.manifest.dimension

    @functools.cached_property
    def _alive(self) -> Int64[np.ndarray, " B"]:
        rows = self.state.rows
        alive = np.ones(len(rows), bool) if rows.alive is None else rows.alive.copy()
        alive[self.dropped] = False
        return np.flatnonzero(alive)

    def rows(self) -> pa.Table:
        """`object_id`, `modality`, positions and metadata."""
        rows = self.state.rows
        names = pa.array(rows.modality_names, pa.string())
        modality = pa.DictionaryArray.from_arrays(pa.array(rows.modality_codes(self._alive), pa.int32()), names)
        columns = {name: rows.column(name, self._alive) for name in rows.column_names}
        return pa.table({"object_id": rows.object_ids(self._alive), "modality": modality, **columns})

    def blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[Float16[np.ndarray, "B D"]]:
        """Their vectors as stored."""
        num_base = len(self.state.base)
        for start in range(0, len(self._alive), num_rows):
            row = self._alive[start : start + num_rows]
            in_tail = row >= num_base
            block = np.empty((len(row), self.dimension), np.float16)
            block[~in_tail] = self.state.base.values[row[~in_tail]]
            block[in_tail] = self.state.tail.values[row[in_tail] - num_base]
            yield block


def write_counts(folder: Path, written: WrittenRows) -> None:
    """Write how many rows of each modality lie in a folder, in their order."""
    (folder / "modalities.json").write_text(json.dumps(written.num_rows_of_modality) + "\n", encoding="utf-8")


def read_state(
    folder: Path, manifest: Manifest, *, memory_map: bool = True, before: IndexState | None = None
) -> IndexState:
    """The state of a folder that a manifest tells of; what `before` holds of the same base is taken over.

    Raises EmbeddingIndexError where the files do not agree with the manifest.
    """
    base_folder = folder / manifest.base
    counts = _read_counts(base_folder)
    if before is not None and before.manifest.base == manifest.base and before.folder == folder:
        base, parts, base_rows, by_id = before.base, before.parts, before.rows.base, before.rows.by_id
    else:
        base = open_vectors(base_folder)
        base_rows = _read_rows(base_folder)
        by_id = np.load(base_folder / index_files.BY_ID, mmap_mode="r", allow_pickle=False)
        parts = _open_parts(base_folder, manifest, base, memory_map)
    if not len(base) == base_rows.num_rows == len(by_id) == sum(counts.values()):
        raise EmbeddingIndexError(
            f"{base_folder}: files of different indexes; {len(base)} vectors, {base_rows.num_rows} rows, "
            f"{sum(counts.values())} by modality"
        )
    changes = [_read_change(folder / name, len(base_rows.column_names) - 1) for name in manifest.changes]
    tail = _tail_rows(changes, [name for name in base_rows.column_names if name != "object_id"])
    removed = [change.removed for change in changes]
    rows = IndexRows(base_rows, by_id, counts, tail, np.concatenate([np.zeros(0, np.int64), *removed]))
    every = IndexRows(base_rows, by_id, counts, tail, np.zeros(0, np.int64)) if removed else rows
    forgotten = [every.object_ids(c.removed).to_pylist() if c.vectors is None else [] for c in changes]
    table = read_labels(
        base_folder / index_files.LABELS, [(c.labels, gone) for c, gone in zip(changes, forgotten, strict=True)]
    )
    added = [change.vectors for change in changes if change.vectors is not None]
    tail_vectors = StoredVectors(
        np.concatenate([np.zeros((0, manifest.dimension), np.float16), *(v.values for v in added)]),
        np.concatenate([np.zeros(0, np.float32), *(v.inverse_length for v in added)]),
    )
    return IndexState(folder, manifest, rows, base, tail_vectors, parts, Labels(table, rows))


@dataclass(frozen=True, eq=False)
class _Change:
    vectors: StoredVectors | None
    rows: pa.Table | None
    modality: list[str]
    labels: pa.Table | None
    removed: Int64[np.ndarray, " G"]


def _read_change(folder: Path, num_columns: int) -> _Change:
    removed = np.load(folder / index_files.REMOVED, allow_pickle=False)
    if not (folder / index_files.ROWS).exists():
        return _Change(None, None, [], None, removed)
    rows = _read_rows(folder)
    if len(rows.column_names) != num_columns + 1:
        raise EmbeddingIndexError(f"{folder}: columns {rows.column_names} are not those of the base")
    modality = [name for name, count in _read_counts(folder).items() for _ in range(count)]
    labels = pq.read_table(folder / index_files.LABELS)
    return _Change(open_vectors(folder), rows, modality, labels if labels.num_rows else None, removed)


def _tail_rows(changes: list[_Change], names: list[str]) -> TailRows:
    added = [change.rows for change in changes if change.rows is not None]
    columns = {name: np.concatenate([np.zeros(0), *(rows[name].to_numpy() for rows in added)]) for name in names}
    ids = [object_id for rows in added for object_id in rows["object_id"].to_pylist()]
    return TailRows(ids, [name for change in changes for name in change.modality], columns)


def _open_parts(
    folder: Path, manifest: Manifest, vectors: StoredVectors, memory_map: bool
) -> dict[str, SearchablePart]:
    parts = {}
    start = 0
    for number, part in enumerate(manifest.parts):
        structure = open_structure(folder / f"part-{number}.faiss", part.index_type, memory_map=memory_map)
        if structure.ntotal != part.num_rows:
            raise EmbeddingIndexError(
                f"{folder}/part-{number}.faiss: the manifest counts {part.num_rows} rows of {part.modality}, the file "
                f"holds {structure.ntotal}"
            )
        on_gpus = copy_to_gpus(structure, part.index_type)
        rows = range(start, start + part.num_rows)
        parts[part.modality] = SearchablePart(part, structure, rows, vectors, on_gpus)
        start += part.num_rows
    return parts


def _read_rows(folder: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(folder / index_files.ROWS))).read_all()


def _read_counts(folder: Path) -> dict[str, int]:
    counts: dict[str, Any] = json.loads((folder / "modalities.json").read_text(encoding="utf-8"))
    return counts
