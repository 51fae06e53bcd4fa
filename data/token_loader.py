"""Batches of tokens at the speed of memory: shuffled, of any sources, for any number of processes, resumable anywhere.

Which objects make a batch is a pure function of (seed, position in the stream): `shuffle_order.py`. A batch stands in
the order of the store and each process takes its slice of it, so that a process reads a part of the blocks, and all of
them together the same batch whatever their number. A thread reads ahead by chunks: blocks are copied out of the memory
map one after the other, as disks and caches like it, and their samples are shuffled within the processor's cache.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

from .modalities import Modality
from .prefetch import prefetched
from .shuffle_order import Mixture, ShuffleOrder
from .token_chunks import ColumnReader, Memory, ShardRows
from .token_store import TokenStore

BLOCK_SIZE = 256
"""Objects that are read together: neighbours in a shard."""
WINDOW = 32
"""Blocks that are shuffled together."""
CHUNK_SIZE, CHUNK_CODES = 8192, 2**25
"""Samples that a process reads at once, a few megabytes of each modality, which caches hold; fewer where they would
have more codes than this (64 MiB)."""


@dataclass(frozen=True, eq=False)
class TokenSource:
    """A store to draw from: of which objects, and how often.

    `chosen`: which of its objects may be drawn, by default all; only those that have one of the loader's modalities
    are. `weight`: the share of samples from this source, relative to the others; by default its number of objects.
    """

    store: TokenStore
    chosen: Bool[np.ndarray, " objects"] | None = None
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class TokenSamples:
    """The tokens of B objects in M modalities; what an object lacks is masked.

    For each modality: `codes`, -1 where a token is masked or the object lacks the modality; `positions` and
    `instrument` as a `TokenGrid` has them, of stride 0 along B where all objects share them. `keys` name the objects
    for all time; `objects` are their numbers in the store of the source `sources`.
    """

    modalities: tuple[Modality, ...]
    codes: tuple[Int16[Tensor, "B _"], ...]
    positions: tuple[Float[Tensor, "B _ P"], ...]
    instrument: tuple[Float[Tensor, "B F"], ...]
    availability: Bool[Tensor, "B M"]
    keys: Int64[Tensor, " B"]
    objects: Int64[Tensor, " B"]
    sources: Int64[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, rows: slice) -> "TokenSamples":
        """Some of the objects, without a copy."""
        codes, positions, instrument = (
            tuple(tensor[rows] for tensor in field) for field in (self.codes, self.positions, self.instrument)
        )
        others = (self.availability, self.keys, self.objects, self.sources)
        return TokenSamples(self.modalities, codes, positions, instrument, *(tensor[rows] for tensor in others))


class TokenLoader:
    """An endless stream of batches of `batch_size` objects, of which process `rank` of `world_size` gets its slice.

    The stream of each source is one of whole epochs: in each, every object comes once. Where an epoch ends within a
    batch the next one begins, so that no sample is left out and no batch is short. `start` is the number of samples
    given out before (`cursor`): the stream goes on there, on any number of processes. `mix` tells whether weights hold
    for the samples of each batch, or for batches, each of which then comes from one source. `block_size` and `window`
    belong to the order. `prefetch` chunks are read ahead; `pin_memory` lets copies to a GPU run beside its work.

    Raises ValueError if there is nothing to draw, the processes cannot divide a batch, or stores do not fit together.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        batch_size: int,
        seed: int,
        *,
        modalities: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        mix: Literal["samples", "batches"] = "samples",
        block_size: int = BLOCK_SIZE,
        window: int = WINDOW,
        chunk_size: int | None = None,
        prefetch: int = 1,
        pin_memory: bool = False,
    ):
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of the {world_size} processes; rank is {rank}"
            )
        if mix == "batches" and start % batch_size:
            raise ValueError(
                f"start {start} must be a multiple of batch_size {batch_size}, for sources take whole batches"
            )
        self.batch_size = batch_size
        self.cursor = start
        """Samples given out so far, over all processes."""
        self.sources = tuple(sources)
        self.modalities = common_modalities([source.store for source in self.sources], modalities)
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self._slice = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        if chunk_size is None:
            num_codes = sum(_num_tokens(self.sources, modality.name) for modality in self.modalities)
            chunk_size = max(1, min(CHUNK_SIZE, CHUNK_CODES // num_codes))
        self._num_batches = min(max(1, chunk_size * world_size // batch_size), 2**16 - 1)
        self._runs = [_Runs(_drawn(source, self.modalities)) for source in self.sources]
        self._orders = [
            ShuffleOrder(runs.blocks(source.store.starts, block_size), window, seed, number)
            for number, (runs, source) in enumerate(zip(self._runs, self.sources, strict=True))
        ]
        weights = [
            float(len(runs)) if source.weight is None else source.weight
            for runs, source in zip(self._runs, self.sources, strict=True)
        ]
        self._mixture = Mixture(weights)
        self._unit = batch_size if mix == "batches" else 1
        # Objects of all sources under one number; the shards of the second source follow those of the first.
        self._offsets = np.cumsum([0, *(len(source.store) for source in self.sources)])
        self._shards = [(source.store, i) for source in self.sources for i in range(len(source.store.starts) - 1)]
        self._starts = np.concatenate(
            [offset + source.store.starts[:-1] for offset, source in zip(self._offsets, self.sources, strict=False)]
        )
        settings = [seed, block_size, window, self._unit, weights, [source.store.digest for source in self.sources]]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for runs in self._runs:
            digest.update(runs.objects.tobytes() + runs.lengths.tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        """Names the order of samples: a stream goes on where it was only under the same one."""

    @property
    def epoch_sizes(self) -> tuple[int, ...]:
        """Samples of an epoch of each source."""
        return tuple(order.num_samples for order in self._orders)

    def __iter__(self) -> Generator[TokenSamples, None, None]:
        """Batches from the cursor on, without end; closing the iterator ends its thread."""
        start = self.cursor
        share = self._slice.stop - self._slice.start
        with contextlib.closing(prefetched(lambda: self._chunks(start), self.prefetch)) as chunks:
            for chunk in chunks:
                for first in range(0, len(chunk), share):
                    self.cursor += self.batch_size
                    yield chunk.rows(slice(first, first + share))

    def _chunks(self, start: int) -> Iterator[TokenSamples]:
        """This process's slices of so many batches at a time, one after the other."""
        memory = Memory(self.pin_memory)
        readers = []
        for name in (modality.name for modality in self.modalities):
            store = next(source.store for source in self.sources if name in source.store.tokenizer_hashes)
            readers.append(ColumnReader(name, store, memory))
        while True:
            numbers, order = self._draw(start)
            segments = self._segments(numbers)
            columns = [reader.read(segments, order) for reader in readers]
            keys = np.concatenate([store.object_shard(shard).key[rows] for store, shard, rows, _ in segments])
            if order is not None:
                numbers, keys = numbers[order], keys[order]
            sources = np.zeros_like(numbers)
            if len(self.sources) > 1:
                sources = np.searchsorted(self._offsets, numbers, side="right") - 1
                numbers = numbers - self._offsets[sources]
            yield TokenSamples(
                self.modalities,
                tuple(column.codes for column in columns),
                tuple(column.positions for column in columns),
                tuple(column.instrument for column in columns),
                torch.from_numpy(np.stack([column.has for column in columns], 1)),
                torch.from_numpy(keys),
                torch.from_numpy(numbers),
                torch.from_numpy(sources),
            )
            start += self._num_batches * self.batch_size

    def _draw(self, start: int) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"] | None]:
        """The numbers of this process's objects in a chunk, as they are read, and in which order they are given out.

        None: in the same.
        """
        positions = start + self.batch_size * np.arange(self._num_batches + 1)
        edges = self._mixture.counts(positions // self._unit) * self._unit
        drawn = [order.draw(edges[:, source]) for source, order in enumerate(self._orders)]
        numbers = np.concatenate(
            [o + runs.take(samples) for o, runs, (samples, _) in zip(self._offsets, self._runs, drawn, strict=False)]
        )
        if self._num_batches == 1:
            return numbers[self._slice], None
        # A batch stands in the order of reading; so few batches sort fast as 16 bits.
        order = np.argsort(np.concatenate([batch for _, batch in drawn]).astype(np.uint16), kind="stable")
        order = order.reshape(self._num_batches, self.batch_size)[:, self._slice].ravel()
        if len(order) < len(numbers):
            mine = np.zeros(len(numbers), dtype=bool)
            mine[order] = True
            numbers, order = numbers[mine], (np.cumsum(mine) - 1)[order]
        return numbers, None if (order[1:] > order[:-1]).all() else order

    def _segments(self, numbers: Int64[np.ndarray, " C"]) -> list[ShardRows]:
        """The same objects, shard by shard; within a segment they ascend."""
        owner = np.searchsorted(self._starts, numbers, side="right") - 1
        breaks = (owner[1:] != owner[:-1]) | (numbers[1:] <= numbers[:-1])
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(owner)]
        segments = []
        for first, last in itertools.pairwise(edges):
            store, shard = self._shards[owner[first]]
            rows = numbers[first:last] - self._starts[owner[first]]
            begin, end = int(rows[0]), int(rows[-1]) + 1
            neighbours = end - begin == last - first
            segments.append(ShardRows(store, shard, slice(begin, end) if neighbours else rows, last - first))
        return segments


def common_modalities(stores: Sequence[TokenStore], names: Sequence[str] | None = None) -> tuple[Modality, ...]:
    """The modalities of any of the stores, by name, or those of `names`.

    Raises ValueError if a name is in no store, or two stores hold tokens of one modality that cannot be mixed.
    """
    found: dict[str, tuple[Modality, TokenStore]] = {}
    for store in stores:
        for modality in store.modalities:
            _, first = found.setdefault(modality.name, (modality, store))
            made = [(s.tokenizer_hashes[modality.name], s.num_tokens(modality.name)) for s in (first, store)]
            if made[0] != made[1]:
                raise ValueError(
                    f"{store.folder}: {modality.name} has {made[1][1]} tokens by tokenizer {made[1][0]}, but "
                    f"{made[0][1]} by {made[0][0]} in {first.folder}"
                )
    unknown = sorted(set(names or ()) - set(found))
    if unknown or not stores:
        raise ValueError(f"no tokens of {unknown}; there are those of {sorted(found)}")
    return tuple(found[name][0] for name in sorted(found if names is None else set(names)))


def _num_tokens(sources: Sequence[TokenSource], name: str) -> int:
    """Tokens of an object in a modality, the same in all stores that have it."""
    return next(s.store.num_tokens(name) for s in sources if name in s.store.tokenizer_hashes)


def _drawn(source: TokenSource, modalities: Sequence[Modality]) -> Bool[np.ndarray, " objects"]:
    """Which objects of a source are drawn. Raises ValueError if none is."""
    held = {modality.name for modality in source.store.modalities}
    drawn = np.zeros(len(source.store), dtype=bool)
    for modality in modalities:
        if modality.name in held and not drawn.all():
            drawn |= source.store.has(modality.name)
    if source.chosen is not None:
        drawn &= source.chosen
    if not drawn.any():
        raise ValueError(
            f"{source.store.folder}: none of its {len(drawn)} objects can be drawn: each is held out, or has none of "
            f"{[modality.name for modality in modalities]}"
        )
    return drawn


class _Runs:
    """The objects that are drawn, numbered without gaps as samples, kept as runs of neighbours."""

    def __init__(self, drawn: Bool[np.ndarray, " objects"]):
        edges = np.flatnonzero(np.diff(drawn, prepend=False, append=False))
        self.objects = edges[::2]
        self.lengths = edges[1::2] - edges[::2]
        self._samples = np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def take(self, samples: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The objects of these samples."""
        run = np.searchsorted(self._samples, samples, side="right") - 1
        return self.objects[run] + (samples - self._samples[run])

    def blocks(self, starts: Int64[np.ndarray, " edges"], block_size: int) -> Int64[np.ndarray, " blocks"]:
        """Sizes of the blocks: `block_size` samples each, fewer at the end of a shard; shards begin at `starts`."""
        run = np.maximum(np.searchsorted(self.objects, starts, side="right") - 1, 0)
        before = self._samples[run] + np.clip(starts - self.objects[run], 0, self.lengths[run])
        sizes = [np.append(np.full(count // block_size, block_size), count % block_size) for count in np.diff(before)]
        joined = np.concatenate(sizes)
        return joined[joined > 0]
