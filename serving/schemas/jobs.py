"""Bodies of the routes of jobs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..jobs.jobs import Phase
from .common import Body

JOB_EXAMPLE: dict[str, Any] = {
    "id": "9f2c1d7a04be6631",
    "kind": "embed",
    "phase": "EXECUTING",
    "created": 1764370800.0,
    "started": 1764370801.5,
    "finished": None,
    "expires": None,
    "progress": {"done": 640, "total": 10000},
    "model_id": "armillary-1f3a9c0d2b4e",
    "error": None,
    "probe_id": None,
    "links": {"self": "/v1/jobs/9f2c1d7a04be6631"},
}


class NeighboursRequest(Body):
    """The k nearest neighbours of many objects of the index."""

    object_ids: list[str] = Field(min_length=1)
    modality: str | None = None
    """Which vector of each object; without it, the normalised mean over those it has."""
    target_modality: str | None = None
    """Only neighbours of this modality."""
    k: int = Field(default=10, ge=1)
    exclude_self: bool = True
    """Leave out each object itself."""
    exact: bool = False
    """Compare every vector of a large index too."""


class JobProgress(BaseModel):
    """Objects that are done, and in all; null where that is not known yet."""

    done: int
    total: int | None


class JobAnswer(BaseModel):
    """A job; times in seconds since 1970, UTC. `expires`: when a finished job is forgotten."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    kind: Literal["embed", "fit", "neighbours"]
    phase: Phase
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    progress: JobProgress
    model_id: str
    error: dict[str, Any] | None
    probe_id: str | None
    links: dict[str, str]


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobAnswer]
