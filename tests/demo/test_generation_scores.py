"""Scores of generated spectra and predicted redshifts: made-up predictions of known quality get what they deserve."""

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import SpectrumObservation
from armillary.demo.generation_scores import NUM_BINS, binned, score_redshifts, score_spectra
from armillary.models.foundation import ScalarPrediction
from armillary.models.generated import GeneratedObservations

DESI = modality("spectrum/desi")
WAVELENGTH = np.linspace(3700.0, 9700.0, 480)
NOISE = 0.4


def spectra(flux, noise=0.0, seed=0):
    flux = flux + noise * torch.randn(flux.shape, generator=torch.Generator().manual_seed(seed))
    ids = [str(i) for i in range(len(flux))]
    return SpectrumObservation(DESI, ids, flux, WAVELENGTH, torch.full_like(flux, NOISE**-2))


def tilted(levels, slopes):
    x = torch.linspace(-1, 1, len(WAVELENGTH))
    return levels[..., None] * (1 + slopes[..., None] * x)


@pytest.fixture(scope="module")
def calibrated():
    """Each object's level and slope are drawn about a centre of its own, and samples about the same one."""
    generator = torch.Generator().manual_seed(10)
    centre = 2 + torch.rand(400, generator=generator) * 4
    levels = centre + 0.5 * torch.randn(20, 400, generator=generator)
    slopes = 0.2 + 0.05 * torch.randn(20, 400, generator=generator)
    return tilted(levels, slopes)


def scores(samples, observed):
    made = tuple(spectra(flux) for flux in samples)
    ids = tuple(made[0].object_id)
    return score_spectra(GeneratedObservations(DESI, ids, (), made), observed, observed)


def test_calibrated_samples_cover_as_often_as_they_say(calibrated):
    found = scores(calibrated[1:], spectra(calibrated[0], NOISE))
    for what in ("flux", "colour"):
        assert found[what]["coverage"]["0.68"] == pytest.approx(0.68, abs=0.1)
        assert found[what]["coverage"]["0.95"] == pytest.approx(0.95, abs=0.04)
        assert sum(found[what]["pit"]) == (400 * NUM_BINS if what == "flux" else 400)
    assert found["flux"]["r2"] > 0.7
    assert found["flux"]["crps"] < 0.6 * found["flux"]["crps_of_training"]


def test_samples_that_are_too_sure_cover_too_little(calibrated):
    middle = calibrated[1:].mean(0)
    found = scores(middle + 0.3 * (calibrated[1:] - middle), spectra(calibrated[0], NOISE))
    assert found["flux"]["coverage"]["0.68"] < 0.5
    assert found["colour"]["coverage"]["0.68"] < 0.6


def test_bins_hold_means_of_valid_pixels_with_their_noise():
    flux = torch.rand(2, len(WAVELENGTH), generator=torch.Generator().manual_seed(2))
    mask = torch.rand(flux.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    observed = SpectrumObservation(DESI, "ab", flux, WAVELENGTH, torch.full_like(flux, NOISE**-2), mask)
    means, noise, measured = binned(observed.flux, observed)
    card = DESI.card.wavelength()
    edges = np.geomspace(card[0], card[-1], NUM_BINS + 1)
    for place in range(NUM_BINS):
        inside = torch.from_numpy((edges[place] < WAVELENGTH) & (edges[place + 1] >= WAVELENGTH))
        for row in range(2):
            chosen = flux[row][inside & mask[row]]
            assert measured[row, place] == (len(chosen) > 0)
            if len(chosen):
                assert means[row, place].item() == pytest.approx(chosen.mean().item(), rel=1e-5)
                assert noise[row, place].item() == pytest.approx(NOISE / len(chosen) ** 0.5, rel=1e-5)


def test_redshifts_that_tell_more_than_the_training_set_score_better():
    rng = np.random.default_rng(0)
    true, train = rng.uniform(0, 1, 300), rng.uniform(0, 1, 500)
    edges = torch.linspace(0, 1, 51, dtype=torch.float64)
    centre = torch.from_numpy(true + rng.normal(0, 0.1, 300))[:, None]
    width = torch.exp(-0.5 * ((edges[:-1] + 0.01 - centre) / 0.1) ** 2)
    probabilities = (width / width.sum(1, keepdim=True)).float()
    ids = tuple(str(i) for i in range(300))
    found = score_redshifts(
        ScalarPrediction(modality("scalar/redshift"), ids, probabilities, edges[:-1], edges[1:]), true, train
    )
    assert found["coverage"]["0.68"] == pytest.approx(0.68, abs=0.08)
    assert found["crps"] < 0.5 * found["crps_of_training"]
    assert found["crps_of_training"] == pytest.approx(1 / 6, abs=0.02)  # E|X - y| - E|X - X'| / 2 = 1/3 - 1/6
    assert sum(found["pit"]) == 300
