"""Columns of Arrow tables as numpy arrays: structs by dotted path, nested lists as dense arrays.

HATS catalogues and Hugging Face datasets keep images and spectra as lists of lists in structs. The values of such a
column lie in one flat buffer, which is only given a shape here; no value passes through a Python object.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..observations import ObservationError

ErrorAt = Callable[[int, str], ObservationError]
"""Makes the error about a row of a table."""


def column_at(table: pa.Table | pa.RecordBatch, path: str) -> pa.Array:
    """The column `name`, or the field `struct.field`, one of `names_at`; a list of structs is a struct of lists."""
    first, *fields = path.split(".")
    array = _plain(table.column(first))
    for field in fields:
        lists = None
        if _is_list(array.type):
            lists, array = array, _plain(array.flatten())
        array = _plain(pc.struct_field(array, field))
        if lists is not None:
            offsets = np.concatenate([[0], np.cumsum(_lengths(lists))]).astype(np.int32)
            array = pa.ListArray.from_arrays(offsets, array, mask=lists.is_null())
    return array


def names_at(schema: pa.Schema) -> list[str]:
    """All columns of a table, fields of structs by their dotted path. Raises ValueError if a name comes twice."""
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise ValueError(f"column {name} comes twice: a join has put two tables side by side")
    found = []
    for field in schema:
        kind = field.type.value_type if _is_list(field.type) else field.type
        if pa.types.is_struct(kind):
            found += [f"{field.name}.{inner.name}" for inner in kind]
        else:
            found.append(field.name)
    return found


def selection(schema: pa.Schema, path: str) -> str:
    """What a Parquet reader must be asked for to have `path`: all of the column, where it is a list of structs."""
    first = path.split(".")[0]
    return first if _is_list(schema.field(first).type) else path


def numbers(array: pa.Array, error: ErrorAt, name: str) -> np.ndarray:
    """One number (or boolean) for each row [B]; null becomes NaN, and is an error in integers and booleans."""
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise error(0, f"column {name} must hold numbers, found {kind}")
    if array.null_count and not pa.types.is_floating(kind):
        raise error(_first_null(array), f"{name} is null")
    return array.to_numpy(zero_copy_only=False)


def dense(array: pa.Array, num_axes: int, error: ErrorAt, name: str) -> np.ndarray:
    """Lists nested `num_axes` deep as an array with as many axes after the first, the row.

    Raises `error` where a list is null, or differs in length from that of the first row; there is at least one row.
    """
    shape, rows, values = _flat(array, num_axes, error, name)
    return _values(values, rows, error, name).reshape(shape)


def texts(array: pa.Array, error: ErrorAt, name: str) -> np.ndarray:
    """Lists of text, all of one length, as an array [B, length] of Python strings. Raises `error` as `dense` does."""
    shape, _, values = _flat(array, 1, error, name)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise error(0, f"column {name} must hold text, found {values.type}")
    return np.array(values.to_pylist(), dtype=object).reshape(shape)


def padded(
    arrays: Sequence[pa.Array], fills: Sequence[float | bool], error: ErrorAt, names: Sequence[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Lists of numbers, as long in each row in all columns, as arrays [B, longest] filled up with `fills`; the lengths.

    Raises `error` where a list is null, or the lists of one row differ in length.
    """
    found = []
    rows = np.arange(len(arrays[0]))
    lengths = _lengths(_checked_lists(arrays[0], rows, 1, error, names[0]))
    for array, fill, name in zip(arrays, fills, names, strict=True):
        here = _lengths(_checked_lists(array, rows, 1, error, name))
        if (here != lengths).any():
            row = int(np.flatnonzero(here != lengths)[0])
            raise error(row, f"{name} must hold {lengths[row]} pixels as {names[0]} does, found {here[row]}")
        values = _values(_plain(array.flatten()), np.repeat(rows, here), error, name)
        if (here == here[:1]).all():
            found.append(values.reshape(len(here), int(here[0]) if len(here) else 0))
            continue
        whole = np.full((len(here), int(here.max(initial=0))), fill, dtype=values.dtype)
        whole[np.arange(whole.shape[1]) < here[:, None]] = values
        found.append(whole)
    return found, lengths


def _flat(array: pa.Array, num_axes: int, error: ErrorAt, name: str) -> tuple[list[int], np.ndarray, pa.Array]:
    """Shape, the row that each value belongs to, and all values in one array."""
    shape = [len(array)]
    rows = np.arange(len(array))
    for _ in range(num_axes):
        array = _checked_lists(array, rows, num_axes, error, name)
        lengths = _lengths(array)
        if lengths.size and (lengths != lengths[0]).any():
            place = int(np.flatnonzero(lengths != lengths[0])[0])
            raise error(
                int(rows[place]), f"lists of {name} must be of one length, found {lengths[place]} and {lengths[0]}"
            )
        shape.append(int(lengths[0]) if lengths.size else 0)
        rows = np.repeat(rows, lengths)
        array = _plain(array.flatten())
    return shape, rows, array


def _checked_lists(array: pa.Array, rows: np.ndarray, num_axes: int, error: ErrorAt, name: str) -> pa.Array:
    if not _is_list(array.type):
        raise error(0, f"column {name} must hold lists nested {num_axes} deep, found {array.type}")
    if array.null_count:
        raise error(int(rows[_first_null(array)]), f"{name} is null")
    return array


def _values(array: pa.Array, rows: np.ndarray, error: ErrorAt, name: str) -> np.ndarray:
    if array.null_count and not pa.types.is_floating(array.type):
        raise error(int(rows[_first_null(array)]), f"{name} holds a null")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise error(0, f"column {name} must hold numbers, found {array.type}")
    return array.to_numpy(zero_copy_only=False)


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array of a storage type: chunks joined, extension types (such as `datasets.Array2D`) undone."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.array([], array.type)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lengths(array: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _first_null(array: pa.Array) -> int:
    return int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
