"""The demo asks its own model over HTTP: the server on a free loopback port, the client as a user would call it."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import ObservationDataset
from ..data.sky_split import read_parts
from ..models.foundation import FoundationModel
from ..serving.client.client import Client
from .evaluation import IMAGE, REDSHIFT, SPECTRUM
from .real_observations import DESI_GALAXY, read_desi_redshift
from .settings import DemoSettings

START_SECONDS = 120
STOP_SECONDS = 30


def ask(folder: Path, settings: DemoSettings) -> None:
    """Start the server, ask for an embedding, neighbours and redshifts, and write `<folder>/answers.json`.

    Raises RuntimeError if the server's embedding is not the local model's.
    """
    dataset = ObservationDataset(folder / "data")
    model = FoundationModel.load(folder / "align" / "checkpoint")
    parts = read_parts(folder / "parts")
    held_out = [i for i in dataset.object_ids(IMAGE) if parts.get(i) == "test" and i.startswith("sim-")]
    image = dataset.read(IMAGE, held_out[:1])
    real = dataset.read(SPECTRUM, [DESI_GALAXY])
    with running_server(folder) as url, Client(url) as client:
        embeddings = client.embed([image])
        local = model.embed([image])
        difference = float(np.abs(embeddings.numpy() - local.numpy()).max())
        if difference > 1e-4:
            raise RuntimeError(f"the server's embedding differs from the local one by {difference}, expected equal")
        neighbours = client.neighbours(image, k=5, target_modality=SPECTRUM, exclude_self=False)
        zero_shot = client.predict(REDSHIFT, image)
        of_model = client.predict(REDSHIFT, image, method="model")
        of_real = client.predict(REDSHIFT, real)
        answers: dict[str, Any] = {
            "object": held_out[0],
            "true_redshift": dataset.scalars([REDSHIFT])[REDSHIFT][held_out[0]],
            "embedding_size": embeddings.vectors.shape[1],
            "embedding_start": [round(x, 4) for x in embeddings.vectors[0, :4].tolist()],
            "neighbours": [[n.object_id, n.modality, round(n.similarity, 4)] for n in neighbours],
            "zero_shot": _plain(zero_shot),
            "masked_model": _plain(of_model),
            "real_desi_galaxy": {"redshift_by_redrock": read_desi_redshift(), **_plain(of_real)},
            "models": client.models(),
        }
    temporary = folder / "answers.json.tmp"
    temporary.write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "answers.json")


def serve_command(folder: Path) -> list[str]:
    """The command that serves the demo's model."""
    return ["serve", str(folder / "align" / "checkpoint"), "--index", str(folder / "index")]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """The server as a process of its own; gives its address, and ends it by TERM. Raises RuntimeError if it fails."""
    ready = folder / "server.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "armillary.cli", *serve_command(folder), "--port", "0", "--ready-file", str(ready)]
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready.is_file():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start; see {folder / 'server.log'}")
                time.sleep(0.1)
            yield json.loads(ready.read_text(encoding="utf-8"))["url"]
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _plain(prediction: Any) -> dict[str, Any]:
    return {
        "value": prediction.value,
        "intervals": [[i.level, i.lower, i.upper] for i in prediction.intervals],
        "calibrated": prediction.calibrated,
        "neighbours": [[n.object_id, n.modality] for n in prediction.neighbours[:5]],
    }
