"""The log of requests: an id for each, one JSON line when it ends, and the trace of a fault under the same id.

    {"time": "2026-11-28T12:00:00.250Z", "id": "5d1c0a9e7b213f44", "method": "POST", "path": "/v1/embeddings",
     "status": 200, "ms": 38.2, "bytes_in": 147456, "bytes_out": 2176, "key": "k-5d1c0a9e", "client": "10.0.0.7"}

No key, query or body is in a line. The lines go to the logger `armillary.access`; `log_requests` gives it a place.
"""

import json
import logging
import re
import secrets
import sys
import time
import traceback
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..problems import ProblemError, answer

REQUEST_ID = "X-Request-Id"
LONGEST_PATH = 512
"""Characters of a path in a line: callers choose them."""
LONGEST_TRACE = 20_000
"""Characters of a trace: an exception may quote all that it was given."""

_log = logging.getLogger("armillary.access")
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """ASGI middleware, the outermost: gives each request its id and writes its line.

    The id is the caller's `X-Request-Id` where that is one word of at most 64 characters of A-Z a-z 0-9 . _ -, else a
    new one. Every answer bears it, problem documents in `request_id` too. `status` is null where the caller left
    before there was one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        begun = time.perf_counter()
        status: int | None = None
        bytes_in = bytes_out = 0

        async def counted_receive() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counted_receive, counted_send)
        finally:
            # Also when the caller leaves, and the task of the request is cancelled.
            if _log.isEnabledFor(logging.INFO):
                client = scope.get("client")
                line = {
                    "time": _now(),
                    "id": request_id,
                    "method": scope["method"],
                    "path": scope["path"][:LONGEST_PATH],
                    "status": status,
                    "ms": round((time.perf_counter() - begun) * 1000, 3),
                    "bytes_in": bytes_in,
                    "bytes_out": bytes_out,
                    "key": state.get("key_id"),
                    "client": None if client is None else client[0],
                }
                _log.info("%s", json.dumps(line))


class FaultAnswers:
    """ASGI middleware inside those that complete answers: a fault is logged with its trace and answered with 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal is_begun
            is_begun = is_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientDisconnect:
            # Nobody is there to answer, and nothing went wrong here.
            return
        except Exception as error:
            _log.error("%s", json.dumps(_fault_line(scope, error)))
            if is_begun:
                # Too late for another status: the server closes the connection, so that the caller sees a short body.
                raise
            await answer(ProblemError("internal", type(error).__name__), Request(scope))(scope, receive, send)


def log_requests(path: str | Path | None = None) -> None:
    """Write the lines to a file, which may be moved away and is opened anew then, or to stderr. Faults go there too.

    Called again, it replaces the place; handlers that others gave to the logger stay.
    """
    handler: logging.Handler
    handler = logging.StreamHandler(sys.stderr) if path is None else WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.set_name("armillary.access")
    for former in [former for former in _log.handlers if former.get_name() == handler.get_name()]:
        _log.removeHandler(former)
        former.close()
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    # Other lines of the process have other forms.
    _log.propagate = False


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).getlist(REQUEST_ID)
    if len(given) == 1 and _SANE_ID.fullmatch(given[0]):
        return given[0]
    return secrets.token_hex(8)


def _fault_line(scope: Scope, error: Exception) -> dict[str, Any]:
    return {
        "time": _now(),
        "id": scope.get("state", {}).get("request_id"),
        "method": scope["method"],
        "path": scope["path"][:LONGEST_PATH],
        "fault": type(error).__name__,
        "trace": _shortened("".join(traceback.format_exception(error))),
    }


def _shortened(trace: str) -> str:
    if len(trace) <= LONGEST_TRACE:
        return trace
    half = LONGEST_TRACE // 2
    return f"{trace[:half]}\n... {len(trace) - 2 * half} characters ...\n{trace[-half:]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
