"""Settings of `armillary serve`: limits, batching, start and end. `--set key=value` sets them by name."""

from typing import Annotated

from pydantic import Field

from ..settings import Settings
from .engine import EngineSettings
from .index.recall_sample import SearchSettings
from .jobs.jobs import JobSettings
from .limits import Limits
from .middleware.tracing import TelemetrySettings


class ServerSettings(Settings):
    """How a server behaves; what it serves is given by the command's options."""

    limits: Limits = Limits()
    engine: EngineSettings = EngineSettings()
    jobs: JobSettings = JobSettings()
    search: SearchSettings = SearchSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    warm_up: bool = True
    """Embed made-up objects of each kind before the server is ready, so that the first caller does not wait longer."""
    compile: bool = False
    """Compile the transformer (torch.compile) at the start: minutes there, faster on GPUs afterwards."""
    drain_seconds: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM, how long requests are taken still while /readyz says 503: the time a balancer needs to notice."""
    grace_seconds: Annotated[int, Field(ge=0)] = 30
    """How long requests in flight may then take to end."""
    cors_origins: tuple[str, ...] = ()
    """Pages of other hosts that browsers may let call this server; by default none."""
    hosts: tuple[str, ...] = ()
    """Names by which this server may be called. By default any; where no key is needed, those of this machine alone."""
