"""Images: frames of a survey in several bands, cutouts from them, and the sources they show.

A frame is held in memory as one ImageObservation; a field too large for that stays on disk as a `Mosaic`. Cutouts are
made from either, at pixels, at positions on the sky, or at the sources found.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from jaxtyping import Bool, Float32, Float64, Int
from scipy import ndimage

from ..modalities import Modality
from ..observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ImageObservation, ObservationError
from .image_noise import FWHM_PER_SIGMA, sky_noise
from .mosaics import Mosaic, open_mosaic
from .sky_maps import sky_position

TILE, TILE_OVERLAP = 1024, 128
"""Pixels: the part of a mosaic in which sources are looked for at once, and what it shares with its neighbours."""
CUTOUTS_PER_BATCH = 128

_SAME_SOURCE = 3
"""Pixels: sources of two tiles that lie no farther apart are one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """A whole image of the sky: an observation of one object, and the map from pixels to the sky, where known.

    It answers as a `Mosaic` does, from memory.
    """

    image: ImageObservation
    wcs: Any | None
    """astropy's WCS, or None."""

    @property
    def name(self) -> str:
        """Id of the frame."""
        return self.image.object_id[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.flux.shape[2], self.image.flux.shape[3]

    @property
    def modality(self) -> Modality:
        """The camera's."""
        return self.image.modality

    @property
    def bands(self) -> Sequence[str]:
        """Names of the C bands."""
        return self.image.bands

    @property
    def psf_fwhm(self) -> Float32[np.ndarray, " C"]:
        """Arcsec."""
        return self.image.psf_fwhm[0].numpy()

    @property
    def depth(self) -> Float32[np.ndarray, " C"]:
        """AB magnitude of a point source at 5 sigma."""
        return self.image.depth[0].numpy()

    def pixels(self, rows: slice, columns: slice) -> tuple[Float32[np.ndarray, "C H W"], Float32[np.ndarray, "C H W"]]:
        """Flux (nanomaggies) and inverse variance of this part of the frame."""
        part = (0, slice(None), rows, columns)
        return self.image.flux[part].numpy(), self.image.inverse_variance[part].numpy()

    def sky_position(
        self, center: Float64[np.ndarray, "K 2"]
    ) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
        """Right ascension and declination (degrees, ICRS) of pixels (row, column); NaN without a WCS."""
        return sky_position(self.wcs, center)


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

    def select(self, rows: Int[np.ndarray, " R"]) -> "Sources":
        """These sources, in this order."""
        return Sources(self.center[rows], self.flux[rows], self.num_pixels[rows])


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
    """Read one FITS image for each band (`paths`: band -> path) as a frame of the modality, whole.

    NaN pixels are masked; sky is not subtracted. `open_mosaic` says what the rest means, and what it raises.
    """
    with open_mosaic(
        paths,
        modality_name,
        zero_point=zero_point,
        inverse_variance=inverse_variance,
        psf_fwhm=psf_fwhm,
        extension=extension,
        name=object_id,
    ) as mosaic:
        frame = _frame(mosaic, slice(0, mosaic.shape[0]), slice(0, mosaic.shape[1]))
    if frame is None:
        raise ObservationError(f"{next(iter(paths.values()))}: no valid pixel in any band of {modality_name}")
    return frame


def cut_out(
    field: Frame | Mosaic, center: Float64[np.ndarray, "K 2"], size: int, object_id: Sequence[str] | None = None
) -> ImageObservation:
    """Cutouts of `size` x `size` pixels around K places (row, column) of a frame or mosaic, all bands.

    The object lies in the middle of its cutout to half a pixel, and `center` says exactly where. Beyond the edge pixels
    are masked. Of a mosaic, the pixels of the cutouts alone are read. Ids default to `<field>-<number>`; ra and dec
    follow from the WCS, where there is one. Raises ObservationError, with the object's name, if a cutout has no valid
    pixel.
    """
    flux, ivar, corner = _read_cutouts(field, center, size)
    names = [f"{field.name}-{number}" for number in range(len(center))] if object_id is None else object_id
    ra, dec = sky_position(field.wcs, center)
    return _observation(field, names, flux, ivar, center=center - corner, ra=ra, dec=dec)


def cutout_batches(
    field: Frame | Mosaic,
    center: Float64[np.ndarray, "K 2"],
    size: int,
    object_id: Sequence[str],
    ra: Float64[np.ndarray, " K"],
    dec: Float64[np.ndarray, " K"],
    *,
    cutouts_per_batch: int = CUTOUTS_PER_BATCH,
) -> Iterator[ImageObservation]:
    """Stream cutouts as `cut_out` makes them, at these positions (degrees, ICRS; NaN where unknown).

    A cutout without a valid pixel is left out, with a warning that names its object.
    """
    for start in range(0, len(center), cutouts_per_batch):
        part = slice(start, start + cutouts_per_batch)
        flux, ivar, corner = _read_cutouts(field, center[part], size)
        is_seen = _valid(flux, ivar).any((1, 2, 3))
        if not is_seen.all():
            names = [object_id[part][row] for row in np.flatnonzero(~is_seen).tolist()]
            _log.warning("%s: no valid pixel around %s; left out", field.name, names)
        if is_seen.any():
            place = {"center": center[part] - corner, "ra": ra[part], "dec": dec[part]}
            yield _observation(
                field,
                [object_id[part][row] for row in np.flatnonzero(is_seen).tolist()],
                flux[is_seen],
                ivar[is_seen],
                **{name: value[is_seen] for name, value in place.items()},
            )


def cut_out_sky(
    field: Frame | Mosaic,
    ra: Float64[np.ndarray, " K"],
    dec: Float64[np.ndarray, " K"],
    size: int,
    object_id: Sequence[str] | None = None,
) -> ImageObservation:
    """Cutouts around K positions on the sky (degrees, ICRS), as `cut_out`. Raises ObservationError without a WCS."""
    return cut_out(field, pixels_of(field, ra, dec), size, object_id)


def pixels_of(
    field: Frame | Mosaic, ra: Float64[np.ndarray, " K"], dec: Float64[np.ndarray, " K"]
) -> Float64[np.ndarray, "K 2"]:
    """Places (row, column) of positions on the sky (degrees, ICRS); NaN far from the field.

    Far is three of the field's diagonals, where its projection may fold back. Raises ObservationError without a WCS.
    """
    if field.wcs is None:
        raise ObservationError(f"{field.name}: the frame has no WCS; give pixel positions to cut_out")
    corners = np.array([[0, 0], [field.shape[0] - 1, field.shape[1] - 1]], dtype=np.float64)
    first, last = (SkyCoord(*place, unit="deg") for place in np.transpose(sky_position(field.wcs, corners)))
    sky = SkyCoord(ra, dec, unit="deg", frame="icrs")
    near = np.asarray(sky.separation(first) < 3 * first.separation(last) + 1 * units.arcmin)
    center = np.full((len(ra), 2), np.nan)
    if near.any():
        x, y = field.wcs.world_to_pixel(sky[near])
        center[near] = np.stack([y, x], axis=1)
    return center


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
    width = float(image.psf_fwhm[0].mean()) / FWHM_PER_SIGMA / image.card.pixel_scale
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


def sources_by_tile(
    mosaic: Mosaic,
    threshold: float | int = 5.0,
    *,
    min_pixels: int = 5,
    margin: int = 0,
    tile: int = TILE,
    overlap: int = TILE_OVERLAP,
) -> Iterator[Sources]:
    """The sources of a mosaic, tile by tile: `find_sources` in parts of `tile` pixels, centers in the whole's pixels.

    A tile is read with `overlap` pixels more on each side, so that a source smaller than that is seen whole; one that
    two tiles see belongs to the first. Noise is measured in each tile.
    """
    near_border = np.zeros((0, 2))
    for top in range(0, mosaic.shape[0], tile):
        for left in range(0, mosaic.shape[1], tile):
            core = np.array([[top, left], [min(top + tile, mosaic.shape[0]), min(left + tile, mosaic.shape[1])]])
            low, high = np.maximum(core[0] - overlap, 0), np.minimum(core[1] + overlap, mosaic.shape)
            frame = _frame(mosaic, slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
            if frame is None:
                continue
            found = find_sources(frame, threshold, min_pixels=min_pixels)
            found = Sources(found.center + low, found.flux, found.num_pixels)
            # Two tiles place a source on their border a little differently: both may have it, and one must.
            is_new = np.ones(len(found), bool)
            if len(near_border) and len(found):
                distance = np.abs(found.center[:, None] - near_border).max(-1).min(1)
                is_new = distance > _SAME_SOURCE
            inside = ((found.center >= core[0] - _SAME_SOURCE) & (found.center < core[1] + _SAME_SOURCE)).all(1)
            far = np.array(mosaic.shape) - 1 - margin
            inside &= (found.center >= margin).all(1) & (found.center <= far).all(1)
            kept = found.select(np.flatnonzero(inside & is_new))
            border = np.minimum(np.abs(kept.center - core[0]), np.abs(kept.center - core[1])).min(1)
            near_border = np.concatenate([near_border, kept.center[border < 2 * _SAME_SOURCE]])
            if len(kept):
                yield kept


def _frame(mosaic: Mosaic, rows: slice, columns: slice) -> Frame | None:
    """A part of a mosaic, held in memory; None if it has no valid pixel."""
    flux, ivar = mosaic.pixels(rows, columns)
    if not _valid(flux[None], ivar[None]).any():
        return None
    wcs = None if mosaic.wcs is None else mosaic.wcs.slice((rows, columns))
    return Frame(_observation(mosaic, [mosaic.name], flux[None], ivar[None]), wcs)


def _read_cutouts(
    field: Frame | Mosaic, center: Float64[np.ndarray, "K 2"], size: int
) -> tuple[Float32[np.ndarray, "K C S S"], Float32[np.ndarray, "K C S S"], Int[np.ndarray, "K 2"]]:
    """Flux and inverse variance of cutouts, zero beyond the field, and where their first pixels lie in it."""
    if size < 1:
        raise ObservationError(f"{field.name}: size must be at least 1 pixel, found {size}")
    if not np.isfinite(center).all():
        raise ObservationError(f"{field.name}: centers must be finite, found {center.tolist()}")
    height, width = field.shape
    corner = np.round(center - (size - 1) / 2).astype(np.int64)
    shape = (len(center), len(field.bands), size, size)
    flux, ivar = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for number, (top, left) in enumerate(corner.tolist()):
        rows, columns = (max(0, top), min(height, top + size)), (max(0, left), min(width, left + size))
        if rows[0] < rows[1] and columns[0] < columns[1]:
            inside = (slice(rows[0] - top, rows[1] - top), slice(columns[0] - left, columns[1] - left))
            part_flux, part_ivar = field.pixels(slice(*rows), slice(*columns))
            flux[number, :, *inside], ivar[number, :, *inside] = part_flux, part_ivar
    return flux, ivar, corner


def _valid(flux: Float32[np.ndarray, "B C H W"], ivar: Float32[np.ndarray, "B C H W"]) -> Bool[np.ndarray, "B C H W"]:
    return np.isfinite(flux) & (ivar > 0) & np.isfinite(ivar)


def _observation(
    field: Frame | Mosaic,
    names: Sequence[str],
    flux: Float32[np.ndarray, "B C H W"],
    ivar: Float32[np.ndarray, "B C H W"],
    **place: np.ndarray,
) -> ImageObservation:
    """Images of B objects, all with the seeing and depth of their field."""
    psf_fwhm, depth = (np.tile(value, (len(names), 1)) for value in (field.psf_fwhm, field.depth))
    return ImageObservation(
        field.modality, names, flux, field.bands, ivar, _valid(flux, ivar), psf_fwhm=psf_fwhm, depth=depth, **place
    )
