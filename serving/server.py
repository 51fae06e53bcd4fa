"""The server process: it says where it listens, and answers until it is stopped."""

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from .problems import ProblemError
from .served import LOOPBACK, Served, open_app, shown_host
from .server_settings import ServerSettings
from .service import Service

LOG = logging.getLogger("armillary.server")


def serve(served: Served, port: int = 8000, *, ready_file: str | Path | None = None) -> None:
    """Serve over HTTP at `served.host` until SIGTERM or SIGINT; SIGHUP opens the index anew.

    `port` 0 takes a free one; the address is printed, and written as JSON to `ready_file` once requests are answered.
    Raises as `open_app` does.
    """
    run_app(open_app(served), served.host, port, ready_file=ready_file, settings=served.settings)


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
    url = f"http://{shown_host(host)}:{listener.getsockname()[1]}"
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
        announce(self.url, self.ready_file)


def announce(url: str, ready_file: Path | None) -> None:
    """Say that requests are answered: on stdout and, where one is given, in a file, as JSON with `url` and `pid`."""
    sys.stdout.write(f"Armillary answers on {url}\n")
    sys.stdout.flush()
    if ready_file is not None:
        partial = ready_file.with_name(f".{ready_file.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n", encoding="utf-8")
        partial.replace(ready_file)


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
