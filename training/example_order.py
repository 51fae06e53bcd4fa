"""Which examples a step takes: a pure function of (seed, step), so a run resumes from its step alone.

Examples come in groups (objects with the same modalities, or one modality each), and a step takes all its examples from
one group, so that none is padded to another's shape. Each group is a stream of whole epochs, each a fresh permutation:
within a group nothing is lost or doubled, on any number of processes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

PATTERN_LENGTHS = (1024, 2**20)
"""Least and greatest number of steps after which the order of groups repeats: so long that each group has its turn."""


class ExampleOrder:
    """The order of examples in `group_sizes` groups, each taking a share of the steps by `weights`.

    Raises ValueError for an empty group.
    """

    def __init__(self, group_sizes: Sequence[int], seed: int, weights: Sequence[float] | None = None):
        if not group_sizes or min(group_sizes) < 1:
            raise ValueError(f"expected groups of at least one example, found sizes {list(group_sizes)}")
        self.group_sizes = list(group_sizes)
        self.seed = seed
        share = np.array(group_sizes if weights is None else weights, dtype=np.float64)
        share /= share.sum()
        # The k-th turn of a group is due at (k + 1/2) / share; the steps go to the groups in order of these times.
        self._length = int(np.clip(np.ceil(1 / share.min()), *PATTERN_LENGTHS))
        turns = [np.arange(np.ceil(self._length * s) + 1) for s in share]
        due = np.concatenate([(turn + 0.5) / s for turn, s in zip(turns, share, strict=True)])
        owner = np.concatenate([np.full(len(turn), group) for group, turn in enumerate(turns)])
        self._pattern = owner[np.argsort(due, kind="stable")][: self._length]
        self._counts = np.array([(self._pattern == group).sum() for group in range(len(group_sizes))])

    def group(self, step: int) -> int:
        """The group of a step."""
        return int(self._pattern[step % self._length])

    def rows(self, step: int, batch_size: int) -> Int[np.ndarray, " B"]:
        """Places in the group of the step's examples."""
        group = self.group(step)
        earlier = int((self._pattern[: step % self._length] == group).sum())
        turn = step // self._length * int(self._counts[group]) + earlier
        size = self.group_sizes[group]
        places = np.arange(turn * batch_size, (turn + 1) * batch_size)
        rows = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(places // size):
            here = places // size == epoch
            order = np.random.default_rng((self.seed, group, int(epoch))).permutation(size)
            rows[here] = order[places[here] % size]
        return rows
