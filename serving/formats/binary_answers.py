"""Vectors as bytes: answers of /v1/embeddings in the media type that `Accept` asks for."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from starlette.responses import Response

from ..problems import ProblemError
from ..schemas.common import Provenance
from ..service import EmbeddedItem
from .arrow_body import ARROW
from .bodies import JSON, NPY
from .safetensors_body import SAFETENSORS

OFFERED = (JSON, NPY, SAFETENSORS, ARROW)
"""In the order of preference between types that are equally welcome."""


def wanted_type(accept: str | None, offers: Sequence[str] = OFFERED) -> str:
    """The offered media type that an Accept header (RFC 9110) likes best, or the first without one.

    Raises ProblemError (406).
    """
    if not accept or not accept.strip():
        return offers[0]
    liked: dict[str, tuple[int, float]] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((_number(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
        for offered in offers:
            for precision, pattern in enumerate(("*/*", f"{offered.partition('/')[0]}/*", offered)):
                # The most precise of the ranges that match a type says how welcome it is.
                if name == pattern and precision >= liked.get(offered, (-1, 0.0))[0]:
                    liked[offered] = (precision, weight)
    welcome = {offered: weight for offered, (_, weight) in liked.items() if weight > 0}
    if not welcome:
        raise ProblemError("not-acceptable", f"this route answers in {' or '.join(offers)}; Accept is {accept!r}")
    return max(welcome, key=lambda offered: (welcome[offered], -offers.index(offered)))


def provenance_headers(provenance: Provenance) -> dict[str, str]:
    """What an answer that is no JSON says of its provenance."""
    named = {"Model-Id": provenance.model_id, "Index-Id": provenance.index_id, "Space": provenance.space}
    return {f"Armillary-{name}": value for name, value in named.items() if value is not None}


def npy_answer(results: Sequence[EmbeddedItem | ProblemError], provenance: Provenance) -> Response:
    """Float32 [objects, dimension] as .npy, provenance in headers. Raises the ProblemError of an object that has one:

    an array has no place to say what is wrong.
    """
    for result in results:
        if isinstance(result, ProblemError):
            raise result
    file = io.BytesIO()
    np.save(file, _vectors(results), allow_pickle=False)
    return Response(file.getvalue(), media_type=NPY, headers=provenance_headers(provenance))


def safetensors_answer(results: Sequence[EmbeddedItem | ProblemError], provenance: Provenance) -> Response:
    """`embedding`, float32 [objects, dimension], with metadata in JSON: object_id, modalities, errors, provenance.

    The row of an object that was not usable is NaN; `errors` says why, by `index`.
    """
    good = [result if isinstance(result, EmbeddedItem) else None for result in results]
    errors = [
        {"index": number, **result.document()}
        for number, result in enumerate(results)
        if isinstance(result, ProblemError)
    ]
    metadata: dict[str, Any] = {
        "object_id": [None if item is None else item.object_id for item in good],
        "modalities": [[] if item is None else list(item.modalities) for item in good],
        "errors": errors,
        "provenance": provenance.model_dump(),
    }
    body = safetensors.numpy.save(
        {"embedding": _vectors(results)}, {name: json.dumps(value) for name, value in metadata.items()}
    )
    return Response(body, media_type=SAFETENSORS)


def arrow_answer(results: Sequence[EmbeddedItem | ProblemError], provenance: Provenance) -> Response:
    """One row for each object: object_id, embedding (fixed_size_list of float32), modalities, and error.

    Where an object was not usable its `embedding` is null and `error` holds the problem document as JSON. The schema's
    metadata holds the provenance, as JSON.
    """
    vectors = _vectors(results)
    good = [result if isinstance(result, EmbeddedItem) else None for result in results]
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), vectors.shape[1], mask=pa.array([item is None for item in good])
    )
    errors = [json.dumps(result.document()) if isinstance(result, ProblemError) else None for result in results]
    table = pa.table(
        {
            "object_id": pa.array([None if item is None else item.object_id for item in good], pa.string()),
            "embedding": embedding,
            "modalities": pa.array(
                [None if item is None else list(item.modalities) for item in good], pa.list_(pa.string())
            ),
            "error": pa.array(errors, pa.string()),
        },
        metadata={"provenance": json.dumps(provenance.model_dump())},
    )
    file = pa.BufferOutputStream()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return Response(file.getvalue().to_pybytes(), media_type=ARROW)


def _vectors(results: Sequence[EmbeddedItem | ProblemError]) -> np.ndarray:
    """[objects, dimension], NaN where there is none; at least one is there."""
    size = next(len(result.vector) for result in results if isinstance(result, EmbeddedItem))
    vectors = np.full((len(results), size), np.nan, np.float32)
    for row, result in enumerate(results):
        if isinstance(result, EmbeddedItem):
            vectors[row] = result.vector
    return vectors


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
