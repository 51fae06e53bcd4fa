"""`armillary status`, `armillary runs`: what a run is doing, by its folder and by Slurm's queue together.

A process that is killed cannot say so. Where the folder says that a run goes on, the queue is asked; without Slurm, the
process itself is looked for if it is of this machine, and else the age of its last word is judged.
"""

import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..settings import parse_yaml
from ..training.run_record import job_of, read_attempts, read_metrics, read_status, saved_steps
from .job_queue import UNKNOWN, QueuedJob, ask_queue
from .submit import JOBS

SILENT_AFTER = 600.0
"""Seconds without a word, and ten rows of the log, after which a run may have died."""
_GOING_ON = ("waiting", "starting", "running", "requeued")
LAST_ROWS = 5
"""Of the log, by which speed is judged."""
NEW = 60.0
"""Seconds for which a word of a run is believed though the queue knows no such job."""
_NOT_RUNS = {"states", "checkpoint", "tokenizer", "tensorboard", "logs", "slurm", "bad-steps", "profile"}


@dataclass(frozen=True)
class RunStatus:
    """What a run is doing. `state` is one of

    waiting (its job is to start), starting, running, requeued, stopped, failed, finished: as Slurm or the run says;
    unstarted: its job ended before it began; died: it was killed; silent: nobody knows whether it lives; unknown: its
    folder does not say.
    """

    folder: str
    stage: str | None
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    examples_per_second: float | None
    seconds_left: float | None
    """By the speed of the last rows."""
    attempts: int
    restarts: int
    """How often Slurm has started the job again."""
    last_checkpoint: str | None
    last_change: str | None
    """UTC."""
    git_commit: str | None
    job: QueuedJob | None
    message: str
    """Why it waits, how it ended, and how it goes on."""


def run_status(
    folder: str | Path, ask: Callable[[str], QueuedJob] = ask_queue, now: datetime | None = None
) -> RunStatus:
    """What the run of a folder is doing. Raises ValueError if the folder is of no run."""
    folder, now = Path(folder), now or datetime.now(UTC)
    if not is_run(folder):
        raise ValueError(
            f"{folder}: expected a run folder, with status.json; `armillary runs FOLDER` lists those in one"
        )
    status, attempts = read_status(folder), read_attempts(folder)
    last = attempts[-1] if attempts else {}
    submitted = _last_submission(folder, last)
    number = submitted["job"] if submitted else job_of(last.get("slurm", {}))
    job = ask(number) if number else None
    rows = read_metrics(folder / "metrics.csv")[-LAST_ROWS:]
    written = status or {}
    state, message = _judge(folder, status, job, submitted, rows, now)
    step = written.get("step", int(rows[-1]["step"]) if rows else None)
    steps = written.get("steps")
    speeds = [row["examples_per_second"] for row in rows if row.get("examples_per_second")]
    speed = sum(speeds) / len(speeds) if speeds else None
    return RunStatus(
        folder=str(folder),
        stage=written.get("stage") or (submitted or {}).get("stage") or last.get("stage"),
        state=state,
        step=step,
        steps=steps,
        loss=rows[-1].get("loss") if rows else None,
        examples_per_second=speed,
        seconds_left=_seconds_left(folder, step, steps, speed) if state in _GOING_ON else None,
        attempts=len(attempts),
        restarts=int(last.get("slurm", {}).get("SLURM_RESTART_COUNT", 0)),
        last_checkpoint=_last_checkpoint(folder),
        last_change=written.get("time"),
        git_commit=last.get("git_commit"),
        job=job,
        message=message,
    )


def to_json(status: RunStatus) -> dict[str, Any]:
    """The status as plain values."""
    return asdict(status)


def is_run(folder: Path) -> bool:
    """Whether a folder is of a run, begun or submitted."""
    return any((folder / name).is_file() for name in ("status.json", "attempts.jsonl", JOBS, "metrics.csv"))


def find_runs(folder: str | Path) -> Iterator[Path]:
    """The run folders in a folder, at any depth, by name. Raises ValueError if there is no such folder."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder; give the one that holds your runs: armillary runs FOLDER")
    for place, folders, _ in os.walk(folder):
        if is_run(Path(place)):
            yield Path(place)
        folders[:] = sorted(name for name in folders if name not in _NOT_RUNS)


def duration(seconds: float) -> str:
    """In words, such as `3 h 20 min`."""
    minutes = int(seconds // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def _judge(
    folder: Path,
    status: Mapping[str, Any] | None,
    job: QueuedJob | None,
    submitted: Mapping[str, Any] | None,
    rows: list[dict[str, float]],
    now: datetime,
) -> tuple[str, str]:
    """State and message. `submitted` is given if the last job has not begun a run."""
    state = status["state"] if status else "unknown"
    message = (status or {}).get("message", "")
    if job is not None and job.is_waiting:
        return "waiting", job.explained
    if job is not None and job.is_alive:
        if submitted is not None:
            return "starting", ""
        return (state, message) if state != "requeued" or job.state == "COMPLETING" else ("starting", "")
    if job is not None and job.has_ended and submitted is not None:
        if _has_result(folder):
            return "finished", ""
        how = f"job {job.job} left the queue ({_ending(job)}) before the run began"
        return "unstarted", f"{how}; why stands in its log, if it has one: {submitted['log']}"
    if state == "requeued" and job is not None and job.has_ended:
        return "stopped", f"it was to start again, but its job {job.job} is no longer in the queue; {_go_on(folder)}"
    if state == "running" and status is not None:
        return _is_it_alive(folder, status, job, rows, now)
    if state == "unknown" and _has_result(folder):
        return "finished", ""
    if state == "finished" and not _has_result(folder):
        return state, "trained; its checkpoint is not written yet, and if the job has ended the same command writes it"
    if state in ("stopped", "failed"):
        message = f"{message}; {_go_on(folder)}" if message else _go_on(folder)
    return state, message


def _has_result(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("tokenizer", "checkpoint"))


def _is_it_alive(
    folder: Path, status: Mapping[str, Any], job: QueuedJob | None, rows: list[dict[str, float]], now: datetime
) -> tuple[str, str]:
    """State and message of a run that says it goes on, though no job of it was found to run."""
    age = (now - datetime.fromisoformat(status["time"])).total_seconds()
    if job is not None and job.has_ended and (job.state != "GONE" or age > NEW):
        return "died", f"killed at or after step {status['step']}: job {job.job} {_ending(job)}; {_go_on(folder)}"
    holder = _process_of(folder) if job is None or job.state == UNKNOWN else None
    if holder is not None:
        process, lives = holder
        if not lives:
            return "died", f"killed at or after step {status['step']}: process {process} is no more; {_go_on(folder)}"
        return "running", f"process {process} of this machine"
    if age > max(SILENT_AFTER, 10 * _seconds_of_a_row(rows)):
        return "silent", f"no word since {duration(age)}: it may have been killed; {_go_on(folder)}, if it is"
    return "running", ""


def _ending(job: QueuedJob) -> str:
    return "is no longer in the queue" if job.state == "GONE" else f"ended as {job.state}"


def _go_on(folder: Path) -> str:
    steps = saved_steps(folder)
    return f"the same command goes on from step {steps[-1]}" if steps else "the same command starts it anew"


def _process_of(folder: Path) -> tuple[int, bool] | None:
    """The process that holds the folder and whether it lives, if it is of this machine (the lock is `RunRecord`'s)."""
    try:
        host, process, _ = (folder / "lock").read_text(encoding="utf-8").split(", ", 2)
        number = int(process.removeprefix("pid "))
    except (OSError, ValueError):
        return None
    if host != socket.gethostname():
        return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return number, False
    except PermissionError:
        pass
    return number, True


def _last_submission(folder: Path, last_attempt: Mapping[str, Any]) -> dict[str, Any] | None:
    """The job that was submitted last, if no attempt is its yet."""
    path = folder / JOBS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines:
        return None
    submitted: dict[str, Any] = json.loads(lines[-1])
    began = last_attempt.get("started", "")
    if job_of(last_attempt.get("slurm", {})) == submitted["job"]:
        return None
    # Both are UTC in one format. An attempt after it is of a job that was submitted by hand.
    return submitted if began <= submitted["submitted"] else None


def _seconds_of_a_row(rows: list[dict[str, float]]) -> float:
    times = [row["seconds"] for row in rows if "seconds" in row]
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


def _seconds_left(folder: Path, step: int | None, steps: int | None, speed: float | None) -> float | None:
    path = folder / "settings.yaml"
    if step is None or steps is None or not speed or not path.is_file():
        return None
    batch_size = ((parse_yaml(path.read_text(encoding="utf-8")) or {}).get("loop") or {}).get("batch_size")
    return None if batch_size is None else (steps - step) * batch_size / speed


def _last_checkpoint(folder: Path) -> str | None:
    steps = saved_steps(folder)
    return f"step-{steps[-1]:08d}" if steps else None
