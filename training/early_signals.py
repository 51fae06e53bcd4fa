"""USR1 that comes while a job still starts: its default would end the process before anything could be saved.

A module without torch, which takes seconds to import: `cli.py` listens first of all, `signals.py` takes over.
"""

import contextlib
import signal
from types import FrameType

_arrived: list[int] = []


def listen() -> None:
    """Remember USR1 from now on."""

    def remember(number: int, _frame: FrameType | None) -> None:
        _arrived.append(number)

    with contextlib.suppress(ValueError):  # not the main thread: the program that runs us handles signals
        signal.signal(signal.SIGUSR1, remember)


def take() -> bool:
    """Whether USR1 has come since `listen`; asked again, it has not."""
    found = bool(_arrived)
    _arrived.clear()
    return found
