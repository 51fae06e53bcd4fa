"""Scores of predicted numbers against the truth of held-out objects, with bootstrap intervals over the objects.

Intervals are percentiles of the score over samples of the objects drawn with replacement (Efron & Tibshirani 1993,
chapter 13). The samples depend on the number of objects alone, so that the scores of two methods on the same objects
can be subtracted sample by sample.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

LEVELS = (0.2, 0.4, 0.5, 0.6, 0.68, 0.8, 0.9, 0.95)
"""Levels of central intervals. Those at 0.2, 0.4, 0.6 and 0.8 bound the ten bins of the PIT histogram."""
JUDGED_LEVELS = (0.5, 0.68, 0.9, 0.95)
"""Levels whose coverage is reported."""
OUTLIER = 0.05
"""|dz| / (1 + z) above which a redshift of these nearby galaxies counts as an outlier."""
INTERVAL = 0.95
"""Level of bootstrap intervals."""
CHUNK = 100
"""Bootstrap samples in memory at once."""

Bounds = Mapping[float, tuple[np.ndarray, np.ndarray]]
"""Lower and upper bound [B] of each object's central interval, by level."""
Number = np.ndarray | np.float64
"""One score, or one for each sample."""
Score = Callable[[np.ndarray, np.ndarray], Number]
"""A score of predicted and true values [..., B], over the last dimension."""


def r_squared(predicted: Float[np.ndarray, "... B"], true: Float[np.ndarray, "... B"]) -> Number:
    """Share of the variance of the truth that the prediction explains: 1 - sum of squared errors / sum of squares."""
    spread = np.square(true - true.mean(-1, keepdims=True)).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - np.square(predicted - true).sum(-1) / spread


def redshift_scatter(predicted: Float[np.ndarray, "... B"], true: Float[np.ndarray, "... B"]) -> Number:
    """1.4826 times the median absolute deviation of (predicted - true) / (1 + true)."""
    error = (predicted - true) / (1 + true)
    return 1.4826 * np.median(np.abs(error - np.median(error, -1, keepdims=True)), -1)


def root_mean_square(predicted: Float[np.ndarray, "... B"], true: Float[np.ndarray, "... B"]) -> Number:
    """Root of the mean squared error, in the unit of the label."""
    return np.sqrt(np.square(predicted - true).mean(-1))


def bootstrap(
    statistic: Callable[..., Number], columns: Sequence[np.ndarray], num_samples: int, seed: int = 0
) -> Float[np.ndarray, " S"]:
    """The statistic of S samples of objects. `columns` [B] are resampled together and given as [samples, B]."""
    found = []
    for start in range(0, num_samples, CHUNK):
        rows = _resampled(len(columns[0]), num_samples, seed)[start : start + CHUNK]
        found.append(statistic(*(column[rows] for column in columns)))
    return np.concatenate(found).astype(np.float64)


def bootstrap_means(columns: Sequence[np.ndarray], num_samples: int, seed: int = 0) -> Float[np.ndarray, "C S"]:
    """Means of each column [B] over the samples of `bootstrap`, as products with how often each object occurs."""
    stacked = np.stack(columns, 1).astype(np.float64)
    counts = _counts(len(stacked), num_samples, seed)
    parts = [counts[start : start + CHUNK].astype(np.float64) @ stacked for start in range(0, num_samples, CHUNK)]
    return np.concatenate(parts).T / len(stacked)


def bootstrap_r_squared(
    predicted: Float[np.ndarray, " B"], true: Float[np.ndarray, " B"], num_samples: int, seed: int = 0
) -> Float[np.ndarray, " S"]:
    """`bootstrap` of `r_squared`, from three means for each sample."""
    centred = true - true.mean()
    error, square, mean = bootstrap_means([np.square(predicted - true), np.square(centred), centred], num_samples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - error / (square - np.square(mean))


def interval_of(samples: Float[np.ndarray, " S"]) -> list[float]:
    """The percentile interval of bootstrap samples."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return [float("nan"), float("nan")]
    return [float(bound) for bound in np.quantile(finite, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])]


def score_values(
    predicted: Float[np.ndarray, " B"],
    true: Float[np.ndarray, " B"],
    num_bootstrap: int,
    *,
    is_redshift: bool,
) -> dict[str, Any]:
    """R2 and RMS error, of redshifts also scatter, bias and outliers; `*_interval` are bootstrap intervals."""
    answer: dict[str, Any] = {
        "num_objects": len(true),
        "r2": float(r_squared(predicted, true)),
        "r2_interval": interval_of(bootstrap_r_squared(predicted, true, num_bootstrap)),
        "rms_error": float(root_mean_square(predicted, true)),
        "rms_error_interval": interval_of(np.sqrt(bootstrap_means([np.square(predicted - true)], num_bootstrap)[0])),
    }
    if is_redshift:
        error = (predicted - true) / (1 + true)
        samples = bootstrap(redshift_scatter, (predicted, true), num_bootstrap)
        answer |= {
            "scatter": float(redshift_scatter(predicted, true)),
            "scatter_interval": interval_of(samples),
            "bias": float(error.mean()),
            "outliers": float((np.abs(error) > OUTLIER).mean()),
        }
    return answer


def compare(
    first: Float[np.ndarray, " B"],
    second: Float[np.ndarray, " B"],
    true: Float[np.ndarray, " B"],
    num_bootstrap: int,
    measure: Score = r_squared,
) -> dict[str, Any]:
    """How much the first prediction's score exceeds the second's on the same objects, with a paired interval."""

    def difference(one: np.ndarray, other: np.ndarray, truth: np.ndarray) -> Number:
        return measure(one, truth) - measure(other, truth)

    samples = bootstrap(difference, (first, second, true), num_bootstrap)
    return {"difference": float(difference(first, second, true)), "interval": interval_of(samples)}


def coverage(bounds: Bounds, true: Float[np.ndarray, " B"]) -> dict[str, float]:
    """Share of the objects whose truth lies in the interval of each level."""
    return {str(level): float(((low <= true) & (true <= high)).mean()) for level, (low, high) in bounds.items()}


def pit_histogram(bounds: Bounds, true: Float[np.ndarray, " B"]) -> list[float]:
    """Shares of the objects in ten bins of the probability integral transform, from central intervals.

    The bounds at levels 0.8, 0.6, 0.4, 0.2 are the predicted quantiles 0.1 ... 0.4 and 0.6 ... 0.9; the middle two bins
    are shown as one, halved, since a central interval does not say where its median lies.
    """
    levels = (0.8, 0.6, 0.4, 0.2)
    edges = [bounds[level][0] for level in levels] + [bounds[level][1] for level in reversed(levels)]
    place = np.sum([true > edge for edge in edges], axis=0)
    share = np.bincount(place, minlength=len(edges) + 1) / len(true)
    middle = float(share[len(levels)])
    return [*map(float, share[: len(levels)]), middle / 2, middle / 2, *map(float, share[len(levels) + 1 :])]


def score_intervals(bounds: Bounds, true: Float[np.ndarray, " B"], num_bootstrap: int) -> dict[str, Any]:
    """Coverage at JUDGED_LEVELS, that of 90 % with a bootstrap interval, PIT histogram, mean width of 68 %."""
    low, high = bounds[0.9]
    inside = ((low <= true) & (true <= high)).astype(np.float64)
    return {
        "num_objects": len(true),
        "coverage": coverage({level: bounds[level] for level in JUDGED_LEVELS}, true),
        "coverage_90_interval": interval_of(bootstrap_means([inside], num_bootstrap)[0]),
        "pit": pit_histogram(bounds, true),
        "width_68": float(np.median(bounds[0.68][1] - bounds[0.68][0])),
    }


def strata_of(values: Float[np.ndarray, " B"], num_strata: int) -> list[tuple[str, Int[np.ndarray, " R"]]]:
    """Rows of equally many objects by rising value, each with its range as text; without a value, in none."""
    known = np.flatnonzero(np.isfinite(values))
    ordered = known[np.argsort(values[known], kind="stable")]
    found = []
    for rows in np.array_split(ordered, num_strata):
        if len(rows) > 1:
            found.append((f"{values[rows[0]]:.3g} to {values[rows[-1]]:.3g}", rows))
    return found


@functools.lru_cache(maxsize=12)
def _resampled(num_objects: int, num_samples: int, seed: int) -> Int[np.ndarray, "S B"]:
    return np.random.default_rng(seed).integers(num_objects, size=(num_samples, num_objects), dtype=np.int32)


@functools.lru_cache(maxsize=12)
def _counts(num_objects: int, num_samples: int, seed: int) -> UInt8[np.ndarray, "S B"]:
    """How often each object occurs in each sample."""
    rows = _resampled(num_objects, num_samples, seed)
    return np.stack([np.bincount(row, minlength=num_objects) for row in rows]).astype(np.uint8)
