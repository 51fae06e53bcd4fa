"""Runs of the image tokenizer: killed while its prior is learned and while it is trained, and on two processes."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from armillary.data.dataset import ObservationDataset
from armillary.settings import find_config, load_settings
from armillary.tokenizers.image import ImageTokenizer
from armillary.training.run_record import read_metrics, saved_steps
from armillary.training.tokenizers import TrainTokenizerSettings, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def words(data):
    sizes = {
        "max_frequency": 3,
        "num_latents": 12,
        "num_details": 4,
        "digits_per_token": 3,
        "width": 16,
        "num_blocks": 1,
    }
    return [
        "tokenizers/image.yaml",
        f"data={data}",
        *(f"image.{name}={value}" for name, value in sizes.items()),
        "prior.rounds=3",
        "prior.batches=8",
        "loop.steps=12",
        "loop.batch_size=4",
        "loop.checkpoint_every=3",
        "loop.log_every=3",
        "loop.precision=32-true",
    ]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train_tokenizer(settings_of(words, folder))
    return folder


def settings_of(words, folder):
    return load_settings(TrainTokenizerSettings, find_config(words[0]), [*words[1:], f"run={folder}"])


@pytest.mark.parametrize("stage", ["prior", "training"])
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(cli, words, whole, tmp_path, stage):
    process = cli("train-tokenizer", *words, f"run={tmp_path}")
    deadline = time.monotonic() + 120
    while not (list((tmp_path / "prior").glob("rounds-0*")) if stage == "prior" else saved_steps(tmp_path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train_tokenizer(settings_of(words, tmp_path))
    expected, found = (load_file(folder / "tokenizer" / "model.safetensors") for folder in (whole, tmp_path))
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_two_processes_learn_one_prior_and_one_tokenizer(cli, words, whole, data, tmp_path):
    process = cli("train-tokenizer", *words, f"run={tmp_path}", "loop.devices=2")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    one, two = (ImageTokenizer.from_pretrained(folder / "tokenizer") for folder in (whole, tmp_path))
    # Patches are chosen within a process's share of a batch, so the sums differ by a few of them.
    difference = (one.prior.covariance - two.prior.covariance).norm() / one.prior.covariance.norm()
    assert difference < 0.3
    images = ObservationDataset(data).read("image/legacysurvey")
    for tokenizer in (one, two):
        square = (tokenizer.decode(tokenizer.encode(images), images).flux - images.flux) ** 2 * images.inverse_variance
        nothing = images.flux**2 * images.inverse_variance
        assert square[images.mask].mean() < 0.1 * nothing[images.mask].mean()


def test_the_log_tells_chi2_and_the_use_of_codes(whole):
    row = read_metrics(whole / "metrics.csv")[-1]
    assert {"loss", "chi2", "chi2_on_sources", "codes_used", "code_perplexity"} <= row.keys()
    assert 0 < row["codes_used"] <= 1
    assert 1 <= row["code_perplexity"] <= 5**3
