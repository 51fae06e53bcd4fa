"""Scores of predicted redshifts, and the two predictors every model is compared with: a constant, and trees."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import HistGradientBoostingRegressor

from ..evaluation.scores import OUTLIER, r_squared, redshift_scatter

LEVELS = (0.68, 0.95)


@dataclass(frozen=True)
class RedshiftScores:
    """Scores on held-out objects. `scatter` is 1.4826 times the median absolute deviation of dz/(1+z)."""

    name: str
    num_objects: int
    r2: float
    scatter: float
    bias: float
    outliers: float
    coverage_68: float | None = None
    coverage_95: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def score(
    name: str,
    predicted: Float[np.ndarray, " B"],
    true: Float[np.ndarray, " B"],
    intervals: dict[float, tuple[np.ndarray, np.ndarray]] | None = None,
) -> RedshiftScores:
    """Score predictions, and the central intervals by level where there are any."""
    error = (predicted - true) / (1 + true)
    coverage = {
        level: float(((low <= true) & (true <= high)).mean()) for level, (low, high) in (intervals or {}).items()
    }
    return RedshiftScores(
        name=name,
        num_objects=len(true),
        r2=float(r_squared(predicted, true)),
        scatter=float(redshift_scatter(predicted, true)),
        bias=float(error.mean()),
        outliers=float((np.abs(error) > OUTLIER).mean()),
        coverage_68=coverage.get(0.68),
        coverage_95=coverage.get(0.95),
    )


def score_constant(train: Float[np.ndarray, " A"], true: Float[np.ndarray, " B"]) -> RedshiftScores:
    """The median of the training redshifts for every object, with their quantiles as interval."""
    intervals = {}
    for level in LEVELS:
        low, high = np.quantile(train, [(1 - level) / 2, (1 + level) / 2])
        intervals[level] = (np.full(len(true), low), np.full(len(true), high))
    return score("constant (median of training)", np.full(len(true), np.median(train)), true, intervals)


def predict_with_trees(
    train_features: Float[np.ndarray, "A M"], train: Float[np.ndarray, " A"], features: Float[np.ndarray, "B M"]
) -> tuple[np.ndarray, dict[float, tuple[np.ndarray, np.ndarray]]]:
    """Gradient-boosted trees on magnitudes and colours: median and central intervals, one model for each quantile."""
    quantiles = [0.5] + [q for level in LEVELS for q in ((1 - level) / 2, (1 + level) / 2)]
    answers = []
    for quantile in quantiles:
        trees = HistGradientBoostingRegressor(
            loss="quantile", quantile=quantile, max_iter=300, learning_rate=0.05, random_state=0
        )
        answers.append(trees.fit(train_features, train).predict(features))
    median, low68, high68, low95, high95 = answers
    return median, {0.68: (low68, high68), 0.95: (low95, high95)}
