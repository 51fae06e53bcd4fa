"""`Idempotency-Key`: a request that is sent twice under one key is done once, and answered twice.

The key is kept with what it made (a probe's record, a job's), so that neither is ever on disk without the other. Two
callers with access keys of their own may choose the same word: it is another one for each.
"""

import errno
import fcntl
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """A hash of the request's key and of the access key that it bears; None without one.

    Raises ProblemError (422) unless it is a word of ASCII.
    """
    given = request.headers.get(HEADER)
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        raise ProblemError("invalid-request", f"{HEADER} must be 1 to 200 printable ASCII characters without space")
    caller = request.scope.get("state", {}).get("key_id")
    # A word has no space, so that no caller can choose one that is another caller's.
    own = given if caller is None else f"{caller} {given}"
    return hashlib.sha256(own.encode()).hexdigest()


def fingerprint(request: Request, body_hash: str) -> str:
    """What must be equal for a request to be the same: address, type and body."""
    parts = (request.method, request.url.path, request.url.query, request.headers.get("content-type", ""), body_hash)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_same(found: str | None, given: str) -> None:
    """Raises ProblemError (409) if a key comes with a request other than its first."""
    if found != given:
        raise ProblemError("key-reused", f"this {HEADER} came before, with another request")


class KeysInUse:
    """The keys whose requests are being worked on, in this process and in all that share its `lock_file`."""

    def __init__(self, lock_file: Path) -> None:
        self._lock = threading.Lock()
        self._keys: set[str] = set()
        # Never written to: each key is a place in it, locked by its holder and given up with the holder's process.
        self._file = lock_file.open("ab", buffering=0)

    @contextmanager
    def held(self, key: str | None) -> Iterator[None]:
        """Hold a key of `key_of` while its request is done. Raises ProblemError (409) if another request holds it."""
        if key is None:
            yield
            return
        with self._lock:
            if key in self._keys or not self._lock_place(key):
                raise ProblemError("key-reused", f"a request with this {HEADER} is being worked on; ask again later")
            self._keys.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard(key)
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(key))

    def _lock_place(self, key: str) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True


def _place(key: str) -> int:
    """60 bits of the hash: a place in a file is a number of 63."""
    return int(key[:15], 16)
