"""All pairs of objects within a radius: k-d trees on unit vectors, a narrow strip of declination at a time.

Two objects within the radius differ in declination by no more than it. So both catalogues are sorted by declination,
and each strip of a few thousand left objects meets the right objects of the same strip, widened by the radius: no
border, pole or wrap of right ascension is special, trees fit the processor's cache, and memory beyond the columns and
the pairs is that of one strip.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64
from rich.console import Console
from rich.progress import track
from scipy.spatial import cKDTree

from .sphere import chord_of, separations, unit_vectors

STRIP_ROWS = 2000
"""Left objects of a strip; trees of this size stay in the cache."""
MAX_PAIRS_AT_ONCE = 4_000_000
"""Pairs that may be held at once before they are thinned: 96 MB."""

_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False, "copy_data": False}
_DEGREES_PER_ARCSEC = 1 / 3600
_Pairs = tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Float64[np.ndarray, " P"]]


def close_pairs(
    left_ra: Float64[np.ndarray, " L"],
    left_dec: Float64[np.ndarray, " L"],
    right_ra: Float64[np.ndarray, " R"],
    right_dec: Float64[np.ndarray, " R"],
    radius: float,
    *,
    best_only: bool = False,
    show_progress: bool = False,
) -> _Pairs:
    """Rows of the left and of the right, and separations in arcsec, of all pairs no further apart than `radius`.

    Positions in degrees, `radius` in arcsec; the order of pairs is not defined. With `best_only`, pairs are left out
    that are nearest for neither of their objects, so that there are at most about L + R of them, however wide the
    radius; those nearest for a left object, or for a right one, are all there, ties included.
    """
    parts = list(_strips(left_ra, left_dec, right_ra, right_dec, radius, best_only, show_progress))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros(0)
    left, right, separation = (np.concatenate(column) for column in zip(*parts, strict=True))
    return left, right, separation


def _strips(
    left_ra: Float64[np.ndarray, " L"],
    left_dec: Float64[np.ndarray, " L"],
    right_ra: Float64[np.ndarray, " R"],
    right_dec: Float64[np.ndarray, " R"],
    radius: float,
    best_only: bool,
    show_progress: bool,
) -> Iterator[_Pairs]:
    left_order, right_order = np.argsort(left_dec), np.argsort(right_dec)
    right_sorted = right_dec[right_order]
    reach = radius * _DEGREES_PER_ARCSEC * (1 + 1e-9) + 1e-12
    starts = range(0, len(left_order), STRIP_ROWS)
    console = Console(stderr=True)
    for start in track(starts, "match", console=console, transient=True, disable=not show_progress):
        strip = left_order[start : start + STRIP_ROWS]
        low, high = np.searchsorted(right_sorted, [left_dec[strip[0]] - reach, left_dec[strip[-1]] + reach])
        if low == high:
            continue
        near = right_order[low:high]
        left = unit_vectors(left_ra[strip], left_dec[strip])
        right = unit_vectors(right_ra[near], right_dec[near])
        tree = cKDTree(right, **_TREE)
        for i, j, separation in _within(left, right, tree, radius):
            if best_only:
                kept = may_be_best(i, j, separation)
                i, j, separation = i[kept], j[kept], separation[kept]
            if len(i):
                yield strip[i], near[j], separation


def _within(
    left: Float64[np.ndarray, "L 3"], right: Float64[np.ndarray, "R 3"], tree: cKDTree, radius: float, first: int = 0
) -> Iterator[_Pairs]:
    """Pairs of unit vectors, in portions of bounded size; rows of the left count from `first`."""
    other = cKDTree(left, **_TREE)
    chord = chord_of(radius) * (1 + 1e-9) + 1e-15
    if len(left) * len(right) > MAX_PAIRS_AT_ONCE < other.count_neighbors(tree, chord) and len(left) > 1:
        half = len(left) // 2
        yield from _within(left[:half], right, tree, radius, first)
        yield from _within(left[half:], right, tree, radius, first + half)
        return
    found = other.sparse_distance_matrix(tree, chord, output_type="ndarray")
    separation = separations(left[found["i"]], right[found["j"]])
    inside = separation <= radius
    yield found["i"][inside] + first, found["j"][inside], separation[inside]


def may_be_best(
    left: Int64[np.ndarray, " P"], right: Int64[np.ndarray, " P"], separation: Float64[np.ndarray, " P"]
) -> Bool[np.ndarray, " P"]:
    """Whether each pair is, among these, nearest for its left or for its right object, but for rounding.

    If all pairs of each left object are among them, leaving out the others changes neither who is whose nearest nor
    which pairs are nearest both ways: an object's nearest pair always stays to speak against the rest.
    """
    slack = 1e-9 * separation + 1e-9
    keep = np.zeros(len(left), dtype=bool)
    for rows in (left, right):
        nearest = np.full(int(rows.max(initial=-1)) + 1, np.inf)
        np.minimum.at(nearest, rows, separation)
        keep |= separation <= nearest[rows] + slack
    return keep
