"""Generation over the client: a request for each object and target, and the samples as the local model has them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
import torch

from ...data.modalities import Modality
from ...data.observations import (
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    SpectrumObservation,
)
from ...data.stacking import stack
from ...models.generated import GeneratedObservations
from .batches import SAFETENSORS, Object, encoded, json_item
from .requests import JSON, Call


def generate_call(
    one: Object, target: Modality, options: Mapping[str, Any], like: Sequence[Observation]
) -> Call[tuple[Observation, ...]]:
    """Samples of one modality of one object, each an observation of one object."""
    given = [row for row in one.rows if row[0].modality.name != target.name]
    body = {"observations": json_item(Object(one.object_id, tuple(given), 0))["observations"], "target": target.name}
    body |= dict(options) | _pixels(one.object_id, target, like)
    if target.kind != "image":
        body.pop("image_size", None)

    def read(response: httpx.Response) -> tuple[Observation, ...]:
        tensors = safetensors.numpy.load(response.content)
        header = json.loads(response.content[8 : 8 + int.from_bytes(response.content[:8], "little")])
        bands = json.loads(header["__metadata__"].get("bands", "null"))
        return tuple(_sample(target, one.object_id, sample, tensors, bands) for sample in tensors["samples"])

    headers = {"Content-Type": JSON, "Accept": SAFETENSORS}
    return Call("POST", "/v1/generate", read, json.dumps(body).encode(), headers)


def generated(target: Modality, object_id: Sequence[str], found: Sequence[Sequence[Observation]]) -> Any:
    """Samples of B objects as the local model's GeneratedObservations; what they were decoded from stays there."""
    samples = [stack([one[number] for one in found]) for number in range(len(found[0]))]
    return GeneratedObservations(target, tuple(object_id), (), tuple(samples))


def _sample(
    target: Modality, object_id: str, sample: np.ndarray, tensors: Mapping[str, np.ndarray], bands: list[str] | None
) -> Observation:
    values, mask = torch.from_numpy(sample)[None], torch.from_numpy(tensors["mask"].astype(bool))[None]
    if target.kind == "image":
        return ImageObservation(target, [object_id], values, bands or [], mask=mask)
    if target.kind == "spectrum":
        grid = torch.from_numpy(tensors["wavelength"])
        return SpectrumObservation(target, [object_id], values, grid, torch.ones_like(values), mask)
    return CoefficientsObservation(target, [object_id], values, mask)


def _pixels(object_id: str, target: Modality, like: Sequence[Observation]) -> dict[str, Any]:
    """The pixels that are wanted, from the observation of this modality in `like`. Raises ObservationError."""
    for template in like:
        if template.modality.name != target.name:
            continue
        if object_id not in template.object_id:
            raise ObservationError(f"{target.name}: `like` must have every object, but lacks {object_id}")
        row = list(template.object_id).index(object_id)
        if isinstance(template, SpectrumObservation):
            return {"wavelength": encoded(template.wavelength[row])}
        if isinstance(template, ImageObservation):
            height, width = template.flux.shape[2:]
            if height != width:
                raise ObservationError(f"{target.name}: over HTTP images are squares, `like` is {height} x {width}")
            return {"image_size": height}
    return {}
