"""Tokens on disk."""

import json
import shutil

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.token_store import TokenStore, TokenStoreError, as_tensors, shard_path, write_token_shard

IMAGE, REDSHIFT = modality("image/hsc"), modality("scalar/redshift")


def arrays(num_objects, num_tokens=4, seed=0, shared=True):
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(1 if shared else num_objects, num_tokens, 3)).astype(np.float32)
    return {
        "codes": rng.integers(0, 4000, (num_objects, num_tokens)),
        "mask": rng.random((num_objects, num_tokens)) > 0.2,
        "positions": np.repeat(positions, num_objects, 0) if shared else positions,
        "instrument": np.repeat(rng.normal(size=(1, 11)).astype(np.float32), num_objects, 0),
        "sky": np.stack([rng.uniform(0, 360, num_objects), rng.uniform(-90, 90, num_objects)], 1),
    }


def names(*numbers):
    return [f"g{n}" for n in numbers]


@pytest.fixture
def store(tmp_path):
    """Images of g0..g5 in two shards, redshifts of g4..g8 in one; the ids are not in order on disk."""
    write_token_shard(tmp_path, IMAGE, 0, names(3, 0, 5), arrays(3), "made-by-a")
    write_token_shard(tmp_path, IMAGE, 1, names(4, 1, 2), arrays(3, seed=1, shared=False), "made-by-a")
    write_token_shard(tmp_path, REDSHIFT, 0, names(8, 4, 5, 7, 6), arrays(5, 1, seed=2), "made-by-b")
    return tmp_path


def test_tokens_read_back_as_they_were_written(store):
    opened = TokenStore(store)
    assert opened.object_id == tuple(names(*range(9)))
    assert opened.modalities == (IMAGE, REDSHIFT)
    assert opened.tokenizer_hashes == {"image/hsc": "made-by-a", "scalar/redshift": "made-by-b"}
    written = {**dict(zip(names(3, 0, 5), range(3), strict=True)), **dict(zip(names(4, 1, 2), range(3), strict=True))}
    sources = {
        **dict.fromkeys(names(3, 0, 5), arrays(3)),
        **dict.fromkeys(names(4, 1, 2), arrays(3, seed=1, shared=False)),
    }
    wanted = np.array([7, 2, 5, 0, 4, 3])
    rows = opened.read("image/hsc", wanted)
    assert sorted(rows.rows.tolist()) == [1, 2, 3, 4, 5]  # g7 has no image
    for place, row in enumerate(rows.rows):
        name = opened.object_id[wanted[row]]
        for field in ("codes", "mask", "positions", "instrument", "sky"):
            assert np.array_equal(getattr(rows, field)[place], sources[name][field][written[name]]), field


def test_codes_are_int16_on_disk_and_what_all_objects_share_is_stored_once(store):
    shared, own = (shard_path(store, IMAGE, i) for i in (0, 1))
    assert np.load(shared / "codes.npy").dtype == np.int16
    assert np.load(shared / "positions.npy").shape == (1, 4, 3)
    assert np.load(own / "positions.npy").shape == (3, 4, 3)
    assert {p.suffix for p in store.rglob("*") if p.is_file()} == {".npy", ".json"}


def test_the_store_knows_which_objects_have_what_and_where_they_are(store):
    opened = TokenStore(store)
    assert opened.has("image/hsc").tolist() == [True] * 6 + [False] * 3
    assert opened.has("scalar/redshift").tolist() == [False] * 4 + [True] * 5
    assert (opened.num_tokens("image/hsc"), opened.num_tokens("scalar/redshift")) == (4, 1)
    assert np.array_equal(opened.sky()[8], arrays(5, 1, seed=2)["sky"][0])
    assert np.array_equal(opened.sky()[0], arrays(3)["sky"][1])


def test_a_position_that_one_modality_does_not_know_comes_from_another(tmp_path):
    lost = arrays(2)
    lost["sky"][:] = np.nan
    known = arrays(1, 1, seed=4)
    write_token_shard(tmp_path, IMAGE, 0, names(0, 1), lost, "a")
    write_token_shard(tmp_path, REDSHIFT, 0, names(1), known, "b")
    sky = TokenStore(tmp_path).sky()
    assert np.isnan(sky[0]).all()
    assert np.array_equal(sky[1], known["sky"][0])


def test_reading_objects_that_lack_the_modality_gives_no_rows(store):
    rows = TokenStore(store).read("image/hsc", np.array([8, 7]))
    assert rows.codes.shape == (0, 4)
    assert len(rows.rows) == 0


def test_tensors_have_the_types_of_the_models_and_belong_to_the_reader(store):
    tensors = as_tensors(TokenStore(store).read("image/hsc", np.arange(3)))
    assert {name: t.dtype for name, t in tensors.items()} == {
        "codes": torch.int64,
        "mask": torch.bool,
        "positions": torch.float32,
        "instrument": torch.float32,
    }
    tensors["codes"].zero_()
    assert TokenStore(store).read("image/hsc", np.arange(3)).codes.any()


def test_adding_a_modality_rewrites_nothing(store):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("*") if p.is_file()}
    mass = modality("scalar/stellar_mass")
    write_token_shard(store, mass, 0, names(0, 20), arrays(2, 1), "made-by-b")
    for path, (time, content) in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (time, content)
    assert len(TokenStore(store)) == 10


def test_a_shard_is_never_overwritten(store):
    with pytest.raises(TokenStoreError, match="shard-00000: exists already"):
        write_token_shard(store, IMAGE, 0, names(9), arrays(1), "made-by-a")


@pytest.mark.parametrize("code", [-1, 32768])
def test_codes_beyond_int16_are_refused(tmp_path, code):
    wrong = arrays(2)
    wrong["codes"][1, 2] = code
    with pytest.raises(TokenStoreError, match=r"codes must lie in \[0, 32767\]"):
        write_token_shard(tmp_path, IMAGE, 0, names(0, 1), wrong, "a")
    assert not list(tmp_path.rglob("*.npy"))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def save(file, array, allow_pickle):
        calls.append(array)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        file.write(b"something")

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match="No space left"):
        write_token_shard(tmp_path, IMAGE, 0, names(0), arrays(1), "a")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith((".", "shard"))]


@pytest.mark.parametrize("name", ["codes", "mask", "positions", "instrument", "sky"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_array_is_an_error_that_names_its_file(store, name, how):
    path = shard_path(store, IMAGE, 1) / f"{name}.npy"
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "truncated":
        path.write_bytes(content[:-3])
    else:
        path.unlink()
    with pytest.raises(TokenStoreError, match=f"shard-00001.*({name}|FileNotFound)"):
        TokenStore(store)


@pytest.mark.parametrize("content", ["", '{"format": 1', "{}", None])
def test_a_shard_with_a_damaged_or_missing_description_is_an_error(store, content):
    path = shard_path(store, REDSHIFT, 0) / "shard.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenStoreError, match="expected a whole token shard"):
        TokenStore(store)


def test_a_shard_of_another_format_is_refused(store):
    path = shard_path(store, REDSHIFT, 0) / "shard.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7}))
    with pytest.raises(TokenStoreError, match="expected format 1, found 7"):
        TokenStore(store)


def test_shards_of_one_modality_by_different_tokenizers_are_refused(store):
    write_token_shard(store, IMAGE, 2, names(30), arrays(1), "made-by-c")
    with pytest.raises(TokenStoreError, match="made by tokenizer made-by-c, those before it by made-by-a"):
        TokenStore(store)


def test_shards_of_one_modality_with_other_numbers_of_tokens_are_refused(store):
    write_token_shard(store, IMAGE, 2, names(30), arrays(1, 9), "made-by-a")
    with pytest.raises(TokenStoreError, match=r"shard-00002: expected 4 tokens of image/hsc for each object.*found 9"):
        TokenStore(store)


def test_an_object_in_two_shards_of_a_modality_is_refused(store):
    write_token_shard(store, IMAGE, 2, names(3), arrays(1), "made-by-a")
    with pytest.raises(TokenStoreError, match=r"object g3 stands in two shards of image/hsc"):
        TokenStore(store)


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(TokenStoreError, match="expected token shards"):
        TokenStore(tmp_path)


def test_a_shard_that_is_still_being_written_is_not_seen(store):
    shutil.copytree(shard_path(store, IMAGE, 0), store / "image" / "hsc" / ".shard-00002-abc")
    assert len(TokenStore(store)) == 9
