"""`POST /v1/generate`: samples of a modality that was not observed, or the distribution of a scalar."""

import base64
import io
import json
from typing import Any

import numpy as np
import safetensors.numpy
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ...data.modalities import Modality
from ...data.observations import ImageObservation, Observation, ObservationError, SpectrumObservation
from ...models.conformal import LEVELS
from ...models.foundation import ScalarPrediction
from ...models.generated import GeneratedObservations
from ..formats import bodies
from ..formats.binary_answers import wanted_type
from ..formats.safetensors_body import SAFETENSORS
from ..problems import ProblemError, at, not_found, pointer
from ..schemas.generation import GenerateAnswer, GenerateRequest
from ..service import Service
from .documentation import answers, json_body

MAX_NUMBERS = 16 * 2**20
"""Of one answer: samples times pixels."""
SHOWN_LEVEL = 0.68
"""Of the interval of samples in the answer."""
FEWEST_FOR_INTERVAL = 6
"""Samples below which a central interval of 0.68 would be wider than all of them."""
_IMAGE = {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}
_REQUESTS = {
    "spectra of a galaxy by its image": {
        "observations": [_IMAGE],
        "target": "spectrum/desi",
        "num_samples": 8,
        "seed": 1,
    },
    "the distribution of its redshift": {"observations": [_IMAGE], "target": "scalar/redshift"},
}
_ANSWER = {
    "target": "spectrum/desi",
    "kind": "spectrum",
    "unit": "1e-17 erg/s/cm2/A",
    "num_samples": 1,
    "seed": 0,
    "samples": {"data": "AACAPwAAAEA=", "shape": [1, 2], "dtype": "float32"},
    "mask": {"data": "AQE=", "shape": [2], "dtype": "bool"},
    "mean": {"data": "AACAPwAAAEA=", "shape": [2], "dtype": "float32"},
    "interval": None,
    "bands": None,
    "wavelength": {"data": "AABhRQDQYUU=", "shape": [2], "dtype": "float32"},
    "value": None,
    "intervals": [],
    "distribution": None,
    "provenance": {"model_id": "armillary-1f3a9c0d2b4e", "index_id": None, "space": None, "metric": None},
}


def generate_routes(service: Service) -> APIRouter:
    """The one route of generation."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/generate",
        summary="What another modality of an object may look like, given what was observed of it",
        responses=_responses(),
        openapi_extra=json_body(GenerateRequest, _REQUESTS),
    )
    async def generate(request: Request) -> Response:
        """Samples of an image, a spectrum or coefficients, in the modality's unit and without noise, as base64; of a

        scalar its whole distribution. By `Accept`, samples also come as .npy, float32 [samples, ...], or as
        safetensors: `samples`, `mask` and, of a spectrum, `wavelength`, with the rest as JSON in the metadata. What
        this model's samples lack is in docs/generation.md: narrow lines, point sources.
        """
        wanted = wanted_type(request.headers.get("accept"), (bodies.JSON, bodies.NPY, SAFETENSORS))
        _, body = await bodies.read_body(request, service.limits)

        def work() -> Response:
            asked = bodies.parse_json(GenerateRequest, body)
            target = _target(service, asked)
            if target.kind == "scalar" and wanted != bodies.JSON:
                raise ProblemError("not-acceptable", f"{target.name} has a distribution, which is JSON alone")
            found = _generated(service, asked, target)
            if isinstance(found, ScalarPrediction):
                return JSONResponse(_scalar_body(service, asked, found))
            return _samples_answer(service, asked, found, wanted)

        return await service.in_worker(work)

    return router


def _target(service: Service, asked: GenerateRequest) -> Modality:
    """The modality that is asked for. Raises ProblemError: 404 if the model has none such, 422, 413."""
    trained = {modality.name: modality for modality in service.model.modalities}
    if asked.target not in trained:
        problem = not_found("modality that the model makes", asked.target, trained)
        raise ProblemError("not-found", problem.detail, [at("/target", problem.detail)])
    target = trained[asked.target]
    if target.kind != "image" and asked.image_size is not None:
        raise _invalid(("image_size",), f"goes with images; {target.name} is none")
    if target.kind != "spectrum" and asked.wavelength is not None:
        raise _invalid(("wavelength",), f"goes with spectra; {target.name} is none")
    if target.kind == "image":
        if asked.image_size is None:
            raise _invalid(("image_size",), f"{target.name} needs it: pixels to a side")
        if asked.image_size > service.limits.max_image_side:
            detail = f"at most {service.limits.max_image_side} pixels to a side, found {asked.image_size}"
            raise _invalid(("image_size",), detail)
        pixels = asked.image_size**2 * len(target.card.bands)  # type: ignore[union-attr]
        if pixels * asked.num_samples > MAX_NUMBERS:
            raise ProblemError(
                "too-large",
                f"{asked.num_samples} samples of {pixels} pixels exceed {MAX_NUMBERS} numbers; ask for fewer",
                [at("/num_samples", f"at most {MAX_NUMBERS // pixels} samples of this size")],
            )
    return target


def _generated(service: Service, asked: GenerateRequest, target: Modality) -> ScalarPrediction | GeneratedObservations:
    known = service.known_modalities()
    given = bodies.observations_of({"observations": asked.observations}, (), known, service.limits)
    given = [observation for observation in given if observation.modality.name != target.name]
    if not given:
        detail = f"expected at least one observation other than of {target.name}, found none"
        raise ProblemError("invalid-observation", f"/observations: {detail}", [at("/observations", detail)])
    if target.kind == "scalar":
        return service.predict_scalar(given, target.name)
    generate = getattr(service.model, "generate", None)
    if generate is None:
        raise ProblemError("conflict", f"the model {service.model.model_id} generates nothing")
    # Whatever ids the caller gave, these are measurements of one object.
    same = [observation.renamed(("0",)) for observation in given]
    like = _like(service, asked, target)

    def make() -> Any:
        return generate(
            same,
            [target.name],
            num_samples=asked.num_samples,
            seed=asked.seed,
            order=asked.order,
            num_stages=asked.num_stages,
            temperature=asked.temperature,
            top_p=asked.top_p,
            like=like,
            image_size=asked.image_size,
        )

    try:
        found: GeneratedObservations = service.engine.call(make)[target.name]
        return found
    except ObservationError as error:
        raise ProblemError(
            "invalid-observation", f"/observations: {error}", [at("/observations", str(error))]
        ) from None
    except LookupError as error:
        raise ProblemError("conflict", f"the model cannot make {target.name}: {error}") from None


def _like(service: Service, asked: GenerateRequest, target: Modality) -> list[Observation]:
    """An observation with the pixels that are wanted, where the request says so."""
    if asked.wavelength is None:
        return []
    wavelength = bodies.array_of(asked.wavelength, ("wavelength",)).astype(np.float64)
    if wavelength.ndim != 1 or not 2 <= len(wavelength) <= service.limits.max_wavelengths:
        detail = f"expected 2 to {service.limits.max_wavelengths} wavelengths, found shape {list(wavelength.shape)}"
        raise _invalid(("wavelength",), detail)
    blank = np.ones((1, len(wavelength)), np.float32)
    try:
        return [SpectrumObservation(target, ("0",), blank, wavelength, blank)]
    except ObservationError as error:
        raise _invalid(("wavelength",), str(error)) from None


def _scalar_body(service: Service, asked: GenerateRequest, found: ScalarPrediction) -> dict[str, Any]:
    bounds = [(level, *found.interval(level)) for level in LEVELS]
    return _common(service, asked, found.modality) | {
        "value": float(found.median()[0]),
        "intervals": [{"level": level, "lower": float(low[0]), "upper": float(high[0])} for level, low, high in bounds],
        "distribution": {
            "low": found.low.tolist(),
            "high": found.high.tolist(),
            "probability": found.probabilities[0].tolist(),
        },
    }


def _samples_answer(service: Service, asked: GenerateRequest, found: GeneratedObservations, wanted: str) -> Response:
    samples = found.values()[:, 0].float().cpu().numpy()
    headers = {"Armillary-Model-Id": service.model.model_id}
    if wanted == bodies.NPY:
        file = io.BytesIO()
        np.save(file, samples, allow_pickle=False)
        return Response(file.getvalue(), media_type=bodies.NPY, headers=headers)
    arrays = {"samples": samples, "mask": found.mask[0].cpu().numpy()}
    body = _common(service, asked, found.modality)
    first = found.observations[0]
    if isinstance(first, SpectrumObservation):
        arrays["wavelength"] = first.wavelength[0].cpu().numpy()
    if isinstance(first, ImageObservation):
        body["bands"] = list(first.bands)
    if wanted == SAFETENSORS:
        metadata = {name: json.dumps(value) for name, value in body.items() if value is not None}
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return Response(safetensors.numpy.save(contiguous, metadata), media_type=SAFETENSORS, headers=headers)
    body |= {name: _encoded(array) for name, array in arrays.items()}
    body["mean"] = _encoded(found.mean()[0].float().cpu().numpy())
    if len(samples) >= FEWEST_FOR_INTERVAL:
        lower, upper = (bound[0].float().cpu().numpy() for bound in found.interval(SHOWN_LEVEL))
        body["interval"] = {"level": SHOWN_LEVEL, "lower": _encoded(lower), "upper": _encoded(upper)}
    return JSONResponse(body)


def _encoded(array: np.ndarray) -> dict[str, Any]:
    """`EncodedArray`."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"data": data, "shape": list(array.shape), "dtype": array.dtype.name}


def _common(service: Service, asked: GenerateRequest, target: Modality) -> dict[str, Any]:
    names = ("samples", "mask", "mean", "interval", "bands", "wavelength", "value", "distribution")
    return {
        "target": target.name,
        "kind": target.kind,
        "unit": target.unit,
        "num_samples": 0 if target.kind == "scalar" else asked.num_samples,
        "seed": asked.seed,
        **dict.fromkeys(names),
        "intervals": [],
        "provenance": {"model_id": service.model.model_id, "index_id": None, "space": None, "metric": None},
    }


def _responses() -> dict[int | str, dict[str, Any]]:
    described = answers(GenerateAnswer, _ANSWER, 404, 406, 409, 413, 415, 422, 429, 503)
    raw = {"schema": {"type": "string", "format": "binary"}}
    described[200]["content"] |= {bodies.NPY: raw, SAFETENSORS: raw}
    return described


def _invalid(place: tuple[str | int, ...], detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
