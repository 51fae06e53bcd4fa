"""Noise of a real coadd in place of white noise: empty sky of the shipped Hyper Suprime-Cam field.

What makes real sky differ from white noise is kept: neighbouring pixels are correlated by resampling, the level
wanders, and galaxies too faint to be found lie everywhere; fluxes of points scatter 10 to 20 % more than by white noise
of the same deviation. Sources that can be found, two pixels of five, are replaced by sky from elsewhere in the field.
The limits: one field of 86 arcsec in three bands of one camera, so that there are 64 patches of 64 pixels, met again
turned, mirrored and shifted; it is sky of the Deep layer, scaled here to a deviation of one.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from ..observations import ImageObservation
from ..readers.image_noise import FWHM_PER_SIGMA, sky_noise
from ..readers.images import read_image
from ..readers.mosaics import HSC_ZERO_POINT
from ..real_files import real_file

REAL_MODALITY, REAL_BANDS = "image/hsc", ("g", "r", "i")
"""The camera and the bands of which there is real sky."""
NUM_UNIFORMS = 4
"""Random numbers that choose a patch."""
_THRESHOLD = 2.5
"""Sigma of the bands' sum, smoothed by the PSF, beyond which a pixel belongs to a source, or to a hole about one."""
_MARGIN = 3
"""Pixels by which sources are widened."""


@dataclass(frozen=True, eq=False)
class EmptySky:
    """Sky of one frame without its sources, in units of its own standard deviation, about zero."""

    noise: Float[np.ndarray, "C H W"]
    is_original: Bool[np.ndarray, "H W"]
    """False where a source was replaced."""


def empty_sky(frame: ImageObservation) -> EmptySky:
    """The sky of a frame (an observation of one object). Raises ValueError if less than a tenth of it is empty."""
    flux, mask = frame.flux[0].double().numpy(), frame.mask[0].all(0).numpy()
    levels = [sky_noise(band, mask) for band in flux]
    detection = np.sum([(band - sky) / sigma for band, (sky, sigma) in zip(flux, levels, strict=True)], 0)
    width = float(frame.psf_fwhm[0].mean()) / FWHM_PER_SIGMA / frame.card.pixel_scale
    detection = ndimage.gaussian_filter(np.where(mask, detection, 0.0), width)
    sky, sigma = sky_noise(detection, mask)
    is_source = ndimage.binary_dilation((np.abs(detection - sky) > _THRESHOLD * sigma) | ~mask, iterations=_MARGIN)
    if is_source.mean() > 0.9:
        raise ValueError(
            f"a frame needs empty sky; of {frame.object_id[0]}, {is_source.mean():.0%} is source or masked"
        )
    noise = flux - np.array([band[~is_source].mean() for band in flux])[:, None, None]
    noise /= np.array([band[~is_source].std() for band in noise])[:, None, None]

    rng = np.random.default_rng(_STREAM)
    hole = is_source.copy()
    # A hole is filled from the field turned by half and shifted, for as long as there are holes.
    while hole.any():
        shift = tuple(int(rng.integers(side)) for side in hole.shape)
        other, empty = (np.roll(a[..., ::-1, ::-1], shift, (-2, -1)) for a in (noise, ~is_source))
        noise = np.where(hole & empty, other, noise)
        hole &= ~empty
    return EmptySky(noise.astype(np.float32), ~is_source)


@functools.cache
def hsc_sky() -> EmptySky:
    """The empty sky of the shipped field, in REAL_BANDS."""
    paths = {band: real_file(f"hsc-10054-{band}.fits") for band in REAL_BANDS}
    return empty_sky(read_image(paths, REAL_MODALITY, zero_point=HSC_ZERO_POINT).image)


def cut_sky(sky: EmptySky, uniform: Float[np.ndarray, "B U"], size: int) -> Float[np.ndarray, "B C S S"]:
    """One patch of `size` x `size` pixels for each row of `uniform` (NUM_UNIFORMS numbers in [0, 1)), of all bands.

    Patches are turned by quarters and mirrored at random. Raises ValueError if the sky is smaller than `size`.
    """
    height, width = sky.noise.shape[1:]
    if size > min(height, width):
        raise ValueError(f"the real sky has {height} x {width} pixels, an image of {size} x {size} was asked for")
    patches = np.empty((len(uniform), len(sky.noise), size, size), np.float32)
    for patch, (up, right, turn, mirror) in zip(patches, uniform[:, :NUM_UNIFORMS], strict=True):
        top, left = int(up * (height - size + 1)), int(right * (width - size + 1))
        cut = np.rot90(sky.noise[:, top : top + size, left : left + size], int(4 * turn), (1, 2))
        patch[:] = cut[:, :, ::-1] if mirror < 0.5 else cut
    return patches


_STREAM = 0x736B79
