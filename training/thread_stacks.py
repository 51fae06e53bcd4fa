"""What each thread of this process is doing, for a run that seems to stand still.

Python's `faulthandler` reads the frames of running threads without the interpreter's lock; under Python 3.11 some of
our runs crashed when they were asked. Here a thread that holds the lock reads them; the signal wakes it even while the
main thread waits in a library.
"""

import contextlib
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import IO

_END = b"\0"


def write_stacks(file: IO[str]) -> None:
    """Write where each thread stands, its last call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        file.write(f"Thread {names.get(number, number)} (most recent call last):\n{stack}")
    file.flush()


@contextlib.contextmanager
def stacks_at_signal(file: IO[str], number: int = signal.SIGUSR2) -> Iterator[None]:
    """Within, a signal writes all stacks to `file`; out of the main thread, which alone may listen, nothing does."""
    asked, woken = socket.socketpair()
    with asked, woken:
        woken.setblocking(False)
        try:
            before = signal.signal(number, lambda *_: None)
        except ValueError:  # not the main thread: the program that runs us handles signals
            yield
            return
        wakeup = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)

        def answer() -> None:
            while (came := asked.recv(1)) != _END:
                if came == bytes([number]):
                    write_stacks(file)

        thread = threading.Thread(target=answer, name="armillary-stacks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(number, before)
            woken.setblocking(True)
            woken.send(_END)
            thread.join()
