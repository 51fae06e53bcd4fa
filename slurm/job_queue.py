"""What Slurm's queue says of a job, asked by `squeue`."""

import os
import shutil
import subprocess
from dataclasses import dataclass

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""States of jobs that Slurm still knows for some minutes after their end."""
GONE, UNKNOWN = "GONE", "UNKNOWN"
_REASONS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "it is next, and waits for nodes to be free",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job it waits for has failed: cancel it",
    "BeginTime": "it was requeued, and may start again in a moment",
    "JobHeldUser": "held by you: scontrol release JOB",
    "JobHeldAdmin": "held by the administrators",
    "ReqNodeNotAvail": "its nodes are down or reserved",
    "PartitionTimeLimit": "its time is longer than the partition allows",
    "PartitionNodeLimit": "it asks for more nodes than the partition has",
}


@dataclass(frozen=True)
class QueuedJob:
    """A job as the queue sees it. `state` is Slurm's; GONE: Slurm knows no such job; UNKNOWN: it could not be asked."""

    job: str
    state: str
    reason: str = ""
    """Why it waits, or how it ended."""
    start: str = ""
    """When it started, or is expected to (local time of the cluster)."""
    time_left: str = ""
    """Before its limit, as days-hours:minutes:seconds."""

    @property
    def is_waiting(self) -> bool:
        """Whether it has yet to start (again)."""
        return self.state in WAITING

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left."""
        return self.state == GONE or self.state in ENDED

    @property
    def is_alive(self) -> bool:
        """Whether it holds nodes: it starts, runs, or ends."""
        return not (self.is_waiting or self.has_ended or self.state == UNKNOWN)

    @property
    def explained(self) -> str:
        """Why it waits, in words."""
        return f"{self.reason}: {_REASONS[self.reason]}" if self.reason in _REASONS else self.reason


def ask_queue(job: str) -> QueuedJob:
    """Ask for one job; a task of an array is `1234_5`."""
    if shutil.which("squeue") is None:
        return QueuedJob(job, UNKNOWN)
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T|%r|%S|%L"]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return QueuedJob(job, UNKNOWN)
    if answer.returncode:
        return QueuedJob(job, GONE if "invalid job id" in answer.stderr.lower() else UNKNOWN)
    lines = answer.stdout.strip().splitlines()
    if not lines:
        return QueuedJob(job, GONE)
    state, reason, start, left = (*lines[0].split("|"), "", "", "")[:4]
    return QueuedJob(
        job, state, *("" if word in ("None", "N/A", "INVALID") else word for word in (reason, start, left))
    )
