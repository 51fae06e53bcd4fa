"""Batches of observations out of a dataset's Parquet files: shuffled, decoded ahead, resumable at any batch.

Blocks are row groups, which must be decoded as a whole; those of a window are held in memory while their objects are
given out. Each batch is of one modality, in turn. A few threads decode what the next batches need: Arrow frees the GIL.
"""

import contextlib
import hashlib
import json
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from .dataset import ObservationDataset
from .observations import Observation
from .parquet_files import ObservationFile
from .prefetch import prefetched
from .shuffle_order import Mixture, ShuffleOrder
from .stacking import stack

WINDOW = 16
"""Row groups of a modality that are shuffled together; twice as many are held in memory, some 8 MiB each."""
MAX_AHEAD = 32
"""Batches that are drawn ahead: a dataset of few row groups gives no other bound."""


class ObservationLoader:
    """An endless stream of batches of `batch_size` objects, of which process `rank` of `world_size` gets its slice.

    Each batch is of one of the modalities `names`, which come in whole epochs, without the objects `held_out`. A
    modality's share of the batches is as the number of its objects to the power `balance`: all have equal shares at 0,
    all objects are seen equally often at 1. `start` is the number of batches given out before (`cursor`): the stream
    goes on there, on any number of processes, each of which decodes a part of the row groups.

    Raises ValueError if there is nothing to draw, the processes cannot divide a batch, or `balance` gives a modality
    next to nothing; and ObservationError while reading damaged files.
    """

    def __init__(
        self,
        dataset: ObservationDataset,
        names: Sequence[str],
        batch_size: int,
        seed: int,
        *,
        held_out: Collection[str] = (),
        balance: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        window: int = WINDOW,
        num_threads: int = 2,
    ):
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of the {world_size} processes; rank is {rank}"
            )
        self.batch_size = batch_size
        self.cursor = start
        """Batches given out so far."""
        self.num_threads = num_threads
        self._slice = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        sources = [_Source(dataset, name, frozenset(held_out)) for name in names]
        self._sources = [source for source in sources if len(source)]
        if not self._sources:
            raise ValueError(f"{dataset.folder}: no object to draw: every one of {list(names)} is held out")
        self._orders = [
            ShuffleOrder(source.block_sizes, window, seed, number) for number, source in enumerate(self._sources)
        ]
        self._mixture = Mixture([float(len(source)) ** balance for source in self._sources])
        digest = hashlib.sha256(json.dumps([seed, batch_size, window, balance]).encode())
        for source in self._sources:
            digest.update(source.fingerprint())
        self.fingerprint = digest.hexdigest()[:16]
        """Names the order of batches: a stream goes on where it was only under the same one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that are drawn."""
        return tuple(source.name for source in self._sources)

    def __iter__(self) -> Generator[Observation, None, None]:
        """Batches from the cursor on, without end; closing the iterator ends its threads."""
        start = self.cursor
        with contextlib.closing(prefetched(lambda: self._decoded(start), depth=1)) as batches:
            for observation in batches:
                self.cursor += 1
                yield observation

    def _decoded(self, number: int) -> Iterator[Observation]:
        """Batches from `number` on."""
        turns = self._mixture.counts(np.array([number]))[0].tolist()
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="armillary-decode") as pool:
            streams = [
                source.batches(order, turn * self.batch_size, self.batch_size, self._slice, pool)
                for source, order, turn in zip(self._sources, self._orders, turns, strict=True)
            ]
            try:
                while True:
                    yield next(streams[self._mixture.source(number)])
                    number += 1
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


class _Source:
    """One modality of a dataset, as blocks: row groups without the objects that are held out."""

    def __init__(self, dataset: ObservationDataset, name: str, held_out: frozenset[str]):
        self.name = name
        self._blocks: list[tuple[ObservationFile, int]] = []
        self._kept: list[Bool[np.ndarray, " rows"] | None] = []
        sizes = []
        for file in dataset.files(name):
            kept = None
            if held_out:
                ids = file.read_identity()["object_id"]
                kept = ~pc.is_in(ids, pa.array(sorted(held_out), pa.string())).to_numpy()
            for group, size in enumerate(file.row_group_sizes):
                of_group = None if kept is None else kept[file.starts[group] : file.starts[group] + size]
                self._blocks.append((file, group))
                self._kept.append(None if of_group is None or of_group.all() else of_group)
                sizes.append(size if of_group is None else np.count_nonzero(of_group))
        self.block_sizes = np.array(sizes, dtype=np.int64)
        self._stops = np.cumsum(self.block_sizes)

    def __len__(self) -> int:
        return int(self.block_sizes.sum())

    def fingerprint(self) -> bytes:
        """Names the objects and their order."""
        digest = hashlib.sha256(self.name.encode())
        for (file, group), kept in zip(self._blocks, self._kept, strict=True):
            digest.update(f"{file.path.name} {group} {file.row_group_sizes[group]}".encode())
            digest.update(b"" if kept is None else np.packbits(kept).tobytes())
        return digest.digest()

    def batches(
        self, order: ShuffleOrder, start: int, batch_size: int, part: slice, pool: ThreadPoolExecutor
    ) -> Iterator[Observation]:
        """The same `part` of each batch from position `start` of the stream on.

        Row groups are decoded while batches of the window before theirs are given out, and held until the last batch
        that needs them.
        """
        waiting: deque[list[tuple[int, Int64[np.ndarray, " R"]]]] = deque()
        decoding: dict[int, Future[Observation]] = {}
        uses: Counter[int] = Counter()
        ahead = start
        while True:
            while ahead < order.window_stop(order.window_stop(start)) or ahead == start:
                waiting.append(self._locate(order.draw(np.array([ahead, ahead + batch_size]))[0][part]))
                ahead += batch_size
                for block, _ in waiting[-1]:
                    uses[block] += 1
                    if block not in decoding:
                        file, group = self._blocks[block]
                        decoding[block] = pool.submit(file.read_row_group, group)
            batch = waiting.popleft()
            start += batch_size
            yield stack([decoding[block].result().select(rows.tolist()) for block, rows in batch])
            for block, _ in batch:
                uses[block] -= 1
                if not uses[block]:
                    del decoding[block]

    def _locate(self, samples: Int64[np.ndarray, " B"]) -> list[tuple[int, Int64[np.ndarray, " R"]]]:
        """The blocks that hold these samples, in their order, and their rows in each."""
        block = np.searchsorted(self._stops, samples, side="right")
        found = []
        for part in np.split(np.arange(len(samples)), np.flatnonzero(np.diff(block)) + 1):
            number = int(block[part[0]])
            rows = samples[part] - (self._stops[number] - self.block_sizes[number])
            kept = self._kept[number]
            found.append((number, rows if kept is None else np.flatnonzero(kept)[rows]))
        return found
