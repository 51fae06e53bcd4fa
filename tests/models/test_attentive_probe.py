"""Attentive probes learn what a mean over tokens loses, say how sure they are, and survive their file."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone

from armillary.models.attentive_probe import AttentiveProbe
from armillary.models.embeddings import EmbeddingsError
from armillary.models.probe_files import ProbeError
from armillary.models.probe_loading import load_probe
from armillary.models.probes import LinearProbe
from armillary.models.token_embeddings import TokenEmbeddings, layers_of

SMALL = {"width": 16, "num_queries": 2, "num_heads": 2, "members": 3, "epochs": 25, "learning_rate": 1e-2}


def tokens(count, seed=0, length=6, width=8, model_id="armillary-1"):
    """The token that has the mark says the label; the mean of all says little, for the others are as loud."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, length, width)).astype(np.float32)
    vectors[:, :, 0] = 0
    marked = rng.integers(0, length - 2, count)
    vectors[np.arange(count), marked, 0] = 3
    mask = np.ones((count, length), bool)
    mask[:, -1] = rng.random(count) < 0.5
    labels = vectors[np.arange(count), marked, 1] * 2 + 5 + 0.1 * rng.normal(size=count)
    ids = tuple(f"o{seed}-{i}" for i in range(count))
    made = TokenEmbeddings(ids, torch.from_numpy(vectors), torch.from_numpy(mask), model_id, (("image/hsc",),) * count)
    return made, labels


@pytest.fixture(scope="module")
def fitted():
    given, labels = tokens(600)
    return AttentiveProbe(**SMALL, label="scalar/redshift").fit(given, labels)


def test_it_finds_the_token_that_a_mean_loses(fitted):
    others, truth = tokens(600, seed=1)
    given, labels = tokens(600)
    assert fitted.score(others, truth) > 0.9
    assert LinearProbe().fit(given.pooled(), labels).score(others.pooled(), truth) < 0.4
    assert fitted.scores_["r2"] == pytest.approx(fitted.score(others, truth), abs=0.1)


def test_its_intervals_hold_what_they_say(fitted):
    others, truth = tokens(3000, seed=2)
    found = fitted.predict_full(others, levels=(0.68, 0.9))
    inside = (found.lower <= truth[:, None]) & (truth[:, None] <= found.upper)
    # Members are judged one by one, and their mean is better: intervals may be a little too wide.
    assert 0.66 < inside[:, 0].mean() < 0.8
    assert 0.88 < inside[:, 1].mean() < 0.96
    np.testing.assert_array_equal(fitted.predict_interval(others, 0.9), np.stack([found.lower, found.upper])[..., 1].T)


def test_masked_tokens_change_nothing_and_outliers_are_flagged(fitted):
    others, _ = tokens(200, seed=3)
    changed = torch.where(others.mask[..., None], others.vectors, 1e3)
    louder = TokenEmbeddings(others.object_id, changed, others.mask, others.model_id, others.modalities)
    np.testing.assert_array_equal(fitted.predict(louder), fitted.predict(others))
    far = TokenEmbeddings(others.object_id, others.vectors + 3, others.mask, others.model_id, others.modalities)
    assert fitted.is_outside(others).mean() < 0.05
    assert fitted.is_outside(far).mean() > 0.9


def test_a_saved_probe_predicts_the_same_and_refuses_others(fitted, tmp_path):
    others, _ = tokens(50, seed=4)
    fitted.save(tmp_path / "probe")
    loaded = load_probe(tmp_path / "probe", "armillary-1")
    assert isinstance(loaded, AttentiveProbe)
    one, two = fitted.predict_full(others), loaded.predict_full(others)
    np.testing.assert_array_equal(one.value, two.value)
    np.testing.assert_array_equal(one.upper, two.upper)
    np.testing.assert_allclose(one.novelty, two.novelty, atol=2e-3)
    assert loaded.get_params() == fitted.get_params()
    description = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert (description["label"], description["num_train"]) == ("scalar/redshift", 600)
    assert (description["model_id"], description["unit"]) == ("armillary-1", "dimensionless")
    with pytest.raises(ProbeError, match="model 'armillary-1', not of 'armillary-2'"):
        load_probe(tmp_path / "probe", "armillary-2")
    with pytest.raises(ProbeError, match="expected a linear probe, found a attentive one"):
        LinearProbe.load(tmp_path / "probe")
    with pytest.raises(ProbeError, match="model_id 'armillary-1', not of 'armillary-2'"):
        fitted.predict(tokens(3, model_id="armillary-2")[0])
    with pytest.raises(ValueError, match="width 8, found 5"):
        fitted.predict(np.zeros((2, 3, 5)))


def test_classes_come_with_calibrated_sets_and_labels_by_object_id(tmp_path):
    given, labels = tokens(700)
    names = np.where(labels > 5, "late", "early")
    by_id = dict(zip(given.object_id[:600], names[:600], strict=True))
    probe = AttentiveProbe("classification", **{**SMALL, "epochs": 12, "members": 2}).fit(given, by_id)
    assert probe.num_train_ == 600
    others, truth = tokens(2000, seed=5)
    found = probe.predict_full(others, levels=(0.9,))
    late = truth > 5
    assert np.mean((found.value == "late") == late) > 0.85
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    covered = found.sets[np.arange(len(late)), late.astype(int), 0]
    assert covered.mean() > 0.87
    probe.save(tmp_path / "probe")
    np.testing.assert_array_equal(load_probe(tmp_path / "probe").predict(others), found.value)


def test_equal_seeds_give_equal_probes_and_leave_the_callers_randomness_alone():
    given, labels = tokens(60)
    settings = {**SMALL, "epochs": 2}
    torch.manual_seed(5)
    one = AttentiveProbe(**settings).fit(given, labels).predict(given)
    after = torch.rand(1)
    two = clone(AttentiveProbe(**settings)).fit(given, labels).predict(given)
    np.testing.assert_array_equal(one, two)
    torch.manual_seed(5)
    assert after == torch.rand(1)


def test_wrong_input_is_a_clear_error():
    given, labels = tokens(40)
    with pytest.raises(ValueError, match="at least 20"):
        AttentiveProbe().fit(given.rows(range(5)), labels[:5])
    with pytest.raises(ValueError, match="one label for each of 40 objects"):
        AttentiveProbe().fit(given, labels[:30])
    with pytest.raises(ValueError, match="label 3 is not"):
        AttentiveProbe().fit(given, np.where(np.arange(40) == 3, np.nan, labels))
    with pytest.raises(ValueError, match="found shape"):
        AttentiveProbe().fit(np.zeros((40, 3)), labels)
    with pytest.raises(EmbeddingsError, match="object a: no valid token"):
        TokenEmbeddings(("a",), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool), "m", ((),))
    assert layers_of("encoder tokens 0+4") == (0, 4)
    assert layers_of("encoder tokens") == ()
