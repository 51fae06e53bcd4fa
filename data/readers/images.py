"""Images: frames of a survey in several bands, cutouts from them, and the sources they show.

A frame becomes an ImageObservation in nanomaggies per pixel. Its zero point is stated by the caller or by BUNIT, never
guessed. HSC coadds have 27.0, which the shipped field bears out: with it, the scatter of point-source fluxes on empty
sky gives 5-sigma depths of 27.3, 27.0 and 27.1 mag in g, r and i, against 27.4, 27.1 and 26.9 published for the Deep
layer, to which its tract 10054 belongs (Aihara et al. 2022, arXiv 2108.13045).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from jaxtyping import Bool, Float, Float32, Float64, Int
from scipy import ndimage

from ..instruments import ImagingInstrument
from ..modalities import modality
from ..observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ImageObservation, ObservationError
from .fits_files import FitsFile, open_fits, parse_unit

HSC_ZERO_POINT = 27.0
"""AB magnitude of one count of a Hyper Suprime-Cam coadd (FLUXMAG0 = 6.3e10)."""

_ARCSEC_PER_DEGREE = 3600.0
_FWHM_PER_SIGMA = 2.354820045
_SIGMA_PER_MAD = 1.482602
_AB_ZERO_FLUX = 3631 * units.Jy


@dataclass(frozen=True)
class Frame:
    """A whole image of the sky: an observation of one object, and the map from pixels to the sky, where known."""

    image: ImageObservation
    wcs: Any | None
    """astropy's WCS, or None."""

    def sky_position(
        self, center: Float64[np.ndarray, "K 2"]
    ) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
        """Right ascension and declination (degrees, ICRS) of pixels (row, column); NaN without a WCS."""
        if self.wcs is None:
            return np.full(len(center), np.nan), np.full(len(center), np.nan)
        sky = self.wcs.pixel_to_world(center[:, 1], center[:, 0]).icrs
        return np.asarray(sky.ra.deg % 360.0, dtype=np.float64), np.asarray(sky.dec.deg, dtype=np.float64)


@dataclass(frozen=True)
class Sources:
    """What `find_sources` found, brightest first: K sources in C bands."""

    center: Float64[np.ndarray, "K 2"]
    """Place (row, column) in pixels, weighted by flux."""
    flux: Float32[np.ndarray, "K C"]
    """Sum over the source's pixels above the threshold, sky subtracted, nanomaggies: a lower bound to its total."""
    num_pixels: Int[np.ndarray, " K"]

    def __len__(self) -> int:
        return len(self.center)

    def magnitude(self) -> Float32[np.ndarray, "K C"]:
        """AB magnitude of `flux`; NaN where that is not positive."""
        safe = np.where(self.flux > 0, self.flux, np.float32(np.nan))
        return (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * np.log10(safe)).astype(np.float32)


def read_image(
    paths: Mapping[str, str | Path],
    modality_name: str,
    *,
    zero_point: float | int | None = None,
    inverse_variance: Mapping[str, str | Path] | None = None,
    psf_fwhm: Mapping[str, float] | None = None,
    extension: str | int | None = None,
    object_id: str = "frame",
) -> Frame:
    """Read one FITS image for each band (`paths`: band -> path) as a frame of the modality.

    `zero_point` is the AB magnitude of one unit of the files, and flux becomes file * 10^(0.4 (22.5 - zero_point))
    nanomaggies; it may be left out where BUNIT states a flux (nanomaggy, nJy, ...). `inverse_variance` names files of
    1 / file unit^2. Without them every pixel has the inverse variance of the sky, measured on the frame: robust scatter
    about the clipped median, without the noise of the sources' own photons, and too small by 10 to 20 % where a coadd
    has correlated its neighbours. The depth is measured too (`point_source_depth`). NaN pixels are masked; sky is not
    subtracted. `psf_fwhm` (band -> arcsec) replaces the card's. `extension` defaults to the first image of each file.

    Raises ObservationError on missing, truncated or damaged files, unknown bands, images of different size or place, a
    zero point that is missing or contradicts BUNIT, and pixels of another scale than the instrument's card has.
    """
    declared = modality(modality_name)
    if not isinstance(declared.card, ImagingInstrument):
        raise ObservationError(f"expected an image modality, found {modality_name}")
    if not paths:
        raise ObservationError(f"{modality_name}: expected at least one band, found none")
    if inverse_variance is not None and set(inverse_variance) != set(paths):
        raise ObservationError(
            f"{modality_name}: images are given in bands {sorted(paths)}, "
            f"inverse variances in {sorted(inverse_variance)}"
        )
    bands = list(paths)
    flux: list[np.ndarray] = []
    ivar: list[np.ndarray] = []
    depth: list[float] = []
    fwhm: list[float] = []
    frame_wcs: Any | None = None
    for band in bands:
        try:
            typical = declared.card.band(band)
        except LookupError as error:
            raise ObservationError(f"{modality_name}: {error.args[0]}") from None
        with open_fits(paths[band]) as file:
            place = file.first_image() if extension is None else extension
            pixels = file.image(place, flux[0].shape if flux else (None, None)).astype(np.float32)
            scale = _nanomaggies_per_unit(file, file.header(place), zero_point)
            wcs = _wcs(file, file.header(place), declared.card.pixel_scale)
            if flux and not _same_place(frame_wcs, wcs, pixels.shape):
                raise file.error(f"must show the same place as {paths[bands[0]]}, and its WCS says otherwise")
        frame_wcs = wcs
        flux.append(pixels * np.float32(scale))
        good = np.isfinite(flux[-1])
        if inverse_variance is None:
            _, sigma = sky_noise(flux[-1], good)
            band_ivar = np.full(pixels.shape, sigma**-2 if sigma > 0 else 0.0, np.float32)
        else:
            with open_fits(inverse_variance[band]) as file:
                place = file.first_image() if extension is None else extension
                band_ivar = file.image(place, pixels.shape).astype(np.float32) / np.float32(scale**2)
        ivar.append(np.where(good, band_ivar, np.float32(0)))
        fwhm.append(typical.psf_fwhm if psf_fwhm is None else psf_fwhm.get(band, typical.psf_fwhm))
        measured = point_source_depth(flux[-1], good & (ivar[-1] > 0), fwhm[-1] / declared.card.pixel_scale)
        depth.append(measured if np.isfinite(measured) else typical.depth)
    stacked, stacked_ivar = np.stack(flux)[None], np.stack(ivar)[None]
    image = ImageObservation(
        declared,
        [object_id],
        stacked,
        bands,
        stacked_ivar,
        np.isfinite(stacked) & (stacked_ivar > 0) & np.isfinite(stacked_ivar),
        psf_fwhm=[fwhm],
        depth=[depth],
    )
    return Frame(image, frame_wcs)


def cut_out(
    frame: Frame, center: Float64[np.ndarray, "K 2"], size: int, object_id: Sequence[str] | None = None
) -> ImageObservation:
    """Cutouts of `size` x `size` pixels around K places (row, column) of the frame, all bands.

    The object lies in the middle of its cutout to half a pixel, and `center` says exactly where. Beyond the frame's
    edge pixels are masked. Ids default to `<frame>-<number>`; ra and dec follow from the WCS, where there is one.
    Raises ObservationError, with the object's name, if a cutout has no valid pixel.
    """
    image = frame.image
    if size < 1:
        raise ObservationError(f"{image.object_id[0]}: size must be at least 1 pixel, found {size}")
    if not np.isfinite(center).all():
        raise ObservationError(f"{image.object_id[0]}: centers must be finite, found {center.tolist()}")
    height, width = image.flux.shape[2:]
    names = [f"{image.object_id[0]}-{number}" for number in range(len(center))] if object_id is None else object_id
    corner = np.round(center - (size - 1) / 2).astype(np.int64)
    shape = (len(center), len(image.bands), size, size)
    flux, ivar = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask = np.zeros(shape, dtype=bool)
    for place, (top, left) in enumerate(corner.tolist()):
        rows, columns = (max(0, top), min(height, top + size)), (max(0, left), min(width, left + size))
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            continue
        source = (0, slice(None), slice(*rows), slice(*columns))
        target = (
            place,
            slice(None),
            slice(rows[0] - top, rows[1] - top),
            slice(columns[0] - left, columns[1] - left),
        )
        flux[target], ivar[target] = image.flux[source].numpy(), image.inverse_variance[source].numpy()
        mask[target] = image.mask[source].numpy()
    ra, dec = frame.sky_position(center)
    return ImageObservation(
        image.modality,
        names,
        flux,
        image.bands,
        ivar,
        mask,
        psf_fwhm=image.psf_fwhm.expand(len(center), -1),
        depth=image.depth.expand(len(center), -1),
        center=center - corner,
        ra=ra,
        dec=dec,
    )


def cut_out_sky(
    frame: Frame,
    ra: Float64[np.ndarray, " K"],
    dec: Float64[np.ndarray, " K"],
    size: int,
    object_id: Sequence[str] | None = None,
) -> ImageObservation:
    """Cutouts around K positions on the sky (degrees, ICRS), as `cut_out`. Raises ObservationError without a WCS."""
    if frame.wcs is None:
        raise ObservationError(f"{frame.image.object_id[0]}: the frame has no WCS; give pixel positions to cut_out")
    x, y = frame.wcs.world_to_pixel(SkyCoord(ra, dec, unit="deg", frame="icrs"))
    return cut_out(frame, np.stack([y, x], axis=1).astype(np.float64), size, object_id)


def find_sources(
    frame: Frame, threshold: float | int = 5.0, *, min_pixels: int = 5, margin: int = 0, max_sources: int | None = None
) -> Sources:
    """Sources of the frame: connected pixels above `threshold` sigma, in all bands together.

    The bands' signal-to-noise maps are added, smoothed by the PSF and scaled by their own scatter. Blended sources
    are one. Sources of fewer than `min_pixels`, or whose center is less than `margin` pixels from the edge, are left
    out; the `max_sources` brightest are kept. This is for demos and tests, not a survey's pipeline.
    """
    image = frame.image
    flux, mask = image.flux[0].double().numpy(), image.mask[0].numpy()
    above_sky = np.zeros_like(flux)
    detection = np.zeros(flux.shape[1:])
    for place in range(len(image.bands)):
        sky, sigma = sky_noise(flux[place], mask[place])
        above_sky[place] = np.where(mask[place], flux[place] - sky, 0.0)
        if sigma > 0:
            detection += above_sky[place] / sigma
    width = float(image.psf_fwhm[0].mean()) / _FWHM_PER_SIGMA / image.card.pixel_scale
    detection = ndimage.gaussian_filter(detection, width)
    sky, sigma = sky_noise(detection, np.asarray(mask.any(0)))
    labels, count = ndimage.label(detection - sky > threshold * sigma)
    numbers = np.arange(1, count + 1)
    num_pixels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    weight = np.clip(detection, 0, None)
    center = np.array(ndimage.center_of_mass(weight, labels, numbers), dtype=np.float64).reshape(-1, 2)
    total = np.stack([ndimage.sum_labels(band, labels, numbers) for band in above_sky], axis=-1).reshape(-1, len(flux))
    far = np.array(detection.shape) - 1 - margin
    kept = (num_pixels >= min_pixels) & (center >= margin).all(1) & (center <= far).all(1)
    order = np.flatnonzero(kept)[np.argsort(-total[kept].sum(1), kind="stable")][:max_sources]
    return Sources(center[order], total[order].astype(np.float32), num_pixels[order])


def sky_noise(image: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """Level and standard deviation of the sky: median and 1.4826 MAD of the valid pixels, clipped at 3 sigma.

    Clipping is repeated until no pixel goes, ten times at most. (NaN, 0) if no pixel is valid.
    """
    pixels = image[mask].astype(np.float64)
    sky, sigma = float("nan"), 0.0
    for _ in range(10):
        if not len(pixels):
            break
        sky = float(np.median(pixels))
        sigma = _SIGMA_PER_MAD * float(np.median(np.abs(pixels - sky)))
        kept = pixels[np.abs(pixels - sky) <= 3 * sigma]
        if len(kept) == len(pixels):
            break
        pixels = kept
    return sky, sigma


def point_source_depth(image: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"], psf_fwhm: float) -> float:
    """AB magnitude of a point source at 5 sigma, from the scatter of PSF-weighted fluxes over the frame's sky.

    For a Gaussian PSF of sigma s pixels the flux of a point source is the smoothed image times 4 pi s^2. Unlike the
    scatter of pixels this includes the correlation between neighbours. `image` is in nanomaggies, `psf_fwhm` in pixels.
    NaN if there is no noise to measure.
    """
    s = psf_fwhm / _FWHM_PER_SIGMA
    filled = np.where(mask, image, 0.0).astype(np.float64)
    _, sigma = sky_noise(ndimage.gaussian_filter(filled, s) * 4 * np.pi * s**2, mask)
    return UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * float(np.log10(5 * sigma)) if sigma > 0 else float("nan")


def _nanomaggies_per_unit(file: FitsFile, header: Any, zero_point: float | int | None) -> float:
    stated: float | None = None
    unit = header.get("BUNIT")
    if unit is not None:
        try:
            per_unit = parse_unit(str(unit)).to(units.nmgy, equivalencies=units.zero_point_flux(_AB_ZERO_FLUX))
            stated = float(UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * np.log10(per_unit))
        except (ValueError, TypeError, units.UnitConversionError):
            stated = None  # counts, or text that is no unit: it says nothing about the zero point
    if zero_point is None and stated is None:
        raise file.error(f"states no flux unit (BUNIT = {unit!r}); give zero_point, the AB magnitude of one unit")
    if zero_point is not None and stated is not None and abs(zero_point - stated) > 0.01:
        raise file.error(f"BUNIT = {unit!r} means a zero point of {stated:.3f}, found zero_point = {zero_point}")
    used = stated if zero_point is None else zero_point
    assert used is not None
    return float(10 ** (0.4 * (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - used)))


def _wcs(file: FitsFile, header: Any, pixel_scale: float) -> Any | None:
    if not str(header.get("CTYPE1", "")).startswith("RA"):
        return None
    wcs = WCS(fits.Header(header, copy=True)).celestial
    scales = proj_plane_pixel_scales(wcs) * _ARCSEC_PER_DEGREE
    if not np.allclose(scales, pixel_scale, rtol=0.02):
        raise file.error(
            f"pixels must be {pixel_scale} arcsec wide, as the instrument's card says; found {scales} by WCS"
        )
    return wcs


def _same_place(first: Any | None, other: Any | None, shape: tuple[int, ...]) -> bool:
    """Whether two maps agree at the corners of the frame to a tenth of a pixel."""
    if first is None or other is None:
        return first is other
    x, y = np.array([0, shape[1] - 1, 0, shape[1] - 1]), np.array([0, 0, shape[0] - 1, shape[0] - 1])
    again = other.world_to_pixel(first.pixel_to_world(x, y))
    return bool(np.abs(np.stack(again) - np.stack([x, y])).max() < 0.1)
