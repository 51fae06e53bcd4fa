"""Scores against closed forms and slow references; what bootstrap intervals promise."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import r2_score

from armillary.evaluation.scores import (
    LEVELS,
    bootstrap,
    bootstrap_r_squared,
    compare,
    coverage,
    interval_of,
    pit_histogram,
    r_squared,
    redshift_scatter,
    score_values,
    strata_of,
)


def normal_bounds(mean, spread, count):
    return {
        level: (
            np.full(count, norm.ppf((1 - level) / 2, mean, spread)),
            np.full(count, norm.ppf((1 + level) / 2, mean, spread)),
        )
        for level in LEVELS
    }


def test_r2_is_scikit_learns():
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=50), rng.normal(size=50)

    assert r_squared(predicted, true) == pytest.approx(r2_score(true, predicted))


def test_scatter_of_normal_errors_is_their_standard_deviation():
    true = np.full(20_000, 0.25)
    error = 0.02 * np.random.default_rng(0).normal(size=len(true))

    assert redshift_scatter(true + error * (1 + true) + 0.1, true) == pytest.approx(0.02, rel=0.03)


def test_bootstrap_interval_of_a_mean_has_its_closed_form():
    values = np.random.default_rng(1).normal(size=4000)

    low, high = interval_of(bootstrap(lambda rows: rows.mean(-1), (values,), 1000))

    reach = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.1 * reach)


def test_bootstrap_intervals_of_r2_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    spread = 0.5
    truth = 1 - spread**2 / (1 + spread**2)  # predicted = signal, true = signal + error
    held = 0
    for trial in range(200):
        signal = rng.normal(size=150)
        true = signal + spread * rng.normal(size=150)
        low, high = interval_of(bootstrap(r_squared, (signal, true), 200, seed=trial))
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99


def test_the_quick_way_to_resample_r2_is_the_slow_one():
    rng = np.random.default_rng(6)
    true, predicted = rng.normal(10, 1, 70), rng.normal(10, 1, 70)

    assert bootstrap_r_squared(predicted, true, 30) == pytest.approx(bootstrap(r_squared, (predicted, true), 30))


def test_scores_are_the_same_each_time():
    rng = np.random.default_rng(3)
    true, predicted = rng.uniform(0, 1, 80), rng.uniform(0, 1, 80)

    first = score_values(predicted, true, 100, is_redshift=True)

    assert first == score_values(predicted, true, 100, is_redshift=True)
    assert first["r2_interval"][0] <= first["r2"] <= first["r2_interval"][1]


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(4)
    true = rng.normal(size=500)
    error = rng.normal(size=500)
    better, worse = true + 0.50 * error, true + 0.52 * error

    found = compare(better, worse, true, 500)

    assert found["interval"][0] > 0
    low, high = interval_of(bootstrap(r_squared, (better, true), 500))
    assert found["interval"][1] - found["interval"][0] < 0.3 * (high - low)


def test_pit_of_a_calibrated_prediction_is_flat_and_of_a_biased_one_leans():
    true = np.random.default_rng(5).normal(size=20_000)

    flat = pit_histogram(normal_bounds(0, 1, len(true)), true)
    leaning = pit_histogram(normal_bounds(1, 1, len(true)), true)
    too_sure = pit_histogram(normal_bounds(0, 0.5, len(true)), true)

    assert flat == pytest.approx([0.1] * 10, abs=0.01)
    assert sum(leaning) == pytest.approx(1)
    expected = np.diff(norm.cdf(norm.ppf(np.linspace(0, 1, 11), 1, 1)))
    assert leaning[:4] == pytest.approx(expected[:4], abs=0.01)
    assert too_sure[0] > 0.2
    assert too_sure[-1] > 0.2


def test_coverage_is_the_share_inside():
    true = np.array([0.0, 1.0, 2.0, 3.0])

    assert coverage({0.9: (np.full(4, 0.5), np.full(4, 2.5))}, true) == {"0.9": 0.5}


def test_strata_divide_the_objects_with_a_value():
    values = np.array([3.0, np.nan, 1.0, 2.0, 6.0, 5.0, 4.0])

    found = strata_of(values, 3)

    assert [sorted(values[rows]) for _, rows in found] == [[1, 2], [3, 4], [5, 6]]
    assert found[0][0] == "1 to 2"
