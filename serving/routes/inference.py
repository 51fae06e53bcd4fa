"""`/v2`: the Open Inference Protocol, so that clients of KServe and Triton can ask for embeddings.

There is one model of the protocol for each modality, by its name with a dot: `image.hsc`. Its inputs are the tensors of
that kind of measurement as safetensors bodies name them, its output is `embedding`.
"""

import json
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ...data.modalities import Modality
from ..formats import bodies
from ..formats.batch_metadata import MAIN, MEASUREMENT_METADATA
from ..formats.safetensors_body import observations_from_safetensors
from ..problems import ProblemError, answer, not_found
from ..schemas.inference import InferAnswer, InferRequest
from ..service import Service
from .documentation import answers, example, json_body
from .inference_protocol import HEADER_LENGTH, read_request, write_answer

OCTETS = "application/octet-stream"
PLATFORM = "armillary"
_AXES = {"image": 4, "spectrum": 2, "coefficients": 2, "scalar": 1}
_EXTENSIONS = ["binary_tensor_data"]
_MODEL = {
    "name": "image.hsc",
    "versions": ["armillary-1f3a9c0d2b4e"],
    "platform": PLATFORM,
    "inputs": [{"name": "flux", "datatype": "FP32", "shape": [-1, -1, -1, -1]}],
    "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 512]}],
}
_ASKED = {
    "an image": {
        "inputs": [{"name": "flux", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}],
        "parameters": {"bands": "g"},
    }
}
_ANSWERED = {
    "model_name": "image.hsc",
    "model_version": "armillary-1f3a9c0d2b4e",
    "outputs": [{"name": "embedding", "shape": [1, 2], "datatype": "FP32", "data": [0.6, -0.8]}],
}
ModelName = Annotated[str, Path(examples=["image.hsc"])]


def inference_routes(service: Service) -> APIRouter:
    """Health, metadata and `infer`."""
    router = APIRouter(prefix="/v2", tags=["inference protocol"])

    @router.get("", summary="The server, as the protocol has it", responses=example({"name": PLATFORM}))
    def server() -> dict[str, Any]:
        """Its name, version and the extensions that it has."""
        return {"name": PLATFORM, "version": "1.0", "extensions": _EXTENSIONS}

    @router.get("/health/live", summary="Is the process alive?", responses=example({"live": True}))
    async def live() -> dict[str, bool]:
        """Always."""
        return {"live": True}

    @router.get("/health/ready", summary="Can it answer?", responses=example({"ready": True}, 503))
    async def ready() -> dict[str, bool]:
        """True once the model is loaded, until the server is told to stop; else 503."""
        _require_ready(service)
        return {"ready": True}

    @router.get("/models/{model}", summary="What a model takes and gives", responses=example(_MODEL, 404, 503))
    @router.get("/models/{model}/versions/{version}", include_in_schema=False)
    def metadata(model: ModelName, version: str | None = None) -> dict[str, Any]:
        """Its inputs (optional ones too) and output; -1 is any length. Version: the id of the weights."""
        modality = _modality(service, model, version)
        others = [name for name in bodies.FIELDS[modality.kind] if name != "bands"]
        main = {"name": MAIN[modality.kind], "datatype": "FP32", "shape": [-1] * _AXES[modality.kind]}
        inputs = [main, *({"name": name, "datatype": "FP32", "shape": [-1], "optional": True} for name in others)]
        size = service.spaces()[_usual_space(service)]
        return _MODEL | {
            "name": model,
            "versions": [service.model.model_id],
            "inputs": inputs,
            "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, size]}],
        }

    @router.get("/models/{model}/ready", summary="Can it be asked?", responses=example({"ready": True}, 404, 503))
    @router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    def model_ready(model: ModelName, version: str | None = None) -> dict[str, Any]:
        """True, or 404 for a modality that the model does not take."""
        _require_ready(service)
        _modality(service, model, version)
        return {"name": model, "ready": True}

    async def infer(model: ModelName, request: Request, version: str | None = None) -> Response:
        """Vectors of a batch of objects of one modality.

        Tensors are named as in safetensors bodies (`flux`, `inverse_variance`, ...), objects along their first axis;
        `parameters` are `bands` (`g,r,i`), `unit`, `space` (`aligned` or `encoder`). With the header
        `Inference-Header-Content-Length` tensors come as bytes behind the JSON, and go so where `binary_data` is asked
        for. One object that is not usable makes the answer an error: a tensor has no place to say what is wrong.
        """
        try:
            _, body = await bodies.read_body(request, service.limits, (bodies.JSON, OCTETS))
            header_length = request.headers.get(HEADER_LENGTH)
            return await service.in_worker(lambda: _infer(service, model, version, body, header_length))
        except ProblemError as problem:
            # The protocol's clients look for `error`.
            return _with_error(answer(problem, request), problem)

    described = answers(InferAnswer, _ANSWERED, 400, 404, 409, 413, 415, 422, 503)
    body = json_body(InferRequest, _ASKED, {OCTETS: {"schema": {"type": "string", "format": "binary"}}})
    summary = "Vectors of objects, by the Open Inference Protocol"
    router.post("/models/{model}/infer", summary=summary, responses=described, openapi_extra=body)(infer)
    router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)(infer)
    return router


def _infer(service: Service, model: str, version: str | None, body: bytes, header_length: str | None) -> Response:
    modality = _modality(service, model, version)
    asked, tensors = read_request(body, header_length)
    space = str(asked.parameters.get("space", _usual_space(service)))
    service.check_space(space, "parameters", "space")
    metadata = {name: str(asked.parameters[name]) for name in MEASUREMENT_METADATA if name in asked.parameters}
    objects = observations_from_safetensors(
        tensors, metadata | {"modality": modality.name}, service.known_modalities(), service.limits
    )
    for found in objects:
        if isinstance(found, ProblemError):
            raise found
    embedded = service.embed_objects({n: found for n, found in enumerate(objects) if isinstance(found, list)}, space)
    vectors = []
    for number in range(len(objects)):
        result = embedded[number]
        if isinstance(result, ProblemError):
            raise result
        vectors.append(result.vector)
    content, headers = write_answer(
        asked, model, service.model.model_id, {"embedding": np.stack(vectors).astype("<f4")}
    )
    return Response(content, headers=headers)


def _modality(service: Service, name: str, version: str | None) -> Modality:
    if version not in (None, service.model.model_id):
        raise not_found("version", str(version), [service.model.model_id])
    by_name = {known.replace("/", "."): modality for known, modality in service.known_modalities().items()}
    if name not in by_name:
        raise not_found("model", name, by_name)
    return by_name[name]


def _usual_space(service: Service) -> str:
    """`aligned`, or what there is in a model that was not aligned yet."""
    return "aligned" if "aligned" in service.spaces() else "encoder"


def _require_ready(service: Service) -> None:
    if service.is_draining:
        raise ProblemError("not-ready", "the server is stopping")
    _ = service.model


def _with_error(response: JSONResponse, problem: ProblemError) -> JSONResponse:
    headers = {name: value for name, value in response.headers.items() if name.lower() != "content-length"}
    document = json.loads(bytes(response.body)) | {"error": problem.detail}
    return JSONResponse(document, response.status_code, headers=headers)
