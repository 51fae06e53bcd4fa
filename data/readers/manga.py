"""MaNGA spectra: rows of one FITS file with extensions WAVE, FLUX, IVAR, MASK, SRES and Z.

The layout is that of the test spectra of the MaNGA data analysis pipeline (Westfall et al. 2019, arXiv 1901.00856).
The file states no unit; a MaNGA spaxel is in 1e-17 erg/s/cm2/A per spaxel, on vacuum wavelengths (Law et al. 2016,
arXiv 1607.08619). Neither positions nor names are given: ids count the rows.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from ..instruments import Spectrograph
from ..modalities import modality
from ..observations import ScalarObservation, SpectrumObservation
from .fits_files import SPECTRUM_FLUX_UNIT, open_fits

_log = logging.getLogger(__name__)


def read_manga(path: str | Path, *, empty: Literal["skip", "raise"] = "skip") -> SpectrumObservation:
    """Read MaNGA spectra as `spectrum/manga`; the object ids are `manga-<row>`.

    A pixel is valid where MASK is 0 and IVAR is positive. The resolving power is SRES where that is positive, else the
    card's. A spectrum without a valid pixel is left out with a warning, or raises ObservationError with
    `empty="raise"`. Raises ObservationError on missing, truncated or damaged files and on wrong shapes or units.
    """
    manga = modality("spectrum/manga")
    assert isinstance(manga.card, Spectrograph)
    with open_fits(path) as file:
        wavelength = file.image("WAVE", (None,), "Angstrom")
        flux = file.image("FLUX", (None, len(wavelength)), SPECTRUM_FLUX_UNIT)
        ivar, mask, resolution = (file.image(name, flux.shape) for name in ("IVAR", "MASK", "SRES"))
        valid = (mask == 0) & (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux)
        kept = np.flatnonzero(valid.any(1))
        if len(kept) < len(flux):
            problem = f"no valid pixel in rows {sorted(set(range(len(flux))) - set(kept.tolist()))} of {len(flux)}"
            if empty == "raise" or not len(kept):
                raise file.error(problem)
            _log.warning("%s: %s; left out", path, problem)
    power = np.where(np.isfinite(resolution) & (resolution > 0), resolution, manga.card.resolving_power_at(wavelength))
    return SpectrumObservation(
        manga,
        [f"manga-{row}" for row in kept],
        flux[kept],
        wavelength,
        ivar[kept],
        valid[kept],
        resolving_power=power[kept],
    )


def read_manga_redshift(path: str | Path) -> ScalarObservation:
    """Read the redshifts of the same file, all rows, as `scalar/redshift`, without errors. Raises ObservationError."""
    with open_fits(path) as file:
        redshift = file.image("Z", (None,))
    names = [f"manga-{row}" for row in range(len(redshift))]
    return ScalarObservation(modality("scalar/redshift"), names, redshift, np.isfinite(redshift))
