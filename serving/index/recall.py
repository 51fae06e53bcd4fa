"""How many of the true nearest neighbours a search finds, measured when an index is built; and how hard it must look.

Queries are sampled rows of the same modality (each without itself), and rows of the others: cross-modal queries lie
outside the distribution that was indexed, and need more. Filters let a random share of the rows pass, or a range of one
metadata column, for what is alike in magnitude may lie together. Half of the queries choose the effort, the other half
measure what it brings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from .files import Part
from .index_types import bytes_per_row
from .part import K_OF_EFFORT, SearchablePart
from .vectors import NearestSoFar, StoredVectors

TARGET_RECALL = 0.97
"""A little above the 0.95 that is promised: what is measured on samples scatters."""
NUM_QUERIES = 400
"""Of each kind."""
SHARES = (1.0, 0.1, 0.01)
PLATEAU = 0.003
"""Where twice the effort brings less recall than this, codes are too coarse, and candidates must be compared again."""
CANDIDATES = {"ivf": (0,), "ivf_sq8": (0, 2, 4), "ivf_rabitq": (4, 8, 16, 32), "hnsw": (0,)}
FIRST_EFFORT = {"ivf": 2, "ivf_sq8": 2, "ivf_rabitq": 2, "hnsw": 16}
RANDOM_READ = 4
"""What a stored vector that is read again costs, in bytes read in a row for each of its own."""

SAME, CROSS = "same_modality", "cross_modal"


@dataclass(frozen=True, eq=False)
class Trial:
    """Queries of one kind under one filter, with the rows that should be found."""

    kind: str
    share: float
    range_of: str | None
    chosen: Bool[np.ndarray, " R"] | None
    queries: Float32[np.ndarray, "Q D"]
    own_row: Int64[np.ndarray, " Q"]
    nearest: Int64[np.ndarray, "Q K"]

    def recall(self, part: SearchablePart, effort: int, half: int, *, is_completed: bool = True) -> float:
        """The share of true neighbours that are found, over the queries of one half.

        Whoever seeks the effort must not complete: where cells hold too few rows, an exact search would hide it.
        """
        every = slice(half, None, 2)
        queries, nearest, own = self.queries[every], self.nearest[every], self.own_row[every]
        k = nearest.shape[1]
        _, row = part.search(queries, k + 1, self.chosen, effort=effort, is_completed=is_completed)
        # Of k + 1 places one is its own; where it is not among them, the last is too much.
        is_own = row == own[:, None]
        order = np.argsort(is_own, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(np.where(is_own, -1, row), order, 1)
        hits = (kept[:, :, None] == nearest[:, None, :]) & (nearest >= 0)[:, None, :]
        return float(hits.sum() / max(1, (nearest >= 0).sum()))


def make_trials(
    vectors: StoredVectors, rows: range, metadata: Mapping[str, Float64[np.ndarray, " P"]], seed: int = 0
) -> list[Trial]:
    """Trials for the part of these rows; `metadata` are its columns. One pass over its vectors finds what is exact."""
    rng = np.random.default_rng(seed)
    own = np.sort(rng.choice(len(rows), min(NUM_QUERIES, len(rows)), replace=False)) + rows.start
    others = np.concatenate([np.arange(rows.start), np.arange(rows.stop, len(vectors))])
    foreign = np.sort(rng.choice(others, min(NUM_QUERIES, len(others)), replace=False))
    # The halves of a trial are every second query: no order of the file may tell them apart.
    asked = {SAME: rng.permutation(own), CROSS: rng.permutation(foreign)}
    filters: list[tuple[float, str | None, np.ndarray | None]] = []
    for share in SHARES:
        chosen = None if share == 1 else rng.random(len(rows)) < share
        filters.append((share, None, chosen))
    for column, values in metadata.items():
        known = values[np.isfinite(values)]
        if len(known) > len(rows) / 2:
            for share in SHARES[1:]:
                low, high = np.quantile(known, [0.5 - share / 2, 0.5 + share / 2])
                filters.append((share, column, (values >= low) & (values <= high)))
    numbers = np.concatenate(list(asked.values()))
    queries = vectors.unit(numbers)
    is_same = np.arange(len(numbers)) < len(own)
    best = [NearestSoFar(len(numbers), K_OF_EFFORT) for _ in filters]
    for first, block in vectors.unit_blocks(rows.start, rows.stop):
        similarity = queries @ block.T
        inside = np.flatnonzero(is_same & (numbers >= first) & (numbers < first + len(block)))
        similarity[inside, numbers[inside] - first] = -np.inf
        for (_, _, chosen), found in zip(filters, best, strict=True):
            local = slice(first - rows.start, first - rows.start + len(block))
            kept = np.arange(len(block)) if chosen is None else np.flatnonzero(chosen[local])
            found.update(similarity if chosen is None else similarity[:, kept], kept + first)
    trials = []
    for (share, name, chosen), found in zip(filters, best, strict=True):
        nearest = np.where(np.isneginf(found.similarity), -1, found.row)
        for kind, mine in ((SAME, is_same), (CROSS, ~is_same)):
            if mine.any():
                own_row = numbers[mine] if kind == SAME else np.full(int(mine.sum()), -2)
                trials.append(Trial(kind, share, name, chosen, queries[mine], own_row, nearest[mine]))
    return trials


def tune(part: SearchablePart, trials: list[Trial], target: float) -> Part:
    """The part's description with the least effort that brings `target` for both kinds, under each share of a filter.

    Where no effort does, the best that was tried, and the recall that is written down says so.
    """
    kind = part.part.index_type
    best: tuple[float, Part] | None = None
    fallback: tuple[float, Part] | None = None
    # In a graph, a row that is asked with is a node itself, a few steps from its neighbours: easier than other queries.
    sought = (1 + target) / 2 if kind == "hnsw" else target
    for candidates in CANDIDATES[kind]:
        tried = replace(part, part=replace(part.part, candidates=candidates))
        effort, found = _least_effort(tried, _of_share(trials, SHARES[0]), FIRST_EFFORT[kind], sought)
        described = replace(tried.part, effort={str(SHARES[0]): effort})
        if found >= sought:
            cost = _cost(part, effort, candidates)
            if best is None or cost < best[0]:
                best = cost, described
            if kind == "ivf_sq8":
                break
        elif fallback is None or found > fallback[0]:
            fallback = found, described
    chosen = best or fallback
    assert chosen is not None
    described = chosen[1]
    tuned = replace(part, part=described)
    effort = described.effort[str(SHARES[0])]
    efforts = dict(described.effort)
    if kind != "hnsw":  # its filtered searches are exact
        for share in SHARES[1:]:
            if tuned.is_few(int(share * len(part.rows))):
                break  # such searches compare every row that passes
            # Filters of users are others than those tried here: a third of what is missing goes on top.
            effort, _ = _least_effort(tuned, _of_share(trials, share), effort, target + (1 - target) / 3)
            efforts[str(share)] = effort
    described = replace(described, effort=efforts)
    return replace(described, recall=measure(replace(part, part=described), trials, target))


def measure(part: SearchablePart, trials: list[Trial], target: float) -> dict[str, Any]:
    """What is written down: recall by kind of query, by share of rows that pass a filter, by ranges of metadata."""
    by_share: dict[str, dict[str, float]] = {}
    by_range: dict[str, dict[str, dict[str, float]]] = {}
    for trial in trials:
        num_chosen = len(part.rows) if trial.chosen is None else int(trial.chosen.sum())
        value = round(trial.recall(part, part.effort(K_OF_EFFORT, max(1, num_chosen)), half=1), 4)
        if trial.range_of is None:
            by_share.setdefault(str(trial.share), {})[trial.kind] = value
        else:
            by_range.setdefault(trial.range_of, {}).setdefault(str(trial.share), {})[trial.kind] = value
    return {
        "k": K_OF_EFFORT,
        "target": target,
        "num_queries": {trial.kind: len(trial.queries[1::2]) for trial in trials},
        "by_share_that_passes": by_share,
        "by_range_of": by_range,
    }


def _of_share(trials: list[Trial], share: float) -> list[Trial]:
    return [trial for trial in trials if trial.share == share]


def _least_effort(part: SearchablePart, trials: list[Trial], first: int, target: float) -> tuple[int, float]:
    """The least effort that reaches the target in all trials, and its recall; doubled first, then bisected."""
    most = part.part.num_cells or 4096

    def recall(effort: int) -> float:
        return min(trial.recall(part, effort, half=0, is_completed=False) for trial in trials)

    effort = min(first, most)
    found = recall(effort)
    before = effort
    while found < target and effort < most:
        before, effort = effort, min(2 * effort, most)
        last, found = found, recall(effort)
        if last > 0.5 and found < target and found - last < PLATEAU:
            return effort, found
    if found < target or before == effort:
        return effort, found
    low, high, reached = before, effort, found
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        found = recall(middle)
        if found >= target:
            high, reached = middle, found
        else:
            low = middle
    return high, reached


def _cost(part: SearchablePart, effort: int, candidates: int) -> float:
    """Bytes that a query for K_OF_EFFORT neighbours reads, those read here and there weighted: a guide, not a time."""
    dimension = part.vectors.values.shape[1]
    looked_at = effort * len(part.rows) / max(1, part.part.num_cells)
    again = K_OF_EFFORT * candidates * 2 * dimension * RANDOM_READ
    return looked_at * bytes_per_row(part.part.index_type, dimension) + again
