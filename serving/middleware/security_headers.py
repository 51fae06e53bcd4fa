"""What every answer says to browsers: no guessing of types, no frames, no use from other sites unless they are listed.

A route that sets one of these headers itself keeps its own; the policy of a page gets `frame-ancestors` beside it.
"""

import re
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Caches know that Authorization makes an answer private, but not that X-API-Key does.
    "Cache-Control": "private, no-cache",
}
CONTENT_POLICY = "Content-Security-Policy"
DATA_POLICY = "default-src 'none'"
"""Of what is no page: should a browser show it, it loads nothing and runs nothing."""
NO_FRAMES = "frame-ancestors 'none'"
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CORS_REQUEST_HEADERS = ("Accept", "Authorization", "Content-Type", "Idempotency-Key", "X-API-Key", "X-Request-Id")
CORS_ANSWER_HEADERS = (
    "Armillary-Index-Id",
    "Armillary-Model-Id",
    "Armillary-Space",
    "Content-Disposition",
    "ETag",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
)
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")


class SecurityHeaders:
    """ASGI middleware that adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and complete its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_completed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message.get("headers", ())}
                headers = MutableHeaders(raw=[*message.get("headers", ()), *(h for h in _RAW if h[0] not in own)])
                policy = headers.get(CONTENT_POLICY, DATA_POLICY)
                if "frame-ancestors" not in policy:
                    headers[CONTENT_POLICY] = f"{policy.rstrip('; ')}; {NO_FRAMES}"
                message["headers"] = headers.raw
            await send(message)

        await self.app(scope, receive, send_completed)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these sites ask `app` from a browser (CORS), each with a key of its own; cookies play no part.

    An origin is `https://host` or `https://host:port`; `*` is every site. Raises ValueError for anything else.
    """
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"expected an origin such as https://sky.example.org:8443 without a path, found {origin!r}"
            )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
        )
