"""What a search answers: JSON for one query or many, or by `Accept` a table with a row for each neighbour."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ...data.modalities import MODALITIES
from ..formats import bodies
from ..formats.table_answers import CSV, DEC, OBJECT_ID, RA, TABLE_TYPES, column, table_answer, table_of
from ..index.protocol import Neighbours, SearchIndex
from ..problems import ProblemError
from ..schemas.common import Provenance, SearchRequest
from .search_queries import neighbour_body

OFFERED = (bodies.JSON, *TABLE_TYPES)

_QUERY = column("query", pa.int32(), "Number of the query, from 0", ucd="meta.number")
_MODALITY = column("modality", pa.string(), "Of the vector that was found", ucd="meta.code;instr")
_SIMILARITY = column("similarity", pa.float32(), "Cosine between query and neighbour", ucd="stat.correlation")
_UNITS = {modality.name: modality.unit for modality in MODALITIES if modality.kind == "scalar"}
_PLAIN_UNITS = {"AB mag": "mag", "Vega mag": "mag", "dimensionless": ""}
"""What astropy does not read as it is meant; logarithms of units are said in words alone."""
_UCDS = {"scalar/redshift": "src.redshift"}


def answer_of_one(
    index: SearchIndex,
    found: Neighbours,
    asked: SearchRequest,
    next_cursor: str | None,
    provenance: Provenance,
    answer_type: str,
) -> Response:
    """The neighbours of one query."""
    with_labels = "labels" in asked.include
    if answer_type != bodies.JSON:
        table = neighbour_table(index, found, np.zeros(1, np.int32), with_labels)
        return table_answer(table, answer_type, provenance, next_cursor=next_cursor)
    return JSONResponse(
        {
            "neighbours": [neighbour_body(index, found, place, with_labels) for place in range(found.row.shape[1])],
            "next_cursor": next_cursor,
            "provenance": provenance.model_dump(),
        }
    )


def answer_of_many(
    index: SearchIndex,
    found: Neighbours,
    asked: SearchRequest,
    problems: Sequence[ProblemError | None],
    provenance: Provenance,
    answer_type: str,
) -> Response:
    """The neighbours of many queries; `problems` says of each why it was not one, and `found` has the others, in order.

    A CSV file has no place for problems: there, the first is raised.
    """
    numbers = np.array([number for number, problem in enumerate(problems) if problem is None], np.int32)
    errors = [{"query": number, **one.document()} for number, one in enumerate(problems) if one is not None]
    with_labels = "labels" in asked.include
    if answer_type != bodies.JSON:
        if answer_type == CSV and errors:
            raise next(one for one in problems if one is not None)
        table = neighbour_table(index, found, numbers, with_labels)
        return table_answer(table, answer_type, provenance, errors=errors)
    results: list[list[dict[str, Any]]] = [[] for _ in problems]
    for query, number in enumerate(numbers.tolist()):
        places = np.flatnonzero(found.row[query] >= 0).tolist()
        results[number] = [neighbour_body(index, found, place, with_labels, query) for place in places]
    return JSONResponse({"results": results, "errors": errors, "provenance": provenance.model_dump()})


def label_column(name: str) -> pa.Field:
    """The column of a label, with its unit where the label is a scalar that is declared."""
    unit = _UNITS.get(name, "")
    plain = "" if unit.startswith("log10") else _PLAIN_UNITS.get(unit, unit)
    return column(name, pa.float64(), f"Label, {unit}" if unit else "Label", unit=plain, ucd=_UCDS.get(name, ""))


def neighbour_table(index: SearchIndex, found: Neighbours, numbers: np.ndarray, with_labels: bool) -> pa.Table:
    """A row for each neighbour: query (its number), object_id, modality, similarity, ra, dec; and a column for each

    label of the index, if asked for. What is not known is null.
    """
    is_there = found.row >= 0
    columns: list[tuple[pa.Field, Any]] = [
        (_QUERY, numbers[np.nonzero(is_there)[0]]),
        (OBJECT_ID, found.object_id[is_there].astype(object)),
        (_MODALITY, found.modality[is_there].astype(object)),
        (_SIMILARITY, found.similarity[is_there]),
        (RA, found.ra[is_there]),
        (DEC, found.dec[is_there]),
    ]
    for name in index.manifest.labels if with_labels else ():
        columns.append((label_column(name), index.label_of_rows(name, found.row)[is_there]))
    return table_of(columns)
