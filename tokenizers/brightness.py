"""Brightness tokens of an image: one for each band of its camera, so that colours survive the coarse codes of patches.

The brightness is the mean surface brightness about the object under a Gaussian weight, in nanomaggies per square
arcsec, compressed by arcsinh like a magnitude (Lupton, Gunn & Szalay 1999, astro-ph/9903081) and cut into even bins. It
is physical: two cameras give the same object nearly the same codes in bands of one wavelength.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.observations import ImageObservation

WEIGHT_SIGMA = 1.5
"""Arcsec."""
SOFTENING = 0.003
"""Nanomaggies per square arcsec, about the noise of deep images under the weight."""
RANGE = (-4.0, 18.0)
"""Limits of the compressed brightness. Beyond them (brighter than 10 mag/arcsec2) the outer codes are used."""
LEAST_COVERAGE = 0.05
"""Share of the weight that valid pixels must hold for a band to count as measured."""


def measure_brightness(observation: ImageObservation) -> tuple[Float[Tensor, "B C"], Bool[Tensor, "B C"]]:
    """Compressed brightness in each band of the camera, in the card's order, and whether it was measured."""
    height, width = observation.flux.shape[2:]
    scale = observation.card.pixel_scale
    y = (torch.arange(height) - observation.center[:, :1]) * scale
    x = (torch.arange(width) - observation.center[:, 1:]) * scale
    weight = torch.exp(-(y[:, :, None] ** 2 + x[:, None, :] ** 2) / (2 * WEIGHT_SIGMA**2))[:, None]
    valid_weight = (weight * observation.mask).sum((2, 3))
    whole = 2 * torch.pi * (WEIGHT_SIGMA / scale) ** 2
    # In float64, where no sum of finite pixels overflows.
    mean = (weight * observation.flux.double()).sum((2, 3)) / valid_weight.clamp(min=1e-9) / scale**2
    values = torch.zeros(len(observation), len(observation.card.bands))
    measured = torch.zeros(values.shape, dtype=torch.bool)
    names = [band.name for band in observation.card.bands]
    places = [names.index(name) for name in observation.bands]
    values[:, places] = torch.asinh(mean / SOFTENING).float()
    measured[:, places] = valid_weight > LEAST_COVERAGE * whole
    return torch.where(measured, values, 0.0), measured


def brightness_codes(values: Float[Tensor, "B C"], num_codes: int) -> Int[Tensor, "B C"]:
    """The bin of each compressed brightness."""
    low, high = RANGE
    return ((values - low) / (high - low) * num_codes).clamp(0, num_codes - 1).long()


def brightness_of_codes(codes: Int[Tensor, "B C"], num_codes: int) -> Float[Tensor, "B C"]:
    """Brightness in the middle of each bin, nanomaggies per square arcsec."""
    low, high = RANGE
    return SOFTENING * torch.sinh(low + (high - low) * (codes.clamp(0, num_codes - 1).double() + 0.5) / num_codes)
