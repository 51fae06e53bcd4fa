"""Which part of the work a process of a Slurm job does, and on which device: processes agree without talking.

The tasks of an array divide the work, and so do the processes of one `srun`, such as one for each GPU of a node.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class HasParts(Protocol):
    """Settings of work that is divided; None leaves it to Slurm's variables."""

    @property
    def part(self) -> int | None:
        """Which part this process does, from 0."""

    @property
    def num_parts(self) -> int | None:
        """Into how many parts the work is divided."""


def choose_part(settings: HasParts, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which part of how many this process does: by the settings, else by its place in a Slurm array, else all.

    The processes of one `srun` divide that part again. Raises ValueError if there is no such part, or if an array of
    some tasks does not say of how many.
    """
    part, num_parts = settings.part, settings.num_parts
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, last = int(environment["SLURM_ARRAY_TASK_MIN"]), int(environment["SLURM_ARRAY_TASK_MAX"])
        count = int(environment["SLURM_ARRAY_TASK_COUNT"])
        if num_parts is None:
            if (first, last) != (0, count - 1):
                raise ValueError(
                    f"the Slurm array has {count} tasks, {first} to {last}, and not 0 to {count - 1}: say num_parts, "
                    "of how many parts these are"
                )
            num_parts = count
        if part is None:
            part = int(environment["SLURM_ARRAY_TASK_ID"])
    part, num_parts = part or 0, num_parts or 1
    if part >= num_parts:
        raise ValueError(f"part must lie in [0, {num_parts - 1}], for num_parts is {num_parts}; found {part}")
    # Only within a step are there others: a batch script knows of the job's tasks, but is alone.
    num_processes = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if num_processes > 1:
        part = part * num_processes + int(environment["SLURM_PROCID"])
        num_parts *= num_processes
    return part, num_parts


def choose_device(device: str, environment: Mapping[str, str]) -> str:
    """The device of this process: of `cuda`, the GPU by its place on the node where `srun` shows it several."""
    if device == "cuda" and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        num_visible = torch.cuda.device_count()
        return f"cuda:{int(environment['SLURM_LOCALID']) % num_visible}" if num_visible > 1 else device
    return device
