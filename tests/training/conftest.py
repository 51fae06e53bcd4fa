"""A dataset of simulated sky, tiny tokenizers and the tokens they make of it, written once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.data.token_store import TokenStore
from armillary.models.foundation import FoundationModel, new_transformer
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings
from armillary.training.tokenize import TokenizeSettings, tokenize

NAMES = ("image/legacysurvey", "spectrum/desi", "scalar/redshift")
NUM_OBJECTS = 24


@pytest.fixture(scope="module")
def one_thread():
    """Sums of floats depend on the number of threads; and a forked process lacks the threads of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Dataset folder: every object has a redshift, the first twenty an image, the last twenty a spectrum."""
    folder = tmp_path_factory.mktemp("data")
    settings = SkySettings(num_objects=NUM_OBJECTS, modalities=NAMES, image_sizes={"image/legacysurvey": 16}, seed=3)
    images, spectra, redshifts = next(simulate_sky(settings))
    write_dataset(folder, (images.select(slice(0, 20)), spectra.select(slice(4, None)), redshifts))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    torch.manual_seed(0)
    ImageTokenizer(
        ImageTokenizerSettings(
            max_frequency=3, num_latents=12, num_details=2, digits_per_token=3, width=16, num_blocks=1
        )
    ).save_pretrained(folder / "image")
    spectrum = SpectrumTokenizerSettings(
        width=16, num_blocks=1, num_windows=8, num_nodes=6, levels=(5, 5), num_amplitudes=16
    )
    SpectrumTokenizer(spectrum).save_pretrained(folder / "spectrum")
    redshift = ObservationDataset(data).read("scalar/redshift")
    scalar = ScalarTokenizer(ScalarTokenizerSettings(num_codes=8)).fit({"scalar/redshift": redshift.values.numpy()})
    scalar.save_pretrained(folder / "scalar")
    return folder


@pytest.fixture(scope="session")
def tokens(data, tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "store"
    settings = {"data": str(data), "tokenizers": str(tokenizer_folder), "tokens": str(folder)}
    assert tokenize(TokenizeSettings(**settings, shard_size=10, batch_size=7)) == 3 * 3
    return folder


@pytest.fixture(scope="session")
def untrained(tokens, tokenizer_folder, tmp_path_factory):
    """Checkpoint of an untrained model for the tokens, whose blocks do something all the same."""
    tokenizers = {
        "image": ImageTokenizer.from_pretrained(tokenizer_folder / "image"),
        "spectrum": SpectrumTokenizer.from_pretrained(tokenizer_folder / "spectrum"),
        "scalar": ScalarTokenizer.from_pretrained(tokenizer_folder / "scalar"),
    }
    torch.manual_seed(0)
    modalities = TokenStore(tokens).modalities
    transformer = new_transformer("nano", tokenizers, modalities)
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if name.endswith(("to_output.weight", "down.weight")):
                weight.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    FoundationModel(tokenizers, transformer, modalities).save(folder)
    return folder


@pytest.fixture(scope="session")
def pretrain_words(tokens, tokenizer_folder):
    """Words of the command line for a tiny run, but for its run folder."""
    return [
        "pretrain/nano.yaml",
        f"tokens={tokens}",
        f"tokenizers={tokenizer_folder}",
        "num_inputs=6",
        "num_targets=4",
        "loop.batch_size=4",
        "loop.warmup_steps=2",
        "loop.log_every=3",
        "loop.precision=32-true",
    ]


def start_cli(*words):
    """`armillary WORDS...` as a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    # A test session inside Slurm must not make its children believe that they are tasks of a job.
    environment = {name: value for name, value in environment.items() if not name.startswith("SLURM")}
    return subprocess.Popen(
        [sys.executable, "-m", "armillary.cli", *map(str, words)],
        env=environment,
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def cli():
    return start_cli
