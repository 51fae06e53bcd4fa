"""Stored observations as files for science: an image as FITS of its bands, a spectrum as a FITS table or as JSON.

What a file says is all that the dataset knows: flux, inverse variance, mask, PSF, depth, and the place on the sky. The
names are those that `armillary` reads, so that a file that was downloaded here can be sent to /v1/embeddings.
"""

import base64
import io
import math
from typing import Any

import numpy as np
from astropy.io import fits
from jaxtyping import Shaped

from ...data.observations import ImageObservation, Observation, SpectrumObservation
from . import bodies

DIGITS = 9
"""Significant digits of a number in JSON: as many as tell any two float32 apart."""
PIXELS = (ImageObservation, SpectrumObservation)
"""Kinds whose values are called flux."""
ORIENTATION = "North up, east left: assumed, for a dataset does not record how a cutout lies."


def image_fits(image: ImageObservation) -> bytes:
    """The one image: flux [bands, rows, columns] in nanomaggies; extensions IVAR, MASK (flags, 0 = good) and BANDS."""
    header = _object_header(image)
    header["BUNIT"] = ("nanomaggy", "AB, zero point 22.5")
    header["BANDS"] = (",".join(image.bands), "along the third axis")
    for number, band in enumerate(image.bands, 1):
        header[f"BAND{number}"] = band
    header["PIXSCALE"] = (image.card.pixel_scale, "arcsec per pixel")
    _add_wcs(header, image)
    bands = fits.BinTableHDU.from_columns(
        [
            fits.Column("BAND", f"{max(map(len, image.bands))}A", array=np.array(image.bands)),
            fits.Column("WAVELENGTH", "D", "Angstrom", array=[image.card.band(b).wavelength for b in image.bands]),
            fits.Column("PSF_FWHM", "E", "arcsec", array=image.psf_fwhm[0].numpy()),
            fits.Column("DEPTH", "E", "mag", array=image.depth[0].numpy()),
        ],
        name="BANDS",
    )
    ivar = fits.ImageHDU(image.inverse_variance[0].numpy(), name="IVAR")
    ivar.header["BUNIT"] = "nanomaggy-2"
    # Files of surveys hold flags, not what is valid.
    mask = fits.ImageHDU((~image.mask[0].numpy()).astype(np.uint8), name="MASK")
    mask.header["COMMENT"] = "0 = good"
    return _bytes(fits.HDUList([fits.PrimaryHDU(image.flux[0].numpy(), header), ivar, mask, bands]))


def spectrum_fits(spectrum: SpectrumObservation) -> bytes:
    """The one spectrum as a table: WAVELENGTH (vacuum), FLUX, IVAR, MASK (flags, 0 = good), RESOLVING_POWER."""
    flux_unit = "10**-17 erg / (s cm2 Angstrom)"
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("WAVELENGTH", "D", "Angstrom", array=spectrum.wavelength[0].numpy()),
            fits.Column("FLUX", "E", flux_unit, array=spectrum.flux[0].numpy()),
            fits.Column("IVAR", "E", "10**34 s2 cm4 Angstrom2 / erg2", array=spectrum.inverse_variance[0].numpy()),
            fits.Column("MASK", "B", array=(~spectrum.mask[0].numpy()).astype(np.uint8)),
            fits.Column("RESOLVING_POWER", "E", array=spectrum.resolving_power[0].numpy()),
        ],
        name="SPECTRUM",
    )
    return _bytes(fits.HDUList([fits.PrimaryHDU(header=_object_header(spectrum)), table]))


def spectrum_body(spectrum: SpectrumObservation) -> dict[str, Any]:
    """The one spectrum for JSON: lists of `wavelength`, `flux` and `error`, null where masked, and `mask`.

    An error is null too where the inverse variance is zero.
    """
    valid = spectrum.mask[0].numpy()
    ivar = spectrum.inverse_variance[0].double().numpy()
    with np.errstate(divide="ignore"):
        error = 1 / np.sqrt(ivar)
    return {
        "object_id": spectrum.object_id[0],
        "modality": spectrum.modality.name,
        "unit": spectrum.modality.unit,
        "wavelength_unit": "angstrom",
        "wavelength": _numbers(spectrum.wavelength[0].numpy(), 12),
        "flux": _numbers(np.where(valid, spectrum.flux[0].double().numpy(), math.nan)),
        "error": _numbers(np.where(valid & (ivar > 0), error, math.nan)),
        "mask": valid.tolist(),
    }


def typed_object(observation: Observation) -> dict[str, Any]:
    """The one observation as a request's body has it (`TypedObject`), for any route that takes observations."""
    fields = bodies.FIELDS[observation.modality.kind]
    values = observation.flux if isinstance(observation, PIXELS) else observation.values
    body: dict[str, Any] = {"modality": observation.modality.name, "object_id": observation.object_id[0]}
    for name in ("ra", "dec"):
        value = float(getattr(observation, name)[0])
        if math.isfinite(value):
            body[name] = value
    body["data"] = _encoded(values[0].numpy())
    for name in fields:
        given = getattr(observation, name)
        body[name] = list(given) if name == "bands" else _encoded(given[0].numpy())
    return body


def _encoded(array: np.ndarray) -> dict[str, Any]:
    """`EncodedArray`: base64 of little-endian numbers in C order."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"data": data, "shape": list(array.shape), "dtype": array.dtype.name}


def _numbers(values: Shaped[np.ndarray, " L"], digits: int = DIGITS) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def _object_header(observation: ImageObservation | SpectrumObservation) -> fits.Header:
    header = fits.Header()
    # A card holds ASCII alone; an id may be anything.
    header["OBJECT"] = observation.object_id[0].encode("ascii", "backslashreplace").decode()[:60]
    header["MODALITY"] = observation.modality.name
    for name in ("ra", "dec"):
        value = float(getattr(observation, name)[0])
        if math.isfinite(value):
            header[name.upper()] = (value, "degrees, ICRS")
    return header


def _add_wcs(header: fits.Header, image: ImageObservation) -> None:
    ra, dec = float(image.ra[0]), float(image.dec[0])
    if not (math.isfinite(ra) and math.isfinite(dec)):
        return
    row, column = image.center[0].tolist()
    degrees = image.card.pixel_scale / 3600
    header.update(
        {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CRVAL1": ra,
            "CRVAL2": dec,
            # FITS counts pixels from 1.
            "CRPIX1": column + 1,
            "CRPIX2": row + 1,
            "CDELT1": -degrees,
            "CDELT2": degrees,
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            "RADESYS": "ICRS",
        }
    )
    header["COMMENT"] = ORIENTATION


def _bytes(hdus: fits.HDUList) -> bytes:
    file = io.BytesIO()
    hdus.writeto(file)
    return file.getvalue()
