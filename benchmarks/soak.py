"""Mixed load for minutes: does the server stay right, small and reliable?

A real server process with an untrained model and an index is asked by callers for embeddings, neighbours, predictions
by probes and new probes, while callers hang up midway, the index is swapped for another and back (SIGHUP), and the
server is ended (SIGTERM) and started again once. Every answer is compared with what the model and the index say here. A
probe that was acknowledged must be there in the end, one that was deleted must not. Memory is that of the server
process; it is flat if the median of the last third is at most 5 % above that of the middle third.

    python benchmarks/soak.py [--quick] [--minutes 10]
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from serve import MODALITY, build_index, images, npy, untrained_model

from armillary.data.observations import ImageObservation
from armillary.serving.index.embedding_index import EmbeddingIndex

NUM_IMAGES, NUM_ROWS, CALLERS, K = 32, 3000, 6, 5
SWAP_SECONDS = 7.0
FLAT = 1.05


class Soak:
    """The server under load, what it must answer, and what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = untrained_model(folder / "checkpoint")
        seen = images(NUM_IMAGES)
        # A .npy body says no more than this.
        self.images = ImageObservation(seen.modality, seen.object_id, seen.flux, seen.bands)
        self.vectors = model.embed([self.images]).numpy()
        self.indexes: dict[str, EmbeddingIndex] = {}
        for name, rows in (("even", NUM_ROWS), ("odd", NUM_ROWS // 2)):
            index = build_index(folder / name, model, rows)
            self.indexes[index.manifest.index_id] = index
        (folder / "index").symlink_to(folder / "even" / "index")
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kept: set[str] = set()
        self.deleted: set[str] = set()
        self.memory: list[float] = []
        self.is_down = threading.Event()
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.process, self.url = self.start()

    def start(self) -> tuple[subprocess.Popen[bytes], str]:
        """The server, once it answers."""
        ready = self.folder / "ready.json"
        command = [sys.executable, "-m", "armillary.cli", "serve", str(self.folder / "checkpoint"), "--port", "0"]
        command += ["--index", str(self.folder / "index"), "--state", str(self.folder / "state")]
        command += ["--ready-file", str(ready), "--set", "engine.cache_mib=1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            time.sleep(0.05)
        return process, json.loads(ready.read_text())["url"]

    def caller(self, seed: int) -> None:
        """Ask one thing after the other until told to stop."""
        dice = random.Random(seed)
        asks = [self.embed, self.embed, self.search, self.search, self.leave, self.probe, self.predict]
        while not self.stop.is_set():
            ask = dice.choice(asks)
            was_down = self.is_down.is_set()
            try:
                with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
                    for _ in range(5):
                        ask(client, dice)
                        self.answers[ask.__name__] += 1
            except httpx.TransportError as error:
                # The one restart cuts connections; what was acknowledged before it still counts.
                if not (was_down or self.is_down.is_set()):
                    self.fault(f"{ask.__name__}: {error!r}")
                time.sleep(0.2)

    def fault(self, what: str) -> None:
        """Note what went wrong."""
        with self.lock:
            self.wrong.append(what)

    def checked(self, answer: httpx.Response, *expected: int) -> bool:
        """Whether the status is one of these; 503 too while the server stops."""
        if answer.status_code == 503 and self.is_down.is_set():
            return False
        if answer.status_code not in expected:
            self.fault(f"{answer.request.url.path}: {answer.status_code} {answer.text[:300]}")
            return False
        return True

    def embed(self, client: httpx.Client, dice: random.Random) -> None:
        """Some images; their vectors are known."""
        rows = dice.sample(range(NUM_IMAGES), dice.choice((1, 1, 2, 8)))
        answer = client.post(
            "/v1/embeddings",
            params={"modality": MODALITY, "bands": ",".join(self.images.bands)},
            content=npy(self.images.flux[rows].numpy()),
            headers={"Content-Type": "application/x-npy", "Accept": "application/x-npy"},
        )
        if self.checked(answer, 200):
            found = np.load(io.BytesIO(answer.content))
            if not np.allclose(found, self.vectors[rows], atol=2e-4):
                self.fault(f"embed: off by {np.abs(found - self.vectors[rows]).max()}")

    def search(self, client: httpx.Client, dice: random.Random) -> None:
        """Neighbours, by the index that the answer names."""
        row = dice.randrange(NUM_IMAGES)
        answer = client.post(
            "/v1/collections/objects/search", json={"vector": self.vectors[row].astype(float).tolist(), "k": K}
        )
        if self.checked(answer, 200):
            body = answer.json()
            index = self.indexes[body["provenance"]["index_id"]]
            expected = index.search(self.vectors[row][None], K).object_id[0].tolist()
            if [neighbour["object_id"] for neighbour in body["neighbours"]] != expected:
                self.fault(f"search: expected {expected}, found {body['neighbours']}")

    def leave(self, client: httpx.Client, dice: random.Random) -> None:
        """Hang up before the answer comes."""
        try:
            client.post(
                "/v1/embeddings",
                params={"modality": MODALITY, "bands": ",".join(self.images.bands)},
                content=npy(self.images.flux.numpy() * (1 + dice.random())),
                headers={"Content-Type": "application/x-npy"},
                timeout=0.05 + 0.2 * dice.random(),
            )
        except httpx.TimeoutException:
            return

    def probe(self, client: httpx.Client, dice: random.Random) -> None:
        """Fit a probe; sometimes delete one."""
        rows = dice.sample(range(NUM_ROWS // 2), 30)
        examples = [{"object_id": f"object-{row}", "value": dice.random()} for row in rows]
        answer = client.post("/v1/probes", json={"label": "scalar/redshift", "examples": examples})
        if self.checked(answer, 201):
            with self.lock:
                self.kept.add(answer.json()["id"])
                old = dice.choice(sorted(self.kept)) if len(self.kept) > 20 else None
                if old is not None:
                    self.kept.remove(old)
            if old is not None and self.checked(client.delete(f"/v1/probes/{old}"), 200, 204):
                with self.lock:
                    self.deleted.add(old)

    def predict(self, client: httpx.Client, dice: random.Random) -> None:
        """Ask a probe twice; it says the same."""
        with self.lock:
            known = sorted(self.kept)
        if not known:
            return
        chosen, asked = dice.choice(known), {"object_id": f"object-{dice.randrange(NUM_ROWS // 2)}"}
        answers = [client.post(f"/v1/probes/{chosen}/predict", json=asked) for _ in range(2)]
        if chosen in self.kept and all(self.checked(answer, 200, 404) for answer in answers):
            values = {answer.json().get("value") for answer in answers if answer.status_code == 200}
            if len(values) > 1 and len({answer.json()["provenance"]["index_id"] for answer in answers}) == 1:
                self.fault(f"predict: {values}")

    def run(self, seconds: float) -> dict[str, Any]:
        """Load for so long; figures."""
        threads = [threading.Thread(target=self.caller, args=(seed,)) for seed in range(CALLERS)]
        for thread in threads:
            thread.start()
        began, swaps, restarted = time.monotonic(), 0, False
        names = ("odd", "even")
        next_swap = began + SWAP_SECONDS
        while (now := time.monotonic()) - began < seconds:
            if now > next_swap:
                link = self.folder / "index.new"
                link.symlink_to(self.folder / names[swaps % 2] / "index")
                link.replace(self.folder / "index")
                self.process.send_signal(signal.SIGHUP)
                swaps, next_swap = swaps + 1, now + SWAP_SECONDS
            if not restarted and now - began > seconds / 6:
                restarted = True
                self.is_down.set()
                self.process.send_signal(signal.SIGTERM)
                status = self.process.wait(60)
                if status != 0:
                    self.fault(f"after SIGTERM the server ended with {status}")
                self.process, self.url = self.start()
                time.sleep(1)
                self.is_down.clear()
            self.memory.append(resident_mib(self.process.pid))
            time.sleep(0.5)
        self.stop.set()
        for thread in threads:
            thread.join()
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            listed = {probe["id"] for probe in client.get("/v1/probes").json()["probes"]}
        lost, risen = self.kept - listed, self.deleted & listed
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        third = len(self.memory) // 3
        middle, last = (float(np.median(part)) for part in (self.memory[third : 2 * third], self.memory[2 * third :]))
        return {
            "minutes": round(seconds / 60, 1),
            "answers": dict(self.answers),
            "index_swaps": swaps,
            "wrong": len(self.wrong),
            "first_wrong": self.wrong[:3],
            "probes_kept": len(self.kept),
            "probes_lost": len(lost),
            "probes_risen": len(risen),
            "memory_mib": [round(middle), round(last)],
            "is_flat": last <= FLAT * middle,
        }


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run, and print the figures as one line of JSON; the status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = Soak(Path(folder)).run(30.0 if options.quick else 60 * options.minutes)
    print(json.dumps(figures))
    is_right = not figures["wrong"] and not figures["probes_lost"] and not figures["probes_risen"]
    sys.exit(0 if is_right and (options.quick or figures["is_flat"]) else 1)


if __name__ == "__main__":
    main()
