"""From HTTP bodies to observations: base64, nested lists and .npy become arrays, arrays become checked observations.

Every error is a `ProblemError` that points to the field. Sizes are checked before memory is taken: a body can claim any
shape, but gets no more bytes than it sent.
"""

import base64
import binascii
import io
import math
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from jaxtyping import Float32
from numpy.lib import format as npy_format
from pydantic import BaseModel, ValidationError

from ...data.modalities import MODALITIES, Modality
from ...data.observations import (
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from ..limits import Limits
from ..middleware.body_memory import claim_of
from ..problems import ProblemError, at, from_validation, not_found, pointer
from ..schemas.common import EncodedArray, ObjectItem, TypedObject

DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
NO_NPY = (
    *(ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError),
    *(LookupError, ArithmeticError, RecursionError, MemoryError),
)
"""What numpy raises on headers that are none."""
UNNAMED = "(unnamed)"
JSON = "application/json"
NPY = "application/x-npy"

BodyType = TypeVar("BodyType", bound=BaseModel)
Place = tuple[str | int, ...]

# Names of the measurement's arrays in `data/observations.py` that the API calls `data`, or says in other words.
_FIELD_OF_FIRST_WORD = {"flux": "data", "value": "data", "values": "data", "no": "data", "unknown": "bands"}


async def read_body(request: Request, limits: Limits, allowed: tuple[str, ...] = (JSON,)) -> tuple[str, bytes]:
    """The body's media type (JSON where none is said) and the whole body.

    Raises ProblemError: 415 for a type that is not allowed; 413 as soon as the body exceeds the limit, whatever
    Content-Length says; 429 where the bodies of other requests leave no room for it.
    """
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise ProblemError("unsupported-media-type", f"expected {' or '.join(allowed)}, found {media_type!r}")
    limit = limits.max_body_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    claim = claim_of(request)
    await claim.announce(int(announced) if announced.isdigit() else 0)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        await claim.come(size)
        chunks.append(chunk)
    return media_type, b"".join(chunks)


def parse_json(model_type: type[BodyType], body: bytes) -> BodyType:
    """A JSON body as `model_type`. Raises ProblemError (422) if it is not JSON, or JSON of another form."""
    try:
        return model_type.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def parse_fields(model_type: type[BodyType], content: Any, place: Place) -> BodyType:
    """A part of a parsed body as `model_type`; errors point below `place`."""
    if not isinstance(content, dict):
        raise _invalid(place, f"expected a JSON object, found {type(content).__name__}")
    try:
        return model_type.model_validate(content)
    except ValidationError as error:
        raise from_validation(error, *place) from None


def observations_of(
    item: Mapping[str, Any], place: Place, known: Mapping[str, Modality], limits: Limits
) -> list[Observation]:
    """The observations of one object: `item` is an ObjectItem or a TypedObject. Raises ProblemError."""
    if "observations" not in item:
        return [observation_of(parse_fields(TypedObject, item, place), place, known, limits)]
    parsed = parse_fields(ObjectItem, item, place)
    if not parsed.observations:
        raise _unusable((*place, "observations"), "expected at least one observation, found none")
    found: list[Observation] = []
    for number, content in enumerate(parsed.observations):
        here = (*place, "observations", number)
        typed = parse_fields(TypedObject, content, here)
        inherited = {name: getattr(parsed, name) for name in ("object_id", "ra", "dec") if getattr(typed, name) is None}
        found.append(observation_of(typed.model_copy(update=inherited), here, known, limits))
        if found[-1].modality in [o.modality for o in found[:-1]]:
            raise _unusable((*here, "modality"), f"an object has each modality once; found {typed.modality} twice")
    return found


def observation_of(typed: TypedObject, place: Place, known: Mapping[str, Modality], limits: Limits) -> Observation:
    """One measurement as a batch of one object. Raises ProblemError: 404 for an unknown modality, 422 otherwise."""
    modality = known.get(typed.modality)
    if modality is None:
        problem = not_found("modality", typed.modality, known)
        raise ProblemError("not-found", problem.detail, [at(pointer(*place, "modality"), problem.detail)])
    values = array_of(typed.data, (*place, "data"), typed.shape, typed.dtype)
    fields = {
        name: array_of(given, (*place, name))
        for name in FIELDS[modality.kind]
        if name != "bands" and (given := getattr(typed, name)) is not None
    }
    for name in TypedObject.model_fields:
        if name not in FIELDS[modality.kind] and name not in _COMMON_FIELDS and getattr(typed, name) is not None:
            raise _unusable((*place, name), f"{modality.kind} has no {name}; it takes {list(FIELDS[modality.kind])}")
    return observation(modality, values, fields, typed, place, limits)


def row_object(
    modality: Modality,
    values: np.ndarray,
    fields: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    place: Place,
    limits: Limits,
) -> list[Observation] | ProblemError:
    """One object of a batch, from its arrays and what is said `about` it by the names of TypedObject.

    What is wrong with it is returned, so that it fails alone.
    """
    try:
        typed = parse_fields(TypedObject, {"modality": modality.name, "data": 0.0, **about}, place)
        return [_observations(modality, values[None], _with_axis(fields), [typed], place, limits)]
    except ProblemError as problem:
        return problem


def row_objects(
    modality: Modality,
    values: np.ndarray,
    fields: Mapping[str, np.ndarray],
    about: Sequence[Mapping[str, Any]],
    limits: Limits,
) -> list[list[Observation] | ProblemError]:
    """`row_object` for objects of one shape, along the first axis of all arrays; `about` says the same unit and bands.

    They are read as one, which is four times faster; where something is wrong, one by one.
    """
    try:
        typed = [parse_fields(TypedObject, {"modality": modality.name, "data": 0.0, **row}, ()) for row in about]
        together = _observations(modality, values, fields, typed, (), limits)
    except ProblemError:
        return [
            row_object(
                modality,
                np.asarray(values[row]),
                {name: np.asarray(array[row]) for name, array in fields.items()},
                said,
                ("input", row),
                limits,
            )
            for row, said in enumerate(about)
        ]
    return [[together.select([row])] for row in range(len(about))]


def observations_from_npy(
    body: bytes, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits
) -> list[list[Observation]]:
    """The objects of a raw .npy body; the rest comes from query parameters (`modality`, `bands=g,r,z`, ...).

    Images: [bands, height, width], or with a leading axis of objects. Spectra: [3, wavelengths] = flux, inverse
    variance and wavelength, or with a leading axis; coefficients: [coefficients], likewise. Scalars: [objects]. Raises
    ProblemError: 400 if it is not .npy.
    """
    array = read_npy(body)
    fields = {name: query[name] for name in ("modality", "object_id", "unit") if name in query}
    content: dict[str, Any] = {**fields, "data": 0.0}
    for name in ("ra", "dec"):
        if name in query:
            content[name] = query[name]
    if "bands" in query:
        content["bands"] = [band.strip() for band in query["bands"].split(",")]
    typed = parse_fields(TypedObject, content, ())
    modality = known.get(typed.modality)
    if modality is None:
        raise not_found("modality", typed.modality, known)
    axes = {"image": 3, "spectrum": 2, "coefficients": 1, "scalar": 0}[modality.kind]
    objects = array[None] if array.ndim == axes else array
    wanted = {
        "image": "[bands, height, width]",
        "spectrum": "[3, wavelengths]",
        "coefficients": "[coefficients]",
        "scalar": "[]",
    }[modality.kind]
    if objects.ndim != axes + 1 or (modality.kind == "spectrum" and objects.shape[1] != 3):
        detail = f"{modality.name}: expected shape {wanted} or a batch of it, found {list(array.shape)}"
        raise _unusable(("data",), detail)
    check_count(len(objects), limits)
    if not len(objects):
        return []
    rest = {}
    if modality.kind == "spectrum":
        objects, rest["inverse_variance"], rest["wavelength"] = objects.swapaxes(0, 1)
    together = _observations(modality, objects, rest, [typed] * len(objects), (), limits)
    return [[together.select([row])] for row in range(len(objects))]


def read_npy(body: bytes) -> np.ndarray:
    """A .npy file as an array, without pickle. Raises ProblemError (400)."""
    file = io.BytesIO(body)
    try:
        version = npy_format.read_magic(file)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except NO_NPY as error:
        raise ProblemError("malformed-body", f"the body is not a .npy file: {str(error)[:300]}") from None
    if dtype.kind not in "fiub":
        raise ProblemError("malformed-body", f"a .npy body must hold numbers; found {dtype}")
    # numpy.load would take the memory that the header claims; here the bytes that came must match it.
    content = body[file.tell() :]
    if min(shape, default=0) < 0 or len(content) != math.prod(shape) * dtype.itemsize:
        raise ProblemError(
            "malformed-body",
            f"the .npy header says {list(shape)} of {dtype}, {math.prod(shape) * dtype.itemsize} bytes; "
            f"{len(content)} bytes follow",
        )
    array = shaped(np.frombuffer(content, dtype), shape[::-1] if is_fortran else shape, "the array")
    return array.T if is_fortran else array


def shaped(array: np.ndarray, shape: Sequence[int], what: str) -> np.ndarray:
    """The array in a shape of as many numbers. Raises ProblemError (400): none may have 10^20 rows of nothing."""
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        detail = f"{what} of shape {list(shape)[:8]} cannot be made: {str(error)[:200]}"
        raise ProblemError("malformed-body", detail) from None


def check_count(count: int, limits: Limits) -> None:
    """Raises ProblemError (413) if a call asks for more objects than one may."""
    if count > limits.max_items:
        raise ProblemError(
            "too-large", f"at most {limits.max_items} objects in one call, found {count}; see /v1/limits"
        )


def vector_of(given: list[float] | str, place: Place) -> Float32[np.ndarray, " D"]:
    """A query's vector, from numbers or base64 of float32. Raises ProblemError."""
    if isinstance(given, str):
        raw = _base64(given, place)
        if len(raw) % 4:
            raise _invalid(place, f"expected base64 of float32, found {len(raw)} bytes")
        return np.frombuffer(raw, "<f4").astype(np.float32)
    return np.array(given, np.float32)


def encode_vector(vector: Float32[np.ndarray, " D"], encoding_format: str) -> list[float] | str:
    """A vector for an answer: numbers, or base64 of float32, little-endian."""
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def known_modalities(trained: tuple[Modality, ...]) -> dict[str, Modality]:
    """By name: those of the model, and declared images and spectra if it was trained on any: it reads their cards."""
    kinds = {modality.kind for modality in trained} - {"scalar", "coefficients"}
    declared = {m.name: m for m in MODALITIES if m.kind in kinds}
    return declared | {m.name: m for m in trained}


FIELDS: dict[str, tuple[str, ...]] = {
    "image": ("bands", "inverse_variance", "mask", "psf_fwhm", "depth", "center"),
    "spectrum": ("wavelength", "inverse_variance", "mask", "resolving_power"),
    "coefficients": ("mask", "error"),
    "scalar": ("mask", "error"),
}
"""Arrays and bands that a measurement of each kind may come with, beside its values."""
_NEEDED: dict[str, tuple[str, ...]] = {
    "image": ("bands",),
    "spectrum": ("wavelength", "inverse_variance"),
    "coefficients": (),
    "scalar": (),
}
_COMMON_FIELDS = ("modality", "data", "shape", "dtype", "unit", "object_id", "ra", "dec")
_CLASSES: dict[str, tuple[Any, str]] = {
    "image": (ImageObservation, "flux"),
    "spectrum": (SpectrumObservation, "flux"),
    "coefficients": (CoefficientsObservation, "values"),
    "scalar": (ScalarObservation, "values"),
}


def observation(
    modality: Modality,
    values: np.ndarray,
    fields: Mapping[str, np.ndarray],
    typed: TypedObject,
    place: Place,
    limits: Limits,
) -> Observation:
    """One measurement as a batch of one object: its values, the other arrays by name, and what `typed` says of it.

    Raises ProblemError that points below `place`.
    """
    return _observations(modality, values[None], _with_axis(fields), [typed], place, limits)


def _with_axis(fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[None] for name, array in fields.items()}


def _observations(
    modality: Modality,
    values: np.ndarray,
    fields: Mapping[str, np.ndarray],
    typed: Sequence[TypedObject],
    place: Place,
    limits: Limits,
) -> Observation:
    """`observation` for objects of one shape, along the first axis; `typed` says the same unit and bands of all."""
    unit, bands = typed[0].unit, typed[0].bands
    if unit is not None and unit != modality.unit:
        raise _unusable((*place, "unit"), f"{modality.name} is in {modality.unit!r}, found {unit!r}")
    given: dict[str, Any] = dict(fields)
    if "mask" in given and np.isin(given["mask"], (0, 1)).all():
        # JSON people write 0 and 1, and not every array format has booleans.
        given["mask"] = given["mask"].astype(bool)
    if bands is not None:
        given["bands"] = bands
    missing = [name for name in _NEEDED[modality.kind] if name not in given]
    if missing:
        raise ProblemError(
            "invalid-observation",
            f"{pointer(*place) or '/'}: {modality.name} needs {' and '.join(missing)}",
            [at(pointer(*place, name), f"{modality.name} needs {name}") for name in missing],
        )
    _check_sizes(modality, values.shape[1:], (*place, "data"), limits)
    if modality.kind == "scalar":
        # One number: its shape may be [] or [1].
        values = values.reshape(len(typed))
        for name, array in given.items():
            if array[0].size != 1:
                raise _unusable((*place, name), f"expected one value, found shape {list(array.shape[1:])}")
            given[name] = array.reshape(len(typed))
    made_of, main = _CLASSES[modality.kind]
    object_id = [UNNAMED if one.object_id is None else one.object_id for one in typed]
    position = {}
    for name in ("ra", "dec"):
        coordinates = [getattr(one, name) for one in typed]
        if any(value is not None for value in coordinates):
            position[name] = [math.nan if value is None else value for value in coordinates]
    try:
        return made_of(modality, object_id, **{main: values}, **given, **position)
    except ObservationError as error:
        starts = [*(f"{modality.name}, object {name}: " for name in object_id), f"{modality.name}: "]
        start = next((text for text in starts if str(error).startswith(text)), "")
        first = str(error).removeprefix(start).split(maxsplit=1)[0].rstrip(":,")
        field = _FIELD_OF_FIRST_WORD.get(first, first if first in TypedObject.model_fields else "data")
        raise _unusable((*place, field), str(error)) from None


def _check_sizes(modality: Modality, shape: tuple[int, ...], place: Place, limits: Limits) -> None:
    if modality.kind == "image":
        if len(shape) != 3:
            raise _unusable(place, f"expected shape [bands, height, width], found {list(shape)}")
        if max(shape[1:]) > limits.max_image_side:
            raise _unusable(place, f"at most {limits.max_image_side} pixels on a side, found {list(shape[1:])}")
    elif modality.kind == "spectrum":
        if len(shape) != 1:
            raise _unusable(place, f"expected shape [wavelengths], found {list(shape)}")
        if shape[0] > limits.max_wavelengths:
            raise _unusable(place, f"at most {limits.max_wavelengths} wavelengths, found {shape[0]}")
    elif modality.kind == "coefficients":
        if len(shape) != 1:
            raise _unusable(place, f"expected shape [coefficients], found {list(shape)}")
    elif math.prod(shape) != 1:
        raise _unusable(place, f"expected one number, found shape {list(shape)}")


def array_of(given: Any, place: Place, shape: list[int] | None = None, dtype: str = "float32") -> np.ndarray:
    """A field that holds an array: `{data, shape, dtype}`, base64 with its shape beside it, or nested lists.

    Raises ProblemError (422) that points to it.
    """
    if isinstance(given, dict):
        encoded = parse_fields(EncodedArray, given, place)
        return array_of(encoded.data, (*place, "data"), encoded.shape, encoded.dtype)
    if isinstance(given, str):
        if shape is None:
            raise _invalid(place, "base64 needs its shape; send data, shape and dtype")
        if dtype not in DTYPES:
            raise _invalid((*place[:-1], "dtype"), f"expected one of {list(DTYPES)}, found {dtype!r}")
        raw = _base64(given, place)
        item = np.dtype(dtype).newbyteorder("<")
        if len(raw) != math.prod(shape) * item.itemsize:
            raise _invalid(
                place,
                f"{dtype} of shape {shape} has {math.prod(shape) * item.itemsize} bytes, but {len(raw)} came",
            )
        return shaped(np.frombuffer(raw, item), shape, "data").astype(item.newbyteorder("="))
    try:
        array = np.array(given)
    except ValueError:
        raise _invalid(place, "nested lists must have one shape; these are ragged") from None
    if array.dtype.kind not in "fiub":
        raise _invalid(place, f"expected numbers, found {array.dtype.type.__name__}")
    if shape is not None and list(array.shape) != shape:
        raise _invalid((*place[:-1], "shape"), f"the lists have shape {list(array.shape)}, found {shape}")
    return array


def _base64(given: str, place: Place) -> bytes:
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(place, f"not valid base64: {error}") from None


def _too_large(limit: int) -> ProblemError:
    return ProblemError("too-large", f"the body exceeds {limit} bytes; see /v1/limits")


def _invalid(place: Place, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place) or '/'}: {detail}", [at(pointer(*place), detail)])


def _unusable(place: Place, detail: str) -> ProblemError:
    return ProblemError("invalid-observation", f"{pointer(*place) or '/'}: {detail}", [at(pointer(*place), detail)])
