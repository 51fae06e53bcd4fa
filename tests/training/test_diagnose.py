"""`armillary diagnose` says in words and pictures what spectra imply."""

import json

import numpy as np
import pytest
from PIL import Image

from armillary.cli import main
from armillary.models.embeddings import EmbeddingsError, write_embedding_shard
from armillary.training.diagnose import diagnose


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    ids = [f"o{i}" for i in range(300)]
    scales = np.array([30.0] * 4 + [0.3] * 12)
    vectors = rng.normal(size=(300, 16)) * scales
    write_embedding_shard(folder / "a.parquet", ids, "image/hsc", vectors, model_id="armillary-1", space="encoder")
    return folder


def test_gaps_are_found_drawn_and_told(shards, tmp_path):
    text = diagnose(shards, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = report["spectra"]["embeddings of image/hsc"]
    assert [group["eigenvalues"] for group in found["groups"]] == [4, 12]
    assert found["predicted_gradients"]["multirate"] < found["predicted_gradients"]["gradient_descent"] / 10
    assert "Gaps part 2 groups" in text
    assert (tmp_path / "out" / "report.txt").read_text() == text + "\n"
    with Image.open(tmp_path / "out" / "spectra.png") as picture:
        assert picture.width > 300


def test_too_few_objects_are_an_error_that_names_what_is_there(shards, tmp_path):
    with pytest.raises(EmbeddingsError, match=r"of spectrum/desi, found 0; it has \['image/hsc'\]"):
        diagnose(shards, tmp_path / "out", modality="spectrum/desi")


def test_the_command_prints_the_text(shards, tmp_path, capsys):
    assert main(["diagnose", str(shards), "--output", str(tmp_path / "out")]) == 0
    assert "effective rank" in capsys.readouterr().out
