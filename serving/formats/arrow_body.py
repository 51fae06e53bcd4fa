"""Arrow bodies (`application/vnd.apache.arrow.stream`): one row for each object, columns as safetensors names tensors.

An array is a list, or lists of lists, of fixed or of any size, so that images of several sizes go in one body; a null
in place of it means that the object has none. Metadata of the schema are strings: `modality`, `bands` ("g,r,z"),
`unit`, `space`, `model`. Streams are taken uncompressed: a compressed buffer may claim any size.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ...data.modalities import Modality
from ...data.observations import Observation
from ..limits import Limits
from ..problems import ProblemError, at, pointer
from . import bodies
from .batch_metadata import MAIN, MEASUREMENT_METADATA, REQUEST_METADATA, batch_metadata

ARROW = "application/vnd.apache.arrow.stream"
MAX_BATCHES = 4096
MAX_COLUMNS = 64
MAX_NESTING = 8
"""Lists in lists."""

_HEADER_FIELD, _COMPRESSION_FIELD = 2, 3
"""Places in the tables Message and RecordBatch of Arrow's Message.fbs."""


def read_arrow(body: bytes, limits: Limits) -> tuple[pa.Table, dict[str, str]]:
    """The table of an Arrow stream, and the metadata of its schema that are ours.

    Nothing is copied and nothing unpacked. Raises ProblemError: 400 if it is no stream or its buffers do not hold what
    they claim, 413 for too many objects, 422 for types that are not taken, and for compression.
    """
    try:
        _check_messages(body)
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            schema = reader.schema
            _check_schema(schema, len(body))
            batches, count = [], 0
            for batch in reader:
                count += batch.num_rows
                bodies.check_count(count, limits)
                batch.validate(full=True)
                batches.append(batch)
        table = pa.Table.from_batches(batches, schema)
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    except (pa.ArrowException, ValueError, OSError, NotImplementedError, KeyError, struct.error, MemoryError) as error:
        raise ProblemError("malformed-body", f"the body is not an Arrow stream: {str(error)[:300]}") from None
    # What pandas and others leave in a schema is theirs.
    ours = {*REQUEST_METADATA, *MEASUREMENT_METADATA}
    return table, {key: value for key, value in metadata.items() if key in ours}


def observations_from_arrow(
    table: pa.Table, metadata: Mapping[str, str], known: Mapping[str, Modality], limits: Limits
) -> list[list[Observation] | ProblemError]:
    """For each row its one observation, or what is wrong with it: a bad object fails alone.

    Columns beside those of the modality: `object_id`, `ra`, `dec`. Raises ProblemError if the table as a whole is
    wrong.
    """
    modality, shared = batch_metadata({k: v for k, v in metadata.items() if k != "object_id"}, known)
    main = MAIN[modality.kind]
    fields = [name for name in bodies.FIELDS[modality.kind] if name != "bands"]
    takes = [main, *fields, "object_id", "ra", "dec"]
    strange = sorted(set(table.column_names) - set(takes))
    if strange:
        raise _invalid(strange[0], f"{modality.name} has no such column; it takes {takes}")
    if main not in table.column_names:
        raise _invalid(main, f"{modality.name} needs the column {main}")
    if table.num_rows == 0:
        raise _invalid(main, "expected at least one object, found none")
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    columns = {
        name: column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for name, column in columns.items()
    }
    objects: list[list[Observation] | ProblemError] = []
    for row in range(table.num_rows):
        place = ("input", row)
        try:
            arrays = {name: _array(columns[name], row, (*place, name)) for name in (main, *fields) if name in columns}
            about = shared | _about(columns, row, place)
        except ProblemError as problem:
            objects.append(problem)
            continue
        values = arrays.pop(main)
        if values is None:
            objects.append(_unusable((*place, "data"), f"{main} is null"))
            continue
        given = {name: array for name, array in arrays.items() if array is not None}
        objects.append(bodies.row_object(modality, values, given, about, place, limits))
    return objects


def _check_messages(body: bytes) -> None:
    """Raises ProblemError (422) for compressed batches and dictionaries, before a buffer is looked at."""
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(body))
    for number, message in enumerate(reader):
        if number > MAX_BATCHES:
            raise ProblemError("malformed-body", f"at most {MAX_BATCHES} batches are read")
        if message.type == "dictionary":
            raise _invalid("body", "dictionaries are not taken; send plain columns")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise _invalid("body", "compressed buffers are not taken; write the stream without compression")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch names a codec. `metadata` is a Message in FlatBuffers' encoding."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    place = _field(metadata, message, _HEADER_FIELD)
    if place is None:
        raise ProblemError("malformed-body", "a message of the Arrow stream has no header")
    batch = place + struct.unpack_from("<I", metadata, place)[0]
    return _field(metadata, batch, _COMPRESSION_FIELD) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Where a FlatBuffers table keeps its field, None where it has none."""
    start = table - struct.unpack_from("<i", metadata, table)[0]
    if start < 0:
        raise ProblemError("malformed-body", "a message of the Arrow stream makes no sense")
    (size,) = struct.unpack_from("<H", metadata, start)
    if 4 + 2 * number + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, start + 4 + 2 * number)
    return table + offset if offset else None


def _check_schema(schema: pa.Schema, num_bytes: int) -> None:
    """Raises ProblemError (422) for columns that are not numbers, lists of them, or names of objects."""
    if len(schema) > MAX_COLUMNS or len(set(schema.names)) != len(schema):
        raise _invalid("body", f"expected at most {MAX_COLUMNS} columns, of different names; found {len(schema)}")
    for field in schema:
        kind, depth, items = field.type, 0, 1
        if b"ARROW:extension:name" in (field.metadata or {}):
            raise _invalid(field.name, f"extension types are not taken, found {field.metadata}")
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            items *= kind.list_size if pa.types.is_fixed_size_list(kind) else 1
            kind, depth = kind.value_type, depth + 1
        is_name = depth == 0 and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if depth > MAX_NESTING or not (is_number or (is_name and field.name == "object_id")):
            raise _invalid(field.name, f"expected numbers, or lists of them, found {str(field.type)[:200]}")
        if items < 1 or items > 8 * num_bytes:
            raise ProblemError("malformed-body", f"column {field.name} claims {items} numbers a row; {num_bytes} came")


def _array(column: pa.Array, row: int, place: bodies.Place) -> np.ndarray | None:
    """The array of one object, None for null. Raises ProblemError (422) if its lists are ragged or hold nulls."""
    if not column[row].is_valid:
        return None
    values, shape = column.slice(row, 1), []
    while not (
        pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
    ):
        if values.null_count:
            raise _unusable(place, "null inside of an array; mask says what is missing")
        if pa.types.is_fixed_size_list(values.type):
            shape.append(values.type.list_size)
        else:
            lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
            if len(lengths) != 1:
                raise _unusable(place, f"lists must have one length, found {lengths[:5].tolist()}")
            shape.append(int(lengths[0]))
        values = values.flatten()
    if values.null_count:
        raise _unusable(place, "null inside of an array; mask says what is missing")
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _about(columns: Mapping[str, pa.Array], row: int, place: bodies.Place) -> dict[str, Any]:
    """Id and position of one object."""
    found: dict[str, Any] = {}
    for name in ("object_id", "ra", "dec"):
        value = columns[name][row].as_py() if name in columns else None
        if isinstance(value, list):
            raise _unusable((*place, name), "expected one value for each object, found a list")
        if value is not None and not (name != "object_id" and np.isnan(value)):
            found[name] = str(value) if name == "object_id" else float(value)
    return found


def _invalid(name: str, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{name}: {detail}", [at(pointer(name), detail)])


def _unusable(place: bodies.Place, detail: str) -> ProblemError:
    return ProblemError("invalid-observation", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
