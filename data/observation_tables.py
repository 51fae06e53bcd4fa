"""Observations as Arrow tables and back, bit for bit: the columns of a dataset's files.

A row is one object. Arrays of an object are lists of 32-bit floats, so that pandas, DuckDB, LSDB or Hugging Face
`datasets` read them too. What all rows of a modality share (its instrument card, bands, a common wavelength grid) is
JSON in the schema's metadata, which makes a file complete without the configs it was made with: docs/data.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..settings import SettingsError
from .modalities import Modality
from .observations import (
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from .sky_partition import healpix_index
from .stacking import pad_bands, stack

FORMAT_VERSION = 2
INDEX_COLUMN = "_healpix_29"
IDENTITY = (INDEX_COLUMN, "object_id", "ra", "dec")
MAX_VALUES = 2**31 - 1
"""Most values of one column in one table: offsets of Arrow lists are 32-bit."""

_HEADER = b"armillary"
_WAVELENGTH = b"armillary.wavelength"


@dataclass(frozen=True)
class Layout:
    """What all files of one modality share."""

    modality: Modality
    bands: tuple[str, ...] = ()
    """Of images: the bands of every row, in the order of the pixels."""
    wavelength: tuple[float, ...] | None = None
    """Of spectra: the grid of every row, angstrom, or None where each row has its own."""
    has_resolving_power: bool = False
    """Of spectra: whether rows keep a resolving power of their own, for the card's does not hold."""

    def metadata(self) -> dict[bytes, bytes]:
        """The schema's metadata."""
        header: dict[str, Any] = {
            "format": "armillary observations",
            "version": FORMAT_VERSION,
            "unit": self.modality.unit,
            **self.modality.record(),
        }
        if self.modality.kind == "image":
            header["bands"] = list(self.bands)
        found = {_HEADER: json.dumps(header).encode()}
        if self.wavelength is not None:
            found[_WAVELENGTH] = json.dumps(self.wavelength).encode()
        return found

    def columns(self) -> dict[str, Any]:
        """Name and Arrow type of every column, in order."""
        numbers, flags = pa.list_(pa.float32()), pa.list_(pa.bool_())
        found = {INDEX_COLUMN: pa.int64(), "object_id": pa.string(), "ra": pa.float64(), "dec": pa.float64()}
        if self.modality.kind == "image":
            found |= {"height": pa.int32(), "width": pa.int32()}
            found |= {"flux": numbers, "inverse_variance": numbers, "mask": flags}
            return found | {"psf_fwhm": numbers, "depth": numbers, "center": numbers}
        if self.modality.kind == "spectrum":
            if self.wavelength is None:
                found["wavelength"] = pa.list_(pa.float64())
            found |= {"flux": numbers, "inverse_variance": numbers, "mask": flags}
            return found | ({"resolving_power": numbers} if self.has_resolving_power else {})
        if self.modality.kind == "coefficients":
            return found | {"values": numbers, "error": numbers, "mask": flags}
        return found | {"values": pa.float32(), "error": pa.float32(), "mask": pa.bool_()}

    def schema(self) -> Any:
        """The Arrow schema: columns with their units, and the metadata."""
        units = {"ra": "deg", "dec": "deg", "wavelength": "angstrom", "psf_fwhm": "arcsec", "depth": "AB mag"}
        unit = self.modality.unit
        units |= {"flux": unit, "values": unit, "error": unit, "center": "pixel", "resolving_power": "dimensionless"}
        units["inverse_variance"] = f"({unit})^-2"
        fields = [
            pa.field(name, kind, metadata={"unit": units[name]} if name in units else None)
            for name, kind in self.columns().items()
        ]
        return pa.schema(fields, self.metadata())


def layout_of(observation: Observation) -> Layout:
    """The layout that keeps every bit of `observation` in the least space."""
    if isinstance(observation, ImageObservation):
        return Layout(observation.modality, tuple(observation.bands))
    if isinstance(observation, SpectrumObservation):
        grid = observation.wavelength
        is_shared = torch.equal(grid, grid[:1].expand_as(grid))
        typical = observation.card.resolving_power_at(grid.numpy()).astype(np.float32)
        return Layout(
            observation.modality,
            wavelength=tuple(grid[0].tolist()) if is_shared else None,
            has_resolving_power=not np.array_equal(typical, observation.resolving_power.numpy()),
        )
    return Layout(observation.modality)


def merge_layouts(layouts: Mapping[Path, Layout]) -> Layout:
    """The layout that fits the rows of all files. Raises ObservationError if instrument cards differ."""
    paths, found = list(layouts), list(layouts.values())
    first = found[0]
    for path, layout in zip(paths[1:], found[1:], strict=True):
        if layout.modality != first.modality:
            raise ObservationError(f"{path}: its instrument card differs from that of {paths[0]}")
    present = {band for layout in found for band in layout.bands}
    bands: tuple[str, ...] = first.bands
    if present != set(bands):
        bands = tuple(band.name for band in getattr(first.modality.card, "bands", ()) if band.name in present)
    return Layout(
        first.modality,
        bands,
        first.wavelength if all(layout.wavelength == first.wavelength for layout in found) else None,
        any(layout.has_resolving_power for layout in found),
    )


def encode(observation: Observation, layout: Layout) -> Any:
    """The observation as an Arrow table of this layout, sorted by position (`_healpix_29`, then `object_id`).

    Raises ObservationError if it is too large for one table.
    """
    ra, dec = observation.ra.numpy(), observation.dec.numpy()
    index = healpix_index(ra, dec)
    columns: dict[str, Any] = {
        INDEX_COLUMN: pa.array(index),
        "object_id": pa.array(observation.object_id, pa.string()),
        "ra": pa.array(ra),
        "dec": pa.array(dec),
    }
    if isinstance(observation, ImageObservation):
        observation = pad_bands(observation, layout.bands)
        height, width = observation.flux.shape[2:]
        columns["height"] = pa.array(np.full(len(observation), height, np.int32))
        columns["width"] = pa.array(np.full(len(observation), width, np.int32))
    for name in layout.columns():
        if name not in columns:
            columns[name] = _column(getattr(observation, name), observation)
    order = np.lexsort((np.array(observation.object_id, dtype=object), index))
    return pa.table(columns, schema=layout.schema()).take(pa.array(order))


def decode(table: Any, layout: Layout, path: Path) -> Observation:
    """An Arrow table of this layout as an observation, checked again. Raises ObservationError that names the file.

    Images of several sizes and spectra of several lengths are padded with mask=False.
    """
    sizes = _sizes(table, layout)
    try:
        if sizes is None or len(np.unique(sizes, axis=0)) == 1:
            return _decode(table, layout)
        parts, order = [], []
        for size in np.unique(sizes, axis=0):
            rows = np.flatnonzero((sizes == size).all(1))
            parts.append(_decode(table.take(pa.array(rows)), layout))
            order.append(rows)
        return stack(parts).select(np.argsort(np.concatenate(order)).tolist())
    except ObservationError as error:
        raise ObservationError(f"{path}: {error}") from None
    except (ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise ObservationError(f"{path}: columns are missing or of the wrong size ({error!r})") from None


def read_layout(schema: Any, path: Path) -> Layout:
    """The layout of a file by its schema. Raises ObservationError if it is not one of ours, or damaged."""
    metadata = schema.metadata or {}
    if _HEADER not in metadata:
        raise ObservationError(f"{path}: expected a file of an Armillary dataset, found Parquet without its metadata")
    try:
        header = json.loads(metadata[_HEADER])
        if header["version"] != FORMAT_VERSION:
            raise ObservationError(f"{path}: expected format version {FORMAT_VERSION}, found {header['version']}")
        grid = json.loads(metadata[_WAVELENGTH]) if _WAVELENGTH in metadata else None
        layout = Layout(
            Modality.from_record(header, str(path)),
            tuple(header.get("bands", ())),
            None if grid is None else tuple(grid),
            "resolving_power" in schema.names,
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, (ObservationError, SettingsError)):
            raise ObservationError(str(error)) from None
        raise ObservationError(f"{path}: its metadata is damaged ({error!r})") from None
    expected = layout.columns()
    found = dict(zip(schema.names, schema.types, strict=True))
    for name, kind in expected.items():
        if name not in found:
            raise ObservationError(f"{path}: expected columns {list(expected)}, found {schema.names}")
        if not _is_same_type(found[name], kind):
            raise ObservationError(f"{path}: column {name} must be of type {kind}, found {found[name]}")
    return layout


def _is_same_type(found: Any, expected: Any) -> bool:
    """Whether types agree but for the name of a list's items."""
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return bool(found.value_type == expected.value_type)
    return bool(found == expected)


def _column(values: Tensor, observation: Observation) -> Any:
    """[B, ...] as an Arrow column of numbers, or of lists."""
    array = values.contiguous().numpy()
    if array.size > MAX_VALUES:
        raise ObservationError(
            f"{observation.modality.name}: expected at most {MAX_VALUES} values at once, found {array.size}; write "
            "fewer objects at a time"
        )
    flat = pa.array(array.reshape(-1))
    if array.ndim == 1:
        return flat
    offsets = np.arange(len(array) + 1, dtype=np.int32) * np.int32(array[0].size)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _sizes(table: Any, layout: Layout) -> np.ndarray | None:
    """What must be equal for rows to form one array: [B, 2] of images, [B, 1] of spectra."""
    if layout.modality.kind == "image":
        return np.stack([table["height"].to_numpy(), table["width"].to_numpy()], 1)
    if layout.modality.kind == "spectrum":
        return np.asarray(pa.compute.list_value_length(table["flux"]).to_numpy())[:, None]
    return None


def _decode(table: Any, layout: Layout) -> Observation:
    """Rows of one size."""
    count = len(table)
    values = {name: _array(table[name], count) for name in table.column_names if name not in IDENTITY}
    object_id = table["object_id"].to_pylist()
    place = {name: _array(table[name], count) for name in ("ra", "dec")}
    modality = layout.modality
    mask = values.pop("mask")
    if modality.kind == "scalar":
        return ScalarObservation(modality, object_id, values["values"], mask, values["error"], **place)
    if modality.kind == "coefficients":
        return CoefficientsObservation(modality, object_id, values["values"], mask, values["error"], **place)
    if modality.kind == "spectrum":
        if layout.wavelength is not None:
            values["wavelength"] = np.array(layout.wavelength, dtype=np.float64)
        return SpectrumObservation(modality, object_id, mask=mask, **values, **place)
    shape = (count, len(layout.bands), int(values.pop("height")[0]), int(values.pop("width")[0]))
    pixels = {name: values.pop(name).reshape(shape) for name in ("flux", "inverse_variance")}
    return ImageObservation(
        modality, object_id, bands=layout.bands, mask=mask.reshape(shape), **pixels, **values, **place
    )


def _array(column: Any, count: int) -> np.ndarray:
    """An Arrow column as an array [B] or [B, values], for this process alone to write."""
    column = column.combine_chunks()
    nested = pa.types.is_list(column.type)
    flat = (column.flatten() if nested else column).to_numpy(zero_copy_only=False)
    return flat.reshape(count, -1) if nested else flat


def first_double(names: Sequence[str]) -> str | None:
    """The first name that comes twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
