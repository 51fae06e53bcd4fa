"""Signals ask a run to stop: they set a flag that the processes agree on at a step's end."""

import contextlib
import os
import signal
import subprocess
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from . import early_signals
from .run_record import RunError, RunRecord, job_of, log

SAVE, REQUEUE, END, FAIL = 1, 2, 3, 4
"""What a process asks for; of several the highest is done. FAIL: it cannot go on, and none shall wait for it."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and has saved
    """Training stopped at a signal after saving; `step` says where."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}; run the same command again to go on from there")
        self.step = step


class Signals:
    """Turns USR1, TERM and INT into a flag that all processes read at the same step."""

    def __init__(self) -> None:
        self._asked = 0
        self._old: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> "Signals":
        for number, meaning in ((signal.SIGUSR1, REQUEUE), (signal.SIGTERM, END), (signal.SIGINT, END)):

            def remember(_signal: int, _frame: FrameType | None, meaning: int = meaning) -> None:
                self._asked = max(self._asked, meaning)

            with contextlib.suppress(ValueError):  # not the main thread: the program that runs us handles signals
                self._old[number] = signal.signal(number, remember)
        if early_signals.take():
            self._asked = max(self._asked, REQUEUE)
        if dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def agreed(self, fabric: Fabric, own: int = 0) -> int:
        """What any process was asked to do or wants itself (`own`; 0: nothing), the same answer on all; without a wait
        for the GPU."""
        asked = max(self._asked, own)
        if fabric.world_size == 1:
            return asked
        flag = torch.tensor([asked])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return int(flag)


def requeue(fabric: Fabric, record: RunRecord) -> None:
    """Ask Slurm to start this job again, if it is one, which kills this process soon. Raises RunError if it refuses."""
    job = job_of(os.environ)
    if not (fabric.is_global_zero and job):
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    log.info("scontrol requeue %s: %s", job, (done.stdout + done.stderr).strip() or "done")
    if done.returncode:
        told = f"Slurm does not start job {job} again: {done.stderr.strip()}. Submit the same command again"
        record.end("stopped", told)
        raise RunError(f"saved at step {record.step}, but {told}")
