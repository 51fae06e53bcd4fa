"""What a run folder tells of its run: settings, attempts, status, and a log of each process.

    settings.yaml                 as they were resolved
    attempts.jsonl                a line for each start: from which step, where, in which Slurm job, by which code
    status.json                   what the run is doing, or how it ended; replaced at each row of the log
    logs/process-00000.log        signals, saves, warnings and tracebacks of one process

This module needs no torch, so that a login node reads all of it in a moment.
"""

import contextlib
import csv
import fcntl
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from ..settings import Settings, to_yaml
from .records import describe_versions
from .thread_stacks import stacks_at_signal

log = logging.getLogger("armillary.run")
STATES_FOLDER = "states"
State = Literal["running", "requeued", "stopped", "failed", "finished"]
"""`stopped`: saved and ended, as TERM or INT asked; `requeued`: saved, and Slurm was asked to start it again."""


class RunError(RuntimeError):
    """A run cannot go on, for a reason that is its surroundings': disk, node, queue. The message says what to do."""


class RunRecord:
    """The record of one start of a run, by one process; process 0 writes what is of the whole run.

    Raises RunError if another process trains in the folder, or if Slurm has started the job again and again from one
    step. A USR2 signal writes what each thread is doing to the log.
    """

    def __init__(self, folder: str | Path, stage: str, steps: int, rank: int = 0, num_processes: int = 1):
        self.folder, self.stage, self.steps = Path(folder), stage, steps
        self.rank, self.num_processes = rank, num_processes
        self.step = 0
        self._has_ended = False
        self._open = contextlib.ExitStack()
        self.log_file: IO[str] | None = None

    def __enter__(self) -> "RunRecord":
        with contextlib.ExitStack() as opened:
            path = self.folder / "logs" / f"process-{self.rank:05d}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                opened.enter_context(_alone(self.folder / "lock"))
            self.log_file = opened.enter_context(path.open("a", encoding="utf-8"))
            handler = logging.StreamHandler(self.log_file)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.setLevel(logging.INFO)
            log.addHandler(handler)
            opened.callback(log.removeHandler, handler)
            opened.enter_context(stacks_at_signal(self.log_file))
            self._open = opened.pop_all()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and not self._has_ended:
            log.error("%s failed at step %d", self.stage, self.step, exc_info=error)
            self.end("failed", f"{type(error).__name__}: {error}")
        self._open.close()

    def begin(self, start: int, max_idle_restarts: int) -> None:
        """Say that the run goes on from step `start`."""
        self.step = start
        job = _slurm_variables()
        where = f"process {self.rank} of {self.num_processes} on {socket.gethostname()}, pid {os.getpid()}"
        log.info("%s from step %d of %d; %s%s", self.stage, start, self.steps, where, f"; {job}" if job else "")
        if self.rank != 0:
            return
        idle = _idle_restarts(self.folder, start, job)
        if idle >= max_idle_restarts:
            raise RunError(
                f"{self.folder}: Slurm has started job {job['SLURM_JOB_ID']} {idle + 1} times from step {start}, and "
                f"none got further: it is not started again (loop.max_idle_restarts). The reason stands in "
                f"{self.folder / 'logs'}; when it is mended, submit the run again"
            )
        attempt = {
            "started": _now(),
            "stage": self.stage,
            "step": start,
            "steps": self.steps,
            "host": socket.gethostname(),
            "num_processes": self.num_processes,
            "slurm": job,
            "command": sys.argv,
            **describe_versions(),
        }
        with (self.folder / "attempts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(attempt) + "\n")
        self._write("running", "")

    def reached(self, step: int) -> None:
        """Say how far the run has come."""
        self.step = step
        self._write("running", "")

    def end(self, state: State, message: str = "") -> None:
        """Say how the run ends."""
        log.info("%s %s at step %d %s", self.stage, state, self.step, message)
        self._has_ended = True
        with contextlib.suppress(OSError):  # a full disk must not hide what ended the run
            self._write(state, message)

    def _write(self, state: State, message: str) -> None:
        if self.rank != 0:
            return
        status = {
            "stage": self.stage,
            "state": state,
            "step": self.step,
            "steps": self.steps,
            "time": _now(),
            "message": message,
        }
        write_whole(self.folder / "status.json", json.dumps(status) + "\n")


def keep_settings(folder: str | Path, settings: Settings, rank: int = 0) -> None:
    """Write the resolved settings of a run to its folder; process 0 does."""
    if rank == 0:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "settings.yaml", to_yaml(settings))


def write_whole(path: Path, text: str) -> None:
    """Write a small file under another name and rename it: whoever reads it sees all of it, the old or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_attempts(folder: str | Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; a line that was torn is left out."""
    path = Path(folder) / "attempts.jsonl"
    attempts = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            attempts.append(json.loads(line))
    return attempts


def read_status(folder: str | Path) -> dict[str, Any] | None:
    """What a run says of itself; None if it never began."""
    try:
        return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; empty if there is none. Cells left empty are absent from their row.

    A last row that was torn, on a full disk, is left out.
    """
    if not Path(path).is_file():
        return []
    text = Path(path).read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(whole)]


def saved_steps(run_folder: str | Path) -> list[int]:
    """Steps of the states in a run folder, oldest first; whether they are whole is seen on loading."""
    folders = (Path(run_folder) / STATES_FOLDER).glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def job_of(variables: Mapping[str, str]) -> str | None:
    """The number of a Slurm job by its variables; None outside of one.

    A task of an array has a number of its own, which for one task is the array's, too: it is named by the array's and
    its place there, or all tasks would be meant.
    """
    if "SLURM_ARRAY_JOB_ID" in variables and "SLURM_ARRAY_TASK_ID" in variables:
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    return variables.get("SLURM_JOB_ID")


def warn(message: str) -> None:
    """A warning that stands in the log of the process, too."""
    log.warning(message)
    warnings.warn(message, stacklevel=3)


def _idle_restarts(folder: Path, start: int, job: dict[str, str]) -> int:
    """How often Slurm started this job at the step where it stands now."""
    if int(job.get("SLURM_RESTART_COUNT", 0)) == 0:
        return 0
    count = 0
    for attempt in reversed(read_attempts(folder)):
        if attempt["step"] != start or attempt["slurm"].get("SLURM_JOB_ID") != job["SLURM_JOB_ID"]:
            break
        count += 1
    return count


def _slurm_variables() -> dict[str, str]:
    names = ("JOB_ID", "JOB_NAME", "JOB_PARTITION", "JOB_NODELIST", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT")
    return {f"SLURM_{n}": os.environ[f"SLURM_{n}"] for n in names if f"SLURM_{n}" in os.environ}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a run folder. Raises RunError if another process does; file systems without locks let all pass."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"{path.parent}: another process trains in this run folder: {file.read().strip()}") from None
        except OSError:
            yield
            return
        file.truncate(0)
        file.write(f"{socket.gethostname()}, pid {os.getpid()}, since {_now()}\n")
        file.flush()
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
