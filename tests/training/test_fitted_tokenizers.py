"""Tokenizers that are fitted, from a dataset on disk to a model that learns from their tokens."""

import numpy as np
import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.data.token_store import TokenStore
from armillary.models.foundation import FoundationModel
from armillary.settings import load_settings
from armillary.tokenizers.coefficients import CoefficientsTokenizer, CoefficientsTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.training.pretrain import PretrainSettings, pretrain
from armillary.training.tokenize import TokenizeSettings, tokenize
from armillary.training.tokenizers import TrainTokenizerSettings, load_tokenizers, train_tokenizer

GAIA, MAGNITUDE = "coefficients/gaia_bp_rp", "scalar/gaia_g"
SIZES = {"num_tokens": 3, "num_codes": 32, "num_amplitudes": 64, "num_components": 12}


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """Dataset folder: stars with BP/RP spectra and magnitudes, some without either."""
    folder = tmp_path_factory.mktemp("stars")
    sky = SkySettings(num_objects=170, modalities=(GAIA, MAGNITUDE), star_fraction=0.95, magnitude_limit=17.3, seed=4)
    write_dataset(folder, next(simulate_sky(sky)))
    return folder


@pytest.fixture(scope="module")
def folder(stars, tmp_path_factory):
    """Tokenizers by kind."""
    folder = tmp_path_factory.mktemp("fitted")
    for kind, sizes in (("coefficients", SIZES), ("scalar", {"num_codes": 32, "num_error_codes": 10})):
        given = {"kind": kind, "data": str(stars), "run": str(folder / kind), kind: sizes}
        train_tokenizer(TrainTokenizerSettings.model_validate(given))
    return folder


def test_the_coefficients_tokenizer_is_left_in_the_run_folder_with_its_settings(stars, folder):
    settings = load_settings(TrainTokenizerSettings, folder / "coefficients" / "settings.yaml")
    assert settings.coefficients == CoefficientsTokenizerSettings(**SIZES)
    found = load_tokenizers(folder)["coefficients"]
    batches = list(ObservationDataset(stars).batches(GAIA, 50))
    expected = CoefficientsTokenizer(settings.coefficients).fit(lambda: iter(batches))
    assert found.settings == expected.settings
    whole = ObservationDataset(stars).read(GAIA)
    assert torch.equal(found.encode(whole).codes, expected.encode(whole).codes)


@pytest.mark.parametrize("kind, name, sizes", [("coefficients", GAIA, SIZES), ("scalar", MAGNITUDE, {"num_codes": 8})])
def test_objects_that_are_held_out_are_never_learned_from(stars, tmp_path, kind, name, sizes):
    dataset = ObservationDataset(stars)
    ids = dataset.object_ids(name)
    given = {"kind": kind, "data": str(stars), kind: sizes, "held_out": str(tmp_path / "ids")}
    rest = dataset.read(name, ids[12:])
    if kind == "scalar":
        expected = ScalarTokenizer(ScalarTokenizerSettings(**sizes)).fit_stream([rest])
    else:
        expected = CoefficientsTokenizer(CoefficientsTokenizerSettings(**sizes)).fit(lambda: iter([rest]))
    for hidden, is_same in ((ids[:12], True), ([], False)):
        (tmp_path / "ids").write_text("\n".join(hidden))
        train_tokenizer(TrainTokenizerSettings.model_validate({**given, "run": str(tmp_path / kind)}))
        found = load_tokenizers(tmp_path)[kind]
        assert torch.equal(found.encode(rest).codes, expected.encode(rest).codes) == is_same
    (tmp_path / "ids").write_text("\n".join(ids))
    with pytest.raises(ValueError, match=r"every object of .* is held out"):
        train_tokenizer(TrainTokenizerSettings.model_validate({**given, "run": str(tmp_path / "all")}))


def test_a_model_learns_from_tokens_of_coefficients_and_scalars_with_errors(stars, folder, tmp_path):
    store = tmp_path / "tokens"
    tokenize(TokenizeSettings(data=str(stars), tokenizers=str(folder), tokens=str(store)))
    opened = TokenStore(store)
    assert {m.name: opened.num_tokens(m.name) for m in opened.modalities} == {GAIA: 4, MAGNITUDE: 2}
    settings = PretrainSettings.model_validate(
        {
            "tokens": str(store),
            "tokenizers": str(folder),
            "run": str(tmp_path / "run"),
            "size": "nano",
            "num_inputs": 4,
            "num_targets": 2,
            "loop": {"steps": 6, "batch_size": 8, "warmup_steps": 2, "log_every": 3, "precision": "32-true"},
        }
    )
    finished = pretrain(settings)
    assert np.isfinite(finished.metrics["loss"])
    model = FoundationModel.load(tmp_path / "run" / "checkpoint")
    spectra = ObservationDataset(stars).read(GAIA).select(slice(0, 3))
    assert model.reconstruct(spectra).values.shape == (3, 110)
    prediction = model.predict_scalar([spectra], MAGNITUDE)
    low, high = model.tokenizers["scalar"].bins(model.modality(MAGNITUDE))
    assert prediction.probabilities.shape == (3, len(low))
    assert torch.allclose(prediction.probabilities.sum(1), torch.ones(3))
    assert (prediction.median() >= low[0]).all()
    assert (prediction.median() <= high[-1]).all()
