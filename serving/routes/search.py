"""Search, and what the index knows of an object."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ..formats import bodies
from ..formats.arrow_body import ARROW
from ..formats.binary_answers import wanted_type
from ..index.protocol import Neighbours, SearchIndex
from ..problems import ProblemError, at
from ..schemas.common import BatchSearchAnswer, ConeBody, ObjectAnswer, SearchAnswer, SearchRequest
from ..service import Service
from .documentation import answers, json_body
from .search_batches import OFFERED, answer_of, read_queries
from .search_queries import (
    NEIGHBOUR_EXAMPLE,
    PROVENANCE_EXAMPLE,
    check_k,
    check_target,
    cone_of,
    excluded_objects,
    neighbour_body,
    number_or_null,
    wrong_vectors,
)

_QUERIES = {
    "spectra like an object's image": {
        "object_id": "39633345008634465",
        "modality": "image/hsc",
        "target_modality": "spectrum/desi",
        "k": 5,
        "include": ["labels"],
    },
    "bright galaxies alone": {
        "object_id": "39633345008634465",
        "survey": "desi",
        "where": {"scalar/legacysurvey_r": [None, 18.0]},
    },
    "near a place, by vector": {"vector": [0.6, -0.8], "cone": {"ra": 150.1, "dec": 2.2, "radius_deg": 0.5}},
    "like an image": {"observations": [{"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}]},
}
_VECTORS = {
    bodies.NPY: {
        "schema": {"type": "string", "format": "binary"},
        "x-example": {"file": "vectors.npy", "query": "k=10"},
    }
}
_VECTOR_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": {"type": kind}, "description": "With a .npy body"}
    for name, kind in (("k", "integer"), ("target_modality", "string"), ("survey", "string"), ("exact", "boolean"))
]
CollectionPath = Annotated[str, Path(examples=["objects"])]


def search_routes(service: Service) -> APIRouter:
    """`/v1/collections/{collection}/search` and `/v1/objects/{object_id}`."""
    router = APIRouter(tags=["search"])

    @router.post(
        "/v1/collections/{collection}/search",
        summary="The nearest neighbours of a vector, an object, or measurements",
        responses=_search_responses(),
        openapi_extra={**json_body(SearchRequest, _QUERIES, _VECTORS), "parameters": _VECTOR_PARAMETERS},
    )
    async def search(collection: CollectionPath, request: Request) -> Response:
        """Most similar first, by cosine. Filters hold inside the search: k rows come back wherever k rows match.

        A .npy body of vectors [queries, dimension] asks many things at once, with `k`, `target_modality`, `survey` and
        `exact` in the query: the answer has `results`, one list for each, or, by `Accept`, is an Arrow stream with a
        row for each neighbour: query, object_id, modality, similarity, ra, dec.
        """
        answer_type = wanted_type(request.headers.get("accept"), OFFERED)
        media_type, body = await bodies.read_body(request, service.limits, (bodies.JSON, bodies.NPY))
        query = dict(request.query_params)

        def work() -> Response:
            if media_type == bodies.NPY:
                return _search_many(service, collection, body, query, answer_type)
            return _search(service, collection, bodies.parse_json(SearchRequest, body))

        return await service.in_worker(work, is_short=media_type == bodies.NPY or b'"observations"' not in body)

    @router.get(
        "/v1/collections/{collection}/search",
        summary="The neighbours of an object of the index, by an address that can be shared",
        responses=answers(
            SearchAnswer, {"neighbours": [NEIGHBOUR_EXAMPLE], "provenance": PROVENANCE_EXAMPLE}, 404, 422, 503
        ),
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
        survey: Annotated[str | None, Query(description="Only neighbours of this survey")] = None,
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
            survey=survey,
            include=["labels"] if include_labels else [],
        )
        return _search(service, collection, asked)

    @router.get(
        "/v1/objects/{object_id}",
        summary="What the index knows of an object",
        responses=answers(ObjectAnswer, {**NEIGHBOUR_EXAMPLE, "modalities": [], "links": {}}, 404, 503),
    )
    def object_by_id(object_id: Annotated[str, Path(examples=["39633345008634465"])]) -> JSONResponse:
        """Position (degrees, ICRS), modalities, labels, and links to archives; nothing is fetched from them."""
        index = service.only_collection()
        modalities = index.modalities_of(object_id)
        if not modalities:
            detail = f"no object {object_id!r}; the nearest known is {index.nearest_id(object_id)!r}"
            raise ProblemError("not-found", detail)
        ra, dec = (number_or_null(coordinate) for coordinate in index.position_of(object_id))
        return JSONResponse(
            {
                "object_id": object_id,
                "ra": ra,
                "dec": dec,
                "modalities": list(modalities),
                "labels": index.labels_of(object_id),
                "links": _links(ra, dec),
                "provenance": service.provenance(index.manifest.space, index).model_dump(),
            }
        )

    return router


def _search(service: Service, collection: str, asked: SearchRequest) -> JSONResponse:
    index = service.collection(collection)
    check_k(service, asked.k)
    query = service.query(asked, index)
    with service.metrics.timed("search"):
        found = _find(index, query.vector, asked, excluded_objects(asked, query.object_id))
    with_labels = "labels" in asked.include
    return JSONResponse(
        {
            "neighbours": [neighbour_body(index, found, place, with_labels) for place in range(found.row.shape[1])],
            "provenance": service.provenance(index.manifest.space, index).model_dump(),
        }
    )


def _search_many(service: Service, collection: str, body: bytes, query: dict[str, str], answer_type: str) -> Response:
    index = service.collection(collection)
    vectors, asked = read_queries(body, query, service.limits.max_items)
    check_k(service, asked.k)
    with service.metrics.timed("search"):
        found = _find(index, vectors, asked, [])
    return answer_of(index, found, service.provenance(index.manifest.space, index), answer_type)


def _search_responses() -> dict[int | str, dict[str, Any]]:
    one = {"neighbours": [NEIGHBOUR_EXAMPLE], "provenance": PROVENANCE_EXAMPLE}
    described = answers(SearchAnswer | BatchSearchAnswer, one, 400, 404, 406, 409, 413, 415, 422, 503)
    described[200]["content"][ARROW] = {"schema": {"type": "string", "format": "binary"}}
    return described


def _find(index: SearchIndex, vector: np.ndarray, asked: SearchRequest, excluded: list[str]) -> Neighbours:
    check_target(index, asked.target_modality)
    with wrong_vectors():
        try:
            return index.search(
                vector,
                asked.k,
                target_modality=asked.target_modality,
                exclude=excluded,
                cone=cone_of(asked),
                survey=asked.survey,
                where=asked.where or None,
                exact=asked.exact,
            )
        except LookupError as error:
            # A survey or a column of metadata that the index does not have.
            raise ProblemError("not-found", str(error.args[0]), [at("/where", str(error.args[0]))]) from None


def _links(ra: float | None, dec: float | None) -> dict[str, str]:
    if ra is None or dec is None:
        return {}
    return {
        "legacy_survey_viewer": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&zoom=15&layer=ls-dr10",
        "simbad": f"https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra:.6f}d{dec:+.6f}d&Radius=5&Radius.unit=arcsec",
    }
