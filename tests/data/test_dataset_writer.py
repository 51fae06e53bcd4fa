"""Datasets are written whole, resumably, in files of bounded size; what is refused changes nothing."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from armillary.data import parquet_files
from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import DatasetWriter, finish_catalogues, write_dataset, write_partition
from armillary.data.instruments import parse_card
from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation, SpectrumObservation
from armillary.data.sky_partition import healpix_index

REDSHIFT = modality("scalar/redshift")


def sky(count, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))


def redshifts(count, seed=0, prefix="z"):
    ra, dec = sky(count, seed)
    names = [f"{prefix}{row}" for row in range(count)]
    values = np.random.default_rng(seed).uniform(0, 1, count)
    return ScalarObservation(REDSHIFT, names, values, ra=ra, dec=dec)


def images(count, seed=0):
    ra, dec = sky(count, seed)
    flux = np.random.default_rng(seed).normal(size=(count, 1, 20, 20))
    return ImageObservation(modality("image/hsc"), [f"z{row}" for row in range(count)], flux, ["g"], ra=ra, dec=dec)


def tree(folder):
    """Every file of a dataset and its bytes, but for what only says where it came from."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "pieces.json"
    }


def test_files_are_bounded_and_lie_where_their_objects_are(tmp_path):
    observed = images(300)
    with DatasetWriter(tmp_path, file_bytes=64 * 1024) as writer:
        for start in range(0, 300, 70):
            writer.write(observed.select(slice(start, start + 70)))
    files = ObservationDataset(tmp_path).files("image/hsc")
    assert len(files) > 20
    for file in files:
        assert file.num_rows * 20 * 20 * 8 < 2 * 64 * 1024
        table = file.read_identity()
        index = healpix_index(table["ra"].to_numpy(), table["dec"].to_numpy())
        assert np.array_equal(index, table["_healpix_29"].to_numpy())
        assert (index >= file.pixel.first).all()
        assert (index < file.pixel.stop).all()
        assert (np.diff(index) >= 0).all()


def test_the_order_in_which_observations_come_changes_no_byte(tmp_path):
    observed = images(100)
    write_dataset(tmp_path / "one", [observed])
    with DatasetWriter(tmp_path / "other") as writer:
        for rows in (slice(60, 100), slice(0, 10), slice(10, 60)):
            writer.write(observed.select(rows))
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


def test_observations_join_a_dataset_that_stands(tmp_path):
    first, second = redshifts(40), redshifts(30, seed=1, prefix="new")
    write_dataset(tmp_path / "twice", [first])
    write_dataset(tmp_path / "twice", [second])
    write_dataset(tmp_path / "once", [first, second])
    assert tree(tmp_path / "twice") == tree(tmp_path / "once")


def test_a_modality_that_is_added_leaves_the_others_untouched(tmp_path):
    write_dataset(tmp_path, [redshifts(40)])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scalar").rglob("*")}
    write_dataset(tmp_path, [images(10)])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scalar").rglob("*")} == before
    assert len(ObservationDataset(tmp_path).modalities) == 2


def test_an_object_without_a_position_is_refused_by_name_or_kept_apart(tmp_path):
    lost = ScalarObservation(REDSHIFT, ["here", "lost"], [0.1, 0.2], ra=[10.0, np.nan], dec=[1.0, 2.0])
    with pytest.raises(ObservationError, match=r"scalar/redshift, object lost: ra and dec must be known"):
        write_dataset(tmp_path / "refused", [lost])
    write_dataset(tmp_path / "kept", [lost], allow_unplaced=True)
    assert [p.name for p in (tmp_path / "kept/scalar/redshift/unplaced").iterdir()] == ["part-00000.parquet"]
    opened = ObservationDataset(tmp_path / "kept")
    assert opened.object_ids("scalar/redshift") == ["here", "lost"]
    assert opened.read("scalar/redshift", ["lost"]).values.tolist() == [pytest.approx(0.2)]


def test_an_object_that_comes_twice_is_refused_by_name_and_nothing_changes(tmp_path):
    write_dataset(tmp_path, [redshifts(10)])
    before = tree(tmp_path)
    with pytest.raises(ObservationError, match="object a comes twice"):
        write_dataset(tmp_path, [ScalarObservation(REDSHIFT, ["a", "a"], [0.1, 0.2], ra=[1.0, 2.0], dec=[0.0, 0.0])])
    again = redshifts(10).select([4])
    with pytest.raises(ObservationError, match=r"run-000000\.parquet: object z4 of scalar/redshift comes twice; it is"):
        write_dataset(tmp_path, [again])
    assert {name: content for name, content in tree(tmp_path).items() if ".staging" not in name} == before
    write_dataset(tmp_path, [redshifts(1, seed=5, prefix="other")])  # what was refused does not stay in the way
    assert ObservationDataset(tmp_path).num_objects("scalar/redshift") == 11


def test_two_cards_of_one_instrument_are_refused(tmp_path):
    desi = modality("spectrum/desi")
    card = parse_card({**desi.card.model_dump(mode="json"), "depth": 20.0}, "desi")
    spectra = [
        SpectrumObservation(m, [name], np.ones((1, 3)), [4.0, 5.0, 6.0], np.ones((1, 3)), ra=[1.0], dec=[1.0])
        for m, name in ((desi, "a"), (Modality("spectrum/desi", card), "b"))
    ]
    with pytest.raises(ObservationError, match=r"its instrument card differs from that of"):
        write_dataset(tmp_path, spectra)


def test_pieces_that_are_done_are_known_before_and_after_finishing(tmp_path):
    writer = DatasetWriter(tmp_path)
    with writer.piece("tile 1"):
        writer.write(redshifts(5))
    with pytest.raises(ObservationError, match="comes twice"), writer.piece("tile 2"):
        writer.write(redshifts(5, prefix="y").select([0, 1, 1]))
    again = DatasetWriter(tmp_path)
    assert again.has_piece("tile 1")
    assert not again.has_piece("tile 2")
    again.finish()
    assert DatasetWriter(tmp_path).has_piece("tile 1")
    assert ObservationDataset(tmp_path).num_objects("scalar/redshift") == 5


def test_a_partition_is_written_directly_by_its_pixel(tmp_path):
    observed = redshifts(200)
    index = healpix_index(observed.ra.numpy(), observed.dec.numpy())
    for pixel in range(12):
        rows = np.flatnonzero(index >> 58 == pixel)
        write_partition(tmp_path, observed.select(rows.tolist()), 0, pixel)
    with pytest.raises(ObservationError, match=r"partition_info\.csv is missing: was the dataset's writing finished"):
        ObservationDataset(tmp_path)
    finish_catalogues(tmp_path)
    opened = ObservationDataset(tmp_path)
    assert opened.read("scalar/redshift", observed.object_id).values.tolist() == observed.values.tolist()
    with pytest.raises(ObservationError, match="exists already"):
        write_partition(tmp_path, observed.select(np.flatnonzero(index >> 58 == 3).tolist()), 0, 3)
    with pytest.raises(ObservationError, match=r"Npix=44\.parquet: object z0 at .* lies outside the file's pixel"):
        write_partition(tmp_path, observed, 1, 44)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_arguments):
        raise OSError(28, "No space left on device")

    writer = DatasetWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(parquet_files.os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            writer.write(redshifts(5))
    assert list((tmp_path / ".staging").iterdir()) == []
    writer.write(redshifts(5))
    writer.finish()
    assert ObservationDataset(tmp_path).num_objects("scalar/redshift") == 5


# Kills itself at the n-th rename or removal of a folder or file: every place where a death could leave a torn dataset.
MORTAL = """
import os, pathlib, shutil, signal, sys
sys.path.insert(0, sys.argv[3])
from test_dataset_writer import images, redshifts
from armillary.data import dataset_writer

deaths = int(sys.argv[2])
def mortal(function):
    def call(*arguments, **options):
        global deaths
        deaths -= 1
        if deaths == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

pathlib.Path.rename = mortal(pathlib.Path.rename)
shutil.rmtree = mortal(shutil.rmtree)
with dataset_writer.DatasetWriter(sys.argv[1], file_bytes=16 * 1024) as writer:
    for number in range(3):
        if not writer.has_piece(f"piece {number}"):
            with writer.piece(f"piece {number}"):
                rows = slice(10 * number, 10 * number + 10)
                writer.write(images(30).select(rows))
                writer.write(redshifts(30).select(rows))
"""


def test_a_writer_killed_at_any_step_goes_on_to_the_same_dataset(tmp_path, request):
    def run(folder, deaths):
        words = [sys.executable, "-c", MORTAL, str(folder), str(deaths), str(request.path.parent)]
        return subprocess.run(words, env=os.environ, capture_output=True, text=True, check=False)

    first = run(tmp_path / "whole", 0)
    assert first.returncode == 0, first.stderr
    expected = tree(tmp_path / "whole")
    assert not any(".staging" in name for name in expected)
    # Each life dies a few steps after it began, at another place each time; the last one lives.
    for life in (2, 5, 9, 14, 20, 27, 7, 11):
        died = run(tmp_path / "torn", life).returncode
        if died == 0:
            break
        assert died == -signal.SIGKILL
    assert run(tmp_path / "torn", 0).returncode == 0
    assert tree(tmp_path / "torn") == expected
