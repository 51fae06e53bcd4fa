"""Separations and motions on the sphere, against astropy and at its awkward places."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.time import Time

from armillary.data.crossmatch.sphere import moved, separations, sky_positions, unit_vectors


def random_sky(count, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))


def test_separations_agree_with_astropy_at_every_scale():
    ra, dec = random_sky(2000)
    random = np.random.default_rng(1)
    distance = 10 ** random.uniform(-4, 5, len(ra))  # arcsec
    here = SkyCoord(ra, dec, unit="deg")
    there = here.directional_offset_by(random.uniform(0, 360, len(ra)) * u.deg, distance * u.arcsec)
    found = separations(unit_vectors(ra, dec), unit_vectors(there.ra.deg, there.dec.deg))
    np.testing.assert_allclose(found, here.separation(there).arcsec, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("declination", [0.0, 45.0, 89.9999])
def test_a_millionth_of_an_arcsec_is_not_lost_to_rounding(declination):
    step = 1e-6
    dec = np.array([declination])
    found = separations(unit_vectors(np.array([10.0]), dec), unit_vectors(np.array([10.0]), dec + step / 3600))
    assert found[0] == pytest.approx(step, abs=2e-10)


def test_one_place_is_at_distance_zero_from_itself_whatever_its_right_ascension_is_called():
    north = unit_vectors(np.array([0.0, 123.0]), np.array([90.0, 90.0]))
    assert separations(north[:1], north[1:])[0] < 1e-9
    places = unit_vectors(*random_sky(100))
    np.testing.assert_array_equal(separations(places, places), 0.0)


def test_positions_survive_a_turn_through_vectors():
    ra, dec = random_sky(1000)
    ra[:2], dec[:2] = [0.0, 359.9999999999999], [0.0, 0.0]
    back_ra, back_dec = sky_positions(unit_vectors(ra, dec))
    assert ((back_ra >= 0) & (back_ra < 360)).all()
    assert separations(unit_vectors(ra, dec), unit_vectors(back_ra, back_dec)).max() < 1e-9


@pytest.mark.filterwarnings("ignore:ERFA function")  # which puts objects beyond 10 Mpc at 10 Mpc
def test_motion_agrees_with_astropy():
    ra, dec = random_sky(500)
    random = np.random.default_rng(2)
    pm_ra, pm_dec = random.uniform(-10_000, 10_000, (2, 500))
    found_ra, found_dec = moved(ra, dec, pm_ra, pm_dec, 35.5)
    start = SkyCoord(
        ra * u.deg,
        dec * u.deg,
        pm_ra_cosdec=pm_ra * u.mas / u.yr,
        pm_dec=pm_dec * u.mas / u.yr,
        distance=1 * u.Mpc,  # so far away that the motion has no measurable radial part
        radial_velocity=0 * u.km / u.s,
        obstime=Time(1980.5, format="jyear", scale="tdb"),
    )
    end = start.apply_space_motion(new_obstime=Time(2016.0, format="jyear", scale="tdb"))
    difference = separations(unit_vectors(found_ra, found_dec), unit_vectors(end.ra.deg, end.dec.deg))
    assert difference.max() < 1e-6


def test_motion_crosses_a_pole():
    ra, dec = moved(np.array([30.0]), np.array([90 - 1 / 3600]), np.zeros(1), np.array([2000.0]), 1.0)
    assert ra[0] == pytest.approx(210.0)
    assert (90 - dec[0]) * 3600 == pytest.approx(1.0, rel=1e-6)


def test_motion_starts_at_the_pole_itself_along_the_stated_east():
    ra, dec = moved(np.array([30.0]), np.array([90.0]), np.array([5000.0]), np.zeros(1), 1.0)
    assert ra[0] == pytest.approx(120.0)
    assert (90 - dec[0]) * 3600 == pytest.approx(5.0, rel=1e-6)


def test_motion_crosses_right_ascension_zero():
    ra, _ = moved(np.array([359.9999]), np.array([0.0]), np.array([1000.0]), np.zeros(1), 1.0)
    assert ra[0] == pytest.approx(0.00017777, abs=1e-7)


def test_an_object_at_rest_keeps_its_position_to_the_bit():
    ra, dec = random_sky(1000)
    found = moved(ra, dec, np.zeros(1000), np.zeros(1000), 50.0)
    np.testing.assert_array_equal(found, (ra, dec))
