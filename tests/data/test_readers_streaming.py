"""Readers hold a bounded number of rows, however long the file, and batches of any size hold the same rows."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from armillary.data.readers.catalogues import ScalarTableSettings, scalar_table_batches, sdss_galaxy_batches
from armillary.data.readers.desi import desi_batches, desi_exposure_batches
from armillary.data.readers.fits_files import open_fits
from armillary.data.readers.images import cut_out, sources_by_tile
from armillary.data.readers.manga import manga_batches
from armillary.data.readers.mosaics import open_mosaic
from armillary.data.readers.sdss import boss_plate_batches
from armillary.data.readers.table_files import table_batches
from armillary.data.real_files import real_file

TABLE = ScalarTableSettings(columns={"scalar/redshift": "z"}, object_id="id", ra="ra", dec="dec")
MEGABYTE = 2**20


def write_desi(path, rows, pixels=400, exposures_per_target=1):
    """`rows` spectra in DESI's layout, on the first pixels of each arm."""
    target = np.arange(rows) // exposures_per_target + 10
    columns = {"TARGETID": target, "FIBERSTATUS": np.zeros(rows, np.int32), "EXPID": np.arange(rows)}
    fibermap = Table({**columns, "TARGET_RA": np.full(rows, 1.0), "TARGET_DEC": np.full(rows, 2.0)})
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(fibermap, name="FIBERMAP")])
    for arm, start in zip("BRZ", (3600.0, 5760.0, 7520.0), strict=True):
        flux = np.broadcast_to(np.float32(1.5), (rows, pixels))
        hdus.append(fits.ImageHDU(start + 0.8 * np.arange(pixels), name=f"{arm}_WAVELENGTH"))
        hdus += [fits.ImageHDU(flux, name=f"{arm}_{name}") for name in ("FLUX", "IVAR")]
        hdus.append(fits.ImageHDU(np.zeros((rows, pixels), np.int32), name=f"{arm}_MASK"))
    hdus.writeto(path, checksum=True)


def write_plate(path, rows, pixels=1500):
    plane = np.broadcast_to(np.float32(1.5), (rows, pixels))
    header = fits.Header({"COEFF0": 3.6, "COEFF1": 1e-4, "PLATEID": 1, "MJD": 2})
    mask = np.zeros((rows, pixels), np.int32)
    plug_map = Table({"FIBERID": np.arange(rows), "RA": np.full(rows, 1.0), "DEC": np.full(rows, 2.0)})
    planes = [fits.ImageHDU(values) for values in (plane, mask, mask, plane)]
    fits.HDUList([fits.PrimaryHDU(plane, header), *planes, fits.BinTableHDU(plug_map, name="PLUGMAP")]).writeto(path)


def write_manga(path, rows, pixels=1500):
    plane = np.broadcast_to(np.float32(1.5), (rows, pixels))
    mask = np.zeros((rows, pixels), np.int16)
    planes = [("FLUX", plane), ("IVAR", plane), ("MASK", mask), ("SRES", plane)]
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(3622.0 + np.arange(pixels), name="WAVE")])
    hdus += [fits.ImageHDU(values, name=name) for name, values in planes]
    hdus.writeto(path)


def write_table(path, rows):
    content = {"id": np.arange(rows), "z": np.full(rows, 0.1), "ra": np.full(rows, 1.0), "dec": np.full(rows, 2.0)}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(content), path, row_group_size=rows)
    else:
        Table({**content, "padding": np.zeros((rows, 8))}).write(path)


CASES = {
    "DESI coadd": (write_desi, "fits", lambda path: desi_batches(path, rows_per_batch=8), (80, 640)),
    "DESI exposures": (
        lambda path, rows: write_desi(path, rows, exposures_per_target=4),
        "fits",
        lambda path: desi_exposure_batches(path, rows_per_batch=16),
        (80, 640),
    ),
    "one target, many exposures": (
        lambda path, rows: write_desi(path, rows, exposures_per_target=rows),
        "fits",
        lambda path: desi_exposure_batches(path, rows_per_batch=16),
        (80, 640),
    ),
    "plate": (write_plate, "fits", lambda path: boss_plate_batches(path, rows_per_batch=16), (200, 1600)),
    "MaNGA": (write_manga, "fits", lambda path: manga_batches(path, rows_per_batch=16), (100, 800)),
    "FITS table": (
        write_table,
        "fits",
        lambda path: scalar_table_batches(path, TABLE, rows_per_batch=2000),
        (12000, 96000),
    ),
    "Parquet table": (
        write_table,
        "parquet",
        lambda path: scalar_table_batches(path, TABLE, rows_per_batch=2000),
        (12000, 96000),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    """Eight times the rows, about the same memory: what little more there is are ids, positions and read buffers."""
    write, suffix, read, sizes = CASES[name]
    peaks = []
    for rows in sizes:
        path = tmp_path / f"{rows}.{suffix}"
        write(path, rows)
        tracemalloc.start()
        count = sum(len(batch) for batch in read(path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == (1 if name.startswith("one") else rows // 4 if name == "DESI exposures" else rows)
    assert peaks[1] < 1.5 * peaks[0] + 1.5 * MEGABYTE
    if suffix == "fits":
        assert peaks[1] < path.stat().st_size / 2


def test_arrow_holds_no_more_than_a_batch_of_a_parquet_file(tmp_path):
    write_table(tmp_path / "t.parquet", 400000)
    before = pa.total_allocated_bytes()
    held = [
        pa.total_allocated_bytes() - before for _ in table_batches(tmp_path / "t.parquet", ["z"], rows_per_batch=1000)
    ]
    assert len(held) == 400
    assert max(held) < 400000 * 8 / 2


def test_rows_of_a_fits_table_are_the_same_in_any_parts(tmp_path):
    path = tmp_path / "t.fits"
    rng = np.random.default_rng(0)
    Table({"a": rng.integers(0, 9, 1000), "b": rng.normal(size=(1000, 3)), "c": rng.integers(0, 2, 1000) > 0}).write(
        path
    )
    with open_fits(path) as file:
        whole = file.columns(1, ["a", "b", "c"])
        for size in (37, 400, 1000):
            parts = [file.columns(1, ["a", "b", "c"], rows=(n, min(n + size, 1000))) for n in range(0, 1000, size)]
            for column, joined in zip(whole, zip(*parts, strict=True), strict=True):
                assert np.array_equal(column, np.concatenate(joined))


def test_unsigned_and_scaled_columns_come_right_in_parts(tmp_path):
    """TZERO and TSCAL change what the bytes mean, and text is padded."""
    path = tmp_path / "t.fits"
    columns = [
        fits.Column("u", "J", bzero=2**31, array=np.array([0, 2**31, 2**32 - 1], np.uint32)),
        fits.Column("s", "I", array=np.array([0, 1, 14], np.int16)),
        fits.Column("t", "5A", array=["a", "bb", "ccccc"]),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    fits.setval(path, "TSCAL2", value=0.5, ext=1)
    fits.setval(path, "TZERO2", value=3.0, ext=1)
    with open_fits(path) as file:
        unsigned, scaled, text = file.columns(1, ["u", "s", "t"], rows=(1, 3))
    assert unsigned.tolist() == [2**31, 2**32 - 1]
    assert scaled.tolist() == [3.5, 10.0]
    assert text.tolist() == ["bb", "ccccc"]


def test_rows_of_the_real_catalogue_are_the_same_in_any_batches():
    path = real_file("sdss-galaxies-5000.fits")
    whole, parts = list(sdss_galaxy_batches(path)), list(sdss_galaxy_batches(path, rows_per_batch=1700))
    assert len(parts) == 3 * len(whole)
    for number, observation in enumerate(whole):
        same = parts[number :: len(whole)]
        assert tuple(name for part in same for name in part.object_id) == observation.object_id
        assert np.array_equal(np.concatenate([part.values for part in same]), observation.values)
        assert np.array_equal(np.concatenate([part.mask for part in same]), observation.mask)


# ---- mosaics ---------------------------------------------------------------------------------------------------------

PLACES = np.array(
    [[300.0, 400.0], [1023.4, 600.0], [900.0, 1023.6], [1023.5, 1023.5], [1500.0, 1024.0], [1800.0, 90.0]]
)


@pytest.fixture(scope="module")
def mosaic_path(tmp_path_factory):
    """2000 x 1900 pixels, 15 MB: noise of 0.001 nanomaggies, and sources of 1, some on the borders of tiles."""
    pixels = np.random.default_rng(0).normal(scale=0.001, size=(2000, 1900)).astype(np.float32)
    y, x = np.mgrid[-15:16, -15:16]
    for row, column in PLACES:
        top, left = round(row), round(column)
        source = np.exp(-((y - row + top) ** 2 + (x - column + left) ** 2) / 8) / (8 * np.pi)
        pixels[top - 15 : top + 16, left - 15 : left + 16] += source.astype(np.float32)
    header = fits.Header({"BUNIT": "nanomaggy"})
    path = tmp_path_factory.mktemp("mosaic") / "g.fits"
    fits.PrimaryHDU(pixels, header).writeto(path, checksum=True)
    return path


def test_a_mosaic_is_cut_without_being_loaded(mosaic_path):
    with fits.open(mosaic_path) as hdus:
        pixels = np.array(hdus[0].data, dtype=np.float32)
    with open_mosaic({"g": mosaic_path}, "image/hsc") as mosaic:
        tracemalloc.start()
        cutouts = cut_out(mosaic, PLACES, 64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEGABYTE
    for cutout, (row, column) in zip(cutouts.flux, PLACES, strict=True):
        top, left = round(row - 31.5), round(column - 31.5)
        assert np.array_equal(cutout[0], pixels[top : top + 64, left : left + 64])


def test_the_noise_of_a_mosaic_is_measured_on_parts_of_it(mosaic_path):
    with open_mosaic({"g": mosaic_path}, "image/hsc") as mosaic:
        _, inverse_variance = mosaic.pixels(slice(0, 2), slice(0, 2))
        # A point source at 5 sigma: 5 * 0.001 * sqrt(4 pi s^2) nanomaggies, for s of the card's PSF in pixels.
        s = mosaic.psf_fwhm[0] / 2.3548 / 0.168
        depth = mosaic.depth[0]
    assert inverse_variance == pytest.approx(1e6, rel=0.02)
    assert depth == pytest.approx(22.5 - 2.5 * np.log10(5 * 0.001 * np.sqrt(4 * np.pi * s**2)), abs=0.03)


def test_sources_on_the_borders_of_tiles_are_found_once(mosaic_path):
    with open_mosaic({"g": mosaic_path}, "image/hsc") as mosaic:
        found = np.concatenate([sources.center for sources in sources_by_tile(mosaic)])
    assert len(found) == len(PLACES)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(PLACES, axis=0), atol=0.2)
