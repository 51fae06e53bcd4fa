"""Attentive probes: a small trained pooling of an object's frozen token vectors, where a mean loses too much.

    probe = AttentiveProbe(label="scalar/redshift").fit(model.embed_tokens(observations), redshift)
    found = probe.predict_full(model.embed_tokens(others))

The labels are dealt into folds. Each member of the probe trains on all folds but one, which says when to stop, and
whose errors calibrate what the probe says of itself (cross-conformal prediction; Vovk 2015, arXiv 1208.0806): intervals
lie around the mean of the members, as far out as errors over predicted scales reach. Files are as of linear probes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .attentive_network import (
    AttentiveNetwork,
    TrainingSettings,
    ValueWithScale,
    cross_entropy,
    outputs_of,
    train_network,
    value_error,
    value_loss,
)
from .conformal import (
    LEVELS,
    ProbePrediction,
    calibrate_classes,
    class_sets,
    conformal_reach,
    stack_levels,
)
from .novelty import NoveltyModel, are_outside
from .probe_files import SavedProbe
from .probes import TASKS, labelled
from .token_embeddings import TokenEmbeddings, layers_of

FEWEST = 20
"""Labels below which nothing is to be trained and calibrated at once."""


class AttentiveProbe(SavedProbe, BaseEstimator):  # type: ignore[misc]
    """Learned queries over token vectors, to one number (`task="regression"`) or to classes (`task="classification"`).

    `X` is a `TokenEmbeddings`, or an array [B, N, D] whose tokens are all valid. `members` networks of `width`, with
    `num_queries` queries of `num_heads` heads each, are trained for at most `epochs`, until the fold left out is not
    told better for `patience` of them. `label` and `unit` name what is predicted. Equal seeds give equal probes.

    Fitted attributes: `epochs_` (of each member), `scores_` (of objects left out), `reach_` (regression: sorted errors
    over scales), `classes_`, `temperature_` and `set_scores_` (classification), `num_train_`, `model_id_`, `space_`.
    """

    kind = "attentive"

    def __init__(
        self,
        task: Any = "regression",
        width: Any = 64,
        num_queries: Any = 4,
        num_heads: Any = 4,
        dropout: Any = 0.1,
        members: Any = 5,
        epochs: Any = 60,
        patience: Any = 12,
        batch_size: Any = 128,
        learning_rate: Any = 3e-3,
        weight_decay: Any = 0.05,
        seed: Any = 0,
        label: Any = None,
        unit: Any = None,
    ):
        self.task = task
        self.width = width
        self.num_queries = num_queries
        self.num_heads = num_heads
        self.dropout = dropout
        self.members = members
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.seed = seed
        self.label = label
        self.unit = unit

    @property
    def layers_(self) -> tuple[int, ...]:
        """What `FoundationModel.embed_tokens` is to be asked for."""
        return layers_of(self.space_)

    def fit(self, X: Any, y: Any) -> "AttentiveProbe":
        """Fit to labels `y` [B], or a mapping from object id to label. Returns itself.

        Raises ValueError for labels that are not finite or too few, and for sizes that do not fit.
        """
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {list(TASKS)}, found {self.task!r}")
        if self.members < 2 or self.width % self.num_heads:
            raise ValueError(
                "expected at least 2 members, and a width that is a multiple of num_heads; found "
                f"{self.members} members, width {self.width} and {self.num_heads} heads"
            )
        X, y = labelled(X, y)
        vectors, mask = _tokens(X)
        labels = np.asarray(y)
        if labels.shape != (len(vectors),) or len(labels) < FEWEST:
            raise ValueError(
                f"expected one label for each of {len(vectors)} objects, and at least {FEWEST}; found labels of shape "
                f"{list(labels.shape)}"
            )
        known = isinstance(X, TokenEmbeddings)
        self.model_id_, self.space_ = (X.model_id, X.space) if known else (None, None)
        self.modalities_ = sorted({"+".join(names) for names in X.modalities}) if known else []
        self.num_train_, self.n_features_in_ = len(labels), vectors.shape[2]
        if self.task == "regression":
            self._fit_regression(vectors, mask, labels)
        else:
            self._fit_classification(vectors, mask, labels)
        self._novelty = NoveltyModel.fit(_pooled(vectors, mask))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Values [B] in the label's unit, or classes [B]."""
        mean = self._outputs(X).mean(0)
        return self._values(mean)[0] if self.task == "regression" else self.classes_[mean.argmax(1)]

    def predict_interval(self, X: Any, level: float = 0.68) -> np.ndarray:
        """Bounds [B, 2] that hold the truth with probability `level`; infinite where the fit had too few objects."""
        self._check_task("regression", "intervals")
        value, scale = self._values(self._outputs(X).mean(0))
        reach = conformal_reach(self.reach_, level) * scale
        return np.stack([value - reach, value + reach], axis=1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities [B, classes], in the order of `classes_`."""
        self._check_task("classification", "probabilities")
        return softmax(self._outputs(X).mean(0) / self.temperature_, axis=1)

    def predict_set(self, X: Any, level: float = 0.9) -> np.ndarray:
        """Which classes [B, classes] may be the true one: a set, never empty, holds it with probability `level`."""
        return class_sets(self.predict_proba(X), self.set_scores_, level)

    def novelty(self, X: Any) -> np.ndarray:
        """For each object the share [B] of training objects whose mean vector lies as far out."""
        check_is_fitted(self)
        return self._novelty.p_values(_pooled(*self._checked(X)))

    def is_outside(self, X: Any) -> np.ndarray | None:
        """Whether each object [B] lies outside of the training objects (1 % of objects like them do)."""
        return are_outside(len(self._novelty.distances), self.novelty(X))

    def predict_full(self, X: Any, levels: Sequence[float] = LEVELS) -> ProbePrediction:
        """Values with intervals, or classes with probabilities and sets, and whether each object lies outside."""
        mean, novelty = self._outputs(X).mean(0), self.novelty(X)
        outside = are_outside(len(self._novelty.distances), novelty)
        if self.task == "regression":
            value, scale = self._values(mean)
            reach = stack_levels([conformal_reach(self.reach_, level) * scale for level in levels])
            lower, upper = value[:, None] - reach, value[:, None] + reach
            return ProbePrediction(value, tuple(levels), lower, upper, novelty=novelty, is_outside=outside)
        probabilities = softmax(mean / self.temperature_, axis=1)
        sets = stack_levels([class_sets(probabilities, self.set_scores_, level) for level in levels])
        classes = self.classes_[mean.argmax(1)]
        return ProbePrediction(
            classes, tuple(levels), probabilities=probabilities, sets=sets, novelty=novelty, is_outside=outside
        )

    def score(self, X: Any, y: Any) -> float:
        """R2 of the values, or accuracy of the classes."""
        return float((r2_score if self.task == "regression" else accuracy_score)(y, self.predict(X)))

    def _fit_regression(self, vectors: Tensor, mask: Tensor, labels: np.ndarray) -> None:
        values = labels.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"labels must be finite; label {int((~np.isfinite(values)).argmax())} is not")
        self._centre, self._spread = float(np.median(values)), float(values.std()) or 1.0
        scaled = torch.from_numpy((values - self._centre) / self._spread).float()
        splits = KFold(self.members, shuffle=True, random_state=self.seed).split(values)
        left_out = self._train(vectors, mask, scaled, splits, value_loss, value_error)
        value, scale = self._values(left_out)
        error = np.abs(values - value)
        self.reach_ = np.sort(error / scale)
        total = np.square(values - values.mean()).sum()
        self.scores_ = {"mean_absolute_error": float(error.mean())}
        if total > 0:
            self.scores_ = {"r2": float(1 - np.square(error).sum() / total), **self.scores_}

    def _fit_classification(self, vectors: Tensor, mask: Tensor, labels: np.ndarray) -> None:
        self.classes_, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2 or counts.min() < self.members:
            raise ValueError(
                f"expected at least two classes of at least {self.members} objects each (one for each member), found "
                f"{dict(zip(self.classes_.tolist(), counts.tolist(), strict=True))}"
            )
        splits = StratifiedKFold(self.members, shuffle=True, random_state=self.seed).split(numbers, numbers)
        left_out = self._train(vectors, mask, torch.from_numpy(numbers), splits, cross_entropy, cross_entropy)
        self.temperature_, self.set_scores_, self.scores_ = calibrate_classes(left_out, numbers)

    def _train(
        self, vectors: Tensor, mask: Tensor, labels: Tensor, splits: Any, loss: Any, watched: Any
    ) -> Float[np.ndarray, "B O"]:
        """Train the members; what each says of the fold that it did not learn from."""
        self._networks, self.epochs_ = [], []
        left_out = np.empty((len(labels), self._num_outputs()))
        settings = TrainingSettings(
            self.epochs, self.batch_size, self.learning_rate, self.weight_decay, self.patience, self.seed
        )
        for member, (train, stop) in enumerate(splits):
            rows, others = torch.from_numpy(train), torch.from_numpy(stop)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed + member)
                network = self._new_network()
                network.standardise_by(vectors[rows], mask[rows])
                self.epochs_.append(
                    train_network(network, vectors, mask, labels, rows, others, loss, watched, settings)
                )
            left_out[stop] = outputs_of(network, vectors[others], mask[others]).double().numpy()
            self._networks.append(network)
        return left_out

    def _num_outputs(self) -> int:
        return 2 if self.task == "regression" else len(self.classes_)

    def _new_network(self) -> AttentiveNetwork:
        sizes = (self.n_features_in_, self.width, self.num_queries, self.num_heads)
        if self.task == "regression":
            return ValueWithScale(*sizes, dropout=self.dropout)
        return AttentiveNetwork(*sizes, num_outputs=len(self.classes_), dropout=self.dropout)

    def _values(self, outputs: Float[np.ndarray, "B 2"]) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
        """Values and scales in the label's unit."""
        return outputs[:, 0] * self._spread + self._centre, np.exp(outputs[:, 1]) * self._spread

    def _outputs(self, X: Any) -> Float[np.ndarray, "M B O"]:
        check_is_fitted(self)
        vectors, mask = self._checked(X)
        return np.stack([outputs_of(network, vectors, mask).double().numpy() for network in self._networks])

    def _checked(self, X: Any) -> tuple[Tensor, Tensor]:
        if isinstance(X, TokenEmbeddings):
            self._check_origin(X.model_id, X.space)
        vectors, mask = _tokens(X)
        if vectors.shape[2] != self.n_features_in_:
            raise ValueError(f"expected token vectors of width {self.n_features_in_}, found {vectors.shape[2]}")
        return vectors, mask

    def _check_task(self, task: str, what: str) -> None:
        if self.task != task:
            raise AttributeError(f"{what} are of {task}; this probe's task is {self.task}")

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            f"member_{member}_{name}": tensor.numpy()
            for member, network in enumerate(self._networks)
            for name, tensor in network.state_dict().items()
        }
        own = {"reach": self.reach_} if self.task == "regression" else {"set_scores": self.set_scores_}
        return {**arrays, **own, **self._novelty.arrays()}

    def _description(self) -> dict[str, Any]:
        found: dict[str, Any] = {"input_width": self.n_features_in_, "epochs": self.epochs_}
        if self.task == "regression":
            return found | {"centre": self._centre, "spread": self._spread}
        return found | {"classes": self.classes_.tolist(), "temperature": self.temperature_}

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.n_features_in_, self.epochs_ = description["input_width"], description["epochs"]
        if self.task == "regression":
            self._centre, self._spread = description["centre"], description["spread"]
            self.reach_ = arrays["reach"]
        else:
            self.classes_ = np.array(description["classes"])
            self.temperature_, self.set_scores_ = description["temperature"], arrays["set_scores"]
        novelty = NoveltyModel.from_arrays(arrays)
        if novelty is None:
            raise ValueError("it has no training distances")
        self._novelty, self._networks = novelty, []
        for member in range(self.members):
            prefix = f"member_{member}_"
            # Sizes that a file claims take no memory; its arrays must then have them.
            with torch.device("meta"):
                network = self._new_network()
            network.load_state_dict(
                {
                    name.removeprefix(prefix): torch.from_numpy(a.copy())
                    for name, a in arrays.items()
                    if name.startswith(prefix)
                },
                assign=True,
            )
            self._networks.append(network.eval())


def _tokens(X: Any) -> tuple[Float[Tensor, "B N D"], Tensor]:
    if isinstance(X, TokenEmbeddings):
        return X.vectors.float().cpu(), X.mask.cpu()
    array = np.asarray(X, np.float32)
    if array.ndim != 3:
        raise ValueError(f"expected token vectors [objects, tokens, width], found shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("token vectors must be finite; found NaN or infinity")
    return torch.from_numpy(array), torch.ones(array.shape[:2], dtype=torch.bool)


def _pooled(vectors: Tensor, mask: Tensor) -> Float[np.ndarray, "B D"]:
    weights = mask[..., None].double()
    return ((vectors.double() * weights).sum(1) / weights.sum(1)).numpy()
