"""Linear probes: small supervised heads on frozen embeddings, with scikit-learn's contract.

    probe = LinearProbe().fit(embeddings, redshift)
    redshift, interval = probe.predict(others), probe.predict_interval(others, level=0.68)
    probe.save("redshift_probe")

Regression is ridge regression whose penalty minimises the leave-one-out error in closed form (Golub, Heath and Wahba
1979); the leave-one-out residuals then give conformal intervals (the jackknife of Barber et al. 2021, arXiv
1905.02928). Classification is multinomial logistic regression whose penalty minimises the cross-validated log loss.
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .embeddings import Embeddings

TASKS = ("regression", "classification")
PENALTIES = tuple(10.0**power for power in range(-6, 3))
MAX_ITERATIONS = 2000
FORMAT_VERSION = 1


class ProbeError(ValueError):
    """A probe cannot be used here: other model, other space, other width, or a damaged file."""


def _is_task(task: str) -> Any:
    def check(probe: "LinearProbe") -> bool:
        if probe.task != task:
            raise AttributeError(f"this probe's task is {probe.task}, not {task}")
        return True

    return check


class LinearProbe(BaseEstimator):  # type: ignore[misc]
    """A linear map from embeddings to one number (`task="regression"`) or to classes (`task="classification"`).

    `X` is an `Embeddings` or an array [B, D] of finite numbers. `penalties` are candidates for the L2 penalty per
    object, on embeddings centred and scaled to unit mean variance; `folds` is used by classification alone. Fitted on
    an `Embeddings`, the probe remembers model and space and refuses others with ProbeError.

    Fitted attributes: `coef_` [T, D] and `intercept_` [T] in the embedding's own scale, `penalty_`, `classes_`
    (classification), `loo_residuals_` [B] (regression: sorted absolute leave-one-out residuals, in the label's unit),
    `model_id_` and `space_` (None if fitted on an array).
    """

    coef_: np.ndarray
    intercept_: np.ndarray

    # scikit-learn's contract: the constructor takes anything, `fit` checks it.
    def __init__(self, task: Any = "regression", penalties: Any = PENALTIES, folds: Any = 5):
        self.task = task
        self.penalties = penalties
        self.folds = folds

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks to know whether this is a regressor or a classifier."""
        tags = super().__sklearn_tags__()
        mixin = ClassifierMixin if self.task == "classification" else RegressorMixin
        described = type("_Described", (mixin, BaseEstimator), {})().__sklearn_tags__()
        tags.estimator_type = described.estimator_type
        tags.classifier_tags, tags.regressor_tags = described.classifier_tags, described.regressor_tags
        tags.target_tags = described.target_tags
        return tags

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Fit to labels `y` [B], finite. Returns itself. Raises ValueError on NaN and on lengths that disagree."""
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {list(TASKS)}, found {self.task!r}")
        if not len(self.penalties) or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be positive numbers, found {self.penalties!r}")
        regression = self.task == "regression"
        features, labels = validate_data(
            self, _array(X), y, dtype=np.float64, y_numeric=regression, ensure_min_samples=2
        )
        self.model_id_ = X.model_id if isinstance(X, Embeddings) else None
        self.space_ = X.space if isinstance(X, Embeddings) else None
        centre = features.mean(0)
        scale = float(np.sqrt(np.mean((features - centre) ** 2))) or 1.0
        standardised = (features - centre) / scale
        if regression:
            coef, intercept = self._fit_ridge(standardised, labels.astype(np.float64))
        else:
            coef, intercept = self._fit_logistic(standardised, labels)
        self.coef_ = coef / scale
        self.intercept_ = intercept - self.coef_ @ centre
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Values [B], or classes [B]."""
        scores = self._scores(X)
        if self.task == "regression":
            return scores[:, 0]
        return self.classes_[scores.argmax(1)]

    @available_if(_is_task("classification"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [B, classes], in the order of `classes_`."""
        scores = self._scores(X)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    @available_if(_is_task("regression"))  # type: ignore[untyped-decorator]
    def predict_interval(self, X: Any, level: float = 0.68) -> np.ndarray:
        """Bounds [B, 2] that hold the truth with probability `level` for objects like those of the fit.

        Infinite where the fit had too few objects for the level: ceil((n + 1) level) must not exceed n.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, found {level}")
        value = self.predict(X)
        rank = math.ceil((len(self.loo_residuals_) + 1) * level)
        reach = self.loo_residuals_[rank - 1] if rank <= len(self.loo_residuals_) else math.inf
        return np.stack([value - reach, value + reach], axis=1)

    def score(self, X: Any, y: Any) -> float:
        """R2 of the values, or accuracy of the classes."""
        measure = r2_score if self.task == "regression" else accuracy_score
        return float(measure(y, self.predict(X)))

    def save(self, folder: str | Path) -> None:
        """Write `probe.safetensors` and `probe.json` into a new folder; it appears whole or not at all."""
        check_is_fitted(self)
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder}: there is something already; a probe is saved into a new folder")
        arrays = {"coef": np.ascontiguousarray(self.coef_), "intercept": np.ascontiguousarray(self.intercept_)}
        description: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "penalties": list(self.penalties),
            "folds": self.folds,
            "penalty": self.penalty_,
            "model_id": self.model_id_,
            "space": self.space_,
        }
        if self.task == "regression":
            arrays["loo_residuals"] = self.loo_residuals_
        else:
            description["classes"] = self.classes_.tolist()
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        try:
            save_file(arrays, partial / "probe.safetensors")
            (partial / "probe.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path, model_id: str | None = None) -> "LinearProbe":
        """Read a saved probe. Raises ProbeError if it is damaged, or was fitted on a model other than `model_id`."""
        folder = Path(folder)
        try:
            description = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "probe.safetensors")
            version = description["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version is {version}, this Armillary reads {FORMAT_VERSION}")
            probe = cls(description["task"], tuple(description["penalties"]), description["folds"])
            probe.penalty_, probe.model_id_ = description["penalty"], description["model_id"]
            probe.space_ = description["space"]
            probe.coef_, probe.intercept_ = arrays["coef"], arrays["intercept"]
            probe.n_features_in_ = probe.coef_.shape[1]
            if probe.task == "regression":
                probe.loo_residuals_ = arrays["loo_residuals"]
            else:
                probe.classes_ = np.array(description["classes"])
        except Exception as error:
            # safetensors raises its own type, JSON and missing keys theirs: all mean that this is no whole probe.
            raise ProbeError(f"{folder}: not a saved probe ({type(error).__name__}: {error})") from None
        if model_id is not None and probe.model_id_ != model_id:
            raise ProbeError(f"{folder}: fitted on embeddings of model {probe.model_id_!r}, not of {model_id!r}")
        return probe

    def _fit_ridge(
        self, features: Float[np.ndarray, "B D"], labels: Float[np.ndarray, " B"]
    ) -> tuple[Float[np.ndarray, "1 D"], Float[np.ndarray, " 1"]]:
        count = len(labels)
        ridge = RidgeCV(alphas=count * np.asarray(self.penalties, np.float64), store_cv_results=True)
        ridge.fit(features, labels)
        self.penalty_ = float(ridge.alpha_ / count)
        best = int(np.argmin(np.abs(np.asarray(self.penalties) - self.penalty_)))
        self.loo_residuals_ = np.sort(np.sqrt(ridge.cv_results_[:, best]))
        return ridge.coef_.reshape(1, -1), np.atleast_1d(np.float64(ridge.intercept_))

    def _fit_logistic(
        self, features: Float[np.ndarray, "B D"], labels: np.ndarray
    ) -> tuple[Float[np.ndarray, "T D"], Float[np.ndarray, " T"]]:
        check_classification_targets(labels)
        self.classes_, counts = np.unique(labels, return_counts=True)
        if len(self.classes_) < 2:
            raise ValueError(f"classification needs at least two classes, found one class: {self.classes_[0]!r}")
        self.penalty_ = self._choose_logistic_penalty(features, labels, int(counts.min()))
        # scikit-learn's C multiplies the summed loss; our penalty is one for each object.
        chosen = LogisticRegression(C=1 / (self.penalty_ * len(labels)), max_iter=MAX_ITERATIONS).fit(features, labels)
        if len(self.classes_) == 2:
            # Two classes share one row in scikit-learn; one row for each makes `scores` one thing everywhere.
            return np.concatenate([-chosen.coef_, chosen.coef_]) / 2, np.concatenate(
                [-chosen.intercept_, chosen.intercept_]
            ) / 2
        return chosen.coef_, chosen.intercept_

    def _choose_logistic_penalty(
        self, features: Float[np.ndarray, "B D"], labels: np.ndarray, smallest_class: int
    ) -> float:
        penalties = sorted(self.penalties, reverse=True)
        if len(penalties) == 1 or smallest_class < 2:
            # A class with one member cannot be in both parts of a split: take the middle candidate.
            return float(penalties[len(penalties) // 2])
        folds = StratifiedKFold(min(self.folds, smallest_class), shuffle=True, random_state=0)
        losses = np.zeros(len(penalties))
        for train, test in folds.split(features, labels):
            # From the strongest penalty to the weakest, each fit starts where the last one ended.
            probe = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
            for place, penalty in enumerate(penalties):
                probe.set_params(C=1 / (penalty * len(train))).fit(features[train], labels[train])
                losses[place] += log_loss(labels[test], probe.predict_proba(features[test]), labels=self.classes_)
        return float(penalties[int(losses.argmin())])

    def _scores(self, X: Any) -> Float[np.ndarray, "B T"]:
        check_is_fitted(self)
        if isinstance(X, Embeddings):
            for name, fitted in (("model_id", self.model_id_), ("space", self.space_)):
                given = getattr(X, name)
                if fitted is not None and given != fitted:
                    raise ProbeError(f"this probe was fitted on embeddings of {name} {fitted!r}, not of {given!r}")
        features = validate_data(self, _array(X), reset=False, dtype=np.float64)
        return features @ self.coef_.T + self.intercept_


def _array(X: Any) -> Any:
    return X.numpy() if isinstance(X, Embeddings) else X
