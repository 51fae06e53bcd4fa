"""The trivial predictors that stand in every table: a constant, a line through magnitudes, and boosted trees."""

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import HistGradientBoostingRegressor

from ..models.attentive_probe import AttentiveProbe
from ..models.conformal import conformal_reach
from ..models.probes import LinearProbe
from .scores import LEVELS

Predicted = tuple[np.ndarray, dict[float, tuple[np.ndarray, np.ndarray]]]
"""Values [B] and central intervals by level."""


def magnitudes_and_colours(magnitudes: Float[np.ndarray, "B M"]) -> Float[np.ndarray, "B S"]:
    """Magnitudes, and differences of neighbours; NaN where missing."""
    return np.concatenate([magnitudes, np.diff(magnitudes, axis=1)], 1)


def predict_constant(train: Float[np.ndarray, " A"], num_objects: int) -> Predicted:
    """The mean of the training labels for every object, with their quantiles as intervals."""
    bounds = {}
    for level in LEVELS:
        low, high = np.quantile(train, [(1 - level) / 2, (1 + level) / 2])
        bounds[level] = (np.full(num_objects, low), np.full(num_objects, high))
    return np.full(num_objects, train.mean()), bounds


def filled(features: Float[np.ndarray, "B S"], like: Float[np.ndarray, "A S"]) -> Float[np.ndarray, "B S"]:
    """Features with the median of `like` where they are missing, and zero where that is."""
    with np.errstate(all="ignore"):
        median = np.array([np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else 0.0 for c in like.T])
    return np.where(np.isfinite(features), features, median)


def predict_line(
    train_features: Float[np.ndarray, "A S"], train: Float[np.ndarray, " A"], features: Float[np.ndarray, "B S"]
) -> Predicted:
    """Ridge regression on magnitudes and colours, with its conformal intervals."""
    known, asked = _standardised(train_features, features)
    return predict_with_probe(LinearProbe().fit(known, train), asked)


def line_values(
    train_features: Float[np.ndarray, "A S"], train: Float[np.ndarray, " A"], features: Float[np.ndarray, "B S"]
) -> Float[np.ndarray, " B"]:
    """The values of `predict_line`, without its intervals."""
    known, asked = _standardised(train_features, features)
    return LinearProbe(intervals="constant").fit(known, train).predict(asked)


def _standardised(train: Float[np.ndarray, "A S"], features: Float[np.ndarray, "B S"]) -> tuple[np.ndarray, np.ndarray]:
    known = filled(train, train)
    mean, spread = known.mean(0), known.std(0).clip(1e-9)
    return (known - mean) / spread, (filled(features, train) - mean) / spread


def predict_with_probe(probe: LinearProbe | AttentiveProbe, features: Any) -> Predicted:
    """Values of a probe, and its intervals at LEVELS."""
    bounds = {}
    for level in LEVELS:
        low, high = probe.predict_interval(features, level).T
        bounds[level] = (low, high)
    return probe.predict(features), bounds


def predict_with_trees(
    train_features: Float[np.ndarray, "A S"],
    train: Float[np.ndarray, " A"],
    validation_features: Float[np.ndarray, "V S"],
    validation: Float[np.ndarray, " V"],
    features: Float[np.ndarray, "B S"],
    loss: str = "squared_error",
) -> Predicted:
    """Gradient-boosted trees on magnitudes and colours; intervals by the residuals of validation objects.

    Split conformal prediction (Lei et al. 2018, arXiv 1604.04173).
    """
    trees = fit_trees(train_features, train, loss)
    residuals = np.sort(np.abs(trees.predict(validation_features) - validation))
    value = trees.predict(features)
    bounds = {}
    for level in LEVELS:
        reach = conformal_reach(residuals, level)
        bounds[level] = (value - reach, value + reach)
    return value, bounds


def fit_trees(features: Float[np.ndarray, "A S"], labels: Float[np.ndarray, " A"], loss: str = "squared_error") -> Any:
    """Trees for this many labels: leaves grow smaller where there are few, or one leaf would hold them all."""
    return HistGradientBoostingRegressor(
        loss=loss,
        max_iter=300,
        learning_rate=0.05,
        min_samples_leaf=int(min(20, max(2, len(labels) // 20))),
        early_stopping=False,
        random_state=0,
    ).fit(features, labels)
