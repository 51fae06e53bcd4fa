"""A probe as one file, to be sent and shared: its arrays as safetensors, its description as JSON in the metadata.

The folder of `probe_files.py` is what is kept and published; this is what goes over a wire. Nothing is pickled.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from .probe_files import READABLE_VERSIONS, ProbeError, SavedProbe

_DESCRIPTION = "armillary_probe"


def probe_bytes(probe: SavedProbe) -> bytes:
    """A fitted probe as the bytes of one safetensors file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in probe._arrays().items()}
    return safetensors.numpy.save(arrays, {_DESCRIPTION: json.dumps(probe.describe())})


def read_probe_bytes(content: bytes, place: str = "the file") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of `probe_bytes`. Raises ProbeError, which names the place, if it is no such file."""
    try:
        arrays = safetensors.numpy.load(content)
        header: Mapping[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        description = json.loads(header["__metadata__"][_DESCRIPTION])
        version, _ = description["format_version"], description["kind"]
        if version not in READABLE_VERSIONS[1:]:
            raise ValueError(f"format_version is {version!r}, this Armillary reads {list(READABLE_VERSIONS[1:])}")
    except Exception as error:
        # safetensors raises its own type, JSON and missing keys theirs: all mean that this is no whole probe.
        raise ProbeError(f"{place}: not a probe in one file ({type(error).__name__}: {error})") from None
    return description, arrays
