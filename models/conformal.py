"""Conformal prediction: error bars that hold what they say, whatever the model, for objects like those of its fit.

Scores of objects that a model was not fitted on (how far off was it?) tell how far to reach for a new one. Of n scores,
the one of rank ceil((n + 1) level) covers a new object with probability `level` (Vovk, Gammerman & Shafer 2005; Lei et
al. 2018, arXiv 1604.04173). Scores of values are absolute residuals, over a local scale where there is one; those of
classes are 1 - p(true class) (least ambiguous sets; Sadinle, Lei & Wasserman 2019, arXiv 1609.00451).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LEVELS = (0.68, 0.9, 0.95)
"""Of the intervals that predictions carry where no others are asked for."""


@dataclass(frozen=True, eq=False)
class ProbePrediction:
    """What a probe says of B objects: values, S intervals, and whether each object lies outside of what it knows.

    Regression: `value` [B], or [B, T] for T labels, in the label's unit, `lower` and `upper` [B, S] or [B, T, S].
    Classification: `value` holds classes, `probabilities` [B, C], and `sets` [B, C, S] the classes that may be the
    true one. `novelty` [B] is a p-value: the share of objects like those of the fit that lie as far out. `is_outside`
    is None where the fit had too few objects to tell, and both are where the probe's file is of an old format.
    """

    value: np.ndarray
    levels: tuple[float, ...]
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    sets: np.ndarray | None = None
    novelty: np.ndarray | None = None
    is_outside: np.ndarray | None = None


def check_level(level: float) -> None:
    """Raises ValueError unless the level lies between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")


def conformal_reach(scores: Float[np.ndarray, " n"], level: float) -> float:
    """How far to reach to cover a new object with probability `level`, by sorted scores of others.

    Infinite where they are too few: ceil((n + 1) level) must not exceed n.
    """
    check_level(level)
    # Rounded first: (9 + 1) * 0.9 is to be 9, not 9.000000000000002.
    rank = math.ceil(round((len(scores) + 1) * level, 9))
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


def objects_needed(level: float) -> int:
    """The least number of scores with which an interval of this level is finite."""
    check_level(level)
    return math.ceil(round(level / (1 - level), 9))


def calibrate_classes(
    left_out: Float[np.ndarray, "B C"], numbers: Int[np.ndarray, " B"]
) -> tuple[float, Float[np.ndarray, " B"], dict[str, float]]:
    """Temperature, set scores, and accuracy and log loss, by the class scores of objects that a fit left out."""
    temperature = best_temperature(left_out, numbers)
    log_probabilities = log_softmax(left_out / temperature, axis=1)
    scores = {
        "accuracy": float((left_out.argmax(1) == numbers).mean()),
        "log_loss": -float(log_probabilities[np.arange(len(numbers)), numbers].mean()),
    }
    return temperature, class_scores(np.exp(log_probabilities), numbers), scores


def class_scores(probabilities: Float[np.ndarray, "n C"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Sorted scores of objects whose classes, 0 to C - 1, are known: 1 - p(true class)."""
    return np.sort(1 - probabilities[np.arange(len(classes)), classes])


def class_sets(
    probabilities: Float[np.ndarray, "B C"], scores: Float[np.ndarray, " n"], level: float
) -> Bool[np.ndarray, "B C"]:
    """The classes that may be the true one: together they hold it with probability `level`.

    The most probable class is always among them, so that a set is never empty; where the model is right more often than
    `level` the sets cover more than that.
    """
    reach = conformal_reach(scores, level)
    most = np.zeros(probabilities.shape, bool)
    most[np.arange(len(most)), probabilities.argmax(1)] = True
    return most | (1 - probabilities <= reach)


def best_temperature(scores: Float[np.ndarray, "n C"], classes: Int[np.ndarray, " n"]) -> float:
    """The number by which to divide class scores so that their softmax has the least log loss on these objects.

    (Temperature scaling; Guo et al. 2017, arXiv 1706.04599.)
    """

    def loss(log_temperature: float) -> float:
        logits = scores / math.exp(log_temperature)
        return -float(log_softmax(logits, axis=1)[np.arange(len(classes)), classes].mean())

    return math.exp(float(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def stack_levels(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one shape, for each level one, with the level as last axis."""
    return np.stack(list(columns), axis=-1)
