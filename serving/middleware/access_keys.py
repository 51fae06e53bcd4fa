"""The keys that a running server accepts: those of a file, read again when it changes, and one given at the start.

    keys = AccessKeys("keys.jsonl")
    keys.find(b"arm_...")                 # the key's line, or None

A key is rotated without a restart: add a new one, give it to its user, revoke the old one.
"""

import copy
import hmac
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from .keys_file import AccessKey, KeysFileError, read_keys, sha256_of

CHECK_SECONDS = 1.0
"""The file's time and size are looked at no more often than this, so that no request waits for a slow disk."""
GIVEN_KEY_ID = "api-key"
"""The id, in the log, of the one key that the server was started with."""

_log = logging.getLogger("armillary.keys")
_Signature = tuple[int, int, int] | None


class AccessKeys:
    """The keys of the file `path`, and `api_key`, which has every scope.

    A changed file counts within CHECK_SECONDS. One that is broken or gone changes nothing: the keys that were read
    before stay, and an error is logged. Raises KeysFileError if the file cannot be read at the start. `clock` counts
    seconds; tests turn it.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        api_key: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = None if path is None else Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._given = () if api_key is None else (_given_key(api_key),)
        self._keys: tuple[AccessKey, ...] = ()
        self._seen: _Signature = None
        self._next_check = 0.0
        if self.path is not None:
            self._seen = _signature(self.path)
            self._keys = read_keys(self.path)
            self._next_check = clock() + CHECK_SECONDS

    def beside(self, api_key: str) -> "AccessKeys":
        """These keys, and one more that has every scope."""
        more = copy.copy(self)
        more._given = (*self._given, _given_key(api_key))
        return more

    def find(self, key: bytes) -> AccessKey | None:
        """The line of a key, valid or not; None for one that is not known."""
        self._refresh()
        digest = sha256_of(key)
        found = None
        for known in (*self._keys, *self._given):
            # All are compared, whichever fits: the time of an answer tells nothing of the hashes.
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def _refresh(self) -> None:
        if self.path is None or self._clock() < self._next_check:
            return
        with self._lock:
            now = self._clock()
            if now < self._next_check:
                return
            self._next_check = now + CHECK_SECONDS
            # Looked at before it is read: a change in between is seen the next time.
            signature = _signature(self.path)
            if signature == self._seen:
                return
            self._seen = signature
            try:
                self._keys = read_keys(self.path)
            except KeysFileError as error:
                _log.error("%s; the %d keys that were read before stay valid", error, len(self._keys))
            else:
                _log.info("%s: read again, %d keys", self.path, len(self._keys))


def _given_key(api_key: str) -> AccessKey:
    return AccessKey(id=GIVEN_KEY_ID, sha256=sha256_of(api_key.encode()), scopes=("admin",), created=datetime.now(UTC))


def _signature(path: Path) -> _Signature:
    """What changes when the file does: time, size, and the file behind the name. None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
