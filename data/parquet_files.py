"""Parquet files of a dataset: written whole or not at all, with checksums on every page; read by row groups."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from .observation_tables import IDENTITY, Layout, decode, read_layout
from .observations import Observation, ObservationError
from .sky_partition import Pixel

ROW_GROUP_BYTES = 8 * 2**20
"""Uncompressed size of a row group: what a stream holds at once."""
_ERRORS = (pa.ArrowException, OSError)


def write_table(table: Any, path: Path) -> None:
    """Write one file of a dataset; it appears whole or not at all. Raises ObservationError if it exists already."""
    if path.exists():
        raise ObservationError(f"{path}: exists already, and files of a dataset are never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = max(1, int(ROW_GROUP_BYTES // max(1, table.nbytes / max(1, len(table)))))
    with replacing(path) as stream:
        pq.write_table(
            table,
            stream,
            row_group_size=rows,
            compression="zstd",
            compression_level=1,
            write_page_checksum=True,
            use_dictionary=False,
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` when the block ends without error, and survives a power cut."""
    # Random, for two nodes that share a file system may have processes of one number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class ObservationFile:
    """One file of a dataset, opened: what its footer says. `pixel` is None for objects without a position."""

    path: Path
    layout: Layout
    row_group_sizes: tuple[int, ...]
    pixel: Pixel | None = None

    @classmethod
    def open(cls, path: Path, pixel: Pixel | None = None) -> "ObservationFile":
        """Read the footer. Raises ObservationError if the file is truncated, or not one of ours."""
        try:
            with pq.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
                sizes = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        except _ERRORS as error:
            raise ObservationError(f"{path}: expected a whole Parquet file; {error}") from None
        return cls(path, read_layout(schema, path), sizes, pixel)

    @property
    def num_rows(self) -> int:
        """Objects in the file."""
        return sum(self.row_group_sizes)

    @cached_property
    def starts(self) -> Int64[np.ndarray, " groups"]:
        """First row of each row group, and the number of rows at the end."""
        return np.cumsum([0, *self.row_group_sizes], dtype=np.int64)

    def read_identity(self) -> Any:
        """Arrow table of `_healpix_29`, `object_id`, `ra` and `dec`. Raises ObservationError on damage."""
        return self._read(None, list(IDENTITY))

    def read_table(self, rows: Int64[np.ndarray, " R"]) -> Any:
        """Arrow table of these rows (ascending), from the row groups that hold them. Raises ObservationError."""
        groups = np.unique(np.searchsorted(self.starts, rows, side="right") - 1)
        table = self._read(groups.tolist())
        if len(rows) == len(table):
            return table
        present = np.concatenate([np.arange(self.starts[group], self.starts[group + 1]) for group in groups])
        return table.take(pa.array(np.searchsorted(present, rows)))

    def read_rows(self, rows: Int64[np.ndarray, " R"]) -> Observation:
        """The observations of these rows (ascending). Raises ObservationError that names file and object."""
        return decode(self.read_table(rows), self.layout, self.path)

    def read_row_group(self, group: int) -> Observation:
        """The observations of one row group. Raises ObservationError that names file and object."""
        return decode(self._read([group]), self.layout, self.path)

    def stream(self) -> Iterator[Observation]:
        """All observations, a row group at a time. Raises ObservationError that names file and object."""
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for group in range(len(self.row_group_sizes)):
                    yield decode(file.read_row_group(group), self.layout, self.path)
        except _ERRORS as error:
            raise self._damaged(error) from None

    def _read(self, groups: list[int] | None, columns: list[str] | None = None) -> Any:
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                return file.read(columns) if groups is None else file.read_row_groups(groups, columns)
        except _ERRORS as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> ObservationError:
        return ObservationError(f"{self.path}: the file is damaged; {error}")
