"""Uploads of many objects, read from disk a chunk at a time: the bodies of /v1/embeddings, without their size's limit.

A chunk is handed to the reader of that body, so that a file means the same in both places. No more than a chunk is in
memory, and no chunk exceeds the body that one call may have.
"""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from numpy.lib import format as npy_format

from ...data.modalities import Modality
from ...data.observations import Observation
from ..formats import bodies
from ..formats.arrow_body import ARROW, observations_from_arrow
from ..formats.batch_metadata import AXES
from ..formats.fits_body import FITS, observations_from_fits
from ..formats.safetensors_body import SAFETENSORS, observations_from_safetensors
from ..limits import Limits
from ..problems import ProblemError
from .bulk_arrow import ArrowBatches

Objects = Sequence[list[Observation] | ProblemError]
_NPY_AXES = AXES | {"spectrum": 2}
MAX_FITS_BYTES = 2**30
"""Of a FITS upload, which has no rows to read by, and is held in memory."""
_MAX_AXES, _MAX_NUMBERS = 32, 2**59
_PLACE = re.compile(r"/input/(\d+)")
_PER_OBJECT = 4096
"""Bytes to allow for beside an object's arrays."""


@dataclass(frozen=True)
class BulkInput:
    """An upload of `count` objects; `read(start, stop)` gives a part of them, or raises ProblemError for all of it.

    Places in errors are those of the part.
    """

    count: int
    bytes_of_object: int
    read: Callable[[int, int], Objects]

    def objects(self, start: int, stop: int) -> Objects:
        """The objects from `start` to before `stop`; errors name their places in the whole upload."""
        return [
            renumbered(found, start) if isinstance(found, ProblemError) else found for found in self.read(start, stop)
        ]

    def chunk_objects(self, wanted: int, limits: Limits) -> int:
        """How many objects to read at once: no more than one call may have."""
        return max(1, min(wanted, limits.max_items, limits.max_body_bytes // (self.bytes_of_object + _PER_OBJECT)))


def open_input(
    path: Path, media_type: str, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits
) -> BulkInput:
    """An upload by its media type; its header is read. Raises ProblemError if it cannot be read, or has no object."""
    return OPENERS[media_type](path, query, known, limits)


def _tried(found: BulkInput, limits: Limits) -> BulkInput:
    """The upload, after its first object was read: what is wrong with all of it is said before it becomes a job."""
    if found.count == 0:
        raise ProblemError("invalid-request", "expected at least one object, found none")
    if found.bytes_of_object > limits.max_body_bytes:
        raise ProblemError(
            "too-large", f"an object has {found.bytes_of_object} bytes, at most {limits.max_body_bytes} may come"
        )
    found.read(0, 1)
    return found


def renumbered(problem: ProblemError, offset: int) -> ProblemError:
    """A problem of a chunk with its places (`/input/3/data`) counted from the beginning of the upload."""

    def shift(text: str) -> str:
        return _PLACE.sub(lambda found: f"/input/{int(found[1]) + offset}", text)

    errors = [{name: shift(text) for name, text in error.items()} for error in problem.errors]
    return ProblemError(problem.kind, shift(problem.detail), errors)


def _open_safetensors(path: Path, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits) -> BulkInput:
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = dict(file.metadata() or {})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
            types = {name: file.get_slice(name).get_dtype() for name in shapes}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ProblemError("malformed-body", f"the upload is not a safetensors file: {error}") from None
    for name, dtype in types.items():
        if dtype == "BF16" or dtype.startswith("F8") or dtype[:1] not in "FIUB":
            raise ProblemError("malformed-body", f"tensor {name!r} has type {dtype}, which numpy lacks")
        # Even of no numbers at all, numpy makes no array of such a shape.
        if len(shapes[name]) > _MAX_AXES or math.prod(max(size, 1) for size in shapes[name]) > _MAX_NUMBERS:
            raise ProblemError("malformed-body", f"tensor {name!r} has shape {list(shapes[name])[:8]}")
    modality = known.get(metadata.get("modality", ""))
    main = "flux" if "flux" in shapes else "values"
    axes = 0 if modality is None else AXES[modality.kind]
    is_batch = modality is not None and main in shapes and len(shapes[main]) == axes + 1
    count = shapes[main][0] if is_batch else 1
    common = {name for name, shape in shapes.items() if name == "wavelength" and shape == shapes.get(main, (0,))[1:]}
    own = {name for name in shapes if is_batch and name not in common}
    short = sorted(name for name in own if not shapes[name] or shapes[name][0] != count)
    if short:
        raise ProblemError(
            "invalid-request",
            f"{short[0]}: expected one entry for each of {count} objects, found shape {list(shapes[short[0]])}",
        )
    ids = _ids(metadata, count) if is_batch else None

    def read(start: int, stop: int) -> Objects:
        with safetensors.safe_open(path, "np") as file:
            tensors = {
                name: np.asarray(file.get_slice(name)[start:stop] if name in own else file.get_tensor(name))
                for name in shapes
            }
        return observations_from_safetensors(
            tensors, metadata if ids is None else metadata | {"object_id": ids(start, stop)}, known, limits
        )

    # As float64, the widest that may be made of them.
    size = sum(8 * math.prod(shape[1:] if name in own else shape) for name, shape in shapes.items())
    return _tried(BulkInput(count, size, read), limits)


def _ids(metadata: Mapping[str, str], count: int) -> Callable[[int, int], str] | None:
    """The part of the metadata's list of ids that a chunk has, as JSON."""
    if "object_id" not in metadata:
        return None
    try:
        found = json.loads(metadata["object_id"])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != count or not all(isinstance(name, str) for name in found):
        raise ProblemError("invalid-request", f"object_id: expected a JSON list of {count} strings in the metadata")
    return lambda start, stop: json.dumps(found[start:stop])


def _open_npy(path: Path, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits) -> BulkInput:
    try:
        array = npy_format.open_memmap(path, mode="r")
    except (*bodies.NO_NPY, OSError) as error:
        raise ProblemError("malformed-body", f"the upload is not a .npy file of numbers: {error}") from None
    modality = known.get(query.get("modality", ""))
    axes = 0 if modality is None else _NPY_AXES[modality.kind]
    is_batch = array.ndim == axes + 1

    def read(start: int, stop: int) -> Objects:
        part = npy_format.open_memmap(path, mode="r")
        body = io.BytesIO()
        np.save(body, np.ascontiguousarray(part[start:stop] if is_batch else part), allow_pickle=False)
        return bodies.observations_from_npy(body.getvalue(), query, known, limits)

    count = len(array) if is_batch else 1
    return _tried(BulkInput(count, array.nbytes // max(count, 1), read), limits)


def _open_arrow(path: Path, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits) -> BulkInput:
    batches = ArrowBatches(path, limits)

    def read(start: int, stop: int) -> Objects:
        found: list[list[Observation] | ProblemError] = []
        for table, offset in batches.tables(start, stop):
            part = observations_from_arrow(table, batches.metadata, known, limits)
            found += [renumbered(o, offset - start) if isinstance(o, ProblemError) else o for o in part]
        return found

    return _tried(BulkInput(batches.count, batches.bytes_of_row, read), limits)


def _open_fits(path: Path, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits) -> BulkInput:
    if path.stat().st_size > MAX_FITS_BYTES:
        raise ProblemError(
            "too-large", f"a FITS file is read as a whole, so that it may have at most {MAX_FITS_BYTES} bytes"
        )
    size = max(path.stat().st_size, 1)
    whole = limits.model_copy(update={"max_items": size})
    found = observations_from_fits(path.read_bytes(), query, known, whole)

    def read(start: int, stop: int) -> Objects:
        return [renumbered(o, -start) if isinstance(o, ProblemError) else o for o in found[start:stop]]

    return _tried(BulkInput(len(found), size // max(len(found), 1), read), limits)


Opener = Callable[[Path, Mapping[str, str], Mapping[str, Modality], Limits], BulkInput]
OPENERS: dict[str, Opener] = {
    SAFETENSORS: _open_safetensors,
    ARROW: _open_arrow,
    bodies.NPY: _open_npy,
    FITS: _open_fits,
}
"""The media types of uploads."""
