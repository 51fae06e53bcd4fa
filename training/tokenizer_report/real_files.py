"""The real observations that ship with Armillary, as examples that no simulation stands behind."""

import math
from collections.abc import Iterator
from typing import Any

from ...data.observations import ImageObservation, ObservationError, SpectrumObservation
from ...data.readers.desi import read_desi
from ...data.readers.images import cut_out, find_sources, read_image
from ...data.readers.manga import read_manga
from ...data.readers.mosaics import HSC_ZERO_POINT
from ...data.readers.sdss import read_sdss_spec
from ...data.real_files import real_file
from ...tokenizers.token_grid import Tokenizer
from .pixel_measures import PixelMeasures
from .pixel_summary import summarise

CUTOUT_SIZE = 64
"""Pixels of 0.168 arcsec along each side of an HSC cutout."""
MAX_CUTOUTS = 120


def real_observations() -> Iterator[tuple[str, ImageObservation | SpectrumObservation]]:
    """What each is, and the observations: spectra of DESI, SDSS and MaNGA, images of HSC."""
    yield "DESI, one galaxy of the early data release", read_desi(real_file("desi-coadd-4-80613.fits"))
    yield "DESI, fibres of one petal", read_desi(real_file("desi-coadd-sv3-dark-26065.fits"))
    yield "SDSS, one star", read_sdss_spec(real_file("sdss-spec-0266-51602-0031.fits"))
    yield "MaNGA, galaxies", read_manga(real_file("manga-spectra.fits.gz"))
    paths = {band: real_file(f"hsc-10054-{band}.fits") for band in "gri"}
    frame = read_image(paths, "image/hsc", zero_point=HSC_ZERO_POINT, object_id="hsc-10054")
    sources = find_sources(frame, margin=CUTOUT_SIZE // 2, max_sources=MAX_CUTOUTS)
    yield "HSC, brightest sources of one field", cut_out(frame, sources.center, CUTOUT_SIZE)


def measure_real(
    tokenizer: Tokenizer, observation: ImageObservation | SpectrumObservation, source_sigma: float, batch_size: int
) -> dict[str, Any]:
    """chi2 per valid pixel of one file's objects; `refused` says why, where the tokenizer refuses them.

    Sources are found in the smoothed observation.
    """
    measures = PixelMeasures(tokenizer, None, source_sigma)
    try:
        for start in range(0, len(observation), batch_size):
            measures.add(observation.select(slice(start, start + batch_size)))
    except ObservationError as error:
        return {"modality": observation.modality.name, "num_objects": len(observation), "refused": str(error)}
    found = summarise(measures, {}, math.inf, ())
    return {"modality": observation.modality.name} | {
        key: found[key] for key in ("num_objects", "tokens", "bits", "scores", "chi2", "object_chi2")
    }
