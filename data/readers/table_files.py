"""Tables of any survey, FITS, Parquet, CSV or ECSV, read some rows at a time.

Each batch is a dictionary of columns as numpy arrays, what is missing masked. FITS, Parquet and CSV are streamed; ECSV,
a format for small tables, is read whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from astropy.table import Table
from jaxtyping import Float64
from pydantic import BeforeValidator

from ..observations import ObservationError
from .fits_files import FITS_SUFFIXES, open_fits

ROWS_PER_BATCH = 65536

Columns = Mapping[str, np.ma.MaskedArray]

ColumnNames = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""For settings: one name, or a list of names."""

_BUFFER_BYTES = 1 << 20


def table_batches(
    path: str | Path, names: Sequence[str], *, extension: str | int = 1, rows_per_batch: int = ROWS_PER_BATCH
) -> Iterator[Columns]:
    """These columns of the table, at most `rows_per_batch` rows at a time. Columns of CSV are text.

    Raises ObservationError on missing, truncated or damaged files, files of another kind, and missing columns.
    """
    path = Path(path)
    wanted = list(dict.fromkeys(names))
    if path.name.lower().endswith(FITS_SUFFIXES):
        yield from _fits_batches(path, wanted, extension, rows_per_batch)
        return
    suffix = path.suffix.lower()
    readers = {".parquet": _parquet_batches, ".csv": _csv_batches, ".ecsv": _ecsv_batches}
    if suffix not in readers:
        raise ObservationError(f"{path}: expected a table in .fits, .fits.gz, .parquet, .csv or .ecsv")
    if not path.is_file():
        raise ObservationError(f"{path}: no such file")
    try:
        yield from readers[suffix](path, wanted, rows_per_batch)
    except ObservationError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ObservationError(f"{path}: cannot be read as {suffix} ({error})") from None


def table_paths(path: Path) -> list[Path]:
    """The file itself, or the tables below a folder, sorted. Raises ObservationError if there is none."""
    if not path.is_dir():
        if not path.exists():
            raise ObservationError(f"{path}: no such file or folder")
        return [path]
    endings = (*FITS_SUFFIXES, ".parquet", ".csv", ".ecsv")
    found = sorted(file for file in path.rglob("*") if file.name.lower().endswith(endings) and file.is_file())
    if not found:
        raise ObservationError(f"{path}: expected tables ({', '.join(endings)}) in it, found none")
    return found


def column_units(path: str | Path, extension: str | int = 1) -> dict[str, str]:
    """The units that a FITS table states, by column; of other kinds nothing is known. Raises ObservationError."""
    path = Path(path)
    if not path.name.lower().endswith(FITS_SUFFIXES):
        return {}
    with open_fits(path) as file:
        return file.column_units(extension)


def numbers(path: str | Path, columns: Columns, name: str) -> Float64[np.ndarray, " B"]:
    """A column as numbers, NaN where it is missing. Raises ObservationError if it holds something else."""
    column = columns[name]
    if column.dtype.kind == "U":
        text = pa.array(column.data, mask=np.ma.getmaskarray(column))
        trimmed = pc.utf8_trim_whitespace(text)
        try:
            parsed = pc.cast(pc.if_else(pc.equal(trimmed, ""), None, trimmed), pa.float64())
        except pa.ArrowInvalid as error:
            raise ObservationError(f"{path}: column {name} must hold one number for each object ({error})") from None
        return pc.fill_null(parsed, np.nan).to_numpy(zero_copy_only=False)
    if column.dtype.kind not in "iuf" or column.ndim != 1:
        raise ObservationError(
            f"{path}: column {name} must hold one number for each object, found {column.dtype} {column.shape[1:]}"
        )
    return np.ma.masked_array(column, dtype=np.float64).filled(np.nan)


def object_ids(path: str | Path, columns: Columns, names: Sequence[str], first_row: int = 0) -> list[str]:
    """Object ids: a column of whole numbers or text, or several, joined by hyphens, where none is enough by itself.

    Raises ObservationError if one is missing, or comes twice.
    """
    parts = [_texts(path, columns[name], name, first_row) for name in names]
    found: dict[str, int] = {}
    for row, text in enumerate(map("-".join, zip(*parts, strict=True)), first_row):
        if text in found:
            raise ObservationError(
                f"{path}: object {text} comes twice, in rows {found[text]} and {row} of {', '.join(names)}"
            )
        found[text] = row
    return list(found)


def _texts(path: str | Path, column: np.ma.MaskedArray, name: str, first_row: int) -> list[str]:
    if column.dtype.kind not in "iuUSO" or column.ndim != 1:
        raise ObservationError(f"{path}: column {name} must hold whole numbers or text, found {column.dtype}")
    texts = []
    for row, value in enumerate(column.tolist(), first_row):
        text = value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
        texts.append(text.strip())
        if not texts[-1]:
            raise ObservationError(f"{path}: column {name} must name every object, and does not in row {row}")
    return texts


def _fits_batches(path: Path, names: list[str], extension: str | int, rows_per_batch: int) -> Iterator[Columns]:
    with open_fits(path) as file:
        count = file.num_rows(extension)
        for start in range(0, count, rows_per_batch):
            part = (start, min(count, start + rows_per_batch))
            arrays: list[Any] = file.columns(extension, names, rows=part)
            nulls = [file.null_value(extension, name) for name in names]
            yield {
                name: np.ma.masked_array(array, False if null is None else array == null)
                for name, array, null in zip(names, arrays, nulls, strict=True)
            }


def _parquet_batches(path: Path, names: list[str], rows_per_batch: int) -> Iterator[Columns]:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True) as file:
        _check_columns(path, names, file.schema_arrow.names)
        for batch in file.iter_batches(rows_per_batch, columns=names):
            yield {name: _masked(batch.column(name)) for name in names}


def _csv_batches(path: Path, names: list[str], rows_per_batch: int) -> Iterator[Columns]:
    with path.open(encoding="utf-8") as stream:
        header = pa.csv.read_csv(pa.BufferReader(stream.readline().encode())).column_names
    _check_columns(path, names, header)
    options = pa.csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
    with pa.csv.open_csv(path, convert_options=options) as reader:
        for batch in reader:
            for start in range(0, batch.num_rows, rows_per_batch):
                part = batch.slice(start, rows_per_batch)
                yield {name: np.ma.masked_array(np.array(part.column(name).to_pylist(), "U")) for name in names}


def _ecsv_batches(path: Path, names: list[str], rows_per_batch: int) -> Iterator[Columns]:
    table = Table.read(path, format="ascii.ecsv")
    _check_columns(path, names, table.colnames)
    for start in range(0, len(table), rows_per_batch):
        yield {name: np.ma.masked_array(table[name][start : start + rows_per_batch]) for name in names}


def _check_columns(path: Path, names: list[str], known: list[str]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise ObservationError(f"{path}: columns {missing} are missing; found {known}")


def _masked(column: Any) -> np.ma.MaskedArray:
    """An Arrow column; whole numbers with gaps keep their precision."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        column = pc.fill_null(column, 0)
    return np.ma.masked_array(column.to_numpy(zero_copy_only=False), missing)
