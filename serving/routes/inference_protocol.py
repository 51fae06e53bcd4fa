"""The Open Inference Protocol (v2) of KServe and Triton: named tensors in JSON, or as bytes behind it.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and Triton's extension for binary
tensors: the header `Inference-Header-Content-Length` says how long the JSON is, and the tensors that have the parameter
`binary_data_size` follow it in order. Numbers only: no strings, no shared memory.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..formats import bodies
from ..problems import ProblemError, at, pointer
from ..schemas.inference import InferOutput, InferRequest, InferTensor

HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
}
"""The protocol's names of types, and numpy's."""


def read_request(body: bytes, header_length: str | None) -> tuple[InferRequest, dict[str, np.ndarray]]:
    """The request, and its tensors by name. Raises ProblemError: 400 where lengths do not fit, 422 for a field."""
    length = len(body)
    if header_length is not None:
        if not header_length.isdigit() or int(header_length) > len(body):
            raise ProblemError(
                "malformed-body",
                f"{HEADER_LENGTH}: expected at most the body's {len(body)}, found {header_length[:40]!r}",
            )
        length = int(header_length)
    asked = bodies.parse_json(InferRequest, body[:length])
    tensors: dict[str, np.ndarray] = {}
    start = length
    for number, given in enumerate(asked.inputs):
        place = ("inputs", number)
        if given.datatype not in DATATYPES:
            raise _invalid((*place, "datatype"), f"expected one of {list(DATATYPES)}, found {given.datatype[:40]!r}")
        if given.name in tensors:
            raise _invalid((*place, "name"), f"the tensor {given.name[:80]!r} comes twice")
        dtype = np.dtype(DATATYPES[given.datatype])
        size = given.parameters.get("binary_data_size")
        if size is None:
            array = _from_json(given, dtype, place)
        else:
            wanted = math.prod(given.shape) * dtype.itemsize
            if isinstance(size, bool) or size != wanted or len(body) - start < wanted:
                raise _invalid(
                    (*place, "parameters", "binary_data_size"),
                    f"{given.datatype} of shape {given.shape} has {wanted} bytes; {size!r} are announced, and "
                    f"{len(body) - start} came",
                )
            array = np.frombuffer(body, dtype, math.prod(given.shape), start)
            start += wanted
        tensors[given.name] = array.reshape(given.shape)
    if start != len(body):
        raise ProblemError("malformed-body", f"{len(body) - start} bytes follow the last tensor")
    return asked, tensors


def write_answer(
    asked: InferRequest, name: str, version: str, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer with the outputs that are wanted, by default all.

    Raises ProblemError (422) for an output that there is not.
    """
    wanted: Sequence[InferOutput] = asked.outputs or [InferOutput(name=output) for output in outputs]
    entries, tail = [], b""
    for number, output in enumerate(wanted):
        if output.name not in outputs:
            raise _invalid(("outputs", number, "name"), f"expected one of {list(outputs)}, found {output.name[:80]!r}")
        array = outputs[output.name]
        entry: dict[str, Any] = {"name": output.name, "shape": list(array.shape), "datatype": f"FP{8 * array.itemsize}"}
        if output.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)):
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    head = {"model_name": name, "model_version": version, "outputs": entries}
    if asked.id:
        head["id"] = asked.id
    text = json.dumps(head).encode()
    if not tail:
        return text, {"Content-Type": bodies.JSON}
    return text + tail, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}


def _from_json(given: InferTensor, dtype: np.dtype[Any], place: tuple[str | int, ...]) -> np.ndarray:
    if given.data is None:
        raise _invalid((*place, "data"), "expected the tensor's numbers, found none")
    array = bodies.array_of(given.data, (*place, "data"))
    if array.size != math.prod(given.shape):
        detail = f"shape {given.shape} has {math.prod(given.shape)} numbers; {array.size} came"
        raise _invalid((*place, "data"), detail)
    return array.astype(dtype)


def _invalid(place: tuple[str | int, ...], detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
