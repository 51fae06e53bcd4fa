"""`POST /v1/predict`: the value of a property, from labelled neighbours, the masked model's distribution or a probe.

Of one object, or of several in one request: these go through the model and the index together, and fail alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...data.modalities import MODALITIES
from ..formats import bodies
from ..formats.raw_bodies import RAW_TYPES, read_objects
from ..probes.answers import items_provenance, probe_answer, probe_of_label, probe_results
from ..problems import ProblemError, at, joined, pointer
from ..query_items import Item, read_items
from ..schemas.common import PredictAnswer, PredictRequest
from ..schemas.predictions import PredictionList
from ..service import Service
from .documentation import answers, json_body
from .predict_model import bins_of, model_of_many, model_of_one
from .predict_neighbours import neighbours_of_many, neighbours_of_one
from .raw_documentation import MEASUREMENT_PARAMETERS, query_parameters, raw_bodies
from .search_queries import NEIGHBOUR_EXAMPLE, PROVENANCE_EXAMPLE

_PREDICTION = {
    "method": "neighbours",
    "property": "scalar/redshift",
    "value": 0.21,
    "unit": "dimensionless",
    "intervals": [{"level": 0.68, "lower": 0.19, "upper": 0.23}],
    "calibrated": True,
    "k": 1,
    "gallery": "rows",
    "neighbours": [NEIGHBOUR_EXAMPLE | {"labels": None, "label": 0.21, "weight": 1.0}],
    "distribution": None,
    "classes": None,
    "novelty": 0.46,
    "is_outside": False,
    "provenance": PROVENANCE_EXAMPLE,
}
_IMAGE = {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}
_REQUESTS = {
    "redshift of an object": {"property": "scalar/redshift", "object_id": "39633345008634465"},
    "redshifts of several objects": {
        "property": "scalar/redshift",
        "input": [{"object_id": "39633345008634465"}, _IMAGE],
    },
    "redshift of an image, by the model": {
        "property": "scalar/redshift",
        "method": "model",
        "observations": [_IMAGE],
    },
    "redshift of an image, by a probe": {"property": "scalar/redshift", "method": "probe", "observations": [_IMAGE]},
}
_PARAMETERS = query_parameters(
    ("property", "string", "Needed with a body that is not JSON, as all that follows goes with one"),
    ("method", "string", "`neighbours`, `model` or `probe`"),
    ("k", "integer", "Neighbours"),
    ("target_modality", "string", "Only neighbours of this modality"),
    ("exclude_self", "boolean", "Leave out the object that is asked about"),
    ("exact", "boolean", "Compare every vector of a large index too"),
)
_UNITS = {modality.name: modality.unit for modality in MODALITIES}
_OF_ONE_OBJECT = ("vector", "object_id", "modality", "observations")
_OF_NEIGHBOURS_ALONE = ("target_modality", "cone", "exclude", "exact", "k")
_NOT_OF_THE_MODEL = ("vector", "object_id", "modality")
_NO_ANSWER: dict[str, Any] = {
    "k": None,
    "gallery": None,
    "neighbours": [],
    "classes": None,
    "novelty": None,
    "is_outside": None,
}


def predict_routes(service: Service) -> APIRouter:
    """The one route of prediction."""
    router = APIRouter(tags=["search"])

    @router.post(
        "/v1/predict",
        summary="The value of a property, from the labels of the nearest neighbours, by the masked model or by a probe",
        responses=answers(PredictAnswer | PredictionList, _PREDICTION, 400, 404, 409, 413, 415, 422, 503),
        openapi_extra={
            **json_body(PredictRequest, _REQUESTS, raw_bodies("property=scalar/redshift")),
            "parameters": [*_PARAMETERS, *MEASUREMENT_PARAMETERS],
        },
    )
    async def predict(request: Request) -> JSONResponse:
        """`method` `neighbours`, the default, trains no head: the answer shows its neighbours, labels and weights.

        `calibrated` tells whether the intervals were calibrated on held-out objects that were asked about in the same
        way: by the same modality, with the same `k` and `target_modality`, without a cone. `gallery` tells by what the
        neighbours were found, as validation objects have chosen when the index was built: by the most similar vector
        of each (`rows`), or by the mean of its vectors over all surveys (`objects`).

        `method` `model` takes `observations` and asks the masked model for its distribution of the property: `value`
        is the median, `intervals` are central, `distribution` has the bounds and the probability of each bin (the two
        outer bins, for what lies beyond the range, have no width). They are as the model gives them, not calibrated.
        Observations of the property itself are not used.

        `method` `probe` asks the probe that the server was started with for this label: `intervals` are conformal, and
        `calibrated` tells whether the probe was fitted on the same modalities; where the label is a class, `classes`
        has the probabilities. It takes `observations`, or what an index of the probe's space holds.

        `is_outside` says that the object is unlike those known, so that neither value nor interval is to be relied on.

        `input` asks about several objects in one request, and the answer is a list in its order (`data`). An entry
        that is not usable fails alone: its `value` is null and `error` says why; if none is usable, the answer is an
        error. Bodies that are not JSON, those of /v1/embeddings, are always answered with a list, and the rest is in
        the query: `property=scalar/redshift&method=model`.
        """
        media_type, body = await bodies.read_body(request, service.limits, (bodies.JSON, *RAW_TYPES))
        content_type, query = request.headers.get("content-type", ""), dict(request.query_params)

        def work() -> JSONResponse:
            if media_type != bodies.JSON:
                return JSONResponse(_of_many(service, *_read_raw(service, media_type, content_type, body, query)))
            asked = bodies.parse_json(PredictRequest, body)
            if asked.input is None:
                return JSONResponse(_of_one(service, asked))
            _refuse(asked, _OF_ONE_OBJECT, "is of one object; several are in input")
            return JSONResponse(_of_many(service, asked, read_items(service, asked.input, with_vectors=True)))

        return await service.in_worker(work)

    return router


def _read_raw(
    service: Service, media_type: str, content_type: str, body: bytes, query: Mapping[str, str]
) -> tuple[PredictRequest, Sequence[Item]]:
    given = read_objects(media_type, content_type, body, query, service.known_modalities(), service.limits)
    names = [name for name in (one["name"] for one in _PARAMETERS) if name in given.query]
    asked = bodies.parse_fields(PredictRequest, {name: given.query[name] for name in names}, ())
    service.check_model(given.query.get("model"))
    if not given.objects:
        raise ProblemError("invalid-request", "expected at least one object, found none")
    return asked, given.objects


def _of_one(service: Service, asked: PredictRequest) -> dict[str, Any]:
    _check_method(asked)
    common: dict[str, Any] = {"method": asked.method, "property": asked.property, **_NO_ANSWER, "distribution": None}
    if asked.method == "probe":
        return probe_answer(service, probe_of_label(service, asked.property), asked)
    if asked.method == "model":
        return common | model_of_one(service, asked) | {"provenance": _provenance_of_model(service)}
    told, index = neighbours_of_one(service, asked)
    del told["object_id"]
    provenance = service.provenance(index.manifest.space, index).model_dump()
    return common | told | {"unit": _UNITS.get(asked.property), "provenance": provenance}


def _of_many(service: Service, asked: PredictRequest, items: Sequence[Item]) -> dict[str, Any]:
    """The body of `PredictionList`. Raises ProblemError, also where no item is usable."""
    _check_method(asked)
    unit, bins = _UNITS.get(asked.property), None
    if asked.method == "probe":
        probe = probe_of_label(service, asked.property)
        results = probe_results(service, probe, items)
        unit, provenance = probe.unit_, items_provenance(service, probe, items)
    elif asked.method == "model":
        results, example = model_of_many(service, asked, items)
        if example is not None:
            unit, bins = example.modality.unit, bins_of(example)
        provenance = _provenance_of_model(service)
    else:
        results, index = neighbours_of_many(service, asked, items)
        provenance = service.provenance(index.manifest.space, index).model_dump()
    problems = [result for result in results if isinstance(result, ProblemError)]
    if len(problems) == len(results):
        raise joined(problems)
    nothing = {"object_id": None, "value": None, "intervals": [], "calibrated": None, "probability": None, **_NO_ANSWER}
    return {
        "object": "list",
        "method": asked.method,
        "property": asked.property,
        "unit": unit,
        "bins": bins,
        "data": [
            {"index": number, **nothing}
            | ({"error": result.document()} if isinstance(result, ProblemError) else {**result, "error": None})
            for number, result in enumerate(results)
        ],
        "provenance": provenance,
    }


def _check_method(asked: PredictRequest) -> None:
    """Raises ProblemError where something is asked that this method does not know."""
    if asked.method == "probe":
        _refuse(asked, _OF_NEIGHBOURS_ALONE, "goes with method 'neighbours' alone; a probe asks no neighbours")
    if asked.method == "model":
        names = (*_NOT_OF_THE_MODEL, *_OF_NEIGHBOURS_ALONE)
        _refuse(asked, names, "goes with method 'neighbours' alone; the model predicts from observations")


def _refuse(asked: PredictRequest, names: Sequence[str], detail: str) -> None:
    default = PredictRequest(property=asked.property)
    for name in names:
        if getattr(asked, name) != getattr(default, name):
            raise ProblemError("invalid-request", f"/{name}: {detail}", [at(pointer(name), detail)])


def _provenance_of_model(service: Service) -> dict[str, Any]:
    return {"model_id": service.model.model_id, "index_id": None, "space": None, "metric": None}
