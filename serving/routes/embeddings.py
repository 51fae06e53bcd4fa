"""`POST /v1/embeddings`: a superset of OpenAI's route, for images, spectra, coefficients and scalars."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..formats import bodies
from ..formats.arrow_body import ARROW
from ..formats.binary_answers import arrow_answer, npy_answer, safetensors_answer, wanted_type
from ..formats.raw_bodies import RAW_TYPES, read_objects
from ..formats.safetensors_body import SAFETENSORS
from ..problems import ProblemError, joined
from ..query_items import embed_items, read_items
from ..schemas.common import EmbeddingAnswer, EmbeddingRequest
from ..service import EmbeddedItem, Service
from .documentation import answers, json_body
from .raw_documentation import BINARY, MEASUREMENT_PARAMETERS, RAW_BODIES, query_parameters

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
_PARAMETERS = [
    *MEASUREMENT_PARAMETERS,
    *query_parameters(
        ("space", "string", "`aligned` or `encoder`"),
        ("encoding_format", "string", "`float` or `base64`"),
    ),
]
Embedded = tuple[EmbeddingRequest, Sequence[EmbeddedItem | ProblemError]]
"""What was asked, and the result for each object."""

_REQUEST_PARAMETERS = ("space", "encoding_format", "model")


def embedding_routes(service: Service) -> APIRouter:
    """The one route of embeddings."""
    router = APIRouter(tags=["embeddings"])

    @router.post(
        "/v1/embeddings",
        summary="Vectors of objects from whatever was measured of them",
        responses=_responses(),
        openapi_extra={**json_body(EmbeddingRequest, _EXAMPLES, RAW_BODIES), "parameters": _PARAMETERS},
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

        `application/vnd.apache.arrow.stream` takes one row for each object: the same names as columns, arrays as lists
        of fixed or any size, and `object_id`, `ra`, `dec`. Metadata as above in the schema's, or in the query. Null is
        what an object does not have. No compression, no dictionaries, no extension types.

        `application/fits` takes files as they are, not gzipped; images compressed in tiles (RICE, GZIP) are taken. An
        image lies in one extension, [height, width] or [bands, height, width], or in several, one for each band. Bands
        are those of the query, or of FILTER, BAND, BANDS and BANDn. The unit is that of BUNIT, or of a zero point in
        MAGZERO, PHOTZP or FLUXMAG0, and becomes nanomaggies. Extensions IVAR (or INVVAR), MASK (flags, 0 = good) and
        PSF_FWHM (arcsec) go with it, one for all bands or with a band in their names (`IVAR_G`). With a WCS, `ra` and
        `dec` say where the object is (without them it is in the middle), and pixels must be as wide as the
        instrument's, to 2 %. Spectra are DESI coadds, SDSS `spec` files, and files with FLUX, WAVELENGTH (or LOGLAM)
        and IVAR (or ERROR), as columns or extensions, of one or many objects.

        `multipart/form-data` takes one file of any of these types; its other fields are what the query says elsewhere.

        By `Accept`, the answer is JSON, a .npy file (float32 [objects, dimension]; one object that is not usable makes
        it an error; provenance in the headers `Armillary-Model-Id`, `-Index-Id` and `-Space`), or safetensors: the
        tensor `embedding`, NaN for an object that is not usable, and metadata in JSON: `object_id`, `modalities`,
        `errors`, `provenance`, or an Arrow stream with the columns `object_id`, `embedding`, `modalities` and `error`.
        """
        answer_type = wanted_type(request.headers.get("accept"))
        media_type, body = await bodies.read_body(request, service.limits, (bodies.JSON, *RAW_TYPES))
        content_type, query = request.headers.get("content-type", ""), dict(request.query_params)

        def work() -> Response:
            if media_type == bodies.JSON:
                asked, results = _embed_json(service, body)
            else:
                asked, results = _embed_raw(service, media_type, content_type, body, query)
            return _answer(service, asked, results, answer_type)

        return await service.in_worker(work)

    return router


def _embed_json(service: Service, body: bytes) -> Embedded:
    asked = bodies.parse_json(EmbeddingRequest, body)
    items = read_items(service, asked.input)
    _check_request(service, asked)
    return asked, embed_items(service, items, asked.space)


def _embed_raw(service: Service, media_type: str, content_type: str, body: bytes, query: Mapping[str, str]) -> Embedded:
    given = read_objects(media_type, content_type, body, query, service.known_modalities(), service.limits)
    if not given.objects:
        raise ProblemError("invalid-request", "expected at least one object, found none")
    parameters = {name: given.query[name] for name in _REQUEST_PARAMETERS if name in given.query}
    asked = bodies.parse_fields(EmbeddingRequest, {"input": [], **parameters}, ())
    _check_request(service, asked)
    return asked, embed_items(service, given.objects, asked.space)


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
        raise joined(problems)
    provenance = service.provenance(asked.space)
    if answer_type == SAFETENSORS:
        return safetensors_answer(results, provenance)
    if answer_type == ARROW:
        return arrow_answer(results, provenance)
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


def _responses() -> dict[int | str, dict[str, Any]]:
    described = answers(EmbeddingAnswer, _ANSWER, 400, 404, 406, 409, 413, 415, 422, 503)
    described[200]["content"] |= {bodies.NPY: BINARY, SAFETENSORS: BINARY, ARROW: BINARY}
    return described
