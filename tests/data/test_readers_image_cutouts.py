"""Cutouts of objects in fields on disk: at listed positions, on the sky or in pixels, and at detected sources."""

import logging

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from armillary.data.observations import ObservationError
from armillary.data.readers.image_cutouts import ImageCutoutSettings, field_folders, image_cutout_batches
from armillary.data.readers.images import cut_out, find_sources, read_image
from armillary.data.readers.mosaics import HSC_ZERO_POINT
from armillary.data.real_files import REAL_FOLDER, real_file
from armillary.settings import SettingsError, load_settings, validate_settings

HSC = {"modality": "image/hsc", "bands": {band: f"hsc-10054-{band}.fits" for band in "gri"}, "zero_point": 27.0}
SKY = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 0.0002,
    "CRVAL2": 2.0,
    "CRPIX1": 31.0,
    "CRPIX2": 26.0,
    "CD1_1": -0.168 / 3600,
    "CD2_2": 0.168 / 3600,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "RADESYS": "ICRS",
    "BUNIT": "nanomaggy",
}


def write_field(folder, header=SKY, bands="gr"):
    """A field of 51 x 61 pixels in bands g and r, at RA = 0."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for band in bands:
        pixels = random.normal(size=(51, 61)).astype(np.float32)
        fits.PrimaryHDU(pixels, fits.Header(header)).writeto(folder / f"{folder.name}-image-{band}.fits")
    return folder


def settings_for(table, size=11, **columns):
    content = {"modality": "image/hsc", "bands": {band: f"*-image-{band}.fits" for band in "gr"}, "size": size}
    positions = {"path": str(table), "object_id": "id", **columns}
    return validate_settings(ImageCutoutSettings, {**content, "positions": positions}, "test")


def cutouts(folder, settings, **options):
    return list(image_cutout_batches(folder, settings, **options))


@pytest.fixture
def catalogue(tmp_path):
    """Three objects of the field on both sides of RA = 0, one beyond it, and one on the other side of the sky."""
    place = WCS(fits.Header(SKY)).pixel_to_world(
        np.array([20.0, 35.0, 40.0, 300.0]), np.array([17.0, 30.0, 25.0, 25.0])
    )
    content = {"id": [11, 12, 13, 14, 15], "alpha": [*place.ra.deg, 180.0], "delta": [*place.dec.deg, -2.0]}
    content["brick"] = ["here", "here", "there", "here", "here"]
    path = tmp_path / "catalogue.fits"
    Table(content).write(path)
    return path


def test_cutouts_lie_at_the_positions_of_the_table(tmp_path, catalogue):
    folder = write_field(tmp_path / "fields" / "here")
    (observed,) = cutouts(folder, settings_for(catalogue, ra="alpha", dec="delta"))
    assert observed.object_id == ("11", "12", "13")
    assert observed.bands == ("g", "r")
    with fits.open(folder / "here-image-r.fits") as hdus:
        for row, (x, y) in enumerate([(20, 17), (35, 30), (40, 25)]):
            assert np.array_equal(observed.flux[row, 1], hdus[0].data[y - 5 : y + 6, x - 5 : x + 6])
    table = Table.read(catalogue)
    assert observed.ra.tolist() == table["alpha"][:3].tolist()  # as the table has it, to the last bit
    assert observed.ra[0] < 1 < 359 < observed.ra[2]


def test_an_object_belongs_to_the_field_that_its_table_names(tmp_path, catalogue):
    settings = settings_for(catalogue, ra="alpha", dec="delta", field="brick")
    (here,) = cutouts(write_field(tmp_path / "here"), settings)
    (there,) = cutouts(write_field(tmp_path / "there"), settings)
    assert (here.object_id, there.object_id) == (("11", "12"), ("13",))


def test_fields_without_wcs_are_cut_at_pixels(tmp_path):
    folder = write_field(tmp_path / "here", {"BUNIT": "nanomaggy"})
    Table({"id": ["a"], "y": [17.2], "x": [20.0]}).write(tmp_path / "t.csv")
    (observed,) = cutouts(folder, settings_for(tmp_path / "t.csv", row="y", column="x"))
    assert observed.center[0].tolist() == pytest.approx([5.2, 5.0])
    assert observed.ra.isnan().all()


def test_sources_of_the_real_field_are_those_of_the_whole_frame_brightest_first():
    settings = validate_settings(ImageCutoutSettings, {**HSC, "size": 32, "detection": {"max_sources": 40}}, "test")
    batches = cutouts(REAL_FOLDER, settings, cutouts_per_batch=16)
    assert [len(batch) for batch in batches] == [16, 16, 8]
    frame = read_image({b: real_file(n) for b, n in HSC["bands"].items()}, "image/hsc", zero_point=HSC_ZERO_POINT)
    expected = cut_out(frame, find_sources(frame, margin=16, max_sources=40).center, 32)
    np.testing.assert_allclose(np.concatenate([batch.flux for batch in batches]), expected.flux)
    assert batches[0].object_id[0] == "real-0"


def test_inverse_variance_files_weigh_the_pixels(tmp_path, catalogue):
    folder = write_field(tmp_path / "here")
    for band in "gr":
        weight = np.full((51, 61), 4.0, np.float32)
        weight[:, :22] = 0
        fits.PrimaryHDU(weight).writeto(folder / f"here-invvar-{band}.fits")
    settings = settings_for(catalogue, ra="alpha", dec="delta")
    settings = settings.model_copy(update={"inverse_variance": {band: f"*-invvar-{band}.fits" for band in "gr"}})
    (observed,) = cutouts(folder, settings)
    assert (observed.inverse_variance[observed.mask] == 4).all()
    assert not observed.mask[0, :, :, :7].any()
    assert observed.mask[1].all()


def test_an_object_on_pixels_that_are_all_bad_is_left_out_with_a_warning(tmp_path, catalogue, caplog):
    folder = write_field(tmp_path / "here")
    for band in "gr":
        with fits.open(folder / f"here-image-{band}.fits", mode="update") as hdus:
            hdus[0].data[:, :27] = np.nan
    with caplog.at_level(logging.WARNING):
        (observed,) = cutouts(folder, settings_for(catalogue, ra="alpha", dec="delta"))
    assert observed.object_id == ("12", "13")
    assert "['11']" in caplog.text


@pytest.mark.parametrize(
    "content, columns, problem",
    [
        (
            {"id": [1, 2], "ra": [0.0, np.nan], "dec": [2.0, 2.0]},
            ("ra", "dec"),
            r"t\.fits: object 2: ra must be a finite",
        ),
        ({"id": [1, 1], "ra": [0.0, 0.0], "dec": [2.0, 2.0]}, ("ra", "dec"), r"t\.fits: object 1 comes twice"),
        (
            {"id": [1], "y": [np.inf], "x": [3.0]},
            ("y", "x"),
            r"t\.fits: object 1: row must be a finite number, found inf",
        ),
        ({"id": [1], "ra": [0.0]}, ("ra", "dec"), r"t\.fits: .*missing: \['dec'\]"),
    ],
)
def test_a_table_that_does_not_say_where_is_an_error(tmp_path, content, columns, problem):
    folder = write_field(tmp_path / "here")
    Table(content).write(tmp_path / "t.fits")
    names = ("ra", "dec") if columns[0] == "ra" else ("row", "column")
    settings = settings_for(tmp_path / "t.fits", **dict(zip(names, columns, strict=True)))
    with pytest.raises(ObservationError, match=problem):
        cutouts(folder, settings)


def test_each_band_must_have_one_file(tmp_path, catalogue):
    folder = write_field(tmp_path / "here", bands="g")
    settings = settings_for(catalogue, ra="alpha", dec="delta")
    with pytest.raises(ObservationError, match=r"here: expected one file \*-image-r\.fits for band r, found \[\]"):
        cutouts(folder, settings)


def test_fields_are_the_folders_that_hold_images(tmp_path):
    for name in ("b/one", "a/two"):
        write_field(tmp_path / name)
    assert [folder.name for folder in field_folders(tmp_path)] == ["two", "one"]
    with pytest.raises(ObservationError, match="expected a folder of fields"):
        field_folders(tmp_path / "a" / "two" / "two-image-g.fits")


def test_settings_come_from_yaml_and_half_a_position_is_refused(tmp_path):
    text = """
modality: image/legacysurvey
bands: {g: "*-image-g.fits.fz", r: "*-image-r.fits.fz"}
positions: {path: tractor.fits, object_id: OBJID, ra: RA, dec: DEC, field: BRICKNAME}
"""
    (tmp_path / "cutouts.yaml").write_text(text)
    settings = load_settings(ImageCutoutSettings, tmp_path / "cutouts.yaml", ["size=152"])
    assert (settings.size, settings.positions.field) == (152, "BRICKNAME")
    (tmp_path / "cutouts.yaml").write_text(text.replace(", dec: DEC", ""))
    with pytest.raises(SettingsError, match="give the columns ra and dec, or row and column"):
        load_settings(ImageCutoutSettings, tmp_path / "cutouts.yaml")
