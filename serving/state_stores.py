"""What callers have left on a server, kept under its folder of state: probes and jobs. One set for each service."""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from .idempotency import KeysInUse
from .jobs.jobs import JobSettings, JobStore
from .probes.store import ProbeStore
from .problems import ProblemError
from .service import Service

_STORES: weakref.WeakKeyDictionary[Service, "StateStores"] = weakref.WeakKeyDictionary()
_OPENING = threading.Lock()


@dataclass(eq=False)
class StateStores:
    """The stores of one service."""

    probes: ProbeStore
    jobs: JobStore
    keys: KeysInUse
    fitting: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    """One probe is fitted at a time: others wait, and take no thread meanwhile."""
    new_job: Callable[[], None] = lambda: None
    """Tells the worker of jobs, where one runs."""


def stores_of(service: Service) -> StateStores:
    """The stores of a service, opened when first asked for. Raises ProblemError (409) if it keeps nothing."""
    return open_stores(service, None)


def open_stores(service: Service, settings: JobSettings | None) -> StateStores:
    """As `stores_of`; the first to open them may say how jobs are done."""
    if service.state is None:
        raise ProblemError("no-state", "this server was started without a folder for what callers leave")
    with _OPENING:
        if service not in _STORES:
            jobs = JobStore(service.state / "jobs", settings or JobSettings())
            probes = ProbeStore(service.state / "probes")
            _STORES[service] = StateStores(probes, jobs, KeysInUse(service.state / ".keys.lock"))
        return _STORES[service]
