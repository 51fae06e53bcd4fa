"""Objects of one modality as a safetensors body: the fields of an observation by their own names, metadata beside.

Tensors of an image: `flux` [B, C, H, W] and, where known, `inverse_variance`, `mask`, `psf_fwhm`, `depth`, `center`;
of a spectrum: `flux`, `wavelength`, `inverse_variance` [B, L] and, where known, `mask`, `resolving_power`; of a scalar:
`values` [B], `mask`, `error`. One object may come without the leading axis; a wavelength grid may be common to all.
`ra`, `dec` [B] in degrees, ICRS. Metadata are strings: `modality`, `bands` ("g,r,z"), `object_id` (a JSON list),
`unit`, `space`, `model`.
"""

import json
from collections.abc import Mapping

import numpy as np
import safetensors

from ...data.modalities import Modality
from ...data.observations import Observation
from ..limits import Limits
from ..problems import ProblemError, at, pointer
from . import bodies
from .batch_metadata import AXES, MAIN, batch_metadata

SAFETENSORS = "application/vnd.safetensors"

_DTYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"{sign}{bits}": f"<{sign.lower()}{bits // 8}" for sign in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
}


def read_safetensors(body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ProblemError (400) if it is none, or of types numpy lacks."""
    try:
        # The library checks the header against the bytes that came; it returns no metadata.
        entries = safetensors.deserialize(body)  # type: ignore[no-untyped-call]
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ProblemError("malformed-body", f"the body is not a safetensors file: {error}") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise ProblemError(
                "malformed-body", f"tensor {name!r} has type {entry['dtype']}; expected one of {sorted(_DTYPES)}"
            )
        values = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
        tensors[name] = bodies.shaped(values, entry["shape"], f"tensor {name[:80]!r}")
    return tensors, header.get("__metadata__") or {}


def observations_from_safetensors(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], known: Mapping[str, Modality], limits: Limits
) -> list[list[Observation] | ProblemError]:
    """For each object of the body its one observation, or what is wrong with it: a bad object fails alone.

    Raises ProblemError if the body as a whole is wrong: an unknown modality, field or metadata, shapes that disagree.
    """
    modality, shared = batch_metadata(metadata, known)
    main, axes = MAIN[modality.kind], AXES[modality.kind]
    fields = [name for name in bodies.FIELDS[modality.kind] if name != "bands"]
    strange = sorted(tensors.keys() - {main, "ra", "dec", *fields})
    if strange:
        raise _invalid(strange[0], f"{modality.name} has no such tensor; it takes {[main, *fields, 'ra', 'dec']}")
    if main not in tensors:
        raise _invalid(main, f"{modality.name} needs the tensor {main}")
    values = tensors[main]
    if values.ndim not in (axes, axes + 1):
        raise _invalid(main, f"expected {axes} axes, or {axes + 1} with the objects first, found {list(values.shape)}")
    is_batch = values.ndim == axes + 1
    count = len(values) if is_batch else 1
    if count == 0:
        raise _invalid(main, "expected at least one object, found none")
    bodies.check_count(count, limits)
    columns = {name: _by_object(name, array, values, count, is_batch) for name, array in tensors.items()}
    object_id = _object_ids(metadata, count)
    about = []
    for row in range(count):
        position = {name: float(columns[name][row]) for name in ("ra", "dec") if name in columns}
        is_known = {name: value for name, value in position.items() if not np.isnan(value)}
        about.append(shared | is_known | {"object_id": object_id[row]})
    given = {name: columns[name] for name in fields if name in columns}
    return bodies.row_objects(modality, columns[main], given, about, limits)


def _by_object(name: str, array: np.ndarray, values: np.ndarray, count: int, is_batch: bool) -> np.ndarray:
    """The array with the objects along its first axis."""
    if name in ("ra", "dec") and array.ndim != int(is_batch):
        raise _invalid(name, f"expected one number for each of {count} objects, found shape {list(array.shape)}")
    if not is_batch:
        return array[None]
    if name == "wavelength" and array.shape == values.shape[1:]:
        return np.broadcast_to(array, values.shape)
    if array.ndim == 0 or len(array) != count:
        raise _invalid(name, f"expected one entry for each of {count} objects, found shape {list(array.shape)}")
    return array


def _object_ids(metadata: Mapping[str, str], count: int) -> list[str | None]:
    if "object_id" not in metadata:
        return [None] * count
    try:
        found = json.loads(metadata["object_id"])
        # JSON may hold half of a character, which no answer can.
        "".join(name for name in found if isinstance(name, str)).encode()
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != count or not all(isinstance(name, str) for name in found):
        raise _invalid("object_id", f"expected a JSON list of {count} strings, found {metadata['object_id'][:80]!r}")
    return list(found)


def _invalid(name: str, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{name}: {detail}", [at(pointer(name), detail)])
