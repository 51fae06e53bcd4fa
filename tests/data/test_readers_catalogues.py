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
