"""Tiny tokenizers and a tiny masked transformer, and small simulated observations."""

import numpy as np
import pytest
import torch

from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.models.alignment import AlignmentHead, AlignmentHeadSettings
from armillary.models.foundation import FoundationModel
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings

NAMES = ("image/legacysurvey", "image/hsc", "spectrum/desi", "scalar/redshift", "scalar/stellar_mass")


@pytest.fixture(scope="session")
def sky():
    """Observations of the same six galaxies, by modality name."""
    settings = SkySettings(
        num_objects=6, modalities=NAMES, image_sizes={"image/legacysurvey": 24, "image/hsc": 32}, seed=5
    )
    return {o.modality.name: o for o in next(simulate_sky(settings))}


@pytest.fixture(scope="session")
def tokenizers():
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    scalars = {"scalar/stellar_mass": rng.normal(10, 1, 500), "scalar/redshift": rng.gamma(2.0, 0.1, 500)}
    return {
        "image": ImageTokenizer(
            ImageTokenizerSettings(
                max_frequency=3, num_latents=12, num_details=2, digits_per_token=3, width=32, num_blocks=1
            )
        ).eval(),
        "spectrum": SpectrumTokenizer(
            SpectrumTokenizerSettings(
                width=32, num_blocks=1, num_windows=12, num_nodes=8, levels=(5, 5, 3), num_amplitudes=32
            )
        ).eval(),
        "scalar": ScalarTokenizer(ScalarTokenizerSettings(num_codes=16)).fit(scalars),
    }


def lively(module):
    """Let every block of an untrained model have its say: they start as the identity."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith(("attention.to_output.weight", "mlp.down.weight")):
                weight.normal_(std=0.1)
    return module.eval()


@pytest.fixture(scope="session")
def transformer(sky, tokenizers):
    torch.manual_seed(2)
    features = {
        o.modality.vocabulary: tokenizers[o.modality.kind].code_features(o.modality) for o in reversed(sky.values())
    }
    config = MaskedTransformerConfig(
        encoder_blocks=1,
        decoder_blocks=1,
        width=32,
        num_heads=4,
        vocabularies={name: len(values) for name, values in features.items()},
        code_feature_sizes={name: values.shape[1] for name, values in features.items()},
    )
    model = MaskedTransformer(config)
    model.codes.set_features(features)
    return lively(model)


@pytest.fixture(scope="session")
def head():
    torch.manual_seed(3)
    return lively(AlignmentHead(AlignmentHeadSettings(input_width=32, aligned_width=16)))


@pytest.fixture
def model(sky, tokenizers, transformer, head):
    return FoundationModel(
        tokenizers, transformer, tuple(o.modality for o in sky.values()), head, {"made": "by a test"}
    )


@pytest.fixture
def grids(sky, tokenizers):
    return [tokenizers[o.modality.kind].encode(o) for o in sky.values()]
