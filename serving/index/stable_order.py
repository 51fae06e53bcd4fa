"""One order for every search: by similarity, and where two are equal, by object id and then modality.

Structures add up products in whatever order is fast, or of coarse codes, so that equal vectors may seem to differ, and
of equal ones they keep those that they met first. Here what they found is compared again by the stored vectors, in one
way for every k, exact or not, and they are asked for more while it is open who has the last place.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
from jaxtyping import Float32, Int64

from .protocol import Neighbours
from .vectors import arranged

Found = tuple[Float32[np.ndarray, "Q _"], Int64[np.ndarray, "Q _"]]
"""Similarities and rows of what was found for each query, row -1 for nothing."""
Search = Callable[[Int64[np.ndarray, " Q"], int], Sequence[Found]]
"""Finds so many rows of each part for the queries of these numbers, best first; fewer columns, or row -1, where there

are no more.
"""
Names = Callable[[Int64[np.ndarray, " R"]], list[tuple[str, str]]]
"""Object id and modality of rows."""

SPARE_ROWS = 8
"""Sought beyond k at first, or an eighth of k if that is more."""
ROUNDING = 2e-6
"""Cosines of unit vectors in float32 that differ by less may be equal."""
CODED_ERROR = 0.02
"""By which cosines of coarse codes are wrong at most, but for one in many; what is worse than that is not compared."""
MOST_SOUGHT = 16_384
"""Rows among which the last place is decided, where so many are equal."""


def in_stable_order(
    num_queries: int,
    k: int,
    search: Search,
    compare: Callable[[Int64[np.ndarray, " Q"], Int64[np.ndarray, "Q S"]], Float32[np.ndarray, "Q S"]],
    names: Names,
) -> Found:
    """The `k` best for each query, in the one order; `compare` gives the similarity of queries to rows of their own."""
    similarity = np.full((num_queries, k), -np.inf, np.float32)
    row = np.full((num_queries, k), -1, np.int64)
    left, sought = np.arange(num_queries), k + max(SPARE_ROWS, k // 8)
    while len(left):
        parts = search(left, sought)
        if not parts:
            break
        rough, found, worst = _candidates(parts, k, sought)
        exact = compare(left, found)
        order = stable_order(exact, found, names)
        rough, found, exact, worst = arranged(order, rough, found, exact, worst)
        width = min(k, found.shape[1])
        similarity[left, :width], row[left, :width] = exact[:, :width], found[:, :width]
        if sought >= MOST_SOUGHT or not width:
            break
        # Whoever was not found seems no better than the worst of the same part that was.
        is_good = (found >= 0) & (exact >= exact[:, width - 1 : width] - ROUNDING)
        is_open = (is_good & (rough <= worst + ROUNDING)).any(1)
        left, sought = left[is_open], min(4 * sought, MOST_SOUGHT)
    return similarity, row


def _candidates(
    parts: Sequence[Found], k: int, sought: int
) -> tuple[Float32[np.ndarray, "Q C"], Int64[np.ndarray, "Q C"], Float32[np.ndarray, "Q C"]]:
    """What was found in all parts and may be among the best k: rough similarity and row.

    And for each the worst that was found in its part, -inf where all was.
    """
    bounds = []
    for rough, row in parts:
        bound = np.full(rough.shape, -np.inf, np.float32)
        if row.shape[1] == sought:
            bound[row[:, -1] >= 0] = rough[row[:, -1] >= 0, -1:]
        bounds.append(bound)
    if len(parts) == 1:
        return *parts[0], bounds[0]
    rough, row = (np.concatenate(side, 1) for side in zip(*parts, strict=True))
    order = np.argsort(-rough, axis=1, kind="stable")
    rough, row, worst = arranged(order, rough, row, np.concatenate(bounds, 1))
    if rough.shape[1] <= sought:
        return rough, row, worst
    is_hopeless = rough < rough[:, k - 1 : k] - CODED_ERROR
    width = max(sought, int((~is_hopeless).sum(1).max(initial=0)))
    return rough[:, :width], np.where(is_hopeless, -1, row)[:, :width], worst[:, :width]


def in_order(found: Neighbours, k: int) -> Neighbours:
    """The first `k` of what was found, in the one order, by the similarities that it bears."""
    pairs = zip(found.object_id.reshape(-1).tolist(), found.modality.reshape(-1).tolist(), strict=True)
    name_of = dict(zip(found.row.reshape(-1).tolist(), pairs, strict=True))
    order = stable_order(found.similarity, found.row, lambda row: [name_of[one] for one in row.tolist()])[:, :k]
    names = [f.name for f in fields(found)]
    return Neighbours(**dict(zip(names, arranged(order, *(getattr(found, name) for name in names)), strict=True)))


def stable_order(
    similarity: Float32[np.ndarray, "Q S"], row: Int64[np.ndarray, "Q S"], names: Names
) -> Int64[np.ndarray, "Q S"]:
    """The places of each query's rows in the one order; names are looked up where similarities are equal."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    ordered, row_ordered = arranged(order, similarity, row)
    there = row_ordered >= 0
    is_tied = (ordered[:, 1:] == ordered[:, :-1]) & there[:, 1:]
    for query in np.flatnonzero(is_tied.any(1)):
        places = order[query, there[query]]
        name_of = dict(zip(places.tolist(), names(row[query, places]), strict=True))
        by_name = sorted(name_of, key=lambda place: (-similarity[query, place], *name_of[place]))
        order[query, : len(places)] = by_name
    return order
