"""Scalars to bins of equal mass and back."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from armillary.data.instruments import Catalogue, Quantity
from armillary.data.modalities import Modality, modality
from armillary.data.observations import ObservationError, ScalarObservation
from armillary.data.readers.catalogues import read_sdss_galaxies, sdss_galaxy_batches
from armillary.data.real_files import real_file
from armillary.data.stacking import stack
from armillary.settings import SettingsError, validate_settings
from armillary.tokenizers.quantile_sketch import RANK_ERROR
from armillary.tokenizers.scalar import ScalarSketch, ScalarTokenizer, ScalarTokenizerSettings

REDSHIFT = "scalar/redshift"
SAMPLE = np.random.default_rng(0).gamma(2.0, 0.1, 3000).astype(np.float32)

QUANTITY = Quantity(name="x", unit="", description="any", minimum=-3e38, maximum=3e38)
CARD = Catalogue(kind="scalar", name="anything", description="any", reference="none", quantities=(QUANTITY,))
ANYTHING = Modality("scalar/x", CARD, "x")
"""A quantity whose card allows nearly all float32 numbers."""
FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)


@pytest.fixture(scope="module")
def fitted():
    return ScalarTokenizer(ScalarTokenizerSettings(num_codes=64)).fit({REDSHIFT: SAMPLE})


def observe(values, error=None, mask=None, of=REDSHIFT):
    wanted = of if isinstance(of, Modality) else modality(of)
    return ScalarObservation(wanted, range(len(values)), np.asarray(values, np.float32), mask, error)


def fit_anything(values, **sizes):
    return ScalarTokenizer(ScalarTokenizerSettings(**sizes)).fit({ANYTHING.name: np.asarray(values, np.float32)})


def held(tokenizer, observation):
    """Whether the bounds of each object's code hold its value."""
    low, high = tokenizer.bins(observation.modality)
    codes, values = tokenizer.encode(observation).codes[:, 0], observation.values.double()
    is_last = codes == len(low) - 1
    return (low[codes] <= values) & ((values < high[codes]) | (is_last & (values <= high[codes])))


def test_bins_hold_equal_mass(fitted):
    codes = fitted.encode(observe(SAMPLE)).codes[:, 0]
    counts = torch.bincount(codes, minlength=64)
    assert counts[0] == 0
    assert counts[63] == 0
    assert (counts[1:63] - 3000 / 62).abs().max() <= 1.5


def test_edges_are_the_quantiles_that_numpy_finds_among_the_values(fitted):
    low, high = fitted.bins(modality(REDSHIFT))
    shares = np.linspace(0, 1, 63)[:-1]
    expected = np.quantile(SAMPLE, shares, method="inverted_cdf")
    ranks = np.searchsorted(np.sort(SAMPLE), [expected, low[1:-1].numpy()])
    assert np.abs(ranks[0] - ranks[1]).max() <= 1.5
    assert torch.equal(low[2:], high[1:-1])


def test_a_bin_decodes_to_the_median_of_what_was_in_it_and_its_spread(fitted):
    tokens = fitted.encode(observe(SAMPLE))
    back = fitted.decode(tokens)
    for code in (1, 7, 40, 62):
        inside = np.sort(SAMPLE[tokens.codes[:, 0].numpy() == code])
        row = int((tokens.codes[:, 0] == code).nonzero()[0, 0])
        assert back.values[row] == inside[(len(inside) - 1) // 2]
        expected = np.sqrt(np.mean((inside.astype(np.float64) - back.values[row].item()) ** 2))
        assert back.error[row].item() == pytest.approx(expected, rel=1e-5)


def test_values_outside_the_range_that_was_seen_have_codes_of_their_own(fitted):
    smallest, largest = SAMPLE.min(), SAMPLE.max()
    below, above = np.nextafter(smallest, np.float32(-1)), np.nextafter(largest, np.float32(9))
    tokens = fitted.encode(observe([below, smallest, largest, above]))
    assert tokens.codes[:, 0].tolist() == [0, 1, 62, 63]
    back = fitted.decode(tokens)
    assert back.values[[0, 3]].tolist() == [smallest, largest]
    assert back.error.isnan().tolist() == [True, False, False, True]
    low, high = fitted.bins(modality(REDSHIFT))
    assert (low[0], high[-1]) == (np.float32(-0.01), 8.0)  # all that the card allows


def test_a_missing_value_is_masked_and_its_number_has_no_influence(fitted):
    mask = np.array([True, False])
    first, second = (fitted.encode(observe([0.2, hidden], mask=mask)) for hidden in (0.3, np.nan))
    assert first.mask[:, 0].tolist() == [True, False]
    assert first.codes[1, 0] == 0
    assert torch.equal(first.codes, second.codes)
    assert fitted.decode(first).mask.tolist() == [True, False]


@settings(deadline=None, max_examples=150)
@given(st.lists(FLOATS, min_size=2, max_size=60, unique=True), st.lists(FLOATS, min_size=1, max_size=20), st.data())
def test_the_bounds_of_a_code_hold_every_value_that_has_it(sample, others, data):
    tokenizer = fit_anything(sample, num_codes=data.draw(st.integers(4, 70)))
    beside = np.nextafter(np.float32(sample), np.float32(data.draw(st.sampled_from([-np.inf, np.inf]))))
    observation = observe([*sample, *others, *beside], of=ANYTHING)
    assert held(tokenizer, observation).all()
    back = tokenizer.decode(tokenizer.encode(observation))
    assert held(tokenizer, back).all()
    is_inside = ~back.error.isnan()
    codes = tokenizer.encode(observation).codes
    assert torch.equal(tokenizer.encode(back).codes[is_inside], codes[is_inside])
    order = observation.values.argsort()
    assert (codes[order, 0].diff() >= 0).all()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(-40, 40), st.integers(1, 300)), min_size=2, max_size=50, unique_by=lambda p: p[0]),
    st.integers(4, 30),
)
def test_no_bin_is_empty_and_few_different_values_come_back_as_they_were(counted, num_codes):
    sample = np.repeat(*np.array(counted, np.int64).T).astype(np.float32)
    tokenizer = fit_anything(sample, num_codes=num_codes)
    observation = observe(sample, of=ANYTHING)
    tokens = tokenizer.encode(observation)
    size = tokenizer.vocabulary_size(ANYTHING)
    assert set(tokens.codes[:, 0].tolist()) == set(range(1, size - 1))
    assert size <= num_codes
    if len(counted) <= num_codes - 2:
        back = tokenizer.decode(tokens)
        assert torch.equal(back.values, observation.values)
        assert (back.error == 0).all()
    assert tokenizer.code_features(ANYTHING).shape[0] == size


def test_a_value_that_holds_much_of_the_mass_has_a_bin_of_its_own_and_decodes_exactly():
    rng = np.random.default_rng(1)
    sample = np.concatenate([np.full(5000, 0.3), rng.uniform(0, 1, 5000)]).astype(np.float32)
    tokenizer = fit_anything(sample, num_codes=34)
    tokens = tokenizer.encode(observe(sample, of=ANYTHING))
    counts = torch.bincount(tokens.codes[:, 0], minlength=34)
    heavy = int(counts.argmax())
    assert counts[heavy] == 5000
    assert tokenizer.decode(tokens).values[0] == np.float32(0.3)
    others = torch.cat([counts[1:heavy], counts[heavy + 1 : 33]])
    assert (others - 5000 / 31).abs().max() <= 5000 / 31


def test_codes_rise_with_the_value(fitted):
    codes = fitted.encode(observe(np.sort(SAMPLE))).codes[:, 0]
    assert (codes.diff() >= 0).all()


@pytest.mark.parametrize(
    "sample, problem",
    [
        ([0.1, np.nan], "expected finite values to learn from, found nan at 1"),
        ([0.1, 1e39], "expected finite values to learn from, found 1e"),
        ([0.1, 0.1], "at least two different"),
        ([], "at least two"),
    ],
)
def test_a_sample_that_has_no_quantiles_is_refused(sample, problem):
    with pytest.raises(ObservationError, match=f"{REDSHIFT}: .*{problem}"):
        ScalarTokenizer().fit({REDSHIFT: np.array(sample)})


def test_the_number_that_is_read_of_a_code_is_its_value_in_standard_deviations(fitted, with_errors):
    numbers = fitted.code_numbers(modality(REDSHIFT))
    values = fitted.decode(fitted.encode(observe(SAMPLE))).values.numpy()
    codes = fitted.encode(observe(SAMPLE)).codes[:, 0]
    slope, offset = np.polyfit(values, numbers[codes, 1].numpy(), 1)
    np.testing.assert_allclose(numbers[codes, 1], slope * values + offset, atol=1e-5)
    assert slope == pytest.approx(1 / SAMPLE.std(), rel=0.1)
    assert -offset / slope == pytest.approx(SAMPLE.mean(), rel=0.1)
    assert (numbers[:, 0] == 1).all()
    of_both = with_errors[0].code_numbers(modality(REDSHIFT))
    assert of_both.shape == (with_errors[0].vocabulary_size(modality(REDSHIFT)), 4)
    assert (of_both[:, [0, 2]].sum(1) == 1).all()


def test_a_value_that_is_not_finite_is_an_error_that_names_the_object():
    with pytest.raises(ObservationError, match="scalar/redshift, object galaxy-7: value must lie in"):
        ScalarObservation(modality(REDSHIFT), ["galaxy-6", "galaxy-7"], [0.1, np.nan])


def test_a_quantity_that_was_not_fitted_is_an_error_that_lists_those_that_were(fitted):
    stellar_mass = modality("scalar/stellar_mass")
    with pytest.raises(ObservationError, match=r"scalar/stellar_mass: .* fitted to \['scalar/redshift'\]"):
        fitted.encode(ScalarObservation(stellar_mass, ["a"], [10.0]))
    with pytest.raises(ObservationError, match=r"scalar/stellar_mass: .* fitted to \['scalar/redshift'\]"):
        fitted.vocabulary_size(stellar_mass)


def test_tokens_do_not_decode_to_another_quantity(fitted):
    tokens = fitted.encode(observe([0.1]))
    with pytest.raises(
        ObservationError, match="scalar/stellar_mass: expected tokens of this quantity, found those of "
    ):
        fitted.decode(tokens, modality("scalar/stellar_mass"))


def test_codes_of_another_tokenizer_are_an_error_that_names_the_object(fitted, with_errors):
    tokens = fitted.encode(observe([0.1, SAMPLE.max() + 1]))
    smaller = ScalarTokenizer(ScalarTokenizerSettings(num_codes=16)).fit({REDSHIFT: SAMPLE})
    with pytest.raises(ObservationError, match=r"redshift, object 0: expected a code in \[0, 16\) as token 0, found "):
        smaller.decode(tokens)
    with pytest.raises(ObservationError, match="redshift: expected 2 tokens of each object, found 1"):
        with_errors[0].decode(tokens)


def test_each_quantity_has_bins_of_its_own():
    fitted = ScalarTokenizer(ScalarTokenizerSettings(num_codes=16)).fit(
        {REDSHIFT: SAMPLE, "scalar/stellar_mass": np.arange(4, 9)}
    )
    masses = modality("scalar/stellar_mass")
    low, high = fitted.bins(masses)
    assert low.tolist() == [4, 4, 5, 6, 7, 8, np.nextafter(np.float32(8), np.float32(9))]
    assert high.tolist()[-1] == 13.5
    assert (fitted.vocabulary_size(modality(REDSHIFT)), fitted.vocabulary_size(masses)) == (16, 7)


# One pass over a stream


def test_a_stream_of_batches_gives_the_tokenizer_of_all_values_at_once():
    masks = np.random.default_rng(3).random((6, 500)) < 0.8
    batches = [observe(part, mask=mask) for part, mask in zip(np.split(SAMPLE, 6), masks, strict=True)]
    masses = observe([9.0, 10.0, 11.0], of="scalar/stellar_mass")
    empty = ScalarTokenizer(ScalarTokenizerSettings(num_codes=32))
    streamed = empty.fit_stream(itertools.chain(batches[:3], [masses], batches[3:]))
    seen = SAMPLE[masks.ravel()]
    at_once = empty.fit({REDSHIFT: seen, "scalar/stellar_mass": np.array([9.0, 10.0, 11.0])})
    assert streamed.settings.modalities == (REDSHIFT, "scalar/stellar_mass")
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(tensor, streamed.state_dict()[name]), name


def test_bins_of_many_values_have_the_mass_that_the_sketch_guarantees():
    rng = np.random.default_rng(4)
    parts = [rng.gamma(2.0, 0.1, 200_000).astype(np.float32) for _ in range(3)]
    sketches = [ScalarSketch() for _ in parts]
    for sketch, part in zip(sketches, parts, strict=True):
        sketch.update(observe(part))
        assert not sketch.values.is_exact
    merged = sketches[0]
    for other in sketches[1:]:
        merged.merge(other)
    fitted = ScalarTokenizer(ScalarTokenizerSettings(num_codes=258)).fit_sketches({REDSHIFT: merged})
    low, _ = fitted.bins(modality(REDSHIFT))
    everything = np.sort(np.concatenate(parts))
    share = np.searchsorted(everything, low[1:].numpy()) / len(everything)
    assert share[0] == 0
    assert share[-1] == 1
    # 99 % of intervals keep the guarantee, and none strays far beyond it.
    error = np.abs(share[1:-1] - np.arange(1, 256) / 256)
    assert np.quantile(error, 0.99) < 2 * RANK_ERROR
    assert error.max() < 4 * RANK_ERROR


def test_a_real_catalogue_streams_from_its_file_to_tokens_and_back():
    path = real_file("sdss-galaxies-5000.fits")
    sizes = ScalarTokenizerSettings(num_codes=102, num_error_codes=34)
    tokenizer = ScalarTokenizer(sizes).fit_stream(sdss_galaxy_batches(path, rows_per_batch=700))
    assert len(tokenizer.settings.modalities) == 9
    for observation in read_sdss_galaxies(path):
        tokens = tokenizer.encode(observation)
        assert torch.equal(tokens.mask[:, 0], observation.mask)
        assert torch.equal(tokens.mask[:, 1], observation.mask & observation.error.isfinite())
        seen = tokens.mask[:, 0]
        assert held(tokenizer, observation)[seen].all()
        # Values are rounded in the file, to 0.001 mag of 2MASS: no bin parts what is one number.
        counts = torch.bincount(tokens.codes[seen, 0], minlength=102)[1:-1]
        assert counts.min() > 0.6 * seen.sum() / 100
        assert counts.max() < 1.4 * seen.sum() / 100
        back = tokenizer.decode(tokens)
        assert torch.equal(tokenizer.encode(back).codes[seen, 0], tokens.codes[seen, 0])
        span = observation.values[seen].max() - observation.values[seen].min()
        assert (back.values - observation.values)[seen].abs().median() < 0.005 * span


# Errors of measurement


@pytest.fixture(scope="module")
def with_errors():
    rng = np.random.default_rng(5)
    observation = observe(SAMPLE, rng.lognormal(-5, 1, len(SAMPLE)))
    sizes = ScalarTokenizerSettings(num_codes=64, num_error_codes=18)
    return ScalarTokenizer(sizes).fit_stream([observation]), observation


def test_the_error_is_a_second_token_with_bins_of_its_own(with_errors):
    tokenizer, observation = with_errors
    tokens = tokenizer.encode(observation)
    assert tokens.codes.shape == (3000, 2)
    assert not torch.equal(tokens.positions[:, 0], tokens.positions[:, 1])  # a model must know which it is asked for
    assert tokens.mask.all()
    assert tokenizer.vocabulary_size(observation.modality) == 64 + 18
    features = tokenizer.code_features(observation.modality)
    assert features.shape[0] == 82
    assert features[:64, 16:].eq(0).all()
    counts = torch.bincount(tokens.codes[:, 1], minlength=82)[65:-1]
    assert (counts - 3000 / 16).abs().max() <= 1.5
    order = observation.error.argsort()
    assert (tokens.codes[order, 1].diff() >= 0).all()
    back = tokenizer.decode(tokens)
    assert (back.error / observation.error).log().abs().median() < 0.2
    plain = ScalarTokenizer(ScalarTokenizerSettings(num_codes=64)).fit_stream([observation])
    assert torch.equal(plain.encode(observation).codes, tokens.codes[:, :1])


def test_an_unknown_error_is_a_masked_token(with_errors):
    tokenizer, _ = with_errors
    tokens = tokenizer.encode(observe([0.1, 0.2, 0.3], [0.01, np.nan, 0.01], [True, True, False]))
    assert tokens.mask.tolist() == [[True, True], [True, False], [False, False]]
    assert tokens.codes[~tokens.mask].eq(0).all()
    back = tokenizer.decode(tokens)
    alone = tokenizer.decode(tokenizer.encode(observe([0.1, 0.2, 0.3])))
    assert torch.equal(back.error[1:2], alone.error[1:2])
    assert back.error[0] > alone.error[0]


def test_a_quantity_without_any_known_error_has_its_second_token_masked():
    tokenizer = ScalarTokenizer(ScalarTokenizerSettings(num_codes=8, num_error_codes=8)).fit_stream([observe(SAMPLE)])
    tokens = tokenizer.encode(observe([0.1, 0.2], [0.01, 0.02]))
    assert tokens.mask.tolist() == [[True, False]] * 2
    assert tokenizer.vocabulary_size(modality(REDSHIFT)) == 8


def test_soft_codes_are_the_gaussian_mass_of_each_bin(fitted):
    observation = observe([0.05, 0.2, 0.9, 0.2], [0.01, 0.3, 2.0, 1e-4])
    soft = fitted.soft_codes(observation)
    low, high = fitted.bins(modality(REDSHIFT))
    low, high = low.clone().numpy(), high.clone().numpy()
    low[0], high[-1] = -np.inf, np.inf
    values, errors = observation.values.double().numpy()[:, None], observation.error.double().numpy()[:, None]
    expected = norm.cdf((high - values) / errors) - norm.cdf((low - values) / errors)
    assert np.allclose(soft.numpy(), expected, atol=1e-7)
    assert torch.allclose(soft.sum(1), torch.ones(4), atol=1e-6)


def test_soft_codes_without_an_error_are_the_code_and_missing_values_have_none(fitted):
    observation = observe([0.05, 0.2, 0.3], [0.0, np.nan, 0.1], [True, True, False])
    soft = fitted.soft_codes(observation)
    codes = fitted.encode(observation).codes[:, 0]
    assert soft[0].argmax() == codes[0]
    assert soft[:2].amax(1).tolist() == [1, 1]
    assert soft[:2].sum(1).tolist() == [1, 1]
    assert soft[2].eq(0).all()


# What every tokenizer promises


def test_encoding_changes_nothing_is_the_same_again_and_in_a_batch_as_alone(with_errors):
    tokenizer, observation = with_errors
    part = observation.select(slice(0, 20))
    before = part.values.clone(), part.error.clone(), part.mask.clone()
    tokens = tokenizer.encode(part)
    assert all(torch.equal(*pair) for pair in zip(before, (part.values, part.error, part.mask), strict=True))
    assert torch.equal(tokenizer.encode(part).codes, tokens.codes)
    alone = [tokenizer.encode(part.select([row])).codes for row in range(20)]
    assert torch.equal(torch.cat(alone), tokens.codes)
    again = tokenizer.encode(stack([part.select(slice(0, 7)), part.select(slice(7, 20))]))
    assert torch.equal(again.codes, tokens.codes)


def test_a_tokenizer_with_errors_comes_back_from_disk(with_errors, tmp_path):
    tokenizer, observation = with_errors
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = ScalarTokenizer.from_pretrained(tmp_path / "t")
    assert loaded.settings == tokenizer.settings
    assert torch.equal(loaded.encode(observation).codes, tokenizer.encode(observation).codes)


@pytest.mark.parametrize(
    "sizes, problem",
    [
        ({"num_codes": 3}, "greater than or equal to 4"),
        ({"num_error_codes": 2}, "must be 0 or at least 4, found 2"),
        ({"num_codes": 32_000, "num_error_codes": 1000}, "must not exceed 32768"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, problem):
    with pytest.raises(SettingsError, match=problem):
        validate_settings(ScalarTokenizerSettings, sizes, "here")
