"""Search, prediction from neighbours, and what the index knows of an object."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse

from ..data.modalities import MODALITIES
from ..models.neighbour_prediction import NeighbourPredictionError, NeighbourPredictor
from . import bodies
from .cone import Cone
from .documentation import answers, json_body
from .index import EmbeddingIndex, EmbeddingIndexError, Neighbours
from .labelled_neighbours import labelled_neighbours, predictor_for
from .problems import ProblemError, at, not_found
from .schemas import ConeBody, ObjectAnswer, PredictAnswer, PredictRequest, QueryBody, SearchAnswer, SearchRequest
from .service import Service

_PROVENANCE = {
    "model_id": "armillary-1f3a9c0d2b4e",
    "index_id": "objects-5d1c0a9e7b21",
    "space": "aligned",
    "metric": "inner product of unit vectors",
}
_NEIGHBOUR = {
    "object_id": "39633345008634465",
    "modality": "spectrum/desi",
    "similarity": 0.93,
    "ra": 150.1,
    "dec": 2.2,
    "labels": {"scalar/redshift": 0.21},
}
_QUERIES = {
    "spectra like an object's image": {
        "object_id": "39633345008634465",
        "modality": "image/hsc",
        "target_modality": "spectrum/desi",
        "k": 5,
        "include": ["labels"],
    },
    "near a place, by vector": {"vector": [0.6, -0.8], "cone": {"ra": 150.1, "dec": 2.2, "radius_deg": 0.5}},
    "like an image": {"observations": [{"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}]},
}
_PREDICTION = {
    "property": "scalar/redshift",
    "value": 0.21,
    "unit": "dimensionless",
    "intervals": [{"level": 0.68, "lower": 0.19, "upper": 0.23}],
    "calibrated": True,
    "k": 1,
    "neighbours": [_NEIGHBOUR | {"labels": None, "label": 0.21, "weight": 1.0}],
    "provenance": _PROVENANCE,
}

CollectionPath = Annotated[str, Path(examples=["objects"])]


def search_routes(service: Service) -> APIRouter:
    """`/v1/collections/{collection}/search`, `/v1/predict` and `/v1/objects/{object_id}`."""
    router = APIRouter(tags=["search"])

    @router.post(
        "/v1/collections/{collection}/search",
        summary="The nearest neighbours of a vector, an object, or measurements",
        responses=answers(
            SearchAnswer, {"neighbours": [_NEIGHBOUR], "provenance": _PROVENANCE}, 400, 404, 409, 413, 415, 422, 503
        ),
        openapi_extra=json_body(SearchRequest, _QUERIES),
    )
    async def search(collection: CollectionPath, request: Request) -> JSONResponse:
        """Most similar first, by cosine. Filters hold inside the search: k rows come back wherever k rows match."""
        _, body = await bodies.read_body(request, service.limits)

        def work() -> JSONResponse:
            return _search(service, collection, bodies.parse_json(SearchRequest, body))

        return await service.in_worker(work)

    @router.get(
        "/v1/collections/{collection}/search",
        summary="The neighbours of an object of the index, by an address that can be shared",
        responses=answers(SearchAnswer, {"neighbours": [_NEIGHBOUR], "provenance": _PROVENANCE}, 404, 422, 503),
    )
    def search_by_address(
        collection: CollectionPath,
        object_id: Annotated[str, Query(examples=["39633345008634465"])],
        modality: Annotated[str | None, Query(description="Which of the object's vectors")] = None,
        target_modality: Annotated[str | None, Query(description="Only neighbours of this modality")] = None,
        k: Annotated[int, Query(ge=1)] = 10,
        ra: Annotated[float | None, Query(ge=0, lt=360, description="Centre of a cone, degrees, ICRS")] = None,
        dec: Annotated[float | None, Query(ge=-90, le=90)] = None,
        radius_deg: Annotated[float | None, Query(gt=0, le=180)] = None,
        include_labels: bool = False,
    ) -> JSONResponse:
        """As POST, for a query by object."""
        cone = None
        if ra is not None and dec is not None and radius_deg is not None:
            cone = ConeBody(ra=ra, dec=dec, radius_deg=radius_deg)
        elif not ra is dec is radius_deg is None:
            raise ProblemError("invalid-request", "a cone needs ra, dec and radius_deg together")
        asked = SearchRequest(
            object_id=object_id,
            modality=modality,
            target_modality=target_modality,
            k=k,
            cone=cone,
            include=["labels"] if include_labels else [],
        )
        return _search(service, collection, asked)

    @router.post(
        "/v1/predict",
        summary="The value of a property from the labels of the nearest neighbours",
        responses=answers(PredictAnswer, _PREDICTION, 400, 404, 409, 413, 415, 422, 503),
        openapi_extra=json_body(
            PredictRequest,
            {"redshift of an object": {"property": "scalar/redshift", "object_id": "39633345008634465"}},
        ),
    )
    async def predict(request: Request) -> JSONResponse:
        """Zero-shot: no head is trained. The answer shows its neighbours with their labels and weights.

        `calibrated` tells whether the intervals were calibrated on held-out objects.
        """
        _, body = await bodies.read_body(request, service.limits)

        def work() -> JSONResponse:
            return _predict(service, bodies.parse_json(PredictRequest, body))

        return await service.in_worker(work)

    @router.get(
        "/v1/objects/{object_id}",
        summary="What the index knows of an object",
        responses=answers(ObjectAnswer, {**_NEIGHBOUR, "modalities": [], "links": {}}, 404, 503),
    )
    def object_by_id(object_id: Annotated[str, Path(examples=["39633345008634465"])]) -> JSONResponse:
        """Position (degrees, ICRS), modalities, labels, and links to archives; nothing is fetched from them."""
        index = service.only_collection()
        rows = index.rows_of(object_id)
        if not len(rows):
            detail = f"no object {object_id!r}; the nearest known is {index.nearest_id(object_id)!r}"
            raise ProblemError("not-found", detail)
        ra, dec = (_number(float(position[rows[0]])) for position in (index.ra, index.dec))
        return JSONResponse(
            {
                "object_id": object_id,
                "ra": ra,
                "dec": dec,
                "modalities": [str(index.modality[row]) for row in rows],
                "labels": index.labels_of(object_id),
                "links": _links(ra, dec),
                "provenance": service.provenance(index.manifest.space).model_dump(),
            }
        )

    return router


def _search(service: Service, collection: str, asked: SearchRequest) -> JSONResponse:
    index = service.collection(collection)
    _check_k(service, asked.k)
    query = service.query(asked, index)
    found = _find(index, query.vector, asked, _excluded(asked, query.object_id))
    with_labels = "labels" in asked.include
    return JSONResponse(
        {
            "neighbours": [_neighbour(index, found, place, with_labels) for place in range(found.row.shape[1])],
            "provenance": service.provenance(index.manifest.space).model_dump(),
        }
    )


def _predict(service: Service, asked: PredictRequest) -> JSONResponse:
    index = service.only_collection()
    if asked.property not in index.manifest.labels:
        raise not_found("property", asked.property, index.manifest.labels)
    if asked.k is not None:
        _check_k(service, asked.k)
    query = service.query(asked, index)
    predictor = predictor_for(service.predictors, asked.property, query.modalities)
    target = asked.target_modality or predictor.target_modality
    k = predictor.k if asked.k is None else asked.k
    _check_k(service, k)
    _check_target(index, target)
    with _wrong_vectors():
        found, labels = labelled_neighbours(
            index,
            query.vector,
            asked.property,
            k,
            target_modality=target,
            exclude=_excluded(asked, query.object_id),
            cone=_cone(asked),
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
        _neighbour(index, found, place, False)
        | {"label": float(labels[0, place]), "weight": float(predicted.weights[0, place])}
        for place in range(found.row.shape[1])
    ]
    units = {modality.name: modality.unit for modality in MODALITIES}
    return JSONResponse(
        {
            "property": asked.property,
            "value": float(predicted.value[0]),
            "unit": units.get(asked.property),
            "intervals": [
                {"level": level, "lower": float(low), "upper": float(high)}
                for level, low, high in zip(predicted.levels, predicted.lower[0], predicted.upper[0], strict=True)
            ],
            "calibrated": calibrated,
            "k": k,
            "neighbours": neighbours,
            "provenance": service.provenance(index.manifest.space).model_dump(),
        }
    )


def _find(index: EmbeddingIndex, vector: np.ndarray, asked: SearchRequest, excluded: list[str]) -> Neighbours:
    _check_target(index, asked.target_modality)
    with _wrong_vectors():
        return index.search(
            vector,
            asked.k,
            target_modality=asked.target_modality,
            exclude=excluded,
            cone=_cone(asked),
            exact=asked.exact,
        )


@contextmanager
def _wrong_vectors() -> Iterator[None]:
    """A vector that cannot be searched with is the caller's mistake."""
    try:
        yield
    except EmbeddingIndexError as error:
        raise ProblemError("invalid-request", str(error), [at("/vector", str(error))]) from None


def _cone(asked: QueryBody) -> Cone | None:
    return None if asked.cone is None else Cone(asked.cone.ra, asked.cone.dec, asked.cone.radius_deg)


def _check_target(index: EmbeddingIndex, target: str | None) -> None:
    if target is not None and target not in index.modalities:
        raise not_found("modality of the collection", target, index.modalities)


def _excluded(asked: QueryBody, own: str | None) -> list[str]:
    return [*asked.exclude, own] if asked.exclude_self and own is not None else list(asked.exclude)


def _check_k(service: Service, k: int) -> None:
    if k > service.limits.max_neighbours:
        detail = f"k must be at most {service.limits.max_neighbours}, found {k}; see /v1/limits"
        raise ProblemError("invalid-request", f"/k: {detail}", [at("/k", detail)])


def _neighbour(index: EmbeddingIndex, found: Neighbours, place: int, with_labels: bool) -> dict[str, Any]:
    object_id = str(found.object_id[0, place])
    return {
        "object_id": object_id,
        "modality": str(found.modality[0, place]),
        "similarity": float(found.similarity[0, place]),
        "ra": _number(float(found.ra[0, place])),
        "dec": _number(float(found.dec[0, place])),
        "labels": index.labels_of(object_id) if with_labels else None,
    }


def _links(ra: float | None, dec: float | None) -> dict[str, str]:
    if ra is None or dec is None:
        return {}
    return {
        "legacy_survey_viewer": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&zoom=15&layer=ls-dr10",
        "simbad": f"https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra:.6f}d{dec:+.6f}d&Radius=5&Radius.unit=arcsec",
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: what is not known is null."""
    return None if math.isnan(value) else value
