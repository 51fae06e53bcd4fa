"""Spectra of the Sloan Digital Sky Survey: single `spec` files, and `spPlate` files of a whole plate.

Wavelengths are in vacuum, on a logarithmic grid; flux is in 1e-17 erg/s/cm2/A. Formats: the SDSS data model,
https://data.sdss.org/datamodel.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64
from scipy import ndimage

from ..instruments import Spectrograph
from ..modalities import modality
from ..observations import ArrayLike, ScalarObservation, SpectrumObservation
from ..stacking import stack
from .fits_bytes import FitsSource
from .fits_files import FITS_SUFFIXES, SPECTRUM_FLUX_UNIT, FitsFile, naming_file, open_fits
from .sky_maps import wrapped_degrees

NOISE_WINDOW = 101
"""Pixels over which `estimated_noise` takes a running median."""

ROWS_PER_BATCH = 128
"""Spectra of a plate held at once: about 50 MB while they are read."""

_FWHM_PER_SIGMA = 2.354820045
_NO_TARGET = ("SKY", "COHERENT_SKY", "NA")
"""OBJTYPE of fibres on blank sky, and of holes without a fibre."""

_PLANES = range(1, 6)
"""Extensions behind the flux: inverse variance, two masks, dispersion, plug map."""

_log = logging.getLogger(__name__)


def read_sdss_object(path: str | Path) -> tuple[SpectrumObservation, ScalarObservation]:
    """Read spectrum and redshift of one SDSS `spec` file: `read_sdss_spec` and `read_sdss_redshift`, opened once."""
    with open_fits(path) as file:
        return _spectrum(file), _redshift(file)


def read_sdss_spec(path: FitsSource) -> SpectrumObservation:
    """Read one SDSS `spec` file as `spectrum/sdss`; the object id is `plate-mjd-fiber`.

    A pixel is valid where ivar is positive and and_mask is 0. The resolving power follows from `wdisp` (sigma of the
    line spread function in pixels) where the file has it, else from the card. Raises ObservationError on missing,
    truncated or damaged files, missing columns, wrong units and wavelengths in air.
    """
    with open_fits(path) as file:
        return _spectrum(file)


def read_sdss_redshift(path: str | Path) -> ScalarObservation:
    """Read the redshift of a `spec` file as `scalar/redshift`; mask=False where ZWARNING is not 0.

    Raises ObservationError.
    """
    with open_fits(path) as file:
        return _redshift(file)


def read_boss_plate(
    path: str | Path, *, inverse_variance: ArrayLike | None = None, estimate_noise: bool = False
) -> SpectrumObservation:
    """Read an `spPlate` file as `spectrum/sdss`; `boss_plate_batches`, all at once."""
    batches = boss_plate_batches(path, inverse_variance=inverse_variance, estimate_noise=estimate_noise)
    return stack(list(batches))


def boss_plate_batches(
    path: str | Path,
    *,
    inverse_variance: ArrayLike | None = None,
    estimate_noise: bool = False,
    empty: Literal["skip", "raise"] = "skip",
    targets_only: bool = False,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Iterator[SpectrumObservation]:
    """Stream an `spPlate` file as `spectrum/sdss`: the fibres of a plate on one grid, from COEFF0 and COEFF1.

    Extension 0 is the flux, its sky subtracted; 1 the inverse variance, 2 the mask of flags raised in every exposure
    (valid where it is 0), 4 sigma of the line spread function in pixels, which gives the resolving power, 5 the plug
    map. Files cut down to the flux plane have no inverse variance: then it must be given as `inverse_variance` [B, L],
    or `estimate_noise=True` derives it from the scatter of neighbouring pixels (`estimated_noise`). Object ids are
    `plate-mjd-fiber` with the plug map, else `plate-mjd-row<n>`, and without it no position is known. `targets_only`
    leaves out fibres on blank sky and holes without a fibre, as the plug map has them. A fibre without a valid pixel is
    left out with a warning that names it, or raises ObservationError with `empty="raise"`. Raises ObservationError.
    """
    sdss = modality("spectrum/sdss")
    assert isinstance(sdss.card, Spectrograph)
    with open_fits(path) as file:
        _check_header(file)
        shape = file.image_shape(0, (None, None), SPECTRUM_FLUX_UNIT)
        first, step = file.number(0, "COEFF0"), file.number(0, "COEFF1")
        wavelength = 10 ** (first + step * np.arange(shape[1]))
        given = _given_noise(file, shape, inverse_variance, estimate_noise)
        object_id, ra, dec, is_target = _plugged(file, shape[0])
        chosen = np.flatnonzero(is_target) if targets_only else np.arange(shape[0])
        found = False
        for start in range(0, len(chosen), rows_per_batch):
            rows = chosen[start : start + rows_per_batch]
            flux = file.rows(0, rows, shape)
            if estimate_noise:
                noise = estimated_noise(flux.astype(np.float64))
                ivar = (np.where(noise > 0, noise, np.inf) ** -2).astype(np.float32)
            else:
                ivar = file.rows(1, rows, shape) if given is None else given[rows]
            valid = np.isfinite(flux) & (ivar > 0) & np.isfinite(ivar)
            resolving_power = np.broadcast_to(sdss.card.resolving_power_at(wavelength), flux.shape)
            if file.has(1):
                valid &= file.rows(2, rows, shape) == 0
                measured = _resolving_power(file.rows(4, rows, shape).astype(np.float64), step)
                resolving_power = np.where(np.isfinite(measured), measured, resolving_power)
            is_seen = valid.any(1)
            if not is_seen.all():
                names = [object_id[row] for row in rows[~is_seen]]
                if empty == "raise":
                    raise file.error(f"no valid pixel in fibres {names}")
                _log.warning("%s: no valid pixel in fibres %s; left out", path, names)
            if is_seen.any():
                found = True
                kept = rows[is_seen]
                with naming_file(path):
                    observation = SpectrumObservation(
                        sdss,
                        [object_id[row] for row in kept],
                        flux[is_seen],
                        wavelength,
                        ivar[is_seen],
                        valid[is_seen],
                        resolving_power=resolving_power[is_seen],
                        ra=ra[kept],
                        dec=dec[kept],
                    )
                yield observation
        if not found:
            raise file.error(f"no valid pixel in any of {len(chosen)} fibres")


def read_boss_redshifts(path: str | Path) -> ScalarObservation:
    """Read an `spZbest` file, the best redshift of each fibre of a plate, as `scalar/redshift`.

    mask=False where ZWARNING is not 0; ids are `plate-mjd-fiber`. Raises ObservationError.
    """
    with open_fits(path) as file:
        plate, mjd, fibre, ra, dec = file.columns(1, ["PLATE", "MJD", "FIBERID", "PLUG_RA", "PLUG_DEC"])
        redshift, error, warning = file.columns(1, ["Z", "Z_ERR", "ZWARNING"])
        names = [_name(*place) for place in zip(plate.tolist(), mjd.tolist(), fibre.tolist(), strict=True)]
        file.check_once(np.array(names), "a plate has each fibre once")
    return _redshifts(path, names, redshift, error, warning, wrapped_degrees(ra), dec)


def boss_redshift_file(path: str | Path) -> Path | None:
    """The `spZbest` file of an `spPlate` file, if it is there: beside it, or one folder below, as surveys ship it."""
    path = Path(path)
    stem = path.name
    for suffix in FITS_SUFFIXES:
        stem = stem.removesuffix(suffix)
    if "spPlate" not in stem:
        return None
    name = f"{stem.replace('spPlate', 'spZbest', 1)}.fits"
    return next(iter(sorted((*path.parent.glob(name), *path.parent.glob(f"*/{name}")))), None)


def estimated_noise(flux: Float64[np.ndarray, "B L"]) -> Float64[np.ndarray, "B L"]:
    """Standard deviation of each pixel from the scatter of its neighbours, for spectra without inverse variance.

    1.4826 / sqrt(6) times the running median of |2 f(i) - f(i-2) - f(i+2)| (DER_SNR, Stoehr et al. 2008, ASP Conf. 394,
    505): right for noise that is Gaussian and not correlated between neighbours, too low where it is resampled.
    """
    padded = np.pad(flux, ((0, 0), (2, 2)), mode="reflect")
    scatter = np.abs(2 * flux - padded[:, :-4] - padded[:, 4:])
    return 1.482602 / math.sqrt(6) * ndimage.median_filter(scatter, size=(1, NOISE_WINDOW), mode="nearest")


def _resolving_power(sigma: Float64[np.ndarray, "*L"], step: float) -> Float[np.ndarray, "*L"]:
    """R from sigma in pixels of `step` dex; NaN where sigma is not positive."""
    fwhm = _FWHM_PER_SIGMA * np.where(sigma > 0, sigma, np.nan) * step * math.log(10)
    return 1 / fwhm


def _check_header(file: FitsFile) -> None:
    in_vacuum = file.value(0, "VACUUM")
    if in_vacuum not in (None, True):
        raise file.error("wavelengths must be in vacuum, found VACUUM = F")
    file.check_unit(file.value(0, "BUNIT"), SPECTRUM_FLUX_UNIT, "BUNIT of the primary header")


def _spectrum(file: FitsFile) -> SpectrumObservation:
    sdss = modality("spectrum/sdss")
    assert isinstance(sdss.card, Spectrograph)
    _check_header(file)
    has_dispersion = "WDISP" in (name.upper() for name in file.column_names(1))
    names = ["flux", "loglam", "ivar", "and_mask", *(["wdisp"] if has_dispersion else [])]
    units = [SPECTRUM_FLUX_UNIT, *[None] * (len(names) - 1)]
    flux, log_wavelength, ivar, and_mask, *sigma = file.columns(1, names, units)
    wavelength = 10 ** log_wavelength.astype(np.float64)
    resolving_power = sdss.card.resolving_power_at(wavelength)
    if sigma:
        measured = _resolving_power(sigma[0].astype(np.float64), float(np.ptp(log_wavelength)) / (len(flux) - 1))
        resolving_power = np.where(np.isfinite(measured), measured, resolving_power)
    valid = (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux) & (and_mask == 0)
    object_id, ra, dec = _object(file)
    with naming_file(file.path):
        return SpectrumObservation(
            sdss,
            [object_id],
            flux[None],
            wavelength,
            ivar[None],
            valid[None],
            resolving_power=resolving_power[None],
            ra=ra,
            dec=dec,
        )


def _redshift(file: FitsFile) -> ScalarObservation:
    object_id, ra, dec = _object(file)
    redshift, error, warning = file.columns(2, ["Z", "Z_ERR", "ZWARNING"])
    return _redshifts(file.path, [object_id], redshift, error, warning, ra, dec)


def _object(file: FitsFile) -> tuple[str, np.ndarray, np.ndarray]:
    """Id `plate-mjd-fiber`, ra and dec of a `spec` file, from its second table."""
    plate, mjd, fibre, ra, dec = file.columns(2, ["PLATE", "MJD", "FIBERID", "PLUG_RA", "PLUG_DEC"])
    if len(plate) != 1:
        raise file.error(f"extension 2 must hold one object, found {len(plate)}")
    return _name(int(plate[0]), int(mjd[0]), int(fibre[0])), wrapped_degrees(ra), dec


def _name(plate: int, mjd: int, fibre: int) -> str:
    return f"{plate:04d}-{mjd}-{fibre:04d}"


def _plugged(file: FitsFile, count: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Id, ra, dec and whether it is on a target, of each fibre of a plate."""
    plate, mjd = int(file.number(0, "PLATEID")), int(file.number(0, "MJD"))
    extension: str | int = "PLUGMAP" if file.has("PLUGMAP") else 5
    if not file.has(extension):
        unknown = np.full(count, np.nan)
        return [f"{plate:04d}-{mjd}-row{row}" for row in range(count)], unknown, unknown, np.ones(count, bool)
    fibre, ra, dec = file.columns(extension, ["FIBERID", "RA", "DEC"])
    if len(fibre) != count:
        raise file.error(f"the plug map must list the {count} fibres of the flux, found {len(fibre)}")
    names = [_name(plate, mjd, number) for number in fibre.tolist()]
    file.check_once(np.array(names), "a plug map lists each fibre once")
    is_target = np.ones(count, bool)
    if "OBJTYPE" in (name.upper() for name in file.column_names(extension)):
        (kind,) = file.columns(extension, ["OBJTYPE"])
        is_target = ~np.isin(np.char.strip(kind.astype(str)), _NO_TARGET)
    return names, wrapped_degrees(ra), dec, is_target


def _given_noise(
    file: FitsFile, shape: tuple[int, ...], inverse_variance: ArrayLike | None, estimate_noise: bool
) -> np.ndarray | None:
    """The inverse variance that the caller gave; None where it is the file's, or to be estimated."""
    if file.has(1):
        for extension in _PLANES:
            file.header(extension)  # a file that lacks one was cut short, and would pass without masks or positions
        if inverse_variance is not None or estimate_noise:
            raise file.error("holds an inverse variance; give neither inverse_variance nor estimate_noise")
        file.image_shape(1, shape)
        return None
    if inverse_variance is None and not estimate_noise:
        raise file.error("holds no inverse variance (extension 1); give inverse_variance or estimate_noise=True")
    if inverse_variance is None:
        return None
    given = np.asarray(inverse_variance, dtype=np.float32)
    if given.shape != shape:
        raise file.error(f"inverse_variance must have shape {list(shape)} as the flux, found {list(given.shape)}")
    return given


def _redshifts(
    path: FitsSource,
    object_id: list[str],
    redshift: np.ndarray,
    error: np.ndarray,
    warning: np.ndarray,
    ra: np.ndarray,
    dec: np.ndarray,
) -> ScalarObservation:
    valid = (warning == 0) & np.isfinite(redshift) & (error > 0)
    error = np.where(valid, error, np.nan)
    with naming_file(path):
        return ScalarObservation(modality("scalar/redshift"), object_id, redshift, valid, error, ra=ra, dec=dec)
