import json

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from armillary.models.embeddings import Embeddings
from armillary.models.probes import LinearProbe, ProbeError

FEW = (1e-2, 1.0)


@parametrize_with_checks([LinearProbe(penalties=FEW), LinearProbe("classification", penalties=FEW, folds=2)])
def test_scikit_learn_accepts_the_probe(estimator, check):
    check(estimator)


def embeddings(count=200, dimension=6, seed=0, model_id="armillary-1", space="aligned"):
    vectors = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    ids = tuple(str(i) for i in range(count))
    return Embeddings(ids, vectors, space, model_id, (("image/hsc",),) * count)


def linear_labels(vectors, noise=0.3, seed=1):
    rng = np.random.default_rng(seed)
    return vectors @ np.arange(1, vectors.shape[1] + 1) / 3 + 5 + noise * rng.normal(size=len(vectors))


def ridge_by_hand(features, labels, penalty_sum):
    """Ridge regression with an unpenalised intercept, from the normal equations."""
    centre, mean = features.mean(0), labels.mean()
    x = features - centre
    coef = np.linalg.solve(x.T @ x + penalty_sum * np.eye(x.shape[1]), x.T @ (labels - mean))
    return coef, mean - centre @ coef


def test_leave_one_out_residuals_and_penalty_equal_brute_force():
    given = embeddings(count=40)
    features = given.numpy().astype(np.float64)
    labels = linear_labels(features, noise=3.0)
    penalties = (1e-3, 0.1, 1.0, 10.0)
    probe = LinearProbe(penalties=penalties).fit(given, labels)
    scaled = (features - features.mean(0)) / np.sqrt(np.mean((features - features.mean(0)) ** 2))
    residuals = {}
    for penalty in penalties:
        residuals[penalty] = []
        for i in range(40):
            rest = np.arange(40) != i
            coef, intercept = ridge_by_hand(scaled[rest], labels[rest], penalty * 40)
            residuals[penalty].append(abs(labels[i] - scaled[i] @ coef - intercept))
    best = min(penalties, key=lambda penalty: np.mean(np.square(residuals[penalty])))
    assert probe.penalty_ == pytest.approx(best)
    np.testing.assert_allclose(probe.loo_residuals_, np.sort(residuals[best]), rtol=1e-6)
    coef, intercept = ridge_by_hand(scaled, labels, best * 40)
    np.testing.assert_allclose(probe.predict(given), scaled @ coef + intercept, rtol=1e-8)


@pytest.mark.parametrize("level", [0.5, 0.68, 0.95])
def test_intervals_cover_what_they_claim(level):
    probe = LinearProbe().fit(embeddings(1000), linear_labels(embeddings(1000).numpy()))
    others = embeddings(4000, seed=7)
    truth = linear_labels(others.numpy(), seed=8)
    low, high = probe.predict_interval(others, level).T
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(level, abs=0.04)


def test_intervals_are_infinite_where_the_fit_is_too_small_for_the_level():
    probe = LinearProbe().fit(embeddings(10), linear_labels(embeddings(10).numpy()))
    assert np.isinf(probe.predict_interval(embeddings(3), 0.95)).all()
    assert np.isfinite(probe.predict_interval(embeddings(3), 0.5)).all()


def test_classes_are_told_apart_and_probabilities_sum_to_one():
    features, labels = load_iris(return_X_y=True)
    names = np.array(["spiral", "elliptical", "merger"])[labels]
    probe = LinearProbe("classification", penalties=(1e-3, 1e-1, 10.0)).fit(features, names)
    assert probe.penalty_ == 1e-3
    assert probe.score(features, names) > 0.95
    probabilities = probe.predict_proba(features)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probe.classes_[probabilities.argmax(1)] == probe.predict(features)).all()


def test_probabilities_equal_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    for classes in (2, 3):
        x, y = features[labels < classes], labels[labels < classes]
        probe = LinearProbe("classification", penalties=(0.01,)).fit(x, y)
        scaled = (x - x.mean(0)) / np.sqrt(np.mean((x - x.mean(0)) ** 2))
        reference = LogisticRegression(C=1 / (0.01 * len(y)), max_iter=5000).fit(scaled, y)
        # Undone: the temperature that the folds found.
        powers = probe.predict_proba(x) ** probe.temperature_
        np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), reference.predict_proba(scaled), atol=1e-3)


def test_clone_and_cross_validation_work():
    probe = LinearProbe(penalties=FEW)
    assert clone(probe).get_params() == probe.get_params()
    given = embeddings()
    assert min(cross_val_score(probe, given.numpy(), linear_labels(given.numpy()), cv=3)) > 0.9
    assert is_regressor(probe)
    assert is_classifier(LinearProbe("classification"))


def test_methods_of_the_other_task_are_absent():
    assert not hasattr(LinearProbe(), "predict_proba")
    assert not hasattr(LinearProbe("classification"), "predict_interval")


def test_nan_and_wrong_width_are_clear_errors():
    given = embeddings()
    labels = linear_labels(given.numpy())
    broken = given.numpy().copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        LinearProbe().fit(broken, labels)
    with pytest.raises(ValueError, match="NaN"):
        LinearProbe().fit(given, np.where(np.arange(200) == 4, np.nan, labels))
    probe = LinearProbe().fit(given, labels)
    with pytest.raises(ValueError, match="NaN"):
        probe.predict(broken)
    with pytest.raises(ValueError, match="X has 5 features, but LinearProbe is expecting 6"):
        probe.predict(given.numpy()[:, :5])


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_saved_probe_predicts_the_same(tmp_path, task):
    given = embeddings()
    labels = linear_labels(given.numpy())
    labels = labels if task == "regression" else np.where(labels > 5, "late", "early")
    probe = LinearProbe(task, penalties=FEW).fit(given, labels)
    probe.save(tmp_path / "probe")
    loaded = LinearProbe.load(tmp_path / "probe", model_id="armillary-1")
    assert (loaded.predict(given) == probe.predict(given)).all()
    assert loaded.get_params() == probe.get_params()
    assert (loaded.model_id_, loaded.space_) == ("armillary-1", "aligned")
    if task == "regression":
        np.testing.assert_array_equal(loaded.predict_interval(given), probe.predict_interval(given))
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == [
        "README.md",
        "probe.json",
        "probe.safetensors",
    ]


def test_other_models_and_spaces_are_refused(tmp_path):
    given = embeddings()
    probe = LinearProbe().fit(given, linear_labels(given.numpy()))
    with pytest.raises(ProbeError, match="model_id 'armillary-1', not of 'armillary-2'"):
        probe.predict(embeddings(model_id="armillary-2"))
    with pytest.raises(ProbeError, match="space 'aligned', not of 'encoder'"):
        probe.predict(embeddings(space="encoder"))
    probe.save(tmp_path / "probe")
    with pytest.raises(ProbeError, match="model 'armillary-1', not of 'armillary-2'"):
        LinearProbe.load(tmp_path / "probe", model_id="armillary-2")


def test_damaged_files_are_refused(tmp_path):
    given = embeddings()
    LinearProbe().fit(given, linear_labels(given.numpy())).save(tmp_path / "probe")
    content = (tmp_path / "probe" / "probe.safetensors").read_bytes()
    (tmp_path / "probe" / "probe.safetensors").write_bytes(content[:-40])
    with pytest.raises(ProbeError, match="not a saved probe"):
        LinearProbe.load(tmp_path / "probe")
    (tmp_path / "probe" / "probe.safetensors").write_bytes(content)
    description = json.loads((tmp_path / "probe" / "probe.json").read_text())
    (tmp_path / "probe" / "probe.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(ProbeError, match="format_version is 99"):
        LinearProbe.load(tmp_path / "probe")
