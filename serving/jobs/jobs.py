"""Jobs on disk: work that takes longer than a caller waits, with the phases of IVOA's UWS 1.1.

A job is a folder under `state/jobs`, by an id that the server made: `job.json`, replaced whole; `input`, as it came;
`chunks/`, what is done; `result.arrows` at the end. It is made under another name and renamed, so that what is
acknowledged is there whole. Nothing is kept in memory: after a restart, or in another process, all is as it was. Only
the worker (`worker.py`) writes `job.json` again; to abort a job is to leave a mark beside it.
"""

import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ...data.parquet_files import replacing, sync_folder
from ...settings import Settings
from ..probes.store import is_id, new_id

LOG = logging.getLogger("armillary.jobs")
Phase = Literal["PENDING", "QUEUED", "EXECUTING", "COMPLETED", "ERROR", "ABORTED"]
PHASES: tuple[Phase, ...] = ("PENDING", "QUEUED", "EXECUTING", "COMPLETED", "ERROR", "ABORTED")
"""Of UWS. PENDING, a job that waits for the word to start, does not occur: jobs here are queued when they come."""
FINISHED: tuple[Phase, ...] = ("COMPLETED", "ERROR", "ABORTED")
RECORD, INPUT, CHUNKS, RESULT, ABORT = "job.json", "input", "chunks", "result.arrows", "abort"
_STALE_SECONDS = 24 * 3600
"""After which an upload that never ended is what a killed process has left."""


class JobSettings(Settings):
    """How jobs are kept and done."""

    max_input_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    """Bytes of an upload."""
    max_objects: Annotated[int, Field(ge=1)] = 5_000_000
    """Objects of one job."""
    max_waiting: Annotated[int, Field(ge=1)] = 100
    """Jobs that may wait; beyond that, new ones are refused (429)."""
    keep_seconds: Annotated[float, Field(gt=0)] = 7 * 24 * 3600.0
    """How long a finished job is kept."""
    chunk_objects: Annotated[int, Field(ge=1, le=256)] = 64
    """Objects whose results are written at once: what an interruption can cost."""


class JobRecord(Settings):
    """What is known of a job; times in seconds since 1970, UTC."""

    job_id: str
    kind: Literal["embed", "fit", "neighbours"]
    phase: Phase
    created: float
    started: float | None = None
    finished: float | None = None
    done: int = 0
    total: int | None = None
    """Objects that are done, and in all."""
    media_type: str
    parameters: dict[str, Any]
    model_id: str
    """The model that was served when the job came: another one does not go on with it."""
    chunk_objects: int
    index_id: str | None = None
    """Of the index that its chunks were made with, where they were."""
    attempts: int = 0
    """Starts since something of it was last done."""
    error: dict[str, Any] | None = None
    """The problem document of a job in phase ERROR."""
    result: dict[str, Any] | None = None
    """Of a fit: the probe's id."""
    idempotency_key: str | None = None
    fingerprint: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be done for it."""
        return self.phase in FINISHED


class JobStore:
    """The jobs under a folder; safe to use from many threads and processes."""

    def __init__(self, folder: Path, settings: JobSettings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        self._finished: dict[str, JobRecord] = {}
        """Jobs that will not change: a week of them need not be read again each second."""
        for path in folder.glob(".[0-9a-z]*"):
            if path.is_dir() and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def upload(self) -> Iterator[Path]:
        """A new folder, in which what comes is put as `input`; `create` makes it a job, else it is removed."""
        staged = self.folder / f".{new_id()}"
        staged.mkdir()
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def create(self, staged: Path, record: JobRecord) -> JobRecord:
        """Make an upload whose `input` is on disk a job; on return it is on disk whole."""
        (staged / CHUNKS).mkdir()
        _write(staged, record)
        staged.rename(self.folder / record.job_id)
        sync_folder(self.folder)
        return record

    def place(self, job_id: str) -> Path:
        """The folder of a job; `job_id` must be one that `get` knows."""
        return self.folder / job_id

    def get(self, job_id: str) -> JobRecord | None:
        """The job of this id, None if there is none."""
        if not is_id(job_id):
            return None
        place = self.folder / job_id
        try:
            record = JobRecord.model_validate_json((place / RECORD).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            LOG.error("the job in %s cannot be read: %s", place, error)
            return None
        if (place / ABORT).exists():
            # The mark holds from when it was set, whatever the worker was about to write.
            return record.model_copy(update={"phase": "ABORTED", "error": None, "result": None})
        return record

    def all(self) -> list[JobRecord]:
        """Every job, the oldest first."""
        with os.scandir(self.folder) as entries:
            names = {entry.name for entry in entries if is_id(entry.name)}
        known = {name: job for name, job in self._finished.items() if name in names}
        for name in names - known.keys():
            job = self.get(name)
            if job is not None:
                known[name] = job
        # `finished` is what the worker writes last.
        self._finished = {name: job for name, job in known.items() if job.is_finished and job.finished is not None}
        return sorted(known.values(), key=lambda job: (job.created, job.job_id))

    def by_key(self, key: str | None, kinds: Collection[str]) -> JobRecord | None:
        """The job of one of these kinds that came with an idempotency key: each route has keys of its own."""
        if key is None:
            return None
        return next((job for job in self.all() if job.idempotency_key == key and job.kind in kinds), None)

    def update(self, record: JobRecord, changes: Mapping[str, Any]) -> JobRecord:
        """Replace what is known of a job. Raises FileNotFoundError if it was removed meanwhile."""
        changed = record.model_copy(update=dict(changes))
        _write(self.folder / record.job_id, changed)
        return changed

    def abort(self, job_id: str) -> None:
        """Mark a job as aborted: nothing of it that is not done yet will be."""
        place = self.folder / job_id
        (place / ABORT).touch()
        self._finished.pop(job_id, None)
        sync_folder(place)

    def remove(self, job_id: str) -> None:
        """Forget a job and its files; the first step is a rename, so that it is gone at once."""
        dying = self.folder / f".{job_id}.{secrets.token_hex(4)}"
        (self.folder / job_id).rename(dying)
        sync_folder(self.folder)
        shutil.rmtree(dying, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the jobs that finished longer ago than they are kept."""
        for job in self.all():
            if job.is_finished and time.time() - (job.finished or job.created) > self.settings.keep_seconds:
                LOG.info("job %s is removed: it finished %.0f s ago", job.job_id, self.settings.keep_seconds)
                self.remove(job.job_id)

    def num_waiting(self) -> int:
        """Jobs that are not finished."""
        return sum(not job.is_finished for job in self.all())


def _write(place: Path, record: JobRecord) -> None:
    with replacing(place / RECORD) as file:
        file.write(record.model_dump_json(indent=2).encode() + b"\n")
