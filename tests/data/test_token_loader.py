"""Batches of tokens: whole epochs, the same for any number of processes, exactly resumed after any end."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.data.prefetch import prefetched
from armillary.data.token_chunks import Memory
from armillary.data.token_loader import TokenLoader, TokenSamples, TokenSource
from armillary.data.token_shards import TokenStoreError, object_key, shard_path
from armillary.data.token_store import TokenStore

NUM_OBJECTS = 300
PER_MODALITY = ("codes", "positions", "instrument")
SMALL = {"block_size": 8, "window": 3, "chunk_size": 40}


@pytest.fixture(scope="module")
def store(make_store, tmp_path_factory):
    """300 objects in 10 shards, each with a redshift, most with an image, some with a spectrum."""
    return TokenStore(make_store(tmp_path_factory.mktemp("store"), num_objects=NUM_OBJECTS))


@pytest.fixture(scope="module")
def second(make_store, tmp_path_factory):
    """70 other objects without spectra."""
    names = ("image/hsc", "scalar/redshift")
    return TokenStore(make_store(tmp_path_factory.mktemp("second"), num_objects=70, offset=1000, names=names))


def take(loader, count):
    """The first `count` batches."""
    with contextlib.closing(iter(loader)) as batches:
        return list(itertools.islice(batches, count))


def objects_of(batches):
    return np.concatenate([batch.objects.numpy() for batch in batches])


def joined(batches):
    """All batches as one."""
    tuples = {f: tuple(map(torch.cat, zip(*(getattr(b, f) for b in batches), strict=True))) for f in PER_MODALITY}
    others = {f: torch.cat([getattr(b, f) for b in batches]) for f in ("availability", "keys", "objects", "sources")}
    return TokenSamples(batches[0].modalities, **tuples, **others)


def check_tokens(batch, expected_tokens, expected_presence):
    """Every row is what the objects of conftest.py hold."""
    numbers = batch.objects.numpy()
    assert batch.keys.tolist() == [object_key(f"g{n}") for n in numbers]
    for column, declared in enumerate(batch.modalities):
        present = np.array([expected_presence(declared.name, int(n)) for n in numbers])
        assert batch.availability[:, column].tolist() == present.tolist()
        expected = expected_tokens(declared.name, numbers)
        codes = np.where(expected["mask"] & present[:, None], expected["codes"], -1)
        assert np.array_equal(batch.codes[column].numpy(), codes)
        for field in ("positions", "instrument"):
            found = getattr(batch, field)[column].numpy()
            assert np.array_equal(found[present], expected[field][present]), (declared.name, field)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(7, 90), st.integers(0, 3), st.integers(3, 20), st.integers(1, 6), st.integers(1, 200), st.integers(0, 2)
)
def test_batches_hold_the_tokens_of_whole_epochs(
    store, expected_tokens, expected_presence, batch_size, seed, block_size, window, chunk_size, prefetch
):
    loader = TokenLoader(
        [TokenSource(store)],
        batch_size,
        seed,
        block_size=block_size,
        window=window,
        chunk_size=chunk_size,
        prefetch=prefetch,
    )
    batches = take(loader, -(-2 * NUM_OBJECTS // batch_size))
    assert {len(batch) for batch in batches} == {batch_size}
    assert not any(batch.sources.any() for batch in batches)
    check_tokens(joined(batches), expected_tokens, expected_presence)
    seen = objects_of(batches)
    counts = np.bincount(seen, minlength=NUM_OBJECTS)
    assert counts.min() >= 2
    assert counts.max() - 2 <= 1
    assert loader.cursor == len(seen)
    # The order does not depend on how it is read.
    again = TokenLoader([TokenSource(store)], batch_size, seed, block_size=block_size, window=window)
    assert np.array_equal(objects_of(take(again, len(batches))), seen)


@pytest.mark.parametrize("block_size", [1, 2, 7])
def test_many_epochs_may_lie_in_one_chunk(make_store, expected_tokens, expected_presence, tmp_path, block_size):
    store = TokenStore(make_store(tmp_path, num_objects=7, shard_size=4))
    for seed in range(5):
        loader = TokenLoader([TokenSource(store)], 3, seed, block_size=block_size, window=2, chunk_size=100, prefetch=0)
        batches = take(loader, 70)
        check_tokens(joined(batches), expected_tokens, expected_presence)
        assert np.bincount(objects_of(batches)).tolist() == [30] * 7


def test_where_an_epoch_ends_within_a_batch_the_next_one_begins(store):
    batches = take(TokenLoader([TokenSource(store)], 64, 0, **SMALL), 5)
    before, both = objects_of(batches[:4]), batches[4].objects.tolist()
    left = set(range(NUM_OBJECTS)) - set(before.tolist())
    assert (len(set(before.tolist())), len(left), len(both)) == (256, 44, 64)
    assert left <= set(both)


@pytest.mark.parametrize("world_size", [2, 4, 12])
@pytest.mark.parametrize("batch_size", [12, 48, 240])
def test_the_processes_of_any_number_get_the_same_batches_together(store, second, world_size, batch_size):
    sources = [TokenSource(store, weight=2.0), TokenSource(second, weight=1.0)]
    whole = take(TokenLoader(sources, batch_size, 5, **SMALL), 40)
    parts = [
        take(TokenLoader(sources, batch_size, 5, rank=rank, world_size=world_size, **SMALL), 40)
        for rank in range(world_size)
    ]
    for batch, of_ranks in zip(whole, zip(*parts, strict=True), strict=True):
        assert {len(part) for part in of_ranks} == {batch_size // world_size}
        for field in ("keys", "objects", "sources", "availability"):
            assert torch.equal(torch.cat([getattr(part, field) for part in of_ranks]), getattr(batch, field))
        for column in range(3):
            assert torch.equal(torch.cat([part.codes[column] for part in of_ranks]), batch.codes[column])
            assert torch.equal(torch.cat([part.positions[column] for part in of_ranks]), batch.positions[column])


def test_a_process_reads_a_part_of_the_blocks(store):
    """A store whose shards the processes cannot divide is not read as a whole by each."""
    num_read = []
    for world_size in (1, 3):
        loader = TokenLoader(
            [TokenSource(store)], 150, 0, world_size=world_size, block_size=10, window=15, chunk_size=50
        )
        seen = objects_of(take(loader, 1))
        num_read.append(len({n // 32 for n in seen.tolist()}))
    assert num_read[0] == 10
    assert num_read[1] <= 5


@pytest.mark.parametrize("stop", [1, 2, 7, 30, 31])
def test_a_stream_goes_on_where_it_was_on_any_number_of_processes(store, stop):
    whole = take(TokenLoader([TokenSource(store)], 24, 3, **SMALL), 60)
    first = TokenLoader([TokenSource(store)], 24, 3, **SMALL)
    take(first, stop)
    assert first.cursor == 24 * stop
    rest = [
        take(TokenLoader([TokenSource(store)], 24, 3, start=first.cursor, rank=r, world_size=2, **SMALL), 60 - stop)
        for r in (0, 1)
    ]
    for batch, parts in zip(whole[stop:], zip(*rest, strict=True), strict=True):
        assert torch.equal(torch.cat([part.objects for part in parts]), batch.objects)
        assert torch.equal(torch.cat([part.codes[0] for part in parts]), batch.codes[0])


def test_entering_late_costs_what_entering_early_does(store):
    early, late = (TokenLoader([TokenSource(store)], 20, 3, start=20 * k, prefetch=0) for k in (0, 10**12))
    assert len(take(early, 1)[0]) == len(take(late, 1)[0]) == 20


def test_a_loader_iterated_again_goes_on(store):
    loader = TokenLoader([TokenSource(store)], 30, 1, **SMALL)
    pieces = [*take(loader, 3), *take(loader, 4), *take(loader, 3)]
    assert np.array_equal(np.sort(objects_of(pieces)), np.arange(NUM_OBJECTS))


def test_only_chosen_objects_and_those_with_tokens_are_drawn(store, expected_presence):
    chosen = np.ones(NUM_OBJECTS, dtype=bool)
    chosen[store.find(["g5", "g17", "g250"])] = False
    loader = TokenLoader([TokenSource(store, chosen)], 10, 0, **SMALL)
    assert loader.epoch_sizes == (297,)
    assert {5, 17, 250}.isdisjoint(objects_of(take(loader, 90)).tolist())
    spectra = TokenLoader([TokenSource(store, chosen)], 10, 0, modalities=["spectrum/desi"], **SMALL)
    expected = {n for n in range(NUM_OBJECTS) if expected_presence("spectrum/desi", n) and chosen[n]}
    batches = take(spectra, 20)
    assert set(objects_of(batches).tolist()) == expected
    assert [m.name for m in batches[0].modalities] == ["spectrum/desi"]
    assert all(batch.availability.all() for batch in batches)


def test_sources_are_mixed_by_weight_and_each_comes_in_whole_epochs(store, second, expected_tokens, expected_presence):
    loader = TokenLoader([TokenSource(store, weight=1.0), TokenSource(second, weight=3.0)], 16, 2, **SMALL)
    batches = take(loader, 100)
    assert {int((batch.sources == 1).sum()) for batch in batches} == {12}
    check_rows(joined(batches), expected_tokens, expected_presence)
    for source, size in ((0, NUM_OBJECTS), (1, 70)):
        seen = np.concatenate([b.objects[b.sources == source].numpy() for b in batches])
        for first in range(0, len(seen) - size + 1, size):
            assert sorted(seen[first : first + size].tolist()) == list(range(size))
        assert len(seen) > size
    by_size = TokenLoader([TokenSource(store), TokenSource(second)], 37, 0, **SMALL)
    assert (torch.cat([b.sources for b in take(by_size, 100)]) == 1).sum() == 700


def check_rows(batch, expected_tokens, expected_presence):
    """As check_tokens, of two sources; the second has no spectra and its objects begin at g1000."""
    numbers = (batch.objects + 1000 * batch.sources).numpy()
    assert batch.keys.tolist() == [object_key(f"g{n}") for n in numbers]
    for column, declared in enumerate(batch.modalities):
        lacks = (batch.sources.numpy() == 1) & (declared.name == "spectrum/desi")
        present = np.array([expected_presence(declared.name, int(n)) for n in numbers]) & ~lacks
        expected = expected_tokens(declared.name, numbers)
        codes = np.where(expected["mask"] & present[:, None], expected["codes"], -1)
        assert np.array_equal(batch.codes[column].numpy(), codes)
        assert np.array_equal(batch.positions[column].numpy()[present], expected["positions"][present])


def test_batches_keep_their_content_while_the_stream_goes_on(store):
    """The loader uses memory again, but never memory that someone still holds."""
    loader = TokenLoader([TokenSource(store)], 50, 0, **SMALL)
    batches = take(loader, 40)
    copies = take(TokenLoader([TokenSource(store)], 50, 0, **SMALL), 40)
    for batch, copy in zip(batches, copies, strict=True):
        for one, other in zip(batch.codes, copy.codes, strict=True):
            assert torch.equal(one, other)


def test_memory_is_used_again_once_no_part_of_it_is_held():
    memory, like = Memory(), np.zeros((1, 2**18), np.int16)
    first = memory.tensor(4, like)
    place = first.data_ptr()
    part = first[1:3].numpy()[1:]
    del first
    second = memory.tensor(4, like)
    assert second.data_ptr() != place
    del part
    assert memory.tensor(4, like).data_ptr() == place


def test_what_all_objects_share_is_not_copied_for_each(store):
    batch = take(TokenLoader([TokenSource(store)], 50, 0, **SMALL), 1)[0]
    image, redshift, spectrum = (positions.stride(0) for positions in batch.positions)
    assert image > 0  # each has its own centre
    assert redshift == spectrum == 0
    assert all(instrument.stride(0) == 0 for instrument in batch.instrument)


def test_the_fingerprint_names_the_order(store, second):
    def fingerprint(sources, **others):
        return TokenLoader(sources, 10, **{"seed": 0, **others}).fingerprint

    chosen = np.arange(NUM_OBJECTS) > 7
    all_objects = [TokenSource(store)]
    assert fingerprint(all_objects) == fingerprint(all_objects, world_size=5, start=70, chunk_size=3)
    others = [
        fingerprint(all_objects, seed=1),
        fingerprint(all_objects, block_size=64),
        fingerprint(all_objects, window=7),
        fingerprint([TokenSource(store, chosen)]),
        fingerprint([TokenSource(store, weight=1.0), TokenSource(second, weight=1.0)]),
        fingerprint([TokenSource(store, weight=1.0), TokenSource(second, weight=2.0)]),
    ]
    assert len({fingerprint(all_objects), *others}) == 7


def test_what_cannot_be_drawn_or_divided_is_refused(store):
    with pytest.raises(ValueError, match="batch_size 10 must be a multiple of the 3 processes"):
        TokenLoader([TokenSource(store)], 10, 0, world_size=3)
    with pytest.raises(ValueError, match="none of its 300 objects can be drawn"):
        TokenLoader([TokenSource(store, np.zeros(NUM_OBJECTS, dtype=bool))], 10, 0)
    with pytest.raises(ValueError, match=r"no tokens of \['image/sdss'\]; there are those of"):
        TokenLoader([TokenSource(store)], 10, 0, modalities=["image/sdss"])
    with pytest.raises(ValueError, match="no tokens of"):
        TokenLoader([], 10, 0)


def test_stores_of_different_tokenizers_cannot_be_mixed(store, make_store, tmp_path):
    other = TokenStore(make_store(tmp_path, num_objects=5, tokenizer_hash="made-by-b"))
    with pytest.raises(ValueError, match=r"image/hsc has 6 tokens by tokenizer made-by-b, but 6 by made-by-a in"):
        TokenLoader([TokenSource(store), TokenSource(other)], 10, 0)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_shard_that_was_damaged_since_the_store_was_opened_is_an_error_in_the_consumer(
    make_store, tmp_path, prefetch
):
    folder = make_store(tmp_path)
    loader = TokenLoader([TokenSource(TokenStore(folder))], 20, 0, prefetch=prefetch)
    path = shard_path(folder, "scalar/redshift", 2) / "codes.npy"  # all objects have one: no need to look until now
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(TokenStoreError, match=r"shard-00002/codes.npy: expected 192 bytes, found 191. Half written"):
        take(loader, 10)


def test_the_thread_ends_with_its_consumer(store):
    def threads():
        return [t for t in threading.enumerate() if t.name == "armillary-prefetch"]

    batches = iter(TokenLoader([TokenSource(store)], 10, 0, prefetch=3))
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()


def test_an_error_in_the_thread_reaches_the_consumer_after_what_came_before():
    def items():
        yield 1
        yield 2
        raise OSError("gone")

    found = []
    with pytest.raises(OSError, match="gone"):
        found.extend(prefetched(items, 1))
    assert list(prefetched(lambda: iter(range(5)), 2)) == list(range(5))


def consume(folder, log_path, world_size, start, seed):
    """Train on a store for ever, in so far as it writes down what it has seen, batch by batch, durably."""
    loaders = [
        TokenLoader([TokenSource(TokenStore(folder))], 12, seed, rank=r, world_size=world_size, start=start, **SMALL)
        for r in range(world_size)
    ]
    with open(log_path, "ab", buffering=0) as log:  # noqa: PTH123
        for parts in zip(*loaders, strict=True):
            # One write of one record: after a kill the log ends with a whole batch.
            log.write(np.concatenate([part.objects.numpy() for part in parts]).astype(np.int64).tobytes())
            os.fsync(log.fileno())


def test_after_kill_9_at_random_points_come_exactly_the_samples_that_were_left(make_store, tmp_path):
    folder = make_store(tmp_path / "store", num_objects=500)
    log = tmp_path / "log"
    log.touch()
    rng = random.Random(0)
    for world_size in (1, 3, 2, 1, 4, 1):
        start = log.stat().st_size // 8
        worker = multiprocessing.get_context("fork").Process(target=consume, args=(folder, log, world_size, start, 9))
        worker.start()
        enough = start + rng.randrange(1, 25) * 12
        while log.stat().st_size // 8 < enough:
            assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
    seen = np.fromfile(log, dtype=np.int64)
    assert len(seen) >= 6 * 12
    whole = objects_of(take(TokenLoader([TokenSource(TokenStore(folder))], 12, 9, **SMALL), len(seen) // 12))
    assert np.array_equal(seen, whole)
    for first in range(0, len(seen) // 500 * 500, 500):
        assert np.array_equal(np.sort(seen[first : first + 500]), np.arange(500))
