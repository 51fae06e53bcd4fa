"""Keys on disk and in the server: made, listed, revoked, rotated; a broken file changes nothing."""

import hashlib
import json
import logging
import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from armillary import cli
from armillary.serving.middleware.access_keys import CHECK_SECONDS, AccessKeys
from armillary.serving.middleware.keys_file import KeysFileError, add_key, read_keys, revoke_key

DAY = timedelta(days=1)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_check(self):
        self.now += CHECK_SECONDS + 0.01


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.jsonl"


@pytest.fixture
def clock():
    return Clock()


def line(**changes):
    fields = {"id": "k-1", "sha256": "0" * 64, "scopes": ["read"], "created": "2026-11-28T12:00:00Z"}
    return json.dumps({**fields, **changes}) + "\n"


def test_a_key_is_found_by_its_hash_which_is_all_the_disk_knows(path):
    added, key = add_key(path, ("write",), note="Ada, Leiden\u2028café")
    assert re.fullmatch(r"arm_[A-Za-z0-9_-]{43}", key)
    assert json.loads(path.read_text())["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert key not in path.read_text()
    assert AccessKeys(path).find(key.encode()) == added
    assert AccessKeys(path).find(key[:-1].encode()) is None
    assert read_keys(path) == (added,)


def test_every_key_is_another(path):
    made = [add_key(path) for _ in range(20)]
    assert len({key for _, key in made}) == len({added.id for added, _ in made}) == 20
    assert [key.id for key in read_keys(path)] == [added.id for added, _ in made]


@pytest.mark.parametrize("scopes, allowed", [(["read"], 1), (["write"], 2), (["admin"], 3), (["read", "admin"], 3)])
def test_a_scope_includes_those_below_it(path, scopes, allowed):
    path.write_text(line(scopes=scopes))
    (key,) = read_keys(path)
    assert [key.allows(scope) for scope in ("read", "write", "admin")] == [True] * allowed + [False] * (3 - allowed)


def test_a_key_ends_at_its_time_and_when_it_is_revoked(path):
    now = datetime.now(UTC)
    added, _ = add_key(path, expires=now + DAY)
    assert added.refusal(now) is None
    assert "expired at" in added.refusal(now + DAY)
    revoke_key(path, added.id)
    (revoked,) = read_keys(path)
    assert "was revoked at" in revoked.refusal(datetime.now(UTC))
    revoke_key(path, added.id)
    assert read_keys(path) == (revoked,)


def test_only_the_owner_may_read_the_file_and_nothing_else_is_left(path):
    path.write_text("")
    path.chmod(0o644)
    add_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {found.name for found in path.parent.iterdir()} == {"keys.jsonl", ".keys.jsonl.lock"}


def test_a_link_to_the_file_stays_a_link(path, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    added, _ = add_key(link)
    assert link.is_symlink()
    assert read_keys(path) == (added,)


def test_many_who_add_at_once_lose_nothing(path):
    program = f"""
from pathlib import Path
from armillary.serving.middleware.keys_file import add_key
for _ in range(10):
    print(add_key(Path({str(path)!r}))[1])
"""
    adding = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = [key for process in adding for key in process.communicate()[0].split()]
    assert len(made) == 30
    keys = AccessKeys(path)
    assert all(keys.find(key.encode()) is not None for key in made)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("not json\n", "line 1: Invalid JSON"),
        (line() + "\n" + line(sha256="1" * 64), "line 3: the id 'k-1' stands in an earlier line too"),
        (line() + line(id="k-2"), "line 2: 'k-2' has the hash of an earlier line"),
        (line(scopes=[]), "line 1: scopes: "),
        (line(scopes=["root"]), "line 1: scopes.0: Input should be 'read', 'write' or 'admin'"),
        (line(created="2026-11-28T12:00:00"), "line 1: created: Input should have timezone info"),
        (line(id="k 1"), "line 1: id: "),
        (line(key="arm_x"), "line 1: key: Extra inputs are not permitted"),
        ('{"id": "k-1"}', "line 1: sha256: Field required"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(path, text, problem):
    path.write_text(text)
    with pytest.raises(KeysFileError, match=re.escape(f"{path}, {problem}")):
        AccessKeys(path)


def test_a_key_written_in_place_of_its_hash_is_not_repeated(path):
    path.write_text(line(sha256="arm_secret"))
    with pytest.raises(KeysFileError, match="line 1: sha256: ") as raised:
        read_keys(path)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_broken_is_not_written_over(path):
    path.write_text("not json\n")
    with pytest.raises(KeysFileError):
        add_key(path)
    assert path.read_text() == "not json\n"


def test_a_file_that_is_not_there_or_not_text_is_said(path, tmp_path):
    with pytest.raises(KeysFileError, match="No such file"):
        AccessKeys(path)
    with pytest.raises(KeysFileError, match="no such file"):
        revoke_key(path, "k-1")
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"\xff")
    with pytest.raises(KeysFileError, match="not UTF-8"):
        AccessKeys(path)
    with pytest.raises(KeysFileError, match="cannot be changed"):
        add_key(tmp_path / "nowhere" / "keys.jsonl")


def test_a_changed_file_counts_without_a_restart(path, clock):
    _, old = add_key(path)
    keys = AccessKeys(path, clock=clock)
    added, new = add_key(path)
    assert keys.find(new.encode()) is None, "within the second, nothing is looked at"
    clock.pass_check()
    assert keys.find(new.encode()) == added
    assert keys.find(old.encode()).refusal(datetime.now(UTC)) is None
    revoke_key(path, keys.find(old.encode()).id)
    clock.pass_check()
    assert "revoked" in keys.find(old.encode()).refusal(datetime.now(UTC))
    path.write_text(line())
    clock.pass_check()
    assert keys.find(new.encode()) is None, "a line that was taken out"


def test_a_change_that_keeps_time_and_size_is_seen_by_the_file_behind_the_name(path, clock):
    path.write_text(line(sha256=hashlib.sha256(b"one").hexdigest()))
    keys = AccessKeys(path, clock=clock)
    before = path.stat()
    other = path.with_name("other")
    other.write_text(line(sha256=hashlib.sha256(b"two").hexdigest()))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
    clock.pass_check()
    assert keys.find(b"two") is not None
    assert keys.find(b"one") is None


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_a_file_that_breaks_keeps_the_old_keys_and_says_so_once(path, clock, caplog, damage):
    _, key = add_key(path)
    whole = path.read_text()
    keys = AccessKeys(path, clock=clock)
    damage(path)
    with caplog.at_level(logging.INFO, "armillary.keys"):
        for _ in range(3):
            clock.pass_check()
            assert keys.find(key.encode()) is not None
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert str(path) in record.message
        assert "the 1 keys that were read before stay valid" in record.message
        path.write_text(whole + line())
        clock.pass_check()
        assert keys.find(key.encode()) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_the_servers_own_key_has_all_scopes_and_stands_beside_those_of_the_file(path):
    _, key = add_key(path)
    keys = AccessKeys(path).beside("secret")
    assert keys.find(b"secret").allows("admin")
    assert not keys.find(key.encode()).allows("write")
    assert AccessKeys(path).find(b"secret") is None


def test_the_command_makes_lists_and_revokes(path, capsys):
    arguments = ["keys", "add", str(path), "--scope", "write", "--expires", "90d", "--note", "Ada"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    found = AccessKeys(path).find(key.encode())
    assert (found.scopes, found.note) == (("write",), "Ada")
    assert abs(found.expires - datetime.now(UTC) - 90 * DAY) < timedelta(minutes=5)
    assert found.id in said.err
    assert key not in said.err

    assert cli.main(["keys", "revoke", str(path), found.id]) == 0
    assert cli.main(["keys", "add", str(path), "--expires", "2099-01-01"]) == 0
    capsys.readouterr()
    assert cli.main(["keys", "list", str(path)]) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"{found.id} +write .* revoked +Ada", listed)
    assert re.search(r"read .* 2099-01-01T00:00:00Z +valid", listed)
    assert key not in listed
    assert found.sha256 not in listed


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["add", "--expires", "soon"], "--expires: expected 90d, a date or a time by ISO 8601; found 'soon'"),
        (["add", "--expires", "2020-01-01"], "expected a time to come as the key's end, found 2020-01-01T00:00:00Z"),
        (["revoke", "k-0"], "no key has the id 'k-0'; those known: ['k-"),
    ],
)
def test_a_mistake_at_the_command_is_one_line(path, capsys, arguments, problem):
    add_key(path)
    verb, *rest = arguments
    assert cli.main(["keys", verb, str(path), *rest]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert problem in said
    assert len(read_keys(path)) == 1
