"""The worker of jobs: one thread, one job at a time, the oldest first, after everybody who waits for an answer.

What is done is on disk before it counts: a chunk of results is a file, written under another name, synced and renamed.
After a restart or kill -9 a job goes on behind its last whole chunk. One process at a time works on a folder, by a lock
that the operating system gives up with the process.
"""

import contextlib
import fcntl
import functools
import io
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from ...data.parquet_files import replacing
from ..middleware.callers import as_bulk
from ..problems import KINDS, ProblemError
from ..service import Service
from .jobs import CHUNKS, INPUT, RESULT, JobRecord, JobStore
from .kinds import CHUNKED, WHOLE, ChunkedWork

LOG = logging.getLogger("armillary.jobs")
LOCK = ".lock"
POLL_SECONDS = 1.0
"""How often to look for jobs that another process took in."""
SWEEP_SECONDS = 60.0
AFTER_FAILURE_SECONDS = 10.0
MAX_ATTEMPTS = 3
"""Starts without any progress, after which a job is given up: it may be what ends the process."""
NICENESS = 10
_STOP_SECONDS = 10.0

Result = TypeVar("Result")


class _StoppedError(Exception):
    """The worker stops, or the job was aborted or removed: leave it as it is on disk."""


class JobWorker:
    """Does the jobs of a store with a service. `start` it once; `stop` leaves a job so that it is gone on with."""

    def __init__(self, service: Service, store: JobStore) -> None:
        self._service, self._store = service, store
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._lock_file: io.FileIO | None = None
        self._swept = 0.0

    def start(self) -> None:
        """Begin to work, in a thread of its own."""
        with self._starting:
            if self._thread is None:
                self._stopping.clear()
                self._thread = threading.Thread(target=self._run, name="armillary-jobs", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """There is a new job."""
        self._woken.set()

    def stop(self) -> None:
        """End after the chunk in hand; waits for it, but not for long: what is lost is that chunk."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._stopping.set()
            self._woken.set()
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        as_bulk()
        with contextlib.suppress(OSError, AttributeError):
            # On Linux a thread has a niceness of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            while not self._stopping.is_set():
                try:
                    is_idle = not (self._has_lock() and self._next())
                except Exception:
                    # A disk that fails for a moment must not end all jobs.
                    LOG.exception("the worker of jobs failed; it tries again in %g s", AFTER_FAILURE_SECONDS)
                    self._stopping.wait(AFTER_FAILURE_SECONDS)
                    is_idle = False
                if is_idle:
                    self._woken.wait(POLL_SECONDS)
                    self._woken.clear()
        finally:
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None

    def _has_lock(self) -> bool:
        if self._lock_file is None:
            file = (self._store.folder / LOCK).open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._lock_file = file
        return True

    def _next(self) -> bool:
        """Do the oldest job that waits; whether there was one."""
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._store.sweep()
        if self._service.loaded is None:
            return False
        jobs = self._store.all()
        for job in jobs:
            if job.phase == "ABORTED" and job.finished is None:
                self._end(job, {"phase": "ABORTED"})
        oldest = next((job for job in jobs if not job.is_finished), None)
        if oldest is None:
            return False
        with contextlib.suppress(_StoppedError, FileNotFoundError):
            self._do(oldest)
        return True

    def _do(self, job: JobRecord) -> None:
        started = job.started or time.time()
        job = self._store.update(job, {"phase": "EXECUTING", "started": started, "attempts": job.attempts + 1})
        try:
            if job.attempts > MAX_ATTEMPTS:
                raise ProblemError("internal", f"interrupted {MAX_ATTEMPTS} times at object {job.done}; given up")
            if job.model_id != self._service.model.model_id:
                raise ProblemError(
                    "conflict",
                    f"the job came for model {job.model_id!r}; now {self._service.model.model_id!r} is served",
                )
            place = self._store.place(job.job_id)
            result = None
            if job.kind in CHUNKED:
                job = self._in_chunks(job, place, CHUNKED[job.kind](self._service, place, job))
            else:
                whole, check = WHOLE[job.kind], functools.partial(self._check, job)
                result = self._patiently(job, lambda: whole(self._service, place, job, check))
            self._check(job)
            self._end(job, {"phase": "COMPLETED", "result": result, "done": job.total or 0})
        except _StoppedError:
            raise
        except ProblemError as problem:
            self._end(job, {"phase": "ERROR", "error": problem.document(f"/v1/jobs/{job.job_id}")})
        except Exception as error:
            if not self._store.place(job.job_id).exists():
                raise _StoppedError from None
            LOG.exception("job %s failed", job.job_id)
            fault = ProblemError("internal", type(error).__name__)
            self._end(job, {"phase": "ERROR", "error": fault.document(f"/v1/jobs/{job.job_id}")})

    def _in_chunks(self, job: JobRecord, place: Path, work: ChunkedWork) -> JobRecord:
        if work.index_id != job.index_id:
            # Chunks of two indexes do not make one result: what was done with another is done again.
            shutil.rmtree(place / CHUNKS, ignore_errors=True)
            job = self._store.update(job, {"index_id": work.index_id, "done": 0})
        (place / CHUNKS).mkdir(exist_ok=True)
        starts = range(0, work.total, job.chunk_objects)
        for start in starts:
            self._check(job)
            stop = min(start + job.chunk_objects, work.total)
            file = _chunk(place, start)
            if file.exists():
                continue
            table = self._patiently(job, functools.partial(work.rows, start, stop))
            with replacing(file) as stream, pa.ipc.new_file(stream, work.schema) as writer:
                writer.write_table(table)
            job = self._store.update(job, {"done": stop, "total": work.total, "attempts": 0})
        with replacing(place / RESULT) as stream, pa.ipc.new_stream(stream, work.schema) as writer:
            for start in starts:
                with pa.memory_map(str(_chunk(place, start))) as source:
                    writer.write_table(pa.ipc.open_file(source).read_all())
        return job

    def _patiently(self, job: JobRecord, work: Callable[[], Result]) -> Result:
        """What `work` returns; where the model is too busy for it, later."""
        while True:
            try:
                return work()
            except ProblemError as problem:
                if KINDS[problem.kind].status not in (429, 503):
                    raise
                self._stopping.wait(problem.retry_after or POLL_SECONDS)
                self._check(job)

    def _check(self, job: JobRecord) -> None:
        """Raises _StoppedError if this job shall not go on now."""
        if self._stopping.is_set():
            raise _StoppedError
        now = self._store.get(job.job_id)
        if now is None or now.phase == "ABORTED":
            if now is not None:
                self._end(job, {"phase": "ABORTED"})
            raise _StoppedError

    def _end(self, job: JobRecord, changes: dict[str, Any]) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.update(job, {"finished": time.time(), **changes})
            place = self._store.place(job.job_id)
            shutil.rmtree(place / CHUNKS, ignore_errors=True)
            (place / INPUT).unlink(missing_ok=True)


def _chunk(place: Path, start: int) -> Path:
    return place / CHUNKS / f"{start:012d}.arrow"
