import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import FakeModel, embedding_table, images, spectra
from live_server import running

from armillary.serving.index.embedding_index import EmbeddingIndex

NUM_OBJECTS = 120


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory):
    """120 objects with an image whose brightness is their redshift; the first 60 with a spectrum; 100 labelled."""
    table = embedding_table(FakeModel(), [images(NUM_OBJECTS), spectra(60)])
    labels = {
        "object_id": [f"object-{i}" for i in range(100)],
        "scalar/redshift": np.linspace(0, 1, NUM_OBJECTS)[:100],
        "scalar/stellar_mass": np.full(100, np.nan),
    }
    folder = tmp_path_factory.mktemp("indexes") / "index"
    EmbeddingIndex.build(table, labels).save(folder)
    return folder


@pytest.fixture(scope="session")
def index(index_folder):
    return EmbeddingIndex.load(index_folder)


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def run():
    return running
