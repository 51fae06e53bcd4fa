"""A row of an index as Milvus keeps it: its id, its numbers, and the filters over them.

The id is a hash of object and modality, so that a row is found, replaced and removed without a search, and writing it
twice is writing it once. Engines have no null that all of them know, and NaN is no number to index: what is not known
is a number that no measurement is.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Float64

from ..index.cone import Cone
from ..index.protocol import EmbeddingIndexError, Ranges
from ..index.vectors import as_float32
from .engine import MAX_ID_BYTES, quoted

UNKNOWN = -1.7e308
_KNOWN_FROM = -1.6e308
_NOWHERE = 9.0
"""Of the components of a unit vector on the sky, where the position is not known."""
POSITION = ("ra", "dec")
SKY = ("sky_x", "sky_y", "sky_z")
_MARGIN = 1e-9
"""Widens the box of a cone beyond rounding: 0.2 milliarcseconds. What is exact is checked after."""


def row_id(object_id: str, modality: str) -> int:
    """63 bits of BLAKE2 over object and modality: two of 100 million rows collide once in 2,000 indexes."""
    digest = hashlib.blake2b(f"{object_id}\0{modality}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def number_fields(labels: Sequence[str], metadata: Sequence[str]) -> dict[str, str]:
    """The field of each column: names such as `scalar/redshift` are none that Milvus allows."""
    fields = {f"label:{name}": f"label_{place}" for place, name in enumerate(labels)}
    return fields | {f"metadata:{name}": f"metadata_{place}" for place, name in enumerate(metadata)}


def encode_number(value: float) -> float:
    """A number as it is kept."""
    return float(value) if math.isfinite(value) else UNKNOWN


def decode_number(value: float) -> float:
    """A kept number; NaN if it is not known."""
    return float(value) if value > _KNOWN_FROM else math.nan


def encode_position(ra: float, dec: float) -> dict[str, float]:
    """The fields of a position: degrees as given, and the unit vector on the sky, by which cones are filtered."""
    if not (math.isfinite(ra) and math.isfinite(dec)):
        return {"ra": encode_number(ra), "dec": encode_number(dec), **dict.fromkeys(SKY, _NOWHERE)}
    a, d = math.radians(ra), math.radians(dec)
    vector = (math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d))
    return {"ra": float(ra), "dec": float(dec), **dict(zip(SKY, vector, strict=True))}


def unit_vectors(block: Float16[np.ndarray, "B D"]) -> tuple[Float32[np.ndarray, "B D"], Float64[np.ndarray, " B"]]:
    """The vectors at unit length, and the lengths that they had."""
    vectors = as_float32(block)
    length = np.linalg.norm(vectors.astype(np.float64), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (vectors / length[:, None]).astype(np.float32), length


def check_ids(object_id: Sequence[str], modality: Sequence[str], where: str) -> None:
    """Raises EmbeddingIndexError on names that the engine has no room for."""
    for name, values in (("object_id", object_id), ("modality", modality)):
        for value in values:
            if len(value.encode()) > MAX_ID_BYTES:
                raise EmbeddingIndexError(
                    f"{where}: {name} {value[:40]!r}... has {len(value.encode())} bytes; at most {MAX_ID_BYTES} go "
                    "into Milvus"
                )


def filter_expression(
    modalities: Iterable[str] | None,
    excluded_ids: Sequence[int],
    cone: Cone | None,
    known_fields: Iterable[str],
    ranges: Mapping[str, tuple[float | None, float | None]],
) -> str:
    """The filter of a search; of a cone only the box around it, so that hits must be checked after.

    `modalities` of which a row must have one (None: any), `known_fields` that must be known, `ranges` by field.
    """
    terms = []
    if modalities is not None:
        terms.append(f"modality in [{', '.join(map(quoted, modalities))}]")
    if excluded_ids:
        terms.append(f"id not in {list(excluded_ids)}")
    if cone is not None:
        terms += [
            f"{name} >= {low!r} and {name} <= {high!r}" for name, (low, high) in zip(SKY, cone_box(cone), strict=True)
        ]
    terms += [f"{field} > {_KNOWN_FROM!r}" for field in known_fields]
    for field, (low, high) in ranges.items():
        terms.append(f"{field} > {_KNOWN_FROM!r}")
        if low is not None and low != -math.inf:
            terms.append(f"{field} >= {float(low)!r}")
        if high is not None and high != math.inf:
            terms.append(f"{field} <= {float(high)!r}")
    return " and ".join(terms)


def cone_box(cone: Cone) -> list[tuple[float, float]]:
    """The least box that holds a cone's part of the unit sphere: no pole and no meridian is special to it.

    Along an axis at angle g from the centre, a cap of radius r reaches from cos(g + r) to cos(g - r), and to the ends
    where it holds one of them.
    """
    a, d, radius = math.radians(cone.ra), math.radians(cone.dec), math.radians(min(cone.radius_deg, 180.0))
    centre = (math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d))
    box = []
    for component in centre:
        angle = math.acos(max(-1.0, min(1.0, component)))
        low, high = math.cos(min(math.pi, angle + radius)), math.cos(max(0.0, angle - radius))
        box.append((low - _MARGIN, min(high + _MARGIN, 1 + _MARGIN)))
    return box


def field_ranges(where: Ranges | None, fields: Mapping[str, str]) -> dict[str, tuple[float | None, float | None]]:
    """Ranges by field. Raises LookupError on a column that the index has not."""
    found = {}
    names = [key.removeprefix("metadata:") for key in fields if key.startswith("metadata:")]
    for name, ends in (where or {}).items():
        if name not in names:
            raise LookupError(f"the index has no metadata {name!r}; it has {names}")
        if any(end is not None and math.isnan(end) for end in ends):
            raise EmbeddingIndexError(f"the range of {name!r} must have numbers or None as ends, found {ends}")
        found[fields[f"metadata:{name}"]] = ends
    return found


def make_row(
    object_id: str,
    modality: str,
    ra: float,
    dec: float,
    numbers: Mapping[str, float],
    vector: Float32[np.ndarray, " D"],
) -> dict[str, Any]:
    """A row to write; `numbers` by field."""
    return {
        "id": row_id(object_id, modality),
        "object_id": object_id,
        "modality": modality,
        **encode_position(ra, dec),
        **{field: encode_number(value) for field, value in numbers.items()},
        "vector": vector,
    }
