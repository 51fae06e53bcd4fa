"""The server process: load a checkpoint and an index, check that they belong together, and answer until stopped."""

import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from ..data.dataset import ObservationDataset
from ..models.foundation import FoundationModel
from ..models.neighbour_prediction import NeighbourPredictor, read_predictors
from ..models.probe_loading import load_probe
from .app import create_app
from .index.opening import open_index
from .index.protocol import SearchIndex
from .middleware.access_keys import AccessKeys
from .middleware.cross_site import LOCAL_HOSTS
from .middleware.request_log import log_requests
from .problems import ProblemError
from .server_settings import ServerSettings
from .service import Service
from .state_stores import open_stores
from .warm_up import warm_up

LOG = logging.getLogger("armillary.server")
LOOPBACK = "127.0.0.1"
SWITCH_SECONDS = 0.0005


def serve(
    checkpoint: str | Path,
    index: str | Path | None = None,
    host: str = LOOPBACK,
    port: int = 8000,
    *,
    predictors: str | Path | None = None,
    settings: ServerSettings | None = None,
    device: str = "cpu",
    ready_file: str | Path | None = None,
    api_key: str | None = None,
    probes: Sequence[str | Path] = (),
    data: str | Path | None = None,
    state: str | Path | None = None,
    keys: str | Path | None = None,
    request_log: str | Path | None = None,
) -> None:
    """Serve a checkpoint (folder or Hub id) and an index (a folder, or an address) over HTTP until SIGTERM or SIGINT.

    `port` 0 takes a free one; the address is printed, and written as JSON to `ready_file` once requests are answered.
    `predictors` is a file of `write_predictors`; by default, those that were saved with the index serve. `probes` are
    folders or Hub ids, `data` the dataset behind the index, `state` a folder for what callers leave. `keys` is a file
    of keys (docs/access.md), `api_key` one key that may do everything; `request_log` a file for a line per request, or
    `-` for stderr. SIGHUP opens the index anew.

    Raises EmbeddingIndexError if index and model differ, ProbeError if a probe and the model do, ValueError if `host`
    is not this machine alone and there is no key.
    """
    check_host(host, bool(api_key) or keys is not None)
    access = None if keys is None else AccessKeys(keys)
    if request_log is not None:
        log_requests(None if str(request_log) == "-" else request_log)
    chosen = settings or ServerSettings()
    # Every thread that computes keeps a team of helpers; more of them than processors, and all teams are slow to wake.
    # Here the engine's thread alone has one.
    threads = chosen.engine.threads or torch.get_num_threads()
    torch.set_num_threads(1)
    # A thread that reads a body gives way to the engine's within this time; by default it is 5 ms, at every step.
    sys.setswitchinterval(SWITCH_SECONDS)
    model = FoundationModel.load(checkpoint, device=device)
    if chosen.compile:
        model.transformer.compile()
    searched, calibrated = (None, {}) if index is None else _open(index, predictors)
    heads = [load_probe(probe, model.model_id) for probe in probes]
    app = create_app(
        model,
        searched,
        calibrated,
        chosen.limits,
        api_key,
        heads,
        None if data is None else ObservationDataset(Path(data)),
        None if state is None else Path(state),
        chosen.engine.model_copy(update={"threads": threads}),
        access,
        chosen.cors_origins,
        chosen.hosts or (() if access is not None or api_key else (*LOCAL_HOSTS, _shown(host))),
    )
    service: Service = app.state.service
    if index is not None:
        service.reopen = lambda: _open(index, predictors)
    if state is not None:
        open_stores(service, chosen.jobs)
    if chosen.warm_up:
        warm_up(service)
    run_app(app, host, port, ready_file=ready_file, settings=chosen)


def _open(index: str | Path, predictors: str | Path | None) -> tuple[SearchIndex, Mapping[str, NeighbourPredictor]]:
    opened, saved = open_index(index)
    return opened, saved if predictors is None else read_predictors(predictors)


def read_key(path: str | Path) -> str:
    """The key in a file, without the space around it. Raises ValueError unless it is one word of ASCII."""
    words = Path(path).read_text(encoding="utf-8").split()
    if len(words) != 1 or not words[0].isascii():
        raise ValueError(f"{path}: expected a key, which is one word of ASCII characters; found something else")
    return words[0]


def run_app(
    app: FastAPI,
    host: str = LOOPBACK,
    port: int = 0,
    *,
    ready_file: str | Path | None = None,
    settings: ServerSettings | None = None,
) -> None:
    """Run an application until SIGTERM or SIGINT; requests in flight end first. See `serve`."""
    chosen = settings or ServerSettings()
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio sets this only where a socket names its protocol; without it, answers wait 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    url = f"http://{_shown(host)}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=chosen.grace_seconds,
    )
    service: Service = app.state.service
    server = _AnnouncingServer(config, url, None if ready_file is None else Path(ready_file), service, chosen)
    with _quiet_signals(service):
        try:
            server.run(sockets=[listener])
        finally:
            listener.close()
            service.engine.close()
            if ready_file is not None:
                Path(ready_file).unlink(missing_ok=True)


def _shown(host: str) -> str:
    """The host as an address has it."""
    return f"[{host}]" if ":" in host else host


def check_host(host: str, needs_key: bool) -> None:
    """Raises ValueError if the server could be reached from elsewhere and needs no key."""
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and not needs_key:
        raise ValueError(f"host {host!r} can be reached from other machines: set an api_key or keys, or use {LOOPBACK}")


class _AnnouncingServer(uvicorn.Server):
    """Says where it listens once it answers, and not before; drains before it stops."""

    def __init__(
        self, config: uvicorn.Config, url: str, ready_file: Path | None, service: Service, settings: ServerSettings
    ) -> None:
        super().__init__(config)
        self.url = url
        self.ready_file = ready_file
        self.service = service
        self.drain_seconds = settings.drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first SIGTERM makes the server unready, and stops it after a while; a second one stops it now."""
        if sig != signal.SIGTERM or self.drain_seconds == 0 or self.service.is_draining:
            self.service.is_draining = True
            super().handle_exit(sig, frame)
            return
        self.service.is_draining = True
        threading.Timer(self.drain_seconds, super().handle_exit, (sig, None)).start()

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
def _quiet_signals(service: Service) -> Iterator[None]:
    """uvicorn raises a caught signal again after its graceful end; here that end was asked for, and is no failure.

    SIGHUP opens the index anew, in a thread: requests are answered meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def ended(number: int, frame: FrameType | None) -> None:
        """The server is down already."""

    def reload(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=_reload, args=(service,), name="armillary-reload", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ended)
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reload(service: Service) -> None:
    try:
        LOG.info("the index is now %s", service.reload().manifest.index_id)
    except ProblemError as problem:
        LOG.error("SIGHUP: %s", problem.detail)
