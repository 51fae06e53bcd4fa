"""Observations on disk: what is written reads back bit for bit, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from armillary.data import dataset
from armillary.data.dataset import ObservationDataset, write_shard
from armillary.data.instruments import parse_card
from armillary.data.modalities import Modality, modality
from armillary.data.observations import (
    ImageObservation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
    stack,
)

HSC, DESI, REDSHIFT = modality("image/hsc"), modality("spectrum/desi"), modality("scalar/redshift")


def images(names, bands=("g", "i"), size=(6, 5), seed=0):
    random = np.random.default_rng(seed)
    shape = (len(names), len(bands), *size)
    return ImageObservation(
        HSC,
        names,
        random.normal(size=shape).astype(np.float32),
        bands,
        random.uniform(0.1, 9, size=shape).astype(np.float32),
        random.uniform(size=shape) > 0.1,
        psf_fwhm=random.uniform(0.5, 1, size=shape[:2]),
        center=random.uniform(2, 3, size=(len(names), 2)),
        ra=random.uniform(0, 360, len(names)),
        dec=np.full(len(names), -12.5),
    )


def spectra(names, length=40, seed=0, own_grids=False, own_resolution=False):
    random = np.random.default_rng(seed)
    shape = (len(names), length)
    wavelength = 3600 + 0.8 * np.arange(length) + (random.uniform(size=(len(names), 1)) if own_grids else 0)
    return SpectrumObservation(
        DESI,
        names,
        random.normal(size=shape).astype(np.float32),
        wavelength,
        random.uniform(0.1, 9, size=shape).astype(np.float32),
        random.uniform(size=shape) > 0.1,
        resolving_power=random.uniform(1000, 4000, shape) if own_resolution else None,
    )


def redshifts(names, seed=0):
    random = np.random.default_rng(seed)
    error = np.where(random.uniform(size=len(names)) > 0.5, 0.01, np.nan)
    valid = np.arange(len(names)) != 1
    return ScalarObservation(REDSHIFT, names, random.uniform(0, 3, len(names)), valid, error, ra=np.ones(len(names)))


def assert_same(first, second):
    assert type(first) is type(second)
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype, field.name
            assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes(), field.name
        else:
            assert one == other, field.name


NAMES = ["a", "b", "c", "d", "e"]
KINDS = {
    "image": images(NAMES),
    "image of one band and row": images(NAMES, ("y",), (1, 4)),
    "spectrum": spectra(NAMES),
    "spectrum on own grids": spectra(NAMES, own_grids=True),
    "spectrum with own resolution": spectra(NAMES, own_resolution=True),
    "scalar": redshifts(NAMES),
}


@pytest.fixture(params=KINDS)
def observation(request):
    return KINDS[request.param]


def test_a_round_trip_keeps_every_bit(tmp_path, observation):
    write_shard(tmp_path, observation, 0)
    opened = ObservationDataset(tmp_path)
    assert opened.modalities == (observation.modality,)
    assert opened.object_ids(observation.modality.name) == NAMES
    assert_same(opened.read(observation.modality.name), observation)


def test_objects_are_read_in_the_order_asked_across_shards_and_row_groups(tmp_path, observation, monkeypatch):
    monkeypatch.setattr(dataset, "ROW_GROUP_BYTES", 1)
    write_shard(tmp_path, observation.select([0, 1, 2]), 0)
    write_shard(tmp_path, observation.select([3, 4]), 1)
    opened, name = ObservationDataset(tmp_path), observation.modality.name
    assert_same(opened.read(name, ["e", "a", "c", "a"]), observation.select([4, 0, 2, 0]))
    assert_same(opened.read(name, slice(1, 4)), observation.select([1, 2, 3]))
    assert_same(opened.read(name, slice(None, None, -2)), observation.select([4, 2, 0]))
    assert opened.num_objects(name) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_batches_stream_every_object_once_and_in_order(tmp_path, observation, monkeypatch, batch_size):
    monkeypatch.setattr(dataset, "ROW_GROUP_BYTES", 1)
    write_shard(tmp_path, observation.select([0, 1, 2]), 0)
    write_shard(tmp_path, observation.select([3, 4]), 1)
    batches = list(ObservationDataset(tmp_path).batches(observation.modality.name, batch_size))
    full, rest = divmod(5, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * full + [rest] * (rest > 0)
    assert_same(stack(batches), observation)


def test_shards_of_other_sizes_and_bands_are_padded_with_masked_pixels(tmp_path):
    small, large = images(["a"], ("g",), (3, 3)), images(["b"], ("g", "r"), (5, 4), seed=1)
    write_shard(tmp_path, small, 0)
    write_shard(tmp_path, large, 1)
    assert_same(ObservationDataset(tmp_path).read("image/hsc"), stack([small, large]))


def test_a_common_grid_is_stored_once(tmp_path):
    shared = pq.read_schema(write_shard(tmp_path / "shared", spectra(NAMES), 0))
    own = pq.read_schema(write_shard(tmp_path / "own", spectra(NAMES, own_grids=True), 0))
    assert "wavelength" not in shared.names
    assert "wavelength" in own.names


def test_files_in_folders_below_the_modality_are_found(tmp_path):
    path = write_shard(tmp_path, redshifts(NAMES), 0)
    (path.parent / "healpix=17").mkdir()
    path.rename(path.parent / "healpix=17" / path.name)
    assert ObservationDataset(tmp_path).object_ids("scalar/redshift") == NAMES


def test_a_dataset_of_an_instrument_that_is_not_shipped_still_opens(tmp_path):
    card = parse_card({**DESI.card.model_dump(mode="json"), "name": "toy", "step": 1.6}, "toy")
    toy = Modality("spectrum/toy", card)
    written = SpectrumObservation(toy, ["a"], np.ones((1, 9)), 4000 + np.arange(9), np.ones((1, 9)))
    write_shard(tmp_path, written, 0)
    assert_same(ObservationDataset(tmp_path).read("spectrum/toy"), written)


def test_positions_are_the_union_over_modalities(tmp_path):
    located, unlocated = images(["a", "b"]), spectra(["b", "c"])
    for observed in (located, unlocated):
        write_shard(tmp_path, observed, 0)
    positions = ObservationDataset(tmp_path).positions()
    assert list(positions) == ["a", "b", "c"]
    assert positions["b"] == (located.ra[1].item(), -12.5)
    assert np.isnan(positions["c"]).all()


def test_scalars_hold_the_valid_values_alone(tmp_path):
    observed = redshifts(NAMES)
    write_shard(tmp_path, observed, 0)
    write_shard(tmp_path, images(NAMES), 0)
    opened = ObservationDataset(tmp_path)
    table = opened.scalars()
    assert list(table) == ["scalar/redshift"]
    assert list(table["scalar/redshift"]) == ["a", "c", "d", "e"]
    assert table["scalar/redshift"]["c"] == observed.values[2].item()
    with pytest.raises(ObservationError, match="expected a scalar modality, found image/hsc"):
        opened.scalars(["image/hsc"])


def test_hugging_face_datasets_reads_a_shard(tmp_path):
    from datasets import load_dataset

    written = spectra(NAMES)
    path = write_shard(tmp_path, written, 0)
    table = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    assert table["object_id"][:] == NAMES
    np.testing.assert_array_equal(np.array(table["flux"][:], dtype=np.float32), written.flux.numpy())


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_shard_is_never_overwritten(tmp_path):
    path = write_shard(tmp_path, redshifts(NAMES), 3)
    before = path.read_bytes()
    with pytest.raises(ObservationError, match=r"part-00003\.parquet: exists already"):
        write_shard(tmp_path, redshifts(NAMES, seed=1), 3)
    assert path.read_bytes() == before


KILLED_WRITER = """
import os, signal, sys
import numpy as np
from armillary.data import dataset
from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation

def write_half_and_die(table, stream, **options):
    stream.write(b"PAR1" + bytes(5000))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

dataset.pq.write_table = write_half_and_die
dataset.write_shard(sys.argv[1], ScalarObservation(modality("scalar/redshift"), ["z"], np.ones(1)), 1)
"""


def test_a_killed_writer_leaves_no_shard_behind(tmp_path):
    write_shard(tmp_path, redshifts(NAMES), 0)
    run = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], env=os.environ, check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "scalar" / "redshift").iterdir())) == 2  # the shard, and what the dead process began
    assert ObservationDataset(tmp_path).object_ids("scalar/redshift") == NAMES
    write_shard(tmp_path, redshifts(["f"]), 1)
    assert ObservationDataset(tmp_path).object_ids("scalar/redshift") == [*NAMES, "f"]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_shard(tmp_path, redshifts(NAMES), 0)
    assert list((tmp_path / "scalar" / "redshift").iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, share):
    path = write_shard(tmp_path, images(NAMES), 0)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ObservationError, match=r"part-00000\.parquet: expected a whole Parquet file"):
        ObservationDataset(tmp_path)


def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path):
    path = write_shard(tmp_path, images(NAMES, size=(40, 40)), 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    opened = ObservationDataset(tmp_path)
    with pytest.raises(ObservationError, match=r"part-00000\.parquet: the file is damaged"):
        opened.read("image/hsc")
    with pytest.raises(ObservationError, match=r"part-00000\.parquet: the file is damaged"):
        list(opened.batches("image/hsc", 2))


def test_an_object_that_comes_twice_is_an_error_that_names_it_and_both_files(tmp_path):
    with pytest.raises(ObservationError, match=r"object b comes twice in scalar/redshift"):
        write_shard(tmp_path, redshifts(["a", "b", "b"]), 0)
    write_shard(tmp_path, redshifts(["a", "b"]), 0)
    write_shard(tmp_path, redshifts(["c", "b"]), 1)
    with pytest.raises(ObservationError, match=r"part-00001.*object b of scalar/redshift comes twice.*part-00000"):
        ObservationDataset(tmp_path).object_ids("scalar/redshift")


def test_a_shard_in_the_folder_of_another_modality_is_an_error(tmp_path):
    path = write_shard(tmp_path, redshifts(NAMES), 0)
    wrong = tmp_path / "scalar" / "stellar_mass" / "part-00000.parquet"
    wrong.parent.mkdir()
    path.rename(wrong)
    with pytest.raises(ObservationError, match=r"stellar_mass.*expected a shard of scalar/stellar_mass, found one of"):
        ObservationDataset(tmp_path)


def test_shards_with_different_cards_are_an_error(tmp_path):
    write_shard(tmp_path, spectra(["a"]), 0)
    card = parse_card({**DESI.card.model_dump(mode="json"), "depth": 20.0}, "desi")
    other = SpectrumObservation(
        Modality("spectrum/desi", card), ["b"], np.ones((1, 3)), [4.0, 5.0, 6.0], np.ones((1, 3))
    )
    write_shard(tmp_path, other, 1)
    with pytest.raises(ObservationError, match=r"part-00001.*its instrument card differs"):
        ObservationDataset(tmp_path)


def test_a_value_spoilt_on_disk_names_file_and_object(tmp_path):
    path = write_shard(tmp_path, redshifts(["a", "b", "c"]), 0)
    table = pq.read_table(path)
    place = table.column_names.index("values")
    spoilt = table.set_column(place, "values", pa.array([0.1, 0.2, 77.0], pa.float32()))
    pq.write_table(spoilt, path)
    with pytest.raises(ObservationError, match=r"part-00000\.parquet: scalar/redshift, object c: .*77"):
        ObservationDataset(tmp_path).read("scalar/redshift")


def test_files_of_another_kind_or_version_are_errors(tmp_path):
    path = write_shard(tmp_path, redshifts(NAMES), 0)
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"armillary"])
    pq.write_table(table.replace_schema_metadata({b"armillary": json.dumps({**header, "version": 99})}), path)
    with pytest.raises(ObservationError, match="expected format version 1, found 99"):
        ObservationDataset(tmp_path)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ObservationError, match="expected a shard of Armillary"):
        ObservationDataset(tmp_path)


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path):
    with pytest.raises(ObservationError, match="no such dataset folder"):
        ObservationDataset(tmp_path / "nowhere")
    with pytest.raises(ObservationError, match="found none"):
        ObservationDataset(tmp_path)
    write_shard(tmp_path, redshifts(NAMES), 0)
    opened = ObservationDataset(tmp_path)
    with pytest.raises(ObservationError, match=r"no modality 'image/hsc'; it holds \['scalar/redshift'\]"):
        opened.read("image/hsc")
    with pytest.raises(ObservationError, match="scalar/redshift has no object 'x'"):
        opened.read("scalar/redshift", ["a", "x"])
    with pytest.raises(ObservationError, match="no row"):
        opened.read("scalar/redshift", [])
    with pytest.raises(ObservationError, match="batch_size"):
        next(opened.batches("scalar/redshift", 0))
