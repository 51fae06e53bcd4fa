"""Scalars to bins of equal mass and back."""

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, ScalarObservation
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings

REDSHIFT = "scalar/redshift"
SAMPLE = np.random.default_rng(0).gamma(2.0, 0.1, 3000).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return ScalarTokenizer(ScalarTokenizerSettings(num_codes=64)).fit({REDSHIFT: SAMPLE})


def observe(values):
    return ScalarObservation(modality(REDSHIFT), range(len(values)), values)


def test_edges_are_the_quantiles_that_numpy_finds(fitted):
    low, high = fitted.bins(modality(REDSHIFT))
    edges = np.quantile(SAMPLE.astype(np.float64), np.linspace(0, 1, 63))
    assert np.array_equal(low[1:], edges)
    assert np.array_equal(high[:-1], edges)


def test_bins_hold_equal_mass(fitted):
    codes = fitted.encode(observe(SAMPLE)).codes[:, 0]
    counts = torch.bincount(codes, minlength=64)
    assert counts[0] == 0
    assert counts[63] == 0
    assert (counts[1:63] - 3000 / 62).abs().max() <= 1.5


def test_decoding_errs_by_half_a_bin_at_most(fitted):
    back = fitted.decode(fitted.encode(observe(SAMPLE)))
    assert (np.abs(back.values.numpy() - SAMPLE) <= back.error.numpy() * (1 + 1e-4) + 1e-6).all()


def test_values_go_to_the_bin_whose_bounds_hold_them(fitted):
    codes = fitted.encode(observe(SAMPLE)).codes[:, 0]
    low, high = fitted.bins(modality(REDSHIFT))
    values = torch.from_numpy(SAMPLE).double()
    assert (low[codes] <= values).all()
    assert (values <= high[codes]).all()


def test_values_outside_the_range_that_was_seen_have_codes_of_their_own(fitted):
    below, above = SAMPLE.min() * 0.99, SAMPLE.max() * 1.01
    tokens = fitted.encode(observe([below, SAMPLE.min(), SAMPLE.max(), above]))
    assert tokens.codes[:, 0].tolist() == [0, 1, 62, 63]
    assert fitted.decode(tokens).values[[0, 3]].tolist() == pytest.approx([SAMPLE.min(), SAMPLE.max()])


def test_values_seen_again_and_again_stay_apart_from_their_neighbours():
    sample = np.concatenate([np.full(500, 0.3), np.linspace(0, 1, 500)])
    fitted = ScalarTokenizer(ScalarTokenizerSettings(num_codes=32)).fit({REDSHIFT: sample})
    back = fitted.decode(fitted.encode(observe([0.29, 0.3, 0.31])))
    assert back.values.tolist() == pytest.approx([0.29, 0.3, 0.31], abs=0.05)
    assert back.values.diff().ge(0).all()


def test_codes_rise_with_the_value(fitted):
    codes = fitted.encode(observe(np.sort(SAMPLE))).codes[:, 0]
    assert (codes.diff() >= 0).all()


@pytest.mark.parametrize(
    "sample, problem",
    [([0.1, np.nan], "expected finite values"), ([0.1, 0.1], "at least two different"), ([], "at least two")],
)
def test_a_sample_that_has_no_quantiles_is_refused(sample, problem):
    with pytest.raises(ObservationError, match=problem):
        ScalarTokenizer().fit({REDSHIFT: np.array(sample)})


def test_a_quantity_that_was_not_fitted_is_an_error_that_lists_those_that_were(fitted):
    stellar_mass = modality("scalar/stellar_mass")
    with pytest.raises(ObservationError, match=r"scalar/stellar_mass: .* fitted to \['scalar/redshift'\]"):
        fitted.encode(ScalarObservation(stellar_mass, ["a"], [10.0]))


def test_each_quantity_has_edges_of_its_own():
    fitted = ScalarTokenizer(ScalarTokenizerSettings(num_codes=16)).fit(
        {REDSHIFT: SAMPLE, "scalar/stellar_mass": SAMPLE + 10}
    )
    low, high = fitted.bins(modality("scalar/stellar_mass"))
    assert low[1] == pytest.approx(SAMPLE.min() + 10, rel=1e-6)
    assert high[-2] == pytest.approx(SAMPLE.max() + 10, rel=1e-6)
