"""Images and spectra of the Multimodal Universe: from arrays in its files to our units, masks and resolution.

Masks have opposite polarities: True = good in images, True = bad in spectra. Three things the columns do not say: the
cutouts are made by `Cutout2D`, which counts pixels from 0, around places counted from 1, so that objects lie one pixel
below and left of the middle (to half a pixel); HSC's inverse variance is `nan_to_num(1 / variance)`, 3.4e38 where the
variance is 0, and its PSF is 0 where it was not measured; `lsf_sigma` is in pixels.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from ..instruments import ImagingInstrument, Spectrograph
from ..modalities import Modality, modality
from ..observations import (
    UNITS_OF_FLUX_AT_ZERO_MAGNITUDE,
    ImageObservation,
    Observation,
    ObservationError,
    SpectrumObservation,
)
from .survey_rows import Rows

LARGEST_INVERSE_VARIANCE = 1e30
"""An inverse variance beyond it stands for a variance of 0."""
OBJECT_FROM_MIDDLE = -1.0
"""Pixels, along both axes, from the middle of a cutout to its object."""

_FWHM_PER_SIGMA = 2.354820045
_SCALE_TOLERANCE = 1e-3


def images(rows: Rows, modality_name: str, band_prefix: str, zero_point: float) -> list[Observation]:
    """Cutouts as one observation in nanomaggies per pixel, or none where no object has a valid pixel.

    Columns: `flux` and `ivar` [B, C, H, W] in counts of `zero_point` (AB magnitude of one count), `mask` (True = good)
    of that shape or [B, H, W] for all bands, `band`, `psf_fwhm` (arcsec) and `scale` (arcsec per pixel) [B, C]. The
    depth of each object follows from its median inverse variance. Raises ObservationError on unknown bands, wrong
    shapes and pixels of another scale than the card's.
    """
    declared = modality(modality_name)
    card = declared.card
    assert isinstance(card, ImagingInstrument)
    bands = _bands(rows, band_prefix, card)
    flux = rows.columns["flux"]
    shape = flux.shape
    if len(shape) != 4 or shape[1] != len(bands) or 0 in shape:
        raise ObservationError(
            f"{rows.path}: images must have shape [objects, bands = {len(bands)}, height, width], found {list(shape)}"
        )
    ivar = rows.shaped("ivar", shape)
    mask = rows.columns["mask"]
    mask = rows.shaped("mask", shape) if mask.ndim == 4 else rows.shaped("mask", (shape[0], *shape[2:]))[:, None]
    if mask.dtype.kind not in "bu":
        raise ObservationError(f"{rows.path}: mask must hold booleans (True = good), found {mask.dtype}")
    scale = rows.shaped("scale", shape[:2])
    wrong = ~(np.abs(scale - card.pixel_scale) <= _SCALE_TOLERANCE)
    if wrong.any():
        row, band = np.argwhere(wrong)[0].tolist()
        raise rows.error(
            row, f"pixel scale must be {card.pixel_scale} arcsec, found {scale[row, band]} in {bands[band]}"
        )
    typical = np.array([card.band(name).psf_fwhm for name in bands])
    psf_fwhm = rows.shaped("psf_fwhm", shape[:2]).astype(np.float64)
    psf_fwhm = np.where((psf_fwhm > 0) & np.isfinite(psf_fwhm), psf_fwhm, typical)

    unit = np.float32(10 ** (0.4 * (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - zero_point)))
    valid = mask.astype(bool) & np.isfinite(flux) & (ivar > 0) & (ivar < LARGEST_INVERSE_VARIANCE)
    ivar = np.where(valid, ivar, 0).astype(np.float32) / unit**2
    kept = rows.with_light(valid, modality_name)
    if not kept.any():
        return []
    middle = np.array([(shape[2] - 1) / 2, (shape[3] - 1) / 2]) + OBJECT_FROM_MIDDLE
    return [
        ImageObservation(
            declared,
            rows.chosen(kept),
            flux[kept].astype(np.float32) * unit,
            bands,
            ivar[kept],
            valid[kept],
            psf_fwhm=psf_fwhm[kept],
            depth=_depths(ivar, valid, psf_fwhm, declared, bands)[kept],
            center=np.tile(middle, (int(kept.sum()), 1)),
            ra=rows.ra[kept],
            dec=rows.dec[kept],
        )
    ]


def _bands(rows: Rows, prefix: str, card: ImagingInstrument) -> list[str]:
    """Names of the bands, the same for all rows; the source writes `des-g` for g."""
    written = rows.columns["band"]
    if written.ndim != 2:
        raise ObservationError(f"{rows.path}: bands must have shape [objects, bands], found {list(written.shape)}")
    names = [[name.decode() if isinstance(name, bytes) else str(name) for name in row] for row in written.tolist()]
    known = [prefix + band.name for band in card.bands]
    for row, found in enumerate(names):
        unknown = [name for name in found if name not in known]
        if unknown:
            raise rows.error(row, f"unknown band {unknown[0]!r}; expected some of {known}")
        if found != names[0]:
            raise rows.error(row, f"bands must be the same for all objects of a file, found {found} and {names[0]}")
    return [name.removeprefix(prefix) for name in names[0]]


def _depths(
    ivar: Float[np.ndarray, "B C H W"],
    valid: Bool[np.ndarray, "B C H W"],
    psf_fwhm: Float[np.ndarray, "B C"],
    declared: Modality,
    bands: list[str],
) -> Float[np.ndarray, "B C"]:
    """AB magnitude of a point source of 5 sigma, from the median inverse variance (`ImageObservation.noise` inverted).

    The card's where a band has no valid pixel.
    """
    card = declared.card
    assert isinstance(card, ImagingInstrument)
    depth = np.tile([card.band(name).depth for name in bands], (len(ivar), 1))
    for row, band in np.ndindex(depth.shape):
        inside = valid[row, band]
        if inside.any():
            width = psf_fwhm[row, band] / _FWHM_PER_SIGMA / card.pixel_scale
            flux = 5 * math.sqrt(4 * math.pi * width**2 / float(np.median(ivar[row, band][inside])))
            depth[row, band] = UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * math.log10(flux)
    return depth


def spectra(rows: Rows, modality_name: str) -> list[Observation]:
    """Spectra as one observation, or none where no object has a valid pixel.

    Columns [B, L]: `flux` in 1e-17 erg/s/cm2/A, `ivar`, `wavelength` in angstrom (vacuum; -1 where padded), `mask`
    (True = bad), and `lsf_sigma` in pixels [B, L] or [B], where there is one. Raises ObservationError on wrong shapes.
    """
    declared = modality(modality_name)
    card = declared.card
    assert isinstance(card, Spectrograph)
    flux = rows.columns["flux"]
    if flux.ndim != 2 or 0 in flux.shape:
        raise ObservationError(f"{rows.path}: spectra must have shape [objects, pixels], found {list(flux.shape)}")
    ivar, wavelength, mask = (rows.shaped(name, flux.shape) for name in ("ivar", "wavelength", "mask"))
    if mask.dtype.kind != "b":
        raise ObservationError(f"{rows.path}: mask must hold booleans (True = bad), found {mask.dtype}")
    wavelength = wavelength.astype(np.float64)
    is_there = (wavelength > 0) & np.isfinite(wavelength)
    valid = ~mask & is_there & np.isfinite(flux) & (ivar > 0) & (ivar < LARGEST_INVERSE_VARIANCE)
    wavelength = np.where(is_there, wavelength, 0.0)
    kept = rows.with_light(valid, modality_name)
    if not kept.any():
        return []
    longest = int(np.flatnonzero(is_there[kept].any(0))[-1]) + 1
    power = _resolving_power(rows, card, wavelength)
    ivar = np.where(valid, ivar, 0)
    pixels = [array[kept, :longest] for array in (flux, wavelength, ivar, valid, power)]
    return [
        SpectrumObservation(
            declared,
            rows.chosen(kept),
            *pixels[:4],
            resolving_power=pixels[4],
            ra=rows.ra[kept],
            dec=rows.dec[kept],
        )
    ]


def _resolving_power(rows: Rows, card: Spectrograph, wavelength: Float[np.ndarray, "B L"]) -> Float[np.ndarray, "B L"]:
    """R from `lsf_sigma` (pixels; one for each pixel or for each object), the card's where there is none."""
    typical = card.resolving_power_at(wavelength)
    sigma = rows.columns.get("lsf_sigma")
    if sigma is None:
        return typical
    sigma = (sigma[:, None] if sigma.ndim == 1 else rows.shaped("lsf_sigma", wavelength.shape)).astype(np.float64)
    is_known = np.isfinite(sigma) & (sigma > 0)
    fwhm = _FWHM_PER_SIGMA * np.where(is_known, sigma, 1.0) * card.step
    measured = wavelength / fwhm if card.sampling == "linear" else 1 / (fwhm * math.log(10)) * np.ones_like(wavelength)
    return np.where(is_known & (measured > 0), measured, typical)
