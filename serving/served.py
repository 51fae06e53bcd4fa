"""What a server serves: where it all lies, and the one function that opens it and makes the application.

`server.py` does that in its own process, `replicas.py` in each of many: a `Served` is small, and can be sent there.
"""

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from fastapi import FastAPI

from ..data.dataset import ObservationDataset
from ..models.foundation import FoundationModel
from ..models.neighbour_prediction import NeighbourPredictor, read_predictors
from ..models.probe_loading import load_probe
from .app import create_app
from .index.opening import open_index
from .index.place import is_milvus
from .index.protocol import SearchIndex
from .middleware.access_keys import AccessKeys
from .middleware.cross_site import LOCAL_HOSTS
from .middleware.request_log import log_requests
from .middleware.tracing import open_tracing
from .server_settings import ServerSettings
from .service import Service
from .state_stores import open_stores
from .warm_up import warm_up

LOOPBACK = "127.0.0.1"
SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class Served:
    """A checkpoint (folder or Hub id), an index (a folder, or an address), and how they are served at `host`.

    `predictors` is a file of `write_predictors`; by default, those that were saved with the index serve. `probes` are
    folders or Hub ids, `data` the dataset behind the index, `state` a folder for what callers leave. `keys` is a file
    of keys (docs/access.md), `api_key` one key that may do everything; `request_log` a file for a line per request, or
    `-` for stderr. Raises ValueError if `host` is not this machine alone and there is no key.
    """

    checkpoint: str | Path
    index: str | Path | None = None
    host: str = LOOPBACK
    predictors: str | Path | None = None
    settings: ServerSettings = field(default_factory=ServerSettings)
    device: str = "cpu"
    api_key: str | None = field(default=None, repr=False)
    probes: tuple[str | Path, ...] = ()
    data: str | Path | None = None
    state: str | Path | None = None
    keys: str | Path | None = None
    request_log: str | Path | None = None

    def __post_init__(self) -> None:
        check_host(self.host, self.needs_key)

    @property
    def needs_key(self) -> bool:
        """Whether requests must bear a key."""
        return bool(self.api_key) or self.keys is not None

    def for_any_folder(self) -> "Served":
        """The same with absolute paths, for a process that works in another folder."""
        return replace(
            self,
            checkpoint=_absolute(self.checkpoint),
            index=self.index if self.index is None or is_milvus(self.index) else Path(self.index).absolute(),
            predictors=_absolute_or_none(self.predictors),
            probes=tuple(_absolute(probe) for probe in self.probes),
            data=_absolute_or_none(self.data),
            state=_absolute_or_none(self.state),
            keys=_absolute_or_none(self.keys),
            request_log="-" if str(self.request_log) == "-" else _absolute_or_none(self.request_log),
        )


def open_app(served: Served) -> FastAPI:
    """Open all that is served, and make its application; `app.state.service` is warm then.

    It sets up this process for serving: the threads of torch, how long the interpreter's turns are, the log of
    requests. Raises EmbeddingIndexError if index and model differ, ProbeError if a probe and the model do, and
    SettingsError if the settings name a collector of traces and OpenTelemetry is missing.
    """
    access = None if served.keys is None else AccessKeys(served.keys)
    if served.request_log is not None:
        log_requests(None if str(served.request_log) == "-" else served.request_log)
    settings = served.settings
    tracing = open_tracing(settings.telemetry)
    # Every thread that computes keeps a team of helpers; more of them than processors, and all teams are slow to wake.
    # Here the engine's thread alone has one.
    threads = settings.engine.threads or torch.get_num_threads()
    torch.set_num_threads(1)
    # A thread that reads a body gives way to the engine's within this time; by default it is 5 ms, at every step.
    sys.setswitchinterval(SWITCH_SECONDS)
    model = FoundationModel.load(served.checkpoint, device=served.device)
    if settings.compile:
        model.transformer.compile()
    index, predictors = (None, {}) if served.index is None else _open_index(served.index, served.predictors)
    app = create_app(
        model,
        index,
        predictors,
        settings.limits,
        served.api_key,
        [load_probe(probe, model.model_id) for probe in served.probes],
        None if served.data is None else ObservationDataset(Path(served.data)),
        None if served.state is None else Path(served.state),
        settings.engine.model_copy(update={"threads": threads}),
        access,
        settings.cors_origins,
        settings.hosts or (() if served.needs_key else (*LOCAL_HOSTS, shown_host(served.host))),
        settings.search,
        tracing,
    )
    service: Service = app.state.service
    place = served.index
    if place is not None:
        service.reopen = lambda: _open_index(place, served.predictors)
    if served.state is not None:
        open_stores(service, settings.jobs)
    if settings.warm_up:
        warm_up(service)
    return app


def check_host(host: str, needs_key: bool) -> None:
    """Raises ValueError if the server could be reached from elsewhere and needs no key."""
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and not needs_key:
        raise ValueError(f"host {host!r} can be reached from other machines: set an api_key or keys, or use {LOOPBACK}")


def shown_host(host: str) -> str:
    """The host as an address has it."""
    return f"[{host}]" if ":" in host else host


def _open_index(
    index: str | Path, predictors: str | Path | None
) -> tuple[SearchIndex, Mapping[str, NeighbourPredictor]]:
    opened, saved = open_index(index)
    return opened, saved if predictors is None else read_predictors(predictors)


def _absolute(place: str | Path) -> str | Path:
    """A path from the root of the file system; what is no file here is the id of a repository on the Hub."""
    return Path(place).absolute() if Path(place).exists() else place


def _absolute_or_none(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place).absolute()
