"""Descent with several rates, against closed forms and plain gradient descent."""

import math

import numpy as np
import pytest

from armillary.models.multirate import CurvatureGroup, curvature_groups, multirate_descent, step_counts


def quadratic(eigenvalues, seed=0):
    """A quadratic with these eigenvalues in random directions, its gradient and its minimum."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.normal(size=(len(eigenvalues), len(eigenvalues))))
    matrix = basis @ np.diag(eigenvalues) @ basis.T
    minimum = random.normal(size=len(eigenvalues))
    return matrix, (lambda weights: matrix @ (weights - minimum)), minimum


TWO_GROUPS = np.concatenate([np.geomspace(1e4, 2e4, 10), np.geomspace(1, 2, 10)])


def test_groups_part_at_gaps_alone():
    groups = curvature_groups(np.array([1.0, 3e4, 1.5, 2e4, 0.0, 1e-14, 40.0, 60.0]))
    assert groups == [CurvatureGroup(2e4, 3e4), CurvatureGroup(40.0, 60.0), CurvatureGroup(1.0, 1.5)]
    assert len(curvature_groups(np.geomspace(1, 1e6, 50))) == 1
    for bad in (np.zeros(3), np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match="eigenvalue"):
            curvature_groups(bad)


def test_step_counts_are_those_of_the_formula():
    groups = [CurvatureGroup(5e3, 1e4), CurvatureGroup(40.0, 100.0), CurvatureGroup(0.5, 1.0)]
    counts = step_counts(groups, 0.5)
    second = (math.log(100) + math.log(2)) / -math.log(0.6)
    assert counts[1] == math.ceil(second)
    first = (counts[1] * math.log(100) + math.log(1e4) + math.log(2)) / -math.log(0.5)
    assert counts == [math.ceil(first), math.ceil(second), 1]


def test_it_finds_the_minimum_with_a_hundredth_of_the_gradients_of_plain_descent():
    matrix, gradient, minimum = quadratic(TWO_GROUPS)
    groups = curvature_groups(np.linalg.eigvalsh(matrix))
    assert len(groups) == 2
    found = multirate_descent(gradient, np.zeros(20), groups, 1e-8)
    assert found.has_converged
    np.testing.assert_allclose(found.weights, minimum, atol=1e-3)
    one = [CurvatureGroup(groups[-1].least, groups[0].largest)]
    plain = multirate_descent(gradient, np.zeros(20), one, 1e-8, max_gradients=100 * found.num_gradients)
    assert not plain.has_converged


def test_each_cycle_contracts_every_group():
    """The bound that the counts are made for."""
    groups = curvature_groups(TWO_GROUPS)
    counts = step_counts(groups, 0.5)
    factors = np.ones(len(TWO_GROUPS))
    for group, count in zip(groups, counts, strict=True):
        factors *= np.abs(1 - TWO_GROUPS / group.largest) ** count
    assert (factors[TWO_GROUPS >= 1e4] <= 0.5).all()
    assert (factors[TWO_GROUPS <= 2] <= 0.5 + 1e-9).all()


def test_noise_in_the_gradient_makes_it_diverge_and_that_is_said():
    """As mini-batches do: what a large step adds in stiff directions is blown up."""
    matrix, gradient, _ = quadratic(TWO_GROUPS)
    wrong = curvature_groups(np.linalg.eigvalsh(matrix) / 100)  # groups of another loss
    with pytest.raises(FloatingPointError, match="expected groups that hold all eigenvalues"):
        multirate_descent(gradient, np.zeros(20), wrong)


def test_a_start_at_the_minimum_is_left_alone():
    found = multirate_descent(lambda weights: np.zeros(3), np.ones(3), [CurvatureGroup(1.0, 1.0)])
    assert found.has_converged
    assert found.num_gradients == 1
