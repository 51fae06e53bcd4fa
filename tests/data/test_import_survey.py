"""Importing surveys: real files, deaths in the middle, files that fail, and objects that come twice."""

import multiprocessing
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from armillary.data.dataset import ObservationDataset
from armillary.data.import_survey import ImportSummary, find_source, import_survey, source_settings
from armillary.data.observations import ObservationError
from armillary.data.readers import survey_sources
from armillary.data.readers.catalogues import ScalarTableSettings
from armillary.data.readers.desi import read_desi
from armillary.data.readers.fits_sources import DesiSettings, PlateSettings
from armillary.data.real_files import REAL_FOLDER, real_file
from armillary.settings import SettingsError

GALAXY, FIBRES = real_file("desi-coadd-4-80613.fits"), real_file("desi-coadd-sv3-dark-26065.fits")
STAR = real_file("sdss-spec-0266-51602-0031.fits")
TABLE = ScalarTableSettings(columns={"scalar/redshift": "z"}, object_id="id", ra="ra", dec="dec")


def write_coadds(folder, count):
    """Copies of a real coadd of 0.6 MB, each of another target."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        with fits.open(GALAXY) as hdus:
            hdus["FIBERMAP"].data["TARGETID"] = 1000 + number
            hdus["FIBERMAP"].data["TARGET_RA"] = 10.0 * number
            for arm in "BRZ":
                del hdus[f"{arm}_RESOLUTION"]
            hdus.writeto(folder / f"coadd-{number:02d}.fits", checksum=True)
    return sorted(folder.glob("coadd-*.fits"))


def write_tables(folder, *names):
    """CSV tables of objects with these ids; the position follows from the id."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(names):
        values = np.array(ids, float)
        content = {"id": ids, "z": values / 1000, "ra": values, "dec": np.zeros(len(ids))}
        Table(content).write(folder / f"{number}.csv", overwrite=True)
    return folder


def content_of(folder):
    """Everything a dataset holds, by modality and object."""
    dataset = ObservationDataset(folder)
    found = {}
    for modality in dataset.modalities:
        observation = dataset.read(modality.name)
        for row, name in enumerate(observation.object_id):
            values = {k: v[row] for k, v in vars(observation).items() if isinstance(v, torch.Tensor)}
            found[modality.name, name] = values
    return found


def assert_same_datasets(first, second):
    assert first.keys() == second.keys()
    for key, values in first.items():
        for name, value in values.items():
            torch.testing.assert_close(second[key][name], value, rtol=0, atol=0, equal_nan=True)


def ids(folder, name):
    return sorted(ObservationDataset(folder).object_ids(name))


# ---- what goes in ----------------------------------------------------------------------------------------------------


def test_real_spectra_and_redshifts_become_a_dataset(tmp_path):
    summary = import_survey("desi-coadd", [REAL_FOLDER], tmp_path / "d")
    assert summary.num_objects == {"spectrum/desi": 3, "scalar/redshift": 1}
    assert (summary.num_files, summary.num_resumed, summary.skipped) == (2, 0, {})
    read = ObservationDataset(tmp_path / "d").read("spectrum/desi", ["39633345008634465"])
    expected = read_desi(GALAXY)
    assert torch.equal(read.flux, expected.flux)
    assert torch.equal(read.mask, expected.mask)
    assert torch.equal(read.resolving_power, expected.resolving_power)
    assert (read.ra.item(), read.dec.item()) == (expected.ra.item(), expected.dec.item())


def test_surveys_are_added_to_one_dataset(tmp_path):
    import_survey("desi-coadd", [GALAXY], tmp_path / "d")
    import_survey("sdss-spec", [STAR], tmp_path / "d")
    import_survey("sdss-galaxies", [real_file("sdss-galaxies-5000.fits")], tmp_path / "d")
    dataset = ObservationDataset(tmp_path / "d")
    assert dataset.num_objects("scalar/redshift") == 5002
    assert {"spectrum/desi", "spectrum/sdss", "scalar/sdss_r"} <= {modality.name for modality in dataset.modalities}


def test_objects_without_a_position_are_refused_unless_they_may_be(tmp_path):
    manga = real_file("manga-spectra.fits.gz")
    with pytest.raises(ObservationError, match=r"manga-spectra\.fits\.gz: spectrum/manga, object manga-0: ra and dec"):
        import_survey("manga", [manga], tmp_path / "d")
    imported = import_survey("manga", [manga], tmp_path / "d", allow_unplaced=True)
    assert imported.num_objects == {"spectrum/manga": 7, "scalar/redshift": 8}


def test_settings_of_a_source_are_used(tmp_path):
    plate = real_file("boss-spPlate-4055-55359.fits")
    with pytest.raises(ObservationError, match="estimate_noise"):
        import_survey("boss-plate", [plate], tmp_path / "d", allow_unplaced=True)
    settings = PlateSettings(estimate_noise=True)
    summary = import_survey("boss-plate", [plate], tmp_path / "d", settings, allow_unplaced=True)
    assert summary.num_objects == {"spectrum/sdss": 20}


def test_many_small_files_share_a_piece_and_large_ones_do_not(tmp_path, monkeypatch):
    files = write_coadds(tmp_path / "in", 5)
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", files[0].stat().st_size)
    monkeypatch.setattr("armillary.data.import_survey.RUN_BYTES", 2 * files[0].stat().st_size)
    import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "shared")
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", 0)
    import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "alone")
    assert_same_datasets(content_of(tmp_path / "shared"), content_of(tmp_path / "alone"))


@pytest.mark.parametrize(
    "source, settings, error",
    [
        ("desi-coad", None, LookupError),
        ("scalar-table", None, SettingsError),
        ("sdss-spec", DesiSettings(), LookupError),
        ("desi-coadd", TABLE, LookupError),
    ],
)
def test_unknown_sources_and_wrong_settings_are_refused(tmp_path, source, settings, error):
    with pytest.raises(error, match=r"desi-coadd|columns: required|takes no settings|takes DesiSettings"):
        import_survey(source, [GALAXY], tmp_path / "d", settings)


def test_settings_are_read_from_yaml_and_words(tmp_path):
    (tmp_path / "s.yaml").write_text("columns: {scalar/redshift: z}\nobject_id: id\n")
    settings = source_settings("scalar-table", tmp_path / "s.yaml", ["ra=alpha", "dec=delta"])
    assert (settings.ra, settings.columns) == ("alpha", {"scalar/redshift": "z"})
    with pytest.raises(SettingsError, match="did you mean 'combine'"):
        source_settings("desi-spectra", None, ["combin=false"])
    with pytest.raises(LookupError, match="has no settings"):
        source_settings("sdss-spec", None, ["a=1"])
    assert find_source("desi-coadd").settings is DesiSettings


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_path_without_files_is_an_error(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ObservationError, match=rf"{path}: "):
        import_survey("desi-coadd", [tmp_path / path], tmp_path / "d")


# ---- going on --------------------------------------------------------------------------------------------------------


def test_the_same_import_again_reads_nothing(tmp_path, monkeypatch):
    import_survey("desi-coadd", [REAL_FOLDER], tmp_path / "d")
    before = content_of(tmp_path / "d")

    def forbidden(piece, settings):
        raise AssertionError(f"{piece} was read again")

    monkeypatch.setitem(
        survey_sources.SOURCES, "desi-coadd", replace(survey_sources.SOURCES["desi-coadd"], read=forbidden)
    )
    summary = import_survey("desi-coadd", [REAL_FOLDER], tmp_path / "d")
    assert (summary.num_files, summary.num_resumed) == (0, 2)
    assert_same_datasets(before, content_of(tmp_path / "d"))


def test_new_files_are_added_to_what_was_imported(tmp_path):
    files = write_coadds(tmp_path / "in", 3)
    import_survey("desi-coadd", files[:2], tmp_path / "d")
    summary = import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "d")
    assert (summary.num_files, summary.num_resumed) == (1, 2)
    assert ids(tmp_path / "d", "spectrum/desi") == ["1000", "1001", "1002"]


def die_in(name, file_number, folder, output):
    """Import, and kill this process when the first spectrum of the n-th file that it reads is under way."""
    source, opened = survey_sources.SOURCES[name], []

    def read(piece, settings):
        opened.append(piece)
        for observation in source.read(piece, settings):
            yield observation
            if len(opened) == file_number:
                os.kill(os.getpid(), signal.SIGKILL)

    survey_sources.SOURCES[name] = replace(source, read=read)
    import_survey(name, [folder], output)


@pytest.mark.parametrize("small_files", [0, 2**20])
def test_an_import_killed_at_each_file_goes_on_to_the_same_dataset(tmp_path, monkeypatch, small_files):
    write_coadds(tmp_path / "in", 4)
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", small_files)
    monkeypatch.setattr("armillary.data.import_survey.FILES_PER_PIECE", 2)
    import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "whole")
    exit_codes = []
    for file_number in (3, 1, 2):
        process = multiprocessing.get_context("fork").Process(
            target=die_in, args=("desi-coadd", file_number, tmp_path / "in", tmp_path / "killed")
        )
        process.start()
        process.join(60)
        exit_codes.append(process.exitcode)
    assert exit_codes == [-signal.SIGKILL] * 3
    assert not (tmp_path / "killed" / "spectrum").exists()
    summary = import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "killed")
    assert (summary.num_files, summary.num_resumed) == ((2, 2) if small_files else (1, 3))
    assert_same_datasets(content_of(tmp_path / "whole"), content_of(tmp_path / "killed"))


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 2**20], ids=["large", "small"])
def files_with_a_bad_one(tmp_path, monkeypatch, request):
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", request.param)
    files = write_coadds(tmp_path / "in", 3)
    files[1].write_bytes(files[1].read_bytes()[:100000])
    return files


def test_a_bad_file_stops_the_import_and_is_named(tmp_path, files_with_a_bad_one):
    with pytest.raises(ObservationError, match=r"coadd-01\.fits: the file is cut short"):
        import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "d")


def test_an_import_that_fails_at_once_leaves_the_dataset_as_it_was(tmp_path, files_with_a_bad_one):
    import_survey("desi-coadd", files_with_a_bad_one[:1], tmp_path / "d")
    before = sorted(path for path in (tmp_path / "d").rglob("*"))
    with pytest.raises(ObservationError, match=r"coadd-01\.fits"):
        import_survey("desi-coadd", files_with_a_bad_one[1:2], tmp_path / "d")
    assert sorted(path for path in (tmp_path / "d").rglob("*")) == before


def test_bad_files_are_left_out_on_request_and_reported(tmp_path, files_with_a_bad_one):
    summary = import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "d", on_error="skip")
    assert list(summary.skipped) == [files_with_a_bad_one[1]]
    assert summary.num_objects == {"spectrum/desi": 2}
    assert ids(tmp_path / "d", "spectrum/desi") == ["1000", "1002"]
    report = summary.report()
    assert "1 file could not be read" in report
    assert re.search(r"coadd-01\.fits: the file is cut short", report)


def test_a_mended_file_is_imported_by_the_next_call(tmp_path, files_with_a_bad_one):
    import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "d", on_error="skip")
    write_coadds(tmp_path / "mended", 2)
    files_with_a_bad_one[1].write_bytes((tmp_path / "mended" / "coadd-01.fits").read_bytes())
    summary = import_survey("desi-coadd", [tmp_path / "in"], tmp_path / "d")
    assert (summary.num_files, summary.num_resumed) == (1, 2)
    assert ids(tmp_path / "d", "spectrum/desi") == ["1000", "1001", "1002"]


def test_nothing_of_a_file_that_fails_late_is_in_the_dataset(tmp_path):
    """The second batch of the file holds a value that no redshift has."""
    folder = write_tables(tmp_path / "in", [1, 2, 3], [4, 5])
    lines = (folder / "0.csv").read_text().splitlines()
    (folder / "0.csv").write_text("\n".join([*lines[:3], "3,99.0,3.0,0.0"]))
    summary = import_survey("scalar-table", [folder], tmp_path / "d", TABLE, on_error="skip")
    assert ids(tmp_path / "d", "scalar/redshift") == ["4", "5"]
    assert re.search(r"0\.csv, column z: scalar/redshift, object 3: value must lie in", summary.report())


def test_all_files_bad_is_an_error_even_so(tmp_path, files_with_a_bad_one):
    with pytest.raises(ObservationError, match=r"no file could be read; the first: .*coadd-01"):
        import_survey("desi-coadd", files_with_a_bad_one[1:2], tmp_path / "d", on_error="skip")


@pytest.mark.parametrize("small_files", [0, 2**20])
def test_an_object_in_two_files_is_named_with_both(tmp_path, monkeypatch, small_files):
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", small_files)
    folder = write_tables(tmp_path / "in", [1, 2], [3, 2], [5])
    with pytest.raises(
        ObservationError, match=r"\.csv: object 2 of scalar/redshift comes twice; it is also in .*\.csv"
    ):
        import_survey("scalar-table", [folder], tmp_path / "d", TABLE)
    # The call may be made again without one of them: nothing of it is left behind.
    import_survey("scalar-table", [folder / "0.csv", folder / "2.csv"], tmp_path / "d", TABLE)
    assert ids(tmp_path / "d", "scalar/redshift") == ["1", "2", "5"]


@pytest.mark.parametrize("small_files, files_per_piece", [(0, 9), (2**20, 9), (2**20, 2)])
def test_of_two_files_with_an_object_in_common_one_is_left_out(tmp_path, monkeypatch, small_files, files_per_piece):
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", small_files)
    monkeypatch.setattr("armillary.data.import_survey.FILES_PER_PIECE", files_per_piece)
    folder = write_tables(tmp_path / "in", [1, 2], [7, 8], [3, 2], [5])
    summary = import_survey("scalar-table", [folder], tmp_path / "d", TABLE, on_error="skip")
    assert len(summary.skipped) == 1
    kept = ids(tmp_path / "d", "scalar/redshift")
    assert kept in (["1", "2", "5", "7", "8"], ["2", "3", "5", "7", "8"])
    assert summary.num_objects == {"scalar/redshift": 5}


def test_no_modality_is_merged_when_another_has_an_object_twice(tmp_path, monkeypatch):
    """Two coadds of one target, of which the first alone has a redshift: redshifts could be merged, spectra cannot."""
    monkeypatch.setattr("armillary.data.import_survey.SMALL_FILE_BYTES", 0)
    for name in ("coadd-a.fits", "coadd-b.fits"):
        (tmp_path / name).write_bytes(GALAXY.read_bytes())
    (tmp_path / "redrock-b.fits").write_bytes(real_file("desi-redrock-4-80613.fits").read_bytes())
    with pytest.raises(ObservationError, match=r"object 39633345008634465 of spectrum/desi comes twice"):
        import_survey("desi-coadd", [tmp_path], tmp_path / "d")
    assert not (tmp_path / "d" / "scalar").exists()
    import_survey("desi-coadd", [tmp_path / "coadd-a.fits"], tmp_path / "d")
    assert ids(tmp_path / "d", "spectrum/desi") == ["39633345008634465"]


def test_an_object_that_the_dataset_has_already_is_an_error(tmp_path):
    folder = write_tables(tmp_path / "in", [1, 2], [3, 2])
    import_survey("scalar-table", [folder / "0.csv"], tmp_path / "d", TABLE)
    with pytest.raises(ObservationError, match=r"1\.csv: object 2 of scalar/redshift comes twice"):
        import_survey("scalar-table", [folder], tmp_path / "d", TABLE)
    assert ids(tmp_path / "d", "scalar/redshift") == ["1", "2"]


def test_other_settings_make_other_pieces_of_the_same_file(tmp_path):
    folder = write_tables(tmp_path / "in", [1, 2])
    import_survey("scalar-table", [folder], tmp_path / "d", TABLE)
    other = TABLE.model_copy(update={"columns": {"scalar/stellar_mass": "dec"}, "missing_values": (0.0,)})
    summary = import_survey("scalar-table", [folder], tmp_path / "d", other)
    assert isinstance(summary, ImportSummary)
    assert (summary.num_files, summary.num_objects) == (1, {"scalar/stellar_mass": 2})
