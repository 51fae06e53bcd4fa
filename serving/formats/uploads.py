"""A body that goes to disk as it comes, and what is said where there is no room for it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

import anyio.to_thread
from fastapi import Request

from ..problems import ProblemError
from ..state_stores import StateStores

_WRITE_BYTES = 2**20
"""Written at once, in a thread: the event loop waits for no disk."""
_RETRY_SECONDS = 30


async def receive(request: Request, path: Path, limit: int) -> str:
    """Write a request's body to `path`, synced; returns its SHA-256. Raises ProblemError: 413 as soon as it exceeds the

    limit in bytes, whatever Content-Length says; 507 where the disk is full.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    digest, size, waiting = hashlib.sha256(), 0, bytearray()
    with storage(), path.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            digest.update(chunk)
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await anyio.to_thread.run_sync(file.write, bytes(waiting))
                waiting.clear()
        file.write(waiting)
        file.flush()
        await anyio.to_thread.run_sync(os.fsync, file.fileno())
    return digest.hexdigest()


@contextmanager
def storage() -> Iterator[None]:
    """Where the disk is full, the caller is told so (507). Raises ProblemError."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise ProblemError("storage-full", "there is no room for this on the server's disk") from None
        raise


def room_for_a_job(stores: StateStores) -> None:
    """Raises ProblemError (429) if as many jobs wait as may."""
    waiting = stores.jobs.num_waiting()
    if waiting >= stores.jobs.settings.max_waiting:
        raise ProblemError(
            "busy",
            f"{waiting} jobs wait, at most {stores.jobs.settings.max_waiting} may; ask again later",
            retry_after=_RETRY_SECONDS,
        )


def _too_large(limit: int) -> ProblemError:
    return ProblemError("too-large", f"the upload exceeds {limit} bytes")
