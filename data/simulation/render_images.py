"""Images of many galaxies in many bands at once: bulge and disc as sums of Gaussians, blurred by PSF and pixel.

A Sersic profile and a Moffat PSF are each a non-negative sum of concentric Gaussians (Hogg & Lang 2013, PASP 125, 719,
arXiv 1210.6563; the sums here are our own fits), so their Fourier transforms are sums of Gaussians too. The product of
profile, PSF and pixel is transformed back on a grid twice as wide as the image. Gaussians so wide that they would come
round the edge of that grid are evaluated in real space.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from scipy.special import gammainc, gammaincinv
from torch import Tensor

TRUNCATION = {1.0: 6.0, 4.0: 8.0}
"""Radius, in half-light radii, beyond which each Sersic profile (by its index) has no light."""
MOFFAT_BETA = 3.5
"""Exponent of the PSF's wings, (1 + (r / a)^2)^-beta: Trujillo et al. 2001 (MNRAS 328, 977) find 2.5 to 4.8."""
# First and last sigma, in half-light radii, and number of the Gaussians offered to each fit.
_SIGMAS = {1.0: (0.05, 2.2, 10), 4.0: (0.008, 3.0, 12)}
PADDING = 2
WIDEST_IN_FOURIER_SPACE = 1 / 6
"""Gaussians of a greater sigma, as a share of the padded grid, are evaluated in real space."""


def render_galaxies(
    flux: Float[Tensor, "B P C"],
    radius: Float[Tensor, "B P"],
    axis_ratio: Float[Tensor, "B P"],
    position_angle: Float[Tensor, " B"],
    psf_fwhm: Float[Tensor, "B C"],
    *,
    sersic_indices: tuple[float, ...],
    size: int,
    pixel_scale: float,
) -> Float[Tensor, "B C H W"]:
    """Noiseless images, `size` x `size` pixels of `pixel_scale` arcsec, of galaxies centred in the middle.

    `flux` is the total flux of each of P components in each band, in the unit of the result per pixel. `radius` is the
    half-light radius along the major axis and `psf_fwhm` the width of the PSF, both in arcsec; `position_angle` runs in
    degrees from up (rows increase upwards, to the north) through left (to the east). Component p has the Sersic index
    `sersic_indices[p]`, one of 1 and 4.
    """
    grid = size * PADDING
    frequency_y = 2 * torch.pi * torch.fft.fftfreq(grid)[:, None]
    frequency_x = 2 * torch.pi * torch.fft.rfftfreq(grid)[None, :]
    major, minor = _rotated(frequency_x, frequency_y, position_angle)
    squared = frequency_x**2 + frequency_y**2
    psf_weights, psf_sigmas = (torch.from_numpy(a).float() for a in moffat_mixture())
    psf_variance = (psf_fwhm[..., None] / pixel_scale * psf_sigmas) ** 2  # [B, C, J], squared pixels
    psf = torch.zeros(*psf_fwhm.shape, *squared.shape)
    for weight, variance in zip(psf_weights, psf_variance.unbind(-1), strict=True):
        psf += weight * torch.exp(-0.5 * variance[..., None, None] * squared)

    transform = torch.zeros(psf.shape)
    wide = torch.zeros(*psf_fwhm.shape, size, size)
    for component, index in enumerate(sersic_indices):
        weights, sigmas = (torch.from_numpy(a).float() for a in sersic_mixture(index))
        sigma = radius[:, component, None] / pixel_scale * sigmas  # [B, K] pixels
        is_wide = sigma > WIDEST_IN_FOURIER_SPACE * grid
        ratio = axis_ratio[:, component]
        elliptical = major**2 + (ratio[:, None, None] * minor) ** 2
        profile = torch.zeros(elliptical.shape)
        for weight, column, skipped in zip(weights, sigma.unbind(1), is_wide.unbind(1), strict=True):
            narrow = torch.where(skipped, 0.0, weight)
            if narrow.any():
                profile += narrow[:, None, None] * torch.exp(-0.5 * (column**2)[:, None, None] * elliptical)
        transform += flux[:, component, :, None, None] * profile[:, None]
        rows, places = is_wide.nonzero(as_tuple=True)
        if len(rows):
            images = _real_space(
                sigma[rows, places], ratio[rows], position_angle[rows], psf_weights, psf_variance[rows], size
            )
            images *= (flux[rows, component] * weights[places, None])[..., None, None]
            wide.index_add_(0, rows, images)

    center = (size - 1) / 2
    pixel = torch.sinc(frequency_x / (2 * torch.pi)) * torch.sinc(frequency_y / (2 * torch.pi))
    place = pixel * torch.exp(-1j * center * (frequency_x + frequency_y))
    image = torch.fft.irfft2(transform * psf * place, s=(grid, grid))
    return image[..., :size, :size] + wide


@functools.cache
def sersic_mixture(index: float) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Weights (sum 1) and sigmas of the Gaussians that make the Sersic profile of `index` with half-light radius 1.

    The profile ends at TRUNCATION[index]; the half-light radius is that of the profile without end.
    """
    shape = gammaincinv(2 * index, 0.5)
    radius = np.geomspace(1e-3, 1.5 * TRUNCATION[index], 500)
    growth = gammainc(2 * index, shape * radius ** (1 / index)) / gammainc(
        2 * index, shape * TRUNCATION[index] ** (1 / index)
    )
    return _fit_mixture(radius, np.minimum(growth, 1.0), np.geomspace(*_SIGMAS[index]))


@functools.cache
def moffat_mixture() -> tuple[Float[np.ndarray, " J"], Float[np.ndarray, " J"]]:
    """Weights (sum 1) and sigmas of the Gaussians that make a Moffat profile of FWHM 1."""
    scale = 0.5 / math.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
    radius = np.geomspace(1e-2, 8.0, 500)
    growth = 1 - (1 + (radius / scale) ** 2) ** (1 - MOFFAT_BETA)
    return _fit_mixture(radius, growth, np.geomspace(0.33, 1.8, 5))


def flux_within(
    aperture: float,
    radius: Float[np.ndarray, "B P"],
    axis_ratio: Float[np.ndarray, "B P"],
    psf_fwhm: float,
    sersic_indices: tuple[float, ...],
) -> Float[np.ndarray, "B P"]:
    """Share of each component's flux within a circle of radius `aperture` (arcsec) at its centre, seen through a PSF.

    Each pair of a profile's and the PSF's Gaussians is taken as round, with the product of its axes kept; exact for
    round galaxies, and within 2 % of the flux for discs of axis ratio 0.3.
    """
    psf_weights, psf_sigmas = moffat_mixture()
    share = np.zeros(radius.shape)
    for component, index in enumerate(sersic_indices):
        weights, sigmas = sersic_mixture(index)
        major = (radius[:, component, None, None] * sigmas[:, None]) ** 2
        minor = major * axis_ratio[:, component, None, None] ** 2
        blur = (psf_fwhm * psf_sigmas) ** 2
        variance = np.sqrt((major + blur) * (minor + blur))
        share[:, component] = np.einsum("k,j,bkj->b", weights, psf_weights, -np.expm1(-(aperture**2) / (2 * variance)))
    return share


def _fit_mixture(radius: np.ndarray, growth: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative least squares of the flux within each radius, relative to it; the weights are then scaled to one."""
    gaussians = -np.expm1(-0.5 * (radius[:, None] / sigmas) ** 2)
    importance = 1 / np.maximum(growth, 0.02)
    weights, _ = nnls(gaussians * importance[:, None], growth * importance, maxiter=10_000)
    kept = weights > 1e-6 * weights.sum()
    return weights[kept] / weights[kept].sum(), sigmas[kept]


def _rotated(x: Tensor, y: Tensor, position_angle: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Coordinates along the major and the minor axis."""
    angle = torch.deg2rad(position_angle)[:, None, None]
    return y * torch.cos(angle) - x * torch.sin(angle), x * torch.cos(angle) + y * torch.sin(angle)


def _real_space(
    sigma: Float[Tensor, " E"],
    axis_ratio: Float[Tensor, " E"],
    position_angle: Float[Tensor, " E"],
    psf_weights: Float[Tensor, " J"],
    psf_variance: Float[Tensor, "E C J"],
    size: int,
) -> Float[Tensor, "E C H W"]:
    """Unit-flux Gaussians of major axis `sigma` (pixels), blurred by the PSF; a pixel adds the variance of a square."""
    offset = torch.arange(size) - (size - 1) / 2
    major, minor = _rotated(offset[None, :], offset[:, None], position_angle)
    images = torch.zeros(*psf_variance.shape[:2], size, size)
    for weight, variance in zip(psf_weights, (psf_variance + 1 / 12).unbind(-1), strict=True):
        along = (sigma**2)[:, None] + variance
        across = ((sigma * axis_ratio) ** 2)[:, None] + variance
        distance = (major**2)[:, None] / along[..., None, None] + (minor**2)[:, None] / across[..., None, None]
        images += (weight / (2 * torch.pi * torch.sqrt(along * across)))[..., None, None] * torch.exp(-0.5 * distance)
    return images
