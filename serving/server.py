"""The server process: load a checkpoint and an index, check that they belong together, and answer until stopped."""

import ipaddress
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..models.foundation import FoundationModel
from ..models.neighbour_prediction import read_predictors
from ..models.probe_loading import load_probe
from .app import create_app
from .index_open import open_index
from .limits import Limits

GRACE_SECONDS = 30
"""How long requests in flight may take to end after SIGTERM."""
LOOPBACK = "127.0.0.1"


def serve(
    checkpoint: str | Path,
    index: str | Path | None = None,
    host: str = LOOPBACK,
    port: int = 8000,
    *,
    predictors: str | Path | None = None,
    limits: Limits | None = None,
    device: str = "cpu",
    ready_file: str | Path | None = None,
    api_key: str | None = None,
    probes: Sequence[str | Path] = (),
) -> None:
    """Serve a checkpoint (folder or Hub id) and an index (a folder, or an address) over HTTP until SIGTERM or SIGINT.

    `port` 0 takes a free one; the address is printed, and written as JSON to `ready_file` once requests are answered.
    `predictors` is a file of `write_predictors`; by default, those that were saved with the index serve. `probes` are
    folders or Hub ids. Raises EmbeddingIndexError if index and model differ, ProbeError if a probe and the model do,
    ValueError if `host` is not this machine alone and there is no `api_key`.
    """
    check_host(host, api_key)
    model = FoundationModel.load(checkpoint, device=device)
    loaded, saved = (None, {}) if index is None else open_index(index)
    chosen = saved if predictors is None else read_predictors(predictors)
    heads = [load_probe(probe, model.model_id) for probe in probes]
    run_app(create_app(model, loaded, chosen, limits, api_key, heads), host, port, ready_file=ready_file)


def read_key(path: str | Path) -> str:
    """The key in a file, without the space around it. Raises ValueError unless it is one word of ASCII."""
    words = Path(path).read_text(encoding="utf-8").split()
    if len(words) != 1 or not words[0].isascii():
        raise ValueError(f"{path}: expected a key, which is one word of ASCII characters; found something else")
    return words[0]


def run_app(app: FastAPI, host: str = LOOPBACK, port: int = 0, *, ready_file: str | Path | None = None) -> None:
    """Run an application until SIGTERM or SIGINT; requests in flight end first. See `serve`."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
    server = _AnnouncingServer(config, url, None if ready_file is None else Path(ready_file))
    with _quiet_signals():
        try:
            server.run(sockets=[listener])
        finally:
            listener.close()
            if ready_file is not None:
                Path(ready_file).unlink(missing_ok=True)


def check_host(host: str, api_key: str | None) -> None:
    """Raises ValueError if the server could be reached from elsewhere and needs no key."""
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and not api_key:
        raise ValueError(f"host {host!r} can be reached from other machines: set an api_key, or use {LOOPBACK}")


class _AnnouncingServer(uvicorn.Server):
    """Says where it listens once it answers, and not before."""

    def __init__(self, config: uvicorn.Config, url: str, ready_file: Path | None) -> None:
        super().__init__(config)
        self.url = url
        self.ready_file = ready_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        sys.stdout.write(f"Armillary answers on {self.url}\n")
        sys.stdout.flush()
        if self.ready_file is not None:
            partial = self.ready_file.with_name(f".{self.ready_file.name}.{os.getpid()}.partial")
            partial.write_text(json.dumps({"url": self.url, "pid": os.getpid()}) + "\n", encoding="utf-8")
            partial.replace(self.ready_file)


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises a caught signal again after its graceful end; here that end was asked for, and is no failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def ended(number: int, frame: FrameType | None) -> None:
        """The server is down already."""

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ended)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
