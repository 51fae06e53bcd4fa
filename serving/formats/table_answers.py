"""Tables as answers: one Arrow table in the media type that `Accept` asks for.

The metadata of an Arrow field say the column's unit, UCD and meaning. Arrow and Parquet keep them as they are, VOTable
(IVOA 1.4) says them in its own way, CSV has only names. What is said of the answer as a whole, such as its provenance,
lies in the metadata of the schema, in INFO elements, and for all in headers.
"""

import io
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from starlette.responses import Response

from ..problems import ProblemError
from ..schemas.common import Provenance
from .arrow_body import ARROW
from .binary_answers import provenance_headers

PARQUET = "application/vnd.apache.parquet"
VOTABLE = "application/x-votable+xml"
CSV = "text/csv"
TABLE_TYPES = (ARROW, PARQUET, VOTABLE, CSV)

MOST_VOTABLE_ROWS = 50_000
"""Some seconds of work of a thread that others wait for."""

_FORMULA = r"^(?:[\s']*[=+\-@" + "\uff1d\uff0b\uff0d\uff20" + r"]|['\t\r\n])"
"""Texts that spreadsheets compute, and those that begin with the sign by which such a text is marked."""
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def column(name: str, kind: pa.DataType, meaning: str, *, unit: str = "", ucd: str = "") -> pa.Field:
    """A column's name and type, and in its metadata what it means; `unit` as astropy writes it."""
    said = {"description": meaning, "unit": unit, "ucd": ucd}
    return pa.field(name, kind, metadata={key: value for key, value in said.items() if value})


OBJECT_ID = column("object_id", pa.string(), "Object", ucd="meta.id;meta.main")
RA = column("ra", pa.float64(), "Right ascension, ICRS", unit="deg", ucd="pos.eq.ra;meta.main")
DEC = column("dec", pa.float64(), "Declination, ICRS", unit="deg", ucd="pos.eq.dec;meta.main")


def table_of(columns: Sequence[tuple[pa.Field, Any]]) -> pa.Table:
    """A table of columns and their values; NaN is null."""
    arrays = [
        values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type, from_pandas=True)
        for field, values in columns
    ]
    return pa.table(arrays, pa.schema([field for field, _ in columns]))


def table_answer(table: pa.Table, media_type: str, provenance: Provenance, **said: Any) -> Response:
    """The table in one of TABLE_TYPES. `said` is told of the whole where it is not None or empty, as JSON; a text is

    told as a header too: `next_cursor` as `Armillary-Next-Cursor`.
    """
    told = {"provenance": provenance.model_dump(), **{name: value for name, value in said.items() if value}}
    table = table.replace_schema_metadata({name: json.dumps(value) for name, value in told.items()})
    headers = provenance_headers(provenance)
    for name, value in said.items():
        if value and isinstance(value, str):
            headers[f"Armillary-{name.replace('_', '-').title()}"] = value
    return Response(_WRITERS[media_type](table), media_type=media_type, headers=headers)


def _arrow(table: pa.Table) -> bytes:
    file = pa.BufferOutputStream()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue().to_pybytes()


def _parquet(table: pa.Table) -> bytes:
    file = pa.BufferOutputStream()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue().to_pybytes()


def _csv(table: pa.Table) -> bytes:
    """Texts that a spreadsheet would compute bear an apostrophe before them, and so do those that begin with one."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            is_formula = pc.match_substring_regex(table.column(place), _FORMULA)
            marked = pc.binary_join_element_wise("'", table.column(place), "")
            table = table.set_column(place, field, pc.if_else(is_formula, marked, table.column(place)))
    file = pa.BufferOutputStream()
    pa.csv.write_csv(table, file, pa.csv.WriteOptions(quoting_style="needed"))
    return file.getvalue().to_pybytes()


def _votable(table: pa.Table) -> bytes:
    """One table of one resource, in rows of text that people can read; positions refer to ICRS."""
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import CooSys, Info
    from astropy.table import Table

    if len(table) > MOST_VOTABLE_ROWS:
        detail = f"a VOTable has at most {MOST_VOTABLE_ROWS} rows, this answer {len(table)}; ask for Parquet or Arrow"
        raise ProblemError("too-large", detail)
    columns: dict[str, np.ndarray] = {}
    for place, values in enumerate(table.columns):
        columns[_xml_id(table.schema.names[place], columns, place)] = _astropy_column(values)
    document = from_table(Table(columns))
    resource = document.resources[0]
    resource.type = "results"
    resource.coordinate_systems.append(CooSys(ID="icrs", system="ICRS"))
    resource.infos.append(Info(name="QUERY_STATUS", value="OK"))
    for name, value in (table.schema.metadata or {}).items():
        resource.infos.append(Info(name=name.decode(), value=_for_xml(value.decode())))
    for field, described in zip(table.schema, resource.tables[0].fields, strict=True):
        said = {name.decode(): text.decode() for name, text in (field.metadata or {}).items()}
        described.description, described.ucd = said.get("description"), said.get("ucd")
        described.name, described.unit = _for_xml(field.name), said.get("unit")
        if field.name in (RA.name, DEC.name):
            described.ref = "icrs"
    file = io.BytesIO()
    document.to_xml(file, tabledata_format="tabledata")
    return file.getvalue()


def _astropy_column(values: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(values.type):
        return np.array([_for_xml(text or "") for text in values.to_pylist()], str)
    array: np.ndarray = values.to_numpy()
    return array


def _xml_id(name: str, taken: Collection[str], place: int) -> str:
    """A name of a column that XML takes as an id."""
    text = re.sub("[^A-Za-z0-9_]", "_", name)
    text = text if text[:1].isalpha() else f"_{text}"
    return f"{text}_{place}" if text in taken else text


def _for_xml(text: str) -> str:
    """XML has no control characters: each becomes U+FFFD."""
    return _NO_XML.sub("\ufffd", text)


_WRITERS = {ARROW: _arrow, PARQUET: _parquet, VOTABLE: _votable, CSV: _csv}
