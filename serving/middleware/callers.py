"""Who is waiting for an answer: so that work for callers that have left is not done, and bulk work gives way.

The middleware listens for the caller's departure once the body has come. `caller()` is the caller of the request that
the running code belongs to, in the event loop and in the worker threads that it starts.
"""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

NoteStage = Callable[[str, float, float], None]
"""Told of a stage of a request: `queue`, `model` or `search`, its begin and end, seconds of the monotonic clock."""


def _note_nothing(stage: str, began: float, ended: float) -> None:
    """For callers that nobody traces."""


@dataclass(eq=False)
class Caller:
    """One request's caller. `has_left`: nobody waits for the answer. `is_bulk`: others go first."""

    has_left: bool = False
    is_bulk: bool = False
    since: float = field(default_factory=time.monotonic)
    """When the request came, seconds of the monotonic clock."""
    note_stage: NoteStage = _note_nothing
    begun_with: Any = None
    """What the request must end with, though the server has another by then: its index."""


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """The caller of this request; outside of one, a caller that stays."""
    return _CALLER.get() or Caller()


def as_bulk() -> Caller:
    """From here on, in this thread or task, work is bulk work."""
    found = Caller(is_bulk=True)
    _CALLER.set(found)
    return found


class CallerMiddleware:
    """Give each request its `Caller`, and note when the connection is closed before the answer.

    `stages` is asked, for each request, who is told of its stages.
    """

    def __init__(self, app: ASGIApp, stages: Callable[[], NoteStage] = lambda: _note_nothing) -> None:
        self.app = app
        self.stages = stages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        here = Caller(note_stage=self.stages())
        token = _CALLER.set(here)
        departure: asyncio.Task[Message] | None = None

        async def wait_for_departure() -> Message:
            message = await receive()
            here.has_left = True
            return message

        async def read() -> Message:
            nonlocal departure
            if departure is not None:
                return await asyncio.shield(departure)
            message = await receive()
            if message["type"] == "http.disconnect":
                here.has_left = True
            elif not message.get("more_body", False):
                # What comes after the body is the end of the connection.
                departure = asyncio.ensure_future(wait_for_departure())
            return message

        try:
            await self.app(scope, read, send)
        finally:
            _CALLER.reset(token)
            if departure is not None:
                departure.cancel()
