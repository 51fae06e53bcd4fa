"""Embeddings of many objects as a stream: several requests in flight, answers in order, bounded memory.

The source is read in a thread as requests leave, so that no more objects are held than are in flight. An object that
the server refuses fails alone where the caller wants it so.
"""

import asyncio
import contextlib
import re
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...models.embeddings import Embeddings
from .batches import Batch, embedding_answer
from .errors import ApiError, ConflictError, InvalidRequestError, TooLargeError, api_error
from .requests import Call
from .results import EmbeddedSet, FailedObject

OnError = Literal["raise", "skip"]
_PLACE = re.compile(r"^/input/(\d+)(/.*)?$")


@dataclass(frozen=True, eq=False)
class Part:
    """The answer for one batch: embeddings of those objects that have one, and the others."""

    embeddings: Embeddings | None
    failed: tuple[FailedObject, ...]
    num_objects: int


class AsyncEmbeddingStream(AsyncIterator[Embeddings]):
    """The embeddings of many objects: `async for` gives them part by part, in order; `collect` gives all.

    `errors` lists the objects without a result so far, `num_done` counts all objects that have been dealt with: after
    an error, the rest of the source begins there. A stream is read once. Made by `AsyncClient.embed_many`.
    """

    def __init__(
        self,
        batches: Callable[[], Awaitable[Iterator[Batch | FailedObject]]],
        send: Callable[[Batch], Awaitable[Part]],
        num_in_flight: int,
        on_error: OnError = "raise",
        progress: bool = False,
        total: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', found {on_error!r}")
        if num_in_flight < 1:
            raise ValueError(f"num_in_flight must be at least 1, found {num_in_flight}")
        self.errors: list[FailedObject] = []
        self.num_done = 0
        self._batches = batches
        self._send = send
        self._num_in_flight = num_in_flight
        self._on_error = on_error
        self._progress = progress
        self._total = total
        self._parts = self._run()
        self._collected: list[Embeddings] = []

    def __aiter__(self) -> "AsyncEmbeddingStream":
        return self

    async def __anext__(self) -> Embeddings:
        return await anext(self._parts)

    async def aclose(self) -> None:
        """Leave off: requests in flight are cancelled."""
        await self._parts.aclose()

    async def collect(self) -> EmbeddedSet:
        """All embeddings and all errors. Whatever ends it early, `finished` has what was there before.

        Raises ConflictError if the server changes its model meanwhile: vectors of two models do not go together.
        """
        try:
            async for part in self:
                if self._collected and part.model_id != self._collected[0].model_id:
                    raise model_changed(self._collected[0].model_id, part.model_id)
                self._collected.append(part)
            return EmbeddedSet(self.finished, tuple(self.errors))
        except ApiError as error:
            error.finished = self.finished
            error.add_note(f"{self.num_done} objects were done before; their embeddings are in the error's `finished`")
            raise

    @property
    def finished(self) -> Embeddings | None:
        """What `collect` has gathered so far, None if nothing."""
        return joined(self._collected)

    async def _run(self) -> AsyncGenerator[Embeddings, None]:
        waiting: deque[asyncio.Future[Part]] = deque()
        pull: asyncio.Task[Batch | FailedObject | None] | None = None
        try:
            with progress_bar(self._progress, self._total) as advance:
                source = await self._batches()
                is_exhausted = False
                while True:
                    if pull is None and not is_exhausted and len(waiting) < self._num_in_flight:
                        pull = asyncio.create_task(asyncio.to_thread(next, source, None))
                    if pull is None and not waiting:
                        return
                    # Whatever comes first: the next batch of a source that may be slow, or the oldest answer.
                    await asyncio.wait(
                        [task for task in (pull, *list(waiting)[:1]) if task is not None],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if pull is not None and pull.done():
                        is_exhausted = pull.exception() is not None or pull.result() is None
                        if pull.exception() is not None or not is_exhausted:
                            waiting.append(self._started(pull))
                        pull = None
                    elif waiting[0].done():
                        part = self._settled(waiting.popleft().result())
                        advance(part.num_objects)
                        if part.embeddings is not None:
                            yield part.embeddings
        finally:
            pending: list[asyncio.Future[Any]] = [*waiting]
            if pull is not None:
                pending.append(pull)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _started(self, pull: "asyncio.Task[Batch | FailedObject | None]") -> "asyncio.Future[Part]":
        """The part that will come of what the source gave; what failed there waits for its turn, too."""
        error = pull.exception()
        found = None if error is not None else pull.result()
        if isinstance(found, Batch):
            return asyncio.ensure_future(self._send(found))
        future: asyncio.Future[Part] = asyncio.get_running_loop().create_future()
        if isinstance(found, FailedObject):
            future.set_result(Part(None, (found,), 1))
        else:
            assert error is not None
            future.set_exception(error)
        return future

    def _settled(self, part: Part) -> Part:
        if part.failed and self._on_error == "raise":
            raise error_of_failed(part.failed)
        self.errors.extend(part.failed)
        self.num_done += part.num_objects
        return part


async def send_batch(
    batch: Batch, space: str, max_bytes: int, send: Callable[[Call[httpx.Response]], Awaitable[httpx.Response]]
) -> Part:
    """Embed the objects of one batch: an object that is at fault fails alone. Raises ApiError for all other faults.

    A batch that is too large after all, for a proxy or a server with new limits, goes in halves.
    """
    try:
        body, media_type = await asyncio.to_thread(batch.body, space, max_bytes)
        headers = {"Content-Type": media_type, "Accept": "application/vnd.safetensors"}
        response = await send(Call("POST", "/v1/embeddings", lambda answer: answer, body, headers))
    except TooLargeError as error:
        middle = len(batch.objects) // 2
        if middle:
            halves = (Batch(batch.first, batch.objects[:middle]), Batch(batch.first + middle, batch.objects[middle:]))
            return _together([await send_batch(half, space, max_bytes, send) for half in halves])
        return Part(None, (FailedObject(batch.first, batch.objects[0].object_id, error),), 1)
    except InvalidRequestError as error:
        return Part(None, all_failed(batch.first, [one.object_id for one in batch.objects], error), len(batch.objects))
    try:
        vectors, told = embedding_answer(response.content)
        provenance = told["provenance"]
        good = [row for row in range(len(batch.objects)) if told["errors"] == [] or not np.isnan(vectors[row]).all()]
        modalities = tuple(tuple(told["modalities"][row]) for row in good)
    except (ValueError, LookupError, TypeError) as error:
        detail = f"{response.request.url} does not answer with embeddings: {error}"
        raise ApiError(response.status_code, {"title": "Not an Armillary server", "detail": detail}) from None
    failed = []
    for document in told["errors"]:
        number = document["index"]
        found = api_error(document["status"], placed(document, batch.first), response.headers.get("x-request-id"))
        failed.append(FailedObject(batch.first + number, batch.objects[number].object_id, found))
    embeddings = None
    if good:
        embeddings = Embeddings(
            tuple(batch.objects[row].object_id for row in good),
            torch.from_numpy(np.ascontiguousarray(vectors[good], np.float32)),
            space,
            provenance["model_id"],
            modalities,
        )
    return Part(embeddings, tuple(failed), len(batch.objects))


def joined(parts: Sequence[Embeddings]) -> Embeddings | None:
    """Parts as one, None if there is none. Raises ConflictError if the server changed its model between them."""
    if not parts:
        return None
    for part in parts:
        if part.model_id != parts[0].model_id:
            raise model_changed(parts[0].model_id, part.model_id)
    return Embeddings(
        tuple(name for part in parts for name in part.object_id),
        torch.cat([part.vectors for part in parts]),
        parts[0].space,
        parts[0].model_id,
        tuple(names for part in parts for names in part.modalities),
    )


def model_changed(before: str, after: str) -> ConflictError:
    """The error of a task that two models have answered."""
    detail = f"the server changed its model meanwhile ({before} and {after}): their vectors do not go together"
    return ConflictError(409, {"title": "The model changed", "detail": detail})


def _together(parts: Sequence[Part]) -> Part:
    embeddings = joined([part.embeddings for part in parts if part.embeddings is not None])
    failed = tuple(one for part in parts for one in part.failed)
    return Part(embeddings, failed, sum(part.num_objects for part in parts))


def all_failed(first: int, names: Sequence[str], error: ApiError) -> tuple[FailedObject, ...]:
    """No object of a request was usable: the document points to each. Raises it if it is of the request as a whole.

    `names` are those of its objects, of which the first stands at this place among all.
    """
    entries: dict[int, list[Mapping[str, str]]] = {}
    for entry in error.problem.get("errors", []):
        found = _PLACE.match(entry.get("pointer", ""))
        if found is None:
            raise error
        entries.setdefault(int(found[1]), []).append(entry)
    if sorted(entries) != list(range(len(names))):
        raise error
    failed = []
    for number, name in enumerate(names):
        document = error.problem | {"detail": entries[number][0]["detail"], "errors": entries[number]}
        found_error = type(error)(error.status, placed(document, first), error.request_id)
        failed.append(FailedObject(first + number, name, found_error))
    return tuple(failed)


def placed(document: Mapping[str, Any], first: int) -> dict[str, Any]:
    """A problem whose pointers count the objects of the whole task, not of one request."""
    errors = []
    for entry in document.get("errors", []):
        found = _PLACE.match(entry["pointer"])
        pointer = entry["pointer"] if found is None else f"/input/{first + int(found[1])}{found[2] or ''}"
        errors.append({**entry, "pointer": pointer})
    return {**document, "errors": errors}


def error_of_failed(failed: Sequence[FailedObject]) -> Exception:
    """The first error, with the entries of all in its document."""
    first = failed[0].error
    if not isinstance(first, ApiError):
        return first
    documents = [one.error.problem for one in failed if isinstance(one.error, ApiError)]
    errors = [entry for document in documents for entry in document.get("errors", [])]
    detail = f"object {failed[0].object_id!r} (number {failed[0].index}): {first.problem.get('detail', '')}"
    if len(failed) > 1:
        detail += f"; {len(failed) - 1} more of this request are not usable: see `errors`, or pass on_error='skip'"
    return type(first)(first.status, first.problem | {"detail": detail, "errors": errors}, first.request_id)


@contextlib.contextmanager
def progress_bar(is_shown: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on the standard error output; gives what moves it on."""
    if not is_shown:
        yield lambda count: None
        return
    columns = (TextColumn("embedded"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("", total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        yield advance
