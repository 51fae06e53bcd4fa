"""Profiles of light on the sky: galaxies' components and the PSF, as sums of Gaussians or in closed form.

A Sersic profile and a Moffat PSF are each a non-negative sum of concentric Gaussians (Hogg & Lang 2013, PASP 125, 719,
arXiv 1210.6563; the sums here are our own fits). So is one seen through the other, whatever the ellipse: images are
made of these sums, and so is the share of the light that an aperture gathers.
"""

import functools
import itertools
import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from scipy.special import gammainc, gammaincinv
from torch import Tensor

POINT = 0.0
"""In place of a Sersic index: a source without extent."""
TRUNCATION = {1.0: 6.0, 4.0: 8.0}
"""Radius, in half-light radii, beyond which each Sersic profile (by its index) has no light."""
MOFFAT_BETA = 3.5
"""Exponent of the PSF's wings, (1 + (r / a)^2)^-beta: Trujillo et al. 2001 (MNRAS 328, 977) find 2.5 to 4.8."""
MOFFAT_SCALE = 0.5 / math.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
"""The radius a of a Moffat profile of FWHM 1."""
# First and last sigma, in half-light radii, and number of the Gaussians offered to each fit.
_SIGMAS = {1.0: (0.05, 2.2, 10), 4.0: (0.008, 3.0, 12)}


@functools.cache
def sersic_mixture(index: float) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Weights (sum 1) and sigmas of the Gaussians that make the Sersic profile of `index` with half-light radius 1.

    The profile ends at TRUNCATION[index]; the half-light radius is that of the profile without end. A POINT is one
    Gaussian without width.
    """
    if index == POINT:
        return np.ones(1), np.zeros(1)
    shape = gammaincinv(2 * index, 0.5)
    radius = np.geomspace(1e-3, 1.5 * TRUNCATION[index], 500)
    growth = gammainc(2 * index, shape * radius ** (1 / index)) / gammainc(
        2 * index, shape * TRUNCATION[index] ** (1 / index)
    )
    return _fit_mixture(radius, np.minimum(growth, 1.0), np.geomspace(*_SIGMAS[index]))


@functools.cache
def moffat_mixture() -> tuple[Float[np.ndarray, " J"], Float[np.ndarray, " J"]]:
    """Weights (sum 1) and sigmas of the Gaussians that make a Moffat profile of FWHM 1."""
    radius = np.geomspace(1e-2, 8.0, 500)
    growth = 1 - (1 + (radius / MOFFAT_SCALE) ** 2) ** (1 - MOFFAT_BETA)
    return _fit_mixture(radius, growth, np.geomspace(0.33, 1.8, 5))


def moffat_transform(frequency: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Fourier transform of the Moffat profile of unit flux, at angular frequency times its radius a.

    In general 2^(1 - v) / Gamma(v) x^v K_v(x) with v = beta - 1; K_2.5 of our beta is elementary.
    """
    return torch.exp(-frequency) * (1 + frequency + frequency**2 / 3)


def flux_within(
    aperture: float,
    radius: Float[np.ndarray, "B P"],
    axis_ratio: Float[np.ndarray, "B P"],
    psf_fwhm: float,
    sersic_indices: tuple[float, ...],
    offset: Float[np.ndarray, "B 2"] | None = None,
) -> Float[np.ndarray, "B P"]:
    """Share of each component's flux within a circle of radius `aperture` (arcsec), seen through a PSF.

    The circle's centre is `offset` (arcsec along the major axis, and across it) from the component's, by default upon
    it. The light is summed over points of the circle, to 1e-3 of the flux.
    """
    points, areas = _circle(aperture, max(6, math.ceil(6 * aperture / psf_fwhm)))
    place = points if offset is None else points + offset[:, None]
    along, across = np.broadcast_to(place**2, (len(radius), *points.shape)).transpose(2, 0, 1)
    share = np.zeros(radius.shape)
    for component, index in enumerate(sersic_indices):
        extent = radius[:, component, None]
        for (weight, sigma), (psf_weight, psf_sigma) in itertools.product(
            zip(*sersic_mixture(index), strict=True), zip(*moffat_mixture(), strict=True)
        ):
            blur = (psf_fwhm * psf_sigma) ** 2
            major = (extent * sigma) ** 2 + blur
            minor = (extent * sigma * axis_ratio[:, component, None]) ** 2 + blur
            light = np.exp(-0.5 * (along / major + across / minor)) @ areas
            share[:, component] += weight * psf_weight * light / (2 * math.pi * np.sqrt(major * minor)[:, 0])
    return share


def _fit_mixture(radius: np.ndarray, growth: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative least squares of the flux within each radius, relative to it; the weights are then scaled to one."""
    gaussians = -np.expm1(-0.5 * (radius[:, None] / sigmas) ** 2)
    importance = 1 / np.maximum(growth, 0.02)
    weights, _ = nnls(gaussians * importance[:, None], growth * importance, maxiter=10_000)
    kept = weights > 1e-6 * weights.sum()
    return weights[kept] / weights[kept].sum(), sigmas[kept]


def _circle(radius: float, num_rings: int) -> tuple[Float[np.ndarray, "Q 2"], Float[np.ndarray, " Q"]]:
    """Points within a circle, and the area that each stands for: Gauss-Legendre in the squared distance."""
    nodes, weights = np.polynomial.legendre.leggauss(num_rings)
    distance = radius * np.sqrt((nodes + 1) / 2)
    angle = 2 * math.pi * (np.arange(2 * num_rings) + 0.5) / (2 * num_rings)
    points = np.stack([np.outer(distance, np.cos(angle)), np.outer(distance, np.sin(angle))], -1).reshape(-1, 2)
    return points, np.repeat(weights / 2, len(angle)) * math.pi * radius**2 / len(angle)
