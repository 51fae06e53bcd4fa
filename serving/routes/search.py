"""Search, and what the index knows of an object."""

from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ..formats import bodies
from ..formats.binary_answers import wanted_type
from ..formats.raw_bodies import RAW_TYPES
from ..formats.table_answers import TABLE_TYPES
from ..index.protocol import Neighbours, SearchIndex
from ..problems import ProblemError, at, joined
from ..schemas.common import BatchSearchAnswer, ConeBody, ObjectAnswer, SearchAnswer, SearchRequest
from ..service import EmbeddedItem, Service
from .documentation import answers, json_body
from .raw_documentation import BINARY, MEASUREMENT_PARAMETERS, RAW_BODIES, query_parameters
from .search_answers import OFFERED, answer_of_many, answer_of_one
from .search_batches import check_no_cursor, is_of_vectors, read_measured, read_vectors
from .search_examples import query_and_objects
from .search_pages import Page
from .search_queries import (
    NEIGHBOUR_EXAMPLE,
    PROVENANCE_EXAMPLE,
    check_k,
    check_target,
    cone_of,
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
    "like these, unlike that": {
        "positive": ["39633345008634465", {"vector": [0.6, -0.8]}],
        "negative": [{"object_id": "39633345008634466", "modality": "image/hsc"}],
    },
    "like an image": {"observations": [{"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}]},
}
_BODIES = RAW_BODIES | {bodies.NPY: {**BINARY, "x-example": {"file": "vectors.npy", "query": "k=10"}}}
_PARAMETERS = [
    *query_parameters(
        ("k", "integer", "With a body that is no JSON, as all that follows"),
        ("target_modality", "string", "Only neighbours of this modality"),
        ("survey", "string", "Only neighbours of this survey"),
        ("exact", "boolean", "Compare every vector"),
        ("exclude_self", "boolean", "Leave out the object of this id, true by default"),
        ("include", "string", "`labels`"),
        ("cursor", "string", "`next_cursor` of the page before, for a body of one object"),
    ),
    *MEASUREMENT_PARAMETERS,
]
CollectionPath = Annotated[str, Path(examples=["objects"])]


def search_routes(service: Service) -> APIRouter:
    """`/v1/collections/{collection}/search` and `/v1/objects/{object_id}`."""
    router = APIRouter(tags=["search"])

    @router.post(
        "/v1/collections/{collection}/search",
        summary="The nearest neighbours of a vector, an object, or measurements",
        responses=_responses(SearchAnswer | BatchSearchAnswer, 400, 404, 406, 409, 413, 415, 422, 503),
        openapi_extra={**json_body(SearchRequest, _QUERIES, _BODIES), "parameters": _PARAMETERS},
    )
    async def search(collection: CollectionPath, request: Request) -> Response:
        """Most similar first, by cosine; equal ones by object id, then modality, whatever k is, exact or not. Filters
        hold inside the search: k rows come back wherever k rows match.

        In place of one query, `positive` and `negative` have examples, by which Rocchio's formula (1971) makes one: the
        mean of the positive less `negative_weight` (1) times the mean of the negative, of unit vectors. An example is
        the id of an object, or `{object_id, modality}`, `{vector}` or `{observations}`. Examples are no answers, unless
        `exclude_self` is false.

        `next_cursor` leads to the neighbours after the last, by the same request with that `cursor`; k and include may
        change. Pages of a cursor are cut from one search for the most neighbours that one call may have (see
        /v1/limits), which is where they end. With an empty `cursor` the first page is so too; an approximate index may
        find more there than in a search for k. A cursor ends with the content of the index (409).

        A .npy body of vectors [queries, dimension] asks many things at once, with parameters in the query. A file of
        measurements (FITS, safetensors, Arrow, a form, or .npy whose `modality` the query says) asks for what is like
        them, as /v1/embeddings reads them. Many queries are answered by `results`, a list for each, and `errors` for
        objects that were not usable; of one object the answer is that of JSON.

        By `Accept` the answer is a table with a row for each neighbour: query, object_id, modality, similarity, ra, dec
        (degrees, ICRS), and a column for each label if asked for. Arrow, Parquet and VOTable have units and UCDs. In
        CSV, an apostrophe stands before texts that a spreadsheet would compute and before those that begin with one.
        `next_cursor` is in the header Armillary-Next-Cursor.
        """
        answer_type = wanted_type(request.headers.get("accept"), OFFERED)
        media_type, body = await bodies.read_body(request, service.limits, (bodies.JSON, *RAW_TYPES))
        content_type, query = request.headers.get("content-type", ""), dict(request.query_params)
        is_vectors = is_of_vectors(media_type, query)

        def work() -> Response:
            if is_vectors:
                return _by_vectors(service, collection, body, query, answer_type)
            if media_type != bodies.JSON:
                return _by_file(service, collection, (media_type, content_type, body), query, answer_type)
            return _search(service, collection, bodies.parse_json(SearchRequest, body), answer_type)

        is_short = is_vectors or (media_type == bodies.JSON and b'"observations"' not in body)
        return await service.in_worker(work, is_short=is_short)

    @router.get(
        "/v1/collections/{collection}/search",
        summary="The neighbours of an object of the index, by an address that can be shared",
        responses=_responses(SearchAnswer, 404, 406, 409, 413, 422, 503),
    )
    def search_by_address(
        request: Request,
        collection: CollectionPath,
        object_id: Annotated[
            str | None,
            # Without it or examples there is nothing to look for: the page's command has it.
            Query(examples=["39633345008634465"], json_schema_extra={"x-shown": True}),
        ] = None,
        modality: Annotated[str | None, Query(description="Which of the object's vectors")] = None,
        target_modality: Annotated[str | None, Query(description="Only neighbours of this modality")] = None,
        k: Annotated[int, Query(ge=1)] = 10,
        ra: Annotated[float | None, Query(ge=0, lt=360, description="Centre of a cone, degrees, ICRS")] = None,
        dec: Annotated[float | None, Query(ge=-90, le=90)] = None,
        radius_deg: Annotated[float | None, Query(gt=0, le=180)] = None,
        survey: Annotated[str | None, Query(description="Only neighbours of this survey")] = None,
        positive: Annotated[list[str] | None, Query(description="Objects that are examples of what is sought")] = None,
        negative: Annotated[list[str], Query(description="Objects that are examples of what is not")] = [],  # noqa: B006
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
        include_labels: bool = False,
    ) -> Response:
        """As POST, for a query by an object, or by objects as examples; by `Accept`, a table too."""
        answer_type = wanted_type(request.headers.get("accept"), OFFERED)
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
            positive=positive,
            negative=negative,
            cursor=cursor,
            include=["labels"] if include_labels else [],
        )
        return _search(service, collection, asked, answer_type)

    @router.get(
        "/v1/objects/{object_id}",
        summary="What the index knows of an object",
        responses=answers(
            ObjectAnswer, {**NEIGHBOUR_EXAMPLE, "modalities": [], "is_simulated": False, "links": {}}, 404, 503
        ),
    )
    def object_by_id(object_id: Annotated[str, Path(examples=["39633345008634465"])]) -> JSONResponse:
        """Position (degrees, ICRS), modalities, labels, and links to archives; nothing is fetched from them.

        A simulated object has no links; `is_simulated` is null where no record of a simulated sky lies in the dataset.
        """
        index = service.only_collection()
        modalities = index.modalities_of(object_id)
        if not modalities:
            detail = f"no object {object_id!r}; the nearest known is {index.nearest_id(object_id)!r}"
            raise ProblemError("not-found", detail)
        ra, dec = (number_or_null(coordinate) for coordinate in index.position_of(object_id))
        is_simulated = service.is_simulated(object_id)
        return JSONResponse(
            {
                "object_id": object_id,
                "ra": ra,
                "dec": dec,
                "modalities": list(modalities),
                "labels": index.labels_of(object_id),
                "is_simulated": is_simulated,
                "links": {} if is_simulated else _links(ra, dec),
                "provenance": service.provenance(index.manifest.space, index).model_dump(),
            }
        )

    return router


def _search(service: Service, collection: str, asked: SearchRequest, answer_type: str) -> Response:
    index = service.collection(collection)
    check_k(service, asked.k)
    page = Page.of(asked, index, service.limits)
    query, objects = query_and_objects(service, asked, index)
    return _page(service, index, query.vector, asked, objects, page, answer_type)


def _by_vectors(service: Service, collection: str, body: bytes, query: dict[str, str], answer_type: str) -> Response:
    index = service.collection(collection)
    vectors, asked = read_vectors(body, query, service.limits.max_items)
    check_k(service, asked.k)
    found = _find(service, index, vectors, asked, asked.k, [])
    provenance = service.provenance(index.manifest.space, index)
    return answer_of_many(index, found, asked, [None] * len(vectors), provenance, answer_type)


def _by_file(
    service: Service, collection: str, file: tuple[str, str, bytes], query: dict[str, str], answer_type: str
) -> Response:
    """Neighbours of what was measured; `file` is its media type, the whole header that said so, and its content."""
    index = service.collection(collection)
    results, asked = read_measured(service, index, *file, query)
    check_k(service, asked.k)
    good = [one for one in results if isinstance(one, EmbeddedItem)]
    problems = [one if isinstance(one, ProblemError) else None for one in results]
    if not good:
        raise joined([problem for problem in problems if problem is not None])
    own = [one.object_id or "" for one in good]
    if len(results) == 1:
        page = Page.of(asked, index, service.limits, file[2])
        return _page(service, index, good[0].vector[None], asked, own, page, answer_type)
    check_no_cursor(asked)
    vectors = np.stack([one.vector for one in good])
    found = _find(service, index, vectors, asked, asked.k, [], own if asked.exclude_self else None)
    return answer_of_many(index, found, asked, problems, service.provenance(index.manifest.space, index), answer_type)


def _page(
    service: Service,
    index: SearchIndex,
    vector: np.ndarray,
    asked: SearchRequest,
    own: list[str],
    page: Page,
    answer_type: str,
) -> Response:
    """The answer to one query; `own` are the objects that it was made of."""
    excluded = [*asked.exclude, *own] if asked.exclude_self else asked.exclude
    found, next_cursor = page.cut(_find(service, index, vector, asked, page.depth, excluded))
    provenance = service.provenance(index.manifest.space, index)
    return answer_of_one(index, found, asked, next_cursor, provenance, answer_type)


def _responses(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    one = {"neighbours": [NEIGHBOUR_EXAMPLE], "next_cursor": None, "provenance": PROVENANCE_EXAMPLE}
    described = answers(model, one, *statuses)
    described[200]["content"] |= dict.fromkeys(TABLE_TYPES, BINARY)
    return described


def _find(
    service: Service,
    index: SearchIndex,
    vectors: np.ndarray,
    asked: SearchRequest,
    k: int,
    excluded: list[str],
    exclude_each: list[str] | None = None,
) -> Neighbours:
    """The k nearest of each query. Raises ProblemError."""
    check_target(index, asked.target_modality)
    search = partial(
        index.search,
        k=k,
        target_modality=asked.target_modality,
        exclude=excluded,
        cone=cone_of(asked),
        survey=asked.survey,
        where=asked.where or None,
    )
    with wrong_vectors(), service.metrics.timed("search"):
        try:
            found = search(vectors, exclude_each=exclude_each, exact=asked.exact)
        except LookupError as error:
            # A survey or a column of metadata that the index does not have.
            raise ProblemError("not-found", str(error.args[0]), [at("/where", str(error.args[0]))]) from None
    if not asked.exact and exclude_each is None:
        service.recall.consider(index, vectors, asked.k, found, partial(search, exact=True))
    return found


def _links(ra: float | None, dec: float | None) -> dict[str, str]:
    if ra is None or dec is None:
        return {}
    return {
        "legacy_survey_viewer": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&zoom=15&layer=ls-dr10",
        "simbad": f"https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra:.6f}d{dec:+.6f}d&Radius=5&Radius.unit=arcsec",
    }
