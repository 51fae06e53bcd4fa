"""Before a server is ready: made-up objects through the model, so that nothing is slow the first time for a caller."""

from collections.abc import Iterator

import numpy as np

from ..data.instruments import ImagingInstrument, Spectrograph
from ..data.modalities import Modality
from ..data.observations import ImageObservation, Observation, SpectrumObservation
from .service import Service

IMAGE_SIDE = 64
NUM_WAVELENGTHS = 2000
BATCH = 8
"""Objects of a batch: enough for a compiler to see that their number varies."""


def warm_up(service: Service) -> int:
    """Embed noise seen by each image and spectrum modality that the model was trained on, alone and as a batch.

    Returns how many objects were embedded; none of their vectors stays in the cache.
    """
    spaces, count = list(service.spaces()), 0
    for observation in _noise(service.model.modalities, min(BATCH, service.engine.settings.max_batch)):
        objects = [[observation.select([row])] for row in range(len(observation))]
        for space in spaces:
            for given in (objects[:1], objects[1:]):
                if given:
                    service.engine.embed(given, space, service.model.model_id)
                    count += len(given)
    service.engine.forget()
    return count


def _noise(modalities: tuple[Modality, ...], size: int) -> Iterator[Observation]:
    random = np.random.default_rng(0)
    for modality in modalities:
        card, names = modality.card, [str(row) for row in range(size + 1)]
        if isinstance(card, ImagingInstrument):
            bands = tuple(band.name for band in card.bands)
            flux = random.normal(size=(len(names), len(bands), IMAGE_SIDE, IMAGE_SIDE)).astype(np.float32)
            yield ImageObservation(modality, names, flux, bands)
        elif isinstance(card, Spectrograph):
            wavelength = np.linspace(card.wavelength_min, card.wavelength_max, NUM_WAVELENGTHS)
            flux = random.normal(1.0, 0.1, (len(names), NUM_WAVELENGTHS)).astype(np.float32)
            yield SpectrumObservation(modality, names, flux, wavelength, np.full_like(flux, 100.0))
