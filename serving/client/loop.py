"""The async client from code that is not async: an event loop in a thread, and a stream that is read from outside."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

from ...models.embeddings import Embeddings
from .results import EmbeddedSet, FailedObject
from .stream import AsyncEmbeddingStream

Answer = TypeVar("Answer")


class LoopThread:
    """An event loop in a thread, started when it is first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Do the work there and wait for it; what interrupts the wait cancels the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Do the last work, cancel all that is left, and end the thread."""
        if self._loop is None or self._thread is None:
            last.close()
            return
        try:
            self.run(_finish(last))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="armillary-client", daemon=True)
                self._thread.start()
            return self._loop


async def _finish(last: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    left = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await last
    await loop.shutdown_default_executor()


class EmbeddingStream(Iterator[Embeddings]):
    """The embeddings of many objects: `for` gives them part by part, in order; `collect` gives all.

    `errors` lists the objects without a result so far, `num_done` counts all objects that have been dealt with: after
    an error, the rest of the source begins there. A stream is read once. Made by `Client.embed_many`.
    """

    def __init__(self, loop: LoopThread, stream: AsyncEmbeddingStream) -> None:
        self._loop = loop
        self._stream = stream

    def __iter__(self) -> "EmbeddingStream":
        return self

    def __next__(self) -> Embeddings:
        found = self._loop.run(_next_or_none(self._stream))
        if found is None:
            raise StopIteration
        return found

    def __enter__(self) -> "EmbeddingStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def errors(self) -> list[FailedObject]:
        """The objects without a result so far."""
        return self._stream.errors

    @property
    def num_done(self) -> int:
        """How many objects have been dealt with."""
        return self._stream.num_done

    @property
    def finished(self) -> Embeddings | None:
        """What `collect` has gathered so far, None if nothing."""
        return self._stream.finished

    def collect(self) -> EmbeddedSet:
        """All embeddings and all errors. Whatever ends it early, `finished` has what was there before.

        Raises ConflictError if the server changes its model meanwhile: vectors of two models do not go together.
        """
        return self._loop.run(self._stream.collect())

    def close(self) -> None:
        """Leave off: requests under way are cancelled."""
        self._loop.run(self._stream.aclose())


async def _next_or_none(stream: AsyncEmbeddingStream) -> Embeddings | None:
    return await anext(stream, None)
