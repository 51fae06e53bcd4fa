"""Kernel probes: linear probes on the similarities of an object to training objects, for labels that bend.

Ridge regression (or logistic) in the space of a Gaussian kernel exp(-|x - y|^2 / (2 l^2)): kernel ridge regression
(Saunders, Gammerman & Vovk 1998), exact where all training objects are landmarks, else Nystroem's approximation
(Williams & Seeger 2000). So the leave-one-out error has its closed form still; it chooses the length l and the
penalty: of values the mean absolute one, which a few labels that are wrong do not decide.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax
from sklearn.metrics.pairwise import euclidean_distances

from .probe_fits import fit_logistic, fit_regression
from .probes import PENALTIES, LinearProbe, standardise

LENGTH_SCALES = (0.3, 0.5, 1.0, 2.0, 4.0)
LEAST_EIGENVALUE = 1e-10
"""As a share of the largest: what lies below is rounding."""


class KernelProbe(LinearProbe):
    """A smooth function of embeddings; parameters, methods and files are those of `LinearProbe`.

    `length_scales` are candidates for the kernel's length, in units of the median distance between training objects.
    Of more training objects than `num_landmarks`, so many are drawn at random as landmarks. Takes the time of a few
    decompositions of [objects, landmarks].

    Further attributes when fitted: `landmarks_` [M, D] and `length_scale_` (in the embeddings' own unit). `coef_` is
    that of the kernel's features.
    """

    kind = "kernel"
    _error_power = 1.0
    landmarks_: np.ndarray
    length_scale_: float
    _root: np.ndarray

    def __init__(
        self,
        task: Any = "regression",
        length_scales: Any = LENGTH_SCALES,
        num_landmarks: Any = 1024,
        penalties: Any = PENALTIES,
        folds: Any = 5,
        solver: Any = "auto",
        intervals: Any = "auto",
        label: Any = None,
        unit: Any = None,
    ):
        super().__init__(task, penalties, folds, solver, intervals, label, unit)
        self.length_scales = length_scales
        self.num_landmarks = num_landmarks

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not len(self.length_scales) or min(self.length_scales) <= 0:
            raise ValueError(f"length_scales must be positive numbers, found {self.length_scales!r}")
        if self.num_landmarks < 2:
            raise ValueError(f"num_landmarks must be at least 2, found {self.num_landmarks!r}")

    def _learn_map(self, given: Float[np.ndarray, "B D"], labels: np.ndarray) -> Float[np.ndarray, "B R"]:
        rows = np.arange(len(given))
        if len(rows) > self.num_landmarks:
            rows = np.sort(np.random.default_rng(0).choice(rows, self.num_landmarks, replace=False))
        self.landmarks_ = given[rows]
        squared = euclidean_distances(self.landmarks_, squared=True)
        apart = squared[squared > 0]
        median = float(np.sqrt(np.median(apart))) if len(apart) else 1.0
        errors = {}
        for share in self.length_scales:
            self._take_length(share * median)
            if len(self.length_scales) > 1:
                errors[share * median] = self._error(self._map(given), labels)
        if errors:
            self._take_length(min(errors, key=lambda length: errors[length]))
        return self._map(given)

    def _take_length(self, length: float) -> None:
        """Set the kernel's length, and the matrix that makes features of similarities to the landmarks."""
        self.length_scale_ = length
        eigenvalues, vectors = np.linalg.eigh(self._similarities(self.landmarks_))
        kept = eigenvalues > LEAST_EIGENVALUE * eigenvalues[-1]
        self._root = vectors[:, kept] / np.sqrt(eigenvalues[kept])

    def _similarities(self, given: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B M"]:
        return np.exp(-euclidean_distances(given, self.landmarks_, squared=True) / (2 * self.length_scale_**2))

    def _map(self, given: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B R"]:
        return self._similarities(given) @ self._root

    def _error(self, features: Float[np.ndarray, "B R"], labels: np.ndarray) -> float:
        """Of objects left out: the mean absolute error in deviations of the label, or the log loss."""
        standardised, _, _ = standardise(features)
        if self.task == "regression":
            columns = labels.reshape(len(labels), -1).astype(np.float64)
            fit, _, _ = fit_regression(
                standardised, columns, self.penalties, self.solver, self.folds, self._error_power
            )
            return float((np.abs(fit.left_out).mean(0) / np.maximum(columns.std(0), 1e-150)).mean())
        _, numbers = np.unique(labels, return_inverse=True)
        left_out = fit_logistic(standardised, numbers, self.penalties, self.solver, self.folds).left_out
        if left_out is None:
            return 0.0
        return float(-log_softmax(left_out, axis=1)[np.arange(len(numbers)), numbers].mean())

    def _arrays(self) -> dict[str, np.ndarray]:
        return super()._arrays() | {"landmarks": self.landmarks_, "root": self._root}

    def _description(self) -> dict[str, Any]:
        return super()._description() | {"length_scale": self.length_scale_}

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        super()._restore(description, arrays)
        self.landmarks_, self._root = arrays["landmarks"], arrays["root"]
        self.length_scale_ = description["length_scale"]
        self.n_features_in_ = self.landmarks_.shape[1]
