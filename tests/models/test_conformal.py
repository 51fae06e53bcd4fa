"""Intervals, sets and flags hold what they say on objects that were not fitted on."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification

from armillary.models.conformal import best_temperature, conformal_reach, objects_needed
from armillary.models.novelty import NoveltyModel
from armillary.models.probes import LinearProbe


def uneven(count, seed, width=6):
    """Embeddings and labels whose noise grows along the first axis."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, width))
    spread = np.exp(0.6 * vectors[:, 0])
    return vectors, vectors @ np.ones(width) + spread * rng.normal(size=count), spread


def coverage(bounds, truth):
    return np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))


def test_ninety_percent_intervals_hold_ninety_percent_in_every_stratum():
    vectors, labels, _ = uneven(2000, 0)
    others, truth, spread = uneven(6000, 1)
    scaled, constant = (LinearProbe(intervals=kind).fit(vectors, labels) for kind in ("auto", "constant"))
    calm = spread < np.quantile(spread, 0.3)
    wild = spread > np.quantile(spread, 0.7)
    bounds, plain = scaled.predict_interval(others, 0.9), constant.predict_interval(others, 0.9)
    assert 0.87 < coverage(bounds, truth) < 0.93
    assert 0.87 < coverage(plain, truth) < 0.93
    for stratum in (calm, wild):
        assert coverage(bounds[stratum], truth[stratum]) == pytest.approx(0.9, abs=0.05)
        assert abs(coverage(plain[stratum], truth[stratum]) - 0.9) > 0.05
    assert np.diff(bounds, axis=1).mean() < 0.9 * np.diff(plain, axis=1).mean()


def test_even_noise_gives_the_constant_width():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 5))
    probe = LinearProbe().fit(vectors, vectors.sum(1) + rng.normal(size=600))
    width = np.diff(probe.predict_interval(vectors, 0.9), axis=1)
    np.testing.assert_allclose(width, width[0, 0])


@pytest.mark.parametrize("level", [0.68, 0.9])
def test_sets_of_classes_hold_the_true_one_and_probabilities_are_calibrated(level):
    features, labels = make_classification(6000, 10, n_informative=4, n_classes=3, class_sep=0.6, random_state=0)
    probe = LinearProbe("classification", penalties=(1e-3, 1e-1)).fit(features[:1500], labels[:1500])
    others, truth = features[1500:], labels[1500:]
    sets = probe.predict_set(others, level)
    assert sets.any(1).all()
    assert np.mean(sets[np.arange(len(truth)), truth]) == pytest.approx(level, abs=0.03)
    probabilities = probe.predict_proba(others)
    sure = probabilities.max(1) > 0.6
    assert np.mean(probe.predict(others)[sure] == truth[sure]) == pytest.approx(
        probabilities.max(1)[sure].mean(), abs=0.05
    )


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    classes = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    assert best_temperature(3 * logits, classes) == pytest.approx(3, rel=0.1)


def test_too_few_scores_reach_to_infinity():
    assert conformal_reach(np.arange(1.0, 10.0), 0.9) == 9.0
    assert conformal_reach(np.arange(1.0, 9.0), 0.9) == np.inf
    assert objects_needed(0.9) == 9
    assert objects_needed(0.95) == 19


def test_left_out_distances_equal_brute_force():
    """Each vector's distance from the others, with their mean and their covariance shrunk as that of all."""
    vectors = np.random.default_rng(0).normal(size=(30, 4)) * [1, 2, 3, 4] + 5
    found = NoveltyModel.fit(vectors)
    centred = vectors - vectors.mean(0)
    whole = np.linalg.inv(found.whitening.T @ found.whitening)
    sample = centred.T @ centred / 29
    # The shrinkage and its target, from the covariance that was used.
    target = np.mean(centred**2)
    keep = (whole[0, 1]) / sample[0, 1]
    brute = []
    for i in range(30):
        rest = np.delete(vectors, i, axis=0)
        scatter = (rest - rest.mean(0)).T @ (rest - rest.mean(0)) / 29
        off = vectors[i] - rest.mean(0)
        brute.append(np.sqrt(off @ np.linalg.solve(keep * scatter + (1 - keep) * target * np.eye(4), off)))
    np.testing.assert_allclose(found.distances, np.sort(brute), rtol=1e-4)


def test_one_in_a_hundred_is_flagged_and_outliers_are():
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(12, 12))
    train, same = rng.normal(size=(1500, 12)) @ mix, rng.normal(size=(6000, 12)) @ mix
    probe = LinearProbe(intervals="constant").fit(train, train[:, 0])
    assert probe.is_outside(same).mean() == pytest.approx(0.01, abs=0.008)
    assert probe.novelty(same).mean() == pytest.approx(0.5, abs=0.03)
    other_cluster = same[:200] + 8 * mix[0]
    noise = rng.normal(size=(200, 12)) * np.abs(train).max()
    assert probe.is_outside(other_cluster).mean() > 0.95
    assert probe.is_outside(noise).all()
    assert LinearProbe().fit(train[:50], train[:50, 0]).is_outside(noise) is None


def test_unit_vectors_and_features_that_never_vary_are_no_outliers():
    rng = np.random.default_rng(2)
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(2000, 16))), dim=1).numpy()
    vectors[:, 3] = 0.0
    found = NoveltyModel.fit(vectors[:1000])
    assert found.are_outside(vectors[1000:]).mean() < 0.03
