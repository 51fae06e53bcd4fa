"""Catalogues: the 5,000 real galaxies, and tables of any survey."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from armillary.data.observations import ObservationError
from armillary.data.readers.catalogues import magnitudes, read_scalar_table, read_sdss_galaxies
from armillary.data.real_files import real_file

GALAXIES = real_file("sdss-galaxies-5000.fits")


@pytest.fixture(scope="module")
def galaxies():
    return {observed.modality.name: observed for observed in read_sdss_galaxies(GALAXIES)}


def test_all_galaxies_have_a_redshift_and_nine_numbers_of_one_object_list(galaxies):
    assert list(galaxies) == [
        "scalar/redshift",
        *(f"scalar/sdss_{band}" for band in "ugriz"),
        *(f"scalar/twomass_{band}" for band in "jhk"),
    ]
    assert {len(observed) for observed in galaxies.values()} == {5000}
    assert len({observed.object_id for observed in galaxies.values()}) == 1
    assert galaxies["scalar/redshift"].mask.all()
    assert galaxies["scalar/redshift"].values.max().item() == pytest.approx(0.42910102)
    assert galaxies["scalar/redshift"].ra[0].item() == pytest.approx(122.086662)


def test_magnitudes_are_those_worked_out_by_hand(galaxies):
    """The first galaxy: MODELFLUX_r = 132.56783, ivar 2.4296649, EXTINCTION_r = 0.14023204."""
    read = galaxies["scalar/sdss_r"]
    assert read.values[0].item() == pytest.approx(22.5 - 2.5 * math.log10(132.56783) - 0.14023204, abs=1e-5)
    assert read.error[0].item() == pytest.approx(2.5 / math.log(10) / 132.56783 / math.sqrt(2.4296649), rel=1e-5)


def test_every_magnitude_agrees_with_a_loop_over_rows(galaxies):
    with fits.open(GALAXIES) as hdus:
        rows = hdus[1].data[::50]
        for place, band in enumerate("ugriz"):
            read = galaxies[f"scalar/sdss_{band}"]
            for number, row in enumerate(rows):
                flux = float(row["MODELFLUX"][place])
                is_valid = read.mask[50 * number].item()
                assert is_valid == (flux > 0)
                if is_valid:
                    expected = 22.5 - 2.5 * math.log10(flux) - float(row["EXTINCTION"][place])
                    assert read.values[50 * number].item() == pytest.approx(expected, abs=1e-4)


def test_fluxes_that_are_not_positive_are_missing(galaxies):
    with fits.open(GALAXIES) as hdus:
        negative = hdus[1].data["MODELFLUX"][:, 0] <= 0
    read = galaxies["scalar/sdss_u"]
    assert negative.sum() == 7
    assert np.array_equal(read.mask.numpy(), ~negative)
    assert read.error[~read.mask].isnan().all()
    assert (read.values[~read.mask] == 0).all()


def test_two_micron_magnitudes_without_an_error_are_missing(galaxies):
    with fits.open(GALAXIES) as hdus:
        table = hdus[1].data
        no_error = table["H_MSIG_EXT"] == 0
        colour = table["H_M_EXT"] - table["K_M_EXT"]
    assert np.array_equal(galaxies["scalar/twomass_h"].mask.numpy(), ~no_error)
    assert no_error.sum() == 372
    assert np.median(colour[no_error]) - np.median(colour[~no_error]) > 0.4  # why they cannot be used
    assert galaxies["scalar/twomass_j"].mask.all()
    assert galaxies["scalar/twomass_k"].mask.all()


def test_the_colours_of_the_galaxies_redden_with_redshift(galaxies):
    redshift = galaxies["scalar/redshift"].values
    colour = galaxies["scalar/sdss_g"].values - galaxies["scalar/sdss_r"].values
    assert colour[redshift > 0.15].median() > colour[redshift < 0.05].median() + 0.2


def test_magnitudes_of_unusable_fluxes_are_nan_and_invalid():
    flux = np.array([1.0, 0.0, -3.0, np.nan, 5.0, 100.0])
    ivar = np.array([4.0, 4.0, 4.0, 4.0, 0.0, 1.0])
    magnitude, error, valid = magnitudes(flux, ivar)
    assert valid.tolist() == [True, False, False, False, False, True]
    assert magnitude[valid] == pytest.approx([22.5, 17.5])
    assert error[valid] == pytest.approx([1.0857362 / 2, 1.0857362 / 100])
    assert np.isnan(magnitude[~valid]).all()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_a_truncated_catalogue_is_an_error_that_names_it(tmp_path, share):
    copy = tmp_path / GALAXIES.name
    copy.write_bytes(GALAXIES.read_bytes()[: int(share * GALAXIES.stat().st_size)])
    with pytest.raises(ObservationError, match=r"sdss-galaxies-5000\.fits"):
        read_sdss_galaxies(copy)


def test_missing_columns_are_named(tmp_path):
    with fits.open(GALAXIES) as hdus:
        hdus[1].columns.del_col("Z")
        hdus.writeto(tmp_path / "short.fits")
    with pytest.raises(ObservationError, match=r"short\.fits: .*missing: \['Z'\]"):
        read_sdss_galaxies(tmp_path / "short.fits")


# ---- tables of any survey --------------------------------------------------------------------------------------------

COLUMNS = {"scalar/redshift": "z", "scalar/stellar_mass": "mass"}
CONTENT = {
    "id": [11, 12, 13],
    "alpha": [1.0, 2.0, 3.0],
    "delta": [-1.0, 0.0, 1.0],
    "z": [0.1, -999.0, 0.3],
    "z_error": [0.01, -999.0, np.nan],
    "mass": [10.5, 11.0, np.nan],
}


def write_table(folder, kind, content=CONTENT):
    path = folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(content), path)
    elif kind == "fits":
        Table(content).write(path)
    else:
        Table(content).write(path, format=f"ascii.{kind}")
    return path


@pytest.mark.parametrize("kind", ["fits", "parquet", "csv", "ecsv"])
def test_every_kind_of_table_gives_the_same_observations(tmp_path, kind):
    redshift, mass = read_scalar_table(
        write_table(tmp_path, kind),
        COLUMNS,
        object_id="id",
        ra="alpha",
        dec="delta",
        errors={"scalar/redshift": "z_error"},
        missing_values=[-999],
    )
    assert redshift.modality.name == "scalar/redshift"
    assert redshift.object_id == mass.object_id == ("11", "12", "13")
    assert redshift.mask.tolist() == [True, False, True]
    assert redshift.values.tolist() == pytest.approx([0.1, 0, 0.3])
    assert redshift.error[0].item() == pytest.approx(0.01)
    assert redshift.error[1:].isnan().all()
    assert mass.mask.tolist() == [True, True, False]
    assert mass.error.isnan().all()
    assert (redshift.ra.tolist(), redshift.dec.tolist()) == ([1, 2, 3], [-1, 0, 1])


def test_nulls_are_missing(tmp_path):
    content = {"id": ["a", "b"], "z": pa.array([0.5, None], pa.float64())}
    (read,) = read_scalar_table(write_table(tmp_path, "parquet", content), {"scalar/redshift": "z"}, object_id="id")
    assert read.mask.tolist() == [True, False]
    masked = {"id": ["a", "b"], "z": MaskedColumn([0.5, 0.7], mask=[False, True])}
    (read,) = read_scalar_table(write_table(tmp_path, "ecsv", masked), {"scalar/redshift": "z"}, object_id="id")
    assert read.mask.tolist() == [True, False]


def test_a_value_out_of_range_names_file_column_and_object(tmp_path):
    with pytest.raises(ObservationError, match=r"table\.csv, column z: scalar/redshift, object 12: .*-999"):
        read_scalar_table(write_table(tmp_path, "csv"), COLUMNS, object_id="id")


@pytest.mark.parametrize("kind", ["fits", "parquet", "csv"])
def test_a_missing_column_and_a_missing_file_are_named(tmp_path, kind):
    with pytest.raises(ObservationError, match=rf"table\.{kind}: .*redshift"):
        read_scalar_table(write_table(tmp_path, kind), {"scalar/redshift": "redshift"}, object_id="id")
    with pytest.raises(ObservationError, match="no such file"):
        read_scalar_table(tmp_path / f"nowhere.{kind}", COLUMNS, object_id="id")


def test_words_where_numbers_are_due_are_refused(tmp_path):
    path = write_table(tmp_path, "csv", {"id": [1, 2], "z": ["near", "far"]})
    with pytest.raises(ObservationError, match=r"column z must hold one number for each object"):
        read_scalar_table(path, {"scalar/redshift": "z"}, object_id="id")


def test_other_files_and_unknown_modalities_are_refused(tmp_path):
    (tmp_path / "table.txt").write_text("id,z\n1,2\n")
    with pytest.raises(ObservationError, match=r"expected a table in \.fits"):
        read_scalar_table(tmp_path / "table.txt", {"scalar/redshift": "z"}, object_id="id")
    (tmp_path / "table.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ObservationError, match=r"table\.parquet: cannot be read"):
        read_scalar_table(tmp_path / "table.parquet", {"scalar/redshift": "z"}, object_id="id")
    with pytest.raises(LookupError, match="scalar/redshift"):
        read_scalar_table(tmp_path / "table.txt", {"scalar/redshfit": "z"}, object_id="id")
    with pytest.raises(ObservationError, match="errors are given for"):
        read_scalar_table(tmp_path / "table.txt", COLUMNS, object_id="id", errors={"scalar/sdss_g": "z"})


# ---- what a table may do wrong ---------------------------------------------------------------------------------------


def write_with_units(path, **units):
    table = Table({"id": [1, 2], "z": [0.1, 0.2], "ra": [1.0, 2.0], "dec": [0.0, 0.0], "m": [10.0, 11.0]})
    table.write(path)
    for column, unit in units.items():
        fits.setval(path, f"TUNIT{table.colnames.index(column) + 1}", value=unit, ext=1)
    return path


@pytest.mark.parametrize(
    "column, unit, name",
    [
        ("ra", "rad", "scalar/redshift"),
        ("dec", "arcsec", "scalar/redshift"),
        ("z", "km / s", "scalar/redshift"),
        ("m", "solMass", "scalar/stellar_mass"),
        ("m", "nmgy", "scalar/sdss_r"),
        ("m", "mag(AB)", "scalar/twomass_j"),
    ],
)
def test_a_stated_unit_that_is_another_is_an_error(tmp_path, column, unit, name):
    path = write_with_units(tmp_path / "t.fits", **{column: unit})
    values = "z" if name == "scalar/redshift" else "m"
    with pytest.raises(ObservationError, match=rf"t\.fits: column {column} must be in .*, found the unit"):
        read_scalar_table(path, {name: values}, object_id="id", ra="ra", dec="dec")


@pytest.mark.parametrize("unit, name", [("dex(solMass)", "scalar/stellar_mass"), ("mag", "scalar/sdss_r")])
def test_a_stated_unit_that_is_the_same_is_accepted(tmp_path, unit, name):
    path = write_with_units(tmp_path / "t.fits", m=unit, ra="deg", dec="degree")
    (read,) = read_scalar_table(path, {name: "m"}, object_id="id", ra="ra", dec="dec")
    assert read.values.tolist() == [10, 11]


@pytest.mark.parametrize("kind", ["fits", "parquet", "csv", "ecsv"])
def test_an_object_that_comes_twice_is_named_with_its_rows(tmp_path, kind):
    path = write_table(tmp_path, kind, {"id": [7, 8, 7], "z": [0.1, 0.2, 0.3]})
    with pytest.raises(ObservationError, match=rf"table\.{kind}: object 7 comes twice, in rows 0 and 2"):
        read_scalar_table(path, {"scalar/redshift": "z"}, object_id="id")


@pytest.mark.parametrize("kind", ["fits", "parquet", "csv"])
def test_half_a_position_is_an_error_and_none_at_all_is_unknown(tmp_path, kind):
    content = {"id": ["a", "b"], "z": [0.1, 0.2], "alpha": [np.nan, np.nan], "delta": [np.nan, 3.0]}
    path = write_table(tmp_path, kind, content)
    with pytest.raises(ObservationError, match=rf"table\.{kind}: object b: ra and dec must both be known"):
        read_scalar_table(path, {"scalar/redshift": "z"}, object_id="id", ra="alpha", dec="delta")


def test_objects_without_a_name_are_errors(tmp_path):
    content = {"id": pa.array([1, None], pa.int64()), "z": [0.1, 0.2]}
    with pytest.raises(ObservationError, match=r"column id must name every object, and does not in row 1"):
        read_scalar_table(write_table(tmp_path, "parquet", content), {"scalar/redshift": "z"}, object_id="id")
    with pytest.raises(ObservationError, match=r"column z must hold whole numbers or text"):
        read_scalar_table(write_table(tmp_path, "fits"), {"scalar/redshift": "z"}, object_id="z")


@pytest.mark.parametrize("kind", ["fits", "parquet", "csv"])
def test_long_ids_keep_every_digit(tmp_path, kind):
    names = [39633345008634465, 39633345008634466]
    path = write_table(tmp_path, kind, {"id": names, "z": [0.1, 0.2]})
    (read,) = read_scalar_table(path, {"scalar/redshift": "z"}, object_id="id")
    assert read.object_id == tuple(map(str, names))


def test_null_values_of_fits_integers_are_missing(tmp_path):
    columns = [fits.Column("id", "K", array=[1, 2]), fits.Column("z", "J", null=-99, array=[1, -99])]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(tmp_path / "t.fits")
    (read,) = read_scalar_table(tmp_path / "t.fits", {"scalar/redshift": "z"}, object_id="id")
    assert read.mask.tolist() == [True, False]


def test_a_table_without_rows_is_an_error(tmp_path):
    path = write_table(tmp_path, "parquet", {"id": pa.array([], pa.int64()), "z": pa.array([], pa.float64())})
    with pytest.raises(ObservationError, match=r"expected at least one object"):
        read_scalar_table(path, {"scalar/redshift": "z"}, object_id="id")


def test_text_of_csv_is_read_as_people_write_it(tmp_path):
    (tmp_path / "t.csv").write_text("id,name,z\n001, x ,0.5\n002,y, 1e-1 \n003,z,\n004,w,nan\n")
    (read,) = read_scalar_table(tmp_path / "t.csv", {"scalar/redshift": "z"}, object_id="id")
    assert read.object_id == ("001", "002", "003", "004")
    assert read.values[:2].tolist() == pytest.approx([0.5, 0.1])
    assert read.mask.tolist() == [True, True, False, False]


@pytest.mark.parametrize("kind", ["fits", "parquet", "csv"])
def test_names_of_several_columns_are_joined(tmp_path, kind):
    """As Legacy Survey objects are told apart: OBJID counts anew in every brick."""
    path = write_table(tmp_path, kind, {"brick": ["a1", "a1", "b2"], "number": [1, 2, 1], "z": [0.1, 0.2, 0.3]})
    (read,) = read_scalar_table(path, {"scalar/redshift": "z"}, object_id=["brick", "number"])
    assert read.object_id == ("a1-1", "a1-2", "b2-1")
    with pytest.raises(ObservationError, match="object 1 comes twice, in rows 0 and 2 of number"):
        read_scalar_table(path, {"scalar/redshift": "z"}, object_id="number")
