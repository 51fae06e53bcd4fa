"""How well labels are told from each subset of modalities, beside trivial predictors on the same objects.

Of each subset: zero-shot, whose space and gallery (`galleries`) are chosen on validation objects as k and temperature
are; a linear probe, whose space is chosen likewise; and, where the model was trained to predict the label, its own
distribution. Values, intervals and strata are all of test objects.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ..models.foundation import FoundationModel
from ..models.neighbour_prediction import safest
from ..models.probes import LinearProbe
from .baselines import (
    Predicted,
    magnitudes_and_colours,
    predict_constant,
    predict_line,
    predict_with_probe,
    predict_with_trees,
)
from .objects import EvaluationObjects, Subset
from .scores import LEVELS, Bounds, score_intervals, score_values, strata_of
from .settings import REDSHIFT
from .vectors import VectorStore
from .zero_shot import Gallery, ZeroShot

ZERO_SHOT, PROBE, OWN = "zero-shot", "linear probe", "model's distribution"
CONSTANT, LINE, TREES = "constant", "line on magnitudes", "trees on magnitudes"


class Accuracy:
    """Measures subsets one by one, and the baselines."""

    def __init__(self, objects: EvaluationObjects, vectors: VectorStore):
        self.objects = objects
        self.vectors = vectors
        self.settings = objects.settings

    def baselines(self) -> dict[str, Any]:
        """Scores of the trivial predictors, by label and method."""
        features = {part: magnitudes_and_colours(self.objects.magnitudes(part)) for part in self.objects.ids}
        answer = {}
        for label in self.settings.labels:
            truth = {part: self.objects.label(label, part) for part in self.objects.ids}
            known = {part: np.isfinite(values) for part, values in truth.items()}
            train, test = truth["train"][known["train"]], truth["test"]
            of_train = features["train"][known["train"]]
            predicted = {
                CONSTANT: predict_constant(train, len(test)),
                LINE: predict_line(of_train, train, features["test"]),
                TREES: predict_with_trees(
                    of_train,
                    train,
                    features["validation"][known["validation"]],
                    truth["validation"][known["validation"]],
                    features["test"],
                ),
            }
            answer[label] = {name: self.scored(label, *found) for name, found in predicted.items()}
        return answer

    def subset(self, subset: Subset) -> dict[str, Any]:
        """Scores from one subset, by label and method."""
        answer = {}
        for label in self.settings.labels:
            zero_shot, chosen = self.zero_shot(subset, label)
            probe, space = self.probe(subset, label)
            answer[label] = {
                ZERO_SHOT: self.scored(label, *zero_shot) | {"chosen": chosen},
                PROBE: self.scored(label, *probe) | {"chosen": {"space": space}},
            }
            own = self.own_distribution(subset, label)
            if own is not None:
                answer[label][OWN] = own
        return answer

    def zero_shot(self, subset: Subset, label: str) -> tuple[Predicted, dict[str, Any]]:
        """Test predictions by neighbours, and what validation objects chose."""
        ids, objects = self.objects.ids, self.objects
        truth = objects.label(label, "validation")
        tried: list[tuple[ZeroShot, dict[str, Any]]] = []
        errors = []
        for space, gallery in galleries(objects, self.vectors, subset):
            of_train = self.vectors.together(gallery, space, ids["train"])
            fitted = ZeroShot.fit(
                Gallery.of(of_train, objects.label(label, "train"), space),
                self.vectors.get(subset, space, ids["validation"]),
                truth,
                label,
            )
            value, _ = fitted.predict(self.vectors.get(subset, space, ids["validation"]))
            errors.append(np.square(value - truth)[np.isfinite(truth)])
            configuration = {
                "space": space,
                "gallery": [part.name for part in gallery],
                "k": fitted.predictor.k,
                "temperature": fitted.predictor.temperature,
            }
            tried.append((fitted, configuration))
        best, chosen = tried[safest(np.stack(errors), [len(configuration["gallery"]) for _, configuration in tried])]
        return best.predict(self.vectors.get(subset, chosen["space"], ids["test"])), chosen

    def probe(self, subset: Subset, label: str) -> tuple[Predicted, str]:
        """Test predictions of the linear probe, and the space that validation objects chose."""
        train, truth = (self.objects.label(label, part) for part in ("train", "validation"))
        known, usable = np.isfinite(train), np.isfinite(truth)
        tried = []
        for space in self.vectors.spaces(subset):
            vectors = {part: self.vectors.get(subset, space, ids) for part, ids in self.objects.ids.items()}
            fitted = LinearProbe().fit(vectors["train"][known], train[known])
            error = float(np.square(fitted.predict(vectors["validation"][usable]) - truth[usable]).mean())
            tried.append((error, space, fitted, vectors["test"]))
        _, space, fitted, test = min(tried, key=lambda entry: entry[0])
        return predict_with_probe(fitted, test), space

    def own_distribution(self, subset: Subset, label: str) -> dict[str, Any] | None:
        """Scores of the distribution that the model itself predicts; None where it was not trained on the label."""
        model, count = self.vectors.model, self.settings.num_distributions
        if not count or label not in {m.name for m in model.modalities}:
            return None
        truth = self.objects.label(label, "test")
        rows = np.flatnonzero(np.isfinite(truth))[:count]
        value, bounds = own_prediction(
            model, self.vectors, subset, [self.objects.ids["test"][row] for row in rows], label
        )
        return self.scored(label, value, bounds, rows)

    def scored(
        self, label: str, value: Float[np.ndarray, " B"], bounds: Bounds, rows: np.ndarray | None = None
    ) -> dict[str, Any]:
        """All scores of predictions for the test objects, or these `rows` of them."""
        return score_predictions(self.objects, label, value, bounds, rows)


def galleries(objects: EvaluationObjects, vectors: VectorStore, subset: Subset) -> list[tuple[str, list[Subset]]]:
    """Spaces, and by which vectors labelled objects may be found there: those of the subset itself; in the aligned
    space also those of any one survey, or of all surveys together, for of labelled objects more may be known."""
    found = [(space, [subset]) for space in vectors.spaces(subset)]
    if "aligned" in vectors.spaces(subset):
        surveys = [Subset(name, (name,)) for name in objects.surveys]
        surveys = [survey for survey in surveys if "aligned" in vectors.spaces(survey)]
        found += [("aligned", [survey]) for survey in surveys if survey.name != subset.name]
        found += [("aligned", surveys)] if len(surveys) > 1 else []
    return found


def own_prediction(
    model: FoundationModel, vectors: VectorStore, subset: Subset, ids: list[str], label: str
) -> Predicted:
    """Medians and central intervals of the distribution that the model predicts from stored tokens."""
    prediction = model.predict_scalar_grids(vectors.grids(subset, ids), label, vectors.batch_size)
    order = {object_id: row for row, object_id in enumerate(prediction.object_id)}
    back = [order[i] for i in ids]
    bounds = {}
    for level in LEVELS:
        low, high = prediction.interval(level)
        bounds[level] = (low.double().numpy()[back], high.double().numpy()[back])
    return prediction.median().double().numpy()[back], bounds


def score_predictions(
    objects: EvaluationObjects,
    label: str,
    value: Float[np.ndarray, " B"],
    bounds: Bounds,
    rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores, strata of magnitude and redshift, calibration and the values themselves, of test objects with a label.

    `value` and `bounds` are of all test objects, or of those in `rows`.
    """
    settings = objects.settings
    every = np.arange(len(objects.ids["test"])) if rows is None else rows
    truth = objects.label(label, "test")[every]
    known = np.flatnonzero(np.isfinite(truth))
    truth, value, every = truth[known], value[known], every[known]
    bounds = {level: (low[known], high[known]) for level, (low, high) in bounds.items()}
    is_redshift = label == REDSHIFT
    answer = score_values(value, truth, settings.num_bootstrap, is_redshift=is_redshift)
    answer["calibration"] = score_intervals(bounds, truth, settings.num_bootstrap)
    cuts: dict[str, Mapping[str, Any] | list[Any]] = {}
    names = {"magnitude": settings.magnitude, "redshift": REDSHIFT}
    for name, scalar in names.items():
        if scalar not in objects.names:
            continue
        strata = strata_of(objects.label(scalar, "test")[every], settings.num_strata)
        cuts[name] = [
            {"range": text}
            | score_values(value[of], truth[of], min(200, settings.num_bootstrap), is_redshift=is_redshift)
            | {"coverage_90": float(((bounds[0.9][0][of] <= truth[of]) & (truth[of] <= bounds[0.9][1][of])).mean())}
            for text, of in strata
        ]
    answer["strata"] = cuts
    answer["predicted"] = [float(f"{number:.6g}") for number in value]
    answer["rows"] = every.tolist()
    return answer
