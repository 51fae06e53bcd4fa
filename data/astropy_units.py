"""Units of astropy into ours: nanomaggies, 1e-17 erg/s/cm2/A, angstrom in vacuum, and the units of scalars.

Raises ObservationError where a unit does not lead there: counts without a zero point, a surface brightness, km/s for a
redshift.
"""

from typing import Any

import astropy.units as u
import numpy as np
from jaxtyping import Float64

from .modalities import Modality
from .observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ObservationError

FLUX_DENSITY = 1e-17 * u.erg / u.s / u.cm**2 / u.AA
"""Unit of a spectrum's flux."""
AB_ZERO_FLUX = 3631 * u.Jy
"""Of magnitude zero; a nanomaggy is 1e-9 of it, as SDSS defines it."""
_COUNTS = (u.adu, u.ct, u.electron, u.photon, u.dimensionless_unscaled, u.adu / u.s, u.ct / u.s, u.electron / u.s)
_SCALAR_UNITS = {
    "dimensionless": u.dimensionless_unscaled,
    "AB mag": u.ABmag,
    "Vega mag": u.mag,
    "log10 solar masses": u.dex(u.solMass),
    "log10 per year": u.dex(1 / u.yr),
}


def parsed_unit(given: Any) -> Any:
    """A unit of astropy from itself or its name. Raises ObservationError."""
    if isinstance(given, u.UnitBase | u.FunctionUnitBase):
        return given
    try:
        return u.Unit({"nanomaggies": "nmgy", "nanomaggy": "nmgy"}.get(str(given), given))
    except (ValueError, TypeError) as error:
        raise ObservationError(f"expected a unit that astropy knows, found {given!r}: {error}") from None


def nanomaggies_per_unit(unit: Any, zero_point: float | int | None, modality: Modality) -> float:
    """How many nanomaggies one unit of an image is. `zero_point` is the AB magnitude of one count.

    Raises ObservationError.
    """
    name = modality.name
    if zero_point is not None:
        if unit is not None and parsed_unit(unit) not in _COUNTS:
            raise ObservationError(f"{name}: a zero_point goes with counts; the image is in {parsed_unit(unit)}")
        return float(10 ** (0.4 * (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - zero_point)))
    if unit is None:
        raise ObservationError(f"{name}: the image has no unit; say unit='nmgy', another unit of flux, or zero_point")
    given = parsed_unit(unit)
    if given in _COUNTS:
        raise ObservationError(f"{name}: the image is in counts ({given}): say zero_point, the AB magnitude of one")
    try:
        return float((1 * given).to_value(u.nmgy, u.zero_point_flux(AB_ZERO_FLUX)))
    except (u.UnitConversionError, TypeError):
        raise ObservationError(
            f"{name}: expected a flux per pixel, such as nmgy or uJy, found {given}, which does not become nanomaggies"
        ) from None


def flux_densities(
    values: np.ndarray, unit: Any, wavelength: Float64[np.ndarray, "*L"], modality: Modality
) -> Float64[np.ndarray, "*B L"]:
    """Flux of spectra [.., L] in 1e-17 erg/s/cm2/A; a flux per frequency is converted at its wavelength (angstrom)."""
    given = parsed_unit(unit)
    try:
        density = (values * given).to(FLUX_DENSITY, u.spectral_density(wavelength * u.AA))
        return np.asarray(density.value, np.float64)
    except (u.UnitConversionError, TypeError):
        raise ObservationError(
            f"{modality.name}: expected a flux density, such as {FLUX_DENSITY} or Jy, found {given}"
        ) from None


def angstroms(axis: Any, modality: Modality) -> Float64[np.ndarray, "*L"]:
    """Wavelengths in angstrom from any spectral quantity (nm, micron, Hz, eV); a plain array is in angstrom already."""
    if getattr(axis, "unit", None) is None:
        return np.asarray(axis, np.float64)
    try:
        return np.asarray(u.Quantity(axis.value, axis.unit).to_value(u.AA, u.spectral()), np.float64)
    except u.UnitConversionError:
        raise ObservationError(
            f"{modality.name}: expected wavelengths, frequencies or energies, found a spectral axis in {axis.unit}"
        ) from None


def vacuum_wavelengths(air: Float64[np.ndarray, "*L"]) -> Float64[np.ndarray, "*L"]:
    """Wavelengths in vacuum from those in standard air, angstrom, above 2000 A.

    N. Piskunov's inversion of Morton (2000, ApJS 130, 403), as the VALD database uses; good to 1e-4 A from 2000 A up.
    """
    s2 = (1e4 / np.maximum(air, 2000.0)) ** 2
    index = (
        1 + 8.336624212083e-5 + 2.408926869968e-2 / (130.1065924522 - s2) + 1.599740894897e-4 / (38.92568793293 - s2)
    )
    return np.where(air >= 2000, air * index, air)


def scalar_values(
    values: np.ndarray, errors: np.ndarray | None, unit: Any, modality: Modality
) -> tuple[np.ndarray, np.ndarray | None]:
    """Numbers of a scalar modality, and their errors, in its unit; `unit` None means that they are already.

    Logarithms are made of what is linear (solar masses, Jy), but not of errors. Raises ObservationError.
    """
    if unit is None:
        return values, errors
    given = parsed_unit(unit)
    wanted = _SCALAR_UNITS.get(modality.unit)
    target = parsed_unit(modality.unit) if wanted is None else wanted
    if _is_the_same(given, target):
        return values, errors
    try:
        converted = np.asarray(u.Quantity(values, given).to_value(target), np.float64)
        if errors is not None:
            if isinstance(target, u.FunctionUnitBase) or isinstance(given, u.FunctionUnitBase):
                raise ObservationError(
                    f"{modality.name}: errors in {given} do not become errors in {modality.unit}; convert them first"
                )
            errors = np.asarray(errors * (1 * given).to_value(target), np.float64)
    except (u.UnitConversionError, u.UnitTypeError, TypeError):
        raise ObservationError(f"{modality.name}: expected a unit like {modality.unit!r}, found {given}") from None
    return converted, errors


def _is_the_same(given: Any, target: Any) -> bool:
    # A catalogue's "mag" is that of its own system, and its "dex" of the unit of its own quantity.
    if given in (u.mag, u.dex):
        return isinstance(target, u.FunctionUnitBase) or target == given
    return bool(given == target)
