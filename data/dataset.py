"""Observations on disk: a folder of Parquet files, one set for each modality, that reads back bit for bit.

`<dataset>/<kind>/<survey>/part-00000.parquet`; further folders may lie in between, for files are found at any depth. A
row is one object; values are fixed-size lists of 32-bit floats, so that pandas, DuckDB or Hugging Face `datasets` read
them too. What all rows share (modality, bands, the instrument's card, a common wavelength grid) is JSON in the schema's
metadata, which makes a dataset complete without the configs it was made with. A file is renamed into place when it is
whole, and pages carry checksums, so that a reader sees all of a shard or an error.
"""

import bisect
import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..settings import SettingsError
from .modalities import Modality
from .observations import (
    ImageObservation,
    Observation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
    stack,
)

FORMAT_VERSION = 1
ROW_GROUP_BYTES = 8 * 2**20
"""Uncompressed size of a row group: what a stream holds at once."""

_HEADER = b"armillary"
_WAVELENGTH = b"armillary.wavelength"
_ERRORS = (pa.ArrowException, OSError)


def write_shard(folder: str | Path, observation: Observation, index: int) -> Path:
    """Write `observation` as file number `index` of its modality in the dataset `folder`; returns the file's path.

    The file appears whole or not at all. Raises ObservationError if it exists already, if there is no object, or if an
    object id comes twice.
    """
    final = shard_folder(folder, observation.modality) / f"part-{index:05d}.parquet"
    if final.exists():
        raise ObservationError(f"{final}: exists already, and shards are never overwritten")
    if len(observation) == 0:
        raise ObservationError(f"{final}: expected at least one object, found none")
    doubled = _first_double(observation.object_id)
    if doubled is not None:
        raise ObservationError(f"{final}: object {doubled} comes twice in {observation.modality.name}")
    final.parent.mkdir(parents=True, exist_ok=True)
    table = _encode(observation)
    rows = max(1, int(ROW_GROUP_BYTES // max(1, table.nbytes / len(table))))
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            pq.write_table(
                table,
                stream,
                row_group_size=rows,
                compression="zstd",
                compression_level=1,
                write_page_checksum=True,
                use_dictionary=False,
            )
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(final.parent)
    return final


def shard_folder(folder: str | Path, modality: Modality) -> Path:
    """Where the files of `modality` lie in the dataset `folder`."""
    return Path(folder).joinpath(*modality.name.split("/"))


@dataclass(frozen=True)
class _Shard:
    """One file: what its footer says."""

    path: Path
    modality: Modality
    bands: tuple[str, ...]
    num_rows: int

    @property
    def name(self) -> str:
        return self.modality.name


class ObservationDataset:
    """A dataset folder, opened for reading.

    Opening reads the footers alone. Raises ObservationError if the folder holds no shard, or one that is truncated,
    of another format or version, or that lies in the folder of another modality.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ObservationError(f"{self.folder}: no such dataset folder")
        self._shards: dict[str, list[_Shard]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*.parquet")):
            if not path.name.startswith("."):
                shard = _open_shard(self.folder, path)
                self._shards[shard.name].append(shard)
        if not self._shards:
            raise ObservationError(f"{self.folder}: expected Parquet files <kind>/<survey>/part-*.parquet, found none")
        for shards in self._shards.values():
            for shard in shards[1:]:
                if shard.modality != shards[0].modality:
                    raise ObservationError(f"{shard.path}: its instrument card differs from that of {shards[0].path}")
        self._rows: dict[str, dict[str, int]] = {}

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """All modalities of the dataset, by name, as their stored cards declare them."""
        return tuple(self._shards[name][0].modality for name in sorted(self._shards))

    def num_objects(self, modality_name: str) -> int:
        """How many objects have this modality."""
        return sum(shard.num_rows for shard in self._of(modality_name))

    def object_ids(self, modality_name: str) -> list[str]:
        """Ids of the objects with this modality, in the order of rows on disk. Raises ObservationError on a double."""
        return list(self._index(modality_name))

    def read(self, modality_name: str, object_ids: Sequence[str] | slice | None = None) -> Observation:
        """The observations of these objects, in this order; of a slice of the rows on disk; or of all of them.

        Reads only the row groups that hold them. Raises ObservationError on an unknown id, and on damaged files.
        """
        shards = self._of(modality_name)
        if object_ids is None or isinstance(object_ids, slice):
            rows = list(range(self.num_objects(modality_name))[object_ids or slice(None)])
        else:
            index = self._index(modality_name)
            unknown = [name for name in object_ids if name not in index]
            if unknown:
                raise ObservationError(f"{self.folder}: {modality_name} has no object {unknown[0]!r}")
            rows = [index[name] for name in object_ids]
        if not rows:
            raise ObservationError(f"{self.folder}: no row of {modality_name} was asked for")
        starts = np.cumsum([0, *(shard.num_rows for shard in shards)])
        wanted = np.unique(rows)
        found = []
        for shard, start, stop in zip(shards, starts[:-1], starts[1:], strict=True):
            local = wanted[(wanted >= start) & (wanted < stop)] - start
            if len(local):
                found.append(_read_rows(shard, local))
        joined = found[0] if len(found) == 1 else stack(found)
        return joined if np.array_equal(wanted, rows) else joined.select(np.searchsorted(wanted, rows).tolist())

    def batches(self, modality_name: str, batch_size: int) -> Iterator[Observation]:
        """All observations in the order of rows on disk, `batch_size` at a time, the rest at the end.

        Holds one batch and one row group at once. Raises ObservationError on damaged files.
        """
        if batch_size < 1:
            raise ObservationError(f"batch_size must be at least 1, found {batch_size}")
        waiting: list[Observation] = []
        for shard in self._of(modality_name):
            for part in _stream(shard, batch_size):
                waiting.append(part)
                count = sum(map(len, waiting))
                if count >= batch_size:
                    joined = waiting[0] if len(waiting) == 1 else stack(waiting)
                    yield joined if count == batch_size else joined.select(slice(0, batch_size))
                    waiting = [joined.select(slice(batch_size, None))] if count > batch_size else []
        if waiting:
            yield stack(waiting)

    def positions(self) -> dict[str, tuple[float, float]]:
        """Position (ra, dec) in degrees of every object of any modality; NaN where no modality knows it."""
        found: dict[str, tuple[float, float]] = {}
        for name in sorted(self._shards):
            for shard in self._of(name):
                table = _read_columns(shard, ["object_id", "ra", "dec"])
                rows = zip(*(table[column].to_pylist() for column in table.column_names), strict=True)
                for object_id, ra, dec in rows:
                    if object_id not in found or np.isnan(found[object_id][0]):
                        found[object_id] = (ra, dec)
        return found

    def scalars(self, names: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """Measured numbers by modality name and object id, of these scalar modalities, by default of all.

        Missing values are left out. Raises ObservationError if a name is no scalar modality of the dataset.
        """
        if names is None:
            names = [modality.name for modality in self.modalities if modality.kind == "scalar"]
        found = {}
        for name in names:
            observation = self.read(name)
            if not isinstance(observation, ScalarObservation):
                raise ObservationError(f"{self.folder}: expected a scalar modality, found {name}")
            pairs = zip(observation.object_id, observation.values.tolist(), observation.mask.tolist(), strict=True)
            found[name] = {object_id: value for object_id, value, is_valid in pairs if is_valid}
        return found

    def _of(self, modality_name: str) -> list[_Shard]:
        if modality_name not in self._shards:
            raise ObservationError(f"{self.folder}: no modality {modality_name!r}; it holds {sorted(self._shards)}")
        return self._shards[modality_name]

    def _index(self, modality_name: str) -> dict[str, int]:
        """Row on disk of each object."""
        if modality_name not in self._rows:
            index: dict[str, int] = {}
            start = 0
            for shard in self._of(modality_name):
                for row, name in enumerate(_read_columns(shard, ["object_id"])["object_id"].to_pylist()):
                    if name in index:
                        first = self._path_of_row(modality_name, index[name])
                        raise ObservationError(
                            f"{shard.path}: object {name} of {modality_name} comes twice; it is also in {first}"
                        )
                    index[name] = start + row
                start += shard.num_rows
            self._rows[modality_name] = index
        return self._rows[modality_name]

    def _path_of_row(self, modality_name: str, row: int) -> Path:
        shards = self._of(modality_name)
        stops = np.cumsum([shard.num_rows for shard in shards]).tolist()
        return shards[bisect.bisect_right(stops, row)].path


def _encode(observation: Observation) -> Any:
    """The observation as an Arrow table with metadata."""
    count = len(observation)
    columns: dict[str, Any] = {
        "object_id": pa.array(observation.object_id, pa.string()),
        "ra": _column(observation.ra),
        "dec": _column(observation.dec),
    }
    metadata: dict[bytes, str] = {}
    header: dict[str, Any] = {
        "format": "armillary observations",
        "version": FORMAT_VERSION,
        "unit": observation.modality.unit,
        **observation.modality.record(),
    }
    names: tuple[str, ...]
    if isinstance(observation, ImageObservation):
        header["bands"] = list(observation.bands)
        names = ("flux", "inverse_variance", "mask", "psf_fwhm", "depth", "center")
        height, width = observation.flux.shape[2:]
        columns["height"] = pa.array(np.full(count, height, np.int32))
        columns["width"] = pa.array(np.full(count, width, np.int32))
    elif isinstance(observation, SpectrumObservation):
        names = ("flux", "inverse_variance", "mask", "resolving_power")
        grid = observation.wavelength
        if torch.equal(grid, grid[:1].expand_as(grid)):
            metadata[_WAVELENGTH] = json.dumps(grid[0].tolist())
        else:
            names = ("wavelength", *names)
        typical = observation.card.resolving_power_at(grid.numpy()).astype(np.float32)
        if np.array_equal(typical, observation.resolving_power.numpy()):
            names = names[:-1]
    else:
        names = ("values", "error", "mask")
    columns.update({name: _column(getattr(observation, name)) for name in names})
    metadata[_HEADER] = json.dumps(header)
    return pa.table(columns).replace_schema_metadata(metadata)


def _column(values: Tensor) -> Any:
    """[B, ...] as an Arrow column of numbers, or of lists of one size."""
    flat = pa.array(values.contiguous().view(-1).numpy())
    return flat if values.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, values[0].numel())


def _open_shard(dataset: Path, path: Path) -> _Shard:
    try:
        with pq.ParquetFile(path) as file:
            metadata, num_rows = file.schema_arrow.metadata or {}, file.metadata.num_rows
    except _ERRORS as error:
        raise ObservationError(f"{path}: expected a whole Parquet file; {error}") from None
    if _HEADER not in metadata:
        raise ObservationError(f"{path}: expected a shard of Armillary, found a Parquet file without its metadata")
    try:
        header = json.loads(metadata[_HEADER])
        if header["version"] != FORMAT_VERSION:
            raise ObservationError(f"{path}: expected format version {FORMAT_VERSION}, found {header['version']}")
        modality = Modality.from_record(header, str(path))
        bands = tuple(header.get("bands", ()))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, (ObservationError, SettingsError)):
            raise ObservationError(str(error)) from None
        raise ObservationError(f"{path}: its metadata is damaged ({error!r})") from None
    place = path.relative_to(dataset).parts[:-1]
    if "/".join(place[:2]) != modality.name:
        raise ObservationError(f"{path}: expected a shard of {'/'.join(place[:2])}, found one of {modality.name}")
    return _Shard(path, modality, bands, num_rows)


def _read_columns(shard: _Shard, names: list[str]) -> Any:
    try:
        with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
            return file.read(names)
    except _ERRORS as error:
        raise ObservationError(f"{shard.path}: the file is damaged; {error}") from None


def _read_rows(shard: _Shard, rows: np.ndarray) -> Observation:
    """These rows of the file (ascending), read from the row groups that hold them."""
    try:
        with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            groups = np.unique(np.searchsorted(starts, rows, side="right") - 1)
            present = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
            table = file.read_row_groups(groups.tolist())
            if len(rows) != len(table):
                table = table.take(np.searchsorted(present, rows))
            return _decode(shard, table)
    except _ERRORS as error:
        raise ObservationError(f"{shard.path}: the file is damaged; {error}") from None


def _stream(shard: _Shard, batch_size: int) -> Iterator[Observation]:
    try:
        with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size):
                yield _decode(shard, pa.Table.from_batches([batch]))
    except _ERRORS as error:
        raise ObservationError(f"{shard.path}: the file is damaged; {error}") from None


def _decode(shard: _Shard, table: Any) -> Observation:
    """An Arrow table of this shard as an observation, checked again. Raises ObservationError that names the file."""
    count = len(table)
    values = {name: _array(table[name], count) for name in table.column_names if name != "object_id"}
    object_id = table["object_id"].to_pylist()
    place = {"ra": values.pop("ra"), "dec": values.pop("dec")}
    mask = values.pop("mask")
    try:
        if shard.modality.kind == "scalar":
            return ScalarObservation(shard.modality, object_id, values["values"], mask, values["error"], **place)
        if shard.modality.kind == "spectrum":
            if "wavelength" not in values:
                values["wavelength"] = np.array(json.loads(table.schema.metadata[_WAVELENGTH]), dtype=np.float64)
            return SpectrumObservation(shard.modality, object_id, mask=mask, **values, **place)
        shape = (count, len(shard.bands), int(values.pop("height")[0]), int(values.pop("width")[0]))
        pixels = {name: values.pop(name).reshape(shape) for name in ("flux", "inverse_variance")}
        return ImageObservation(
            shard.modality, object_id, bands=shard.bands, mask=mask.reshape(shape), **pixels, **values, **place
        )
    except ObservationError as error:
        raise ObservationError(f"{shard.path}: {error}") from None
    except (ValueError, KeyError) as error:
        raise ObservationError(f"{shard.path}: columns are missing or of the wrong size ({error!r})") from None


def _array(column: Any, count: int) -> np.ndarray:
    """An Arrow column as an array [B] or [B, values], for this process alone to write."""
    column = column.combine_chunks()
    nested = pa.types.is_fixed_size_list(column.type)
    flat = (column.flatten() if nested else column).to_numpy(zero_copy_only=False)
    return flat.reshape(count, -1) if nested else flat


def _first_double(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
