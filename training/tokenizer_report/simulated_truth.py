"""The noise-free truth of a dataset of the simulated sky: the same objects, rendered again without noise.

`simulation.json` beside the data keeps the settings of the sky, and an object's id its row: that is all it takes.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...data.observations import ImageObservation, ObservationError, SpectrumObservation
from ...data.simulation.observe_images import noiseless_images
from ...data.simulation.observe_spectra import noiseless_spectra
from ...data.simulation.record import RECORD, id_prefix
from ...data.simulation.sky import FIELD_MARGIN, SimulatedSky, SkySettings
from ...settings import validate_settings


class SimulatedTruth:
    """What simulated objects look like without noise."""

    def __init__(self, settings: SkySettings):
        self.sky = SimulatedSky(settings)

    @classmethod
    def of_dataset(cls, folder: str | Path) -> "SimulatedTruth | None":
        """The truth of the dataset in `folder`; None if it is not simulated. Raises SettingsError on a damaged record.

        Raises ObservationError if the record is not one of a simulated sky.
        """
        path = Path(folder) / RECORD
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ObservationError(f"{path}: expected the record of a simulated sky; {error!r}") from None
        return cls(validate_settings(SkySettings, content, str(path)))

    def pixels(self, observation: ImageObservation | SpectrumObservation) -> Float[Tensor, "B *pixels"]:
        """Flux without noise at the pixels of an observation of simulated objects, in its unit.

        Raises ObservationError for an object that is not of this sky.
        """
        objects = self.sky.objects(self.rows(observation.object_id))
        modality = observation.modality
        if isinstance(observation, SpectrumObservation):
            neighbours = self.sky.neighbours(objects, observation.card.fiber_diameter / 2 + FIELD_MARGIN)
            return torch.from_numpy(noiseless_spectra(objects, modality, neighbours)).float()
        size = observation.flux.shape[-1]
        neighbours = self.sky.neighbours(objects, size * observation.card.pixel_scale / math.sqrt(2) + FIELD_MARGIN)
        clean = noiseless_images(objects, modality, size, neighbours)
        return clean.flux[:, [clean.bands.index(band) for band in observation.bands]]

    def rows(self, object_id: Sequence[str]) -> np.ndarray:
        """Row in the sky of each object. Raises ObservationError for an id that is not of this sky."""
        prefix = id_prefix(self.sky.settings.seed)
        for name in object_id:
            if not (name.startswith(prefix) and name.removeprefix(prefix).isdecimal()):
                raise ObservationError(f"object {name}: expected an object of the simulated sky, {prefix}<row>")
        return np.array([int(name.removeprefix(prefix)) for name in object_id], np.int64)
