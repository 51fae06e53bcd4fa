"""Routes that describe the server: is it alive, what are its limits, model, modalities and collections."""

from typing import Any

from fastapi import APIRouter

from ...data.instruments import Catalogue, CoefficientSpectrograph, ImagingInstrument, Spectrograph
from ...data.modalities import Modality
from ..limits import Limits
from ..problems import ProblemError
from ..service import Service
from .documentation import example

_READY = {"status": "ready", "model_id": "armillary-1f3a9c0d2b4e", "index_id": "objects-5d1c0a9e7b21"}
_MODELS = {
    "object": "list",
    "data": [
        {
            "id": "armillary-1f3a9c0d2b4e",
            "object": "model",
            "created": 0,
            "owned_by": "armillary",
            "spaces": {"encoder": 768, "aligned": 512},
            "modalities": ["image/hsc", "spectrum/desi", "scalar/redshift"],
        }
    ],
}
_MODALITIES = {
    "modalities": [
        {
            "name": "scalar/redshift",
            "kind": "scalar",
            "unit": "dimensionless",
            "description": "Spectroscopic redshift",
            "vocabulary": "scalar/redshift",
            "trained": True,
            "instrument": "galaxy_properties",
            "reference": "",
            "range": [-0.01, 7.0],
        }
    ]
}
_COLLECTIONS = {
    "collections": [
        {
            "name": "objects",
            "index_id": "objects-5d1c0a9e7b21",
            "model_id": "armillary-1f3a9c0d2b4e",
            "space": "aligned",
            "metric": "inner product of unit vectors",
            "dimension": 512,
            "num_objects": 200,
            "num_rows_of_modality": {"image/hsc": 200, "spectrum/desi": 100},
            "labels": ["scalar/redshift"],
            "predictors": ["scalar/redshift from image/hsc"],
            "index_type": "flat",
            "reason": "300 rows, at most 50000: every vector is compared, which is exact",
            "has_observations": True,
            "simulated_prefix": None,
        }
    ]
}


def about_routes(service: Service) -> APIRouter:
    """`/livez`, `/readyz`, `/v1/limits`, `/v1/models`, `/v1/modalities` and `/v1/collections`."""
    router = APIRouter(tags=["about"])

    @router.get("/livez", summary="Is the process alive?", responses=example({"status": "alive"}))
    async def livez() -> dict[str, str]:
        """Always `alive`, while the model loads too."""
        return {"status": "alive"}

    @router.get("/readyz", summary="Can it answer?", responses=example(_READY, 503))
    async def readyz() -> dict[str, Any]:
        """`ready` once the model is loaded, until the server is told to stop; else 503."""
        if service.is_draining:
            raise ProblemError("not-ready", "the server is stopping")
        model_id = service.model.model_id
        index, _ = service.in_use
        index_id = None if index is None else index.manifest.index_id
        return {"status": "ready", "model_id": model_id, "index_id": index_id}

    @router.get("/v1/limits", summary="What one request may ask for", responses=example(Limits().model_dump()))
    def limits() -> dict[str, int]:
        """Bytes of a body, objects of a batch, neighbours, pixels; clients split their batches by these."""
        return service.limits.model_dump()

    @router.get("/v1/models", summary="The model that is served, in OpenAI's form", responses=example(_MODELS, 503))
    def models() -> dict[str, Any]:
        """Its id (a hash of its weights), its spaces with their sizes, and the modalities it was trained on."""
        model = service.model
        entry = {
            "id": model.model_id,
            "object": "model",
            "created": 0,
            "owned_by": "armillary",
            "spaces": service.spaces(),
            "modalities": [modality.name for modality in model.modalities],
        }
        return {"object": "list", "data": [entry]}

    @router.get("/v1/modalities", summary="What can be sent, with units", responses=example(_MODALITIES, 503))
    def modalities() -> dict[str, Any]:
        """Every modality that /v1/embeddings takes. The model reads the numbers of an instrument, not its name:

        `trained` is false for an instrument that it has not seen, which it can embed all the same.
        """
        trained = {modality.name for modality in service.model.modalities}
        known = service.known_modalities()
        return {"modalities": [describe(known[name], name in trained) for name in sorted(known)]}

    @router.get("/v1/collections", summary="What can be searched", responses=example(_COLLECTIONS))
    def collections() -> dict[str, Any]:
        """Each collection with its model, metric, counts by modality and labels.

        `has_observations` tells whether the server has the dataset behind the index, with pictures and spectra.
        Objects whose ids begin with `simulated_prefix` are simulated, by the record of the dataset behind the index;
        null where there is no dataset or no record.
        """
        index, predictors = service.in_use
        if index is None:
            return {"collections": []}
        manifest = index.manifest
        entry = {
            "name": manifest.name,
            "index_id": manifest.index_id,
            "model_id": manifest.model_id,
            "space": manifest.space,
            "metric": manifest.metric,
            "dimension": manifest.dimension,
            "num_objects": manifest.num_objects,
            "num_rows_of_modality": manifest.num_rows_of_modality,
            "labels": list(manifest.labels),
            "predictors": sorted(predictors),
            "index_type": manifest.index_type,
            "reason": manifest.reason,
            "has_observations": service.dataset is not None,
            "simulated_prefix": service.simulated_prefix,
        }
        return {"collections": [entry]}

    return router


def describe(modality: Modality, is_trained: bool) -> dict[str, Any]:
    """A modality for people and clients: kind, unit, vocabulary and the numbers of its instrument."""
    card = modality.card
    described: dict[str, Any] = {
        "name": modality.name,
        "kind": modality.kind,
        "unit": modality.unit,
        "description": modality.description,
        "vocabulary": modality.vocabulary,
        "trained": is_trained,
        "instrument": card.name,
        "reference": card.reference,
    }
    if isinstance(card, ImagingInstrument):
        described["pixel_scale_arcsec"] = card.pixel_scale
        described["bands"] = [band.model_dump(exclude={"filter_curve"}) for band in card.bands]
    elif isinstance(card, Spectrograph):
        described["wavelength_range_angstrom"] = [card.wavelength_min, card.wavelength_max]
        described["resolving_power"] = [list(knot) for knot in card.resolving_power]
    elif isinstance(card, CoefficientSpectrograph):
        described["arms"] = [arm.model_dump() for arm in card.arms]
    elif isinstance(card, Catalogue):
        described["range"] = [modality.quantity.minimum, modality.quantity.maximum]
    return described
