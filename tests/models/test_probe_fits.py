"""Every solver of a probe finds the same probe, and says why it was taken."""

import numpy as np
import pytest

from armillary.models import probe_fits
from armillary.models.probe_diagnosis import diagnose_spectrum
from armillary.models.probe_solvers import covariance_spectrum
from armillary.models.probes import LinearProbe


def gapped(count=120, seed=0):
    """Features of which two are a hundred times as large as the other four."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6)) * [100, 100, 1, 1, 1, 1]
    return features, features @ [0.01, -0.01, 1, 1, -1, 0.5] + 0.3 * rng.normal(size=count)


@pytest.mark.parametrize("solver", ["multirate", "lbfgs"])
def test_regression_agrees_with_the_closed_form(solver):
    features, labels = gapped()
    penalties = (1e-4,)
    exact = LinearProbe(penalties=penalties).fit(features, labels)
    found = LinearProbe(penalties=penalties, solver=solver, folds=3).fit(features, labels)
    assert (exact.solver_, found.solver_) == ("closed form", solver)
    np.testing.assert_allclose(found.predict(features), exact.predict(features), atol=1e-4)
    assert found.scores_["r2"] == pytest.approx(exact.scores_["r2"], abs=0.03)


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_by_multirate_agrees_with_lbfgs(classes):
    features, labels = gapped()
    named = np.digitize(labels, np.quantile(labels, np.arange(1, classes) / classes))
    probes = [
        LinearProbe("classification", penalties=(1e-2,), solver=solver, folds=2).fit(features, named)
        for solver in ("multirate", "lbfgs")
    ]
    one, two = (probe.predict_proba(features) for probe in probes)
    np.testing.assert_allclose(one, two, atol=3e-3)


def test_auto_takes_several_rates_where_there_is_a_gap_and_says_so(monkeypatch):
    features, labels = gapped()
    named = labels > np.median(labels)
    penalties = (1e-6,)
    probe = LinearProbe("classification", penalties=penalties, folds=2).fit(features, named)
    assert probe.diagnosis_["why"].startswith("2 groups of eigenvalues")
    even = LinearProbe("classification", penalties=penalties, folds=2).fit(features / features.std(0), named)
    assert (even.solver_, even.diagnosis_["why"]) == ("lbfgs", "no gap among the eigenvalues")
    monkeypatch.setattr(probe_fits, "DENSE_SIZE", 3)
    assert LinearProbe(penalties=penalties, folds=2).fit(features, labels).solver_ == "multirate"
    assert LinearProbe(penalties=penalties, folds=2).fit(features / features.std(0), labels).solver_ == "lbfgs"


def test_a_logistic_loss_has_no_closed_form_and_unknown_solvers_are_named():
    features, labels = gapped(30)
    with pytest.raises(ValueError, match="has no closed form"):
        LinearProbe("classification", solver="closed form").fit(features, labels > 0)
    with pytest.raises(ValueError, match=r"solver must be one of .*found 'adam'"):
        LinearProbe(solver="adam").fit(features, labels)


def test_a_spectrum_is_told_by_rank_groups_and_gradients():
    found = diagnose_spectrum(np.array([4.0, 4.0, 2.0, 0.02, 0.02, 0.01, 0.0]))
    assert (found.num_positive, found.group_sizes, found.has_gap) == (6, (3, 3), True)
    assert found.condition_number == pytest.approx(400)
    assert found.multirate < found.gradient_descent / 10
    shares = np.array([4.0, 4.0, 2.0, 0.02, 0.02, 0.01]) / 10.05
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    smooth = diagnose_spectrum(np.geomspace(1, 1e-3, 40))
    assert (smooth.has_gap, smooth.multirate) == (False, None)
    assert diagnose_spectrum(np.ones(5)).gradient_descent == 1


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_the_covariance_spectrum_equals_numpys(shape):
    features = np.random.default_rng(0).normal(size=shape)
    expected = np.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1][: min(shape)]
    np.testing.assert_allclose(covariance_spectrum(features), expected, atol=1e-12)
