"""Levels of known dimensions, against brute force and published quantisers."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from armillary.tokenizers.level_allocation import allocate_levels, level_positions


def distortion(distortions, tokens):
    levels = {dimension: count for token in tokens for dimension, count in token.items()}
    return sum(d / levels.get(i, 1) ** 2 for i, d in enumerate(distortions))


@pytest.mark.parametrize("distortions", [[9.0, 4.0, 1.0], [100.0, 1.0, 1.0], [1.0, 1.0, 1.0], [50.0, 20.0, 0.0]])
@pytest.mark.parametrize("num_codes", [16, 64, 100])
def test_the_levels_of_one_token_are_nearly_the_best_that_there_are(distortions, num_codes):
    (token,) = allocate_levels(distortions, 1, num_codes)
    assert math.prod(token.values()) <= num_codes
    every = itertools.product(range(1, num_codes + 1), repeat=3)
    best = min(distortion(distortions, [dict(enumerate(levels))]) for levels in every if math.prod(levels) <= num_codes)
    assert distortion(distortions, [token]) <= 1.3 * best


def test_tokens_share_the_dimensions_and_none_is_too_large():
    distortions = (1e4 * 0.6 ** np.arange(20)).tolist()
    tokens = allocate_levels(distortions, 4, 256)
    assert len(tokens) == 4
    assert all(math.prod(token.values()) <= 256 and min(token.values()) >= 2 for token in tokens)
    used = [dimension for token in tokens for dimension in token]
    assert len(set(used)) == len(used)
    levels = dict(sorted((d, n) for token in tokens for d, n in token.items()))
    assert 0 in levels
    assert levels[0] == max(levels.values())


def test_more_tokens_take_more_distortion_away():
    distortions = (1e4 * 0.7 ** np.arange(30)).tolist()
    left = [distortion(distortions, allocate_levels(distortions, n, 64)) for n in (1, 2, 4, 8)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] / 20


def test_tokens_that_there_is_nothing_for_are_dropped():
    assert allocate_levels([4.0, 0.0, 0.0], 3, 8) == [{0: 8}]
    assert allocate_levels([0.0, 0.0], 3, 8) == []


def test_levels_of_uniform_values_lie_at_equal_steps():
    places = level_positions((np.arange(8000) + 0.5) / 8000, np.ones(8000), 8)
    assert places == pytest.approx((np.arange(8) + 0.5) / 8, abs=1e-3)


def test_levels_of_a_gaussian_are_those_of_max():
    # Max 1960, Quantizing for minimum distortion, table I: four levels.
    values = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    assert level_positions(values, np.ones(len(values)), 4) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=2e-3)


def test_a_weight_counts_as_that_many_values():
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=300))
    weights = rng.integers(1, 5, 300)
    repeated = level_positions(np.repeat(values, weights), np.ones(weights.sum()), 6)
    assert level_positions(values, weights.astype(float), 6) == pytest.approx(repeated)


def test_few_values_are_levels_themselves():
    assert level_positions(np.array([1.0, 2.0, 5.0]), np.ones(3), 4).tolist() == [1, 2, 5, 5]
