"""Brightness tokens of an image: one for each band of its camera, so that colours survive the coarse codes of patches.

The brightness is the mean surface brightness about the object under a Gaussian weight, in nanomaggies per square
arcsec, compressed by arcsinh like a magnitude (Lupton, Gunn & Szalay 1999, astro-ph/9903081) and cut into even bins. It
is physical: two cameras give the same object nearly the same codes in bands of one wavelength.
"""

import numpy as np
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
    mean = (weight * observation.flux).sum((2, 3)) / valid_weight.clamp(min=1e-9) / scale**2
    values = torch.zeros(len(observation), len(observation.card.bands))
    measured = torch.zeros(values.shape, dtype=torch.bool)
    names = [band.name for band in observation.card.bands]
    places = [names.index(name) for name in observation.bands]
    values[:, places] = torch.asinh(mean / SOFTENING)
    measured[:, places] = valid_weight > LEAST_COVERAGE * whole
    return torch.where(measured, values, 0.0), measured


def brightness_codes(values: Float[Tensor, "B C"], num_codes: int) -> Int[Tensor, "B C"]:
    """The bin of each compressed brightness."""
    low, high = RANGE
    return ((values - low) / (high - low) * num_codes).long().clamp(0, num_codes - 1)


def brightness_of_codes(codes: Int[Tensor, "B C"], num_codes: int) -> Float[Tensor, "B C"]:
    """The middle of each bin; codes outside [0, num_codes) count as the nearest."""
    low, high = RANGE
    return low + (high - low) * (codes.clamp(0, num_codes - 1) + 0.5) / num_codes


def brightness_at(
    values: Float[Tensor, "B C"], measured: Bool[Tensor, "B C"], wavelengths: list[float], wanted: list[float]
) -> Float[Tensor, "B W"]:
    """Brightness at other wavelengths: linear in their logarithm between measured bands, constant beyond them.

    Zero where an object has no measured band.
    """
    known, goal = np.log(wavelengths), np.log(wanted)
    found = np.zeros((len(values), len(goal)), dtype=np.float32)
    patterns, pattern_of = np.unique(measured.numpy(), axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        rows = np.flatnonzero(pattern_of.reshape(-1) == index)
        if pattern.any():
            order = np.argsort(known[pattern])
            # Interpolation is linear in the values: its matrix is that of the unit vectors.
            unit = np.eye(int(pattern.sum()))[:, order]
            matrix = np.stack([np.interp(goal, known[pattern][order], row) for row in unit])
            found[rows] = values.numpy()[rows][:, pattern] @ matrix
    return torch.from_numpy(found)
