"""One Slurm cluster for the session, and the tiny sky, tokenizers and tokens of the tests of training."""

import tempfile

import pytest

from ..training.conftest import data, pretrain_words, tokenizer_folder, tokens
from .slurm_cluster import SlurmCluster

__all__ = ["cluster", "data", "pretrain_words", "tokenizer_folder", "tokens"]


@pytest.fixture(scope="session")
def cluster():
    """A real cluster of two nodes. Nothing of it is left in the end: no job, no daemon, no process of a job."""
    # Not pytest's folder: its path is too long for Slurm's sockets.
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        with SlurmCluster(folder) as cluster:
            yield cluster
        assert cluster.processes() == []
