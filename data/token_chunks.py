"""Reading tokens by chunks: copied out of the memory map as they lie on disk, and gathered into batches from there.

Disks and caches like neighbouring rows copied as one; rows in random order cost several times as much, unless they are
in the processor's cache. So some thousand objects are read first, and shuffled afterwards.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64, Integer
from torch import Tensor

from .token_store import TokenStore

SHORTEST_RUN = 32
"""Where runs of neighbouring rows are shorter than this, on average, rows are copied one by one."""
GRAIN = 2**18
"""Memory is taken in multiples of so many bytes, so that arrays of about one size are used for each other."""
FIELDS = {"codes": -1, "positions": 0, "instrument": 0}
"""Arrays of a shard of tokens, and what an object gets that lacks the modality."""


class ShardRows(NamedTuple):
    """Some objects of one shard, by their rows in it: a slice if they are neighbours."""

    store: TokenStore
    shard: int
    rows: slice | np.ndarray
    num_rows: int


class Memory:
    """Memory that is used again: when it is fresh, the first touch costs as much as the copy into it."""

    def __init__(self, pin_memory: bool = False) -> None:
        self._pin_memory = pin_memory
        self._free: dict[int, list[np.ndarray]] = {}
        self._scratch = np.empty(0, np.uint8)

    def tensor(self, count: int, like: np.ndarray) -> Tensor:
        """`count` rows like those of `like`, with anything in them; used again once nobody holds a part of it."""
        shape, size = (count, *like.shape[1:]), count * like[:1].size
        if self._pin_memory:  # torch does the same, and waits for copies from it to end
            return torch.empty(shape, dtype=torch.from_numpy(like[:0].copy()).dtype, pin_memory=True)
        num_bytes = -(-size * like.itemsize // GRAIN) * GRAIN
        free = self._free.setdefault(num_bytes, [])
        raw = free.pop() if free else np.empty(num_bytes, np.uint8)
        # A memoryview in between makes this array the one that all views of it keep alive.
        array = np.frombuffer(raw.data, like.dtype)
        weakref.finalize(array, free.append, raw).atexit = False
        return torch.from_numpy(array[:size].reshape(shape))

    def scratch(self, count: int, like: np.ndarray) -> np.ndarray:
        """The same as an array, until `scratch` is called again: small enough to stay in the processor's cache."""
        size = count * like[:1].size
        if len(self._scratch) < size * like.itemsize:
            self._scratch = np.empty(size * like.itemsize, np.uint8)
        return self._scratch[: size * like.itemsize].view(like.dtype).reshape(count, *like.shape[1:])


@dataclass(frozen=True, eq=False)
class TokenColumn:
    """What the C objects of a chunk have of one modality; fields that all share have stride 0 along C."""

    has: Bool[np.ndarray, " C"]
    codes: Int16[Tensor, "C N"]
    positions: Float[Tensor, "C N P"]
    instrument: Float[Tensor, "C F"]


class ColumnReader:
    """Reads one modality; `store` is one that has it."""

    def __init__(self, name: str, store: TokenStore, memory: Memory):
        self.name = name
        self.memory = memory
        # Any shard with tokens: it gives shapes, and the positions of a chunk in which nobody has the modality.
        shards = (store.token_shard(name, index) for index in range(len(store.starts) - 1))
        example = next(shard for shard in shards if shard is not None)
        self._nobody = replace(example, positions=example.positions[:1], instrument=example.instrument[:1])

    def read(self, segments: Sequence[ShardRows], order: Int64[np.ndarray, " C"] | None) -> TokenColumn:
        """What the objects of `segments` have, in this order (None: as they come)."""
        shards, stored = [], []
        for store, index, rows, num_rows in segments:
            shard = store.token_shard(self.name, index) if self.name in store.tokenizer_hashes else None
            shards.append(shard or self._nobody)
            stored.append(np.full(num_rows, -1) if shard is None else shard.rows[rows])
        rows = np.concatenate(stored)
        owner = np.repeat(np.arange(len(segments)), [segment.num_rows for segment in segments])
        has = rows >= 0
        everyone = bool(has.all())
        # Of those who have the modality, in the order of reading; row 0 is for those who have not.
        place = np.arange(1, len(rows) + 1) if everyone else np.where(has, np.cumsum(has), 0)
        copies = plan_copies(rows, owner) if everyone else plan_copies(rows[has], owner[has])
        if order is not None:
            has, place = has[order], place[order]
        fields = []
        for name, absent in FIELDS.items():
            sources = [getattr(shard, name) for shard in shards]
            first, *others = {id(source): source for source in sources}.values()
            if name != "codes" and all(len(a) == 1 and np.array_equal(a, first) for a in (first, *others)):
                one = self.memory.tensor(1, first)
                one.numpy()[:] = first
                fields.append(one.expand(len(has), *first.shape[1:]))
                continue
            tensor = self.memory.tensor(len(has), first)
            if everyone and order is None:
                _copy(copies, sources, tensor.numpy())
            else:
                staged = self.memory.scratch(1 + len(has), first)
                staged[0] = absent
                _copy(copies, sources, staged[1:])
                np.take(staged, place, axis=0, out=tensor.numpy(), mode="clip")  # other modes copy through a buffer
            fields.append(tensor)
        return TokenColumn(has, *fields)


class Copy(NamedTuple):
    """Rows of the arrays of one segment, and where they go."""

    owner: int
    rows: slice | np.ndarray
    start: int
    stop: int


def plan_copies(rows: Integer[np.ndarray, " R"], owner: Int64[np.ndarray, " R"]) -> list[Copy]:
    """How to copy `rows` of the segments `owner`: neighbours as one, unless most stand alone."""
    if not len(rows):
        return []
    changes = owner[1:] != owner[:-1]
    breaks = changes | (rows[1:] - rows[:-1] != 1)
    by_run = np.count_nonzero(breaks) * SHORTEST_RUN < len(rows)
    edges = np.concatenate([[0], np.flatnonzero(breaks if by_run else changes) + 1])
    starts, stops = edges.tolist(), [*edges[1:].tolist(), len(rows)]
    firsts, owners = rows[edges].tolist(), owner[edges].tolist()
    return [
        Copy(segment, slice(first, first + stop - start) if by_run else rows[start:stop], start, stop)
        for segment, first, start, stop in zip(owners, firsts, starts, stops, strict=True)
    ]


def _copy(copies: Sequence[Copy], sources: Sequence[np.ndarray], target: np.ndarray) -> None:
    """Carry out copies; the one row of a source whose objects share it goes to all."""
    for owner, rows, start, stop in copies:
        source = sources[owner]
        if len(source) == 1:
            target[start:stop] = source
        elif isinstance(rows, slice):
            target[start:stop] = source[rows]
        else:
            np.take(source, rows, axis=0, out=target[start:stop], mode="clip")
