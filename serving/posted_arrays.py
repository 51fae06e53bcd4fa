"""An array in a JSON body or answer: `{data, shape, dtype}` with base64, or nested lists."""

import base64
from typing import Any

import numpy as np

from . import bodies


def posted_array(given: Any, place: bodies.Place) -> np.ndarray:
    """The array of a body's field. Raises ProblemError (422) that points to it."""
    return bodies._array(given, place)


def encoded_array(array: np.ndarray) -> dict[str, Any]:
    """The array as an answer has it: base64 of little-endian numbers in C order, with shape and dtype."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "data": base64.b64encode(little.tobytes()).decode(),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
    }
