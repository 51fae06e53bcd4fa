"""The surveys of the Multimodal Universe: what their columns hold, and the observations they become.

Units and polarities, as the build scripts of version 1 set them (the HATS catalogues of 1.5 were made from its files):

| survey | values | mask | ra, dec |
| --- | --- | --- | --- |
| legacysurvey | nanomaggies, DR10 coadds as they are; one mask for all bands | True = good (no MASKBITS) | RA |
| hsc | counts of zero point 27.0, coadds as they are | True = good (not BAD, SAT, NO_DATA) | ra |
| sdss | 1e-17 erg/s/cm2/A, vacuum; padded with wavelength -1 | True = bad (AND_MASK, ivar <= 1e-6) | PLUG_RA |
| desi | 1e-17 erg/s/cm2/A, vacuum, 3600-9824 A | True = bad (MASK, ivar <= 1e-6) | TARGET_RA |
| gaia | electrons/s, 55 BP then 55 RP coefficients | none | at J2016.0 |

Missing magnitudes are -99 or infinite; the errors of missing redshifts are negative.
"""

import math
from collections.abc import Mapping

import hpgeom
import numpy as np
from jaxtyping import Float

from ..modalities import modality
from ..observations import (
    UNITS_OF_FLUX_AT_ZERO_MAGNITUDE,
    CoefficientsObservation,
    Observation,
    ObservationError,
    ScalarObservation,
)
from .mosaics import HSC_ZERO_POINT
from .multimodal_universe_columns import Column, FlagMeaning, Survey, is_good
from .multimodal_universe_pixels import images, spectra
from .survey_rows import MILLIARCSEC_PER_DEGREE, Rows

FARTHEST_FROM_SOURCE_ID = 300.0
"""Arcsec from the middle of the HEALPix pixel in a Gaia source_id to its source: 36 to a corner, the rest is motion."""

_MAGNITUDES_PER_RELATIVE_ERROR = 2.5 / math.log(10)
_GAIA_PIXEL_SHIFT = 35
_GAIA_NSIDE = 2**12


def _gaia(rows: Rows, _: FlagMeaning | None) -> list[Observation]:
    _check_source_ids(rows)
    declared = modality("coefficients/gaia_bp_rp")
    values = rows.columns["coeff"]
    if values.ndim != 2:
        raise ObservationError(
            f"{rows.path}: coeff must have shape [objects, coefficients], found {list(values.shape)}"
        )
    error = rows.shaped("coeff_error", values.shape).astype(np.float64)
    valid = np.isfinite(values)
    error = np.where(valid & (error >= 0) & np.isfinite(error), error, np.nan)
    coefficients = CoefficientsObservation(declared, rows.object_id, values, valid, error, ra=rows.ra, dec=rows.dec)
    found: list[Observation] = [coefficients]
    for band in ("g", "bp", "rp"):
        flux, flux_error = rows.numbers(f"flux_{band}"), rows.numbers(f"flux_error_{band}")
        relative = None if flux is None or flux_error is None else flux_error / np.where(flux > 0, flux, np.nan)
        mag_error = None if relative is None else _MAGNITUDES_PER_RELATIVE_ERROR * relative
        found += _scalar(rows, f"scalar/gaia_{band}", rows.numbers(f"mag_{band}"), mag_error)
    for name in ("parallax", "pm_ra", "pm_dec", "radial_velocity"):
        found += _scalar(rows, f"scalar/gaia_{name}", rows.numbers(name), rows.numbers(f"{name}_error"))
    errors = [rows.numbers(f"{axis}_error") for axis in ("ra", "dec")]
    if errors[0] is not None and errors[1] is not None:
        rounding = rows.position_rounding * MILLIARCSEC_PER_DEGREE
        along_ra = rounding[:, 0] * np.cos(np.radians(rows.dec))
        total = np.sqrt(errors[0] ** 2 + errors[1] ** 2 + along_ra**2 + rounding[:, 1] ** 2)
        found += _scalar(rows, "scalar/gaia_position_error", total)
    return found


def _check_source_ids(rows: Rows) -> None:
    """A source_id holds the HEALPix pixel (order 12, nested, ICRS) of its source: the position must lie near it.

    The merging script of version 1 puts tables side by side by row, without looking at their ids.
    """
    try:
        source_id = np.array([int(name) for name in rows.object_id], dtype=np.int64)
    except (ValueError, OverflowError):
        raise ObservationError(
            f"{rows.path}: object ids must be Gaia source ids, found {rows.object_id[0]!r}"
        ) from None
    pixel = np.clip(source_id >> _GAIA_PIXEL_SHIFT, 0, 12 * _GAIA_NSIDE**2 - 1)
    ra, dec = hpgeom.pixel_to_angle(_GAIA_NSIDE, pixel, nest=True, lonlat=True, degrees=True)
    separation = _separation(rows.ra, rows.dec, np.atleast_1d(ra), np.atleast_1d(dec)) * 3600
    far = separation > FARTHEST_FROM_SOURCE_ID
    if far.any():
        row = int(np.flatnonzero(far)[0])
        raise rows.error(
            row,
            f"the source_id says ({ra[row]:.4f}, {dec[row]:.4f}), the columns ra and dec "
            f"({rows.ra[row]:.4f}, {rows.dec[row]:.4f}), {separation[row]:.0f} arcsec away: rows were mixed up",
        )


def _separation(
    ra: Float[np.ndarray, " B"],
    dec: Float[np.ndarray, " B"],
    other_ra: Float[np.ndarray, " B"],
    other_dec: Float[np.ndarray, " B"],
) -> Float[np.ndarray, " B"]:
    """Great-circle distance in degrees (haversine)."""
    ra, dec, other_ra, other_dec = (np.radians(angle) for angle in (ra, dec, other_ra, other_dec))
    half = np.sin((dec - other_dec) / 2) ** 2 + np.cos(dec) * np.cos(other_dec) * np.sin((ra - other_ra) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))


def _redshifts(rows: Rows, flag: str, true_means: FlagMeaning | None) -> list[Observation]:
    redshift, error = rows.numbers("redshift"), rows.numbers("redshift_error")
    assert redshift is not None
    assert error is not None
    valid = is_good(rows, flag, true_means) & np.isfinite(error) & (error > 0)
    return _scalar(rows, "scalar/redshift", redshift, error, valid)


def _legacysurvey(rows: Rows, _: FlagMeaning | None) -> list[Observation]:
    found = images(rows, "image/legacysurvey", "des-", UNITS_OF_FLUX_AT_ZERO_MAGNITUDE)
    found += _photometry(rows, ("g", "r", "i", "z", "w1", "w2"))
    radius = rows.numbers("half_light_radius")
    is_extended = np.zeros(len(rows), dtype=bool) if radius is None else radius > 0
    for name in ("ebv", "half_light_radius", "ellipticity_1", "ellipticity_2"):
        valid = None if name == "ebv" else is_extended
        found += _scalar(rows, f"scalar/legacysurvey_{name}", rows.numbers(name), valid=valid)
    return found


def _hsc(rows: Rows, _: FlagMeaning | None) -> list[Observation]:
    found = images(rows, "image/hsc", "hsc-", HSC_ZERO_POINT)
    for band in "grizy":
        found += _scalar(rows, f"scalar/hsc_{band}", rows.numbers(f"mag_{band}"), rows.numbers(f"mag_error_{band}"))
    return found


def _sdss(rows: Rows, true_means: FlagMeaning | None) -> list[Observation]:
    return spectra(rows, "spectrum/sdss") + _redshifts(rows, "ZWARNING", true_means)


def _desi(rows: Rows, true_means: FlagMeaning | None) -> list[Observation]:
    return spectra(rows, "spectrum/desi") + _redshifts(rows, "ZWARN", true_means) + _photometry(rows, ("g", "r", "z"))


def _photometry(rows: Rows, bands: tuple[str, ...]) -> list[Observation]:
    """Magnitudes of the Legacy Surveys from fluxes in nanomaggies; a flux that is not positive is missing."""
    found: list[Observation] = []
    for band in bands:
        flux, ivar = rows.numbers(f"flux_{band}"), rows.numbers(f"flux_ivar_{band}")
        if flux is None:
            continue
        is_positive = (flux > 0) & np.isfinite(flux)
        safe = np.where(is_positive, flux, 1.0)
        error = None
        if ivar is not None:
            error = _MAGNITUDES_PER_RELATIVE_ERROR / safe / np.sqrt(np.where(ivar > 0, ivar, np.nan))
        magnitude = UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * np.log10(safe)
        found += _scalar(rows, f"scalar/legacysurvey_{band}", magnitude, error, is_positive)
    return found


def _scalar(
    rows: Rows,
    modality_name: str,
    values: np.ndarray | None,
    error: np.ndarray | None = None,
    valid: np.ndarray | None = None,
) -> list[Observation]:
    """One number for each object; what is not finite, or outside the declared range (a sentinel), is missing."""
    if values is None:
        return []
    declared = modality(modality_name)
    is_inside = (values >= declared.quantity.minimum) & (values <= declared.quantity.maximum)
    valid = is_inside if valid is None else is_inside & valid
    if not valid.any():
        return []
    if error is not None:
        error = np.where(valid & np.isfinite(error) & (error >= 0), error, np.nan)
    return [ScalarObservation(declared, rows.object_id, values, valid, error, ra=rows.ra, dec=rows.dec)]


_IMAGE = {
    "flux": Column("image_array", "image.flux"),
    "ivar": Column("image_ivar", "image.ivar"),
    "mask": Column("image_mask", "image.mask"),
    "band": Column("image_band", "image.band"),
    "psf_fwhm": Column("image_psf_fwhm", "image.psf_fwhm"),
    "scale": Column("image_scale", "image.scale"),
}
_SPECTRUM = {
    "flux": Column("spectrum_flux", "spectrum.flux"),
    "ivar": Column("spectrum_ivar", "spectrum.ivar"),
    "mask": Column("spectrum_mask", "spectrum.mask"),
    "wavelength": Column("spectrum_lambda", "spectrum.lambda"),
    "lsf_sigma": Column("spectrum_lsf_sigma", "spectrum.lsf_sigma", is_required=False),
}


def _same(names: Mapping[str, str], is_required: bool = False) -> dict[str, Column]:
    """Columns of the same name in both versions."""
    return {ours: Column(theirs, theirs, is_required) for ours, theirs in names.items()}


def _inside(struct: str, names: Mapping[str, str]) -> dict[str, Column]:
    """Columns that 1.5 keeps in a struct."""
    return {ours: Column(theirs, f"{struct}.{theirs}", is_required=False) for ours, theirs in names.items()}


_OBJECT_ID = Column("object_id", "object_id")
_FLUXES = ("g", "r", "i", "z", "w1", "w2")

SURVEYS: Mapping[str, Survey] = {
    survey.name: survey
    for survey in (
        Survey(
            "legacysurvey",
            _OBJECT_ID,
            _IMAGE
            | _same({f"flux_{band}": f"FLUX_{band.upper()}" for band in _FLUXES})
            | _same({f"flux_ivar_{band}": f"FLUX_IVAR_{band.upper()}" for band in _FLUXES})
            | _same({"ebv": "EBV", "half_light_radius": "SHAPE_R"})
            | _same({"ellipticity_1": "SHAPE_E1", "ellipticity_2": "SHAPE_E2"}),
            _legacysurvey,
        ),
        Survey(
            "hsc",
            _OBJECT_ID,
            _IMAGE
            | _same({f"mag_{band}": f"{band}_cmodel_mag" for band in "grizy"})
            | _same({f"mag_error_{band}": f"{band}_cmodel_magerr" for band in "grizy"}),
            _hsc,
        ),
        Survey(
            "sdss",
            _OBJECT_ID,
            _SPECTRUM | _same({"redshift": "Z", "redshift_error": "Z_ERR", "ZWARNING": "ZWARNING"}, is_required=True),
            _sdss,
            flag_true_means="warning",
        ),
        Survey(
            "desi",
            _OBJECT_ID,
            _SPECTRUM
            | _same({"redshift": "Z", "redshift_error": "ZERR", "ZWARN": "ZWARN"}, is_required=True)
            | _same({f"flux_{band}": f"FLUX_{band.upper()}" for band in "grz"})
            | _same({f"flux_ivar_{band}": f"FLUX_IVAR_{band.upper()}" for band in "grz"}),
            _desi,
        ),
        Survey(
            "gaia",
            Column("source_id", "object_id"),
            {
                "coeff": Column("coeff", "spectral_coefficients.coeff"),
                "coeff_error": Column("coeff_error", "spectral_coefficients.coeff_error"),
            }
            | _inside("photometry", {f"mag_{band}": f"phot_{band}_mean_mag" for band in ("g", "bp", "rp")})
            | _inside("photometry", {f"flux_{band}": f"phot_{band}_mean_flux" for band in ("g", "bp", "rp")})
            | _inside(
                "photometry", {f"flux_error_{band}": f"phot_{band}_mean_flux_error" for band in ("g", "bp", "rp")}
            )
            | _inside("astrometry", {"parallax": "parallax", "parallax_error": "parallax_error"})
            | _inside("astrometry", {"pm_ra": "pmra", "pm_ra_error": "pmra_error"})
            | _inside("astrometry", {"pm_dec": "pmdec", "pm_dec_error": "pmdec_error"})
            | _inside("astrometry", {"ra_error": "ra_error", "dec_error": "dec_error"})
            | _inside("radial_velocity", {"radial_velocity": "radial_velocity"})
            | _inside("radial_velocity", {"radial_velocity_error": "radial_velocity_error"}),
            _gaia,
        ),
    )
}
"""The surveys that both versions hold, by the name of their folder in version 1."""
