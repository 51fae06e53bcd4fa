"""How deep an image is: the noise of its sky, and the faintest point source, measured on its own pixels."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from ..observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE

FWHM_PER_SIGMA = 2.354820045

_SIGMA_PER_MAD = 1.482602


def sky_noise(image: Float[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]) -> tuple[float, float]:
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


def point_source_depth(
    image: Float[np.ndarray, "*K H W"], mask: Bool[np.ndarray, "*K H W"], psf_fwhm: float | int
) -> float:
    """AB magnitude of a point source at 5 sigma, from the scatter of PSF-weighted fluxes over the frame's sky.

    For a Gaussian PSF of sigma s pixels the flux of a point source is the smoothed image times 4 pi s^2. Unlike the
    scatter of pixels this includes the correlation between neighbours. `image`, or K parts of one, is in nanomaggies,
    `psf_fwhm` in pixels. NaN if there is no noise to measure.
    """
    s = psf_fwhm / FWHM_PER_SIGMA
    filled = np.where(mask, image, 0.0).astype(np.float64)
    smoothed = ndimage.gaussian_filter(filled, s, axes=(-2, -1)) * 4 * np.pi * s**2
    _, sigma = sky_noise(smoothed, mask)
    return UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * float(np.log10(5 * sigma)) if sigma > 0 else float("nan")
