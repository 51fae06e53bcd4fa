"""Many queries in one search: vectors as .npy in, neighbours of all of them as JSON or as an Arrow stream out."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ..formats import bodies
from ..formats.arrow_body import ARROW
from ..index.protocol import Neighbours, SearchIndex
from ..problems import ProblemError
from ..schemas.common import Provenance, SearchRequest
from .search_queries import neighbour_body

OFFERED = (bodies.JSON, ARROW)
QUERY_PARAMETERS = ("k", "target_modality", "survey", "exact")


def read_queries(body: bytes, query: Mapping[str, str], limit: int) -> tuple[np.ndarray, SearchRequest]:
    """Vectors [Q, D], float32, and what else was asked. Raises ProblemError: 400, 413 or 422."""
    array = bodies.read_npy(body)
    if array.ndim != 2 or not len(array):
        detail = f"expected vectors of shape [queries, dimension], found {list(array.shape)}"
        raise ProblemError("invalid-request", detail)
    if len(array) > limit:
        raise ProblemError("too-large", f"at most {limit} queries in one call, found {len(array)}; see /v1/limits")
    asked = {name: query[name] for name in QUERY_PARAMETERS if name in query}
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32), bodies.parse_fields(SearchRequest, asked, ())


def answer_of(index: SearchIndex, found: Neighbours, provenance: Provenance, answer_type: str) -> Response:
    """JSON: `results`, a list for each query. Arrow: a row for each neighbour, with the number of its query."""
    if answer_type == bodies.JSON:
        results = [
            [
                neighbour_body(index, found, place, False, query)
                for place in np.flatnonzero(found.row[query] >= 0).tolist()
            ]
            for query in range(len(found.row))
        ]
        return JSONResponse({"results": results, "provenance": provenance.model_dump()})
    is_there = found.row >= 0
    columns: dict[str, Any] = {
        "query": pa.array(np.nonzero(is_there)[0].astype(np.int32)),
        "object_id": pa.array(found.object_id[is_there].astype(object), pa.string()),
        "modality": pa.array(found.modality[is_there].astype(object), pa.string()),
        "similarity": pa.array(found.similarity[is_there]),
        "ra": pa.array(found.ra[is_there], from_pandas=True),
        "dec": pa.array(found.dec[is_there], from_pandas=True),
    }
    table = pa.table(columns, metadata={"provenance": json.dumps(provenance.model_dump())})
    file = pa.BufferOutputStream()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return Response(file.getvalue().to_pybytes(), media_type=ARROW)
