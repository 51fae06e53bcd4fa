"""Gaia's coefficients to tokens and back, on simulated stars and quasars that were not learned from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.data.modalities import Modality, modality
from armillary.data.observations import CoefficientsObservation, ObservationError
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.data.stacking import stack
from armillary.settings import SettingsError, validate_settings
from armillary.tokenizers.coefficients import CoefficientsTokenizer, CoefficientsTokenizerSettings
from armillary.tokenizers.pretrained import PretrainedError
from armillary.tokenizers.spectral_shapes import ShapeMoments
from armillary.tokenizers.token_grid import POSITION_FEATURES

GAIA = modality("coefficients/gaia_bp_rp")
FIELDS = ("codes", "mask", "positions", "instrument")


def simulate(num_objects, seed, stars):
    sky = SkySettings(
        num_objects=num_objects,
        modalities=(GAIA.name,),
        star_fraction=stars,
        quasar_fraction=1 - stars,
        magnitude_limit=17.5,
        seed=seed,
    )
    found = stack([observation for batch in simulate_sky(sky) for observation in batch])
    return found.select(found.mask.any(1).nonzero()[:, 0])


@pytest.fixture(scope="module")
def learned_from():
    return simulate(1000, 1, 0.8)


@pytest.fixture(scope="module")
def stars():
    return simulate(200, 2, 1.0)


@pytest.fixture(scope="module")
def fitted(learned_from):
    return fit(learned_from)


def fit(observation, **sizes):
    batches = [observation.select(rows) for rows in torch.arange(len(observation)).split(500)]
    return CoefficientsTokenizer(CoefficientsTokenizerSettings(**sizes)).fit(lambda: iter(batches))


def chi2(found, observation):
    """Per coefficient, of each object."""
    return ((found.values - observation.values) / observation.error).double().square().mean(1)


def observe(values, error=None, mask=None, like=GAIA):
    return CoefficientsObservation(like, range(len(values)), values, mask, error)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in FIELDS)


def test_held_out_stars_come_back_within_their_errors(fitted, stars):
    tokens = fitted.encode(stars)
    assert tokens.codes.shape == (len(stars), 8)
    back = fitted.decode(tokens, stars)
    found = chi2(back, stars)
    assert found.median() < 1
    assert found.mean() < 1.6
    values = stars.values.double()
    left = (back.values - values).square().sum() / (values - values.mean(0)).square().sum()
    assert 1 - left > 0.999


def test_more_tokens_lose_less(learned_from, stars):
    found = []
    for num_tokens in (1, 2, 4, 7):
        tokenizer = fit(learned_from, num_tokens=num_tokens, num_codes=512)
        found.append(chi2(tokenizer.decode(tokenizer.encode(stars)), stars).mean().item())
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 4


def test_the_error_says_how_far_measured_coefficients_lie(fitted, learned_from):
    back = fitted.decode(fitted.encode(learned_from))
    pull = ((back.values - learned_from.values) / back.error).double().square().mean()
    assert 0.3 < pull < 1.5


def test_every_code_lies_in_the_vocabulary_and_has_features_of_its_own(fitted, learned_from):
    tokens = fitted.encode(learned_from)
    size = fitted.vocabulary_size(GAIA)
    assert size <= 512 + 7 * 1024
    features = fitted.code_features(GAIA)
    assert features.shape[0] == size
    assert len(features.unique(dim=0)) == size
    begins = torch.tensor(fitted._offsets())
    assert (tokens.codes[:, 0] < 512).all()
    assert (tokens.codes[:, 1:] >= begins[:-1]).all()
    assert (tokens.codes[:, 1:] < begins[1:]).all()
    assert (tokens.codes[:, 1].unique().numel()) > 100


def test_tokens_are_told_apart_by_their_place(fitted, stars):
    places = fitted.encode(stars.select([0])).positions[0]
    assert places[:, POSITION_FEATURES.index("detail")].tolist() == list(range(8))
    assert len(places.unique(dim=0)) == 8


def test_codes_of_another_tokenizer_are_an_error_that_names_the_object(fitted, learned_from, stars):
    tokens = fitted.encode(stars)
    with pytest.raises(ObservationError, match="gaia_bp_rp: expected 3 tokens of each object, found 8"):
        fit(learned_from, num_tokens=2).decode(tokens)
    codes = tokens.codes.clone()
    codes[4, 2] = 0
    with pytest.raises(ObservationError, match=rf"object {stars.object_id[4]}: expected a code in .* token 2, found 0"):
        fitted.decode(replace(tokens, codes=codes))
    with pytest.raises(ObservationError, match="scalar/redshift: expected a modality of kind coefficients"):
        fitted.decode(replace(tokens, modality=modality("scalar/redshift")), GAIA)


def test_no_objects_have_no_tokens(fitted, stars):
    tokens = fitted.encode(stars.select([]))
    assert tokens.codes.shape == (0, 8)
    assert len(fitted.decode(tokens)) == 0


# Amplitude


@pytest.mark.parametrize("factor", [0.1, 3.0, 1e4])
def test_a_spectrum_that_is_brighter_by_a_factor_has_the_amplitude_brighter_by_it(fitted, stars, factor):
    scaled = observe(stars.values * factor, stars.error * factor)
    first, second = fitted.encode(stars), fitted.encode(scaled)
    steps = (second.codes[:, 0] - first.codes[:, 0]).double() * fitted.step
    assert (steps - np.log10(factor)).abs().max() <= fitted.step * 1.01
    found = chi2(fitted.decode(second), scaled)
    assert found.median() < 1.2


def test_an_amplitude_beyond_the_range_is_an_error_that_names_the_object(fitted, stars):
    values = stars.values[:2].clone()
    values[1] *= 1e8
    with pytest.raises(ObservationError, match=r"coefficients/gaia_bp_rp, object bright: expected an amplitude .* 1e9"):
        fitted.encode(CoefficientsObservation(GAIA, ["faint", "bright"], values, error=stars.error[:2]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-(2**26), 2**26, width=32), min_size=110, max_size=110), st.floats(0, 1e6, width=32))
def test_any_coefficients_give_codes_of_the_vocabulary_and_finite_ones_back(fitted, values, error):
    observation = observe(np.array([values], np.float32), np.full((1, 110), error, np.float32))
    tokens = fitted.encode(observation)
    assert tokens.codes.min() >= 0
    assert tokens.codes.max() < fitted.vocabulary_size(GAIA)
    back = fitted.decode(tokens)
    assert back.values.isfinite().all()
    assert (back.error > 0).all()


# Missing and noisy coefficients


def test_the_components_are_those_of_weighted_least_squares_with_a_prior(fitted, stars):
    mask = torch.rand(stars.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    part = replace(stars, mask=mask, values=torch.where(mask, stars.values, 0.0)).select(slice(0, 5))
    amplitude = torch.tensor([300.0, 500.0, 800.0, 1000.0, 200.0], dtype=torch.float64)
    found = fitted._latents(part, amplitude).numpy()
    columns = fitted._columns(fitted._bin_spread()).numpy()
    for row in range(5):
        valid = part.mask[row].numpy()
        scale = amplitude[row].item()
        deviation = np.sqrt((part.error[row].double().numpy() / scale) ** 2 + fitted.rest.numpy())[valid]
        residual = (part.values[row].double().numpy() / scale - fitted.mean.numpy())[valid]
        matrix = np.concatenate([columns[valid] / deviation[:, None], np.eye(columns.shape[1])])
        right = np.concatenate([residual / deviation, np.zeros(columns.shape[1])])
        assert found[row] == pytest.approx(np.linalg.lstsq(matrix, right)[0], abs=1e-7)


def test_what_lies_under_the_mask_changes_no_token(fitted, stars):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(stars.mask.shape, generator=generator) > 0.3
    noise = 1e4 * torch.randn(mask.shape, generator=generator)
    first = fitted.encode(observe(stars.values, stars.error, mask))
    hidden = torch.where(mask, stars.values, noise), torch.where(mask, stars.error, noise)
    assert same(first, fitted.encode(observe(*hidden, mask)))
    unknown = torch.where(mask, stars.values, torch.nan), torch.where(mask, stars.error, torch.nan)
    assert same(first, fitted.encode(observe(*unknown, mask)))
    assert not torch.equal(first.codes, fitted.encode(stars).codes)  # so the comparison can fail


def test_a_missing_arm_is_filled_in_by_what_stars_look_like(fitted, stars):
    mask = torch.zeros_like(stars.mask)
    mask[:, :55] = True
    back = fitted.decode(fitted.encode(observe(stars.values, stars.error, mask)))
    assert back.mask.all()
    whole = stars.values[:, 55:].double().norm(dim=1)
    error = (back.values - stars.values)[:, 55:].double().norm(dim=1) / whole
    assert error.median() < 0.05
    # A spectrum of mean shape, with the amplitude that BP alone asks for, is far worse.
    bp = stars.values[:, :55].double()
    scale = (bp @ fitted.mean[:55]) / fitted.mean[:55].square().sum()
    plain = (scale[:, None] * fitted.mean[55:] - stars.values[:, 55:]).norm(dim=1) / whole
    assert error.median() < plain.median() / 4


def test_a_coefficient_without_meaning_counts_for_nothing(fitted, stars):
    spoiled, error = stars.values.clone(), stars.error.clone()
    spoiled[:, 3] += 100
    error[:, 3] = torch.inf
    missing = stars.mask.clone()
    missing[:, 3] = False
    assert same(
        fitted.encode(observe(spoiled, error, stars.mask)), fitted.encode(observe(stars.values, stars.error, missing))
    )


def test_an_unknown_error_is_taken_to_be_typical_of_the_brightness(fitted, stars):
    plain = chi2(fitted.decode(fitted.encode(stars)), stars)
    unknown = chi2(fitted.decode(fitted.encode(observe(stars.values))), stars)
    assert unknown.median() < 1.3 * plain.median()


def test_an_object_without_any_coefficient_is_masked(fitted, stars):
    mask = stars.mask[:3].clone()
    mask[1] = False
    tokens = fitted.encode(observe(stars.values[:3], stars.error[:3], mask))
    assert tokens.mask.any(1).tolist() == tokens.mask.all(1).tolist() == [True, False, True]
    assert tokens.codes[1].eq(0).all()
    assert fitted.decode(tokens).mask.any(1).tolist() == [True, False, True]


# What every tokenizer promises


def test_encoding_changes_nothing_is_the_same_again_and_in_a_batch_as_alone(fitted, stars):
    part = stars.select(slice(0, 25))
    before = part.values.clone(), part.error.clone(), part.mask.clone()
    tokens = fitted.encode(part)
    assert all(torch.equal(*pair) for pair in zip(before, (part.values, part.error, part.mask), strict=True))
    assert same(tokens, fitted.encode(part))
    for row in range(25):
        assert same(tokens.select(torch.tensor([row])), fitted.encode(part.select([row])))


def test_a_saved_tokenizer_makes_the_same_tokens(fitted, stars, tmp_path):
    fitted.save_pretrained(tmp_path / "t")
    loaded = CoefficientsTokenizer.from_pretrained(tmp_path / "t")
    assert loaded.settings == fitted.settings
    assert same(loaded.encode(stars), fitted.encode(stars))
    path = tmp_path / "t" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match=r"model\.safetensors: expected a whole safetensors file"):
        CoefficientsTokenizer.from_pretrained(tmp_path / "t")


def other_card(num_rp):
    bp, rp = GAIA.card.arms
    arms = (bp, rp.model_copy(update={"num_coefficients": num_rp}))
    return Modality("coefficients/other", GAIA.card.model_copy(update={"name": "other", "arms": arms}))


def test_another_card_is_an_error_that_says_what_was_expected_and_found(fitted):
    other = other_card(40)
    expected = r"coefficients/other: expected the arms .* rp \(55 coefficients.*; found .* rp \(40 coefficients"
    with pytest.raises(ObservationError, match=expected):
        fitted.encode(observe(np.ones((1, 95)), like=other))
    with pytest.raises(ObservationError, match=expected):
        fitted.vocabulary_size(other)
    with pytest.raises(ObservationError, match="scalar/redshift: expected a modality of kind coefficients"):
        fitted.vocabulary_size(modality("scalar/redshift"))


def test_a_tokenizer_that_was_never_fitted_says_so(stars):
    with pytest.raises(ObservationError, match="coefficients/gaia_bp_rp: this tokenizer was never fitted"):
        CoefficientsTokenizer().encode(stars)


def test_a_value_that_is_not_finite_is_an_error_that_names_the_object(stars):
    values = stars.values[:2].clone()
    values[1, 7] = torch.nan
    with pytest.raises(ObservationError, match=r"object star-7: values must be finite .*; found nan at \[7\]"):
        CoefficientsObservation(GAIA, ["star-6", "star-7"], values)


@pytest.mark.parametrize(
    "sizes, problem",
    [({"num_tokens": 32, "num_codes": 1024}, "must not exceed 32768"), ({"levels": ((2, 2),)}, "must agree, found")],
)
def test_sizes_that_cannot_be_are_refused(sizes, problem):
    with pytest.raises(SettingsError, match=problem):
        validate_settings(CoefficientsTokenizerSettings, sizes, "here")


# Learning


def test_too_few_objects_to_learn_from_are_an_error(stars):
    with pytest.raises(ObservationError, match=r"gaia_bp_rp: expected at least 110 objects .*, found 60"):
        fit(stars.select(slice(0, 60)))
    without_errors = observe(stars.values)
    with pytest.raises(ObservationError, match=r"expected at least 110 objects with all .* errors .*, found 0"):
        fit(without_errors)
    with pytest.raises(ObservationError, match="found no observation"):
        CoefficientsTokenizer().fit(lambda: iter(()))


def test_two_instruments_at_once_are_an_error(stars):
    other = observe(np.ones((2, 95)), np.ones((2, 95)), like=other_card(40))
    with pytest.raises(ObservationError, match="coefficients/other: expected the arms"):
        CoefficientsTokenizer().fit(lambda: iter((stars, other)))


def test_incomplete_objects_are_not_learned_from(learned_from, fitted):
    broken = learned_from.select(slice(0, 50))
    values, mask = broken.values * 7 + 100, broken.mask.clone()
    mask[:, ::2] = False
    again = CoefficientsTokenizer().fit(lambda: iter((learned_from, observe(values, broken.error, mask))))
    assert again.settings == fitted.settings
    assert torch.allclose(again.basis @ again.basis.T, fitted.basis @ fitted.basis.T, rtol=1e-9, atol=1e-12)


def test_components_are_those_that_noisy_spectra_were_made_of():
    rng = np.random.default_rng(0)
    num_objects, num_coefficients = 20_000, 12
    directions = np.linalg.qr(rng.normal(size=(num_coefficients, 3)))[0]
    mean, directions = directions[:, 0], directions[:, 1:]
    noise = rng.uniform(0.005, 0.02, num_coefficients)
    clean = mean + (rng.normal(size=(num_objects, 2)) * [0.1, 0.05]) @ directions.T
    clean /= np.linalg.norm(clean, axis=1, keepdims=True)
    amplitude = 10 ** rng.uniform(1, 4, (num_objects, 1))
    error = np.broadcast_to(noise, clean.shape) * amplitude
    values = amplitude * clean + error * rng.normal(size=clean.shape)
    arm = GAIA.card.arms[0].model_copy(update={"num_coefficients": num_coefficients})
    small = Modality("coefficients/small", GAIA.card.model_copy(update={"arms": (arm,)}))
    whole = observe(values, error, like=small)
    moments, rest = ShapeMoments(num_coefficients), ShapeMoments(num_coefficients)
    moments.update(whole.select(slice(0, 7000)))
    rest.update(whole.select(slice(7000, None)))
    moments.merge(rest)
    shapes = moments.shapes(2)
    expected = np.cov(clean.T)
    found = (shapes.components @ shapes.components.T).numpy()
    assert np.abs(found - expected).max() < 0.03 * expected.max()
    assert shapes.noise.numpy() == pytest.approx(noise, rel=0.02)
    kept = shapes.components.numpy() / shapes.noise.numpy()[:, None]
    assert np.abs(kept[:, 0] @ kept[:, 1]) < 1e-9 * np.linalg.norm(kept[:, 0]) * np.linalg.norm(kept[:, 1])
