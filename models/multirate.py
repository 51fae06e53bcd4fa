"""Gradient descent with a step for each group of curvatures, for full-batch probes (He, Liu & Tsai 2024, arXiv
2402.03021).

Where data are multiscale, the eigenvalues of a loss's Hessian lie in groups with gaps between them. Plain gradient
descent takes all steps at the rate that the stiffest group bears, and the softest waits for as many steps as the
condition number. Here a cycle takes a few steps at the rate of each group, stiffest first; what the large steps blow up
in the stiff groups, the next cycle's small ones have taken down beforehand. Its rates want the exact gradient: on
mini-batches it diverges.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEAST_GAP = 10.0
"""Ratio of neighbouring eigenvalues that parts two groups."""
CONTRACTION = 0.5
"""By which a cycle reduces the error in the stiff groups at least."""


@dataclass(frozen=True)
class CurvatureGroup:
    """Eigenvalues from `least` to `largest`, both positive."""

    least: float
    largest: float


class NoGapError(ValueError):
    """The spectrum has no gap, so that several rates gain nothing."""


def curvature_groups(
    eigenvalues: Float[np.ndarray, " D"],
    least_gap: float = LEAST_GAP,
    here: Float[np.ndarray, " D"] | None = None,
) -> list[CurvatureGroup]:
    """Groups of positive eigenvalues, stiffest first, parted where neighbours differ by a factor of `least_gap`.

    Where curvature changes from place to place, `eigenvalues` are those that it never exceeds, by which steps are safe,
    and `here` those of the place, which say how many are needed. Eigenvalues below the rounding of the largest count as
    zero: nothing can be learned along them. Raises ValueError if none is positive.
    """
    values = np.sort(np.asarray(eigenvalues, np.float64))[::-1]
    present = values if here is None else np.minimum(np.sort(np.asarray(here, np.float64))[::-1], values)
    if not (np.isfinite(values).all() and np.isfinite(present).all()):
        raise ValueError("eigenvalues must be finite")
    count = int((present > len(values) * np.finfo(np.float64).eps * max(values[:1], default=0.0)).sum())
    if not count:
        raise ValueError("expected a positive eigenvalue, found none")
    edges = [0, *(np.flatnonzero(values[: count - 1] > least_gap * values[1:count]) + 1).tolist(), count]
    return [CurvatureGroup(float(present[last - 1]), float(values[first])) for first, last in itertools.pairwise(edges)]


def step_counts(groups: Sequence[CurvatureGroup], contraction: float = CONTRACTION) -> list[int]:
    """Steps n_k of a cycle at rate 1 / L_k for each group, the last one's a single one:

    n_k >= (sum over j > k of n_j ln(L_k / L_j) + ln(1 / contraction)) / -ln(1 - mu_k / L_k),

    which undoes what the larger steps of softer groups blow up, and contracts besides (arXiv 2402.03021).
    """
    counts = [1] * len(groups)
    for k in range(len(groups) - 2, -1, -1):
        group = groups[k]
        blown = sum(counts[j] * math.log(group.largest / groups[j].largest) for j in range(k + 1, len(groups)))
        ratio = group.least / group.largest
        # A group of one eigenvalue is done in one step, but for rounding.
        per_step = -math.log1p(-ratio) if ratio < 1 else -math.log(np.finfo(np.float64).eps)
        counts[k] = max(1, math.ceil((blown + math.log(1 / contraction)) / per_step))
    return counts


@dataclass(frozen=True)
class Descent:
    """Where a descent ended, and how many gradients it took; `has_converged`: the gradient is as small as asked."""

    weights: Float[np.ndarray, " D"]
    num_gradients: int
    has_converged: bool


def multirate_descent(
    gradient: Callable[[np.ndarray], np.ndarray],
    start: Float[np.ndarray, " D"],
    groups: Sequence[CurvatureGroup],
    tolerance: float = 1e-8,
    max_gradients: int = 100_000,
    contraction: float = CONTRACTION,
) -> Descent:
    """Descend from `start` until the norm of the gradient is `tolerance` times that at the start.

    With one group this is gradient descent. Raises FloatingPointError where it diverges: the groups are not those of
    this loss, or the gradient is not exact.
    """
    counts = step_counts(groups, contraction)
    rates = [1.0 / group.largest for group, count in zip(groups, counts, strict=True) for _ in range(count)]
    weights = np.array(start, np.float64)
    slope = gradient(weights)
    first, used = float(np.linalg.norm(slope)), 1
    if first == 0.0:
        return Descent(weights, used, True)
    best = first
    while used < max_gradients:
        for rate in rates:
            weights = weights - rate * slope
            slope = gradient(weights)
            used += 1
        # Judged where a cycle ends: within one, stiff groups may be blown up.
        norm = float(np.linalg.norm(slope))
        if not math.isfinite(norm) or norm > 1e6 * best:
            raise FloatingPointError(
                f"multirate descent diverges: the gradient's norm went from {first:.3g} to {norm:.3g} in {used} "
                "gradients; expected groups that hold all eigenvalues of the loss, and its exact gradient"
            )
        best = min(best, norm)
        if norm <= tolerance * first:
            return Descent(weights, used, True)
    return Descent(weights, used, False)
