"""From pixels to the sky: the maps that FITS headers hold, and right ascensions within their circle."""

import warnings
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from jaxtyping import Float, Float64

from .fits_files import FitsFile


def celestial_map(file: FitsFile, extension: str | int) -> Any | None:
    """The map from pixels to the sky (astropy's WCS) of an extension, without a spectral axis; None if it has none.

    Raises ObservationError if it makes no sense.
    """
    if not str(file.value(extension, "CTYPE1")).startswith("RA"):
        return None
    with warnings.catch_warnings(), file.decoding(extension):
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(fits.Header(file.header(extension), copy=True)).celestial


def sky_position(
    wcs: Any | None, center: Float64[np.ndarray, "K 2"]
) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
    """Right ascension and declination (degrees, ICRS) of pixels (row, column); NaN without a map."""
    if wcs is None:
        return np.full(len(center), np.nan), np.full(len(center), np.nan)
    sky = wcs.pixel_to_world(center[:, 1], center[:, 0]).icrs
    return wrapped_degrees(np.asarray(sky.ra.deg)), np.asarray(sky.dec.deg, dtype=np.float64)


def wrapped_degrees(ra: Float[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """Right ascensions in [0, 360). The remainder is taken twice: that of -1e-17 by 360 is 360."""
    return ra.astype(np.float64) % 360.0 % 360.0
