"""A run that hangs ends itself: where no step has ended for long, and neither data, disk nor network said why.

Collectives have time-outs of their own; this sees also what they do not: a file system that never answers, a deadlock.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from .run_record import RunRecord
from .thread_stacks import write_stacks

GRACE_SECONDS = 10.0
"""Longer than collectives wait, whose error says more."""


@contextlib.contextmanager
def watchdog(record: RunRecord, minutes: float) -> Iterator[Callable[[], None]]:
    """Yields what is to be called at each step's end. If no call comes for so long, what each thread was doing goes to
    the process's log, the run is recorded as failed, and the process exits with status 1."""
    limit = 60 * minutes + min(GRACE_SECONDS, 60 * minutes)
    last = time.monotonic()
    is_over = threading.Event()

    def step_ended() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        while not is_over.wait(min(10.0, limit / 10)):
            if time.monotonic() - last > limit:
                told = (
                    f"{record.stage}: no step has ended for {limit / 60:.1f} minutes (loop.timeout_minutes) after step "
                    f"{record.step}: a process, a disk or the network hangs. What each thread was doing stands in "
                    f"{record.folder / 'logs'}; run the same command again to go on from the last state"
                )
                if record.log_file is not None:
                    write_stacks(record.log_file)
                record.end("failed", told)
                print(f"armillary: {told}", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(1)

    thread = threading.Thread(target=watch, name="armillary-watchdog", daemon=True)
    thread.start()
    try:
        yield step_ended
    finally:
        is_over.set()
        thread.join()
