"""`POST /v1/predict`: the value of a property, from labelled neighbours, the masked model's distribution or a probe."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...data.modalities import MODALITIES
from ...models.conformal import LEVELS
from ...models.neighbour_prediction import NeighbourPredictionError, NeighbourPredictor
from ..formats import bodies
from ..index.labelled_neighbours import labelled_neighbours, predictor_for
from ..probes.answers import from_probe
from ..problems import ProblemError, at, not_found, pointer
from ..schemas.common import PredictAnswer, PredictRequest
from ..service import Service
from .documentation import answers, json_body
from .search_queries import (
    NEIGHBOUR_EXAMPLE,
    PROVENANCE_EXAMPLE,
    check_k,
    check_target,
    cone_of,
    excluded_objects,
    neighbour_body,
    wrong_vectors,
)

_PREDICTION = {
    "method": "neighbours",
    "property": "scalar/redshift",
    "value": 0.21,
    "unit": "dimensionless",
    "intervals": [{"level": 0.68, "lower": 0.19, "upper": 0.23}],
    "calibrated": True,
    "k": 1,
    "neighbours": [NEIGHBOUR_EXAMPLE | {"labels": None, "label": 0.21, "weight": 1.0}],
    "distribution": None,
    "classes": None,
    "novelty": 0.46,
    "is_outside": False,
    "provenance": PROVENANCE_EXAMPLE,
}
_REQUESTS = {
    "redshift of an object": {"property": "scalar/redshift", "object_id": "39633345008634465"},
    "redshift of an image, by the model": {
        "property": "scalar/redshift",
        "method": "model",
        "observations": [{"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}],
    },
    "redshift of an image, by a probe": {
        "property": "scalar/redshift",
        "method": "probe",
        "observations": [{"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}],
    },
}
_UNITS = {modality.name: modality.unit for modality in MODALITIES}
_OF_NEIGHBOURS_ALONE = ("vector", "object_id", "modality", "target_modality", "cone", "exclude", "exact", "k")


def predict_routes(service: Service) -> APIRouter:
    """The one route of prediction."""
    router = APIRouter(tags=["search"])

    @router.post(
        "/v1/predict",
        summary="The value of a property, from the labels of the nearest neighbours, by the masked model or by a probe",
        responses=answers(PredictAnswer, _PREDICTION, 404, 409, 413, 415, 422, 503),
        openapi_extra=json_body(PredictRequest, _REQUESTS),
    )
    async def predict(request: Request) -> JSONResponse:
        """`method` `neighbours`, the default, trains no head: the answer shows its neighbours, labels and weights.

        `calibrated` tells whether the intervals were calibrated on held-out objects that were asked about in the same
        way: by the same modality, with the same `k` and `target_modality`, without a cone.

        `method` `model` takes `observations` and asks the masked model for its distribution of the property: `value`
        is the median, `intervals` are central, `distribution` has the bounds and the probability of each bin (the two
        outer bins, for what lies beyond the range, have no width). They are as the model gives them, not calibrated.
        Observations of the property itself are not used.

        `method` `probe` asks the probe that the server was started with for this label: `intervals` are conformal, and
        `calibrated` tells whether the probe was fitted on the same modalities; where the label is a class, `classes`
        has the probabilities. It takes `observations`, or what an index of the probe's space holds.

        `is_outside` says that the object is unlike those known, so that neither value nor interval is to be relied on.
        """
        _, body = await bodies.read_body(request, service.limits)

        def work() -> JSONResponse:
            asked = bodies.parse_json(PredictRequest, body)
            if asked.method == "probe":
                return from_probe(service, asked)
            return _by_model(service, asked) if asked.method == "model" else _from_neighbours(service, asked)

        return await service.in_worker(work)

    return router


def _from_neighbours(service: Service, asked: PredictRequest) -> JSONResponse:
    index, predictors = service.searchable()
    if asked.property not in index.manifest.labels:
        raise not_found("property", asked.property, index.manifest.labels)
    if asked.k is not None:
        check_k(service, asked.k)
    query = service.query(asked, index)
    predictor = predictor_for(predictors, asked.property, query.modalities)
    target = asked.target_modality or predictor.target_modality
    k = predictor.k if asked.k is None else asked.k
    check_k(service, k)
    check_target(index, target)
    with service.metrics.timed("search"), wrong_vectors():
        found, labels = labelled_neighbours(
            index,
            query.vector,
            asked.property,
            k,
            target_modality=target,
            exclude=excluded_objects(asked, query.object_id),
            cone=cone_of(asked),
            exact=asked.exact,
        )
    same_way = k == predictor.k and target == predictor.target_modality and asked.cone is None
    calibrated = predictor.num_calibration > 0 and same_way
    if not calibrated:
        predictor = NeighbourPredictor(asked.property, k, predictor.temperature)
    try:
        predicted = predictor.predict(found.similarity, labels)
    except NeighbourPredictionError as error:
        raise ProblemError("no-labels", str(error), [at("/property", str(error))]) from None
    neighbours = [
        neighbour_body(index, found, place, False)
        | {"label": float(labels[0, place]), "weight": float(predicted.weights[0, place])}
        for place in range(found.row.shape[1])
    ]
    return JSONResponse(
        {
            "method": "neighbours",
            "property": asked.property,
            "value": float(predicted.value[0]),
            "unit": _UNITS.get(asked.property),
            "intervals": [
                {"level": level, "lower": float(low), "upper": float(high)}
                for level, low, high in zip(predicted.levels, predicted.lower[0], predicted.upper[0], strict=True)
            ],
            "calibrated": calibrated,
            "k": k,
            "neighbours": neighbours,
            "distribution": None,
            "classes": None,
            "novelty": None if predicted.novelty is None else float(predicted.novelty[0]),
            "is_outside": None if predicted.is_outside is None else bool(predicted.is_outside[0]),
            "provenance": service.provenance(index.manifest.space, index).model_dump(),
        }
    )


def _by_model(service: Service, asked: PredictRequest) -> JSONResponse:
    default = PredictRequest(property=asked.property)
    for name in _OF_NEIGHBOURS_ALONE:
        if getattr(asked, name) != getattr(default, name):
            detail = "goes with method 'neighbours' alone; the model predicts from observations"
            raise ProblemError("invalid-request", f"/{name}: {detail}", [at(pointer(name), detail)])
    if asked.observations is None:
        detail = "the model predicts from observations; found none"
        raise ProblemError("invalid-request", f"/observations: {detail}", [at("/observations", detail)])
    known = service.known_modalities()
    given = bodies.observations_of({"observations": asked.observations}, (), known, service.limits)
    predicted = service.predict_scalar(given, asked.property)
    bounds = [(level, *predicted.interval(level)) for level in LEVELS]
    return JSONResponse(
        {
            "method": "model",
            "property": asked.property,
            "value": float(predicted.median()[0]),
            "unit": predicted.modality.unit,
            "intervals": [
                {"level": level, "lower": float(low[0]), "upper": float(high[0])} for level, low, high in bounds
            ],
            "calibrated": False,
            "k": None,
            "neighbours": [],
            "distribution": {
                "low": predicted.low.tolist(),
                "high": predicted.high.tolist(),
                "probability": predicted.probabilities[0].tolist(),
            },
            "classes": None,
            "novelty": None,
            "is_outside": None,
            "provenance": {"model_id": service.model.model_id, "index_id": None, "space": None, "metric": None},
        }
    )
