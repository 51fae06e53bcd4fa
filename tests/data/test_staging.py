"""Token stores copied to a disk of the node."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from armillary.data import staging
from armillary.data.staging import stage_tokens, staged
from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_shards import TokenStoreError, shard_path
from armillary.data.token_store import TokenStore
from armillary.settings import SettingsError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(make_store, tmp_path):
    return make_store(tmp_path / "tokens", num_objects=20, shard_size=10)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fingerprint(folder):
    return TokenLoader([TokenSource(TokenStore(folder))], 4, seed=1).fingerprint


def test_a_copy_is_the_store_and_a_run_may_go_on_with_it(store, tmp_path):
    copy = staged(store, tmp_path / "local")
    assert copy.parent == tmp_path / "local"
    assert contents(copy) == contents(store)
    assert fingerprint(copy) == fingerprint(store)


def test_a_copy_that_stands_is_used_again(store, tmp_path):
    copy = staged(store, tmp_path / "local")
    before = {path: path.stat().st_ino for path in copy.rglob("*")}
    assert staged(store, tmp_path / "local") == copy
    assert {path: path.stat().st_ino for path in copy.rglob("*")} == before


def test_what_the_manifest_does_not_speak_of_is_left_behind(store, make_store, tmp_path):
    expected = contents(store)
    shutil.copytree(shard_path(store, "image/hsc", 0), store / "image" / "begun" / "shard-00000")
    assert contents(staged(store, tmp_path / "local")) == expected


def copy_slowly(store, root, log, start):
    """Stage in a process that says in `log` which files it copies, and takes its time."""
    copyfile = shutil.copyfile

    def slow(source, target):
        with log.open("a") as file:
            file.write(f"{Path(source).relative_to(store)}\n")
        time.sleep(0.05)
        copyfile(source, target)

    staging.shutil.copyfile = slow
    start.wait()
    staged(store, root)


def test_of_processes_that_stage_at_once_one_copies(store, tmp_path):
    log, start = tmp_path / "log", FORK.Barrier(2)
    processes = [FORK.Process(target=copy_slowly, args=(store, tmp_path / "local", log, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == sorted(contents(store))
    assert contents(staged(store, tmp_path / "local")) == contents(store)


def test_a_copy_that_was_killed_is_never_taken_for_whole(store, tmp_path):
    local, log = tmp_path / "local", tmp_path / "log"
    process = FORK.Process(target=copy_slowly, args=(store, local, log, FORK.Barrier(1)))
    process.start()
    deadline = time.monotonic() + 60
    while not any(path.is_file() for path in local.glob(".*/**/*")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(local.glob("[!.]*"))
    copy = staged(store, local)
    assert contents(copy) == contents(store)
    assert [path.name for path in local.iterdir() if path.is_dir()] == [copy.name]  # nothing is left of the other


@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_a_torn_copy_is_replaced(store, tmp_path, damage):
    copy = staged(store, tmp_path / "local")
    path = shard_path(copy, "image/hsc", 1) / "codes.npy"
    if damage == "cut":
        os.truncate(path, 100)
    else:
        path.unlink()
    assert staged(store, tmp_path / "local") == copy
    assert contents(copy) == contents(store)


def test_a_store_that_changed_is_copied_anew(store, tmp_path):
    """Even where sizes are as they were; the copy that another run may be reading stays."""
    first = staged(store, tmp_path / "local")
    before = contents(first)
    path = shard_path(store, "image/hsc", 0) / "codes.npy"
    codes = np.load(path)
    codes[0, 0] += 1
    np.save(path, codes)
    second = staged(store, tmp_path / "local")
    assert second != first
    assert contents(second) == contents(store) != before
    assert contents(first) == before


def test_too_little_space_is_an_error_before_anything_is_copied(store, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    monkeypatch.setattr(staging, "_copy", lambda *_: pytest.fail("copied"))
    with pytest.raises(TokenStoreError, match=r"local on .*: expected .* kB of free space .*tokens, found 20.0 kB"):
        staged(store, tmp_path / "local")
    assert not [path for path in (tmp_path / "local").iterdir() if path.is_dir()]


def test_a_disk_that_fills_up_while_copying_leaves_nothing(store, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.shutil, "copyfile", full)
    with pytest.raises(TokenStoreError, match=r"expected .* of free space .* No space left on device"):
        staged(store, tmp_path / "local")
    assert not [path for path in (tmp_path / "local").iterdir() if path.is_dir()]


def test_an_unfinished_store_is_not_copied(make_store, tmp_path):
    make_store(tmp_path / "tokens", shards=[0])
    with pytest.raises(TokenStoreError, match="tokens: not finished"):
        staged(tmp_path / "tokens", tmp_path / "local")


def test_a_place_that_cannot_be_written_is_named(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenStoreError, match=r"file/local: .* cannot be copied there: .*Not a directory"):
        staged(store, tmp_path / "file" / "local")


def test_variables_of_the_environment_say_where(store, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    assert Path(stage_tokens(str(store), "${NODE_DISK}/tokens")).parent == tmp_path / "disk" / "tokens"
    assert stage_tokens(str(store), None) == str(store)
    with pytest.raises(SettingsError, match=r"expected the environment variable SLURM_TMPDIR .* unset"):
        stage_tokens(str(store), "$SLURM_TMPDIR/tokens")


def test_several_stores_keep_their_order_and_weights(make_store, tmp_path):
    """Though they have one name and the same files."""
    stores = [make_store(tmp_path / name / "tokens", num_objects=5) for name in ("b", "a")]
    found = stage_tokens({str(store): weight for store, weight in zip(stores, (3.0, 1.0), strict=True)}, str(tmp_path))
    assert list(found.values()) == [3.0, 1.0]
    for copy, store in zip(found, stores, strict=True):
        assert contents(Path(copy)) == contents(store)
