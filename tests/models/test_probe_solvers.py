"""Losses against their derivatives by differences, spectra against dense eigenvalues, minima against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from armillary.models.multirate import curvature_groups
from armillary.models.probe_solvers import choose_method, curvature_spectrum, lanczos, least_squares, logistic, minimise


def data(scales, num_objects=300, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(num_objects, len(scales))) * np.asarray(scales)
    features -= features.mean(0)
    labels = features @ (random.normal(size=len(scales)) / np.asarray(scales)) + random.normal(size=num_objects)
    return features, labels - labels.mean()


MULTISCALE = [100.0] * 4 + [1.0] * 4
SMOOTH = list(np.geomspace(100, 1, 12))


def losses():
    features, labels = data(MULTISCALE)
    classes = np.digitize(labels, np.quantile(labels, [1 / 3, 2 / 3]))
    return [least_squares(features, labels, 1e-3), logistic(features, classes, 1e-3)]


@pytest.mark.parametrize("loss", losses(), ids=["squares", "logistic"])
def test_gradient_and_curvature_are_derivatives_of_the_loss(loss):
    random = np.random.default_rng(1)
    weights, direction = random.normal(size=(2, loss.num_weights)) * 0.01
    for function, derivative in (
        (loss.value, lambda: loss.gradient(weights) @ direction),
        (loss.gradient, lambda: loss.curvature(weights, direction)),
    ):
        difference = (function(weights + 1e-4 * direction) - function(weights - 1e-4 * direction)) / 2e-4
        np.testing.assert_allclose(derivative(), difference, rtol=1e-5, atol=1e-8)


def test_lanczos_finds_the_ends_of_a_spectrum():
    values = np.concatenate([np.linspace(1, 2, 150), [50.0, 80.0]])
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(152, 152)))
    matrix = basis @ np.diag(values) @ basis.T
    found = lanczos(lambda vector: matrix @ vector, 152, 40)
    np.testing.assert_allclose(found[[0, 1, -1]], [80.0, 50.0, 1.0], atol=1e-3)
    whole = lanczos(lambda vector: matrix @ vector, 152, 152)
    np.testing.assert_allclose(whole, np.sort(values)[::-1], atol=1e-6)


def test_the_spectrum_of_least_squares_is_that_of_the_covariance():
    features, labels = data(SMOOTH)
    expected = np.linalg.svd(features, compute_uv=False) ** 2 / len(labels) + 0.1
    np.testing.assert_allclose(curvature_spectrum(least_squares(features, labels, 0.1), np.zeros(12)), expected)


@pytest.mark.parametrize("scales, chosen", [(MULTISCALE, "multirate"), (SMOOTH, "closed form")])
def test_ridge_is_scikit_learns_and_the_method_follows_the_gaps(scales, chosen):
    features, labels = data(scales)
    found, method = minimise(least_squares(features, labels, 1e-3))
    assert method == chosen
    assert found.has_converged
    expected = Ridge(alpha=1e-3 * len(labels), fit_intercept=False).fit(features, labels).coef_
    np.testing.assert_allclose(found.weights, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["multirate", "lbfgs"])
def test_logistic_regression_is_scikit_learns(method):
    features, labels = data([30.0] * 3 + [1.0] * 3)
    classes = (labels > 0).astype(int)
    loss = logistic(features, classes, 1e-2)
    found, _ = minimise(loss, method, tolerance=1e-7)
    assert found.has_converged
    # Two rows with opposite signs bear half the penalty of scikit-learn's one.
    expected = LogisticRegression(C=1 / (0.5e-2 * len(labels)), fit_intercept=False, tol=1e-10, max_iter=10_000)
    expected.fit(features, classes)
    weights = found.weights.reshape(-1, 2)
    np.testing.assert_allclose(weights[:, 1] - weights[:, 0], expected.coef_[0], rtol=1e-3, atol=1e-4)


def test_wide_groups_are_left_to_other_solvers():
    features, labels = data(SMOOTH)
    loss = least_squares(features, labels, 1e-3)
    assert choose_method(curvature_groups(np.geomspace(1, 1e6, 30)), loss) == "closed form"
    assert choose_method(curvature_groups(np.geomspace(1, 1e6, 30)), losses()[1]) == "lbfgs"


def test_what_cannot_be_solved_is_an_error():
    features, labels = data(SMOOTH)
    with pytest.raises(ValueError, match="no closed form"):
        minimise(losses()[1], "closed form")
    with pytest.raises(ValueError, match="must be finite"):
        minimise(least_squares(features, np.full_like(labels, np.nan), 1e-3))
