"""What `FoundationModel.generate` answers for images, spectra and coefficients: samples, and what they say together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.modalities import Modality
from ..data.observations import (
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    SpectrumObservation,
)
from ..tokenizers.token_grid import TokenGrid


@dataclass(frozen=True, eq=False)
class GeneratedObservations:
    """S samples of one modality for each of B objects, from their joint distribution given what was observed.

    `observations` holds the samples, each a batch of all objects, in the modality's unit and without noise; `tokens`
    what they were decoded from. A number of pixels has the shape of the modality's values: [bands, height, width] of an
    image, [wavelengths] of a spectrum, [coefficients].
    """

    modality: Modality
    object_id: tuple[str, ...]
    tokens: tuple[TokenGrid, ...]
    observations: tuple[Observation, ...]

    @property
    def mask(self) -> Bool[Tensor, "B ..."]:
        """The pixels that all samples have."""
        return torch.stack([observation.mask for observation in self.observations]).all(0)

    def values(self) -> Float[Tensor, "S B ..."]:
        """Flux, or coefficients, of every sample; zero where a sample has none."""
        return torch.stack([_values(observation) for observation in self.observations])

    def mean(self) -> Float[Tensor, "B ..."]:
        """The mean of the samples, pixel by pixel."""
        return self.values().mean(0)

    def quantile(self, share: float) -> Float[Tensor, "B ..."]:
        """The value below which another sample would lie with a chance of `share`, pixel by pixel.

        The k-th of S samples stands for k / (S + 1), between them it is linear; no less than the least of them.
        """
        ordered = self.values().sort(0).values
        last = len(ordered) - 1
        place = min(max(share * (last + 2) - 1, 0.0), float(last))
        below = int(place)
        return torch.lerp(ordered[below], ordered[min(below + 1, last)], place - below)

    def interval(self, level: float) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """The central interval that holds `level` of the samples, pixel by pixel: of the signal, without noise."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)


def blank_observation(
    modality: Modality, object_id: Sequence[str], like: Sequence[Observation], image_size: int | None
) -> Any:
    """An observation of these objects with the pixels that a generated one shall have; its values mean nothing.

    The pixels are those of the observation of this modality in `like`, which must have all the objects; or else, the
    grid of the spectrograph's card, or `image_size` pixels to each side in all bands of the camera. Raises
    ObservationError.
    """
    for template in like:
        if template.modality.name == modality.name:
            return _rows_of(template, object_id)
    num_objects = len(object_id)
    if modality.kind == "image":
        if image_size is None:
            raise ObservationError(
                f"{modality.name}: expected `image_size` (pixels to a side), or in `like` an image of the size that is "
                "wanted; found neither"
            )
        bands = [band.name for band in modality.card.bands]  # type: ignore[union-attr]
        return ImageObservation(modality, object_id, torch.zeros(num_objects, len(bands), *2 * (image_size,)), bands)
    if modality.kind == "spectrum":
        wavelength = torch.from_numpy(modality.card.wavelength())  # type: ignore[union-attr]
        blank = torch.ones(num_objects, len(wavelength))
        return SpectrumObservation(modality, object_id, blank, wavelength, blank)
    return CoefficientsObservation(modality, object_id, torch.zeros(num_objects, modality.card.num_coefficients))  # type: ignore[union-attr]


def _rows_of(template: Observation, object_id: Sequence[str]) -> Observation:
    rows = {name: row for row, name in enumerate(template.object_id)}
    for name in object_id:
        if name not in rows:
            raise ObservationError(f"{template.modality.name}: `like` must have every object, but lacks {name}")
    return template.select([rows[name] for name in object_id])


def _values(observation: Observation) -> Tensor:
    if isinstance(observation, ImageObservation | SpectrumObservation):
        return observation.flux
    return observation.values
