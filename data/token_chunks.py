"""Reading tokens by chunks: copied out of the memory map as they lie on disk, and gathered into batches from there.

Disks and caches like neighbouring rows copied as one; rows in random order cost several times as much, unless they are
in the processor's cache. So some thousand objects are read first, and shuffled afterwards.
"""

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from .token_store import TokenStore

SHORTEST_RUN = 32
"""Where runs of neighbouring rows are shorter than this, on average, rows are copied one by one."""
GRAIN = 2**18
"""Memory is taken in multiples of so many bytes, so that arrays of about one size are used for each other."""
FIELDS = {"codes": -1, "positions": 0, "instrument": 0}
"""Arrays of a shard of tokens, and what an object gets that lacks the modality."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Some objects of one shard, by their rows in it."""

    store: TokenStore
    shard: int
    rows: Int64[np.ndarray, " R"]


class Memory:
    """Arrays whose memory is used again once nobody holds a part of them: fresh memory costs as much as copying."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def rows(self, count: int, like: np.ndarray) -> np.ndarray:
        """`count` rows like those of `like`, with anything in them."""
        size = count * like[:1].size
        if size * like.itemsize < GRAIN:
            return np.empty((count, *like.shape[1:]), like.dtype)
        num_bytes = -(-size * like.itemsize // GRAIN) * GRAIN
        free = self._free.setdefault(num_bytes, [])
        raw = free.pop() if free else np.empty(num_bytes, np.uint8)
        # A memoryview in between makes this array the one that all views of it keep alive.
        array = np.frombuffer(raw.data, like.dtype)
        weakref.finalize(array, free.append, raw).atexit = False
        return array[:size].reshape(count, *like.shape[1:])


@dataclass(frozen=True, eq=False)
class TokenColumn:
    """What the C objects of a chunk have of one modality, in the order of reading.

    `row`: the row of each object in `arrays`, or None if they are their own; objects that lack the modality share row
    0, which is masked. `common` are the fields that all objects share, of one row.
    """

    has: Bool[np.ndarray, " C"]
    row: Int64[np.ndarray, " C"] | None
    arrays: dict[str, np.ndarray]
    common: dict[str, Tensor]
    memory: Memory

    def gather(self, places: Int64[np.ndarray, " B"], pin_memory: bool) -> list[Tensor]:
        """Codes, positions and instrument numbers of the objects at these places, as new tensors."""
        rows = places if self.row is None else self.row[places]
        found = []
        for name in FIELDS:
            if name in self.common:
                found.append(self.common[name].expand(len(rows), *self.common[name].shape[1:]))
                continue
            array = self.arrays[name]
            tensor = torch.from_numpy(self.memory.rows(len(rows), array))
            if pin_memory:  # torch gives such memory to other tensors, once copies from it have ended
                tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            np.take(array, rows, axis=0, out=tensor.numpy(), mode="clip")  # other modes copy through a buffer
            found.append(tensor)
        return found

    def view(self, places: slice) -> list[Tensor]:
        """The same for neighbours, without a copy if each object has a row."""
        count = places.stop - places.start
        if self.row is not None:
            return self.gather(np.arange(places.start, places.stop), pin_memory=False)
        common = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.common.items()}
        return [common[name] if name in common else torch.from_numpy(self.arrays[name][places]) for name in FIELDS]


class ColumnReader:
    """Reads one modality; `store` is one that has it."""

    def __init__(self, name: str, store: TokenStore, memory: Memory):
        self.name = name
        self.memory = memory
        # Any shard with tokens: it gives shapes, and the positions of a chunk in which nobody has the modality.
        shards = (store.token_shard(name, index) for index in range(len(store.starts) - 1))
        self._example = next(shard for shard in shards if shard is not None)

    def read(self, segments: Sequence[ShardRows]) -> TokenColumn:
        """Copy what the objects of `segments` have."""
        shards, stored = [], []
        for segment in segments:
            held = self.name in segment.store.tokenizer_hashes
            shard = segment.store.token_shard(self.name, segment.shard) if held else None
            shards.append(shard)
            if shard is None:
                stored.append(np.full(len(segment.rows), -1))
            else:
                stored.append(segment.rows if shard.is_full else shard.rows[segment.rows])
        rows = np.concatenate(stored)
        owner = np.repeat(np.arange(len(segments)), [len(segment.rows) for segment in segments])
        has = rows >= 0
        row = None if has.all() else np.where(has, np.cumsum(has), 0)
        if row is not None:
            rows, owner = rows[has], owner[has]
        copies = plan_copies(rows, owner)
        arrays, common = {}, {}
        for name, absent in FIELDS.items():
            sources = [getattr(self._example, name)[:1] if shard is None else getattr(shard, name) for shard in shards]
            first, *others = {id(source): source for source in sources}.values()
            if name != "codes" and all(len(a) == 1 and np.array_equal(a, first) for a in (first, *others)):
                common[name] = torch.from_numpy(np.array(first))
                continue
            extra = int(row is not None)
            arrays[name] = self.memory.rows(extra + len(rows), first)
            arrays[name][:extra] = absent
            for copy in copies:
                copy.apply(sources[copy.owner], arrays[name][extra:])
        return TokenColumn(has, row, arrays, common, self.memory)


@dataclass(frozen=True, eq=False)
class Copy:
    """Rows of the arrays of one segment, and where they go."""

    owner: int
    rows: slice | np.ndarray
    start: int
    stop: int

    def apply(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copy; the one row of a `source` whose objects share it goes to all."""
        part = target[self.start : self.stop]
        if len(source) == 1:
            part[:] = source
        elif isinstance(self.rows, slice):
            part[:] = source[self.rows]
        else:
            np.take(source, self.rows, axis=0, out=part, mode="clip")


def plan_copies(rows: Integer[np.ndarray, " R"], owner: Int64[np.ndarray, " R"]) -> list[Copy]:
    """How to copy `rows` of the segments `owner`: neighbours as one, unless most stand alone."""
    changes = owner[1:] != owner[:-1]
    breaks = changes | (rows[1:] - rows[:-1] != 1)
    by_run = np.count_nonzero(breaks) * SHORTEST_RUN < len(rows)
    edges = [0, *(np.flatnonzero(breaks if by_run else changes) + 1).tolist(), len(rows)]
    copies = []
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            first = int(rows[start])
            chosen = slice(first, first + stop - start) if by_run else rows[start:stop]
            copies.append(Copy(int(owner[start]), chosen, start, stop))
    return copies
