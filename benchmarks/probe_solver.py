"""Gradients that solvers take to the minimum of a full-batch probe: multirate, gradient descent, Adam, L-BFGS.

On a quadratic whose curvatures lie in two groups at condition 2e4 (that of He, Liu & Tsai 2024, arXiv 2402.03021), and
with `--embeddings` on those of a model: ridge regression and logistic regression of a property, at the penalty that
`LinearProbe` chooses. Counted until the loss is within `GAP` of its minimum, as a share of what there is to gain.
Gradient descent takes the rate of the largest curvature, Adam the best of a few, L-BFGS is scipy's. The cost of looking
at the curvature (`eigenvalues_s`) is told beside. `ratio_to_reference`: gradients of gradient descent over multirate's,
on the quadratic.

    python benchmarks/probe_solver.py [--quick] [--embeddings FOLDER --data FOLDER --property scalar/redshift]
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from armillary.data.dataset import ObservationDataset
from armillary.models.embeddings import read_embedding_shards
from armillary.models.multirate import CurvatureGroup, curvature_groups, multirate_descent, step_counts
from armillary.models.probe_solvers import ProbeLoss, curvature_spectrum, least_squares, logistic, minimise
from armillary.models.probes import LinearProbe

GAP = 1e-6
MOST = 100_000
MOST_OBJECTS = 2000


class Enough(Exception):  # noqa: N818 - not an error: the minimum is near enough
    """Ends a solver that was watched."""


class Watched:
    """A loss that counts gradients, and ends its solver where the gap is small or the gradients are too many."""

    def __init__(self, loss: ProbeLoss, least: float, most: int):
        self.loss, self.most, self.num_gradients = loss, most, 0
        self.wanted = least + GAP * (loss.value(np.zeros(loss.num_weights)) - least)
        self.is_near = False

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """The loss's, counted."""
        self.is_near = self.loss.value(weights) <= self.wanted
        if self.is_near or self.num_gradients >= self.most:
            raise Enough
        self.num_gradients += 1
        return self.loss.gradient(weights)


def count(loss: ProbeLoss, least: float, most: int, solve: Callable[[Watched], Any]) -> int | None:
    """Gradients until the gap is small; None if they were not enough."""
    watched = Watched(loss, least, most)
    with contextlib.suppress(Enough, FloatingPointError):
        solve(watched)
    return watched.num_gradients if watched.is_near else None


def adam(rate: float) -> Callable[[Watched], None]:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) at its usual averages."""

    def solve(watched: Watched) -> None:
        weights = np.zeros(watched.loss.num_weights)
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        for step in range(1, watched.most + 2):
            slope = watched.gradient(weights)
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            weights = weights - rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)

    return solve


def compare(loss: ProbeLoss, least: float, most: int) -> dict[str, Any]:
    """Gradients of each solver, and the groups that were seen."""
    start = np.zeros(loss.num_weights)
    began = time.perf_counter()
    groups = curvature_groups(curvature_spectrum(loss))
    seconds = time.perf_counter() - began
    one = [CurvatureGroup(groups[-1].least, groups[0].largest)]
    wide = sum(step_counts(groups)) > most

    def lbfgs(watched: Watched) -> None:
        minimize(
            loss.value, start, jac=watched.gradient, method="L-BFGS-B", options={"maxiter": most, "ftol": 0, "gtol": 0}
        )

    def descend(which: list[CurvatureGroup]) -> Callable[[Watched], Any]:
        return lambda watched: multirate_descent(watched.gradient, start, which, 0.0, most + 10)

    rates = [10.0**power for power in range(-4, 1)]
    found = [count(loss, least, most, adam(rate)) for rate in rates]
    return {
        "groups": [[float(f"{g.least:.3g}"), float(f"{g.largest:.3g}")] for g in groups],
        "steps_of_a_cycle": sum(step_counts(groups)),
        "multirate": None if wide else count(loss, least, most, descend(groups)),
        "gradient_descent": count(loss, least, most, descend(one)),
        "adam": min((number for number in found if number is not None), default=None),
        "lbfgs": count(loss, least, most, lbfgs),
        "chosen": minimise(loss)[1],
        "eigenvalues_s": round(seconds, 4),
    }


def two_groups(size: int, seed: int = 0) -> tuple[ProbeLoss, float]:
    """Curvatures evenly spaced in [1e4, 2e4] and [1, 2], in random directions; and the minimum of the loss."""
    random = np.random.default_rng(seed)
    values = np.concatenate([np.linspace(1e4, 2e4, size // 2), np.linspace(1, 2, size // 2)])
    basis, _ = np.linalg.qr(random.normal(size=(size, size)))
    features = np.sqrt(values * size)[:, None] * basis.T
    loss = least_squares(features, features @ random.normal(size=size), 0.0)
    assert loss.minimum is not None
    return loss, loss.value(loss.minimum())


def of_embeddings(embeddings: Path, data: Path, name: str, most: int) -> dict[str, Any]:
    """Ridge and logistic regression of a property, on each modality's embeddings."""
    table, labels = read_embedding_shards(embeddings), ObservationDataset(data).scalars()[name]
    ids, modalities = np.asarray(table.object_id), np.asarray(table.modality)
    found = {}
    for modality in sorted(set(modalities)):
        here = np.flatnonzero((modalities == modality) & np.isin(ids, list(labels)))[:MOST_OBJECTS]
        if len(here) < 100:
            continue
        features = np.asarray(table.vectors)[here].astype(np.float64)
        values = np.array([labels[i] for i in ids[here]])
        features = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
        values = (values - values.mean()) / values.std()
        penalty = LinearProbe().fit(features, values).penalty_
        ridge = least_squares(features, values, penalty)
        assert ridge.minimum is not None
        classes = np.digitize(values, np.quantile(values, [1 / 3, 2 / 3]))
        softmax = logistic(features, classes, penalty)
        best = softmax.value(minimise(softmax, "lbfgs", 1e-9)[0].weights)
        found[modality] = {
            "objects": len(here),
            "penalty": penalty,
            "ridge": compare(ridge, ridge.value(ridge.minimum()), most),
            "logistic": compare(softmax, best, most),
        }
    return found


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer weights")
    parser.add_argument("--embeddings", type=Path, help="folder of embedding shards")
    parser.add_argument("--data", type=Path, help="dataset with the property")
    parser.add_argument("--property", default="scalar/redshift")
    options = parser.parse_args()
    figures: dict[str, Any] = {"gap": GAP, "two groups": compare(*two_groups(20 if options.quick else 200), MOST)}
    print("two groups:", json.dumps(figures["two groups"]), flush=True)
    if options.embeddings is not None:
        figures["embeddings"] = of_embeddings(options.embeddings, options.data, options.property, 3000)
        for name, found in figures["embeddings"].items():
            print(f"{name}:", json.dumps(found), flush=True)
    quadratic = figures["two groups"]
    figures["ratio_to_reference"] = round((quadratic["gradient_descent"] or MOST) / quadratic["multirate"], 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
