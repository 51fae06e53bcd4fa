"""HEALPix pixels against astropy-free closed forms and hpgeom at low order."""

import hpgeom
import numpy as np
import pytest

from armillary.data.sky_partition import MAX_PARTITION_ORDER, Pixel, healpix_index, overlapping, partition, pixel_of


def sky(count, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))


@pytest.mark.parametrize("order", [0, 3, 10])
def test_leading_bits_of_the_index_are_the_pixel_at_any_order(order):
    ra, dec = sky(500)
    expected = hpgeom.angle_to_pixel(2**order, ra, dec, nest=True)
    assert np.array_equal(pixel_of(healpix_index(ra, dec), order), expected)


def test_an_unknown_position_has_no_pixel():
    assert healpix_index(np.array([np.nan, 10.0, 1.0]), np.array([0.0, np.nan, 1.0])).tolist()[:2] == [-1, -1]
    assert healpix_index(np.array([1.0]), np.array([90.0]))[0] >= 0


@pytest.mark.parametrize("max_rows", [1, 7, 100, 5000])
def test_a_partition_holds_every_object_once_in_pixels_of_bounded_size(max_rows):
    index = np.sort(healpix_index(*sky(2000)))
    pixels = partition(index, max_rows)
    counts = [int(((index >= pixel.first) & (index < pixel.stop)).sum()) for pixel in pixels]
    assert sum(counts) == 2000
    assert min(counts) >= 1
    assert max(counts) <= max_rows
    assert overlapping(pixels) is None
    assert pixels == sorted(pixels, key=lambda pixel: pixel.first)
    # None could be larger: its parent holds more than is allowed.
    for pixel in (p for p in pixels if p.order):
        parent = Pixel(pixel.order - 1, pixel.number // 4)
        assert ((index >= parent.first) & (index < parent.stop)).sum() > max_rows


def test_objects_at_one_place_do_not_split_a_pixel_without_end():
    index = healpix_index(np.full(50, 12.0), np.full(50, -3.0))
    (pixel,) = partition(index, 3)
    assert pixel.order == MAX_PARTITION_ORDER


def test_paths_are_those_of_hats_and_read_back():
    pixel = Pixel(6, 41234)
    assert str(pixel.path) == "Norder=6/Dir=40000/Npix=41234.parquet"
    assert Pixel.from_path(pixel.path) == pixel
    assert Pixel.from_path("Norder=6/Dir=0/Npix=41234.parquet") is None
    assert Pixel.from_path("part-00000.parquet") is None


def test_pixels_that_share_sky_are_found():
    assert overlapping([Pixel(1, 4), Pixel(0, 2), Pixel(2, 17)]) == (Pixel(1, 4), Pixel(2, 17))
    assert overlapping([Pixel(1, 4), Pixel(1, 5)]) is None
