"""How honest the demo's model is about what it has not seen: redshift distributions and spectra from one image.

A spectrum is compared with its samples in bins of wavelength, where noise is small. What was observed has noise and the
samples have none, so each gets noise of the size that the spectrum states: then a calibrated model's samples and the
observation are draws from one distribution.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.observations import SpectrumObservation
from ..models.calibration import coverage, crps, crps_of_samples, pit
from ..models.foundation import ScalarPrediction
from ..models.generated import GeneratedObservations
from .redshift_scores import LEVELS

NUM_BINS = 24
"""Bins of equal width in log wavelength in which spectra are compared; of DESI, each is some 4 per cent wide."""
BLUE, RED = slice(5, 11), slice(15, 21)
"""Bins between whose fluxes the colour is: some 4400 to 5700 and 6700 to 8700 angstrom."""
NUM_PIT_BINS = 10
PIXELS_SHOWN = 8
"""Pixels in one point of a curve of the report."""


def score_redshifts(
    prediction: ScalarPrediction, true: Float[np.ndarray, " B"], train: Float[np.ndarray, " A"]
) -> dict[str, Any]:
    """R2 of the median, coverage, PIT histogram; CRPS, and that of the redshifts of the training objects."""
    truth = torch.from_numpy(true)
    median = prediction.median().numpy()
    climatology = torch.from_numpy(train)[:, None].expand(-1, len(true))
    histogram, _ = np.histogram(pit(prediction, truth).numpy(), bins=NUM_PIT_BINS, range=(0, 1))
    return {
        "num_objects": len(true),
        "r2": float(1 - np.square(median - true).sum() / np.square(true - true.mean()).sum()),
        "crps": float(crps(prediction, truth).mean()),
        "crps_of_training": float(crps_of_samples(climatology, truth).mean()),
        "coverage": {str(level): coverage(prediction, truth, level) for level in LEVELS},
        "pit": histogram.tolist(),
    }


def score_spectra(
    generated: GeneratedObservations, observed: SpectrumObservation, train: SpectrumObservation
) -> dict[str, dict[str, Any]]:
    """Scores of the mean `flux` in bins of wavelength, and of the `colour`, on which many tokens must agree.

    R2 is that of the median: a mean would follow one wild sample of a thousand. CRPS beside that of the spectra of
    other objects, `train`, each as likely as the others.
    """
    flux, noise, measured = binned(observed.flux, observed)
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([binned(sample, observed)[0] for sample in generated.values()])
    samples = samples + noise * torch.randn(samples.shape, generator=generator)
    others = binned(train.flux, train)[0][:, None].expand(-1, len(flux), -1)
    scores = {
        "flux": _score(samples[:, measured], flux[measured], others[:, measured], generator),
        "colour": _score(_colour(samples), _colour(flux), _colour(others), generator),
    }
    return {name: {"num_objects": len(flux), "num_samples": len(samples), **score} for name, score in scores.items()}


def _score(
    samples: Float[Tensor, "S Q"], true: Float[Tensor, " Q"], others: Float[Tensor, "A Q"], generator: torch.Generator
) -> dict[str, Any]:
    # Of equal samples and truth, the rank of the truth is any of S + 1, all alike.
    rank = (samples < true).sum(0) + torch.rand(true.shape, generator=generator)
    place = rank / (len(samples) + 1)
    return {
        "r2": float(1 - (true - samples.median(0).values).square().sum() / (true - true.mean()).square().sum()),
        "crps": float(crps_of_samples(samples, true).mean()),
        "crps_of_training": float(crps_of_samples(others, true).mean()),
        "coverage": {str(level): float(((place - 0.5).abs() < level / 2).float().mean()) for level in LEVELS},
        "pit": torch.histc(place, NUM_PIT_BINS, 0, 1).long().tolist(),
    }


def _colour(flux: Float[Tensor, "... K"]) -> Float[Tensor, "..."]:
    """Red less blue flux over their sum."""
    blue, red = (flux[..., part].mean(-1) for part in (BLUE, RED))
    return (red - blue) / (red.abs() + blue.abs()).clamp(min=1e-6)


def binned(
    flux: Float[Tensor, "B L"], spectra: SpectrumObservation
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Mean of `flux` over the valid pixels of `spectra` in each bin, its noise, and in which bins there are any.

    `flux` is that of the spectra, or other numbers for the same pixels.
    """
    card = spectra.card.wavelength()
    edges = torch.from_numpy(np.geomspace(card[0], card[-1] * (1 + 1e-9), NUM_BINS + 1)[1:-1])
    index = torch.bucketize(spectra.wavelength.contiguous(), edges)
    zero = torch.zeros(len(flux), NUM_BINS)
    count = zero.scatter_add(1, index, spectra.mask.float())
    total = zero.scatter_add(1, index, torch.where(spectra.mask, flux, 0.0))
    variance = torch.where(spectra.mask, 1 / spectra.inverse_variance.clamp(min=1e-12), 0.0)
    noise = zero.scatter_add(1, index, variance).sqrt()
    return total / count.clamp(min=1), noise / count.clamp(min=1), count > 0


def curves(generated: GeneratedObservations, observed: SpectrumObservation) -> list[dict[str, Any]]:
    """Of a few objects, what was observed, the median, intervals and two samples, as plain data for a picture.

    These are the brightest one, that at the upper quartile and that in the middle. `row` is the object's place.
    """
    order = binned(observed.flux, observed)[0].mean(1).argsort(descending=True)
    rows = order[[0, len(order) // 4, len(order) // 2]]
    chosen = observed.select(rows)
    lines = {
        "wavelength": chosen.wavelength.float(),
        "observed": torch.where(chosen.mask, chosen.flux, torch.nan),
        "median": generated.quantile(0.5)[rows],
    }
    for level in LEVELS:
        low, high = generated.interval(level)
        lines |= {f"low_{level}": low[rows], f"high_{level}": high[rows]}
    samples = generated.values()[:, rows]
    lines |= {"sample_0": samples[0], "sample_1": samples[1]}
    coarse = {name: _coarse(line) for name, line in lines.items()}
    return [
        {"object": chosen.object_id[place], "row": row, **{name: line[place] for name, line in coarse.items()}}
        for place, row in enumerate(rows.tolist())
    ]


def _coarse(line: Float[Tensor, "B L"]) -> list[list[float]]:
    whole = line[:, : line.shape[1] // PIXELS_SHOWN * PIXELS_SHOWN].unflatten(1, (-1, PIXELS_SHOWN)).nanmean(2)
    return [[round(number, 3) for number in row] for row in whole.nan_to_num(0.0).tolist()]
