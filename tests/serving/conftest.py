import contextlib
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import FakeModel, embedding_table, images, spectra

from armillary.serving.index import EmbeddingIndex

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


@contextlib.contextmanager
def running(app):
    """The app on a free port of the loopback, in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def run():
    return running
