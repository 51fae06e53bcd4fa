"""Objects are functions of their rows: places within the pixel of their shard, and spectra that keep their light."""

import dataclasses

import numpy as np
import pytest
import torch

from armillary.data.simulation.sky_objects import CLASSES, TRUTHS, Population, draw_objects, positions
from armillary.data.sky_partition import healpix_index

SMALL = Population(3, 19.8, star_fraction=0.2, quasar_fraction=0.2, shard_size=50, healpix_order=2)


def test_a_row_is_the_same_object_in_whatever_company():
    whole = draw_objects(SMALL, np.arange(60))
    rows = np.array([57, 2, 31])
    few = draw_objects(SMALL, rows)
    assert few.object_id == ("sim-3-57", "sim-3-2", "sim-3-31")
    for name in ("ra", "dec", "object_class", "radius", "axis_ratio", "position_angle"):
        np.testing.assert_array_equal(getattr(few, name), getattr(whole, name)[rows])
    for name, values in few.truth.items():
        np.testing.assert_array_equal(values, whole.truth[name][rows])
    torch.testing.assert_close(few.spectra, whole.spectra[torch.from_numpy(rows)], rtol=1e-5, atol=1e-7)


def test_objects_of_a_shard_lie_within_its_pixel_and_shards_apart():
    rows = np.arange(0, SMALL.num_rows)
    ra, dec = positions(SMALL, rows)
    index = healpix_index(ra, dec)
    pixels = [SMALL.pixel(shard) for shard in range(SMALL.num_rows // 50)]
    assert len({pixel.number for pixel in pixels}) == 12 * 4**2
    for shard, pixel in enumerate(pixels):
        inside = index[50 * shard : 50 * (shard + 1)]
        assert ((inside >= pixel.first) & (inside < pixel.stop)).all()
    assert SMALL.pixel(0) != dataclasses.replace(SMALL, seed=4).pixel(0)


def test_directions_are_uniform_on_the_sphere():
    ra, dec = positions(SMALL, np.arange(SMALL.num_rows))
    for uniform in (ra / 360, (np.sin(np.radians(dec)) + 1) / 2):
        counts = np.histogram(uniform, 8, (0, 1))[0]
        assert np.abs(counts - 1200).max() < 120


def test_a_few_shards_are_spread_over_the_whole_sky():
    _, dec = positions(SMALL, np.arange(16 * 50))
    assert 5 <= (dec[::50] > 0).sum() <= 11


def test_classes_have_their_shares_and_their_own_truths():
    objects = draw_objects(SMALL, np.arange(1500))
    shares = np.bincount(objects.object_class, minlength=3) / 1500
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.03)
    known = {
        name: [bool(np.isfinite(objects.truth[name][objects.object_class == index]).all()) for index in range(3)]
        for name in TRUTHS
    }
    unknown = {
        name: [bool(np.isnan(objects.truth[name][objects.object_class == index]).all()) for index in range(3)]
        for name in TRUTHS
    }
    assert CLASSES == ("galaxy", "star", "quasar")
    assert known["redshift"] == [True, True, True]
    for name in TRUTHS[1:5]:
        assert (known[name], unknown[name]) == ([True, False, False], [False, True, True])
    for name in TRUTHS[5:]:
        assert (known[name], unknown[name]) == ([False, True, False], [True, False, True])
    light = objects.spectra.sum(2) > 0
    is_star = torch.from_numpy(objects.object_class == 1)
    assert (light[is_star] == torch.tensor([False, False, True])).all()  # a point, and nothing else
    assert (objects.radius[objects.object_class == 1] == 0).all()
    assert light[torch.from_numpy(objects.object_class == 0), 2].sum() == 0
    assert light[torch.from_numpy(objects.object_class == 2), 2].all()


def test_a_galaxy_is_the_same_whatever_the_share_of_stars():
    mixed = draw_objects(SMALL, np.arange(40))
    alone = draw_objects(dataclasses.replace(SMALL, star_fraction=0.0, quasar_fraction=0.0), np.arange(40))
    galaxies = mixed.object_class == 0
    assert (alone.object_class == 0).all()
    np.testing.assert_array_equal(mixed.truth["redshift"][galaxies], alone.truth["redshift"][galaxies])


def test_rows_beyond_the_sky_are_refused():
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 9600\), found 3 to 9600"):
        draw_objects(SMALL, np.array([3, 9600]))


def test_selection_keeps_all_that_belongs_to_an_object():
    objects = draw_objects(SMALL, np.arange(5))
    chosen = objects.select([4, 1])
    assert chosen.object_id == (objects.object_id[4], objects.object_id[1])
    assert torch.equal(chosen.spectra[0], objects.spectra[4])
    assert chosen.truth["redshift"][1] == objects.truth["redshift"][1]
