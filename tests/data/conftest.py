"""Token stores written by hand, of objects whose tokens follow from their ids."""

from pathlib import Path

import numpy as np
import pytest

from armillary.data.modalities import modality
from armillary.data.token_manifest import finish_store
from armillary.data.token_shards import write_object_shard, write_token_shard

NUM_TOKENS = {"image/hsc": 6, "spectrum/desi": 4, "scalar/redshift": 1}


def tokens_of(name, numbers):
    """Codes, mask, positions and instrument numbers of the objects g<number>, in closed form."""
    count = NUM_TOKENS[name]
    numbers = np.asarray(numbers, dtype=np.int64)[:, None]
    codes = (numbers * 31 + np.arange(count) * 7 + len(name)) % 1000
    mask = (numbers + np.arange(count)) % 5 != 0
    mask[:, 0] = True
    positions = np.repeat(np.arange(3 * count, dtype=np.float32).reshape(1, count, 3), len(numbers), 0)
    if name == "image/hsc":  # each image has a centre of its own
        positions = positions + numbers[..., None].astype(np.float32)
    instrument = np.full((len(numbers), 11), len(name), dtype=np.float32)
    return {"codes": np.where(mask, codes, 0), "mask": mask, "positions": positions, "instrument": instrument}


def has(name, number):
    """Which objects have which modality: all a redshift, most an image, some a spectrum."""
    return {"image/hsc": number % 7 != 3, "spectrum/desi": number % 3 == 1, "scalar/redshift": True}[name]


def write_store(
    folder, num_objects=100, shard_size=32, names=tuple(NUM_TOKENS), shards=None, offset=0, tokenizer_hash="made-by-a"
):
    """A finished store of the objects g0, g1, ... in this order; or some of its shards alone, and no manifest."""
    folder = Path(folder)
    num_shards = -(-num_objects // shard_size)
    for index in range(num_shards) if shards is None else shards:
        numbers = np.arange(index * shard_size, min((index + 1) * shard_size, num_objects)) + offset
        sky = np.stack([numbers / 10.0, numbers / 20.0], 1)
        digest = write_object_shard(folder, index, num_shards, [f"g{n}" for n in numbers], sky)
        for name in names:
            present = np.array([has(name, int(n)) for n in numbers])
            rows = np.where(present, np.cumsum(present) - 1, -1)
            arrays = tokens_of(name, numbers[present])
            write_token_shard(
                folder, modality(name), index, rows, arrays, tokenizer_hash=tokenizer_hash, objects=digest
            )
    if shards is None:
        assert finish_store(folder, "test", dict.fromkeys(names, num_objects))
    return folder


@pytest.fixture(scope="session")
def make_store():
    return write_store


@pytest.fixture(scope="session")
def expected_tokens():
    return tokens_of


@pytest.fixture(scope="session")
def expected_presence():
    return has
