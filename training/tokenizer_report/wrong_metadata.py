"""Observations that lie about their instrument, to see whether a tokenizer listens to what it is told.

Pixels stay as they are; the numbers that say what was measured are another's. A tokenizer that reads these numbers must
do worse.
"""

import math
from typing import Any

import numpy as np
import torch

from ...data.instruments import Spectrograph
from ...data.modalities import Modality
from ...data.observations import ImageObservation, SpectrumObservation


def with_bands_shifted(observation: ImageObservation) -> ImageObservation:
    """The images, each band with wavelength, width, PSF and depth of the next one of the card, the last of the first.

    Raises ValueError for a camera of one band, which has no other numbers to take.
    """
    card = observation.card
    if len(card.bands) < 2:
        raise ValueError(f"{observation.modality.name}: expected several bands to exchange, found {card.bands[0].name}")
    following = dict(zip(card.bands, (*card.bands[1:], card.bands[0]), strict=True))
    bands = tuple(other.model_copy(update={"name": band.name}) for band, other in following.items())
    wrong = card.model_copy(update={"bands": bands})
    numbers: dict[str, Any] = {}
    for name in ("psf_fwhm", "depth"):
        given = getattr(observation, name)
        columns = []
        for band in observation.bands:
            other = following[card.band(band)]
            if other.name in observation.bands:
                columns.append(given[:, observation.bands.index(other.name)])
            else:
                columns.append(torch.full((len(observation),), getattr(other, name)))
        numbers[name] = torch.stack(columns, 1)
    return ImageObservation(
        Modality(observation.modality.name, wrong),
        observation.object_id,
        observation.flux,
        observation.bands,
        observation.inverse_variance,
        observation.mask,
        center=observation.center,
        ra=observation.ra,
        dec=observation.dec,
        **numbers,
    )


def on_grid_of(observation: SpectrumObservation, other: Spectrograph) -> SpectrumObservation:
    """The spectra, as if their pixels had the wavelengths and resolving power of another spectrograph.

    Its range is stretched over the pixels that hold a wavelength, evenly in its logarithm.
    """
    real = observation.wavelength > 0
    logarithm = observation.wavelength.clamp(min=1e-9).log()
    low = torch.where(real, logarithm, math.inf).amin(1, keepdim=True)
    high = torch.where(real, logarithm, -math.inf).amax(1, keepdim=True)
    share = ((logarithm - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    first, last = math.log(other.wavelength_min), math.log(other.wavelength_max)
    wavelength = torch.where(real, (first + share * (last - first)).exp(), observation.wavelength)
    power = torch.from_numpy(np.float32(other.resolving_power_at(wavelength.numpy())))
    wrong = other.model_copy(update={"name": observation.card.name})
    return SpectrumObservation(
        Modality(observation.modality.name, wrong),
        observation.object_id,
        observation.flux,
        wavelength,
        observation.inverse_variance,
        observation.mask,
        resolving_power=power,
        ra=observation.ra,
        dec=observation.dec,
    )
