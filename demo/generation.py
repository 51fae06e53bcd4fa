"""The demo's generated spectra and redshifts of held-out simulated objects, each from one image, and their scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..data.dataset import ObservationDataset
from ..data.observations import ImageObservation, ScalarObservation, SpectrumObservation
from ..models.foundation import FoundationModel, ScalarPrediction
from ..models.generated import GeneratedObservations
from .generation_scores import curves, score_redshifts, score_spectra
from .settings import GenerationStageSettings

REDSHIFT, IMAGE, SPECTRUM = "scalar/redshift", "image/legacysurvey", "spectrum/desi"
NUM_TRAIN = 300
"""Spectra of training objects that stand for knowing nothing of an object."""
SHARES = np.linspace(0.01, 0.99, 25)
"""Of the probability, between which a picture draws the density of a redshift."""


def measure_generation(
    model: FoundationModel, dataset: ObservationDataset, settings: GenerationStageSettings, parts: Mapping[str, str]
) -> dict[str, Any]:
    """Scores of redshift distributions and of spectra from an image, in stages and in one pass, and a few to show."""
    have = set(dataset.object_ids(IMAGE)) & set(dataset.object_ids(SPECTRUM)) & set(dataset.object_ids(REDSHIFT))
    ids = {part: sorted(i for i in have if i.startswith("sim-") and parts.get(i) == part) for part in ("train", "test")}
    images, redshifts = dataset.read(IMAGE, ids["test"]), dataset.read(REDSHIFT, ids["test"])
    train = dataset.read(REDSHIFT, ids["train"])
    assert isinstance(redshifts, ScalarObservation)
    assert isinstance(train, ScalarObservation)
    prediction = model.generate([images], [REDSHIFT])[REDSHIFT]
    assert isinstance(prediction, ScalarPrediction)
    true = redshifts.values.numpy().astype(np.float64)

    few = ids["test"][: settings.num_objects]
    observed, others = dataset.read(SPECTRUM, few), dataset.read(SPECTRUM, ids["train"][:NUM_TRAIN])
    assert isinstance(observed, SpectrumObservation)
    assert isinstance(others, SpectrumObservation)
    seen = images.select(range(len(few)))
    assert isinstance(seen, ImageObservation)
    spectra = {}
    for num_stages in (1, settings.num_stages):
        generated = _spectra(model, seen, observed, settings, num_stages)
        spectra[str(num_stages)] = score_spectra(generated, observed, others)
    shown = curves(generated, observed)
    rows = [one["row"] for one in shown]
    quantiles = torch.stack([prediction.quantile(float(share)) for share in SHARES], 1)[rows].tolist()
    return {
        "redshift": score_redshifts(prediction, true, train.values.numpy().astype(np.float64)),
        "spectra": spectra,
        "shown": [
            {**one, "redshift": float(true[one["row"]]), "quantiles": of_one}
            for one, of_one in zip(shown, quantiles, strict=True)
        ],
    }


def _spectra(
    model: FoundationModel,
    images: ImageObservation,
    spectra: SpectrumObservation,
    settings: GenerationStageSettings,
    num_stages: int,
) -> GeneratedObservations:
    """Samples on the pixels of the observed spectra, whose flux the model does not see."""
    found = model.generate(
        [images], [SPECTRUM], num_samples=settings.num_samples, num_stages=num_stages, like=[spectra]
    )[SPECTRUM]
    assert isinstance(found, GeneratedObservations)
    return found
