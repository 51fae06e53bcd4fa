"""`Idempotency-Key`: a request that is sent twice under one key is done once, and answered twice.

The key is kept with what it made (a probe's record, a job's), so that neither is ever on disk without the other.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import Request

from .problems import ProblemError

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "description": "Any word of the caller's: the same request under the same key is done once",
}
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


def key_of(request: Request) -> str | None:
    """A hash of the request's key, None without one. Raises ProblemError (422) unless it is a word of ASCII."""
    given = request.headers.get(HEADER)
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        raise ProblemError("invalid-request", f"{HEADER} must be 1 to 200 printable ASCII characters without space")
    return hashlib.sha256(given.encode()).hexdigest()


def fingerprint(request: Request, body_hash: str) -> str:
    """What must be equal for a request to be the same: address, type and body."""
    parts = (request.method, request.url.path, request.url.query, request.headers.get("content-type", ""), body_hash)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_same(found: str | None, given: str) -> None:
    """Raises ProblemError (409) if a key comes with a request other than its first."""
    if found != given:
        raise ProblemError("key-reused", f"this {HEADER} came before, with another request")


@dataclass(eq=False)
class KeysInUse:
    """The keys whose requests are being worked on."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _keys: set[str] = field(default_factory=set)

    @contextmanager
    def held(self, key: str | None) -> Iterator[None]:
        """Hold a key while its request is done. Raises ProblemError (409) if another request holds it."""
        if key is None:
            yield
            return
        with self._lock:
            if key in self._keys:
                raise ProblemError("key-reused", f"a request with this {HEADER} is being worked on; ask again later")
            self._keys.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard(key)
