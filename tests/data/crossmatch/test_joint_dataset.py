"""Joint datasets: all observations of one object under one id, whatever surveys they come from; resumable."""

import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from armillary.data.crossmatch import joint_dataset
from armillary.data.crossmatch.joint_dataset import crossmatch_datasets
from armillary.data.crossmatch.sky_sources import SkySource
from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation, SpectrumObservation
from armillary.data.validate import validate_dataset

from .conftest import ARCSEC

COUNT = 40
RA, DEC = 150.0 + 0.01 * np.arange(COUNT), np.linspace(-30, 60, COUNT)


def images(rows):
    flux = np.random.default_rng(0).normal(size=(COUNT, 2, 6, 6)).astype(np.float32)[rows]
    names = [f"hsc{row}" for row in rows]
    return ImageObservation(
        modality("image/hsc"), names, flux, ("g", "r"), np.ones_like(flux), ra=RA[rows], dec=DEC[rows]
    )


def spectra(rows):
    flux = np.random.default_rng(1).normal(size=(COUNT, 30)).astype(np.float32)[rows]
    names = [f"desi{row}" for row in rows]
    grid = 4000 + 0.8 * np.arange(30)
    dec = DEC[rows] + 0.3 * ARCSEC
    return SpectrumObservation(modality("spectrum/desi"), names, flux, grid, np.ones_like(flux), ra=RA[rows], dec=dec)


def redshifts(rows, prefix="desi", shift=0.3, name="scalar/redshift"):
    names = [f"{prefix}{row}" for row in rows]
    return ScalarObservation(modality(name), names, rows / 100, ra=RA[rows], dec=DEC[rows] + shift * ARCSEC)


@pytest.fixture
def surveys(tmp_path):
    """hsc has objects 0-29, desi 10-39 (spectra of all, redshifts of all but one), sdss, a table, 5-14."""
    write_dataset(tmp_path / "hsc", [images(np.arange(30))])
    write_dataset(tmp_path / "desi", [spectra(np.arange(10, 40)), redshifts(np.arange(11, 40))])
    rows = np.arange(5, 15)
    lines = [f"{row},{RA[row]},{DEC[row] - 0.2 * ARCSEC}\n" for row in rows]
    (tmp_path / "sdss.csv").write_text("object_id,ra,dec\n" + "".join(lines))
    return tmp_path


def sources(folder):
    return [folder / "hsc", folder / "desi", folder / "sdss.csv"]


def test_all_observations_of_an_object_come_under_one_id_and_one_position(surveys):
    summary = crossmatch_datasets(sources(surveys), surveys / "joint", 1.0)
    joint = ObservationDataset(surveys / "joint")
    assert [m.name for m in joint.modalities] == ["image/hsc", "scalar/redshift", "spectrum/desi"]
    rows = np.arange(5, 30)
    assert sorted(joint.object_ids("image/hsc")) == sorted(f"hsc:hsc{row}" for row in rows)
    both = np.arange(10, 30)
    spectrum = joint.read("spectrum/desi", [f"hsc:hsc{row}" for row in both])
    np.testing.assert_array_equal(spectrum.flux.numpy(), spectra(both).flux.numpy())
    np.testing.assert_array_equal(spectrum.ra.numpy(), RA[both])
    np.testing.assert_array_equal(spectrum.dec.numpy(), DEC[both])
    image = joint.read("image/hsc", [f"hsc:hsc{row}" for row in rows])
    np.testing.assert_array_equal(image.flux.numpy(), images(rows).flux.numpy())
    redshift = joint.read("scalar/redshift", ["hsc:hsc11", "hsc:hsc29"])
    np.testing.assert_allclose(redshift.values.numpy(), [0.11, 0.29], rtol=1e-6)
    # 5-9 hsc and sdss, 10-14 all three, 15-29 hsc and desi.
    assert summary.num_objects == 25
    assert summary.num_by_surveys == {2: 20, 3: 5}
    assert summary.num_rows == {"image/hsc": 25, "scalar/redshift": 19, "spectrum/desi": 20}


def test_the_associations_say_who_is_who(surveys):
    crossmatch_datasets(sources(surveys), surveys / "joint", 1.0, min_surveys=1)
    table = pq.read_table(surveys / "joint" / "associations.parquet")
    rows = {row["object_id"]: row for row in table.to_pylist()}
    assert len(rows) == COUNT
    assert rows["hsc:hsc12"] == {
        "object_id": "hsc:hsc12",
        "ra": RA[12],
        "dec": DEC[12],
        "num_surveys": 3,
        "hsc_object_id": "hsc12",
        "hsc_ra": RA[12],
        "hsc_dec": DEC[12],
        "hsc_separation": 0.0,
        "desi_object_id": "desi12",
        "desi_ra": RA[12],
        "desi_dec": DEC[12] + 0.3 * ARCSEC,
        "desi_separation": pytest.approx(0.3, rel=1e-6),
        "sdss_object_id": "12",
        "sdss_ra": RA[12],
        "sdss_dec": DEC[12] - 0.2 * ARCSEC,
        "sdss_separation": pytest.approx(0.2, rel=1e-6),
    }
    alone = rows["desi:desi35"]
    assert (alone["num_surveys"], alone["hsc_object_id"], alone["hsc_separation"]) == (1, None, None)
    assert (
        pq.ParquetFile(surveys / "joint" / "associations.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    )
    assert ObservationDataset(surveys / "joint").num_objects("spectrum/desi") == 30


def test_pairs_alone_are_written_where_an_object_may_have_several_partners(surveys):
    left, right = surveys / "hsc", surveys / "desi"
    summary = crossmatch_datasets([left, right], surveys / "pairs", 400.0, mode="all")
    table = pq.read_table(surveys / "pairs" / "associations.parquet").to_pylist()
    assert summary.num_objects == len(table) >= 20
    assert summary.num_rows == {}
    first = next(row for row in table if row["hsc_object_id"] == "hsc12" and row["desi_object_id"] == "desi12")
    assert first["separation"] == pytest.approx(0.3, rel=1e-6)
    with pytest.raises(ObservationError, match="mode all matches two catalogues, found 3"):
        crossmatch_datasets(sources(surveys), surveys / "more", 1.0, mode="all")


def test_a_modality_that_two_datasets_hold_is_an_error_that_names_both(surveys):
    write_dataset(surveys / "other", [redshifts(np.arange(30), "other", 0.1)])
    with pytest.raises(ObservationError, match=r"desi and .*other both hold scalar/redshift.*--take other="):
        crossmatch_datasets([surveys / "desi", surveys / "other"], surveys / "joint", 1.0)
    assert not (surveys / "joint").exists()
    chosen = {"desi": ["spectrum/desi"]}
    crossmatch_datasets([surveys / "desi", surveys / "other"], surveys / "joint", 1.0, modalities=chosen)
    joint = ObservationDataset(surveys / "joint")
    assert joint.read("scalar/redshift", ["desi:desi11"]).values.item() == pytest.approx(0.11)
    assert joint.num_objects("spectrum/desi") == 20


KILLED = """
import os, signal, sys
from armillary.data.crossmatch import joint_dataset

def die(*arguments, **options):
    print("imported", [name for name in ("dask", "lsdb") if name in sys.modules], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

whole, begun = joint_dataset._members_in, []
def die_at_the_second_file(file, members):
    begun.append(file)
    yield from (die() if len(begun) == 2 else whole(file, members))

step, folder = sys.argv[1:]
if step == "associations":
    joint_dataset.pq.write_table = die
else:
    joint_dataset._members_in = die_at_the_second_file
sources = [f"{folder}/hsc", f"{folder}/desi", f"{folder}/sdss.csv"]
joint_dataset.crossmatch_datasets(sources, f"{folder}/joint", 1.0)
"""


def kill_at(step, folder):
    command = [sys.executable, "-c", KILLED, step, str(folder)]
    run = subprocess.run(command, env=os.environ, check=False, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert run.stdout == "imported []\n"  # short catalogues wait for no cluster's libraries


def interrupt_at_the_end(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_dataset.DatasetWriter, "finish", lambda _self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            crossmatch_datasets(sources(folder), folder / "joint", 1.0)


@pytest.mark.parametrize("step, files_left", [("associations", 7), ("joining", 6), ("merging", 0)])
def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(surveys, monkeypatch, step, files_left):
    """Of the sources' seven files, only those are read again that were not done."""
    if step == "merging":
        interrupt_at_the_end(surveys)
    else:
        kill_at(step, surveys)
    read = []
    whole = joint_dataset._members_in

    def counted(file, members):
        read.append(file)
        return whole(file, members)

    monkeypatch.setattr(joint_dataset, "_members_in", counted)
    summary = crossmatch_datasets(sources(surveys), surveys / "joint", 1.0)
    assert len(read) == files_left
    assert summary == crossmatch_datasets(sources(surveys), surveys / "fresh", 1.0)

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.parquet")}

    assert content(surveys / "joint") == content(surveys / "fresh")
    assert validate_dataset(surveys / "joint") == []


def test_an_output_begun_with_other_settings_is_refused(surveys):
    crossmatch_datasets(sources(surveys), surveys / "joint", 1.0)
    with pytest.raises(ObservationError, match="joint: was begun with other radius, sources"):
        crossmatch_datasets(sources(surveys)[:2], surveys / "joint", 2.0)
    (surveys / "full").mkdir()
    (surveys / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ObservationError, match="full: expected an empty or new folder"):
        crossmatch_datasets(sources(surveys), surveys / "full", 1.0)
    with pytest.raises(ObservationError, match="must lie apart from the source"):
        crossmatch_datasets(sources(surveys), surveys / "hsc" / "joint", 1.0)


def test_a_source_that_was_refused_may_be_described_anew(surveys):
    lines = "object_id,ra,dec\n1,150.0,-30.0\n2,150.0,-30.0\n"
    (surveys / "doubled.csv").write_text(lines)
    output = surveys / "joint"
    with pytest.raises(ObservationError, match="doubled: objects 1 and 2 are at exactly one place"):
        crossmatch_datasets([surveys / "hsc", surveys / "doubled.csv"], output, 1.0)
    allowed = SkySource(surveys / "doubled.csv", allow_duplicates=True)
    assert crossmatch_datasets([surveys / "hsc", allowed], output, 1.0).num_objects == 1


def test_groups_do_not_depend_on_the_engine(surveys):
    for engine in ("tree", "lsdb"):
        crossmatch_datasets(sources(surveys), surveys / engine, 1.0, engine=engine)
    assert (surveys / "tree" / "associations.parquet").read_bytes() == (
        surveys / "lsdb" / "associations.parquet"
    ).read_bytes()


def test_no_match_at_all_is_an_empty_table_and_no_dataset(surveys):
    (surveys / "far.csv").write_text("object_id,ra,dec\n1,10.0,-80.0\n")
    summary = crossmatch_datasets([surveys / "hsc", SkySource(surveys / "far.csv")], surveys / "joint", 1.0)
    assert (summary.num_objects, summary.num_by_surveys, summary.num_rows) == (0, {}, {})
    assert len(pq.read_table(surveys / "joint" / "associations.parquet")) == 0
