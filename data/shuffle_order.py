"""The order of samples: a pure function of (seed, position), so that a stream resumes from one number, anywhere.

Samples lie in blocks that are cheap to read as a whole: neighbours in a shard of tokens, a row group of a file. Each
epoch takes the blocks in a new random order, and shuffles the samples of so many consecutive ones, a window, as a
whole. What is kept is the order of the blocks of one epoch and that of the samples of a window; neither depends on how
far the stream has come. Random orders come from sorting hashes (SplitMix64: Steele, Lea & Flood 2014, doi
10.1145/2714064.2660195), written here so that they never change with a library.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt64

PATTERN_LENGTHS = (4096, 2**20)
"""Least and greatest number of places after which a mixture repeats: so long that each source has its turn."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class ShuffleOrder:
    """An endless stream of whole epochs over samples in blocks of `block_sizes`; each epoch holds each sample once.

    `window` is the number of blocks that are shuffled together. Samples are numbered from 0, block by block. Raises
    ValueError if there is no sample.
    """

    def __init__(self, block_sizes: Int64[np.ndarray, " blocks"], window: int, *key: int):
        if window < 1 or not len(block_sizes) or block_sizes.min() < 0 or not block_sizes.any():
            raise ValueError(f"expected blocks with samples and a window of at least one block, found {window} blocks")
        self.key = key
        self.window = window
        self._stops = np.cumsum(block_sizes)
        self._starts = self._stops - block_sizes
        # A stream jumps back and forth over the border of two epochs or windows, not further.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window = lru_cache(maxsize=4)(self._make_window)
        self._ranks = lru_cache(maxsize=4)(self._make_ranks)

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return int(self._stops[-1])

    def take(self, start: int, stop: int) -> Int64[np.ndarray, " B"]:
        """The samples at the positions [start, stop) of the stream; epoch e begins at position e * num_samples."""
        samples, places = self.draw(np.arange(start, stop + 1))
        taken = np.empty_like(samples)
        taken[places] = samples
        return taken

    def draw(self, edges: Int64[np.ndarray, " edges"]) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """The samples of T stretches of the stream, [edges[t], edges[t + 1]), and to which of them each belongs.

        They come window by window, ascending in each: as they lie on disk. A window that lies within one stretch need
        not be shuffled.
        """
        start, stop = int(edges[0]), int(edges[-1])
        stretch_of = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        samples, stretches = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        at = start
        while at < stop:
            epoch, index, first, last = self._window_at(at)
            of_window = self._window(epoch, index)
            if at == first and last <= stop and stretch_of[at - start] == stretch_of[last - 1 - start]:
                samples.append(of_window)
                stretches.append(stretch_of[at - start : last - start])
            else:
                places = first - start + self._ranks(epoch, index)
                if first < start or last > stop:
                    within = (places >= 0) & (places < len(stretch_of))
                    of_window, places = of_window[within], places[within]
                samples.append(of_window)
                stretches.append(stretch_of[places])
            at = min(last, stop)
        return np.concatenate(samples), np.concatenate(stretches)

    def window_stop(self, position: int) -> int:
        """Where in the stream the window ends that holds `position`."""
        return self._window_at(position)[3]

    def _window_at(self, position: int) -> tuple[int, int, int, int]:
        """Epoch and number of the window that holds `position`, and where in the stream it begins and ends."""
        epoch, place = divmod(position, self.num_samples)
        _, borders = self._epoch(epoch)
        index = int(np.searchsorted(borders, place, side="right")) - 1
        return epoch, index, position - place + int(borders[index]), position - place + int(borders[index + 1])

    def _make_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " blocks"], Int64[np.ndarray, " edges"]]:
        """The blocks in the epoch's order, and where in the epoch its windows begin and end."""
        order = permutation(len(self._stops), *self.key, epoch)
        stops = np.cumsum((self._stops - self._starts)[order])
        return order, np.concatenate([[0], stops[self.window - 1 :: self.window], stops[-1:]]).astype(np.int64)

    def _make_window(self, epoch: int, index: int) -> Int64[np.ndarray, " W"]:
        """The samples of one window of an epoch, ascending."""
        blocks = np.sort(self._epoch(epoch)[0][index * self.window : (index + 1) * self.window])
        return np.concatenate([np.arange(self._starts[block], self._stops[block]) for block in blocks])

    def _make_ranks(self, epoch: int, index: int) -> Int64[np.ndarray, " W"]:
        """The place in the window's order of each of its samples."""
        return permutation(len(self._window(epoch, index)), *self.key, epoch, index)


class Mixture:
    """Which of several sources each place of an endless stream belongs to, in proportion to weights.

    Each source has its share of any stretch of places to within one or two in each repeat of the pattern, and how many
    it had before is found without counting. Raises ValueError unless all weights are positive and of comparable size.
    """

    def __init__(self, weights: Sequence[float]):
        share = np.array(weights, dtype=np.float64)
        longest = PATTERN_LENGTHS[1]
        if not len(share) or not (share > 0).all() or not share.sum() <= share.min() * longest:
            raise ValueError(
                f"expected positive weights, the greatest at most {longest} times the least, found {list(weights)}"
            )
        share /= share.sum()
        # The k-th turn of a source is due at (k + 1/2) / share; the places go to the sources in order of these times.
        length = int(np.clip(np.ceil(1 / share.min()), *PATTERN_LENGTHS))
        turns = [np.arange(np.ceil(length * s) + 1) for s in share]
        due = np.concatenate([(turn + 0.5) / s for turn, s in zip(turns, share, strict=True)])
        owner = np.concatenate([np.full(len(turn), source) for source, turn in enumerate(turns)])
        self._pattern = owner[np.argsort(due, kind="stable")][:length]
        owned = self._pattern[:, None] == np.arange(len(share))
        self._counts = np.concatenate([np.zeros((1, len(share)), np.int64), np.cumsum(owned, axis=0)])

    def source(self, place: int) -> int:
        """The source of a place."""
        return int(self._pattern[place % len(self._pattern)])

    def counts(self, places: Int64[np.ndarray, " P"]) -> Int64[np.ndarray, "P sources"]:
        """How many of the places before each of `places` belong to each source."""
        rounds, rest = np.divmod(places, len(self._pattern))
        return rounds[:, None] * self._counts[-1] + self._counts[rest]


def permutation(size: int, *key: int) -> Int64[np.ndarray, " size"]:
    """A random order of `size` things, a pure function of `key`: they are sorted by a hash of key and number."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mixed(state + np.uint64(part % 2**64) + _GOLDEN)
    hashes = _mixed(state + np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN)
    order = np.arange(size)
    for shift in (0, 16, 32):  # by 48 bits, the lowest first: numpy sorts 16 bits in linear time
        digits = (hashes >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def _mixed(x: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
