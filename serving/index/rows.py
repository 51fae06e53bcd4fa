"""The rows of an index: which object and modality each is, where on the sky, and what its metadata say.

Rows of the base are grouped by modality and lie in a memory-mapped Arrow file; an object is found by bisection in their
order by id, so that nothing is built when the index is opened. Rows that were added since (the tail) are few and lie in
memory. Nothing here grows by a Python object for each row of the base.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int, Int64

from .cone import Cone
from .protocol import Ranges

ID = pa.large_string()
"""The type of object ids: plain strings end at 2 GiB, some 100 million rows."""
MANY = 64
"""Ids from which one hash table of all ids is cheaper than a bisection for each."""


@dataclass(frozen=True, eq=False)
class TailRows:
    """T rows that were added to the base."""

    object_id: list[str]
    modality: list[str]
    columns: dict[str, np.ndarray]
    """`ra`, `dec` and the metadata, float64 [T]."""

    def __len__(self) -> int:
        return len(self.object_id)


class IndexRows:
    """R rows, of which those that were removed are no longer alive; never changed after it is made."""

    def __init__(
        self,
        base: pa.Table,
        by_id: Int64[np.ndarray, " S"],
        num_rows_of_base: dict[str, int],
        tail: TailRows,
        removed: Int64[np.ndarray, " G"],
    ) -> None:
        self.base, self.by_id, self.num_base = base, by_id, base.num_rows
        self.tail = tail
        self._base_id = _one_array(base["object_id"])
        self._columns = {n: _one_array(base[n]).to_numpy() for n in base.column_names if n != "object_id"}
        self.modality_names = sorted({*num_rows_of_base, *tail.modality})
        code_of = {name: code for code, name in enumerate(self.modality_names)}
        stops = np.cumsum(list(num_rows_of_base.values()), dtype=np.int64)
        starts = [0, *stops.tolist()][: len(stops)]
        self.base_range = {n: range(a, b) for n, a, b in zip(num_rows_of_base, starts, stops.tolist(), strict=True)}
        self._base_starts = np.array(starts, np.int64)
        self._base_codes = np.array([code_of[name] for name in num_rows_of_base], np.int64)
        self._tail_codes = np.array([code_of[name] for name in tail.modality], np.int64)
        self.alive: Bool[np.ndarray, " R"] | None = None
        if len(removed):
            self.alive = np.ones(self.num_base + len(tail), bool)
            self.alive[removed] = False
        self._tail_rows: dict[str, list[int]] = {}
        for row, object_id in enumerate(tail.object_id, self.num_base):
            if self.alive is None or self.alive[row]:
                self._tail_rows.setdefault(object_id, []).append(row)

    def __len__(self) -> int:
        """Rows, those that were removed among them."""
        return self.num_base + len(self.tail)

    @property
    def column_names(self) -> tuple[str, ...]:
        """`ra`, `dec` and the metadata."""
        return tuple(self._columns)

    @functools.cached_property
    def num_rows_of_modality(self) -> dict[str, int]:
        """Rows that are alive, of those modalities that have any, sorted by name."""
        counts = {}
        for name in self.modality_names:
            rows = self.rows_with(name)
            if len(rows):
                counts[name] = len(rows)
        return counts

    @functools.cached_property
    def num_objects(self) -> int:
        """Objects with a row that is alive."""
        if self.alive is None and not len(self.tail):
            # In order of id, an object begins where the id differs from the one before.
            ordered = self._base_id.take(pa.array(self.by_id))
            return 1 + pc.sum(pc.not_equal(ordered[1:], ordered[:-1])).as_py() if len(ordered) > 1 else len(ordered)
        alive = np.arange(len(self)) if self.alive is None else np.flatnonzero(self.alive)
        return pc.count_distinct(self.object_ids(alive)).as_py()

    def object_ids(self, row: Int[np.ndarray, " B"]) -> pa.Array:
        """The objects of these rows."""
        if not len(self.tail):
            return self._base_id.take(pa.array(row))
        in_tail = row >= self.num_base
        found = np.empty(len(row), object)
        found[~in_tail] = self._base_id.take(pa.array(row[~in_tail])).to_numpy(zero_copy_only=False)
        found[in_tail] = [self.tail.object_id[r - self.num_base] for r in row[in_tail]]
        return pa.array(found, ID)

    def modality_codes(self, row: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The modality of each of these rows, by its place in `modality_names`."""
        if not len(self._base_starts):
            return self._tail_codes[row - self.num_base]
        codes = self._base_codes[np.searchsorted(self._base_starts, row, "right") - 1]
        if len(self.tail):
            in_tail = row >= self.num_base
            codes[in_tail] = self._tail_codes[row[in_tail] - self.num_base]
        return codes

    def names_of(self, row: Int[np.ndarray, " B"]) -> list[tuple[str, str]]:
        """Object id and modality of these rows."""
        modality = [self.modality_names[code] for code in self.modality_codes(row)]
        return list(zip(self.object_ids(row).to_pylist(), modality, strict=True))

    def column(self, name: str, row: Int[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """A column of numbers at these rows: `ra`, `dec` (degrees) or metadata."""
        if not len(self.tail):
            return self._columns[name][row]
        values = np.empty(len(row))
        in_tail = row >= self.num_base
        values[~in_tail] = self._columns[name][row[~in_tail]]
        values[in_tail] = self.tail.columns[name][row[in_tail] - self.num_base]
        return values

    def rows_of(self, object_id: str) -> Int64[np.ndarray, " M"]:
        """The rows of an object that are alive, in order of modality; none if it is not there."""
        start = self._bisect(object_id)
        stop = start
        while stop < len(self.by_id) and self._id_at(stop) == object_id:
            stop += 1
        rows = np.array([*sorted(self.by_id[start:stop]), *self._tail_rows.get(object_id, ())], np.int64)
        rows = rows if self.alive is None else rows[self.alive[rows]]
        return rows if len(rows) < 2 else rows[np.argsort(self.modality_codes(rows), kind="stable")]

    def rows_of_each(self, object_ids: Sequence[str], modality: str) -> Int64[np.ndarray, " B"]:
        """The row of each object's `modality`, -1 where it has none."""
        if len(object_ids) < MANY:
            found = np.full(len(object_ids), -1, np.int64)
            for place, object_id in enumerate(object_ids):
                rows = self.rows_of(object_id)
                mine = [r for r in rows if self.modality_names[self.modality_codes(np.array([r]))[0]] == modality]
                found[place] = mine[0] if mine else -1
            return found
        rows = self.rows_with(modality)
        place = pc.fill_null(pc.index_in(pa.array(object_ids, ID), value_set=self.object_ids(rows)), -1)
        place = place.to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(place < 0, -1, rows[place]) if len(rows) else place

    def rows_with(self, modality: str) -> Int64[np.ndarray, " B"]:
        """The rows of a modality that are alive, in order."""
        base = self.base_range.get(modality, range(0))
        tail = np.flatnonzero(self._tail_codes == self.modality_names.index(modality)) + self.num_base
        rows = np.concatenate([np.arange(base.start, base.stop), tail])
        return rows if self.alive is None else rows[self.alive[rows]]

    def is_of(self, modalities: Sequence[str]) -> Bool[np.ndarray, " T"]:
        """Which rows of the tail are alive and of one of these modalities."""
        codes = [self.modality_names.index(name) for name in modalities]
        chosen = np.isin(self._tail_codes, codes)
        return chosen if self.alive is None else chosen & self.alive[self.num_base :]

    def rows_of_any(self, object_ids: Iterable[str]) -> Int64[np.ndarray, " B"]:
        """All rows of these objects that are alive, in no order."""
        wanted = list(dict.fromkeys(object_ids))
        if len(wanted) < MANY:
            return np.concatenate([np.zeros(0, np.int64), *map(self.rows_of, wanted)])
        hit = pc.is_in(self._base_id, value_set=pa.array(wanted, ID)).to_numpy(zero_copy_only=False)
        tail = [row for object_id in wanted for row in self._tail_rows.get(object_id, ())]
        rows = np.concatenate([np.flatnonzero(hit), np.array(tail, np.int64)])
        return rows if self.alive is None else rows[self.alive[rows]]

    def in_cone(self, cone: Cone) -> Bool[np.ndarray, " R"]:
        """Which rows lie on this part of the sky. Only the belt of its declinations is looked at closely."""
        chosen = np.zeros(len(self), bool)
        order, dec = self._by_declination
        # A margin above rounding; ten times smaller than a milliarcsecond.
        first, last = np.searchsorted(dec, [cone.dec - cone.radius_deg - 1e-8, cone.dec + cone.radius_deg + 1e-8])
        rows = order[first:last]
        chosen[rows] = cone.contains(self.column("ra", rows), self.column("dec", rows))
        return chosen

    def in_ranges(self, ranges: Ranges) -> Bool[np.ndarray, " R"]:
        """Which rows lie within all these ranges of metadata; a row whose value is not known does not."""
        chosen = np.ones(len(self), bool)
        for name, (low, high) in ranges.items():
            values = self._columns[name]
            if len(self.tail):
                values = np.concatenate([values, self.tail.columns[name]])
            chosen &= ~np.isnan(values)
            if low is not None:
                chosen &= values >= low
            if high is not None:
                chosen &= values <= high
        return chosen

    def nearest_id(self, object_id: str) -> str:
        """The id that shares the longest beginning with this one."""
        place = self._bisect(object_id)
        beside = [self._id_at(i) for i in range(place - 1, place + 1) if 0 <= i < len(self.by_id)]
        if self.alive is not None:
            beside = [i for i in beside if len(self.rows_of(i))] or [
                i.as_py() for i in self.object_ids(np.flatnonzero(self.alive))[:1]
            ]
        return max([*beside, *self._tail_rows], key=lambda known: _common_length(known, object_id))

    @functools.cached_property
    def _by_declination(self) -> tuple[Int64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
        every = np.arange(len(self))
        dec = self.column("dec", every)
        order = np.argsort(dec, kind="stable")[: int(np.isfinite(dec).sum())]  # NaN sorts last
        return order, dec[order]

    def _bisect(self, object_id: str) -> int:
        """The first place in the order by id whose id is not less; ids compare by their UTF-8 bytes, as Arrow's do."""
        wanted = object_id.encode()
        low, high = 0, len(self.by_id)
        while low < high:
            middle = (low + high) // 2
            if self._id_at(middle).encode() < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def _id_at(self, place: int) -> str:
        found: str = self._base_id[int(self.by_id[place])].as_py()
        return found


def order_by_id(object_id: pa.Array) -> Int64[np.ndarray, " R"]:
    """The rows in order of their ids; equal ids in order of row."""
    return pc.sort_indices(object_id).to_numpy().astype(np.int64)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece; where it is in one already, that piece, which may lie in a memory-mapped file."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _common_length(first: str, second: str) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
