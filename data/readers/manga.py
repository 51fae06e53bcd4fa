"""MaNGA spectra: datacubes of the survey, and rows of spectra as its analysis pipeline tests with.

A cube (manga-PLATE-IFU-LOGCUBE or LINCUBE, SDSS data model `mangaCube`) has extensions FLUX, IVAR, MASK [L, Y, X], WAVE
and, of later releases, LSFPOST; each spaxel becomes a spectrum of its own. A file of rows (Westfall et al. 2019, arXiv
1901.00856) has WAVE, FLUX, IVAR, MASK, SRES and Z, and neither units nor positions nor names: ids count the rows. Flux
is in 1e-17 erg/s/cm2/A per spaxel, on vacuum wavelengths (Law et al. 2016, arXiv 1607.08619).
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ..instruments import Spectrograph
from ..modalities import modality
from ..observations import ScalarObservation, SpectrumObservation
from ..stacking import stack
from .fits_files import SPECTRUM_FLUX_UNIT, FitsFile, naming_file, open_fits
from .sky_maps import celestial_map, sky_position

ROWS_PER_BATCH = 256
"""Spectra held at once: about 100 MB while they are read."""

_FWHM_PER_SIGMA = 2.354820045

_log = logging.getLogger(__name__)


def read_manga(path: str | Path, *, empty: Literal["skip", "raise"] = "skip") -> SpectrumObservation:
    """Read MaNGA spectra as `spectrum/manga`; `manga_batches`, all at once."""
    return stack(list(manga_batches(path, empty=empty)))


def manga_batches(
    path: str | Path, *, empty: Literal["skip", "raise"] = "skip", rows_per_batch: int = ROWS_PER_BATCH
) -> Iterator[SpectrumObservation]:
    """Stream MaNGA spectra as `spectrum/manga`, at most `rows_per_batch` at a time, or one row of spaxels of a cube.

    The object ids are `manga-<row>` of a file of rows and `<plate>-<ifu>-<y>-<x>` of a cube's spaxels, which have their
    position by its WCS. A pixel is valid where MASK is 0 and IVAR is positive. The resolving power is that of SRES or
    LSFPOST (sigma of the line spread function, angstrom) where that is positive, else the card's. A row without a valid
    pixel is left out with a warning, or raises ObservationError with `empty="raise"`; of a cube, whose corners no fibre
    reaches, it is left out. Raises ObservationError on missing, truncated or damaged files, wrong shapes and units.
    """
    with open_fits(path) as file:
        is_cube = len(file.image_shape("FLUX")) == 3
        read = _cube(file, rows_per_batch) if is_cube else _rows(file, empty, rows_per_batch)
        found = False
        for observation in read:
            found = True
            yield observation
        if not found:
            raise file.error("no spectrum has a valid pixel")


def read_manga_redshift(path: str | Path) -> ScalarObservation:
    """Read the redshifts of a file of rows, all of them, as `scalar/redshift`, without errors.

    Raises ObservationError.
    """
    with open_fits(path) as file:
        redshift = file.image("Z", (None,))
    names = [f"manga-{row}" for row in range(len(redshift))]
    with naming_file(path):
        return ScalarObservation(modality("scalar/redshift"), names, redshift, np.isfinite(redshift))


def _rows(file: FitsFile, empty: str, rows_per_batch: int) -> Iterator[SpectrumObservation]:
    wavelength = file.image("WAVE", (None,), "Angstrom")
    shape = file.image_shape("FLUX", (None, len(wavelength)), SPECTRUM_FLUX_UNIT)
    count = shape[0]
    for start in range(0, count, rows_per_batch):
        part = slice(start, start + rows_per_batch)
        flux, ivar, mask, power = (file.section(name, part, shape) for name in ("FLUX", "IVAR", "MASK", "SRES"))
        names = [f"manga-{row}" for row in range(count)[part]]
        is_seen = _valid(flux, ivar, mask).any(1)
        if not is_seen.all():
            rows = (start + np.flatnonzero(~is_seen)).tolist()
            if empty == "raise":
                raise file.error(f"no valid pixel in rows {rows} of {count}")
            _log.warning("%s: no valid pixel in rows %s of %d; left out", file.path, rows, count)
        unknown = np.full(len(names), np.nan)
        yield from _observe(file, names, wavelength, flux, ivar, mask, power, unknown, unknown)


def _cube(file: FitsFile, rows_per_batch: int) -> Iterator[SpectrumObservation]:
    name = file.value(0, "PLATEIFU")
    if not isinstance(name, str) or not name.strip():
        raise file.error(f"the header of a cube must hold PLATEIFU, found {name!r}")
    wavelength = file.image("WAVE", (None,), "Angstrom")
    shape = file.image_shape("FLUX", (len(wavelength), None, None))
    _, height, width = shape
    per_spaxel = str(file.value("FLUX", "BUNIT") or "").replace("/spaxel", "")
    file.check_unit(per_spaxel, SPECTRUM_FLUX_UNIT, "BUNIT of extension FLUX, per spaxel,")
    wcs = celestial_map(file, "FLUX")
    for top in range(0, height, max(1, rows_per_batch // width)):
        part = slice(top, min(height, top + max(1, rows_per_batch // width)))
        y, x = (axis.ravel() for axis in np.mgrid[part, :width])

        def spaxels(extension: str, part: slice = part) -> np.ndarray:
            return file.section(extension, (slice(None), part), shape).reshape(len(wavelength), -1).T

        flux, ivar, mask = spaxels("FLUX"), spaxels("IVAR"), spaxels("MASK")
        power = np.zeros_like(flux)
        if file.has("LSFPOST"):
            sigma = spaxels("LSFPOST")
            power = wavelength / (_FWHM_PER_SIGMA * np.where(sigma > 0, sigma, np.inf))
        ra, dec = sky_position(wcs, np.stack([y, x], axis=1).astype(np.float64))
        names = [f"{name.strip()}-{row}-{column}" for row, column in zip(y.tolist(), x.tolist(), strict=True)]
        yield from _observe(file, names, wavelength, flux, ivar, mask, power, ra, dec)


def _valid(flux: np.ndarray, ivar: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (mask == 0) & (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux)


def _observe(
    file: FitsFile,
    names: list[str],
    wavelength: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    mask: np.ndarray,
    power: np.ndarray,
    ra: np.ndarray,
    dec: np.ndarray,
) -> Iterator[SpectrumObservation]:
    """The spectra with a valid pixel, if there are any; `power` is the resolving power, not positive where unknown."""
    manga = modality("spectrum/manga")
    assert isinstance(manga.card, Spectrograph)
    valid = _valid(flux, ivar, mask)
    kept = np.flatnonzero(valid.any(1))
    if len(kept):
        typical = manga.card.resolving_power_at(wavelength)
        with naming_file(file.path):
            observation = SpectrumObservation(
                manga,
                [names[row] for row in kept],
                flux[kept],
                wavelength,
                ivar[kept],
                valid[kept],
                resolving_power=np.where(np.isfinite(power) & (power > 0), power, typical)[kept],
                ra=ra[kept],
                dec=dec[kept],
            )
        yield observation
