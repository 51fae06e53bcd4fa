"""The fits behind linear probes: which solver finds the minimum, by which penalty, and what the folds left out.

`auto` takes the closed form for regression, unless objects and features are both very many; multirate descent where the
eigenvalues of the features' covariance lie in groups with gaps between them; L-BFGS else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

from .probe_diagnosis import SpectrumDiagnosis, diagnose_spectrum
from .probe_solvers import DENSE_SIZE, Method, covariance_spectrum, least_squares, logistic, minimise
from .ridge import RidgeFit, fit_ridge

SOLVERS = ("auto", "closed form", "multirate", "lbfgs")
MAX_ITERATIONS = 2000
NOT_CONVERGED = "; it did not converge, and L-BFGS took over"
FOLD_TOLERANCE = 1e-5
"""Of the gradient's norm, where only penalties are compared."""


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """One row [D] of coefficients for each class, centred; class scores [B, C] of objects that folds left out, None
    where a class has a single object."""

    coef: Float[np.ndarray, "C D"]
    intercept: Float[np.ndarray, " C"]
    penalty: float
    left_out: Float[np.ndarray, "B C"] | None
    solver: str
    diagnosis: dict[str, Any]


def fit_regression(
    features: Float[np.ndarray, "B D"],
    labels: Float[np.ndarray, "B T"],
    penalties: Sequence[float],
    solver: str,
    folds: int,
    power: float = 2.0,
) -> tuple[RidgeFit, str, dict[str, Any]]:
    """Ridge regression of each label, by the penalty of the least error to the `power`; what was taken, and why."""
    if solver == "closed form" or (solver == "auto" and min(features.shape) <= DENSE_SIZE):
        fit = fit_ridge(features, labels, penalties, power)
        found = _diagnosed(fit.eigenvalues, float(fit.penalty.min()), features.shape[1])
        why = "asked for" if solver != "auto" else f"objects or features are at most {DENSE_SIZE}"
        return fit, "closed form", {"why": f"{why}: one decomposition serves every penalty", **found}
    eigenvalues = covariance_spectrum(features)
    diagnosis = diagnose_spectrum(eigenvalues + min(penalties), features.shape[1])
    method, why = _choose(solver, diagnosis)
    fit, taken = _descend(features, labels, penalties, method, folds, power, eigenvalues)
    if taken != method:
        why += NOT_CONVERGED
    return fit, taken, {"why": why, **diagnosis.as_dict()}


def fit_logistic(
    features: Float[np.ndarray, "B D"],
    numbers: Int[np.ndarray, " B"],
    penalties: Sequence[float],
    solver: str,
    folds: int,
) -> LogisticFit:
    """Multinomial logistic regression of class numbers 0 to C - 1. Raises ValueError for `closed form`: it has none."""
    if solver == "closed form":
        raise ValueError("a logistic loss has no closed form; expected solver auto, multirate or lbfgs")
    penalty, left_out = _choose_logistic_penalty(features, numbers, penalties, folds)
    num_classes = int(numbers.max()) + 1
    # At equal probabilities the curvature is the covariance over the number of classes, in C - 1 directions.
    diagnosis = diagnose_spectrum(covariance_spectrum(features) / num_classes + penalty, features.shape[1])
    method, why = _choose(solver, diagnosis)
    if method == "multirate":
        # The last column is the intercept's, which is not penalised.
        with_ones = np.concatenate([features, np.ones((len(features), 1))], axis=1)
        # Of two classes scikit-learn penalises the difference of their rows, whose squared norm is twice theirs.
        of_row = 2 * penalty if num_classes == 2 else penalty
        weight = np.repeat([of_row] * features.shape[1] + [0.0], num_classes)
        found, taken = minimise(logistic(with_ones, numbers, weight), "multirate")
        if taken != method:
            why += NOT_CONVERGED
        weights = found.weights.reshape(-1, num_classes).T
        coef, intercept, method = weights[:, :-1], weights[:, -1], taken
    else:
        coef, intercept = _class_rows(_logistic(penalty, len(numbers)).fit(features, numbers))
    return LogisticFit(
        coef - coef.mean(0),
        intercept - intercept.mean(),
        penalty,
        left_out,
        method,
        {"why": why, **diagnosis.as_dict()},
    )


def _choose(solver: str, diagnosis: SpectrumDiagnosis) -> tuple[Method, str]:
    if solver in ("multirate", "lbfgs"):
        return solver, "asked for"  # type: ignore[return-value]
    groups = len(diagnosis.groups)
    if diagnosis.has_gap:
        return "multirate", f"{groups} groups of eigenvalues with gaps between them"
    return "lbfgs", "no gap among the eigenvalues" if groups == 1 else f"a cycle through {groups} groups is too long"


def _diagnosed(eigenvalues: np.ndarray, penalty: float, num_weights: int) -> dict[str, Any]:
    return diagnose_spectrum(eigenvalues + penalty, num_weights).as_dict()


def _descend(
    features: Float[np.ndarray, "B D"],
    labels: Float[np.ndarray, "B T"],
    penalties: Sequence[float],
    method: Method,
    folds: int,
    power: float,
    eigenvalues: np.ndarray,
) -> tuple[RidgeFit, Method]:
    """Ridge regression by descent, and the method that found it: the penalty, and residuals left out, by folds."""
    splits = list(KFold(min(folds, len(labels)), shuffle=True, random_state=0).split(features))
    found: list[tuple[np.ndarray, float, float, np.ndarray]] = []
    methods: list[Method] = []
    for label in labels.T:
        best: tuple[float, float, np.ndarray] = (np.inf, np.nan, np.empty(0))
        for penalty in sorted(penalties, reverse=True):
            left_out = np.empty(len(label))
            for train, test in splits:
                weights, offset, _ = _ridge_by(features[train], label[train], penalty, method, FOLD_TOLERANCE)
                left_out[test] = label[test] - features[test] @ weights - offset
            error = float(np.mean(np.abs(left_out) ** power))
            if error < best[0]:
                best = (error, penalty, left_out)
        weights, offset, taken = _ridge_by(features, label, best[1], method, 1e-8)
        found.append((weights, offset, best[1], best[2]))
        methods.append(taken)
    coef, intercept, chosen, residuals = zip(*found, strict=True)
    fit = RidgeFit(np.stack(coef), np.array(intercept), np.array(chosen), np.stack(residuals, 1), eigenvalues)
    return fit, next((taken for taken in methods if taken != method), method)


def _ridge_by(
    features: Float[np.ndarray, "B D"], label: Float[np.ndarray, " B"], penalty: float, method: Method, tolerance: float
) -> tuple[np.ndarray, float, Method]:
    centre, mean = features.mean(0), float(label.mean())
    loss = least_squares(features - centre, label - mean, penalty)
    found, taken = minimise(loss, method, tolerance)
    return found.weights, mean - float(centre @ found.weights), taken


def _choose_logistic_penalty(
    features: Float[np.ndarray, "B D"], numbers: Int[np.ndarray, " B"], penalties: Sequence[float], folds: int
) -> tuple[float, np.ndarray | None]:
    """The penalty of least log loss on objects left out, and the class scores of these by it."""
    candidates = sorted(penalties, reverse=True)
    smallest_class = int(np.bincount(numbers).min())
    if smallest_class < 2:
        # A class with one member cannot be in both parts of a split: take the middle candidate.
        return float(candidates[len(candidates) // 2]), None
    splits = StratifiedKFold(min(folds, smallest_class), shuffle=True, random_state=0)
    scores = np.zeros((len(candidates), len(numbers), int(numbers.max()) + 1))
    for train, test in splits.split(features, numbers):
        # From the strongest penalty to the weakest, each fit starts where the last one ended.
        probe = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
        for place, penalty in enumerate(candidates):
            probe.set_params(C=1 / (penalty * len(train))).fit(features[train], numbers[train])
            coef, intercept = _class_rows(probe)
            scores[place, test] = features[test] @ coef.T + intercept
    losses = -log_softmax(scores, axis=2)[:, np.arange(len(numbers)), numbers].mean(1)
    best = int(losses.argmin())
    return float(candidates[best]), scores[best]


def _logistic(penalty: float, count: int) -> LogisticRegression:
    # scikit-learn's C multiplies the summed loss; our penalty is one for each object.
    return LogisticRegression(C=1 / (penalty * count), max_iter=MAX_ITERATIONS)


def _class_rows(fitted: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [C, D] and intercepts [C]. Two classes share one row in scikit-learn; here each has its own."""
    coef, intercept = fitted.coef_, fitted.intercept_
    if len(coef) > 1:
        return coef, intercept
    return np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
