"""One measurement in a FITS file that no survey's reader knows: an image with its error, or a table with a spectrum.

Units are those of the header (BUNIT, TUNIT); what the header does not say must be given. An SDSS `spec` file is read by
its own reader. Everything else of a file (many objects, mosaics) is for `data/readers/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.nddata import CCDData, InverseVariance, NDUncertainty, StdDevUncertainty, VarianceUncertainty
from astropy.wcs import WCS

from .astropy_units import parsed_unit
from .instruments import ImagingInstrument
from .modalities import Modality
from .observations import ObservationError
from .readers.fits_files import FitsFile, open_fits, parse_unit
from .readers.sdss import read_sdss_spec

_INVERSE_VARIANCE = ("IVAR", "INVVAR", "INVERSE_VARIANCE", "WEIGHT")
_KINDS = {kind.__name__: kind for kind in (StdDevUncertainty, VarianceUncertainty, InverseVariance)}
_WAVELENGTH = ("wavelength", "wave", "lambda", "spectral_axis")
_FLUX = ("flux", "flam", "fnu")
_ERROR = ("error", "err", "flux_error", "flux_err", "uncertainty", "sigma", "fluxerr")
_SDSS_COLUMNS = {"flux", "loglam", "ivar", "and_mask"}


@dataclass(frozen=True, eq=False)
class TabulatedSpectrum:
    """A spectrum of a table, with the attributes by which spectra are known."""

    spectral_axis: Any
    flux: Any
    uncertainty: NDUncertainty | None
    mask: np.ndarray | None
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_measurement(path: Path, modality: Modality, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a FITS file holds of this modality, and `options` with what its header adds (`bands`, `unit`).

    An image comes as CCDData, a spectrum as `TabulatedSpectrum`, or as an observation where SDSS wrote it. Raises
    ObservationError that names the file.
    """
    with open_fits(path) as file:
        if modality.kind == "image":
            return _image(file, modality, dict(options))
        if modality.kind == "spectrum":
            return _spectrum(file, path, modality, dict(options))
    raise ObservationError(f"{path}: {modality.name} is not read from a file; pass numbers, or a table of astropy")


def _image(file: FitsFile, modality: Modality, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    shapes = {place: shape for place, shape in file.image_shapes().items() if len(shape) in (2, 3)}
    if not shapes:
        raise file.error("expected an image of 2 or 3 axes, found none")
    place = next(iter(shapes))
    header = file.header(place)
    said = str(file.value(place, "BUNIT") or "").strip()
    unit = options.pop("unit", None) if not said else _unit(file, said)
    if unit is None:
        if "zero_point" not in options:
            raise file.error("the header has no BUNIT: say unit='nmgy', another unit of flux, or zero_point")
        unit = "adu"
    if "bands" not in options:
        found = _bands(file, place, modality)
        if found is not None:
            options["bands"] = found
    with file.decoding(place):
        coordinates = WCS(header).celestial
    image = CCDData(
        file.image(place),
        unit=parsed_unit(unit),
        wcs=coordinates if coordinates.has_celestial else None,
        meta=dict(header),
        mask=file.image("MASK", shapes[place]).astype(bool) if file.has("MASK") else None,
    )
    image.uncertainty = _uncertainty(file, shapes[place])
    return image, options


def _uncertainty(file: FitsFile, shape: tuple[int, ...]) -> NDUncertainty | None:
    """Of an extension UNCERT as CCDData writes it, or of one with the inverse variance."""
    if file.has("UNCERT"):
        kind = str(file.value("UNCERT", "UTYPE") or "StdDevUncertainty")
        if kind not in _KINDS:
            raise file.error(f"UTYPE of UNCERT must be one of {sorted(_KINDS)}, found {kind!r}")
        unit = file.value("UNCERT", "BUNIT")
        return _KINDS[kind](file.image("UNCERT", shape), unit=None if unit is None else _unit(file, str(unit)))
    for name in _INVERSE_VARIANCE:
        if file.has(name):
            return InverseVariance(file.image(name, shape))
    return None


def _bands(file: FitsFile, place: int, modality: Modality) -> list[str] | None:
    """Bands of a cube, as the Legacy Survey's viewer says them: BANDS = 'griz'."""
    assert isinstance(modality.card, ImagingInstrument)
    known = {band.name for band in modality.card.bands}
    said = str(file.value(place, "BANDS") or "").strip()
    names = [name.strip() for name in said.split(",")] if "," in said else list(said)
    return names if names and set(names) <= known else None


def _spectrum(file: FitsFile, path: Path, modality: Modality, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    for place in file.tables():
        columns = {name.lower(): name for name in file.column_names(place)}
        if modality.name == "spectrum/sdss" and columns.keys() >= _SDSS_COLUMNS and not options:
            return read_sdss_spec(path), options
        flux = next((columns[name] for name in _FLUX if name in columns), None)
        if flux is not None:
            return _table(file, place, columns, flux, options), {k: v for k, v in options.items() if k != "unit"}
    raise file.error(f"expected a table with a column of flux, one of {list(_FLUX)}, found none")


def _table(
    file: FitsFile, place: int, columns: Mapping[str, str], flux: str, options: Mapping[str, Any]
) -> TabulatedSpectrum:
    units = file.column_units(place)

    def column(name: str) -> np.ndarray:
        (values,) = file.columns(place, [name])
        # One spectrum may be one row with all of its pixels.
        return np.asarray(values[0] if values.ndim == 2 and len(values) == 1 else values, np.float64)

    flux_unit = _unit(file, units[flux]) if flux in units else options.get("unit")
    if flux_unit is None:
        raise file.error(f"column {flux} states no unit: say unit='1e-17 erg / (s cm2 AA)', or its own")
    flux_unit = parsed_unit(flux_unit)
    axis_name = next((columns[name] for name in _WAVELENGTH if name in columns), None)
    if axis_name is None and "loglam" not in columns:
        raise file.error(f"expected a column of wavelengths, one of {[*_WAVELENGTH, 'loglam']}, found none")
    axis: Any
    if axis_name is None:
        axis = 10 ** column(columns["loglam"]) * parsed_unit("AA")
    elif axis_name in units:
        axis = column(axis_name) * _unit(file, units[axis_name])
    else:
        raise file.error(f"column {axis_name} states no unit")
    uncertainty: NDUncertainty | None = None
    ivar = next((columns[n.lower()] for n in _INVERSE_VARIANCE if n.lower() in columns), None)
    error = next((columns[name] for name in _ERROR if name in columns), None)
    if ivar is not None:
        uncertainty = InverseVariance(column(ivar), unit=flux_unit**-2)
    elif error is not None:
        uncertainty = StdDevUncertainty(column(error), unit=flux_unit)
    mask = column(columns["mask"]).astype(bool) if "mask" in columns else None
    meta = {**dict(file.header(0)), **dict(file.header(place))}
    return TabulatedSpectrum(axis, column(flux) * flux_unit, uncertainty, mask, meta)


def _unit(file: FitsFile, text: str) -> Any:
    """A unit as surveys write it. Raises ObservationError that names the file."""
    plain = text.strip()
    if plain.lower() in ("nanomaggies", "nanomaggy"):
        plain = "nmgy"
    try:
        return parse_unit(plain)
    except (ValueError, TypeError) as problem:
        raise file.error(f"expected a unit that astropy knows, found {text!r}: {problem}") from None
