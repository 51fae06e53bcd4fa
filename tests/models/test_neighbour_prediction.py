import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.models.neighbour_prediction import (
    NeighbourPredictionError,
    NeighbourPredictor,
    choose_neighbours,
    predict_from_neighbours,
    read_predictors,
    safest,
    write_predictors,
)


def slow_prediction(similarities, labels, k, temperature, levels):
    """One query by plain loops: (value, [(lower, upper)], weights)."""
    labelled = [(s, y, i) for i, (s, y) in enumerate(zip(similarities, labels, strict=True)) if not math.isnan(y)]
    nearest = sorted(labelled, key=lambda entry: -entry[0])[:k]
    powers = [math.exp((s - nearest[0][0]) / temperature) for s, _, _ in nearest]
    weights = [0.0] * len(labels)
    for power, (_, _, i) in zip(powers, nearest, strict=True):
        weights[i] = power / sum(powers)
    value = sum(weights[i] * y for _, y, i in nearest)

    def quantile(level):
        total = 0.0
        for _, y, i in sorted(nearest, key=lambda entry: entry[1]):
            total += weights[i]
            if total >= level * (1 - 1e-12):
                return y
        return max(y for _, y, _ in nearest)

    bounds = [(quantile((1 - level) / 2), quantile((1 + level) / 2)) for level in levels]
    return value, [(min(low, value), max(high, value)) for low, high in bounds], weights


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), temperature=st.sampled_from([0.01, 0.1, 1.0]))
def test_prediction_equals_plain_loops(seed, k, temperature):
    rng = np.random.default_rng(seed)
    similarities = rng.uniform(-1, 1, (4, 10))
    labels = rng.normal(size=(4, 10))
    labels[:, 1:][rng.random((4, 9)) < 0.3] = np.nan
    found = predict_from_neighbours(similarities, labels, k=k, temperature=temperature)
    for row in range(4):
        value, bounds, weights = slow_prediction(similarities[row], labels[row], k, temperature, found.levels)
        assert found.value[row] == pytest.approx(value)
        np.testing.assert_allclose(found.weights[row], weights, atol=1e-12)
        for column, (low, high) in enumerate(bounds):
            assert found.lower[row, column] == pytest.approx(low)
            assert found.upper[row, column] == pytest.approx(high)


def test_unlabelled_neighbours_have_no_influence():
    labels = np.array([[1.0, np.nan, 3.0]])
    first = predict_from_neighbours(np.array([[0.9, 0.8, 0.7]]), labels)
    other = predict_from_neighbours(np.array([[0.9, -0.5, 0.7]]), labels)
    assert first.value == other.value
    assert first.weights[0, 1] == 0


def test_one_query_without_a_labelled_neighbour_is_an_error_that_names_it():
    labels = np.array([[1.0, 2.0], [np.nan, np.nan]])
    with pytest.raises(NeighbourPredictionError, match=r"1 of 2 queries \(the first: 1\) have no labelled neighbour"):
        predict_from_neighbours(np.ones((2, 2)), labels)


def test_infinite_similarity_of_a_labelled_neighbour_is_an_error():
    with pytest.raises(NeighbourPredictionError, match="query 0: a neighbour with a label"):
        predict_from_neighbours(np.array([[-np.inf, 1.0]]), np.array([[1.0, 1.0]]))


def simulated(num_queries, num_neighbours=40, seed=0):
    """Neighbours whose labels scatter around the truth with a skewed, object-dependent spread."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=num_queries)
    distance = np.sort(rng.exponential(0.1, (num_queries, num_neighbours)), axis=1)
    spread = np.exp(0.7 * rng.normal(size=(num_queries, 1)))
    labels = truth[:, None] + spread * (rng.gamma(2.0, 0.3, (num_queries, num_neighbours)) - 0.6) * (1 + 10 * distance)
    return 1 - distance, labels, truth


def test_calibrated_intervals_cover_what_they_claim():
    similarities, labels, truth = simulated(6000)
    predictor = choose_neighbours("scalar/redshift", similarities[:2000], labels[:2000], truth[:2000])
    found = predictor.predict(similarities[2000:], labels[2000:])
    inside = (found.lower <= truth[2000:, None]) & (truth[2000:, None] <= found.upper)
    # 2000 calibration objects: the coverage itself scatters by sqrt(.68 * .32 / 2000) = 0.01.
    assert predictor.levels == (0.68, 0.9, 0.95)
    np.testing.assert_allclose(inside.mean(0), predictor.levels, atol=0.03)
    assert predictor.num_calibration == 2000
    # Without the factors the test would not pass: the plain quantiles of neighbours are far from coverage.
    plain = predict_from_neighbours(
        similarities[2000:], labels[2000:], k=predictor.k, temperature=predictor.temperature
    )
    uncalibrated = (plain.lower <= truth[2000:, None]) & (truth[2000:, None] <= plain.upper)
    assert abs(uncalibrated.mean(0) - np.array(predictor.levels)).max() > 0.1


def test_few_objects_that_choose_and_calibrate_cover_as_well():
    """The choice among settings must not flatter the intervals, and their units must be those of the choice."""
    inside = []
    for seed in range(30):
        similarities, labels, truth = simulated(66 + 300, seed=seed)
        predictor = choose_neighbours("scalar/redshift", similarities[:66], labels[:66], truth[:66])
        found = predictor.predict(similarities[66:], labels[66:])
        inside.append((found.lower <= truth[66:, None]) & (truth[66:, None] <= found.upper))
    # Each draw's coverage scatters by sqrt(.68 * .32 / 66) = 0.057, the mean of thirty by 0.01.
    np.testing.assert_allclose(np.mean(inside, axis=(0, 1)), (0.68, 0.9, 0.95), atol=0.03)


def test_choice_beats_a_single_neighbour_and_equals_brute_force():
    similarities, labels, truth = simulated(400)
    predictor = choose_neighbours("p", similarities, labels, truth, counts=(1, 8, 32), temperatures=(0.01, 1.0))
    errors = {
        (k, t): np.array(
            [
                (slow_prediction(*row[:2], k, t, (0.68,))[0] - row[2]) ** 2
                for row in zip(similarities, labels, truth, strict=True)
            ]
        )
        for k in (1, 8, 32)
        for t in (0.01, 1.0)
    }
    least = errors[min(errors, key=lambda setting: errors[setting].mean())]
    as_good = [s for s, of in errors.items() if (of - least).mean() <= (of - least).std() / 20]
    # At the higher temperature the weights are nearly equal: the more neighbours, the more count.
    assert (predictor.k, predictor.temperature) == max(as_good, key=lambda setting: setting[1] * setting[0])
    assert predictor.k > 1


def test_what_cannot_be_told_from_the_best_and_rests_on_more_is_taken():
    rng = np.random.default_rng(0)
    best = rng.exponential(1.0, 100)
    noise = rng.normal(0, 0.3, 100)
    noise -= noise.mean()
    as_good, worse = best + 0.01 + noise, best + 0.2 + noise
    assert safest(np.stack([best, as_good, worse]), [1, 2, 3]) == 1
    assert safest(np.stack([best, as_good, worse]), [3, 2, 1]) == 0
    assert safest(np.stack([as_good, best]), [1, 1]) == 1
    assert safest(np.stack([best, best + 1e-9]), [1, 2]) == 0  # always worse, if by little


def test_equal_labels_still_give_an_interval_that_covers():
    similarities, _, truth = simulated(500)
    labels = np.zeros_like(similarities)
    predictor = choose_neighbours("p", similarities, labels, truth)
    found = predictor.predict(similarities, labels)
    inside = (found.lower <= truth[:, None]) & (truth[:, None] <= found.upper)
    np.testing.assert_allclose(inside.mean(0), predictor.levels, atol=0.08)


def test_too_few_validation_objects_is_an_error():
    similarities, labels, truth = simulated(30)
    with pytest.raises(NeighbourPredictionError, match="30 validation objects"):
        choose_neighbours("scalar/redshift", similarities, labels, truth)


def test_the_value_lies_in_its_interval():
    similarities, labels, _ = simulated(200)
    found = predict_from_neighbours(similarities, labels, k=3, temperature=0.01, levels=(0.1, 0.5))
    assert (found.lower <= found.value[:, None]).all()
    assert (found.upper >= found.value[:, None]).all()


def test_predictor_survives_json(tmp_path):
    predictor = NeighbourPredictor("scalar/redshift", 8, 0.03, (0.5,), (1.25,), 0.01, 100, "image/hsc", "armillary-1")
    assert NeighbourPredictor.from_json(predictor.to_json()) == predictor
    write_predictors(tmp_path / "predictors.json", {"scalar/redshift": predictor})
    assert read_predictors(tmp_path / "predictors.json") == {"scalar/redshift": predictor}
    (tmp_path / "predictors.json").write_text('{"scalar/redshift": {"kk": 3}}')
    with pytest.raises(ValueError, match=r"predictors\.json: not a file of neighbour predictors"):
        read_predictors(tmp_path / "predictors.json")


def test_predictors_of_before_still_load_and_have_no_flag(tmp_path):
    old = {"property_name": "p", "k": 4, "temperature": 0.1, "levels": [0.68, 0.95], "factors": [1.0, 2.0]}
    old |= {"floor": 0.1, "num_calibration": 50, "target_modality": None, "model_id": "armillary-1"}
    (tmp_path / "predictors.json").write_text(json.dumps({"p": old}))
    predictor = read_predictors(tmp_path / "predictors.json")["p"]
    found = predictor.predict(np.array([[0.9, 0.8]]), np.array([[1.0, 2.0]]))
    assert found.levels == (0.68, 0.95)
    assert found.novelty is None
    assert found.is_outside is None


def test_one_in_a_hundred_is_flagged_and_what_lies_far_always_is():
    similarities, labels, truth = simulated(9000)
    predictor = choose_neighbours("p", similarities[:3000], labels[:3000], truth[:3000])
    found = predictor.predict(similarities[3000:], labels[3000:])
    # 999 similarities are kept: the rate scatters by sqrt(.01 * .99 / 999) = 0.003.
    assert found.is_outside.mean() == pytest.approx(0.01, abs=0.01)
    assert found.novelty.mean() == pytest.approx(0.5, abs=0.05)
    far = predictor.predict(similarities[3000:3100] - 3.0, labels[3000:3100])
    assert far.is_outside.all()


def test_unlabelled_neighbours_do_not_make_an_object_familiar():
    similarities, labels, truth = simulated(500)
    predictor = choose_neighbours("p", similarities, labels, truth)
    hidden = labels.copy()
    hidden[:, :-1] = np.nan
    far = predictor.predict(np.where(np.isnan(hidden), 1.0, -2.0), hidden)
    assert far.is_outside.all()


def test_too_few_calibration_objects_for_a_flag_give_none():
    similarities, labels, truth = simulated(60)
    predictor = choose_neighbours("p", similarities, labels, truth)
    found = predictor.predict(similarities, labels)
    assert found.is_outside is None
    assert found.novelty.min() >= 1 / 61
