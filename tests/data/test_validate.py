"""The validator finds each way in which a dataset can be wrong, and says where."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import DatasetWriter, write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation
from armillary.data.validate import validate_dataset

NAMES = [f"o{row}" for row in range(40)]
RA = np.random.default_rng(0).uniform(0, 360, 40)
DEC = np.degrees(np.arcsin(np.random.default_rng(1).uniform(-1, 1, 40)))


@pytest.fixture
def folder(tmp_path):
    """A dataset of forty redshifts and images in several files, and one redshift without a position."""
    redshift = ScalarObservation(modality("scalar/redshift"), NAMES, np.full(40, 0.3), ra=RA, dec=DEC)
    flux = np.random.default_rng(2).normal(size=(40, 1, 32, 32))
    images = ImageObservation(modality("image/hsc"), NAMES, flux, ["g"], ra=RA, dec=DEC)
    lost = ScalarObservation(modality("scalar/redshift"), ["lost"], [0.5])
    write_dataset(tmp_path / "data", [redshift, images, lost], allow_unplaced=True)
    return tmp_path / "data"


def only(folder):
    """The one problem, as people see it."""
    (problem,) = validate_dataset(folder)
    return str(problem)


def first_file(folder, name="scalar/redshift"):
    return ObservationDataset(folder).files(name)[0].path


def rewrite(path, **columns):
    """Replace columns of a file by functions of the old ones."""
    table = pq.ParquetFile(path).read()
    for name, change in columns.items():
        field = table.schema.field(name)
        values = change(table[name].to_pylist())
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    pq.write_table(table, path)
    return table["object_id"].to_pylist()


def spoilt(values, row, value):
    return [value if place == row else old for place, old in enumerate(values)]


def test_a_whole_dataset_has_no_problem(folder):
    assert validate_dataset(folder) == []


def test_no_dataset_is_said(tmp_path):
    with pytest.raises(ObservationError, match="no such dataset folder"):
        validate_dataset(tmp_path / "nothing")
    assert "expected HATS catalogues" in only(tmp_path)


def test_a_missing_file_is_named(folder):
    path = first_file(folder)
    path.unlink()
    problems = list(map(str, validate_dataset(folder)))
    assert f"{path}: is listed in partition_info.csv, and missing" in problems
    assert any("hats.properties: hats_nrows must be" in problem for problem in problems)


def test_a_file_that_is_not_listed_is_named(folder):
    path = first_file(folder)
    other = path.parents[2] / "Norder=5" / "Dir=0" / "Npix=8000.parquet"
    other.parent.mkdir(parents=True)
    shutil.copy(path, other)
    assert any(str(p).startswith(f"{other}: is not listed") for p in validate_dataset(folder))


def test_unfinished_writing_is_said(folder):
    with DatasetWriter(folder).piece("half"):
        pass
    assert "writing was not finished" in only(folder)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_truncated_file_is_named_and_the_others_are_still_checked(folder, share):
    path = first_file(folder, "image/hsc")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    rewrite(first_file_of_scalars(folder), values=lambda old: spoilt(old, 0, 99.0))
    problems = list(map(str, validate_dataset(folder)))
    assert any(p.startswith(f"{path}: expected a whole Parquet file") for p in problems)
    assert any("99" in p for p in problems)


def first_file_of_scalars(folder):
    return min((folder / "scalar" / "redshift" / "dataset").rglob("Npix*.parquet"))


def test_a_flipped_bit_is_found_by_its_checksum(folder):
    path = first_file(folder, "image/hsc")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert only(folder).startswith(f"{path}: the file is damaged")


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("ra", float("nan"), r"object {}: ra and dec must be known, found \(nan"),
        ("ra", 400.0, r"object {}: ra must lie in \[0, 360\)"),
        ("dec", -91.0, r"object {}: ra must lie in \[0, 360\) and dec in \[-90, 90\]"),
        ("values", 77.0, r"object {}: value must lie in \[-0.01, 8.0\] dimensionless .*found 77"),
        ("_healpix_29", 5, r"object {}: _healpix_29 must be \d+ by its position, found 5"),
    ],
)
def test_a_wrong_value_names_file_object_and_rule(folder, column, value, message):
    path = first_file(folder)
    names = rewrite(path, **{column: lambda old: spoilt(old, 0, value)})
    problems = [str(problem) for problem in validate_dataset(folder)]
    assert any(re.search(re.escape(f"{path}: ") + ".*" + message.format(names[0]), problem) for problem in problems)


def test_an_object_elsewhere_than_its_file_is_found(folder):
    path = first_file(folder)
    rewrite(path, ra=lambda old: [(value + 120) % 360 for value in old])
    problems = " ".join(map(str, validate_dataset(folder)))
    assert "by its position" in problems
    assert "lies outside the file's pixel" in problems
    assert "and at (" in problems  # where the images say it is


def test_an_object_that_comes_twice_is_named_with_both_files(folder):
    first, second = (file.path for file in ObservationDataset(folder).files("scalar/redshift")[:2])
    name = pq.ParquetFile(first).read()["object_id"][0].as_py()
    rewrite(second, object_id=lambda old: spoilt(old, 0, name))
    problems = list(map(str, validate_dataset(folder)))
    assert f"{second}: object {name}: comes twice; it is also in {first}" in problems


def test_rows_out_of_order_are_found(tmp_path):
    redshift = ScalarObservation(modality("scalar/redshift"), NAMES, np.full(40, 0.3), ra=RA / 20, dec=DEC / 20)
    write_dataset(tmp_path, [redshift])
    path = first_file(tmp_path)
    table = pq.ParquetFile(path).read()
    pq.write_table(table.take(list(reversed(range(len(table))))), path)
    assert "rows must be sorted by _healpix_29" in only(tmp_path)


def test_another_instrument_card_in_one_file_is_found(folder):
    path = first_file(folder, "image/hsc")
    table = pq.ParquetFile(path).read()
    header = json.loads(table.schema.metadata[b"armillary"])
    header["card"]["pixel_scale"] = 0.2
    pq.write_table(table.replace_schema_metadata({b"armillary": json.dumps(header)}), path)
    assert any("instrument card differs" in str(problem) for problem in validate_dataset(folder))


def test_hats_properties_that_lie_are_found(folder):
    path = folder / "scalar" / "redshift" / "hats.properties"
    path.write_text(path.read_text().replace("hats_nrows=40", "hats_nrows=41"))
    assert only(folder) == f"{path}: hats_nrows must be 40, found 41"
