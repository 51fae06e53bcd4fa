"""The file of a server's keys: one JSON object a line, with the SHA-256 of a key and what it opens.

`armillary keys` writes it, `access_keys.py` reads it in the server. A key is 32 random bytes, so that its plain hash
tells nobody what it is; the key itself is on no disk of ours.

    {"id": "k-5d1c0a9e", "sha256": "9f86d0...", "scopes": ["read"], "created": "2026-11-28T12:00:00Z", "note": "Ada"}
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from ...settings import Settings, SettingsError

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each includes those before it: who may write may read, who may administer may do all."""
KEY_PREFIX = "arm_"
"""Tells scanners for lost secrets, and people, what such a word is."""
KEY_BYTES = 32


class KeysFileError(SettingsError):
    """A keys file cannot be read or changed; the message names the file, the line and what was expected there."""


class AccessKey(Settings):
    """One line of the file. Times bear their zone; a key without `expires` holds until it is revoked."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the key's ASCII characters, prefix included."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    note: str = ""

    def allows(self, scope: Scope) -> bool:
        """Whether this key's scopes include `scope`; says nothing of its times."""
        return max(SCOPES.index(held) for held in self.scopes) >= SCOPES.index(scope)

    def refusal(self, now: datetime) -> str | None:
        """Why the key opens nothing at `now`, or None if it is valid."""
        if self.revoked is not None and self.revoked <= now:
            return f"the key {self.id} was revoked at {in_utc(self.revoked)}"
        if self.expires is not None and self.expires <= now:
            return f"the key {self.id} expired at {in_utc(self.expires)}"
        return None


def in_utc(time: datetime) -> str:
    """`2026-11-28T12:00:00Z`."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def sha256_of(key: bytes) -> str:
    """The hash by which the file knows a key."""
    return hashlib.sha256(key).hexdigest()


def parse_keys(text: str, source: str) -> tuple[AccessKey, ...]:
    """The keys of a file's text; `source` stands in messages. Raises KeysFileError at the first line that is wrong.

    No message repeats what a line holds: somebody may have written a key where its hash belongs.
    """
    keys: list[AccessKey] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            key = AccessKey.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise KeysFileError(f"{where}: {place + ': ' if place else ''}{first['msg']}") from None
        if key.id in [other.id for other in keys]:
            raise KeysFileError(f"{where}: the id {key.id!r} stands in an earlier line too")
        if key.sha256 in [other.sha256 for other in keys]:
            raise KeysFileError(f"{where}: {key.id!r} has the hash of an earlier line")
        keys.append(key)
    return tuple(keys)


def read_keys(path: Path) -> tuple[AccessKey, ...]:
    """The keys of a file, in its order. Raises KeysFileError."""
    try:
        return parse_keys(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise KeysFileError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise KeysFileError(f"{path}: not UTF-8 text (byte {error.start})") from None


def add_key(
    path: Path, scopes: Sequence[Scope] = ("read",), expires: datetime | None = None, note: str = ""
) -> tuple[AccessKey, str]:
    """Make a key and write its line, in a new file if there is none. Returns the line and the key.

    The key is kept nowhere: who calls this shows it, once. Raises KeysFileError.
    """
    key = KEY_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode().rstrip("=")
    now = _now()
    if expires is not None and expires <= now:
        raise KeysFileError(f"{path}: expected a time to come as the key's end, found {in_utc(expires)}")
    with _changing(path) as keys:
        added = AccessKey(
            id=_free_id({known.id for known in keys}),
            sha256=sha256_of(key.encode()),
            scopes=tuple(scopes),
            created=now,
            expires=expires,
            note=note,
        )
        keys.append(added)
    return added, key


def revoke_key(path: Path, key_id: str) -> AccessKey:
    """Mark a key as revoked from now on; its line stays, for `list` and the log. Raises KeysFileError.

    A key that was revoked before keeps that time.
    """
    if not path.exists():
        raise KeysFileError(f"{path}: there is no such file")
    with _changing(path) as keys:
        for place, known in enumerate(keys):
            if known.id == key_id:
                keys[place] = known.model_copy(update={"revoked": known.revoked or _now()})
                return keys[place]
        raise KeysFileError(f"{path}: no key has the id {key_id!r}; those known: {[known.id for known in keys]}")


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[AccessKey]]:
    """The keys to be changed in place; written if the block ends well. One process at a time, under a lock."""
    # A link stays a link: what it points to is replaced.
    path = path.resolve()
    try:
        # The file itself is replaced, so that the lock needs a file of its own, which stays.
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeysFileError(f"{path}: cannot be changed ({error.strerror}: {error.filename})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        _replace(path, "".join(_line(key) for key in keys))
    finally:
        os.close(lock)


def _line(key: AccessKey) -> str:
    fields: dict[str, Any] = {"id": key.id, "sha256": key.sha256, "scopes": list(key.scopes)}
    for name in ("created", "expires", "revoked"):
        if (time := getattr(key, name)) is not None:
            fields[name] = in_utc(time)
    return json.dumps(fields | {"note": key.note}, ensure_ascii=False) + "\n"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.touch(mode=0o600, exist_ok=False)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise KeysFileError(f"{path}: cannot be written ({error.strerror})") from None


def _now() -> datetime:
    """To the second, as the file writes times."""
    return datetime.now(UTC).replace(microsecond=0)


def _free_id(taken: set[str]) -> str:
    while True:
        found = f"k-{secrets.token_hex(4)}"
        if found not in taken:
            return found
