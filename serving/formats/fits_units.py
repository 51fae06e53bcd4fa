"""Units as FITS files state them, and what turns their numbers into ours: nanomaggies, and 1e-17 erg/s/cm2/A."""

import re
from typing import Any

import numpy as np
from astropy import units
from jaxtyping import Float64

from ...data.readers.fits_files import SPECTRUM_FLUX_UNIT, parse_unit
from ..problems import ProblemError, at, pointer

LONGEST_UNIT = 68
"""Characters: what fits a card."""

_AB_ZERO_FLUX = 3631 * units.Jy
# 10**999999999 is a number that astropy would work out.
_POWER_OF_TOO_MUCH = re.compile(r"(?:\*\*|\^)\s*\(?\s*[+-]?\d{3,}|\)\s*(?:\*\*|\^)|[eE][+-]?\d{3,}|\d{10,}")
_PER_PIXEL = re.compile(r"\s*(?:/|\bper\b)\s*pix(?:els?)?2?$", re.IGNORECASE)
_UNUSABLE = (ValueError, TypeError, ArithmeticError, LookupError, units.UnitConversionError)


def unit_of(text: str) -> Any:
    """The astropy unit of what a card says; "per pixel" is left out. Raises ValueError where that is no unit."""
    plain = _PER_PIXEL.sub("", text.strip())
    plain = re.sub(r"\bnano-?maggies\b", "nanomaggy", plain, flags=re.IGNORECASE)
    if len(plain) > LONGEST_UNIT or _POWER_OF_TOO_MUCH.search(plain):
        raise ValueError(f"not a unit: {text[:LONGEST_UNIT]!r}")
    try:
        return parse_unit(plain)
    except _UNUSABLE as error:
        raise ValueError(str(error)) from None


def nanomaggies_per(text: str, pixel_scale: float) -> float | None:
    """Nanomaggies in a pixel of one unit of an image; None where the unit is no flux (counts, electrons, text).

    Flux per solid angle (MJy/sr) is taken over a pixel of `pixel_scale` arcsec.
    """
    try:
        unit = unit_of(text)
    except ValueError:
        return None
    for pixel in (units.dimensionless_unscaled, units.Unit((pixel_scale * units.arcsec) ** 2)):
        try:
            found = float((unit * pixel).to(units.nmgy, equivalencies=units.zero_point_flux(_AB_ZERO_FLUX)))
        except _UNUSABLE:
            continue
        return found if np.isfinite(found) and found > 0 else None
    return None


def angstrom_per(text: str | None) -> float:
    """Angstrom in one unit of a wavelength; angstrom where no unit is stated. Raises ProblemError (422)."""
    if text is None or not text.strip():
        return 1.0
    try:
        return float(unit_of(text).to(units.AA))
    except _UNUSABLE:
        raise _wrong_unit("wavelength", "a length", text) from None


def spectral_flux_per(text: str | None, wavelength: Float64[np.ndarray, "*L"]) -> Float64[np.ndarray, "*L"]:
    """1e-17 erg/s/cm2/A in one unit of a spectrum, at each wavelength (angstrom): flux per frequency is taken too.

    Ones where no unit is stated. Raises ProblemError (422).
    """
    if text is None or not text.strip():
        return np.ones_like(wavelength)
    target = parse_unit(SPECTRUM_FLUX_UNIT)
    try:
        unit = unit_of(text)
        if unit.is_equivalent(target):
            return np.full_like(wavelength, unit.to(target))
        # Wavelengths of padding may be zero.
        safe = np.where(wavelength > 0, wavelength, 1.0) * units.AA
        ones = np.ones_like(wavelength)
        return np.asarray(unit.to(target, ones, equivalencies=units.spectral_density(safe)), dtype=np.float64)
    except _UNUSABLE:
        raise _wrong_unit("unit", SPECTRUM_FLUX_UNIT, text) from None


def _wrong_unit(field: str, expected: str, found: str) -> ProblemError:
    detail = f"expected {expected}, or what can be turned into it; the file says {found[:LONGEST_UNIT]!r}"
    return ProblemError("invalid-observation", f"{pointer(field)}: {detail}", [at(pointer(field), detail)])
