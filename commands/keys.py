"""`armillary keys add | list | revoke FILE`: the keys of a server's users."""

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..settings import SettingsError

_SCOPES = ("read", "write", "admin")
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")


def keys_verbs(verbs: Any) -> None:
    """`armillary keys VERB`: what makes, lists and revokes keys in a file that `serve` reads."""
    group = verbs.add_parser("keys", help="make, list and revoke the keys of a server's users")
    verbs = group.add_subparsers(dest="keys_verb", required=True, metavar="VERB")

    adding = verbs.add_parser("add", help="make a key and print it, once; a running server takes it within a second")
    adding.add_argument("file", type=Path, help="keys file; made if there is none")
    adding.add_argument(
        "--scope", choices=_SCOPES, default="read", help="each includes those before it (default: read)"
    )
    adding.add_argument(
        "--expires", metavar="WHEN", help="90d, 2027-06-30 or 2027-06-30T12:00:00+02:00; default: never"
    )
    adding.add_argument("--note", default="", help="whose key it is")
    adding.set_defaults(run=_add)

    listing = verbs.add_parser("list", help="list the keys of a file: ids, scopes, times and notes; never the keys")
    listing.add_argument("file", type=Path, help="keys file")
    listing.set_defaults(run=_list)

    revoking = verbs.add_parser("revoke", help="end a key; a running server refuses it within a second")
    revoking.add_argument("file", type=Path, help="keys file")
    revoking.add_argument("id", help="the key's id, as `list` and the log have it")
    revoking.set_defaults(run=_revoke)


def _add(options: argparse.Namespace) -> int:
    from ..serving.middleware.keys_file import add_key

    added, key = add_key(options.file, (options.scope,), _time_of(options.expires), options.note)
    # The key alone on stdout, so that it can go into a file or a secret store unread.
    said = f"{options.file}: added {added.id}, scope {options.scope}; the key is shown this once:"
    print(said, file=sys.stderr, flush=True)  # noqa: T201
    print(key)  # noqa: T201
    return 0


def _list(options: argparse.Namespace) -> int:
    from ..serving.middleware.keys_file import in_utc, read_keys

    keys, now = read_keys(options.file), datetime.now(UTC)
    print(f"{'id':12} {'scopes':12} {'created':21} {'expires':21} {'state':8} note")  # noqa: T201
    for key in keys:
        expires = "never" if key.expires is None else in_utc(key.expires)
        state = "valid" if key.refusal(now) is None else "expired" if key.revoked is None else "revoked"
        print(f"{key.id:12} {','.join(key.scopes):12} {in_utc(key.created):21} {expires:21} {state:8} {key.note}")  # noqa: T201
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from ..serving.middleware.keys_file import in_utc, revoke_key

    revoked = revoke_key(options.file, options.id)
    print(f"{options.file}: {revoked.id} is revoked since {in_utc(revoked.revoked or datetime.now(UTC))}")  # noqa: T201
    return 0


def _time_of(text: str | None) -> datetime | None:
    """A date means its beginning, and a time without a zone is UTC."""
    if text is None:
        return None
    if days := _DAYS.fullmatch(text):
        return datetime.now(UTC) + timedelta(days=int(days[1]))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--expires: expected 90d, a date or a time by ISO 8601; found {text!r}") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
