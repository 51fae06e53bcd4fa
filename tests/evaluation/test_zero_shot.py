"""Exact neighbours, and the quick choice of k and temperature against the predictor that serves."""

import numpy as np
import pytest

from armillary.evaluation.baselines import magnitudes_and_colours, predict_with_trees
from armillary.evaluation.label_efficiency import draw
from armillary.evaluation.zero_shot import Gallery, ZeroShot, nearest, values_for_all_settings
from armillary.models.neighbour_prediction import predict_from_neighbours


def test_nearest_are_those_of_a_full_sort():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 5)), rng.normal(size=(40, 5))

    similarity, rows = nearest(queries, gallery, 7)

    full = queries @ gallery.T
    assert (rows == np.argsort(-full, axis=1)[:, :7]).all()
    assert similarity == pytest.approx(-np.sort(-full, axis=1)[:, :7])


def test_values_of_all_settings_are_those_of_the_predictor_that_serves():
    rng = np.random.default_rng(1)
    similarity = -np.sort(-rng.uniform(-1, 1, size=(20, 50)), axis=1)
    labels = rng.normal(size=(20, 50))

    for (k, temperature), values in values_for_all_settings(similarity, labels).items():
        expected = predict_from_neighbours(similarity, labels, k=k, temperature=temperature).value
        assert values == pytest.approx(expected)


def test_zero_shot_is_blind_to_an_offset_that_all_vectors_share():
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(500, 4))
    labels = np.tanh(hidden[:, 0])
    offset = np.full(4, 100.0)

    def fitted(shift):
        gallery = Gallery.of(hidden[:300] + shift, labels[:300], "encoder")
        return ZeroShot.fit(gallery, hidden[300:400] + shift, labels[300:400], "label").predict(hidden[400:] + shift)

    plain, moved = fitted(0.0), fitted(offset)

    assert moved[0] == pytest.approx(plain[0], abs=1e-6)
    assert np.corrcoef(plain[0], labels[400:])[0, 1] > 0.8
    low, high = plain[1][0.9]
    assert 0.75 < ((low <= labels[400:]) & (labels[400:] <= high)).mean() <= 1


def test_a_draw_takes_labelled_objects_and_grows():
    truth = np.where(np.arange(100) % 3 == 0, np.nan, 1.0)

    small, large = draw(truth, 10, seed=1), draw(truth, 30, seed=1)

    assert np.isfinite(truth[large]).all()
    assert (large[:10] == small).all()
    assert set(draw(truth, 10, seed=2)) != set(small)


def test_intervals_of_trees_hold_as_often_as_they_say():
    rng = np.random.default_rng(3)
    magnitudes = rng.normal(size=(900, 3))
    labels = magnitudes[:, 0] - magnitudes[:, 1] + 0.3 * rng.normal(size=900)
    features = magnitudes_and_colours(magnitudes)

    _, bounds = predict_with_trees(features[:300], labels[:300], features[300:600], labels[300:600], features[600:])

    low, high = bounds[0.9]
    assert 0.84 < ((low <= labels[600:]) & (labels[600:] <= high)).mean() < 0.96
