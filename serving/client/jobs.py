"""Bulk work over the client: a file or many ids are left on the server, asked for, and their result is downloaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from .batches import SAFETENSORS
from .requests import Call, get, idempotency_key, json_of, place, post
from .results import known_fields

UPLOADS = {
    ".safetensors": SAFETENSORS,
    ".arrow": "application/vnd.apache.arrow.stream",
    ".arrows": "application/vnd.apache.arrow.stream",
    ".npy": "application/x-npy",
    ".fits": "application/fits",
}
"""The media type of a file, by its suffix."""
FORMATS = {".arrow": "arrow", ".arrows": "arrow", ".parquet": "parquet", ".npy": "npy"}


@dataclass(frozen=True)
class JobRecord:
    """A job on the server; times are seconds since 1970. Phases: QUEUED, EXECUTING, COMPLETED, ERROR, ABORTED."""

    id: str
    kind: str
    phase: str
    num_done: int
    num_objects: int | None
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    """When a finished job is forgotten."""
    model_id: str
    error: dict[str, Any] | None
    probe_id: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.phase in ("COMPLETED", "ERROR", "ABORTED")


def job_of(answer: Mapping[str, Any]) -> JobRecord:
    """From the server's answer."""
    progress = answer["progress"]
    numbers = {
        name: None if answer[name] is None else float(answer[name]) for name in ("started", "finished", "expires")
    }
    fields = known_fields(JobRecord, dict(answer)) | numbers | {"created": float(answer["created"])}
    return JobRecord(**fields, num_done=progress["done"], num_objects=progress["total"])


def embed_job_call(path: str | Path, options: Mapping[str, Any]) -> Call[JobRecord]:
    """Upload a file of many objects, as it is read. Raises ValueError for a suffix of no known type."""
    file = Path(path)
    if file.suffix.lower() not in UPLOADS:
        raise ValueError(f"{file}: expected one of {sorted(UPLOADS)}")
    query = {"kind": "embed"} | {name: given for name, given in options.items() if given is not None}
    headers = {
        "Content-Type": UPLOADS[file.suffix.lower()],
        "Content-Length": str(file.stat().st_size),
        "Idempotency-Key": idempotency_key(),
    }
    return Call("POST", f"/v1/jobs?{urlencode(query)}", _read_job, None, headers, file)


def neighbours_job_call(object_ids: Sequence[str], options: Mapping[str, Any]) -> Call[JobRecord]:
    """Leave the search for the neighbours of many objects of the index."""
    body = {"object_ids": list(object_ids)} | {name: given for name, given in options.items() if given is not None}
    return post("/v1/jobs?kind=neighbours", body, job_of, creates=True)


def jobs_call() -> Call[tuple[JobRecord, ...]]:
    """All jobs, the newest first."""
    return get("/v1/jobs", lambda answer: tuple(job_of(job) for job in answer["jobs"]))


def job_call(job_id: str, wait: float) -> Call[JobRecord]:
    """How far a job is; the answer comes at its end, or after so many seconds."""
    return get(f"{place('v1', 'jobs', job_id)}?{urlencode({'wait': wait})}", job_of)


def delete_job_call(job_id: str) -> Call[None]:
    """Abort a job, or forget a finished one."""

    def read(response: httpx.Response) -> None:
        """Either is an answer without anything to say."""

    return Call("DELETE", place("v1", "jobs", job_id), read)


def result_call(job_id: str, path: str | Path) -> Call[Path]:
    """Download a job's result into a file, in the format of its suffix. Raises ValueError for another suffix."""
    into = Path(path)
    if into.suffix.lower() not in FORMATS:
        raise ValueError(f"{into}: expected one of {sorted(FORMATS)}")
    query = urlencode({"format": FORMATS[into.suffix.lower()]})
    return Call("GET", f"{place('v1', 'jobs', job_id, 'result')}?{query}", lambda response: into, into=into)


def _read_job(response: httpx.Response) -> JobRecord:
    return job_of(json_of(response))
