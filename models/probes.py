"""Linear probes: small supervised heads on frozen embeddings, with scikit-learn's contract.

    probe = LinearProbe(label="scalar/redshift").fit(embeddings, redshift)
    found = probe.predict_full(others)      # value, intervals, and whether each object lies outside of what is known
    probe.save("redshift_probe")

Regression is ridge regression whose penalty minimises the leave-one-out error in closed form (`ridge.py`); the
residuals of the objects left out then give conformal intervals (the jackknife of Barber et al. 2021, arXiv 1905.02928),
as wide everywhere or scaled by a model of their size, whichever fits them better (`local_scale.py`). Classification is
multinomial logistic regression whose penalty minimises the cross-validated log loss; what the folds left out calibrates
the probabilities, and gives sets of classes. `solver` says how the minimum is found, `diagnosis_` why so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .conformal import (
    LEVELS,
    ProbePrediction,
    calibrate_classes,
    class_sets,
    conformal_reach,
    stack_levels,
)
from .embeddings import Embeddings
from .local_scale import LocalScale
from .novelty import NoveltyModel, are_outside
from .probe_files import ProbeError, SavedProbe
from .probe_fits import SOLVERS, fit_logistic, fit_regression

__all__ = ["PENALTIES", "TASKS", "LinearProbe", "ProbeError"]

TASKS = ("regression", "classification")
INTERVALS = ("auto", "constant", "scaled")
PENALTIES = tuple(10.0**power for power in range(-6, 3))


def _is_task(task: str) -> Any:
    def check(probe: Any) -> bool:
        if probe.task != task:
            raise AttributeError(f"this probe's task is {probe.task}, not {task}")
        return True

    return check


class LinearProbe(SavedProbe, BaseEstimator):  # type: ignore[misc]
    """A linear map from embeddings to numbers (`task="regression"`) or to classes (`task="classification"`).

    `X` is an `Embeddings` or an array [B, D] of finite numbers. `penalties` are candidates for the L2 penalty per
    object, on embeddings centred and scaled to unit mean variance; `folds` is of classification, and of solvers that
    descend. `solver` is `auto`, `closed form` (regression), `multirate` or `lbfgs`; `intervals` is `auto`, `constant`
    or `scaled`. `label` and `unit` name what is predicted, for the probe's file. Fitted on an `Embeddings`, the probe
    remembers model and space and refuses others with ProbeError.

    Fitted attributes: `coef_` [T, D] and `intercept_` [T] in the embedding's own scale, `penalty_` (a number, or one
    for each label), `classes_` and `temperature_` (classification), `loo_residuals_` [B] (regression: sorted absolute
    residuals of objects left out, in the label's unit; [T, B] for several labels), `scores_` (of objects left out),
    `solver_` and `diagnosis_`, `num_train_`, `model_id_` and `space_` (None if fitted on an array).
    """

    kind = "linear"
    _error_power = 2.0
    """Of errors of objects left out, by whose mean penalties are compared."""
    coef_: np.ndarray
    intercept_: np.ndarray
    penalty_: Any
    solver_: str | None
    diagnosis_: dict[str, Any] | None
    _scales: list[LocalScale | None]
    _novelty: NoveltyModel | None

    # scikit-learn's contract: the constructor takes anything, `fit` checks it.
    def __init__(
        self,
        task: Any = "regression",
        penalties: Any = PENALTIES,
        folds: Any = 5,
        solver: Any = "auto",
        intervals: Any = "auto",
        label: Any = None,
        unit: Any = None,
    ):
        self.task = task
        self.penalties = penalties
        self.folds = folds
        self.solver = solver
        self.intervals = intervals
        self.label = label
        self.unit = unit

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks to know whether this is a regressor or a classifier."""
        tags = super().__sklearn_tags__()
        is_classifier = self.task == "classification"
        described = type("_Described", (ClassifierMixin if is_classifier else RegressorMixin, BaseEstimator), {})()
        of_task = described.__sklearn_tags__()
        tags.estimator_type = of_task.estimator_type
        tags.classifier_tags, tags.regressor_tags = of_task.classifier_tags, of_task.regressor_tags
        tags.target_tags = of_task.target_tags
        tags.target_tags.multi_output = not is_classifier
        return tags

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Fit to labels `y`: [B], or of several at once [B, T] (regression), all finite. Returns itself.

        With an `Embeddings`, `y` may also be a mapping from object id to label, such as `ObservationDataset.scalars`
        gives; objects without a label are then left out. Raises ValueError on NaN and on lengths that disagree.
        """
        self._check_parameters()
        X, y = labelled(X, y)
        regression = self.task == "regression"
        features, labels = validate_data(
            self, _array(X), y, dtype=np.float64, y_numeric=regression, multi_output=regression, ensure_min_samples=2
        )
        self.model_id_ = X.model_id if isinstance(X, Embeddings) else None
        self.space_ = X.space if isinstance(X, Embeddings) else None
        self.modalities_ = sorted({"+".join(names) for names in X.modalities}) if isinstance(X, Embeddings) else []
        self.num_train_ = len(features)
        if not regression:
            check_classification_targets(labels)
            if len(np.unique(labels)) < 2:
                raise ValueError(f"classification needs at least two classes, found one class: {labels[0]!r}")
        self._novelty = NoveltyModel.fit(features)
        features = self._learn_map(features, labels)
        standardised, centre, scale = standardise(features)
        if regression:
            self._fit_regression(standardised, labels.astype(np.float64))
        else:
            self._fit_classification(standardised, labels)
        self.coef_ = self.coef_ / scale
        self.intercept_ = self.intercept_ - self.coef_ @ centre
        self._scales = [None if local is None else local.rescaled(centre, scale) for local in self._scales]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Values [B] (of several labels [B, T]), or classes [B]."""
        scores = self._scores_of(self._features(X))
        if self.task == "regression":
            return scores[:, 0] if self._is_single else scores
        return self.classes_[scores.argmax(1)]

    @available_if(_is_task("classification"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities [B, classes], in the order of `classes_`."""
        return softmax(self._scores_of(self._features(X)) / self.temperature_, axis=1)

    @available_if(_is_task("classification"))  # type: ignore[untyped-decorator]
    def predict_set(self, X: Any, level: float = 0.9) -> np.ndarray:
        """Which classes [B, classes] may be the true one: the set holds it with probability `level`, and is not empty.

        All classes where the fit had too few objects for the level.
        """
        return class_sets(self.predict_proba(X), self.set_scores_, level)

    @available_if(_is_task("regression"))  # type: ignore[untyped-decorator]
    def predict_interval(self, X: Any, level: float = 0.68) -> np.ndarray:
        """Bounds [B, 2] ([B, T, 2]) that hold the truth with probability `level` for objects like those of the fit.

        Infinite where the fit had too few objects for the level: ceil((n + 1) level) must not exceed n.
        """
        bounds = stack_levels(self._bounds(self._features(X), level))
        return bounds[:, 0] if self._is_single else bounds

    def novelty(self, X: Any) -> np.ndarray | None:
        """For each object the share [B] of training objects that lie as far out; None for files of an old format."""
        given = self._given(X)
        return None if self._novelty is None else self._novelty.p_values(given)

    def is_outside(self, X: Any) -> np.ndarray | None:
        """Whether each object [B] lies outside of the training objects (1 % of objects like them do); see `novelty`."""
        p = self.novelty(X)
        return None if p is None or self._novelty is None else are_outside(len(self._novelty.distances), p)

    def predict_full(self, X: Any, levels: Sequence[float] = LEVELS) -> ProbePrediction:
        """Values with intervals, or classes with probabilities and sets, and whether each object lies outside."""
        value, novelty, outside = self.predict(X), self.novelty(X), self.is_outside(X)
        if self.task == "classification":
            sets = stack_levels([self.predict_set(X, level) for level in levels])
            return ProbePrediction(
                value,
                tuple(levels),
                probabilities=self.predict_proba(X),
                sets=sets,
                novelty=novelty,
                is_outside=outside,
            )
        bounds = stack_levels([self.predict_interval(X, level) for level in levels])
        return ProbePrediction(
            value, tuple(levels), bounds[..., 0, :], bounds[..., 1, :], novelty=novelty, is_outside=outside
        )

    def score(self, X: Any, y: Any) -> float:
        """R2 of the values, or accuracy of the classes."""
        measure = r2_score if self.task == "regression" else accuracy_score
        return float(measure(y, self.predict(X)))

    def _check_parameters(self) -> None:
        for name, known in (("task", TASKS), ("solver", SOLVERS), ("intervals", INTERVALS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {list(known)}, found {getattr(self, name)!r}")
        if not len(self.penalties) or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be positive numbers, found {self.penalties!r}")

    def _fit_regression(self, features: Float[np.ndarray, "B D"], labels: np.ndarray) -> None:
        self._is_single = labels.ndim == 1
        columns = labels[:, None] if self._is_single else labels
        fit, self.solver_, self.diagnosis_ = fit_regression(
            features, columns, self.penalties, self.solver, self.folds, self._error_power
        )
        self.coef_, self.intercept_ = fit.coef, fit.intercept
        self.penalty_ = float(fit.penalty[0]) if self._is_single else fit.penalty
        residuals = np.abs(fit.left_out)
        self._scales = [LocalScale.fit(features, column, self.penalties, self.intervals) for column in residuals.T]
        reach = [
            column if local is None else column / local.left_out
            for local, column in zip(self._scales, residuals.T, strict=True)
        ]
        self._reach = np.sort(np.stack(reach), axis=1)
        in_order = np.sort(residuals.T, axis=1)
        self.loo_residuals_ = in_order[0] if self._is_single else in_order
        spread = np.square(columns - columns.mean(0)).sum()
        self.scores_ = {"mean_absolute_error": float(residuals.mean())} if self._is_single else {}
        if spread > 0:
            self.scores_ = {"r2": float(1 - np.square(residuals).sum() / spread), **self.scores_}

    def _fit_classification(self, features: Float[np.ndarray, "B D"], labels: np.ndarray) -> None:
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        self._scales, self._is_single = [], True
        fit = fit_logistic(features, numbers, self.penalties, self.solver, self.folds)
        self.coef_, self.intercept_, self.penalty_ = fit.coef, fit.intercept, fit.penalty
        self.solver_, self.diagnosis_ = fit.solver, fit.diagnosis
        self.temperature_, self.set_scores_, self.scores_ = 1.0, np.empty(0), {}
        if fit.left_out is not None:
            self.temperature_, self.set_scores_, self.scores_ = calibrate_classes(fit.left_out, numbers)

    def _bounds(self, features: Float[np.ndarray, "B D"], level: float) -> tuple[np.ndarray, np.ndarray]:
        values = self._scores_of(features)
        width = np.array([conformal_reach(scores, level) for scores in self._reach])
        local = [np.ones(len(features)) if scale is None else scale.predict(features) for scale in self._scales]
        reach = width * np.stack(local, axis=1)
        return values - reach, values + reach

    def _learn_map(self, given: Float[np.ndarray, "B D"], labels: np.ndarray) -> Float[np.ndarray, "B R"]:
        """Learn what `_map` does, and do it: the features that the probe is linear in."""
        return given

    def _map(self, given: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B R"]:
        return given

    def _features(self, X: Any) -> Float[np.ndarray, "B R"]:
        return self._map(self._given(X))

    def _given(self, X: Any) -> Float[np.ndarray, "B D"]:
        check_is_fitted(self)
        if isinstance(X, Embeddings):
            self._check_origin(X.model_id, X.space)
        return validate_data(self, _array(X), reset=False, dtype=np.float64)

    def _scores_of(self, features: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B T"]:
        return features @ self.coef_.T + self.intercept_

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"coef": self.coef_, "intercept": self.intercept_}
        if self.task == "regression":
            arrays |= {"loo_residuals": self.loo_residuals_, "reach": self._reach}
            for column, local in enumerate(self._scales):
                if local is not None:
                    arrays |= {f"scale_{column}_{name}": array for name, array in local.arrays().items()}
        else:
            arrays["set_scores"] = self.set_scores_
        return arrays | ({} if self._novelty is None else self._novelty.arrays())

    def _description(self) -> dict[str, Any]:
        penalty = self.penalty_.tolist() if isinstance(self.penalty_, np.ndarray) else self.penalty_
        found: dict[str, Any] = {"penalty": penalty, "solver": self.solver_, "diagnosis": self.diagnosis_}
        if self.task == "classification":
            found |= {"classes": self.classes_.tolist(), "temperature": self.temperature_}
        return found

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.coef_, self.intercept_ = arrays["coef"], arrays["intercept"]
        self.n_features_in_ = self.coef_.shape[1]
        penalty = description["penalty"]
        self.penalty_ = np.array(penalty) if isinstance(penalty, list) else penalty
        self.solver_, self.diagnosis_ = description.get("solver"), description.get("diagnosis")
        self._novelty = NoveltyModel.from_arrays(arrays)
        self._scales, self._is_single = [], True
        if self.task == "regression":
            self.loo_residuals_ = arrays["loo_residuals"]
            self._is_single = self.loo_residuals_.ndim == 1
            self._reach = arrays.get("reach", np.atleast_2d(self.loo_residuals_))
            self._scales = [LocalScale.from_arrays(arrays, f"scale_{t}_") for t in range(len(self._reach))]
        else:
            self.classes_ = np.array(description["classes"])
            self.temperature_ = description.get("temperature", 1.0)
            self.set_scores_ = arrays.get("set_scores", np.empty(0))


def standardise(features: Float[np.ndarray, "B D"]) -> tuple[np.ndarray, np.ndarray, float]:
    """Features centred and of unit mean variance, the centre [D] and the scale."""
    centre = features.mean(0)
    scale = float(np.sqrt(np.mean((features - centre) ** 2))) or 1.0
    return (features - centre) / scale, centre, scale


def labelled(X: Any, y: Any) -> tuple[Any, Any]:
    """Embeddings and labels that belong together, where `y` maps object ids to labels; as they are otherwise.

    Raises ValueError if no object has a label.
    """
    if not isinstance(y, Mapping):
        return X, y
    if not hasattr(X, "object_id"):
        raise ValueError("labels by object id need embeddings that have ids, found an array")
    rows = [row for row, object_id in enumerate(X.object_id) if object_id in y]
    if not rows:
        raise ValueError(
            f"none of {len(X)} objects (the first: {X.object_id[0]!r}) has one of {len(y)} labels"
            if len(X)
            else "expected embeddings of objects, found none"
        )
    return X.rows(rows), np.array([y[X.object_id[row]] for row in rows])


def _array(X: Any) -> Any:
    return X.numpy() if isinstance(X, Embeddings) else X
