"""Pages of other sites may not use a visitor's browser to reach this server: without keys, it trusts whoever does.

CORS keeps such a page from reading an answer, not from sending: a form or a plain `fetch` of any page that somebody
on this machine visits could start jobs on 127.0.0.1. Browsers say where a request comes from (Fetch Metadata, W3C);
programs that are no browser say nothing, and pass. A page whose own name is made to point to 127.0.0.1 (DNS rebinding)
is of the same site to the browser, but asks by that name: a local server answers to local names alone.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..problems import ProblemError, answer

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""The names by which people call a server that only this machine reaches."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_PORT = re.compile(r":[0-9]*$")


class RefuseOtherSites:
    """ASGI middleware: 403 to what a browser sends for a page of a site that `origins` does not list; GET passes.

    With `hosts`, 403 also to whatever calls the server by another name.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self.app = app
        self.origins = frozenset(origins)
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "http" and (detail := self._refusal(scope["method"], Headers(scope=scope))) is not None:
            await answer(ProblemError("cross-site", detail), Request(scope))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        if self.hosts:
            called = _PORT.sub("", headers.get("host", "").lower())
            if called not in self.hosts:
                return f"this server is called {' or '.join(sorted(self.hosts))}; found {called[:100]!r}"
        if method in _SAFE or headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return None
        if "*" in self.origins or headers.get("origin") in self.origins:
            return None
        return "a page of another site asks; the server must list its origin"
