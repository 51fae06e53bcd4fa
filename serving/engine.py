"""The engine: one thread does all work of the model, in batches gathered from whatever requests wait.

Objects that were seen in the same way (the same modalities, shapes and bands) share a batch, so that none is padded: an
object's vector does not depend on who asked beside it. Whoever waits longest goes first, bulk work after all others;
objects whose caller has left are passed over. The queue is bounded: what does not fit is refused with the time after
which to ask again. A batch that fails is halved until the object at fault is alone.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import Field

from ..data.observations import Observation, ObservationError
from ..data.stacking import stack_objects
from ..models.embeddings import Embeddings
from ..settings import Settings
from .content_cache import ContentCache, content_key
from .middleware.callers import Caller, caller
from .middleware.metrics import ServerMetrics
from .problems import ProblemError

LOG = logging.getLogger("armillary.engine")
POLL_SECONDS = 0.25
"""How often a waiting request looks whether its caller is still there."""
FIRST_RATE = 50.0
"""Objects in a second, until the first batch has shown better."""

Result = TypeVar("Result")
Embed = Callable[[Sequence[Observation], str], Embeddings]
Embedded = tuple[np.ndarray, tuple[str, ...]]
"""Vector [D], float32, and the modalities that it came from."""


class EngineSettings(Settings):
    """How requests share the model."""

    max_batch: Annotated[int, Field(ge=1)] = 64
    """Objects in one batch."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 3.0
    """How long a batch that is not full waits for requests that are still being read."""
    max_queue: Annotated[int, Field(ge=1)] = 2048
    """Objects that may wait; beyond that, requests are refused (429)."""
    max_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long a request may wait for the model (503 after that)."""
    cache_mib: Annotated[int, Field(ge=0)] = 256
    """Memory for vectors by content, 0 for none."""
    token_cache_mib: Annotated[int, Field(ge=0)] = 128
    """Memory for tokens by content, 0 for none."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Of the model on CPUs; by default all."""


@dataclass(eq=False)
class _Call:
    """What one caller waits for: results of its objects, or of a function."""

    caller: Caller
    deadline: float
    results: list[Any]
    left: int
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.caller.has_left or time.monotonic() > self.deadline

    def answer(self, place: int, result: Any) -> None:
        self.results[place] = result
        self.left -= 1
        if self.left == 0:
            self.done.set()


@dataclass(eq=False)
class _Work:
    """One object to embed, or a function to call."""

    call: _Call
    place: int
    kind: Hashable
    arrived: float
    observations: Sequence[Observation] = ()
    space: str = ""
    function: Callable[[], Any] | None = None


class Engine:
    """Runs `embed` (that of the model) on batches of objects from all callers; see the module.

    `num_reading` says how many requests are being read and will ask soon: while there are any, a batch that is not full
    waits a little. Close it when it is not used any more.
    """

    def __init__(
        self,
        embed: Embed,
        settings: EngineSettings | None = None,
        metrics: ServerMetrics | None = None,
        num_reading: Callable[[], int] = lambda: 0,
    ) -> None:
        self._embed = embed
        self.settings = settings or EngineSettings()
        self.metrics = metrics or ServerMetrics()
        self._num_reading = num_reading
        self._cache = ContentCache(self.settings.cache_mib * 2**20)
        self._threads = self.settings.threads or torch.get_num_threads()
        self._waiting: tuple[deque[_Work], deque[_Work]] = (deque(), deque())
        """Of people, and of bulk work."""
        self._changed = threading.Condition()
        self._is_closed = False
        self._rate = FIRST_RATE
        self._thread: threading.Thread | None = None

    def embed(self, objects: Sequence[Sequence[Observation]], space: str, model_id: str) -> list[Any]:
        """For each object, given as its observations, what `Embedded` is, or the error: ObservationError or another.

        Blocks until all are done. Raises ProblemError: `busy` (429) if the queue is full, `too-slow` (503) after
        `max_seconds`, `caller-left` if nobody waits for the answer any more.
        """
        purpose = f"{model_id} {space}"
        keys = [content_key(given, purpose) for given in objects] if self._cache.max_bytes else [b""] * len(objects)
        found: list[Any] = [self._cache.get(key) for key in keys]
        new = [number for number, result in enumerate(found) if result is None]
        self.metrics.cache.labels("hit").inc(len(found) - len(new))
        self.metrics.cache.labels("miss").inc(len(new))
        if new:
            call = self._new_call(len(new))
            now = time.monotonic()
            work = [
                _Work(call, place, (space, form_of(objects[number])), now, objects[number], space)
                for place, number in enumerate(new)
            ]
            self._submit(call, work)
            for place, number in enumerate(new):
                result = found[number] = call.results[place]
                if not isinstance(result, Exception):
                    self._cache.put(keys[number], *result)
        return found

    def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns or raises, called by the engine's thread between two batches. Raises as `embed`."""
        call = self._new_call(1)
        self._submit(call, [_Work(call, 0, object(), time.monotonic(), function=function)])
        (result,) = call.results
        if isinstance(result, Exception):
            raise result
        return result

    def forget(self) -> None:
        """Drop the cache: the model has changed."""
        self._cache.clear()

    def close(self) -> None:
        """End the thread once the batch in hand is done; whoever waits still is told that the server stops."""
        with self._changed:
            self._is_closed = True
            left = [work for queue in self._waiting for work in queue]
            for queue in self._waiting:
                queue.clear()
            self._changed.notify_all()
        for work in left:
            work.call.answer(work.place, ProblemError("not-ready", "the server is stopping"))
        if self._thread is not None:
            self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Objects that wait."""
        return sum(map(len, self._waiting))

    def _new_call(self, count: int) -> _Call:
        return _Call(caller(), time.monotonic() + self.settings.max_seconds, [None] * count, count)

    def _submit(self, call: _Call, work: Sequence[_Work]) -> None:
        with self._changed:
            if self._is_closed:
                raise ProblemError("not-ready", "the server is stopping")
            waiting = self.num_waiting
            if waiting + len(work) > max(self.settings.max_queue, len(work) if not waiting else 0):
                self.metrics.refused.labels("queue").inc()
                seconds = max(1, math.ceil(waiting / self._rate))
                raise ProblemError(
                    "busy",
                    f"{waiting} objects wait for the model, at most {self.settings.max_queue} may; ask again in "
                    f"{seconds} s",
                    retry_after=seconds,
                )
            self._waiting[call.caller.is_bulk].extend(work)
            self.metrics.queued.set(self.num_waiting)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="armillary-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        while not call.done.wait(POLL_SECONDS):
            if call.is_over:
                break
        if not call.done.is_set():
            self._give_up(call)

    def _give_up(self, call: _Call) -> None:
        with self._changed:
            for queue in self._waiting:
                kept = [work for work in queue if work.call is not call]
                queue.clear()
                queue.extend(kept)
            self.metrics.queued.set(self.num_waiting)
        if call.caller.has_left:
            self.metrics.abandoned.inc(call.left)
            raise ProblemError("caller-left", "the caller has closed the connection")
        self.metrics.refused.labels("time").inc()
        raise ProblemError("too-slow", f"the model had no time for this within {self.settings.max_seconds:g} s")

    def _run(self) -> None:
        # Requests are read by other threads, of one processor each; this one may have them all.
        torch.set_num_threads(self._threads)
        while True:
            with self._changed:
                while not self.num_waiting and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                self._wait_for_company()
                batch = self._take()
                self.metrics.queued.set(self.num_waiting)
            if batch:
                self._do(batch)

    def _wait_for_company(self) -> None:
        """Give requests that are being read the time to join, while the batch is not full."""
        queue = next(queue for queue in self._waiting if queue)
        if queue[0].function is not None:
            return
        until = queue[0].arrived + self.settings.max_wait_ms / 1000
        while (
            not self._is_closed
            and self.num_waiting < self.settings.max_batch
            and self._num_reading() > 0
            and (left := until - time.monotonic()) > 0
        ):
            self._changed.wait(left)

    def _take(self) -> list[_Work]:
        """The next batch: what waits longest, and all of its kind that fit."""
        for queue in self._waiting:
            batch: list[_Work] = []
            kept: list[_Work] = []
            for work in queue:
                if work.call.is_over:
                    continue
                full = len(batch) == self.settings.max_batch
                fits = not batch or (work.kind == batch[0].kind and not full)
                (batch if fits else kept).append(work)
            queue.clear()
            queue.extend(kept)
            if batch:
                return batch
        return []

    def _do(self, batch: list[_Work]) -> None:
        now = time.monotonic()
        for work in batch:
            self.metrics.stage_seconds.labels("queue").observe(now - work.arrived)
        with self.metrics.timed("model"):
            if batch[0].function is not None:
                results = [_outcome(batch[0].function)]
            else:
                self.metrics.batch_objects.observe(len(batch))
                results = self._embed_batch(batch)
        if batch[0].function is None:
            # A moving mean, by which callers are told when to come back.
            self._rate += 0.2 * (len(batch) / max(1e-6, time.monotonic() - now) - self._rate)
        _note_stages(batch, now, time.monotonic())
        for work, result in zip(batch, results, strict=True):
            work.call.answer(work.place, result)

    def _embed_batch(self, batch: Sequence[_Work]) -> list[Any]:
        outcome = _outcome(lambda: self._embed_together(batch))
        if not isinstance(outcome, Exception):
            return outcome
        if len(batch) > 1:
            middle = len(batch) // 2
            return [*self._embed_batch(batch[:middle]), *self._embed_batch(batch[middle:])]
        if not isinstance(outcome, ObservationError | ProblemError):
            LOG.error("the model failed on one object", exc_info=outcome)
        return [outcome]

    def _embed_together(self, batch: Sequence[_Work]) -> list[Embedded | ObservationError]:
        space = batch[0].space
        found = self._embed(stack_objects([work.observations for work in batch]), space)
        vectors, row_of = found.numpy(), {object_id: row for row, object_id in enumerate(found.object_id)}
        results: list[Embedded | ObservationError] = []
        for number, work in enumerate(batch):
            row = row_of.get(str(number))
            if row is None:
                names = [observation.modality.name for observation in work.observations]
                results.append(ObservationError(f"the space {space!r} has no place for {names} alone"))
            else:
                results.append((vectors[row], found.modalities[row]))
        return results


def _note_stages(batch: Sequence[_Work], began: float, ended: float) -> None:
    """Tell the trace of each caller how long its objects have waited, and how long their batch took."""
    for call, arrived in {work.call: work.arrived for work in batch}.items():
        call.caller.note_stage("queue", arrived, began)
        call.caller.note_stage("model", began, ended)


def _outcome(function: Callable[[], Any]) -> Any:
    """What a function returns, or the exception that it raises: whoever asked is told, the thread goes on."""
    try:
        return function()
    except Exception as error:
        return error


def form_of(observations: Sequence[Observation]) -> Hashable:
    """What objects must have in common to share a batch."""
    return tuple(
        sorted(
            (
                observation.modality.name,
                tuple(getattr(observation, "flux", observation.mask).shape[1:]),
                tuple(getattr(observation, "bands", ())),
            )
            for observation in observations
        )
    )
