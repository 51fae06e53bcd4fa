"""The explorer: the page at `/` on which people look at what is served, and its scripts and styles below `/explorer/`.

The files lie in the package, in `serving/explorer/`, and are read once. A request names one of them or none: nothing of
an address becomes a path. The browser holds the page to CONTENT_POLICY: all comes from this server, nothing is inline,
no text becomes code.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response

from .problems import not_found

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""Files of other kinds (how the bundle is built, say) are not served."""


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    content: bytes
    media_type: str
    tag: str
    """Strong ETag: changes with the content."""


@cache
def assets() -> Mapping[str, Asset]:
    """The files of the page by their path below `serving/explorer/`."""
    root = resources.files(__package__).joinpath("explorer")
    return {name: _asset(file, suffix) for name, file, suffix in _files(root, "")}


def explorer_routes() -> APIRouter:
    """`/` and `/explorer/{path}`; open to all, for they say nothing of what is served."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return _answer(PAGE, if_none_match)

    @router.get("/explorer/{path:path}")
    def asset(path: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return _answer(path, if_none_match)

    return router


def _answer(name: str, if_none_match: str | None) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise not_found("file of the explorer", name[:200], assets())
    # An upgraded server is an upgraded page: the browser asks each time, and is mostly told that nothing changed.
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache", "Content-Security-Policy": CONTENT_POLICY}
    if if_none_match is not None and asset.tag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def _asset(file: Traversable, suffix: str) -> Asset:
    content = file.read_bytes()
    return Asset(content, TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _files(folder: Traversable, above: str) -> list[tuple[str, Traversable, str]]:
    found: list[tuple[str, Traversable, str]] = []
    for entry in folder.iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if entry.is_dir():
            found += _files(entry, f"{above}{entry.name}/")
        elif suffix in TYPES:
            found.append((above + entry.name, entry, suffix))
    return sorted(found, key=lambda one: one[0])
