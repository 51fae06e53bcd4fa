"""Who is waiting for an answer: so that work for callers that have left is not done, and bulk work gives way.

The middleware listens for the caller's departure once the body has come. `caller()` is the caller of the request that
the running code belongs to, in the event loop and in the worker threads that it starts.
"""

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(eq=False)
class Caller:
    """One request's caller. `has_left`: nobody waits for the answer. `is_bulk`: others go first."""

    has_left: bool = False
    is_bulk: bool = False
    since: float = field(default_factory=time.monotonic)
    """When the request came, seconds of the monotonic clock."""


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
    """Give each request its `Caller`, and note when the connection is closed before the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        here = Caller()
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
