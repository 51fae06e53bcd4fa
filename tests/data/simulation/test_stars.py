"""Stars: colours on the stellar locus, lines of real stars, motions as astropy turns them, kinds where they belong."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import CartesianDifferential, CartesianRepresentation, Galactic, SkyCoord

from armillary.data.filters import filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.readers.sdss import read_sdss_spec
from armillary.data.real_files import real_file
from armillary.data.simulation.galactic_model import (
    KINDS,
    SUN_VELOCITY,
    StarDraws,
    draw_stars_along,
    galactic_coordinates,
    motions,
)
from armillary.data.simulation.stars import Stars, draw_stars, star_spectra
from armillary.data.simulation.wavelength_grid import observed_wavelength

POLE = (192.86, 27.13)


@pytest.fixture(scope="module")
def stars() -> Stars:
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 1200), np.degrees(np.arcsin(rng.uniform(-1, 1, 1200)))
    return draw_stars(np.arange(1200), 5, ra, dec, 19.8)


@pytest.fixture(scope="module")
def magnitudes(stars):
    weights = photometry_weights([filter_curve(f"sdss2010-{band}") for band in "ugriz"], observed_wavelength())
    return flux_to_magnitude(star_spectra(stars).double().numpy() @ weights.T)


def test_colors_lie_on_the_stellar_locus(stars, magnitudes):
    """Covey et al. 2007 (AJ 134, 2398), Table 4: median colours of half a million stars as polynomials in g - i."""
    locus = {
        0: (1.0636113, -1.6267818, 4.9389572, -3.2809081, 0.8725109, -0.0828035),
        1: (0.4290263, -0.8852323, 2.0740616, -1.1091553, 0.2397461, -0.0183195),
        2: (-0.4113500, 1.8229991, -1.9989772, 1.0662075, -0.2284455, 0.0172212),
        3: (-0.2270331, 0.7794558, -0.7350749, 0.3727802, -0.0735412, 0.0049808),
    }
    color = magnitudes[:, 1] - magnitudes[:, 3]
    inside = (color > 0.3) & (color < 3.0)
    assert inside.sum() > 1000
    for column, coefficients in locus.items():
        measured = magnitudes[inside, column] - magnitudes[inside, column + 1]
        difference = measured - np.polynomial.polynomial.polyval(color[inside], coefficients)
        assert np.abs(np.median(difference)) < 0.04, column
        assert np.percentile(np.abs(difference), 90) < 0.25, column


def test_magnitude_is_that_of_the_spectrum(stars):
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    flux = star_spectra(stars).double().numpy() @ weights
    np.testing.assert_allclose(flux_to_magnitude(flux), stars.r_magnitude, atol=1e-4)
    assert stars.r_magnitude.max() < 19.8
    assert stars.r_magnitude.min() > 15


def test_white_dwarf_looks_like_a_real_one():
    """The SDSS spectrum of a white dwarf, flattened: its broad Balmer lines are where and as deep as simulated ones."""
    real = read_sdss_spec(real_file("sdss-spec-0266-51602-0031.fits"))
    grid = real.wavelength[0].numpy()
    flux = np.where(real.mask[0].numpy(), real.flux[0].double().numpy(), np.nan)
    dwarf = next(i for i, kind in enumerate(KINDS) if kind.sequence == "white_dwarf")
    one = np.ones(1)
    star = Stars(np.array([dwarf]), 18 * one, -0.5 * one, 0 * one, one, 0 * one, 0 * one, 0 * one)
    simulated = np.interp(grid, observed_wavelength(), star_spectra(star)[0].double().numpy())
    for line in (4102.9, 4341.7, 4862.7):
        near = np.abs(grid - line) < 150
        shapes = []
        for spectrum in (flux, simulated):
            level = np.polyfit(
                grid[near][[0, -1]], [np.nanmedian(spectrum[near][:20]), np.nanmedian(spectrum[near][-20:])], 1
            )
            shapes.append(spectrum[near] / np.polyval(level, grid[near]))
        deep = np.abs(grid[near] - line) < 20
        assert np.nanmean(shapes[1][deep]) == pytest.approx(np.nanmean(shapes[0][deep]), abs=0.15), line
        valid = np.isfinite(shapes[0])
        assert np.corrcoef(shapes[0][valid], shapes[1][valid])[0, 1] > 0.6, line


def test_spectra_move_with_radial_velocity():
    one = np.ones(1)
    still, fast = (
        star_spectra(Stars(np.array([0]), 17 * one, 0.45 * one, 0 * one, one, 0 * one, 0 * one, v * one))[0].numpy()
        for v in (0.0, 600.0)
    )
    wavelength = observed_wavelength()
    for line in (6564.6, 8664.5):
        near = np.abs(wavelength / line - 1) < 0.004
        shift = wavelength[near][fast[near].argmin()] / wavelength[near][still[near].argmin()] - 1
        assert shift * 299792.458 == pytest.approx(600, abs=45)


def test_places_and_motions_are_turned_as_astropy_does():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 50), rng.uniform(-80, 80, 50)
    sky = SkyCoord(ra * u.deg, dec * u.deg)
    longitude, latitude = galactic_coordinates(ra, dec)
    np.testing.assert_allclose(longitude, sky.galactic.l.deg, atol=1e-3)
    np.testing.assert_allclose(latitude, sky.galactic.b.deg, atol=1e-3)
    drawn = StarDraws(np.zeros(50, np.int64), np.full(50, 18.0), rng.uniform(4, 9, 50))
    normal = rng.standard_normal((3, 50))
    pm_ra, pm_dec, velocity = motions(drawn, normal, ra, dec)
    kind = KINDS[0]
    uvw = np.array(kind.dispersion)[:, None] * normal - np.array(SUN_VELOCITY)[:, None] - [[0], [kind.lag], [0]]
    place = SkyCoord(ra * u.deg, dec * u.deg, distance=drawn.distance * u.pc).galactic.cartesian
    moving = Galactic(CartesianRepresentation(place.xyz, differentials=CartesianDifferential(*(uvw * u.km / u.s))))
    expected = SkyCoord(moving).icrs
    np.testing.assert_allclose(pm_ra, expected.pm_ra_cosdec.to_value(u.mas / u.yr), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(pm_dec, expected.pm_dec.to_value(u.mas / u.yr), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(velocity, expected.radial_velocity.to_value(u.km / u.s), rtol=1e-3, atol=1e-2)


def test_populations_change_with_magnitude_and_latitude():
    rng = np.random.default_rng(2)
    count = 600

    def share(name, latitude, magnitudes):
        drawn = draw_stars_along(
            rng.uniform(size=count),
            rng.uniform(size=(2, count)),
            rng.uniform(0, 360, count),
            np.full(count, latitude),
            magnitudes,
        )
        return np.mean([name in KINDS[kind].name for kind in drawn.kind])

    assert share("halo", 90.0, (21.0, 23.0)) > 2 * share("halo", 90.0, (15.0, 17.0))
    assert share("thin", 20.0, (15.0, 19.0)) > share("thin", 80.0, (15.0, 19.0)) + 0.15
    assert share("thin", 80.0, (15.0, 17.0)) > share("thin", 80.0, (19.0, 21.0))


def test_parallax_is_one_over_distance_and_motions_are_of_the_order_seen(stars):
    assert (stars.parallax > 0).all()
    assert 0.2 < np.median(stars.parallax) < 1.0  # one to five kiloparsec at these magnitudes
    motion = np.hypot(stars.pm_ra, stars.pm_dec)
    assert 3 < np.median(motion) < 15
    near = stars.parallax > 2
    assert np.median(motion[near]) > 2 * np.median(motion[~near])
    assert 40 < stars.radial_velocity.std() < 140
