"""What an index on Milvus is built from: rows that are read a shard at a time, twice.

The first pass hashes every row, eight bytes each, and finds what stands there twice; the second one brings vectors.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64, Int64

from ...models.embeddings import EmbeddingShards, EmbeddingTable, open_shards
from ..index.building import RowSource, TableSource, number_columns
from ..index.protocol import EmbeddingIndexError
from .rows import check_ids, row_id, unit_vectors

Numbers: TypeAlias = pa.Table | Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class RowBlock:
    """B rows; `start` is the number of the first among all."""

    start: int
    object_id: list[str]
    modality: list[str]
    ra: Float64[np.ndarray, " B"]
    dec: Float64[np.ndarray, " B"]
    vectors: Float32[np.ndarray, "B D"]


@dataclass(frozen=True, eq=False)
class RowPlan:
    """What the first pass found of R rows: their ids, sorted ids of their objects, counts, and a hash of it all."""

    row_id: Int64[np.ndarray, " R"]
    object_hash: Int64[np.ndarray, " O"]
    num_rows_of_modality: dict[str, int]
    fingerprint: str


class MilvusSource:
    """Embeddings (a table, a folder of shards, or shards), of which one shard's ids and a block are in memory."""

    def __init__(self, embeddings: EmbeddingTable | str | Path | Iterable[str | Path]) -> None:
        if isinstance(embeddings, EmbeddingTable):
            whole: RowSource = TableSource(embeddings)
            self._parts: list[RowSource] = [whole]
            told = hashlib.sha256(embeddings.vectors.tobytes())
            for positions in (embeddings.ra, embeddings.dec):
                told.update(positions.tobytes())
            self._told = told.hexdigest()
        else:
            shards = open_shards(embeddings)
            whole = shards
            self._parts = [replace(shards, paths=(path,)) for path in shards.paths]
            self._told = repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in shards.paths])
        self.model_id, self.space, self.dimension = whole.model_id, whole.space, whole.dimension

    def plan(self, *more: str) -> RowPlan:
        """The first pass; `more` goes into the hash. Raises EmbeddingIndexError on a row given twice."""
        ids, objects, counts = [], [np.zeros(0, np.int64)], dict[str, int]()
        for part in self._parts:
            rows = part.rows()
            names, modalities = rows["object_id"].to_pylist(), rows["modality"].to_pylist()
            check_ids(names, sorted(set(modalities)), _where(part))
            ids.append(np.array([row_id(*pair) for pair in zip(names, modalities, strict=True)], np.int64))
            objects = [np.union1d(objects[0], np.array([row_id(name, "") for name in names], np.int64))]
            for entry in pc.value_counts(rows["modality"]).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        every = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        self._check_rows_differ(every)
        told = hashlib.sha256(every.tobytes())
        for text in (self._told, self.model_id, self.space, str(self.dimension), *more):
            told.update(f"{len(text)}:{text}".encode())
        return RowPlan(every, objects[0], dict(sorted(counts.items())), told.hexdigest())

    def blocks(self, num_rows: int, skip: int = 0) -> Iterator[RowBlock]:
        """The second pass, without the first `skip` rows. Raises EmbeddingIndexError on vectors of no direction."""
        start = 0
        for part in self._parts:
            rows = part.rows()
            if start + rows.num_rows <= skip:
                start += rows.num_rows
                continue
            first = 0
            for values in part.blocks(num_rows):
                place = slice(first, first + len(values))
                here = rows.slice(first, len(values))
                names, modalities = here["object_id"].to_pylist(), here["modality"].to_pylist()
                vectors, length = unit_vectors(values)
                wrong = ~(np.isfinite(length) & (length > 0))
                if wrong.any():
                    row = int(wrong.argmax())
                    raise EmbeddingIndexError(
                        f"row {start + first + row} (object {names[row]}, {modalities[row]}): the vector must be "
                        f"finite and not zero; its length is {length[row]}"
                    )
                if start + place.stop > skip:
                    ra, dec = (pc.cast(here[name], pa.float64()).to_numpy() for name in ("ra", "dec"))
                    yield RowBlock(start + first, names, modalities, ra, dec, vectors)
                first += len(values)
            start += rows.num_rows

    def _check_rows_differ(self, ids: Int64[np.ndarray, " R"]) -> None:
        order = np.argsort(ids, kind="stable")
        twice = np.flatnonzero(np.diff(ids[order]) == 0)
        if not len(twice):
            return
        places = sorted(int(order[twice[0] + step]) for step in (0, 1))
        first, second = (self._names_at(place) for place in places)
        if first != second:
            raise EmbeddingIndexError(f"{first} and {second} have one hash; leave one of them out")
        raise EmbeddingIndexError(f"object {first[0]} has {first[1]} twice; an index holds one row for each")

    def _names_at(self, place: int) -> tuple[str, str]:
        for part in self._parts:
            rows = part.rows()
            if place < rows.num_rows:
                return rows["object_id"][place].as_py(), rows["modality"][place].as_py()
            place -= rows.num_rows
        raise AssertionError("unreachable")


class ObjectNumbers:
    """Columns of numbers by object, looked up by hash: labels or metadata as they were given."""

    def __init__(self, given: Numbers, what: str) -> None:
        columns = {"object_id": pa.array([], pa.large_string())} if given is None else number_columns(given, what)
        self.object_id = columns.pop("object_id")
        self.columns: dict[str, np.ndarray] = columns
        hashes = np.array([row_id(name, "") for name in self.object_id.to_pylist()], np.int64)
        self._order = np.argsort(hashes)
        self._sorted = hashes[self._order]

    def __len__(self) -> int:
        return len(self.object_id)

    @property
    def told(self) -> str:
        """A hash of it all."""
        told = hashlib.sha256(repr(sorted(self.columns)).encode() + self._sorted.tobytes())
        for name in sorted(self.columns):
            told.update(self.columns[name][self._order].tobytes())
        return told.hexdigest()

    def unknown(self, object_hash: Int64[np.ndarray, " O"]) -> list[str]:
        """The objects that are not among these."""
        missing = self._order[~np.isin(self._sorted, object_hash)]
        return [self.object_id[int(place)].as_py() for place in np.sort(missing)]

    def of(self, object_id: str) -> dict[str, float] | None:
        """What was given of an object, NaN where nothing is known; None if it was not named."""
        place = int(np.searchsorted(self._sorted, row_id(object_id, "")))
        while place < len(self._sorted) and self._sorted[place] == row_id(object_id, ""):
            at = int(self._order[place])
            if self.object_id[at].as_py() == object_id:
                return {name: float(values[at]) for name, values in self.columns.items()}
            place += 1
        return None


def _where(part: RowSource) -> str:
    return str(part.paths[0]) if isinstance(part, EmbeddingShards) else "embeddings"
