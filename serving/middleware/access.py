"""Who may ask for what: each request bears a key, and the key has the scope that the request needs.

ASGI middleware around the whole application, so that no route can forget it. What it does not know needs more, not
less: a POST counts as a change unless READING_POSTS names it.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..problems import ProblemError, answer
from . import keys_file
from .access_keys import AccessKeys

READING_POSTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"/v1/embeddings/?",
        r"/v1/predict/?",
        r"/v1/generate/?",
        r"/v1/collections/[^/]+/search/?",
        r"/v1/probes/[^/]+/predict/?",
        r"/v2/models/[^/]+(/versions/[^/]+)?/infer/?",
    )
)
"""Routes that take a body and leave nothing on the server: `read` is enough for them."""
OPEN_PREFIXES = ("/explorer/", "/problems/")
"""The page's own files, and what the types of problems mean: GET needs no key."""
ADMIN_PREFIX = "/v1/admin"
METRICS_PATH = "/metrics"
CHALLENGE = 'Bearer realm="armillary"'
KEY_HEADER = "X-API-Key"
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def needed_scope(method: str, path: str, open_paths: Sequence[str] = ()) -> keys_file.Scope | None:
    """The scope that a request needs; None if it needs no key. `path` is decoded, without the query."""
    is_reading = method in ("GET", "HEAD", "OPTIONS")
    if is_reading and (path in open_paths or path.startswith(OPEN_PREFIXES)):
        return None
    if path == ADMIN_PREFIX or path.startswith(f"{ADMIN_PREFIX}/"):
        return "admin"
    if is_reading or (method == "POST" and any(pattern.fullmatch(path) for pattern in READING_POSTS)):
        return "read"
    return "write"


class Access:
    """Lets through what bears a key of the scope that it needs, and what needs none; answers 401 or 403 to the rest.

    `open_paths` may be read without a key, /metrics too by a program on this machine. The key's id is left in
    `scope["state"]["key_id"]` for the log.
    """

    def __init__(self, app: ASGIApp, keys: AccessKeys, open_paths: Sequence[str] = ()) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = tuple(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "websocket":
            # There are none; one that is added has to be thought of here first.
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            try:
                self._check(scope)
            except _RefusedError as refused:
                response = answer(refused.problem, Request(scope))
                response.headers["WWW-Authenticate"] = refused.challenge
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        path = _path_in_app(scope)
        needed = needed_scope(scope["method"], path, self.open_paths)
        headers = Headers(scope=scope)
        if needed is None or (path == METRICS_PATH and needed == "read" and _is_from_this_machine(scope, headers)):
            return
        given = _keys_given(headers)
        if len(given) != 1:
            found = "several that differ" if given else "none"
            raise _RefusedError("unauthorized", f"expected one key, found {found}", CHALLENGE)
        key = self.keys.find(given.pop())
        if key is None:
            raise _RefusedError("unauthorized", "the key is not known", f'{CHALLENGE}, error="invalid_token"')
        # Before it is judged: the log tells who still uses a key that has ended.
        scope.setdefault("state", {})["key_id"] = key.id
        if (refusal := key.refusal(datetime.now(UTC))) is not None:
            raise _RefusedError("unauthorized", refusal, f'{CHALLENGE}, error="invalid_token"')
        if not key.allows(needed):
            detail = f"this request needs the scope {needed}; the key {key.id} has {', '.join(key.scopes)}"
            raise _RefusedError("forbidden", detail, f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"')


class _RefusedError(Exception):
    """A problem, and what WWW-Authenticate says of it (RFC 6750)."""

    def __init__(self, kind: str, detail: str, challenge: str) -> None:
        super().__init__(detail)
        self.problem = ProblemError(kind, detail)
        self.challenge = challenge


def _keys_given(headers: Headers) -> set[bytes]:
    """Every key that the headers bear; other schemes of Authorization are a proxy's business."""
    given = {value.strip() for value in headers.getlist(KEY_HEADER)}
    for value in headers.getlist("authorization"):
        scheme, _, credentials = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            given.add(credentials.strip())
    # Headers are decoded as latin-1; these are the bytes that came.
    return {value.encode("latin-1") for value in given if value}


def _path_in_app(scope: Scope) -> str:
    """The path that the routes see: without the prefix under which the server says that it stands."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def _is_from_this_machine(scope: Scope, headers: Headers) -> bool:
    """Whether a program on this machine asks for itself: what a proxy forwards comes from this machine too."""
    client = scope.get("client")
    if client is None or any(name in headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
