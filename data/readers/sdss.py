"""Spectra of the Sloan Digital Sky Survey: single `spec` files, and `spPlate` files of a whole plate.

Wavelengths are in vacuum, on a logarithmic grid; flux is in 1e-17 erg/s/cm2/A. Formats: the SDSS data model,
https://data.sdss.org/datamodel.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64
from scipy import ndimage

from ..instruments import Spectrograph
from ..modalities import modality
from ..observations import ArrayLike, ScalarObservation, SpectrumObservation
from .fits_files import SPECTRUM_FLUX_UNIT, FitsFile, open_fits

NOISE_WINDOW = 101
"""Pixels over which `estimated_noise` takes a running median."""

_FWHM_PER_SIGMA = 2.354820045


def read_sdss_spec(path: str | Path) -> SpectrumObservation:
    """Read one SDSS `spec` file as `spectrum/sdss`; the object id is `plate-mjd-fiber`.

    A pixel is valid where ivar is positive and and_mask is 0. The resolving power follows from `wdisp` (sigma of the
    line spread function in pixels) where the file has it, else from the card. Raises ObservationError on missing,
    truncated or damaged files, missing columns, wrong units and wavelengths in air.
    """
    sdss = modality("spectrum/sdss")
    assert isinstance(sdss.card, Spectrograph)
    with open_fits(path) as file:
        _checked_header(file)
        names = ["flux", "loglam", "ivar", "and_mask"]
        flux, log_wavelength, ivar, and_mask = file.columns(1, names, [SPECTRUM_FLUX_UNIT, None, None, None])
        wavelength = 10 ** log_wavelength.astype(np.float64)
        resolving_power = sdss.card.resolving_power_at(wavelength)
        if "wdisp" in [name.lower() for name in file.column_names(1)]:
            (sigma,) = file.columns(1, ["wdisp"])
            measured = _resolving_power(sigma.astype(np.float64), float(np.ptp(log_wavelength)) / (len(flux) - 1))
            resolving_power = np.where(np.isfinite(measured), measured, resolving_power)
        object_id, ra, dec = _object(file)
    valid = (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux) & (and_mask == 0)
    return SpectrumObservation(
        sdss,
        [object_id],
        flux[None],
        wavelength,
        ivar[None],
        valid[None],
        resolving_power=resolving_power[None],
        ra=[ra],
        dec=[dec],
    )


def read_sdss_redshift(path: str | Path) -> ScalarObservation:
    """Read the redshift of a `spec` file as `scalar/redshift`; mask=False where ZWARNING is not 0.

    Raises ObservationError.
    """
    with open_fits(path) as file:
        redshift, error, warning = file.columns(2, ["Z", "Z_ERR", "ZWARNING"])
        object_id, ra, dec = _object(file)
    valid = (warning == 0) & np.isfinite(redshift) & (error > 0)
    return ScalarObservation(
        modality("scalar/redshift"), [object_id], redshift, valid, np.where(valid, error, np.nan), ra=[ra], dec=[dec]
    )


def read_boss_plate(
    path: str | Path, *, inverse_variance: ArrayLike | None = None, estimate_noise: bool = False
) -> SpectrumObservation:
    """Read an `spPlate` file as `spectrum/sdss`: every fibre of a plate on one grid, from COEFF0 and COEFF1.

    The second extension is the inverse variance. Files cut down to the flux plane have none: then it must be given as
    `inverse_variance` [B, L], or `estimate_noise=True` derives it from the scatter of neighbouring pixels
    (`estimated_noise`). The third is the mask (valid where 0), if present. Object ids are `plate-mjd-fiber` with the
    plug map, else `plate-mjd-row<n>`, and without it no position is known. Raises ObservationError.
    """
    sdss = modality("spectrum/sdss")
    with open_fits(path) as file:
        header = _checked_header(file)
        flux = file.image(0, (None, None), SPECTRUM_FLUX_UNIT)
        shape = flux.shape
        first, step = _number(file, header, "COEFF0"), _number(file, header, "COEFF1")
        valid = np.isfinite(flux)
        if file.has(1):
            if inverse_variance is not None or estimate_noise:
                raise file.error("holds an inverse variance; give neither inverse_variance nor estimate_noise")
            inverse_variance = file.image(1, shape)
        elif inverse_variance is None and not estimate_noise:
            raise file.error("holds no inverse variance (extension 1); give inverse_variance or estimate_noise=True")
        elif inverse_variance is None:
            noise = estimated_noise(flux.astype(np.float64))
            inverse_variance = np.where(noise > 0, noise, np.inf) ** -2
        ivar = np.asarray(inverse_variance, dtype=np.float32)
        if ivar.shape != shape:
            raise file.error(f"inverse_variance must have shape {list(shape)} as the flux, found {list(ivar.shape)}")
        if file.has(2):
            valid &= file.image(2, shape) == 0
        plate, mjd = int(_number(file, header, "PLATEID")), int(_number(file, header, "MJD"))
        names = [f"row{row}" for row in range(shape[0])]
        ra, dec = np.full(shape[0], np.nan), np.full(shape[0], np.nan)
        if file.has("PLUGMAP") or file.has(5):
            fibre, ra, dec = file.columns("PLUGMAP" if file.has("PLUGMAP") else 5, ["FIBERID", "RA", "DEC"])
            names = [f"{number:04d}" for number in fibre.tolist()]
    valid &= (ivar > 0) & np.isfinite(ivar)
    wavelength = 10 ** (first + step * np.arange(shape[1]))
    object_id = [f"{plate:04d}-{mjd}-{name}" for name in names]
    return SpectrumObservation(sdss, object_id, flux, wavelength, ivar, valid, ra=ra, dec=dec)


def estimated_noise(flux: Float64[np.ndarray, "B L"]) -> Float64[np.ndarray, "B L"]:
    """Standard deviation of each pixel from the scatter of its neighbours, for spectra without inverse variance.

    1.4826 / sqrt(6) times the running median of |2 f(i) - f(i-2) - f(i+2)| (DER_SNR, Stoehr et al. 2008, ASP Conf. 394,
    505): right for noise that is Gaussian and not correlated between neighbours, too low where it is resampled.
    """
    padded = np.pad(flux, ((0, 0), (2, 2)), mode="reflect")
    scatter = np.abs(2 * flux - padded[:, :-4] - padded[:, 4:])
    return 1.482602 / math.sqrt(6) * ndimage.median_filter(scatter, size=(1, NOISE_WINDOW), mode="nearest")


def _resolving_power(sigma: Float64[np.ndarray, " L"], step: float) -> Float[np.ndarray, " L"]:
    """R from sigma in pixels of `step` dex; NaN where sigma is not positive."""
    fwhm = _FWHM_PER_SIGMA * np.where(sigma > 0, sigma, np.nan) * step * math.log(10)
    return 1 / fwhm


def _checked_header(file: FitsFile) -> dict[str, object]:
    header = dict(file.header(0))
    if header.get("VACUUM", True) is not True:
        raise file.error("wavelengths must be in vacuum, found VACUUM = F")
    file.check_unit(header.get("BUNIT"), SPECTRUM_FLUX_UNIT, "BUNIT of the primary header")
    return header


def _object(file: FitsFile) -> tuple[str, float, float]:
    """Id `plate-mjd-fiber`, ra and dec of a `spec` file, from its second table."""
    plate, mjd, fibre, ra, dec = file.columns(2, ["PLATE", "MJD", "FIBERID", "PLUG_RA", "PLUG_DEC"])
    if len(plate) != 1:
        raise file.error(f"extension 2 must hold one object, found {len(plate)}")
    return f"{int(plate[0]):04d}-{int(mjd[0])}-{int(fibre[0]):04d}", float(ra[0]) % 360.0, float(dec[0])


def _number(file: FitsFile, header: dict[str, object], key: str) -> float:
    value = header.get(key)
    if not isinstance(value, (int, float)):
        raise file.error(f"the header must hold a number {key}, found {value!r}")
    return float(value)
