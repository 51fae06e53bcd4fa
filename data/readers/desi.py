"""DESI spectra and redshifts.

A coadd file holds each fibre in three arms, B, R and Z, on grids that are parts of one common 0.8 A grid; they overlap
by 40 and 100 A. Here the arms are joined on that grid, and where two meet they are averaged with inverse variance
weights. The format is that of the DESI data model (https://desidatamodel.readthedocs.io).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from ..instruments import Spectrograph
from ..modalities import modality
from ..observations import ObservationError, ScalarObservation, SpectrumObservation
from .fits_files import SPECTRUM_FLUX_UNIT, SPECTRUM_IVAR_UNIT, FitsFile, open_fits

ARMS = ("B", "R", "Z")
GRID_TOLERANCE = 1e-3
"""How far, in angstrom, a wavelength may lie from the common grid."""

_FWHM_PER_SIGMA = 2.354820045

_log = logging.getLogger(__name__)


def read_desi(
    path: str | Path, rows: Sequence[int] | None = None, *, empty: Literal["skip", "raise"] = "skip"
) -> SpectrumObservation:
    """Read the spectra of a DESI coadd file, arms joined, as `spectrum/desi`.

    `rows` chooses fibres by their row in the file, all by default. The object id is TARGETID. A pixel is valid where
    MASK is 0 and IVAR is positive. The resolving power follows from the width of the resolution matrix where the file
    has one, else from the instrument's card. A fibre without any valid pixel (broken, or never exposed) is no
    observation: it is left out with a warning that names it, or raises ObservationError with `empty="raise"`.

    Raises ObservationError on a missing, truncated or damaged file, missing extensions, wrong shapes and wrong units.
    """
    desi = modality("spectrum/desi")
    assert isinstance(desi.card, Spectrograph)
    with open_fits(path) as file:
        target, ra, dec = file.columns("FIBERMAP", ["TARGETID", "TARGET_RA", "TARGET_DEC"])
        chosen = _rows(file, rows, len(target))
        arms = [arm for arm in ARMS if file.has(f"{arm}_WAVELENGTH")]
        if not arms:
            raise file.error("expected extensions B_WAVELENGTH, R_WAVELENGTH or Z_WAVELENGTH, found none of them")
        grids = [file.image(f"{arm}_WAVELENGTH", (None,), "Angstrom").astype(np.float64) for arm in arms]
        places, wavelength = _common_grid(file, arms, grids, desi.card.step)

        shape = (len(chosen), len(wavelength))
        weight, weighted_flux, weighted_width = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        card_width = wavelength / desi.card.resolving_power_at(wavelength)
        for arm, grid, place in zip(arms, grids, places, strict=True):
            stored = (len(target), len(grid))
            flux = file.image(f"{arm}_FLUX", stored, SPECTRUM_FLUX_UNIT)[chosen]
            ivar = file.image(f"{arm}_IVAR", stored, SPECTRUM_IVAR_UNIT)[chosen].astype(np.float64)
            valid = (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux)
            if file.has(f"{arm}_MASK"):
                valid &= file.image(f"{arm}_MASK", stored)[chosen] == 0
            ivar = np.where(valid, ivar, 0.0)
            width = np.broadcast_to(card_width[place], ivar.shape)
            if file.has(f"{arm}_RESOLUTION"):
                bands = file.image(f"{arm}_RESOLUTION", (len(target), None, len(grid)))[chosen]
                measured = line_width(bands.astype(np.float64), desi.card.step)
                width = np.where(np.isfinite(measured) & (measured > 0), measured, width)
            weight[:, place] += ivar
            weighted_flux[:, place] += ivar * np.where(valid, flux, 0.0)
            weighted_width[:, place] += ivar * width
    seen = weight > 0
    norm = np.where(seen, weight, 1.0)
    width = np.where(seen, weighted_width / norm, card_width)
    kept = _fibres_with_light(str(path), seen, target[chosen], empty)
    return SpectrumObservation(
        desi,
        target[chosen][kept].tolist(),
        (weighted_flux / norm)[kept].astype(np.float32),
        wavelength,
        weight[kept].astype(np.float32),
        seen[kept],
        resolving_power=(wavelength / width)[kept].astype(np.float32),
        ra=ra[chosen][kept],
        dec=dec[chosen][kept],
    )


def read_redrock(path: str | Path) -> ScalarObservation:
    """Read the redshifts that redrock fitted to a coadd file, as `scalar/redshift`, with their errors.

    A fit with a warning (ZWARN not 0) or without a positive finite error has mask=False. Raises ObservationError.
    """
    with open_fits(path) as file:
        target, redshift, error, warning = file.columns("REDSHIFTS", ["TARGETID", "Z", "ZERR", "ZWARN"])
        ra, dec = np.full(len(target), np.nan), np.full(len(target), np.nan)
        if file.has("FIBERMAP"):
            fibre, ra, dec = file.columns("FIBERMAP", ["TARGETID", "TARGET_RA", "TARGET_DEC"])
            if not np.array_equal(fibre, target):
                raise file.error("TARGETID of FIBERMAP and REDSHIFTS must agree row by row, and they do not")
    valid = (warning == 0) & np.isfinite(redshift) & (error > 0)
    return ScalarObservation(
        modality("scalar/redshift"), target.tolist(), redshift, valid, np.where(valid, error, np.nan), ra=ra, dec=dec
    )


def line_width(bands: Float64[np.ndarray, "B K L"], step: float) -> Float64[np.ndarray, "B L"]:
    """FWHM in angstrom of the line spread function, from the K diagonals of the resolution matrix.

    The second moment of each column of the matrix gives sigma of a Gaussian of the same width; NaN where the matrix
    is empty. The diagonals run from offset (K - 1) / 2 down to its negative, in pixels of `step` angstrom.
    """
    half = (bands.shape[1] - 1) / 2
    offset = np.linspace(half, -half, bands.shape[1])[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = bands.sum(1)
        mean = (bands * offset).sum(1) / total
        variance = (bands * offset**2).sum(1) / total - mean**2
        return _FWHM_PER_SIGMA * step * np.sqrt(variance)


def _rows(file: FitsFile, rows: Sequence[int] | None, count: int) -> np.ndarray:
    chosen = np.arange(count) if rows is None else np.asarray(rows, dtype=np.int64)
    if chosen.ndim != 1 or len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= count:
        raise file.error(f"rows must be a list of numbers from 0 to {count - 1}, found {rows}")
    return chosen


def _common_grid(
    file: FitsFile, arms: list[str], grids: list[np.ndarray], step: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Where each arm's pixels lie on the common grid, and the grid itself [L], angstrom."""
    first = min(grid[0] for grid in grids)
    places = []
    for arm, grid in zip(arms, grids, strict=True):
        place = np.round((grid - first) / step).astype(np.int64)
        off = np.abs(first + place * step - grid).max()
        if not off < GRID_TOLERANCE or (np.diff(place) != 1).any():
            raise file.error(
                f"{arm}_WAVELENGTH must lie on a common grid of {step} A that starts at {first:.1f} A; it is off by up "
                f"to {off:.4f} A. Spectra not resampled to linear wavelengths are not supported"
            )
        places.append(place)
    return places, first + step * np.arange(max(place[-1] for place in places) + 1)


def _fibres_with_light(path: str, seen: np.ndarray, target: np.ndarray, empty: str) -> np.ndarray:
    kept = np.asarray(seen.any(1))
    if kept.all():
        return kept
    names = target[~kept].tolist()
    problem = f"{path}: no valid pixel in {len(names)} of {len(kept)} fibres, TARGETID {names}"
    if empty == "raise" or not kept.any():
        raise ObservationError(problem)
    _log.warning("%s; left out", problem)
    return kept
