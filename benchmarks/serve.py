"""The server against the bare model, the bare index and a bare echo server, with load from a second process.

A model (a checkpoint, or an untrained nano one) and an index of made-up vectors are served by `armillary serve` with
its caches off. Callers on connections that stay open post images as .npy and take vectors as .npy; or vectors as base64
and take ten neighbours. Throughputs are measured in turns with those of the bare model (in its best batch of those
tried) and of the bare index (in the same batches) in this process, whose memory is kept as the server's is
(`serving/allocator.py`); ratios are medians over the turns.
The echo server is uvicorn with an ASGI function that reads the body and answers as many bytes as a vector has.

`embed_ratio_to_model`: objects per second over HTTP by 16 callers with 16 objects each, over the bare model's.
`search_ratio_to_index`: queries per second over HTTP by 4 callers that send 64 vectors at once (.npy in, Arrow out),
over the bare index's with as many at once. `search_one_by_one_ratio`: by 16 callers that send one (JSON), over the bare
index's with one.

    python benchmarks/serve.py [--quick] [--checkpoint FOLDER] [--rows N] [--device cuda]
"""

# ruff: noqa: E402 - memory must be kept before numpy and torch are imported

import argparse
import asyncio
import base64
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armillary.serving.allocator import keep_freed_memory

# As the server does, before numpy and torch have threads: the bare model is slower without.
keep_freed_memory()

import numpy as np
import torch

from armillary.data.observations import ImageObservation
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.models.alignment import AlignmentHead, AlignmentHeadSettings
from armillary.models.embeddings import write_embedding_shard
from armillary.models.foundation import FoundationModel, new_transformer
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings

MODALITY = "image/legacysurvey"
SIDE, NUM_IMAGES, K = 48, 64, 10
BATCHES = (16, 64)
CALLERS = (1, 16, 64)
NPY, ARROW = "application/x-npy", "application/vnd.apache.arrow.stream"
MANY = 64
"""Queries of a batch."""


def untrained_model(folder: Path, aligned_width: int = 512) -> FoundationModel:
    """A nano model that has seen nothing: as fast as a trained one."""
    torch.manual_seed(0)
    (scalars,) = next(simulate_sky(SkySettings(num_objects=200, modalities=("scalar/redshift",))))
    tokenizers = {
        "image": ImageTokenizer(
            ImageTokenizerSettings(max_frequency=5, spectral_orders=(5, 4, 3), num_latents=40, num_details=3)
        ).eval(),
        "spectrum": SpectrumTokenizer(SpectrumTokenizerSettings(num_windows=96, num_nodes=72)).eval(),
        "scalar": ScalarTokenizer(ScalarTokenizerSettings(num_codes=256)).fit(
            {"scalar/redshift": scalars.values[scalars.mask].numpy()}
        ),
    }
    modalities = (images(1).modality, scalars.modality)
    transformer = new_transformer("nano", tokenizers, modalities)
    head = AlignmentHead(AlignmentHeadSettings(input_width=transformer.config.width, aligned_width=aligned_width))
    model = FoundationModel(tokenizers, transformer, modalities, head)
    model.save(folder)
    return model


def images(count: int) -> ImageObservation:
    """Simulated images, all of one size."""
    settings = SkySettings(num_objects=count, modalities=(MODALITY,), image_sizes={MODALITY: SIDE}, seed=3)
    (found,) = next(simulate_sky(settings))
    return found


def build_index(folder: Path, model: FoundationModel, rows: int) -> EmbeddingIndex:
    """An index of made-up unit vectors."""
    random = np.random.default_rng(0)
    size = model.embedding_size("aligned")
    centres = random.normal(size=(1000, size))
    vectors = centres[random.integers(0, 1000, rows)] + 0.7 * random.normal(size=(rows, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_embedding_shard(
        folder / "shards" / "part-00000.parquet",
        [f"object-{row}" for row in range(rows)],
        MODALITY,
        vectors,
        model_id=model.model_id,
        space="aligned",
        ra=random.uniform(0, 360, rows),
        dec=random.uniform(-60, 60, rows),
    )
    EmbeddingIndex.build(folder / "shards").save(folder / "index")
    return EmbeddingIndex.load(folder / "index")


def npy(array: np.ndarray) -> bytes:
    """The array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def http_request(path: str, body: bytes, content_type: str, accept: str) -> bytes:
    """A whole POST request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """The body of the next answer. Raises RuntimeError unless its status is 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    body = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{head!r} {body[:500]!r}")
    return body


async def load(port: int, requests: list[bytes], callers: int, seconds: float) -> dict[str, Any]:
    """Answers per second, and latencies in ms, of callers that each ask again once they are answered."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def call(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        turn = number
        while (now := time.perf_counter()) < until:
            writer.write(requests[turn % len(requests)])
            await writer.drain()
            await one_answer(reader)
            latencies.append(time.perf_counter() - now)
            turn += callers
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(call(number) for number in range(callers)))
    wall = time.perf_counter() - began
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return {"per_s": len(latencies) / wall, "p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def run_caller() -> None:
    """The process of the callers: one line of JSON in for each load, one out."""
    for line in sys.stdin:
        asked = json.loads(line)
        requests = [base64.b64decode(request) for request in asked.pop("requests")]
        sys.stdout.write(json.dumps(asyncio.run(load(requests=requests, **asked))) + "\n")
        sys.stdout.flush()


class Callers:
    """That process, as seen from here."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--callers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def load(self, port: int, requests: list[bytes], callers: int, seconds: float) -> dict[str, Any]:
        """See `load`."""
        asked = {"port": port, "callers": callers, "seconds": seconds}
        encoded = [base64.b64encode(request).decode() for request in requests]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**asked, "requests": encoded}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def start(arguments: list[str], ready: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server process, and its port once it answers."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{arguments}: ended with {process.returncode}")
        time.sleep(0.05)
    return process, int(json.loads(ready.read_text())["url"].rpartition(":")[2])


ECHO = """
import sys
from armillary.serving.server import run_app
from armillary.serving.service import Service

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    body = bytes(int(sys.argv[2]))
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

class State: service = Service(None)
app.state = State()
run_app(app, ready_file=sys.argv[1])
"""


def rate(work: Callable[[], int], seconds: float) -> float:
    """Things done per second by `work`, which says how many it did."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    seconds, turns = (1.2, 3) if options.quick else (6.0, 5)
    """Of a figure of the model; those of the index and the echo server need half of it."""
    if options.checkpoint is None:
        untrained_model(folder / "checkpoint")
    checkpoint = options.checkpoint or folder / "checkpoint"
    model = FoundationModel.load(checkpoint, device=options.device)
    index = build_index(folder, model, options.rows or (20_000 if options.quick else 200_000))
    given = images(NUM_IMAGES)
    flux = given.flux.numpy()
    bands = ",".join(given.bands)
    sizes = {
        batch: [given.select(slice(start, start + batch)) for start in range(0, NUM_IMAGES, batch)] for batch in BATCHES
    }

    def bare_model(batch: int) -> Callable[[], int]:
        return lambda: sum(len(model.embed([part], batch_size=batch)) for part in sizes[batch])

    path = f"/v1/embeddings?modality={MODALITY}&bands={bands}"
    embed = {
        count: [http_request(path, npy(flux[start : start + count]), NPY, NPY) for start in range(0, NUM_IMAGES, count)]
        for count in (1, 16)
    }
    random = np.random.default_rng(1)
    queries = index.vector("object-5")[None] + 0.02 * random.normal(size=(200, index.manifest.dimension))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    search = [
        http_request(
            f"/v1/collections/{index.manifest.name}/search",
            json.dumps({"vector": base64.b64encode(query.tobytes()).decode(), "k": K}).encode(),
            "application/json",
            "application/json",
        )
        for query in queries
    ]

    search_many = [
        http_request(
            f"/v1/collections/{index.manifest.name}/search?k={K}", npy(queries[start : start + MANY]), NPY, ARROW
        )
        for start in range(0, len(queries) - MANY + 1, MANY)
    ]

    def bare_index(count: int) -> int:
        for start in range(0, len(queries) - count + 1, count):
            index.search(queries[start : start + count], K)
        return len(queries) // count * count

    callers = Callers()
    place, ready = str(folder / "index"), folder / "ready.json"
    command = [sys.executable, "-m", "armillary.cli", "serve", str(checkpoint), "--index", place, "--port", "0"]
    server, port = start(
        [
            *command,
            "--device",
            options.device,
            "--ready-file",
            str(ready),
            "--set",
            "engine.cache_mib=0",
            "--set",
            "engine.token_cache_mib=0",
        ],
        ready,
    )
    echo, echo_port = start(
        [sys.executable, "-c", ECHO, str(folder / "echo.json"), str(4 * index.manifest.dimension + 128)],
        folder / "echo.json",
    )
    figures: dict[str, Any] = {
        "machine": f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name(),
        "model_id": model.model_id,
        "image": list(flux.shape[1:]),
        "index_rows": sum(index.manifest.num_rows_of_modality.values()),
        "index_type": index.manifest.index_type,
    }
    try:
        bare_model(BATCHES[0])()
        rows: dict[str, list[float]] = {
            name: [] for name in ("embed", "search", "search_one", "model", "index", "index_one")
        }
        for _ in range(turns):
            rows["model"].append(max(rate(bare_model(batch), seconds) for batch in BATCHES))
            rows["embed"].append(16 * callers.load(port, embed[16], 16, seconds)["per_s"])
            rows["index"].append(rate(lambda: bare_index(MANY), seconds / 2))
            rows["search"].append(MANY * callers.load(port, search_many, 4, seconds / 2)["per_s"])
            rows["index_one"].append(rate(lambda: bare_index(1), seconds / 2))
            rows["search_one"].append(callers.load(port, search, 16, seconds / 2)["per_s"])
        figures |= {f"{name}_per_s": round(float(np.median(values)), 1) for name, values in rows.items()}
        for count in CALLERS:
            one = callers.load(port, embed[1], count, seconds)
            asked = callers.load(port, search, count, seconds / 2)
            bare = callers.load(echo_port, embed[1], count, seconds / 2)
            figures[f"callers_{count}"] = {
                "embed_one_image": one | {"per_s": round(one["per_s"], 1)},
                "search": asked | {"per_s": round(asked["per_s"], 1)},
                "echo": bare | {"per_s": round(bare["per_s"], 1)},
            }
            sys.stderr.write(f"{count} callers: {json.dumps(figures[f'callers_{count}'])}\n")
        figures["embed_ratio_to_model"] = ratio(rows["embed"], rows["model"])
        figures["search_ratio_to_index"] = ratio(rows["search"], rows["index"])
        figures["search_one_by_one_ratio"] = ratio(rows["search_one"], rows["index_one"])
    finally:
        for process in (server, echo, callers.process):
            process.terminate()
            process.wait(20)
    return figures


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the turns."""
    return round(float(np.median(np.array(ours) / np.array(theirs))), 3)


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller index, and less time for each figure")
    parser.add_argument("--checkpoint", type=Path, help="by default an untrained nano model")
    parser.add_argument("--rows", type=int, help="of the index")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--callers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.callers:
        run_caller()
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
