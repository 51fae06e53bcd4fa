"""`POST /v1/embeddings`: a superset of OpenAI's route, for images, spectra, coefficients and scalars."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from . import bodies
from .binary_answers import npy_answer, safetensors_answer, wanted_type
from .documentation import answers, json_body
from .problems import ProblemError
from .safetensors_body import REQUEST_METADATA, SAFETENSORS, observations_from_safetensors, read_safetensors
from .schemas import EmbeddingAnswer, EmbeddingRequest
from .service import EmbeddedItem, Service

_EXAMPLES = {
    "one image": {
        "input": {
            "modality": "image/hsc",
            "bands": ["g"],
            "shape": [1, 2, 2],
            "dtype": "float32",
            "data": "AACAPwAAAEAAAEBAAACAQA==",
        }
    },
    "an object with an image and a redshift": {
        "model": "armillary",
        "space": "encoder",
        "input": [
            {
                "object_id": "39633345008634465",
                "observations": [
                    {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]},
                    {"modality": "scalar/redshift", "data": 0.21},
                ],
            }
        ],
    },
    "an object of the index": {"input": [{"object_id": "39633345008634465"}]},
}
_ANSWER = {
    "object": "list",
    "data": [
        {"object": "embedding", "index": 0, "embedding": [0.6, -0.8], "object_id": None, "modalities": ["image/hsc"]}
    ],
    "model": "armillary-1f3a9c0d2b4e",
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
    "provenance": {"model_id": "armillary-1f3a9c0d2b4e", "index_id": None, "space": "aligned", "metric": None},
}
_NPY_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": {"type": kind}, "description": description}
    for name, kind, description in (
        ("modality", "string", "Needed with a .npy body: what the array is"),
        ("bands", "string", "Of an image in a .npy body: `g,r,i,z`"),
        ("object_id", "string", "With a .npy body of one object"),
        ("ra", "number", "Degrees, ICRS; with a .npy body"),
        ("dec", "number", "Degrees, ICRS; with a .npy body"),
        ("space", "string", "`aligned` or `encoder`; with a .npy body"),
        ("encoding_format", "string", "`float` or `base64`; with a .npy body"),
        ("unit", "string", "With a .npy body: checked against the modality's unit"),
        ("model", "string", "With a .npy body"),
    )
]
Embedded = tuple[EmbeddingRequest, Sequence[EmbeddedItem | ProblemError]]
"""What was asked, and the result for each object."""

_REQUEST_PARAMETERS = ("space", "encoding_format", "model")


def embedding_routes(service: Service) -> APIRouter:
    """The one route of embeddings."""
    router = APIRouter(tags=["embeddings"])
    raw_bodies = {
        bodies.NPY: {
            "schema": {"type": "string", "format": "binary"},
            "x-example": {"file": "image.npy", "query": "modality=image/hsc&bands=g,r,i"},
        },
        SAFETENSORS: {
            "schema": {"type": "string", "format": "binary"},
            "x-example": {"file": "objects.safetensors", "query": ""},
        },
    }

    @router.post(
        "/v1/embeddings",
        summary="Vectors of objects from whatever was measured of them",
        responses=_responses(),
        openapi_extra={**json_body(EmbeddingRequest, _EXAMPLES, raw_bodies), "parameters": _NPY_PARAMETERS},
    )
    async def embeddings(request: Request) -> Response:
        """Each entry of `input` is one object: a measurement, several under `observations`, or an object of the index.

        The `openai` client works against this route. An entry that is not usable fails alone: its `embedding` is null
        and `error` says why; if none is usable, the answer is an error. Base64 is fast, nested lists are 40 to 100
        times slower.

        `application/x-npy` takes a raw array, with the rest in query parameters: an image [bands, height, width], a
        spectrum [3, wavelengths] (flux, inverse variance, wavelength), or a batch of them.

        `application/vnd.safetensors` takes objects of one modality. Tensors of an image: `flux` [objects, bands,
        height, width] and, where known, `inverse_variance`, `mask`, `psf_fwhm`, `depth`, `center`; of a spectrum:
        `flux`, `wavelength`, `inverse_variance` [objects, wavelengths], `mask`, `resolving_power`; of a scalar:
        `values` [objects], `mask`, `error`; of coefficients: the same, [objects, coefficients]; `ra` and `dec` in
        degrees. One object may come without the leading axis, a wavelength grid may be common to all. Metadata:
        `modality`, `bands` (`g,r,i`), `object_id` (a JSON list),
        `unit`, `space`, `model`. Errors point to `/input/3/data` and the like, as in JSON, where `data` is the flux.

        By `Accept`, the answer is JSON, a .npy file (float32 [objects, dimension]; one object that is not usable makes
        it an error; provenance in the headers `Armillary-Model-Id`, `-Index-Id` and `-Space`), or safetensors: the
        tensor `embedding`, NaN for an object that is not usable, and metadata in JSON: `object_id`, `modalities`,
        `errors`, `provenance`.
        """
        allowed = (bodies.JSON, bodies.NPY, SAFETENSORS)
        answer_type = wanted_type(request.headers.get("accept"))
        media_type, body = await bodies.read_body(request, service.limits, allowed)
        query = dict(request.query_params)

        def work() -> Response:
            if media_type == bodies.JSON:
                asked, results = _embed_json(service, body)
            elif media_type == bodies.NPY:
                asked, results = _embed_npy(service, body, query)
            else:
                asked, results = _embed_safetensors(service, body)
            return _answer(service, asked, results, answer_type)

        return await service.in_worker(work)

    return router


def _embed_json(service: Service, body: bytes) -> Embedded:
    asked = bodies.parse_json(EmbeddingRequest, body)
    items = asked.input if isinstance(asked.input, list) else [asked.input]
    if not items:
        raise ProblemError("invalid-request", "/input: expected at least one object, found none")
    bodies.check_count(len(items), service.limits)
    _check_request(service, asked)
    return asked, service.embed_items(items, asked.space)


def _embed_npy(service: Service, body: bytes, query: Mapping[str, str]) -> Embedded:
    parameters = {name: query[name] for name in _REQUEST_PARAMETERS if name in query}
    asked = bodies.parse_fields(EmbeddingRequest, {"input": [], **parameters}, ())
    _check_request(service, asked)
    objects = bodies.observations_from_npy(body, query, service.known_modalities(), service.limits)
    results = service.embed_objects(dict(enumerate(objects)), asked.space)
    return asked, [results[number] for number in range(len(objects))]


def _embed_safetensors(service: Service, body: bytes) -> Embedded:
    tensors, metadata = read_safetensors(body)
    parameters = {name: metadata[name] for name in REQUEST_METADATA if name in metadata}
    asked = bodies.parse_fields(EmbeddingRequest, {"input": [], **parameters}, ())
    _check_request(service, asked)
    objects = observations_from_safetensors(tensors, metadata, service.known_modalities(), service.limits)
    usable = {number: given for number, given in enumerate(objects) if not isinstance(given, ProblemError)}
    found = service.embed_objects(usable, asked.space)
    return asked, [given if isinstance(given, ProblemError) else found[number] for number, given in enumerate(objects)]


def _check_request(service: Service, asked: EmbeddingRequest) -> None:
    service.check_model(asked.model)
    size = service.check_space(asked.space, "space")
    if asked.dimensions not in (None, size):
        raise ProblemError(
            "invalid-request", f"/dimensions: vectors of {asked.space!r} have {size}, found {asked.dimensions}"
        )


def _answer(
    service: Service, asked: EmbeddingRequest, results: Sequence[EmbeddedItem | ProblemError], answer_type: str
) -> Response:
    problems = [result for result in results if isinstance(result, ProblemError)]
    if len(problems) == len(results):
        raise _joined(problems)
    provenance = service.provenance(asked.space)
    if answer_type == SAFETENSORS:
        return safetensors_answer(results, provenance)
    if answer_type == bodies.NPY:
        return npy_answer(results, provenance)
    data: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        datum: dict[str, Any] = {"object": "embedding", "index": number}
        if isinstance(result, ProblemError):
            # The place is kept, so that `data` and `input` still go in step.
            datum |= {"embedding": None, "object_id": None, "modalities": [], "error": result.document()}
        else:
            datum["embedding"] = bodies.encode_vector(result.vector, asked.encoding_format)
            datum |= {"object_id": result.object_id, "modalities": list(result.modalities)}
        data.append(datum)
    measured = sum(len(result.modalities) for result in results if isinstance(result, EmbeddedItem))
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "model": service.model.model_id,
            "usage": {"prompt_tokens": measured, "total_tokens": measured},
            "provenance": provenance.model_dump(),
        }
    )


def _joined(problems: Sequence[ProblemError]) -> ProblemError:
    if len(problems) == 1:
        return problems[0]
    kinds = {problem.kind for problem in problems}
    return ProblemError(
        kinds.pop() if len(kinds) == 1 else "invalid-request",
        f"none of {len(problems)} objects is usable; the first: {problems[0].detail}",
        [error for problem in problems for error in problem.errors],
    )


def _responses() -> dict[int | str, dict[str, Any]]:
    described = answers(EmbeddingAnswer, _ANSWER, 400, 404, 406, 409, 413, 415, 422, 503)
    raw = {"schema": {"type": "string", "format": "binary"}}
    described[200]["content"] |= {bodies.NPY: raw, SAFETENSORS: raw}
    return described
