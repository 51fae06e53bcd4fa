"""The spectra of a FITS body: DESI coadds and SDSS `spec` files by their readers, other files by the names they use.

Others hold FLUX, a wavelength (WAVELENGTH, WAVE, LAMBDA or LOGLAM, the logarithm to base 10 of angstrom) and IVAR or
ERROR, as columns of a table (one row for each pixel, or one for each object) or as image extensions ([wavelengths] or
[objects, wavelengths]), and perhaps MASK (flags, 0 = good) and RESOLVING_POWER. Many spectra are many objects, and a
bad one fails alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.modalities import Modality
from ...data.observations import Observation
from ...data.readers.desi import desi_batches
from ...data.readers.desi_arms import ARMS
from ...data.readers.fits_bytes import FitsBytes
from ...data.readers.fits_files import FitsFile
from ...data.readers.sdss import read_sdss_spec
from ..limits import Limits
from ..problems import ProblemError, at, pointer
from . import bodies
from .fits_query import FitsQuery
from .fits_units import angstrom_per, spectral_flux_per, unit_of

Objects = list[list[Observation] | ProblemError]

FLUX = ("FLUX",)
WAVELENGTH = ("WAVELENGTH", "WAVE", "LAMBDA", "LOGLAM")
INVERSE_VARIANCE = ("IVAR", "INVVAR", "INVERSE_VARIANCE")
ERROR = ("ERROR", "ERR", "SIGMA", "UNCERTAINTY", "FLUX_ERROR")
"""Standard deviation, where there is no inverse variance."""
MASK = ("MASK", "AND_MASK")
RESOLVING_POWER = ("RESOLVING_POWER",)
OBJECT_ID = ("OBJECT_ID", "TARGETID", "ID")
RA, DEC = ("RA", "TARGET_RA"), ("DEC", "TARGET_DEC")


def survey_of(file: FitsFile) -> str | None:
    """The modality of a file that says by its form what it is, None for any other. Raises ObservationError."""
    if file.has("FIBERMAP") and any(file.has(f"{arm}_FLUX") for arm in ARMS):
        return "spectrum/desi"
    tables = file.tables()
    if tables[:2] == [1, 2]:
        columns = {name.upper() for name in file.column_names(1)}
        if columns >= {"FLUX", "LOGLAM", "IVAR", "AND_MASK"} and "PLATE" in map(str.upper, file.column_names(2)):
            return "spectrum/sdss"
    return None


def desi_objects(file: FitsFile, source: FitsBytes, limits: Limits) -> Objects:
    """Each fibre of a coadd, arms joined; one without a valid pixel is a problem of its own.

    Raises ProblemError (413, 422) and ObservationError.
    """
    (target,) = file.columns("FIBERMAP", ["TARGETID"])
    bodies.check_count(len(target), limits)
    arms = [arm for arm in ARMS if file.has(f"{arm}_FLUX")]
    _check_length(sum(file.image_shape(f"{arm}_FLUX", (len(target), None))[1] for arm in arms), limits)
    found = {}
    for batch in desi_batches(source, arms=arms):
        for row, name in enumerate(batch.object_id):
            found[name] = batch.select([row])
    return [
        [found[name]] if name in found else _unusable(("input", row, "data"), f"TARGETID {name} has no valid pixel")
        for row, name in enumerate(str(number) for number in target)
    ]


def sdss_objects(file: FitsFile, source: FitsBytes, limits: Limits) -> Objects:
    """The one spectrum of a `spec` file. Raises ProblemError (422) and ObservationError."""
    _check_length(file.num_rows(1), limits)
    return [[read_sdss_spec(source)]]


@dataclass(frozen=True)
class _Arrays:
    """What the file calls by names that are known: arrays with their units."""

    where: str
    values: dict[str, np.ndarray]
    units: dict[str, str]

    def first(self, names: Sequence[str]) -> str | None:
        """The first of the names that is there."""
        return next((name for name in names if name in self.values), None)


def named_objects(file: FitsFile, modality: Modality, asked: FitsQuery, limits: Limits) -> Objects:
    """The spectra of a table, or of image extensions, by name. Raises ProblemError and ObservationError."""
    arrays = _of_table(file, limits) or _of_images(file)
    if arrays is None:
        raise _unusable(
            ("data",),
            f"expected a DESI coadd, an SDSS spec file, or FLUX with one of {list(WAVELENGTH)} and one of "
            f"{[*INVERSE_VARIANCE, *ERROR]}, as columns of a table or as image extensions",
        )
    flux = arrays.values["FLUX"]
    wavelength = _wavelength(arrays)
    if flux.ndim not in (1, 2) or wavelength.shape not in (flux.shape, flux.shape[-1:]):
        raise _unusable(
            ("data",),
            f"{arrays.where}: expected FLUX [wavelengths] or [objects, wavelengths], found {list(flux.shape)}, with "
            f"wavelengths {list(wavelength.shape)}",
        )
    is_batch = flux.ndim == 2
    bodies.check_count(len(flux) if is_batch else 1, limits)
    _check_length(flux.shape[-1], limits)
    if flux.size == 0:
        raise _unusable(("data",), f"{arrays.where}: no spectrum in FLUX of shape {list(flux.shape)}")
    wavelength = np.broadcast_to(wavelength, flux.shape)
    factor = spectral_flux_per(arrays.units.get("FLUX"), wavelength)
    with np.errstate(all="ignore"):
        ivar = _inverse_variance(arrays, flux.shape) / factor**2
        values = flux * factor
        valid = np.isfinite(values) & np.isfinite(ivar) & (ivar > 0)
        mask = arrays.first(MASK)
        if mask is not None:
            valid &= _same_shape(arrays, mask, flux.shape) == 0
        columns = {"data": values.astype(np.float32), "inverse_variance": np.where(valid, ivar, 0).astype(np.float32)}
    columns |= {"wavelength": wavelength, "mask": valid}
    power = arrays.first(RESOLVING_POWER)
    if power is not None:
        columns["resolving_power"] = _same_shape(arrays, power, flux.shape)
    if not is_batch:
        columns = {name: array[None] for name, array in columns.items()}
    count = len(columns["data"])
    about = [asked.model_dump(include={"object_id", "ra", "dec"}, exclude_none=True)] if count == 1 else [{}] * count
    objects: Objects = []
    for row in range(count):
        place = ("input", row)
        given = {name: array[row] for name, array in columns.items() if name != "data"}
        said = (_said(arrays, row) if is_batch else {}) | about[row]
        objects.append(bodies.row_object(modality, columns["data"][row], given, said, place, limits))
    return objects


def _of_table(file: FitsFile, limits: Limits) -> _Arrays | None:
    """The columns of the first table that has flux, wavelength and noise; None if there is none."""
    for number in file.tables():
        stored = {name.upper(): name for name in file.column_names(number)}
        if not all(set(names) & stored.keys() for names in (FLUX, WAVELENGTH, (*INVERSE_VARIANCE, *ERROR))):
            continue
        if str(file.value(number, "AIRORVAC")).lower().startswith("air") or file.value(number, "VACUUM") is False:
            raise _unusable(("wavelength",), f"extension {number} has wavelengths in air; send vacuum")
        rows = file.num_rows(number)
        if rows > max(limits.max_items, limits.max_wavelengths):
            _check_length(rows, limits)
        known = [*FLUX, *WAVELENGTH, *INVERSE_VARIANCE, *ERROR, *MASK, *RESOLVING_POWER, *OBJECT_ID, *RA, *DEC]
        wanted = [name for name in known if name in stored]
        values = dict(zip(wanted, file.columns(number, [stored[name] for name in wanted]), strict=True))
        units = {name.upper(): unit for name, unit in file.column_units(number).items()}
        arrays = _Arrays(f"extension {number}", values, units)
        for name in wanted:
            if name not in OBJECT_ID and values[name].dtype.kind not in "fiub":
                raise _unusable(("data",), f"{arrays.where}: column {name} must hold numbers")
        return arrays
    return None


def _of_images(file: FitsFile) -> _Arrays | None:
    """The image extensions, if flux, wavelength and noise are among them."""
    shapes = file.image_shapes()
    stored = {str(file.value(number, "EXTNAME") or "").upper(): number for number in reversed(shapes)}
    if not all(set(names) & stored.keys() for names in (FLUX, WAVELENGTH, (*INVERSE_VARIANCE, *ERROR))):
        return None
    known = [
        name for name in (*FLUX, *WAVELENGTH, *INVERSE_VARIANCE, *ERROR, *MASK, *RESOLVING_POWER) if name in stored
    ]
    for name in known:
        if len(shapes[stored[name]]) > 2:
            raise _unusable(("data",), f"{name} has shape {list(shapes[stored[name]])}; expected 1 or 2 axes")
    units = {name: unit for name in known if isinstance(unit := file.value(stored[name], "BUNIT"), str)}
    return _Arrays("the image extensions", {name: file.image(stored[name]) for name in known}, units)


def _wavelength(arrays: _Arrays) -> np.ndarray:
    name = arrays.first(WAVELENGTH)
    assert name is not None  # `_of_table` and `_of_images` have looked
    values = arrays.values[name].astype(np.float64)
    if name == "LOGLAM":
        with np.errstate(over="ignore"):
            return 10**values
    return values * angstrom_per(arrays.units.get(name))


def _inverse_variance(arrays: _Arrays, shape: tuple[int, ...]) -> np.ndarray:
    """In the inverse square of the flux's unit."""
    name = arrays.first(INVERSE_VARIANCE)
    is_error = name is None
    name = arrays.first(ERROR) if name is None else name
    assert name is not None  # `_of_table` and `_of_images` have looked
    values = _same_shape(arrays, name, shape).astype(np.float64)
    ratio = _unit_ratio(arrays.units.get(name), arrays.units.get("FLUX"), 1 if is_error else -2)
    return (values * ratio) ** -2 if is_error else values * ratio


def _unit_ratio(found: str | None, flux: str | None, power: int) -> float:
    """What takes a stated unit to the flux's to this power; 1 where either is not stated. Raises ProblemError (422)."""
    if not found or not flux or not found.strip() or not flux.strip():
        return 1.0
    try:
        return float(unit_of(found).to(unit_of(flux) ** power))
    except (ValueError, TypeError, ArithmeticError):
        raise _unusable(
            ("inverse_variance",), f"noise in {found[:68]!r} does not go with flux in {flux[:68]!r}"
        ) from None


def _same_shape(arrays: _Arrays, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = arrays.values[name]
    if values.shape != shape:
        raise _unusable(("data",), f"{arrays.where}: {name} must have shape {list(shape)}, found {list(values.shape)}")
    return values


def _said(arrays: _Arrays, row: int) -> dict[str, Any]:
    """Id and position of one object of a table."""
    found: dict[str, Any] = {}
    for field, names in (("object_id", OBJECT_ID), ("ra", RA), ("dec", DEC)):
        name = arrays.first(names)
        if name is None or arrays.values[name].ndim != 1:
            continue
        value = arrays.values[name][row]
        if field == "object_id":
            found[field] = (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()
        elif np.isfinite(value):
            found[field] = float(value)
    return found


def _check_length(length: int, limits: Limits) -> None:
    if length > limits.max_wavelengths:
        raise _unusable(("data",), f"at most {limits.max_wavelengths} wavelengths, found {length}")


def _unusable(place: tuple[str | int, ...], detail: str) -> ProblemError:
    return ProblemError("invalid-observation", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
