"""What was measured of an object, as pictures for eyes and files for science, from the dataset behind the index."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import JSONResponse, Response

from ...data.dataset import ObservationDataset
from ...data.modalities import Modality
from ...data.observations import Observation, ScalarObservation, SpectrumObservation
from ..formats.observation_files import image_fits, spectrum_body, spectrum_fits, typed_object
from ..maps.colour_picture import colour_picture, jpeg
from ..problems import ProblemError, not_found
from ..service import Service
from .documentation import Responses, errors, example
from .search_queries import number_or_null

FITS = "application/fits"
JPEG = "image/jpeg"
LARGEST_PICTURE = 1024
"""Pixels on a side."""
CACHE = "private, max-age=300"
"""Files of a dataset do not change; a server may be given another one."""

_OBSERVATIONS = {
    "object_id": "39633345008634465",
    "observations": [
        {
            "modality": "image/legacysurvey",
            "kind": "image",
            "unit": "nanomaggies per pixel",
            "files": ["image.jpg", "image.fits"],
        },
        {"modality": "scalar/redshift", "kind": "scalar", "unit": "dimensionless", "value": 0.21, "error": None},
    ],
}
_OBSERVATION = {
    "modality": "image/hsc",
    "object_id": "39633345008634465",
    "bands": ["g"],
    "data": {"data": "AACAPwAAAEAAAEBAAACAQA==", "shape": [1, 2, 2], "dtype": "float32"},
}
_SPECTRUM = {
    "object_id": "39633345008634465",
    "modality": "spectrum/desi",
    "unit": "1e-17 erg / s / cm2 / angstrom",
    "wavelength_unit": "angstrom",
    "wavelength": [3600.0, 3600.8],
    "flux": [1.25, None],
    "error": [0.31, None],
    "mask": [True, False],
}
ObjectPath = Annotated[str, Path(examples=["39633345008634465"])]
ModalityQuery = Annotated[
    str | None, Query(description="Which of the object's, by default the first by name", max_length=200)
]
IfNoneMatch = Annotated[str | None, Header()]


def object_routes(service: Service) -> APIRouter:
    """`/v1/objects/{object_id}/observations`, `observation`, `image.jpg`, `image.fits`, `spectrum`, `spectrum.fits`."""
    router = APIRouter(tags=["objects"])

    async def as_file(
        object_id: str,
        modality: str | None,
        kind: str,
        write: Callable[[Any], bytes],
        media_type: str,
        if_none_match: str | None,
    ) -> Response:
        def work() -> Response:
            return _answer(write(_read(service, object_id, modality, kind)), media_type, if_none_match)

        return await service.in_worker(work)

    @router.get(
        "/v1/objects/{object_id}/observations",
        summary="What was measured of an object, and where it can be had",
        responses=example(_OBSERVATIONS, 404, 422),
    )
    async def observations(object_id: ObjectPath) -> JSONResponse:
        """Every modality that the server's dataset has of the object; of a scalar its value and error."""

        def work() -> JSONResponse:
            dataset = _dataset(service)
            found = [m for m in dataset.modalities if dataset.holds(m.name, object_id)]
            if not found:
                raise ProblemError("not-found", f"the dataset has no object {object_id!r}")
            described = [_describe(dataset, modality, object_id) for modality in found]
            return JSONResponse({"object_id": object_id, "observations": described})

        return await service.in_worker(work)

    @router.get(
        "/v1/objects/{object_id}/observation",
        summary="A measurement of an object, as a request's body has it",
        responses=example(_OBSERVATION, 404, 422),
    )
    async def observation(
        object_id: ObjectPath,
        modality: Annotated[str, Query(examples=["image/legacysurvey"], max_length=200)],
    ) -> JSONResponse:
        """Of any modality: an entry of `observations` for /v1/embeddings, /v1/predict and /v1/generate."""

        def work() -> JSONResponse:
            found = _read(service, object_id, modality, None)
            return JSONResponse(typed_object(found), headers={"Cache-Control": CACHE})

        return await service.in_worker(work)

    @router.get(
        "/v1/objects/{object_id}/image.jpg",
        summary="A colour picture of an object",
        response_class=Response,
        responses=_file(JPEG),
    )
    async def picture(
        object_id: ObjectPath,
        modality: ModalityQuery = None,
        size: Annotated[
            int | None, Query(ge=16, le=LARGEST_PICTURE, description="Pixels of the longer side; as stored without it")
        ] = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Stretched by arcsinh (Lupton et al. 2004); red, green and blue are the bands nearest to z, r and g."""

        return await as_file(
            object_id, modality, "image", lambda image: jpeg(colour_picture(image), size), JPEG, if_none_match
        )

    @router.get(
        "/v1/objects/{object_id}/image.fits",
        summary="An image of an object as it is stored",
        response_class=Response,
        responses=_file(FITS),
    )
    async def image_file(
        object_id: ObjectPath, modality: ModalityQuery = None, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Flux [bands, rows, columns] in nanomaggies, with the extensions IVAR, MASK (flags, 0 = good) and BANDS."""

        return await as_file(object_id, modality, "image", image_fits, FITS, if_none_match)

    @router.get(
        "/v1/objects/{object_id}/spectrum",
        summary="A spectrum of an object as JSON",
        responses={**example(_SPECTRUM, 404, 422)},
    )
    async def spectrum(object_id: ObjectPath, modality: ModalityQuery = None) -> JSONResponse:
        """Flux and error in 1e-17 erg/s/cm2/A, null where masked; wavelength in angstrom, vacuum."""

        def work() -> JSONResponse:
            found = _read(service, object_id, modality, "spectrum")
            assert isinstance(found, SpectrumObservation)
            return JSONResponse(spectrum_body(found), headers={"Cache-Control": CACHE})

        return await service.in_worker(work)

    @router.get(
        "/v1/objects/{object_id}/spectrum.fits",
        summary="A spectrum of an object as it is stored",
        response_class=Response,
        responses=_file(FITS),
    )
    async def spectrum_file(
        object_id: ObjectPath, modality: ModalityQuery = None, if_none_match: IfNoneMatch = None
    ) -> Response:
        """A table of WAVELENGTH, FLUX, IVAR, MASK (flags, 0 = good) and RESOLVING_POWER."""

        return await as_file(object_id, modality, "spectrum", spectrum_fits, FITS, if_none_match)

    return router


def _file(media_type: str) -> Responses:
    return {
        200: {"description": "OK", "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The file is the one that If-None-Match names"},
        **errors(404, 422),
    }


def _dataset(service: Service) -> ObservationDataset:
    if service.dataset is None:
        raise ProblemError("not-found", "this server was started without a dataset: it has no pictures and spectra")
    return service.dataset


def _read(service: Service, object_id: str, modality: str | None, kind: str | None) -> Observation:
    """The object's observation of this modality, or of the first of this kind. Raises ProblemError (404)."""
    dataset = _dataset(service)
    names = [m.name for m in dataset.modalities if kind in (None, m.kind)]
    of_kind = "modality" if kind is None else f"{kind} modality"
    if modality is not None and modality not in names:
        raise not_found(f"{of_kind} of the dataset", modality, names)
    has = [name for name in names if dataset.holds(name, object_id)]
    wanted = [modality] if modality is not None else has[:1]
    if not wanted or wanted[0] not in has:
        others = f"it has {has}" if has else f"it has no {kind or 'observation'} at all"
        raise ProblemError("not-found", f"object {object_id!r} has no {modality or of_kind} in the dataset; {others}")
    return dataset.read(wanted[0], [object_id])


def _describe(dataset: ObservationDataset, modality: Modality, object_id: str) -> dict[str, Any]:
    described: dict[str, Any] = {"modality": modality.name, "kind": modality.kind, "unit": modality.unit}
    if modality.kind == "scalar":
        found = dataset.read(modality.name, [object_id])
        assert isinstance(found, ScalarObservation)
        value = float(found.values[0]) if found.mask[0] else None
        return {**described, "value": value, "error": number_or_null(float(found.error[0]))}
    suffixes = {"image": ("image.jpg", "image.fits"), "spectrum": ("spectrum", "spectrum.fits")}.get(modality.kind, ())
    return {**described, "files": list(suffixes)}


def _answer(content: bytes, media_type: str, if_none_match: str | None) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": CACHE}
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
