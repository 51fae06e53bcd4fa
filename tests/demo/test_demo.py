"""The demo: its split and scores, and, slowly, the whole of it at small size, interrupted once."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import DatasetWriter
from armillary.data.sky_split import read_parts
from armillary.demo.real_observations import DESI_GALAXY, is_shown, read_real_images
from armillary.demo.redshift_scores import predict_with_trees, score, score_constant
from armillary.demo.settings import DemoSettings, SplitSettings
from armillary.demo.split import write_demo_parts
from armillary.settings import CONFIGS_FOLDER, load_settings

SMALL = [
    "sky.num_objects=500",
    "sky.image_sizes.image/legacysurvey=24",
    "sky.image_sizes.image/hsc=24",
    "tokenizers.image.width=32",
    "tokenizers.image.num_blocks=1",
    "tokenizers.image_loop.steps=12",
    "tokenizers.spectrum.width=32",
    "tokenizers.spectrum.num_blocks=1",
    "tokenizers.spectrum_loop.steps=12",
    "pretrain.loop.steps=40",
    "pretrain.loop.batch_size=16",
    "align.loop.steps=20",
    "align.loop.batch_size=16",
    "generation.num_objects=4",
    "generation.num_samples=3",
    "generation.num_stages=2",
    "supervised_steps=10",
]


def test_shown_real_objects_are_never_trained_on(tmp_path):
    with DatasetWriter(tmp_path / "data", allow_unplaced=True) as writer:
        images = read_real_images(24)
        writer.write(images)
    everything_trains = SplitSettings(order=5, test=0.0, validation=0.0, seed=0)

    write_demo_parts(tmp_path / "parts", ObservationDataset(tmp_path / "data"), everything_trains)

    assert set(read_parts(tmp_path / "parts").values()) == {"test"}
    assert is_shown(DESI_GALAXY)


def test_scores_follow_their_closed_forms():
    true = np.array([0.1, 0.2, 0.3, 0.4])
    shifted = true + 0.01 * (1 + true)

    scores = score("shifted", shifted, true, {0.68: (true - 1, true + 1), 0.95: (true + 1, true + 2)})

    assert scores.bias == pytest.approx(0.01)
    assert scores.scatter == pytest.approx(0.0, abs=1e-12)
    assert scores.outliers == 0
    assert (scores.coverage_68, scores.coverage_95) == (1.0, 0.0)
    assert scores.r2 == pytest.approx(1 - np.sum((0.01 * (1 + true)) ** 2) / np.sum((true - 0.25) ** 2))


def test_constant_has_no_skill_and_trees_find_a_relation():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 3))
    target = 0.3 + 0.05 * features[:, 0] + 0.005 * rng.normal(size=1200)

    constant = score_constant(target[:1000], target[1000:])
    median, intervals = predict_with_trees(features[:1000], target[:1000], features[1000:])

    assert constant.r2 < 0.05
    assert constant.coverage_68 == pytest.approx(0.68, abs=0.1)
    assert score("trees", median, target[1000:], intervals).r2 > 0.8


@pytest.mark.parametrize("name, num_objects", [("demo.yaml", 3000), ("recorded.yaml", 24_000)])
def test_shipped_settings_of_the_demo_are_valid(name, num_objects):
    assert load_settings(DemoSettings, CONFIGS_FOLDER / name).sky.num_objects == num_objects


@pytest.mark.slow
def test_demo_goes_on_after_an_interrupt_and_writes_its_report(tmp_path):
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "armillary.cli", "demo", "--folder", str(folder), *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}

    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        wait_for(folder / "tokenizers" / "image" / "metrics.csv", first)
        first.send_signal(signal.SIGINT)
        assert first.wait(120) == 130, (tmp_path / "first.log").read_text()
    shards = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*.parquet")}
    assert shards

    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)

    assert second.returncode == 0, second.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    report = (folder / "report.html").read_text()
    assert str(folder / "report.html") in second.stdout
    assert "armillary serve" in second.stdout
    assert report.count("data:image/png;base64,") >= 8
    text = re.sub(r"data:image/png;base64,[^']*", "", report)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert not re.search(r"(src|href)='[^']", text), "the report opens anywhere: it fetches nothing"
    results = json.loads((folder / "results.json").read_text())
    assert len(results["real_redshifts"]["scores"]) == 3
    assert set(results["generation"]["spectra"]) == {"1", "2"}
    assert len(results["generation"]["shown"]) == 3
    answers = json.loads((folder / "answers.json").read_text())
    assert answers["zero_shot"]["neighbours"]

    other = subprocess.run(
        [*command, "supervised_steps=11"], env=environment, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "other settings" in other.stderr
    assert yaml.safe_load((folder / "settings.yaml").read_text())["supervised_steps"] == 10


def wait_for(path, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the demo ended before it was interrupted"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.2)
