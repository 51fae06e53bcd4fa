"""How much memory the bodies of all requests may take together: what does not fit waits a little, or is refused (429).

A body counts from when it is announced until its request has ended, for its arrays are parts of it. Uploads of jobs go
to disk and do not count. The middleware gives each request its claim; `formats/bodies.read_body` makes use of it.
"""

import asyncio
import time

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..problems import ProblemError
from .metrics import ServerMetrics

WAIT_SECONDS = 2.0
"""How long a body waits for room before it is refused."""
ANNOUNCED_SECONDS = 30.0
"""How long room is kept for bytes that were announced and have not come: a caller that stalls must not keep it all."""
RETRY_SECONDS = 5
_STEP_SECONDS = 0.02
_STATE = "body_claim"


class BodyMemory:
    """Counts the bytes of all bodies in hand, at most `max_bytes`. Used in the event loop alone."""

    def __init__(self, max_bytes: int, metrics: ServerMetrics) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._metrics = metrics

    async def grow(self, claim: "BodyClaim", size: int) -> None:
        """Let a claim hold `size` bytes. Raises ProblemError (429) if there is no room for them within WAIT_SECONDS.

        One that is larger than all there is has room while no other is held.
        """
        until = time.monotonic() + WAIT_SECONDS
        while (others := self.num_bytes - claim.held) and others + size > self.max_bytes:
            if time.monotonic() > until:
                self._metrics.refused.labels("memory").inc()
                raise ProblemError(
                    "busy",
                    f"{others} bytes of other requests are in hand, at most {self.max_bytes} may be; this one needs "
                    f"{size}: ask again in {RETRY_SECONDS} s, or for less at once",
                    retry_after=RETRY_SECONDS,
                )
            await asyncio.sleep(_STEP_SECONDS)
        self.set(claim, size)

    def set(self, claim: "BodyClaim", size: int) -> None:
        """Let a claim hold `size` bytes from now on, whether there is room or not."""
        self.num_bytes += size - claim.held
        claim.held = size
        self._metrics.body_bytes.set(self.num_bytes)


class BodyClaim:
    """What one request holds of the memory; none of it once it is released."""

    def __init__(self, memory: BodyMemory) -> None:
        self.held = 0
        """Bytes."""
        self._memory = memory
        self._num_come = 0
        self._lapse: asyncio.TimerHandle | None = None

    async def announce(self, size: int) -> None:
        """Keep room for a body of `size` bytes. Raises ProblemError (429)."""
        if size > self.held:
            await self._memory.grow(self, size)
            self._lapse = asyncio.get_running_loop().call_later(ANNOUNCED_SECONDS, self._keep_what_has_come)

    async def come(self, size: int) -> None:
        """Count `size` bytes as come in all, announced or not. Raises ProblemError (429)."""
        if size > self.held:
            await self._memory.grow(self, size)
        self._num_come = size

    def release(self) -> None:
        """Give all back: the request has ended."""
        if self._lapse is not None:
            self._lapse.cancel()
        self._memory.set(self, 0)

    def _keep_what_has_come(self) -> None:
        self._memory.set(self, self._num_come)


def claim_of(request: Request) -> BodyClaim:
    """The claim of a request that came through the middleware."""
    claim: BodyClaim = request.scope["state"][_STATE]
    return claim


class BodyMemoryMiddleware:
    """Give each request its claim, and release it however the request ends."""

    def __init__(self, app: ASGIApp, memory: BodyMemory) -> None:
        self.app = app
        self.memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        claim = scope.setdefault("state", {})[_STATE] = BodyClaim(self.memory)
        try:
            await self.app(scope, receive, send)
        finally:
            claim.release()
