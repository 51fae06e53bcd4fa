"""The explorer's map with as many objects as an index may have, in headless Chromium with software WebGL.

An untrained model and an index of made-up objects (vectors of 64 numbers, a place and a redshift each) are served by
`armillary serve`. A visitor opens the page, then another one, who finds the map's columns made: `map_s` is the time
until the map is drawn. Then the map is zoomed, and the time between frames of the page's thread is taken, which does
not wait for the drawing.

    python benchmarks/explorer.py [--quick] [--objects 1000000] [--picture page.png]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Browser, sync_playwright
from serve import MODALITY, start, untrained_model

from armillary.models.embeddings import write_embedding_shard
from armillary.models.foundation import FoundationModel
from armillary.serving.index.embedding_index import EmbeddingIndex

WIDTH, SHARD_ROWS = 64, 250_000
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox", "--disable-background-networking"]
FRAMES = """async () => {
  const canvas = document.querySelector("canvas");
  const box = canvas.getBoundingClientRect();
  const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, cancelable: true };
  const times = [];
  for (let frame = 0; frame < 40; frame++) {
    canvas.dispatchEvent(new WheelEvent("wheel", { ...at, deltaY: frame % 20 < 10 ? -60 : 60 }));
    times.push(await new Promise(requestAnimationFrame));
  }
  const steps = times.slice(1).map((time, frame) => time - times[frame]).sort((a, b) => a - b);
  return [steps[Math.floor(steps.length / 2)], steps[steps.length - 1]];
}"""


def build_index(folder: Path, model: FoundationModel, objects: int) -> None:
    """Made-up objects in a hundred clouds, each with a redshift, in a flat index."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(100, WIDTH)).astype(np.float32)
    for number, first in enumerate(range(0, objects, SHARD_ROWS)):
        count = min(SHARD_ROWS, objects - first)
        vectors = centres[random.integers(0, 100, count)] + 0.5 * random.normal(size=(count, WIDTH)).astype(np.float32)
        write_embedding_shard(
            folder / "shards" / f"part-{number:05d}.parquet",
            [f"object-{first + row}" for row in range(count)],
            MODALITY,
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            model_id=model.model_id,
            space="aligned",
            ra=random.uniform(0, 360, count),
            dec=np.degrees(np.arcsin(random.uniform(-1, 1, count))),
        )
    labels = {
        "object_id": [f"object-{row}" for row in range(objects)],
        "scalar/redshift": random.gamma(2.0, 0.2, objects),
    }
    EmbeddingIndex.build(folder / "shards", labels, index_type="flat").save(folder / "index")


def visit(browser: Browser, url: str, picture: Path | None) -> dict[str, float]:
    """Open the page: seconds until its map is drawn, and milliseconds between frames while it is zoomed."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]", timeout=300_000)
    ready = time.perf_counter() - began
    if picture is not None:
        page.screenshot(path=picture)
    middle, slowest = page.evaluate(FRAMES)
    page.close()
    if errors:
        raise RuntimeError(f"the page's console has errors: {errors[:3]}")
    return {"map_s": round(ready, 1), "frame_ms": round(middle), "slowest_frame_ms": round(slowest)}


def measure(folder: Path, objects: int, picture: Path | None) -> dict[str, Any]:
    """All figures."""
    model = untrained_model(folder / "checkpoint", WIDTH)
    began = time.perf_counter()
    build_index(folder, model, objects)
    built = time.perf_counter() - began
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "armillary.cli", "serve", str(folder / "checkpoint"), "--port", "0"]
    server, port = start([*command, "--index", str(folder / "index"), "--ready-file", str(ready)], ready)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            visits = [visit(browser, f"http://127.0.0.1:{port}", picture) for _ in range(2)]
            browser.close()
        status = Path(f"/proc/{server.pid}/status").read_text()
    finally:
        server.terminate()
        server.wait(30)
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "machine": f"{torch.get_num_threads()} threads, software WebGL",
        "objects": objects,
        "index_s": round(built, 1),
        "first_visit": visits[0],
        "second_visit": visits[1],
        "server_peak_mib": peak // 1024,
    }


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 objects")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--picture", type=Path, help="PNG of the page to write")
    options = parser.parse_args()
    if not Path(CHROMIUM).exists():
        print(json.dumps({"skipped": f"there is no {CHROMIUM}"}))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), 100_000 if options.quick else options.objects, options.picture)))


if __name__ == "__main__":
    main()
