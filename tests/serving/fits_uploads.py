"""FITS files made in memory, and the reader that is tried on them."""

import io

import numpy as np
from astropy.io import fits

from armillary.data.modalities import MODALITIES
from armillary.serving.formats.bodies import known_modalities
from armillary.serving.formats.fits_body import observations_from_fits
from armillary.serving.limits import Limits
from armillary.serving.problems import ProblemError

KNOWN = known_modalities(MODALITIES)
HSC_SCALE = 0.168 / 3600


def fits_bytes(*hdus):
    """The bytes of these extensions; an empty primary comes first where none is given."""
    first = () if isinstance(hdus[0], fits.PrimaryHDU) else (fits.PrimaryHDU(),)
    file = io.BytesIO()
    fits.HDUList([*first, *hdus]).writeto(file, output_verify="silentfix")
    return file.getvalue()


def image_hdu(pixels, name=None, kind=fits.ImageHDU, scale=None, center=(150.0, 2.0), **cards):
    """An image extension; with `scale` (degrees a pixel), a WCS whose middle is at `center`."""
    hdu = kind(np.asarray(pixels))
    if name:
        hdu.name = name
    if scale is not None:
        height, width = hdu.data.shape[-2:]
        cards |= {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": center[0], "CRVAL2": center[1]}
        cards |= {"CRPIX1": (width + 1) / 2, "CRPIX2": (height + 1) / 2, "CD1_1": -scale, "CD2_2": scale}
    for key, value in cards.items():
        hdu.header[key] = value
    return hdu


def read(body, limits=None, **query):
    """What `observations_from_fits` makes of a body."""
    return observations_from_fits(body, {name: str(v) for name, v in query.items()}, KNOWN, limits or Limits())


def one(body, limits=None, **query):
    """The one observation of a body of one object."""
    (found,) = read(body, limits, **query)
    if isinstance(found, ProblemError):
        raise found
    (observation,) = found
    return observation
