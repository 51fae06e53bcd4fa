"""Probes as files and on the Hub: what they say of themselves, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import load_file, save_file

from armillary.models import probe_files
from armillary.models.embeddings import Embeddings
from armillary.models.probe_card import probe_card
from armillary.models.probe_files import ProbeError
from armillary.models.probe_loading import load_probe
from armillary.models.probes import LinearProbe


class FakeHub(HfApi):
    """A Hub in a folder: the calls of `huggingface_hub.HfApi` that a push makes."""

    def __init__(self, folder, is_private=True):
        super().__init__()
        self.folder, self.is_private, self.created = folder, is_private, []

    def create_repo(self, repo_id, repo_type, private, exist_ok):
        self.created.append((repo_id, repo_type, private))
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id, repo_type):
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, repo_id, repo_type, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id)


@pytest.fixture(scope="module")
def probe():
    vectors = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    ids = tuple(f"object-{i}" for i in range(200))
    given = Embeddings(ids, vectors, "aligned", "armillary-1", (("image/hsc",),) * 200)
    labels = {i: float(value) for i, value in zip(ids, vectors.sum(1) + 0.1 * vectors[:, 0] ** 2, strict=True)}
    return LinearProbe(label="scalar/redshift").fit(given, labels)


def test_a_pushed_probe_comes_back_and_its_card_tells_what_it_is(probe, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path)
    assert probe.push_to_hub("astro/redshift", api=hub) == "https://huggingface.co/astro/redshift"
    assert hub.created == [("astro/redshift", "model", True)]
    monkeypatch.setattr(probe_files, "snapshot_download", lambda repo_id, allow_patterns: str(tmp_path / repo_id))
    for loaded in (load_probe("astro/redshift", "armillary-1"), LinearProbe.from_pretrained("astro/redshift")):
        np.testing.assert_array_equal(loaded.predict(np.ones((2, 5))), probe.predict(np.ones((2, 5))))
    card = (tmp_path / "astro/redshift" / "README.md").read_text()
    for said in (
        "scalar/redshift, in dimensionless",
        "`armillary-1`",
        "aligned",
        "image/hsc",
        "| training objects | 200",
    ):
        assert said in card
    assert f"| r2 | {probe.scores_['r2']:.4g} |" in card
    assert card.startswith("---\n")


def test_a_public_repository_is_not_pushed_to_by_accident(probe, tmp_path):
    with pytest.raises(ProbeError, match="exists already and is public"):
        probe.push_to_hub("astro/redshift", api=FakeHub(tmp_path, is_private=False))
    assert probe.push_to_hub("astro/redshift", private=False, api=FakeHub(tmp_path, is_private=False))


def test_what_the_hub_refuses_is_said(probe, tmp_path):
    hub = FakeHub(tmp_path)

    def refuse(*_arguments, **_names):
        raise HfHubHTTPError("403 Forbidden", response=SimpleNamespace(headers={}, request=None))

    hub.create_repo = refuse
    with pytest.raises(ProbeError, match=r"the Hub answered.*403"):
        probe.push_to_hub("astro/redshift", api=hub)


def test_neither_folder_nor_hub_id_is_an_error(tmp_path):
    with pytest.raises(ProbeError, match="expected a folder or a Hub id"):
        load_probe(tmp_path / "nothing")


def test_the_description_has_label_unit_size_scores_and_diagnosis(probe, tmp_path):
    probe.save(tmp_path / "probe")
    said = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert (said["label"], said["unit"], said["num_train"]) == ("scalar/redshift", "dimensionless", 200)
    assert said["scores"]["r2"] > 0.9
    assert said["solver"] == "closed form"
    assert said["diagnosis"]["condition_number"] > 1
    given = np.random.default_rng(3).normal(size=(40, 5)) * 3
    loaded = load_probe(tmp_path / "probe")
    one, two = probe.predict_full(given), loaded.predict_full(given)
    np.testing.assert_allclose(one.lower, two.lower)
    np.testing.assert_allclose(one.novelty, two.novelty, atol=6e-3)
    np.testing.assert_array_equal(one.is_outside, two.is_outside)


def test_probes_of_format_1_still_load(probe, tmp_path):
    probe.save(tmp_path / "probe")
    arrays = load_file(tmp_path / "probe" / "probe.safetensors")
    save_file({name: arrays[name] for name in ("coef", "intercept", "loo_residuals")}, tmp_path / "old.safetensors")
    old = {"format_version": 1, "task": "regression", "penalties": [0.1, 1.0], "folds": 5, "penalty": 0.1}
    old |= {"model_id": "armillary-1", "space": "aligned"}
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(old))
    (tmp_path / "old.safetensors").replace(tmp_path / "probe" / "probe.safetensors")
    loaded = load_probe(tmp_path / "probe", "armillary-1")
    given = np.ones((2, 5))
    np.testing.assert_array_equal(loaded.predict(given), probe.predict(given))
    found = loaded.predict_full(given)
    assert found.is_outside is None
    assert np.isfinite(found.upper).all()


def test_several_labels_at_once_equal_each_alone(tmp_path):
    rng = np.random.default_rng(0)
    given = rng.normal(size=(150, 4))
    labels = given @ rng.normal(size=(4, 2)) + rng.normal(size=(150, 2)) * [0.1, 3.0]
    both = LinearProbe().fit(given, labels)
    both.save(tmp_path / "probe")
    loaded = load_probe(tmp_path / "probe")
    for column in range(2):
        alone = LinearProbe().fit(given, labels[:, column])
        np.testing.assert_allclose(loaded.predict(given)[:, column], alone.predict(given))
        np.testing.assert_allclose(loaded.predict_interval(given, 0.9)[:, column], alone.predict_interval(given, 0.9))
        assert both.penalty_[column] == alone.penalty_


def test_labels_by_object_id_need_embeddings_that_have_some():
    with pytest.raises(ValueError, match="found an array"):
        LinearProbe().fit(np.ones((3, 2)), {"a": 1.0})


@pytest.mark.parametrize(
    ("space", "call"),
    [
        ("aligned", 'model.embed(observations, space="aligned")'),
        ("encoder tokens", "model.embed_tokens(observations)"),
        (
            "encoder tokens 0+4 of scalar/sdss_u+scalar/sdss_g",
            "model.embed_tokens(observations, layers=(0, 4)).side_by_side()",
        ),
    ],
)
def test_the_card_says_how_the_vectors_are_made(probe, space, call):
    assert f"probe.predict_full({call})\n" in probe_card(probe.describe() | {"space": space})
