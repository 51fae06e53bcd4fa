"""Which part of the work a task of a Slurm array does: the tasks agree without talking to each other."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


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

    Raises ValueError if there is no such part, or if an array of some tasks does not say of how many.
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
    return part, num_parts
