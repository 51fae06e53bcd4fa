"""Batches of observations from Parquet: whole epochs, the same for any number of processes, resumed at any batch."""

import contextlib
import itertools
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observation_loader import ObservationLoader
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation

NUM_IMAGES, NUM_REDSHIFTS = 90, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """90 images, each of its own number, in row groups of 11, and 60 redshifts in one."""
    folder = tmp_path_factory.mktemp("data")
    numbers = np.arange(NUM_IMAGES)
    rng = np.random.default_rng(0)
    sky = {"ra": rng.uniform(0, 360, NUM_IMAGES), "dec": rng.uniform(-80, 80, NUM_IMAGES)}
    flux = np.zeros((NUM_IMAGES, 1, 4, 4), np.float32) + numbers[:, None, None, None]
    images = ImageObservation(
        modality("image/hsc"), [f"g{n}" for n in numbers], flux, ("r",), np.ones_like(flux), **sky
    )
    some = {name: values[:NUM_REDSHIFTS] for name, values in sky.items()}
    redshifts = ScalarObservation(
        modality("scalar/redshift"), images.object_id[:NUM_REDSHIFTS], numbers[:60] / 100, **some
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("armillary.data.parquet_files.ROW_GROUP_BYTES", 11 * 400)
        write_dataset(folder, [images, redshifts])
    sizes = [size for file in ObservationDataset(folder).files("image/hsc") for size in file.row_group_sizes]
    assert len(sizes) > 6
    return folder


@pytest.fixture
def dataset(folder):
    return ObservationDataset(folder)


def take(loader, count):
    with contextlib.closing(iter(loader)) as batches:
        return list(itertools.islice(batches, count))


def images(dataset, batch_size, **others):
    return ObservationLoader(dataset, ["image/hsc"], batch_size, **{"seed": 0, "window": 3, **others})


@pytest.mark.parametrize("batch_size, window", [(1, 2), (7, 3), (16, 1), (40, 30), (100, 2)])
def test_every_epoch_holds_each_object_once_with_its_own_values(dataset, batch_size, window):
    batches = take(images(dataset, batch_size, window=window), -(-2 * NUM_IMAGES // batch_size))
    ids = [name for batch in batches for name in batch.object_id]
    for first in (0, NUM_IMAGES):
        assert sorted(ids[first : first + NUM_IMAGES]) == sorted(f"g{n}" for n in range(NUM_IMAGES))
    for batch in batches:
        assert len(batch) == batch_size
        assert [f"g{int(flux[0, 0, 0])}" for flux in batch.flux] == list(batch.object_id)
    assert ids[:NUM_IMAGES] != ids[NUM_IMAGES : 2 * NUM_IMAGES]


def test_modalities_take_turns_and_each_comes_in_whole_epochs(dataset):
    loader = ObservationLoader(dataset, ["image/hsc", "scalar/redshift"], 10, 0, window=2)
    batches = take(loader, 24)
    names = [batch.modality.name for batch in batches]
    assert names.count("image/hsc") == names.count("scalar/redshift") == 12
    assert all(one != other for one, other in itertools.pairwise(names))
    redshifts = [name for batch in batches if batch.modality.name == "scalar/redshift" for name in batch.object_id]
    for first in (0, NUM_REDSHIFTS):
        assert len(set(redshifts[first : first + NUM_REDSHIFTS])) == NUM_REDSHIFTS


def test_balance_gives_more_batches_to_the_modality_of_more_objects(dataset):
    def share(balance):
        loader = ObservationLoader(dataset, ["image/hsc", "scalar/redshift"], 4, 0, balance=balance)
        names = [batch.modality.name for batch in take(loader, 60)]
        return names.count("image/hsc") / 60

    weights = NUM_IMAGES**0.5, NUM_REDSHIFTS**0.5
    assert share(0.5) == pytest.approx(weights[0] / sum(weights), abs=0.02)
    assert share(1.0) == pytest.approx(NUM_IMAGES / (NUM_IMAGES + NUM_REDSHIFTS), abs=0.02)


@pytest.mark.parametrize("stop", [1, 5, 13])
def test_a_stream_goes_on_where_it_was_on_any_number_of_processes(dataset, stop):
    whole = take(images(dataset, 12), 30)
    first = images(dataset, 12)
    take(first, stop)
    assert first.cursor == stop
    parts = [take(images(dataset, 12, start=stop, rank=rank, world_size=3), 30 - stop) for rank in range(3)]
    for batch, of_ranks in zip(whole[stop:], zip(*parts, strict=True), strict=True):
        assert [name for part in of_ranks for name in part.object_id] == list(batch.object_id)
        assert torch.equal(torch.cat([part.flux for part in of_ranks]), batch.flux)


def test_held_out_objects_never_come(dataset):
    held_out = {f"g{n}" for n in range(0, NUM_IMAGES, 4)}
    loader = images(dataset, 9, held_out=held_out)
    ids = [name for batch in take(loader, 30) for name in batch.object_id]
    kept = NUM_IMAGES - len(held_out)
    assert sorted(ids[:kept]) == sorted({f"g{n}" for n in range(NUM_IMAGES)} - held_out)
    with pytest.raises(ValueError, match="no object to draw: every one of"):
        images(dataset, 9, held_out={f"g{n}" for n in range(NUM_IMAGES)})
    both = ObservationLoader(dataset, ["image/hsc", "scalar/redshift"], 5, 0, held_out={f"g{n}" for n in range(60)})
    assert both.names == ("image/hsc",)


def test_row_groups_are_decoded_once_in_an_epoch_and_few_are_held(dataset, monkeypatch):
    reads = []
    read = ObservationDataset(dataset.folder).files("image/hsc")[0].__class__.read_row_group

    def counting(file, group):
        reads.append((file.path, group))
        return read(file, group)

    monkeypatch.setattr("armillary.data.parquet_files.ObservationFile.read_row_group", counting)
    num_groups = sum(len(file.row_group_sizes) for file in dataset.files("image/hsc"))
    loader = images(dataset, 6, window=2)
    with contextlib.closing(iter(loader)) as batches:
        next(batches)
        assert len(reads) <= 4 + 2  # two windows, and what a batch over a border adds
        for _ in range(14):
            next(batches)
    assert len(set(reads[:num_groups])) == num_groups  # those that follow are the next epoch's


def test_a_process_that_needs_few_row_groups_does_not_look_for_more(dataset):
    """With fewer row groups than processes, each needs but one of them in every window."""
    parts = [
        take(ObservationLoader(dataset, ["scalar/redshift"], 40, 0, rank=rank, world_size=20), 3) for rank in (0, 19)
    ]
    assert all(len(batch) == 2 for part in parts for batch in part)


def test_the_fingerprint_names_the_order(dataset):
    found = {
        images(dataset, 10).fingerprint,
        images(dataset, 12).fingerprint,
        images(dataset, 10, seed=1).fingerprint,
        images(dataset, 10, window=4).fingerprint,
        images(dataset, 10, held_out={"g3"}).fingerprint,
        images(dataset, 10, balance=0.5).fingerprint,
        ObservationLoader(dataset, ["scalar/redshift"], 10, 0, window=3).fingerprint,
    }
    assert len(found) == 7
    assert images(dataset, 10).fingerprint == images(dataset, 10, world_size=2, start=5, num_threads=1).fingerprint


def test_a_corrupt_file_is_an_error_in_the_consumer_that_names_it(folder, tmp_path):
    dataset = ObservationDataset(shutil.copytree(folder, tmp_path / "data"))
    path = dataset.files("image/hsc")[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ObservationError, match=rf"{path.name}: the file is damaged"):
        take(images(dataset, 30), 6)


def test_a_batch_that_the_processes_cannot_divide_is_refused(dataset):
    with pytest.raises(ValueError, match="batch_size 10 must be a multiple of the 4 processes"):
        images(dataset, 10, world_size=4)


def consume(folder, log_path, start):
    with open(log_path, "a", buffering=1) as log:  # noqa: PTH123
        for batch in images(ObservationDataset(folder), 8, start=start):
            log.write(",".join(batch.object_id) + "\n")
            os.fsync(log.fileno())


def test_after_kill_9_come_exactly_the_samples_that_were_left(folder, dataset, tmp_path):
    log = tmp_path / "log"
    log.touch()
    for more in (3, 9, 6):
        start = len(log.read_text().splitlines())
        worker = multiprocessing.get_context("fork").Process(target=consume, args=(folder, log, start))
        worker.start()
        while len(log.read_text().splitlines()) < start + more:
            assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    lines = log.read_text().split("\n")[:-1]
    assert lines == [",".join(batch.object_id) for batch in take(images(dataset, 8), len(lines))]
