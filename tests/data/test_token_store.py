"""Tokens on disk."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.data import token_shards
from armillary.data.modalities import modality
from armillary.data.token_manifest import MANIFEST, finish_store, missing_shards, verify_store
from armillary.data.token_shards import (
    TokenStoreError,
    object_key,
    open_token_shard,
    shard_path,
    write_object_shard,
    write_token_shard,
)
from armillary.data.token_store import TokenStore, as_tensors

IMAGE, SPECTRUM, REDSHIFT = modality("image/hsc"), modality("spectrum/desi"), modality("scalar/redshift")


@pytest.fixture(scope="module")
def finished(make_store, tmp_path_factory):
    """A store that no test changes: 100 objects in 4 shards."""
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(finished, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "store"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=40), st.sampled_from(["image/hsc", "spectrum/desi", "scalar/redshift"]))
def test_tokens_read_back_as_they_were_written(finished, expected_tokens, expected_presence, objects, name):
    rows = TokenStore(finished, verify=False).read(name, np.array(objects, dtype=np.int64))
    present = [place for place, number in enumerate(objects) if expected_presence(name, number)]
    assert sorted(rows.rows.tolist()) == present
    expected = expected_tokens(name, np.array(objects)[rows.rows] if present else [])
    for field, array in expected.items():
        assert np.array_equal(getattr(rows, field), array), field


def test_the_store_knows_its_objects_and_what_each_has(finished, expected_presence):
    opened = TokenStore(finished)
    assert len(opened) == 100
    assert opened.modalities == (IMAGE, REDSHIFT, SPECTRUM)
    assert opened.tokenizer_hashes == dict.fromkeys(("image/hsc", "spectrum/desi", "scalar/redshift"), "made-by-a")
    assert opened.object_ids() == [f"g{n}" for n in range(100)]
    chosen = np.array([70, 3, 70, 41])
    assert opened.object_ids(chosen) == ["g70", "g3", "g70", "g41"]
    assert opened.keys(chosen).tolist() == [object_key(f"g{n}") for n in chosen]
    assert np.array_equal(opened.sky(chosen), np.stack([chosen / 10, chosen / 20], 1))
    for name in ("image/hsc", "spectrum/desi", "scalar/redshift"):
        assert opened.has(name).tolist() == [expected_presence(name, n) for n in range(100)]
        assert opened.num_rows(name) == sum(expected_presence(name, n) for n in range(100))
    assert (opened.num_tokens("image/hsc"), opened.num_tokens("scalar/redshift")) == (6, 1)
    with pytest.raises(TokenStoreError, match="no tokens of 'image/sdss'; it holds"):
        opened.num_tokens("image/sdss")


def test_objects_are_found_by_their_ids(finished, monkeypatch):
    opened = TokenStore(finished)
    assert opened.find(["g99", "nobody", "g0", "g64"]).tolist() == [99, -1, 0, 64]
    assert opened.find([]).tolist() == []
    # Ids that share their key, as two of three thousand million may do, are told apart.
    monkeypatch.setattr("armillary.data.token_store.object_keys", lambda ids: np.full(len(ids), 5))
    same = TokenStore(finished)
    same.__dict__["_by_key"] = np.full(100, 5), np.arange(100)
    assert same.find(["g99", "nobody", "g0"]).tolist() == [99, -1, 0]


def test_codes_are_int16_and_what_all_objects_share_is_stored_once(finished):
    image, spectrum = (open_token_shard(shard_path(finished, name, 0)) for name in ("image/hsc", "spectrum/desi"))
    assert image.codes.dtype == np.int16
    assert len(spectrum.codes) < len(image.codes) < 32  # absent objects take a number in rows.npy alone
    assert len(image.positions) == len(image.codes)
    assert image.instrument.shape == (1, 11)
    assert spectrum.positions.shape == (1, 4, 3)
    assert {p.suffix for p in finished.rglob("*") if p.is_file()} == {".npy", ".json", ".arrow"}


def test_tensors_have_the_types_of_the_models_and_belong_to_the_reader(finished):
    tensors = as_tensors(TokenStore(finished).read("image/hsc", np.arange(3)))
    assert {name: t.dtype for name, t in tensors.items()} == {
        "codes": torch.int64,
        "mask": torch.bool,
        "positions": torch.float32,
        "instrument": torch.float32,
    }
    tensors["codes"].zero_()
    assert TokenStore(finished).read("image/hsc", np.arange(3)).codes.any()


def test_a_shard_in_which_nobody_has_the_modality_holds_no_arrays(make_store, tmp_path):
    make_store(tmp_path, num_objects=9, shard_size=1)  # g3 has no image
    opened = TokenStore(tmp_path)
    assert opened.token_shard("image/hsc", 3) is None
    assert [p.name for p in shard_path(tmp_path, "image/hsc", 3).iterdir()] == ["shard.json"]
    assert opened.has("image/hsc").tolist() == [n % 7 != 3 for n in range(9)]
    assert opened.read("image/hsc", np.array([3])).codes.shape == (0, 6)


def test_more_shards_than_may_be_open_at_once_are_read(finished, monkeypatch):
    monkeypatch.setattr("armillary.data.token_store.MAX_OPEN_SHARDS", 2)
    opened = TokenStore(finished)
    for _ in range(2):
        assert opened.object_ids() == [f"g{n}" for n in range(100)]
        assert len(opened.read("scalar/redshift", np.arange(100)).rows) == 100
    assert len(opened._open) == 2


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_adding_a_modality_rewrites_nothing(make_store, expected_tokens, tmp_path):
    make_store(tmp_path, names=("image/hsc",))
    before = snapshot(tmp_path)
    make_store(tmp_path)  # the images stand; spectra and redshifts are added
    for path, (changed, content) in before.items():
        if path.name != MANIFEST:
            assert (path.stat().st_mtime_ns, path.read_bytes()) == (changed, content)
    opened = TokenStore(tmp_path)
    assert [m.name for m in opened.modalities] == ["image/hsc", "scalar/redshift", "spectrum/desi"]
    assert np.array_equal(opened.read("image/hsc", np.array([50])).codes, expected_tokens("image/hsc", [50])["codes"])


def test_the_manifest_tells_counts_hashes_and_sources(finished):
    manifest = json.loads((finished / MANIFEST).read_text())
    assert manifest["format"] == 2
    assert manifest["total_objects"] == 100
    assert manifest["objects"]["num_objects"] == [32, 32, 32, 4]
    (image, redshift, spectrum) = manifest["modalities"]
    assert (image["modality"], image["tokenizer_hash"], image["num_tokens"]) == ("image/hsc", "made-by-a", 6)
    assert image["total_rows"] == sum(image["num_rows"]) == 86
    assert redshift["quantity"] == "redshift"
    assert spectrum["card"]["kind"] == "spectrum"
    assert manifest["sources"] == [{"dataset": "test", "num_objects": dict.fromkeys(manifest_names(manifest), 100)}]


def manifest_names(manifest):
    return [entry["modality"] for entry in manifest["modalities"]]


def test_a_manifest_that_was_lost_is_made_again_from_the_shards(store):
    content = json.loads((store / MANIFEST).read_text())
    (store / MANIFEST).unlink()
    with pytest.raises(TokenStoreError, match=r"all shards stand, but there is no manifest.json. Tokenize again"):
        TokenStore(store)
    assert finish_store(store, "test", content["sources"][0]["num_objects"])
    assert json.loads((store / MANIFEST).read_text()) == content


def test_an_unfinished_store_says_which_shards_are_missing(make_store, tmp_path):
    make_store(tmp_path, num_objects=200, shards=[0, 1, 5])
    shutil.rmtree(shard_path(tmp_path, "image/hsc", 1))
    expected = {"objects": [2, 3, 4, 6], "image/hsc": [1, 2, 3, 4, 6]}
    assert {k: v for k, v in missing_shards(tmp_path).items() if k in expected} == expected
    assert not finish_store(tmp_path, "test", {})
    with pytest.raises(
        TokenStoreError, match=r"not finished: objects lacks shards 2-4, 6; image/hsc lacks shards 1-4, 6;"
    ):
        TokenStore(tmp_path)


def test_a_store_is_open_to_readers_while_shards_are_added(make_store, tmp_path):
    make_store(tmp_path, names=("image/hsc",))
    make_store(tmp_path, names=("scalar/redshift",), shards=[0, 2])
    assert [m.name for m in TokenStore(tmp_path).modalities] == ["image/hsc"]
    assert missing_shards(tmp_path) == {"scalar/redshift": [1, 3]}


@pytest.mark.parametrize("code", [-1, 32768])
def test_codes_beyond_int16_are_refused(expected_tokens, tmp_path, code):
    wrong = expected_tokens("image/hsc", [0, 1])
    wrong["codes"][1, 2] = code
    with pytest.raises(TokenStoreError, match=r"codes must lie in \[0, 32767\]"):
        write_token_shard(tmp_path, IMAGE, 0, np.arange(2), wrong, tokenizer_hash="a", objects="o")
    assert not list(tmp_path.rglob("*.npy"))


def test_a_write_that_fails_leaves_nothing_behind(expected_tokens, tmp_path, monkeypatch):
    calls = []

    def save(path, array, allow_pickle):
        calls.append(array)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"something")

    monkeypatch.setattr(np, "save", save)
    arrays = expected_tokens("image/hsc", [0, 1])
    with pytest.raises(OSError, match="No space left"):
        write_token_shard(tmp_path, IMAGE, 0, np.arange(2), arrays, tokenizer_hash="a", objects="o")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith((".", "shard"))]


def test_of_two_processes_that_write_one_shard_the_first_wins(make_store, expected_tokens, tmp_path, monkeypatch):
    arrays = expected_tokens("image/hsc", [0, 1])
    final = shard_path(tmp_path, "image/hsc", 0)

    def faster(path):
        shutil.copytree(path, final, dirs_exist_ok=True)
        (final / "first").touch()

    monkeypatch.setattr(token_shards, "sync_folder", faster)  # the last step before the rename
    names = {"tokenizer_hash": "a", "objects": "o"}
    assert not write_token_shard(tmp_path, IMAGE, 0, np.arange(2), arrays, **names)
    assert (final / "first").exists()
    assert [p.name for p in final.parent.iterdir()] == ["shard-00000"]


def test_objects_are_registered_once_and_others_under_their_number_are_refused(make_store, tmp_path):
    make_store(tmp_path, num_objects=3)
    before = snapshot(tmp_path)
    sky = np.stack([np.arange(3) / 10, np.arange(3) / 20], 1)
    write_object_shard(tmp_path, 0, 1, ["g0", "g1", "g2"], sky)
    assert snapshot(tmp_path) == before
    for ids, places in ((["g0", "g1", "g9"], sky), (["g0", "g1", "g2"], sky + 1), (["g0", "g1"], sky[:2])):
        with pytest.raises(
            TokenStoreError, match=r"objects/shard-00000: expected \d objects as one of 1 shards, found"
        ):
            write_object_shard(tmp_path, 0, 1, ids, places)


FILES = [
    ("objects", "object_id.arrow"),
    ("objects", "key.npy"),
    ("objects", "sky.npy"),
    ("image/hsc", "rows.npy"),
    ("image/hsc", "codes.npy"),
    ("image/hsc", "positions.npy"),
    ("image/hsc", "instrument.npy"),
]


@pytest.mark.parametrize("name, file", FILES)
def test_a_half_written_file_is_an_error_that_names_it(store, name, file):
    path = shard_path(store, name, 1) / file
    os.truncate(path, path.stat().st_size - 3)
    for verify in (True, False):
        with pytest.raises(TokenStoreError, match=rf"shard-00001/{file}: expected \d+ bytes, found \d+. Half written"):
            TokenStore(store, verify=verify)
    path.unlink()
    with pytest.raises(TokenStoreError, match=rf"shard-00001/{file}: expected \d+ bytes, found no file"):
        TokenStore(store)


@pytest.mark.parametrize("name, file", FILES)
def test_a_flipped_byte_is_found_by_its_checksum(store, name, file):
    path = shard_path(store, name, 2) / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        TokenStoreError, match=f"1 of 16 shards are damaged\n.*shard-00002/{file}: the content does not"
    ):
        TokenStore(store)
    with pytest.raises(TokenStoreError, match="shards are damaged"):
        verify_store(store)


def test_a_whole_store_is_verified_and_a_large_one_only_when_asked(store, monkeypatch):
    assert verify_store(store) == 16
    path = shard_path(store, "image/hsc", 2) / "codes.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("armillary.data.token_store.VERIFIED_BYTES", 10)
    assert len(TokenStore(store)) == 100
    with pytest.raises(TokenStoreError, match="the content does not match"):
        TokenStore(store, verify=True)


@pytest.mark.parametrize("wrong", [np.zeros((30, 6), np.int32), np.zeros((30, 7), np.int16), np.zeros(30, np.int16)])
def test_an_array_of_another_shape_or_type_is_refused(store, wrong):
    folder = shard_path(store, "image/hsc", 0)
    np.save(folder / "codes.npy", wrong)
    description = json.loads((folder / "shard.json").read_text())
    description["files"]["codes.npy"]["bytes"] = (folder / "codes.npy").stat().st_size
    (folder / "shard.json").write_text(json.dumps(description))
    with pytest.raises(TokenStoreError, match=r"codes.npy: expected int16 of shape \(27, 6\), found"):
        open_token_shard(folder)


@pytest.mark.parametrize(
    "content", ["", '{"format": 2', "{}", '{"format": 2}', '{"format": 2, "files": 3}', "[]", None]
)
def test_a_shard_with_a_damaged_or_missing_description_is_an_error(store, content):
    path = shard_path(store, "scalar/redshift", 0) / "shard.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenStoreError, match="scalar/redshift/shard-00000: expected a whole shard, found"):
        TokenStore(store)


@pytest.mark.parametrize("content", ["", '{"format": 2', "{}", "[]"])
def test_a_damaged_manifest_is_an_error(store, content):
    (store / MANIFEST).write_text(content)
    with pytest.raises(
        TokenStoreError, match=r"manifest.json: expected the manifest of a token store, found .* Remove it"
    ):
        TokenStore(store)


def test_other_formats_are_refused(store, tmp_path):
    content = json.loads((store / MANIFEST).read_text())
    (store / MANIFEST).write_text(json.dumps({**content, "format": 3}))
    with pytest.raises(TokenStoreError, match=r"manifest.json: expected format 2, found 3"):
        TokenStore(store)
    old = tmp_path / "old" / "image" / "hsc" / "shard-00000"  # as the first version of this project wrote it
    old.mkdir(parents=True)
    (old / "shard.json").write_text(json.dumps({"format": 1, "modality": "image/hsc", "object_id": [], "sha256": {}}))
    with pytest.raises(TokenStoreError, match=r"shard-00000: expected format 2, found 1. Written by another version"):
        TokenStore(tmp_path / "old")
    (store / MANIFEST).unlink()
    shutil.rmtree(shard_path(store, "image/hsc", 0))
    shutil.copytree(old, shard_path(store, "image/hsc", 0))
    with pytest.raises(TokenStoreError, match="expected format 2, found 1"):
        finish_store(store, "test", {})


def test_shards_that_do_not_belong_together_are_refused(store, expected_tokens):
    folder = shard_path(store, "scalar/redshift", 3)
    whole = json.loads((folder / "shard.json").read_text())
    names = {"tokenizer_hash": "made-by-a", "objects": whole["objects"]}
    for change, problem in (
        ({"tokenizer_hash": "made-by-c"}, r"shard-00003: its tokens were made by tokenizer made-by-c, those of other"),
        ({"objects": "others"}, "shard-00003: its tokens are of other objects than those registered under its number"),
    ):
        shutil.rmtree(folder)
        arrays = expected_tokens("scalar/redshift", range(4))
        write_token_shard(store, REDSHIFT, 3, np.arange(4), arrays, **{**names, **change})
        with pytest.raises(TokenStoreError, match=problem):
            finish_store(store, "test", {})
    shutil.rmtree(folder)
    write_token_shard(store, REDSHIFT, 3, np.arange(4), expected_tokens("image/hsc", range(4)), **names)
    with pytest.raises(TokenStoreError, match=r"shard-00003: expected 1 tokens of scalar/redshift for each .* found 6"):
        finish_store(store, "test", {})


def test_an_object_that_is_registered_twice_is_refused(make_store, tmp_path):
    make_store(tmp_path, num_objects=4, shard_size=2, names=(), shards=[0])
    write_object_shard(tmp_path, 1, 2, ["g7", "g1"], np.zeros((2, 2)))
    with pytest.raises(TokenStoreError, match="shard-00001: object g1 is registered already, in shard-00000"):
        finish_store(tmp_path, "test", {})


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_shards_is_no_store(tmp_path, folder):
    with pytest.raises(TokenStoreError, match="expected a token store, found no shards"):
        TokenStore(tmp_path / folder)


def test_a_shard_that_is_still_being_written_is_not_seen(store):
    shutil.copytree(shard_path(store, "image/hsc", 0), store / "image" / "hsc" / ".shard-00004-abc")
    assert len(TokenStore(store)) == 100
    assert missing_shards(store) == {}


def standing(folder):
    """Whole shards; what is hidden is not looked into, for its writer may rename it at any time."""
    names = ("objects", "image/hsc", "spectrum/desi", "scalar/redshift")
    return [path for name in names for path in (folder / name).glob("shard-*")]


def test_writers_that_are_killed_leave_whole_shards_and_nothing_that_hinders(make_store, tmp_path):
    folder = tmp_path / "store"
    rng = np.random.default_rng(0)
    for target in (1, 25, 50, 75):
        writer = multiprocessing.get_context("fork").Process(target=make_store, args=(folder, 1500, 50))
        writer.start()
        while len(standing(folder)) < target:
            assert writer.is_alive()
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert target <= len(standing(folder)) < 30 * 4
        for path in standing(folder):
            token_shards.check_shard(path, checksums=True)
    make_store(folder, 1500, 50)
    assert verify_store(folder) == 30 * 4
    assert TokenStore(folder).object_ids(np.array([1499])) == ["g1499"]
    assert not list(folder.rglob(".*"))
