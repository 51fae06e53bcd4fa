"""Replicas: the same server in several processes, on Ray Serve, where one process or one machine is not enough.

Ray starts the replicas, looks after them and puts new ones in place of those that die; its HAProxy takes requests and
passes them on. Nothing else of Armillary knows of Ray, and it is imported here only, when replicas are asked for.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import torch
from fastapi import FastAPI

from .allocator import keep_freed_memory
from .index.place import is_milvus
from .index.watching import IndexWatcher
from .served import Served, open_app
from .server import announce
from .service import Service

LOG = logging.getLogger("armillary.replicas")
APPLICATION = "armillary"
"""Its name on the Ray cluster."""
EVERYWHERE = "0.0.0.0"
MAX_ONGOING = 10_000
"""Requests of a replica at once, above what its engine lets wait: the engine says when there is no room."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Of Ray's shared memory, which replicas have no use for."""
HEALTH_SECONDS = 2.0
REACHED_SECONDS = 60.0
"""Until the proxy must answer, once all replicas are ready."""


class Replica:
    """One replica, as Ray makes it in a process of its own."""

    def __init__(self, served: Served) -> None:
        keep_freed_memory()
        watcher = None if served.index is None else IndexWatcher(served.index)
        self._app = open_app(served)
        self._service: Service = self._app.state.service
        if watcher is not None:
            watcher.start(self._service.reload)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Ray asks this every HEALTH_SECONDS. Raises ProblemError while there is no model."""
        _ = self._service.model

    def drain(self) -> None:
        """Say at /readyz that the server is about to stop, and answer on."""
        self._service.is_draining = True


def serve_replicas(
    served: Served,
    num_replicas: int,
    port: int = 8000,
    *,
    ray_address: str | None = None,
    ready_file: str | Path | None = None,
) -> None:
    """Serve by `num_replicas` processes until SIGTERM or SIGINT; each has a GPU of its own where the device is `cuda`.

    Without `ray_address`, a Ray is started on this machine, and ends with the server. `port` and `ready_file` are those
    of `serve`; they count once all replicas are ready. Raises ImportError without Ray, ValueError if what is asked for
    cannot be had or a replica cannot start.
    """
    check_replicas(served, num_replicas)
    port = port or _free_port()
    with (
        _cleaned_up_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="armillary-", ignore_cleanup_errors=True) as folder,
    ):
        for name, value in ray_environment(Path(folder)).items():
            os.environ.setdefault(name, value)
        ray, ray_serve = import_ray()
        with (
            _cluster(ray, served, num_replicas, ray_address),
            _deployed(ray_serve, served, num_replicas, port, is_shared=ray_address is not None) as handle,
        ):
            url = f"http://{served.host}:{port}"
            _wait_until_reached(f"http://127.0.0.1:{port}/livez")
            announce(url, None if ready_file is None else Path(ready_file))
            try:
                _wait_for_the_end(handle, served.settings.drain_seconds)
            finally:
                if ready_file is not None:
                    Path(ready_file).unlink(missing_ok=True)


def check_replicas(served: Served, num_replicas: int) -> None:
    """Raises ValueError if this cannot be served by replicas."""
    if num_replicas < 1:
        raise ValueError(f"replicas must be at least 1, found {num_replicas}")
    if served.host not in ("127.0.0.1", EVERYWHERE):
        raise ValueError(
            f"replicas are reached at 127.0.0.1, or from other machines at {EVERYWHERE}; found host {served.host!r}"
        )
    if served.device.startswith("cuda:"):
        raise ValueError(f"Ray gives each replica a GPU of its own: use device cuda, found {served.device!r}")
    if served.index is not None and is_milvus(served.index) and "://" not in str(served.index):
        raise ValueError(f"{served.index}: milvus-lite lets in one process; replicas need a Milvus server or a folder")


def import_ray() -> tuple[Any, Any]:
    """The modules `ray` and `ray.serve`. Raises ImportError that says how to install them."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ImportError(
            f"replicas need Ray Serve: pip install 'armillary[ray]'; import ray failed with: {error}"
        ) from error
    return ray, serve


def ray_environment(folder: Path) -> dict[str, str]:
    """What Ray reads from the environment when it is imported; what is set there already stays.

    HAProxy's files are in `folder`, which is this user's alone: its socket there takes orders from whoever can open it.
    """
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # This process has no event loop of its own to ask the replicas in.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
        # The time in which /readyz says 503 comes before; requests in hand are waited for in any case.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
    }


@contextlib.contextmanager
def _cluster(ray: Any, served: Served, num_replicas: int, address: str | None) -> Iterator[None]:
    """A Ray to deploy on: that at `address`, or one of this machine, which ends with this block."""
    on_gpus = served.device == "cuda"
    if address is None and on_gpus and torch.cuda.device_count() < num_replicas:
        raise ValueError(f"expected a GPU for each of {num_replicas} replicas, found {torch.cuda.device_count()}")
    if address is None:
        num_cpus = max(os.cpu_count() or 1, num_replicas * _processors(served, num_replicas, is_shared=False))
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    else:
        options = {"address": address}
    try:
        ray.init(**options, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise ValueError(f"no Ray lets us in at {address}: {error}; is RAY_AUTH_MODE that of the cluster?") from error
    try:
        num_machines = sum(node["Alive"] for node in ray.nodes())
        if num_machines > 1 and served.host != EVERYWHERE:
            raise ValueError(f"replicas on {num_machines} machines reach each other only with host {EVERYWHERE}")
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _deployed(ray_serve: Any, served: Served, num_replicas: int, port: int, is_shared: bool) -> Iterator[Any]:
    """Replicas that are all ready, by Ray's handle of them; they are stopped when the block ends."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_serve.start("EveryNode" if is_shared else "HeadOnly", http_options={"host": served.host, "port": port})
    if APPLICATION in ray_serve.status().applications:
        raise ValueError(f"this Ray serves an application {APPLICATION!r} already; `serve shutdown` there ends it")
    deployment = ray_serve.deployment(
        name=APPLICATION,
        num_replicas=num_replicas,
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=float(served.settings.grace_seconds),
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,
        ray_actor_options={
            "num_cpus": _processors(served, num_replicas, is_shared),
            "num_gpus": int(served.device == "cuda"),
        },
    )(ray_serve.ingress()(Replica))
    try:
        yield _run(ray_serve, deployment.bind(served.for_any_folder()))
    finally:
        ray_serve.delete(APPLICATION)
        if not ray_serve.status().applications:
            ray_serve.shutdown()


def _run(ray_serve: Any, application: Any) -> Any:
    try:
        return ray_serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        deployments = ray_serve.status().applications[APPLICATION].deployments.values()
        # A trace, whose last line says what is wrong.
        lines = "\n".join(deployment.message for deployment in deployments).strip().splitlines() or [str(error)]
        raise ValueError(f"the replicas cannot start: {lines[-1]}") from error


def _processors(served: Served, num_replicas: int, is_shared: bool) -> int:
    """Processors of one replica: as the settings say, else its share of this machine, or one of a cluster's."""
    return served.settings.engine.threads or (1 if is_shared else max(1, (os.cpu_count() or 1) // num_replicas))


def _wait_until_reached(url: str) -> None:
    """Wait for the proxy: it hears of replicas a little after they are ready. Raises ValueError if it never answers."""
    end = time.monotonic() + REACHED_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise ValueError(
        f"{url} is not answered, though the replicas are ready; does this Ray serve at another host or port already?"
    )


def _wait_for_the_end(handle: Any, drain_seconds: float) -> None:
    """Wait for SIGTERM or SIGINT; after the first, the replicas are unready for `drain_seconds`, or until another."""
    told, signals = threading.Event(), []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        told.set()

    def reload(number: int, frame: FrameType | None) -> None:
        LOG.warning("SIGHUP: nothing to do, replicas look for a new index by themselves")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
    try:
        told.wait()
        if drain_seconds and signals[0] == signal.SIGTERM:
            told.clear()
            handle.broadcast("drain").results()
            told.wait(drain_seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _cleaned_up_on_sigterm() -> Iterator[None]:
    """A SIGTERM while the replicas start or stop ends the blocks around it, as SIGINT does."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])
