"""Tiny tokenizers, and small simulated observations of every kind."""

import itertools

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import CoefficientsObservation
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.tokenizers.coefficients import CoefficientsTokenizer, CoefficientsTokenizerSettings
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings

NAMES = ("image/legacysurvey", "image/hsc", "spectrum/desi", "spectrum/sdss", "scalar/redshift")


@pytest.fixture(scope="session")
def sky():
    """Observations of the same six galaxies, by modality name; the coefficients are of six made-up stars."""
    settings = SkySettings(
        num_objects=6, modalities=NAMES, image_sizes={"image/legacysurvey": 24, "image/hsc": 32}, seed=5
    )
    return {o.modality.name: o for o in (*next(simulate_sky(settings)), made_up_coefficients(6, 7))}


def made_up_coefficients(num_objects, seed):
    """Coefficients of smooth shapes with errors of one per cent of the brightness."""
    rng = np.random.default_rng(seed)
    gaia = modality("coefficients/gaia_bp_rp")
    phase = np.linspace(0, 3, gaia.card.num_coefficients)
    shapes = np.cos(phase) + rng.normal(0, 0.3, (num_objects, 4)) @ np.cos(np.outer([1, 2, 3, 4], phase))
    brightness = 10 ** rng.uniform(2, 4, (num_objects, 1))
    values = brightness * (shapes + rng.normal(0, 0.01, shapes.shape))
    return CoefficientsObservation(gaia, range(num_objects), values, error=0.01 * brightness * np.ones_like(shapes))


def _lively(module):
    """Weights that let every part of an untrained tokenizer have its say: blocks start as the identity."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "to_output" in name or name.endswith("mlp.down.weight"):
                weight.normal_(std=0.2)
            elif "to_latent" in name:
                weight.mul_(3)
            elif "shift" in name:
                weight.normal_(std=0.05)
    return module.eval()


def small_image_tokenizer(sky, lively=True):
    """An image tokenizer that has seen six galaxies."""
    torch.manual_seed(1)
    settings = ImageTokenizerSettings(
        max_frequency=4, spectral_orders=(4, 3, 2), num_latents=24, num_details=6, width=32, num_blocks=1
    )
    tokenizer = ImageTokenizer(settings)
    images = itertools.cycle([sky["image/legacysurvey"], sky["image/hsc"]])
    for _ in tokenizer.learn_prior(images, rounds=3, batches_per_round=2):
        pass
    return _lively(tokenizer) if lively else tokenizer


@pytest.fixture(scope="session")
def image_tokenizer(sky):
    return small_image_tokenizer(sky)


@pytest.fixture(scope="session")
def spectrum_tokenizer():
    torch.manual_seed(2)
    return _lively(SpectrumTokenizer(SpectrumTokenizerSettings(width=32, num_blocks=1, num_windows=24, num_nodes=12)))


@pytest.fixture(scope="session")
def fine_spectrum_tokenizer():
    """With windows as narrow as the shipped ones, so that what is near a token is a small part of the spectrum."""
    torch.manual_seed(3)
    return _lively(SpectrumTokenizer(SpectrumTokenizerSettings(width=32, num_blocks=1)))


@pytest.fixture(scope="session")
def scalar_tokenizer():
    sample = np.random.default_rng(3).gamma(2.0, 0.1, 1000)
    return ScalarTokenizer(ScalarTokenizerSettings(num_codes=32)).fit({"scalar/redshift": sample})


@pytest.fixture(scope="session")
def coefficients_tokenizer():
    settings = CoefficientsTokenizerSettings(num_tokens=3, num_components=8)
    return CoefficientsTokenizer(settings).fit(lambda: iter([made_up_coefficients(400, 8)]))


@pytest.fixture(scope="session")
def tokenizers(image_tokenizer, spectrum_tokenizer, scalar_tokenizer, coefficients_tokenizer):
    return {
        "image": image_tokenizer,
        "spectrum": spectrum_tokenizer,
        "scalar": scalar_tokenizer,
        "coefficients": coefficients_tokenizer,
    }
