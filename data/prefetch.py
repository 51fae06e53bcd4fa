"""One thread that works ahead of its consumer: enough where the work is reading and copying, which free the GIL."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(make: Callable[[], Iterator[Item]], depth: int) -> Generator[Item, None, None]:
    """The items of `make()`, made in a thread, at most `depth` ahead of the consumer; in place if `depth` is 0.

    An error in the thread is raised where its item would have come. Closing this iterator ends the thread.
    """
    if depth == 0:
        yield from make()
        return
    waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                return waiting.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in make():
                put(item, None)
                if stop.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="armillary-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
