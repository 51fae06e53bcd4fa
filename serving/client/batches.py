"""Objects as request bodies: split by what the server takes, safetensors where they are alike, base64 in JSON else.

Objects of one modality and one shape go as a few tensors; those with several modalities, or of mixed shapes, as JSON.
Masked pixels have inverse variance zero, so that no mask of pixels need be sent.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from ...data.observations import (
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    ScalarObservation,
    pixel_noise,
)
from .errors import TooLargeError
from .results import FailedObject

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
ENVELOPE_BYTES = 2048
"""Room for what stands around the objects in a request."""
_ARRAY_BYTES = 160
"""Room for name, shape and type of an array in JSON."""


@dataclass(frozen=True, eq=False)
class Object:
    """One object: its measurements as rows of observations, and at most how many bytes they take in a request."""

    object_id: str
    rows: tuple[tuple[Observation, int], ...]
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Batch:
    """The objects of one request, with their places among all that are sent."""

    first: int
    objects: tuple[Object, ...]

    def body(self, space: str, max_bytes: int) -> tuple[bytes, str]:
        """The body and its media type. Raises TooLargeError if the server would not take it."""
        asked = {"space": space}
        if _are_alike(self.objects):
            return self._checked(_safetensors(self.objects, asked), SAFETENSORS, max_bytes)
        return self._checked(_json(self.objects, asked), JSON, max_bytes)

    def body_asking(self, asked: Mapping[str, Any], max_bytes: int, *, may_be_raw: bool) -> tuple[bytes, str]:
        """The same of a request that asks more: JSON says it, and of tensors the address must, where they may be."""
        if may_be_raw and _are_alike(self.objects):
            return self._checked(_safetensors(self.objects, {}), SAFETENSORS, max_bytes)
        return self._checked(_json(self.objects, asked), JSON, max_bytes)

    def _checked(self, body: bytes, media_type: str, max_bytes: int) -> tuple[bytes, str]:
        if len(body) > max_bytes:
            names = ", ".join(repr(one.object_id) for one in self.objects[:3])
            detail = f"{names}: {len(body)} bytes, but the server takes at most {max_bytes} in a request"
            raise TooLargeError(413, {"title": "The body is too large", "detail": detail})
        return body, media_type


def objects_of(observations: Sequence[Observation]) -> list[Object]:
    """The objects of these observations, in order of first appearance. Raises ObservationError if there is none."""
    rows: dict[str, list[tuple[Observation, int]]] = {}
    sizes: dict[str, int] = {}
    for observation in observations:
        row_bytes = _row_bytes(observation)
        for row, object_id in enumerate(observation.object_id):
            rows.setdefault(object_id, []).append((observation, row))
            sizes[object_id] = sizes.get(object_id, 12 * len(object_id)) + row_bytes
    if not rows:
        raise ObservationError("expected at least one observation, found none")
    return [Object(object_id, tuple(found), sizes[object_id]) for object_id, found in rows.items()]


def batches(
    items: Iterable[Any],
    observe_item: Callable[[Any, int], Sequence[Observation]],
    max_items: int,
    max_bytes: int,
) -> Iterator[Batch | FailedObject]:
    """Batches of the objects of all items, in order; an item that cannot be observed is a FailedObject in its place.

    `observe_item` takes an item and the number of objects before it. No more than one item and one batch is held. What
    the iterable itself raises comes after the batches before it.
    """
    waiting: list[Object] = []
    first, size = 0, ENVELOPE_BYTES
    source, fault = iter(items), None
    while fault is None:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:
            # What came before it is sent first.
            fault = error
            continue
        failed = None
        try:
            objects = objects_of(observe_item(item, first + len(waiting)))
        except (ObservationError, OSError) as error:
            failed, objects = error, []
        for one in objects:
            if waiting and (len(waiting) == max_items or size + one.num_bytes > max_bytes):
                yield Batch(first, tuple(waiting))
                first, waiting, size = first + len(waiting), [], ENVELOPE_BYTES
            waiting.append(one)
            size += one.num_bytes
        if failed is not None:
            if waiting:
                yield Batch(first, tuple(waiting))
                first, waiting, size = first + len(waiting), [], ENVELOPE_BYTES
            yield FailedObject(first, f"item {first}", failed)
            first += 1
    if waiting:
        yield Batch(first, tuple(waiting))
    if fault is not None:
        raise fault


def json_item(one: Object) -> dict[str, Any]:
    """An object as an entry of `input`: {object_id, observations}."""
    return {"object_id": one.object_id, "observations": [_typed_object(*row) for row in one.rows]}


def embedding_answer(body: bytes) -> tuple[np.ndarray, Mapping[str, Any]]:
    """The vectors [B, D] of a safetensors answer, and its metadata: object_id, modalities, errors, provenance.

    Raises ValueError if it is not one.
    """
    try:
        vectors = safetensors.numpy.load(body)["embedding"]
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        return vectors, {name: json.loads(value) for name, value in header["__metadata__"].items()}
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"expected the tensor `embedding` with its metadata; {error}") from None


def _are_alike(objects: Sequence[Object]) -> bool:
    """Whether all have one measurement, of one modality, shape and bands."""
    if any(len(one.rows) != 1 for one in objects):
        return False
    return len({_form(one.rows[0][0]) for one in objects}) == 1


def _form(observation: Observation) -> tuple[Any, ...]:
    return observation.modality.name, getattr(observation, "bands", None), _main(observation).shape[1:]


def _main(observation: Observation) -> Tensor:
    if isinstance(observation, ScalarObservation | CoefficientsObservation):
        return observation.values
    return observation.flux


def _fields(observation: Observation) -> tuple[str, ...]:
    if isinstance(observation, ScalarObservation | CoefficientsObservation):
        return ("values", "mask", "error")
    if isinstance(observation, ImageObservation):
        return ("flux", "inverse_variance", "psf_fwhm", "depth", "center")
    return ("flux", "inverse_variance", "wavelength", "resolving_power")


def _row_bytes(observation: Observation) -> int:
    """At most how many bytes one row takes, as base64 in JSON."""
    tensors = [getattr(observation, name) for name in _fields(observation)]
    raw = sum(tensor.element_size() * tensor[:1].numel() for tensor in tensors)
    return raw * 4 // 3 + len(tensors) * _ARRAY_BYTES + 400


def _safetensors(objects: Sequence[Object], asked: Mapping[str, str]) -> bytes:
    rows = [one.rows[0] for one in objects]
    example = rows[0][0]
    tensors = {name: _column(rows, name) for name in (*_fields(example), "ra", "dec")}
    if isinstance(example, ImageObservation) and _has_noise_of_depth(tensors, example.card.pixel_scale):
        del tensors["inverse_variance"]
    grid = tensors.get("wavelength")
    if grid is not None and len(grid) > 1 and (grid == grid[:1]).all():
        tensors["wavelength"] = np.ascontiguousarray(grid[0])
    metadata = {
        "modality": example.modality.name,
        "object_id": json.dumps([one.object_id for one in objects]),
        **asked,
    }
    if isinstance(example, ImageObservation):
        metadata["bands"] = ",".join(example.bands)
    return safetensors.numpy.save(tensors, metadata)


def _has_noise_of_depth(tensors: Mapping[str, np.ndarray], pixel_scale: float) -> bool:
    """Whether images' noise is what their depth says at each pixel: the server knows it, and half the bytes stay.

    A masked pixel has inverse variance zero, which no depth says.
    """
    depth, psf_fwhm = torch.from_numpy(tensors["depth"]), torch.from_numpy(tensors["psf_fwhm"])
    typical = (pixel_noise(depth, psf_fwhm, pixel_scale)[..., None, None] ** -2).numpy()
    found = tensors["inverse_variance"]
    # Most differ at once.
    return bool((found[..., :1, :1] == typical).all() and (found == typical).all())


def _column(rows: Sequence[tuple[Observation, int]], name: str) -> np.ndarray:
    """A field of all these rows [B, ...]."""
    numbers = [row for _, row in rows]
    if all(observation is rows[0][0] for observation, _ in rows):
        tensor = getattr(rows[0][0], name)[numbers]
    else:
        tensor = torch.stack([getattr(observation, name)[row] for observation, row in rows])
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _json(objects: Sequence[Object], asked: Mapping[str, Any]) -> bytes:
    return json.dumps({**asked, "input": [json_item(one) for one in objects]}).encode()


def _typed_object(observation: Observation, row: int) -> dict[str, Any]:
    """One row of an observation, as the server's TypedObject."""
    typed: dict[str, Any] = {"modality": observation.modality.name, "object_id": observation.object_id[row]}
    for name in ("ra", "dec"):
        value = float(getattr(observation, name)[row])
        if np.isfinite(value):
            typed[name] = value
    if isinstance(observation, ScalarObservation):
        typed |= {"data": float(observation.values[row]), "mask": bool(observation.mask[row])}
        error = float(observation.error[row])
        return typed if np.isnan(error) else typed | {"error": error}
    if isinstance(observation, ImageObservation):
        typed["bands"] = list(observation.bands)
    main, *others = _fields(observation)
    return (
        typed
        | encoded(getattr(observation, main)[row])
        | {name: encoded(getattr(observation, name)[row]) for name in others}
    )


def encoded(values: Tensor) -> dict[str, Any]:
    """An array as the server's EncodedArray: base64, shape and type."""
    array = values.detach().cpu().numpy()
    name = {np.dtype(np.float64): "float64", np.dtype(np.bool_): "bool"}.get(array.dtype, "float32")
    raw = np.ascontiguousarray(array, np.dtype(name).newbyteorder("<")).tobytes()
    return {"data": base64.b64encode(raw).decode(), "shape": list(array.shape), "dtype": name}
