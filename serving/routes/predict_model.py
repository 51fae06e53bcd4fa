"""Method `model` of /v1/predict: the masked model's distribution of a scalar, for one object or for several at once."""

from collections.abc import Sequence
from typing import Any

from ...data.observations import ObservationError
from ...models.conformal import LEVELS
from ...models.foundation import ScalarPrediction
from ..formats import bodies
from ..problems import ProblemError, at
from ..query_items import Item, no_observations
from ..schemas.common import PredictRequest
from ..service import Service

Told = dict[str, Any]


def model_of_one(service: Service, asked: PredictRequest) -> Told:
    """What the model predicts of the observations of one object. Raises ProblemError."""
    if asked.observations is None:
        detail = "the model predicts from observations; found none"
        raise ProblemError("invalid-request", f"/observations: {detail}", [at("/observations", detail)])
    known = service.known_modalities()
    given = bodies.observations_of({"observations": asked.observations}, (), known, service.limits)
    predicted = service.predict_scalar(given, asked.property)
    distribution = bins_of(predicted) | {"probability": _probability(predicted)}
    return _told(predicted) | {"unit": predicted.modality.unit, "distribution": distribution}


def model_of_many(
    service: Service, asked: PredictRequest, items: Sequence[Item]
) -> tuple[list[Told | ProblemError], ScalarPrediction | None]:
    """What the model predicts of each item, or why nothing; and a distribution whose bins are those of all."""
    given = {number: item for number, item in enumerate(items) if isinstance(item, list)}
    found = service.predict_scalars(given, asked.property)
    results: list[Told | ProblemError] = []
    for number, item in enumerate(items):
        one = found.get(number)
        if isinstance(item, ProblemError):
            results.append(item)
        elif one is None:
            results.append(no_observations(number, "the model predicts from observations"))
        elif isinstance(one, ObservationError):
            where = f"/input/{number}"
            results.append(ProblemError("invalid-observation", f"{where}: {one}", [at(where, str(one))]))
        else:
            name = given[number][0].object_id[0]
            object_id = None if name == bodies.UNNAMED else name
            results.append({"object_id": object_id, **_told(one), "probability": _probability(one)})
    return results, next((one for one in found.values() if isinstance(one, ScalarPrediction)), None)


def bins_of(predicted: ScalarPrediction) -> dict[str, list[float]]:
    """The bounds of the bins, in the scalar's unit."""
    return {"low": predicted.low.tolist(), "high": predicted.high.tolist()}


def _probability(predicted: ScalarPrediction) -> list[float]:
    found: list[float] = predicted.probabilities[0].tolist()
    return found


def _told(predicted: ScalarPrediction) -> Told:
    bounds = [(level, *predicted.interval(level)) for level in LEVELS]
    return {
        "value": float(predicted.median()[0]),
        "intervals": [{"level": level, "lower": float(low[0]), "upper": float(high[0])} for level, low, high in bounds],
        "calibrated": False,
    }
