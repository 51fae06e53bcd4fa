"""A baseline of the same length: principal components of the pixels, as many as an object has tokens.

A component's coefficient is a real number where a token is an integer of some thousands, so the baseline is given more
bits; what it lacks is any knowledge of the instrument, and it serves one grid of pixels alone.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.observations import ImageObservation, SpectrumObservation


class PrincipalComponents:
    """Components of flux over typical noise, of observations on one grid; masked pixels count as zero."""

    def __init__(self, training: ImageObservation | SpectrumObservation, num_components: int):
        scaled = self._scaled(training)
        self.shape = training.flux.shape[1:]
        self.mean = scaled.mean(0)
        count = min(num_components, len(training) - 1, scaled.shape[1])
        generator = torch.Generator().manual_seed(0)
        # Randomised range finder with power iterations (Halko, Martinsson & Tropp 2011, arXiv 0909.4061).
        centred = scaled - self.mean
        sketch = centred @ torch.randn(scaled.shape[1], count, generator=generator)
        for _ in range(4):
            sketch = torch.linalg.qr(centred @ (centred.T @ sketch)).Q
        self.components: Float[Tensor, "S K"] = torch.linalg.qr(centred.T @ sketch).Q

    def fits(self, observation: ImageObservation | SpectrumObservation) -> bool:
        """Whether an observation is on the grid of the training objects."""
        return observation.flux.shape[1:] == self.shape

    def reconstruct(self, observation: ImageObservation | SpectrumObservation) -> Float[Tensor, "B *pixels"]:
        """Flux projected onto the components."""
        centred = self._scaled(observation) - self.mean
        scaled = (centred @ self.components) @ self.components.T + self.mean
        return scaled.view(observation.flux.shape) * self._noise(observation)

    def _scaled(self, observation: Any) -> Float[Tensor, "B S"]:
        return (torch.where(observation.mask, observation.flux, 0.0) / self._noise(observation)).flatten(1)

    def _noise(self, observation: Any) -> Tensor:
        """Typical noise of a pixel: the same for all objects, so that the components are of one unit."""
        if isinstance(observation, ImageObservation):
            typical = ImageObservation(
                observation.modality,
                ["0"],
                observation.flux.new_ones(1, *observation.flux.shape[1:]),
                observation.bands,
            )
            return typical.noise()[..., None, None]
        known = observation.wavelength[0].clamp(min=1.0).numpy()
        return torch.from_numpy(observation.card.noise_at(known)).float()
