"""What the metadata of a batch of arrays say (safetensors, Arrow): of what the arrays are, and what is asked."""

from collections.abc import Mapping
from typing import Any

from ...data.modalities import Modality
from ..problems import ProblemError, at, not_found, pointer

REQUEST_METADATA = ("space", "model")
MEASUREMENT_METADATA = ("modality", "bands", "object_id", "unit")

MAIN = {"image": "flux", "spectrum": "flux", "coefficients": "values", "scalar": "values"}
"""The array that a batch of each kind must have."""
AXES = {"image": 3, "spectrum": 1, "coefficients": 1, "scalar": 0}
"""Of that array, for one object."""


def batch_metadata(metadata: Mapping[str, str], known: Mapping[str, Modality]) -> tuple[Modality, dict[str, Any]]:
    """The modality of a batch, and the fields of TypedObject that all its objects share.

    Raises ProblemError: 404 for an unknown modality, 422 for a missing one or other unknown metadata.
    """
    unknown = sorted(metadata.keys() - {*MEASUREMENT_METADATA, *REQUEST_METADATA})
    if unknown:
        raise _invalid(unknown[0], f"unknown metadata; known: {[*MEASUREMENT_METADATA, *REQUEST_METADATA]}")
    if "modality" not in metadata:
        raise _invalid("modality", "the metadata must name the modality")
    modality = known.get(metadata["modality"])
    if modality is None:
        raise not_found("modality", metadata["modality"], known)
    shared: dict[str, Any] = {}
    if "unit" in metadata:
        shared["unit"] = metadata["unit"]
    if "bands" in metadata:
        shared["bands"] = [band.strip() for band in metadata["bands"].split(",")]
    return modality, shared


def _invalid(name: str, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{name}: {detail}", [at(pointer(name), detail)])
