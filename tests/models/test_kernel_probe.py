"""Kernel probes: against kernel ridge regression by hand, on labels that bend, and as files."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.estimator_checks import parametrize_with_checks

from armillary.models.embeddings import Embeddings
from armillary.models.kernel_probe import KernelProbe
from armillary.models.probe_files import ProbeError
from armillary.models.probe_loading import load_probe
from armillary.models.probes import LinearProbe

QUICK = {"penalties": (1e-2, 1.0), "length_scales": (1.0,)}


@parametrize_with_checks([KernelProbe(**QUICK), KernelProbe("classification", folds=2, **QUICK)])
def test_scikit_learn_accepts_the_probe(estimator, check):
    check(estimator)


def bent(count, seed, noise=0.1):
    """Embeddings, and a label that no line fits."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 2))
    ids = tuple(map(str, range(count)))
    given = Embeddings(ids, torch.from_numpy(vectors).float(), "encoder", "armillary-1", (("image/hsc",),) * count)
    return given, np.cos(2 * vectors[:, 0]) * vectors[:, 1] + noise * rng.normal(size=count)


def test_predictions_and_left_out_residuals_are_those_of_kernel_ridge_regression_by_hand():
    given, labels = bent(60, 0)
    penalty, everyone = 1e-3, np.arange(60)
    probe = KernelProbe(penalties=(penalty,)).fit(given, labels)
    whole = rbf_kernel(given.numpy().astype(np.float64), gamma=1 / (2 * probe.length_scale_**2))
    # The penalty is on features of unit mean variance, whose number is the rank of the kernel.
    scale = np.trace(whole - whole.mean(0)) / (60 * probe.coef_.shape[1])

    def by_hand(train, test):
        kernel, middle = whole[np.ix_(train, train)], np.eye(len(train)) - 1 / len(train)
        inverse = np.linalg.inv(middle @ kernel @ middle / scale + penalty * 60 * np.eye(len(train)))
        across = (whole[np.ix_(test, train)] - kernel.mean(0)) @ middle / scale
        return labels[train].mean() + across @ inverse @ (labels[train] - labels[train].mean())

    np.testing.assert_allclose(probe.predict(given), by_hand(everyone, everyone), atol=1e-6)
    left_out = [labels[i] - by_hand(np.delete(everyone, i), [i])[0] for i in everyone]
    np.testing.assert_allclose(probe.loo_residuals_, np.sort(np.abs(left_out)), atol=1e-5)


def test_labels_that_bend_are_told_and_their_intervals_hold():
    (given, labels), (others, truth) = bent(600, 1), bent(2000, 2)
    probe = KernelProbe().fit(given, labels)
    assert LinearProbe().fit(given, labels).score(others, truth) < 0.3
    assert probe.score(others, truth) > 0.9
    # The noise has a standard deviation of 0.1.
    assert np.std(probe.predict(others) - truth) < 0.15
    low, high = probe.predict_interval(others, 0.9).T
    assert 0.86 < ((low <= truth) & (truth <= high)).mean() < 0.94
    far = Embeddings(("far",), torch.full((1, 2), 30.0), "encoder", "armillary-1", (("image/hsc",),))
    assert probe.is_outside(far).all()


def test_the_length_is_the_candidate_of_least_error_on_objects_left_out():
    given, labels = bent(200, 3)
    errors = {}
    for share in (0.03, 0.5, 30.0):
        fitted = KernelProbe(length_scales=(share,)).fit(given, labels)
        errors[fitted.length_scale_] = np.square(fitted.loo_residuals_).mean()
    probe = KernelProbe(length_scales=(0.03, 0.5, 30.0)).fit(given, labels)
    assert probe.length_scale_ == pytest.approx(min(errors, key=errors.get))
    classes = KernelProbe("classification", length_scales=(0.03, 0.5, 30.0)).fit(given, labels > 0.3)
    assert classes.length_scale_ == pytest.approx(sorted(errors)[1])


def test_some_landmarks_do_where_all_would_be_too_many():
    (given, labels), (others, _) = bent(500, 4), bent(300, 5)
    every = KernelProbe(length_scales=(1.0,)).fit(given, labels)
    some = KernelProbe(length_scales=(1.0,), num_landmarks=100).fit(given, labels)
    assert len(some.landmarks_) == 100
    assert np.std(some.predict(others) - every.predict(others)) < 0.05


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_saved_probe_predicts_the_same_and_is_known_as_what_it_is(tmp_path, task):
    given, labels = bent(120, 6)
    labels = labels if task == "regression" else labels > 0
    probe = KernelProbe(task, **QUICK).fit(given, labels)
    probe.save(tmp_path / "probe")
    loaded = load_probe(tmp_path / "probe", "armillary-1")
    assert type(loaded) is KernelProbe
    assert loaded.get_params() == probe.get_params()
    np.testing.assert_array_equal(loaded.predict(given), probe.predict(given))
    np.testing.assert_array_equal(loaded.novelty(given), probe.novelty(given))
    assert loaded.length_scale_ == probe.length_scale_
    assert "# Kernel probe" in (tmp_path / "probe" / "README.md").read_text()
    with pytest.raises(ProbeError, match="expected a linear probe, found a kernel one"):
        LinearProbe.load(tmp_path / "probe")
    with pytest.raises(ValueError, match="2 features"):
        loaded.predict(np.zeros((1, 3)))


@pytest.mark.parametrize("wrong", [{"length_scales": ()}, {"length_scales": (1.0, -1.0)}, {"num_landmarks": 1}])
def test_wrong_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KernelProbe(**wrong).fit(np.eye(4), np.arange(4.0))


def test_equal_embeddings_give_the_mean_label():
    probe = KernelProbe().fit(np.ones((5, 3)), np.arange(5.0))
    np.testing.assert_allclose(probe.predict(np.ones((2, 3))), 2.0)
