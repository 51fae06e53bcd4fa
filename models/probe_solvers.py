"""Full-batch losses of linear probes, what their curvature looks like, and the solver that fits it.

Where the Gauss-Newton eigenvalues lie in groups with gaps between them, `multirate.py` descends; where they do not,
least squares are solved in closed form and logistic losses by L-BFGS. `benchmarks/probe_solver.py` counts gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import logsumexp

from .multirate import CurvatureGroup, Descent, curvature_groups, multirate_descent, step_counts
from .probe_diagnosis import MAX_STEPS_OF_A_CYCLE

DENSE_SIZE = 4096
"""Largest matrix whose eigenvalues are all worked out; of larger ones Lanczos finds some."""
Method = Literal["auto", "multirate", "lbfgs", "closed form"]


@dataclass(frozen=True, eq=False)
class ProbeLoss:
    """A loss of weights [P]: value, gradient, product of the Gauss-Newton matrix at given weights with a vector, that
    of a matrix which it never exceeds (weights None), and, for least squares alone, the minimum."""

    num_weights: int
    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    curvature: Callable[[np.ndarray | None, np.ndarray], np.ndarray]
    minimum: Callable[[], np.ndarray] | None = None


def least_squares(features: Float[np.ndarray, "B D"], labels: Float[np.ndarray, " B"], penalty: float) -> ProbeLoss:
    """Half the mean squared error plus half `penalty` times the squared norm of the weights [D]."""
    count = len(labels)

    def value(weights: np.ndarray) -> float:
        return float(0.5 * np.mean((features @ weights - labels) ** 2) + 0.5 * penalty * weights @ weights)

    def gradient(weights: np.ndarray) -> np.ndarray:
        return features.T @ (features @ weights - labels) / count + penalty * weights

    def curvature(_weights: np.ndarray | None, vector: np.ndarray) -> np.ndarray:
        return features.T @ (features @ vector) / count + penalty * vector

    def minimum() -> np.ndarray:
        matrix = features.T @ features / count + penalty * np.eye(features.shape[1])
        return np.linalg.lstsq(matrix, features.T @ labels / count, rcond=None)[0]

    return ProbeLoss(features.shape[1], value, gradient, curvature, minimum)


def logistic(
    features: Float[np.ndarray, "B D"], classes: Int[np.ndarray, " B"], penalty: float | Float[np.ndarray, " P"]
) -> ProbeLoss:
    """Mean cross-entropy of the true classes, 0 to C - 1, plus half `penalty` (one for all, or for each weight) times
    the squared norm of the weights, [D, C] flattened. (The bound of its curvature: Boehning 1992, doi
    10.1007/BF00048682.)"""
    count, num_classes = len(classes), int(classes.max()) + 1
    truth = np.eye(num_classes)[classes]

    def probabilities(weights: np.ndarray) -> np.ndarray:
        logits = features @ weights.reshape(-1, num_classes)
        return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))

    def value(weights: np.ndarray) -> float:
        logits = features @ weights.reshape(-1, num_classes)
        losses = logsumexp(logits, axis=1) - logits[np.arange(count), classes]
        return float(losses.mean() + 0.5 * (penalty * weights) @ weights)

    def gradient(weights: np.ndarray) -> np.ndarray:
        return (features.T @ (probabilities(weights) - truth) / count).ravel() + penalty * weights

    def curvature(weights: np.ndarray | None, vector: np.ndarray) -> np.ndarray:
        change = features @ vector.reshape(-1, num_classes)
        if weights is None:
            change = 0.5 * (change - change.mean(1, keepdims=True))
        else:
            chances = probabilities(weights)
            change = chances * (change - (chances * change).sum(1, keepdims=True))
        return (features.T @ change / count).ravel() + penalty * vector

    return ProbeLoss(features.shape[1] * num_classes, value, gradient, curvature)


def curvature_spectrum(loss: ProbeLoss, weights: Float[np.ndarray, " P"] | None = None) -> Float[np.ndarray, " N"]:
    """Eigenvalues of the Gauss-Newton matrix at `weights`, or of its bound, largest first: all, or where there are over
    DENSE_SIZE of them, the Ritz values of Lanczos' method."""
    size = loss.num_weights
    if size > DENSE_SIZE:
        return lanczos(lambda vector: loss.curvature(weights, vector), size, 100)
    matrix = np.stack([loss.curvature(weights, unit) for unit in np.eye(size)])
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1].clip(min=0)


def covariance_spectrum(features: Float[np.ndarray, "B D"]) -> Float[np.ndarray, " N"]:
    """Eigenvalues of the covariance of features, largest first: all that may differ from zero, or where objects and
    features both exceed DENSE_SIZE, the Ritz values of Lanczos' method."""
    centred = features - features.mean(0)
    count, size = centred.shape
    if min(count, size) > DENSE_SIZE:
        return lanczos(lambda vector: centred.T @ (centred @ vector) / count, size, 100)
    matrix = centred.T @ centred if size <= count else centred @ centred.T
    return np.linalg.eigvalsh(matrix / count)[::-1].clip(min=0)


def lanczos(
    product: Callable[[np.ndarray], np.ndarray], size: int, num_steps: int, seed: int = 0
) -> Float[np.ndarray, " N"]:
    """Ritz values of a symmetric matrix, largest first, from products with vectors (Lanczos 1950, doi
    10.6028/jres.045.026); every vector is made orthogonal to all before it, so that none comes twice."""
    vector = np.random.default_rng(seed).normal(size=size)
    basis = [vector / np.linalg.norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(num_steps, size)):
        new = product(basis[-1])
        diagonal.append(float(new @ basis[-1]))
        for _repeat in range(2):
            for known in basis:
                new = new - (new @ known) * known
        norm = float(np.linalg.norm(new))
        if norm < 1e-10 * max(map(abs, diagonal)):
            break
        beside.append(norm)
        basis.append(new / norm)
    beside = beside[: len(diagonal) - 1]
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return np.linalg.eigvalsh(matrix)[::-1]


def choose_method(groups: list[CurvatureGroup], loss: ProbeLoss) -> Method:
    """`multirate` where there are gaps and a cycle is short, else what needs no gap."""
    if len(groups) > 1 and sum(step_counts(groups)) <= MAX_STEPS_OF_A_CYCLE:
        return "multirate"
    return "lbfgs" if loss.minimum is None else "closed form"


def minimise(loss: ProbeLoss, method: Method = "auto", tolerance: float = 1e-8) -> tuple[Descent, Method]:
    """The minimum of a probe's loss, and the method that found it: until the gradient's norm is `tolerance` times that
    at zero.

    Of a logistic loss curvature changes: multirate descent looks again every few cycles, and L-BFGS takes over where it
    does not converge. Raises ValueError for `closed form` of a logistic loss, or data that are not finite.
    """
    start = np.zeros(loss.num_weights)
    first = float(np.linalg.norm(loss.gradient(start)))
    if not np.isfinite(first):
        raise ValueError("features and labels must be finite")
    if method == "auto":
        method = choose_method(_groups(loss, start), loss)
    if method == "closed form":
        if loss.minimum is None:
            raise ValueError("a logistic loss has no closed form; expected method auto, multirate or lbfgs")
        return Descent(loss.minimum(), 0, True), method
    if method == "multirate":
        found = _multirate(loss, start, first * tolerance)
        if found is not None:
            return found, method
        method = "lbfgs"
    found = minimize(
        loss.value,
        start,
        jac=loss.gradient,
        method="L-BFGS-B",
        options={
            "maxiter": 100_000,
            "maxfun": 100_000,
            "gtol": 0.1 * first * tolerance / loss.num_weights**0.5,
            "ftol": 0,
        },
    )
    reached = float(np.linalg.norm(loss.gradient(found.x)))
    return Descent(found.x, int(found.njev), reached <= first * tolerance), method


def _groups(loss: ProbeLoss, weights: np.ndarray) -> list[CurvatureGroup]:
    here = None if loss.minimum is not None else curvature_spectrum(loss, weights)
    return curvature_groups(curvature_spectrum(loss), here=here)


def _multirate(loss: ProbeLoss, start: np.ndarray, wanted: float, rounds: int = 50, cycles: int = 4) -> Descent | None:
    """Multirate descents of a few cycles, each by the curvature where it begins; None if they do not get there."""
    weights, used = start, 0
    for _ in range(rounds):
        slope = float(np.linalg.norm(loss.gradient(weights)))
        groups = _groups(loss, weights)
        num_steps = sum(step_counts(groups))
        if num_steps > MAX_STEPS_OF_A_CYCLE:
            return None
        # Of least squares the curvature stays.
        limit = 100_000 if loss.minimum is not None else cycles * num_steps
        try:
            found = multirate_descent(loss.gradient, weights, groups, min(1.0, wanted / slope), limit)
        except FloatingPointError:
            return None
        weights, used = found.weights, used + found.num_gradients
        if found.has_converged:
            return Descent(weights, used, True)
    return None
