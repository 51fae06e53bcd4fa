"""The foundation model as users meet it, and its checkpoint."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, ScalarObservation
from armillary.models.foundation import FoundationModel, ScalarPrediction, new_transformer
from armillary.tokenizers.pretrained import PretrainedError

SPACES = pytest.mark.parametrize("space", ["aligned", "encoder"])


# ---- embeddings ------------------------------------------------------------------------------------------------------


@SPACES
def test_each_object_is_embedded_as_it_is_alone(model, sky, space):
    observations = [sky["image/hsc"], sky["spectrum/desi"]]
    together = model.embed(observations, space)
    assert together.object_id == sky["image/hsc"].object_id
    for row in range(6):
        alone = model.embed([o.select([row]) for o in observations], space)
        assert alone.object_id == (together.object_id[row],)
        assert torch.allclose(alone.vectors[0], together.vectors[row], atol=1e-5)


@SPACES
def test_rows_follow_the_first_appearance_whatever_modalities_an_object_has(model, sky, space):
    images, spectra = sky["image/legacysurvey"].select([4, 1]), sky["spectrum/desi"].select([0, 1])
    mixed = model.embed([images, spectra], space)
    names = images.object_id
    assert mixed.object_id == (names[0], names[1], spectra.object_id[0])
    assert mixed.modalities == (
        ("image/legacysurvey",),
        ("image/legacysurvey", "spectrum/desi"),
        ("spectrum/desi",),
    )
    assert torch.allclose(mixed.vectors[0], model.embed([images.select([0])], space).vectors[0], atol=1e-5)
    assert torch.allclose(mixed.vectors[2], model.embed([spectra.select([0])], space).vectors[0], atol=1e-5)
    both = model.embed([images.select([1]), spectra.select([1])], space)
    assert torch.allclose(mixed.vectors[1], both.vectors[0], atol=1e-5)


@SPACES
def test_the_order_of_modalities_does_not_matter(model, sky, space):
    observations = [sky["image/hsc"], sky["spectrum/desi"], sky["image/legacysurvey"]]
    first, second = model.embed(observations, space), model.embed(observations[::-1], space)
    assert torch.allclose(first.vectors, second.vectors, atol=1e-5)


@SPACES
def test_the_batch_size_does_not_matter(model, sky, space):
    observations = [sky["image/hsc"], sky["spectrum/desi"]]
    first, second = model.embed(observations, space), model.embed(observations, space, batch_size=4)
    assert torch.allclose(first.vectors, second.vectors, atol=1e-5)


def test_aligned_vectors_have_unit_length_and_ignore_scalars(model, sky):
    plain = model.embed([sky["image/hsc"]])
    assert torch.allclose(plain.vectors.norm(dim=1), torch.ones(6), atol=1e-5)
    assert plain.vectors.shape == (6, model.embedding_size("aligned"))
    assert torch.equal(model.embed([sky["scalar/redshift"], sky["image/hsc"]]).vectors, plain.vectors)


def test_encoder_vectors_are_the_mean_over_valid_tokens(model, sky):
    observations = [sky["image/hsc"], sky["scalar/redshift"]]
    batch, _ = model.join([model.tokenize(o) for o in observations])
    encoded = model.transformer.encode(batch)
    found = model.embed(observations, "encoder")
    assert found.vectors.shape == (6, model.embedding_size("encoder"))
    for row in range(6):
        assert torch.allclose(found.vectors[row], encoded[row][batch.mask[row]].mean(0), atol=1e-5)


def test_different_objects_have_different_embeddings(model, sky):
    vectors = model.embed([sky["image/hsc"], sky["spectrum/desi"]]).vectors
    assert (torch.cdist(vectors, vectors) + 10 * torch.eye(6)).min() > 1e-3


def test_an_object_of_which_nothing_is_known_is_an_error_that_names_it(model, sky):
    ids = sky["scalar/redshift"].object_id
    missing = ScalarObservation(modality("scalar/redshift"), ids, [0.1] * 6, [True] * 5 + [False])
    with pytest.raises(ObservationError, match=f"object {ids[5]}: every value is missing"):
        model.embed([missing], "encoder")
    assert len(model.embed([missing, sky["image/hsc"]], "encoder")) == 6


def test_nothing_to_embed_is_an_error(model, sky):
    with pytest.raises(ObservationError, match="expected at least one observation, found none"):
        model.embed([])
    with pytest.raises(ObservationError, match=r"has the views {'image': \['image'\], .*found \['scalar/redshift'\]"):
        model.embed([sky["scalar/redshift"]])


def test_a_model_without_a_head_says_how_to_get_one(model, sky):
    model.head = None
    with pytest.raises(ObservationError, match="no alignment head: run `armillary align`, or use space='encoder'"):
        model.embed([sky["image/hsc"]])
    assert len(model.embed([sky["image/hsc"]], "encoder")) == 6


def test_an_unknown_vocabulary_is_an_error_that_lists_the_known(model, sky, transformer):
    rows = transformer.vocabulary_index
    magnitude = modality("scalar/legacysurvey_g")
    tokens = replace(model.tokenize(sky["scalar/redshift"]), modality=magnitude)
    with pytest.raises(ValueError, match="scalar/legacysurvey_g: the model has no vocabulary"):
        model.join([tokens])
    assert magnitude.vocabulary not in rows


# ---- predictions -----------------------------------------------------------------------------------------------------


def quantile_by_loop(prediction, row, share):
    """The place where the cumulative distribution, linear within bins, first reaches `share`."""
    total, cumulative = prediction.probabilities[row].double().sum().item(), 0.0
    for p, low, high in zip(prediction.probabilities[row].tolist(), prediction.low, prediction.high, strict=True):
        if cumulative + p >= share * total:
            return float(low + (share * total - cumulative) / p * (high - low))
        cumulative += p
    return float(prediction.high[-1])


def test_quantiles_equal_a_slow_reference():
    rng = np.random.default_rng(0)
    edges = torch.from_numpy(np.sort(rng.normal(size=19)))
    probabilities = torch.from_numpy(rng.dirichlet(np.full(20, 0.3), 5)).float()
    low, high = torch.cat([edges[:1], edges]), torch.cat([edges, edges[-1:]])
    prediction = ScalarPrediction(modality("scalar/redshift"), tuple("abcde"), probabilities, low, high)
    for share in (0.01, 0.16, 0.5, 0.84, 0.99):
        found = prediction.quantile(share)
        for row in range(5):
            assert found[row].item() == pytest.approx(quantile_by_loop(prediction, row, share), abs=1e-5)
    assert torch.equal(prediction.median(), prediction.quantile(0.5))
    bounds = prediction.interval(0.68)
    assert torch.equal(bounds[0], prediction.quantile(0.16))
    assert torch.allclose(bounds[1], prediction.quantile(0.84))


def test_quantiles_of_a_uniform_distribution_are_those_of_the_bins():
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    prediction = ScalarPrediction(modality("scalar/redshift"), ("a",), torch.full((1, 10), 0.1), edges[:-1], edges[1:])
    for share in (0.05, 0.33, 0.5, 0.9):
        assert prediction.quantile(share).item() == pytest.approx(share, abs=1e-6)


def test_a_prediction_is_a_distribution_over_the_bins_of_the_scalar(model, sky, tokenizers):
    prediction = model.predict_scalar([sky["image/hsc"]], "scalar/redshift")
    assert prediction.object_id == sky["image/hsc"].object_id
    assert prediction.probabilities.shape == (6, 16)
    assert torch.allclose(prediction.probabilities.sum(1), torch.ones(6), atol=1e-5)
    assert torch.equal(prediction.low, tokenizers["scalar"].bins(modality("scalar/redshift"))[0])
    for row in range(6):
        alone = model.predict_scalar([sky["image/hsc"].select([row])], "scalar/redshift")
        assert torch.allclose(alone.probabilities[0], prediction.probabilities[row], atol=1e-5)


def test_an_observation_of_the_target_itself_is_left_out(model, sky):
    given = [sky["image/hsc"], sky["scalar/stellar_mass"]]
    plain = model.predict_scalar(given, "scalar/redshift")
    peeking = model.predict_scalar([*given, sky["scalar/redshift"]], "scalar/redshift")
    assert torch.equal(plain.probabilities, peeking.probabilities)
    other = model.predict_scalar([sky["image/hsc"]], "scalar/redshift")
    assert not torch.allclose(plain.probabilities, other.probabilities, atol=1e-6)  # so the comparison can fail
    with pytest.raises(ObservationError, match="at least one observation other than scalar/redshift"):
        model.predict_scalar([sky["scalar/redshift"]], "scalar/redshift")


@pytest.mark.parametrize(
    "target, problem",
    [("scalar/sdss_u", "no modality 'scalar/sdss_u'; it was trained on"), ("image/hsc", "expected a scalar")],
)
def test_only_scalars_that_the_model_knows_are_predicted(model, sky, target, problem):
    with pytest.raises(LookupError, match=problem):
        model.predict_scalar([sky["spectrum/desi"]], target)


def test_the_distribution_is_the_one_the_training_loss_scores(model, sky):
    given, target = model.tokenize(sky["image/hsc"]), model.tokenize(sky["scalar/redshift"])
    inputs, _ = model.join([given])
    targets, _ = model.join([target])
    losses = model.transformer(inputs, targets).token_losses[:, 0]
    probabilities = model.predict_scalar([sky["image/hsc"]], "scalar/redshift").probabilities
    assert torch.allclose(-probabilities.gather(1, target.codes)[:, 0].log(), losses, atol=1e-4)


@pytest.mark.parametrize("name", ["image/hsc", "spectrum/desi", "scalar/redshift"])
def test_reconstructions_lie_on_the_grid_of_the_observation(model, sky, name):
    back = model.reconstruct(sky[name])
    assert back.object_id == sky[name].object_id
    assert back.mask.shape == sky[name].mask.shape
    assert back.mask[sky[name].mask].all()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_saved_model_gives_identical_embeddings_predictions_and_record(model, sky, tmp_path):
    model_id = model.save(tmp_path / "checkpoint")
    loaded = FoundationModel.load(tmp_path / "checkpoint")
    assert loaded.model_id == model.model_id == model_id
    assert loaded.modalities == model.modalities
    assert loaded.record == {"made": "by a test"}
    given = [sky["image/hsc"], sky["spectrum/desi"]]
    for space in ("aligned", "encoder"):
        assert torch.equal(loaded.embed(given, space).vectors, model.embed(given, space).vectors)
    for target in ("scalar/redshift", "scalar/stellar_mass"):
        first, second = (m.predict_scalar(given, target) for m in (model, loaded))
        assert torch.equal(first.probabilities, second.probabilities)
        assert torch.equal(first.low, second.low)


def test_the_id_names_the_weights(model, tmp_path):
    first, again = model.save(tmp_path / "a"), model.save(tmp_path / "b")
    assert first == again
    model.head = None
    assert model.save(tmp_path / "c") != first
    assert FoundationModel.load(tmp_path / "c").head is None


def test_a_checkpoint_holds_safetensors_and_json_alone(model, tmp_path):
    model.save(tmp_path / "checkpoint")
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    "weights",
    [
        "transformer/model.safetensors",
        "alignment/model.safetensors",
        *(f"tokenizers/{kind}/model.safetensors" for kind in ("image", "spectrum", "scalar")),
    ],
)
def test_a_flipped_byte_in_a_weight_file_is_refused(model, tmp_path, weights):
    model.save(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / weights
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match="the weights are those of"):
        FoundationModel.load(tmp_path / "checkpoint")


def test_a_folder_that_is_no_whole_checkpoint_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainedError, match=r"checkpoint\.json: expected the description of a checkpoint"):
        FoundationModel.load(tmp_path / "empty")
    model.save(tmp_path / "c")
    path = tmp_path / "c" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(PretrainedError, match="expected format 1, found 99"):
        FoundationModel.load(tmp_path / "c")


def test_a_new_transformer_knows_each_vocabulary_once_with_its_features(sky, tokenizers):
    transformer = new_transformer("nano", tokenizers, [o.modality for o in sky.values()])
    assert list(transformer.vocabulary_index) == ["image", "scalar/redshift", "scalar/stellar_mass", "spectrum"]
    spectra = modality("spectrum/desi")
    size = tokenizers["spectrum"].vocabulary_size(spectra)
    assert list(transformer.config.vocabularies.values()) == [5**3 + 1024 + 1024 + 320, 16, 16, size]
    features = tokenizers["spectrum"].code_features(spectra)
    assert torch.equal(transformer.codes.features[-size:, : features.shape[1]], features)
