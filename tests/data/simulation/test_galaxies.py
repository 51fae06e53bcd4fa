"""The population of galaxies: latents with shared causes, counts and redshifts as published, spectra that follow."""

import dataclasses

import numpy as np
import pytest
import torch

from armillary.data.filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.simulation import galaxies as module
from armillary.data.simulation.galaxies import Galaxies, draw_galaxies, galaxy_spectra
from armillary.data.simulation.galaxy_evolution import (
    passive_brightening,
    relative_density,
    star_formation_growth,
)
from armillary.data.simulation.galaxy_spectra import component_flux
from armillary.data.simulation.wavelength_grid import observed_wavelength

FIELDS = [f.name for f in dataclasses.fields(Galaxies)]


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return draw_galaxies(np.arange(1000), seed=7)


@pytest.fixture(scope="module")
def deep() -> Galaxies:
    return draw_galaxies(np.arange(3000), seed=7, magnitude_limit=23.5)


def photometry(galaxies, *names):
    weights = photometry_weights([filter_curve(name) for name in names], observed_wavelength())
    return galaxy_spectra(galaxies).double().numpy() @ weights.T


def test_a_row_is_the_same_galaxy_in_whatever_company(galaxies):
    rows = np.array([517, 3, 999, 42])
    few = draw_galaxies(rows, seed=7)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(few, name), getattr(galaxies, name)[rows])


def test_seeds_give_different_galaxies(galaxies):
    other = draw_galaxies(np.arange(40), seed=8)
    assert not np.isin(other.redshift, galaxies.redshift).any()


def test_sample_is_like_a_bright_galaxy_survey(galaxies):
    assert galaxies.r_magnitude.max() < 19.8
    # Counts grow steeply with magnitude: Euclidean counts have 10^0.6 per magnitude, real ones less.
    counts = np.histogram(galaxies.r_magnitude, [16.8, 17.8, 18.8, 19.8])[0]
    assert 2 < counts[2] / counts[1] < 4
    assert 0.18 < np.median(galaxies.redshift) < 0.25  # 0.2 in GAMA
    assert galaxies.redshift.min() >= 0.01
    assert 10.2 < np.median(galaxies.log_stellar_mass) < 10.9


@pytest.mark.parametrize("limit", [22.0, 23.0, 23.5])
def test_redshifts_are_those_of_galaxies_seen_to_the_same_limit_by_hubble(limit):
    """GOODS-South is one small field, with walls of galaxies at z = 0.67 and 0.73 and few just beyond."""
    with np.load(TABLES_FOLDER / "galaxy_shapes.npz", allow_pickle=False) as table:
        real = table["deep_redshift"][table["deep_r_magnitude"] < limit]
    simulated = draw_galaxies(np.arange(2000), seed=1, magnitude_limit=limit).redshift
    for quantile, tolerance in ((25, 0.12), (50, 0.1), (75, 0.2)):
        assert np.percentile(simulated, quantile) == pytest.approx(np.percentile(real, quantile), abs=tolerance)
    if limit == 23.5:
        assert 0.02 < (simulated > 1.5).mean() < 0.12
        assert simulated.max() > 2


@pytest.mark.parametrize(("limit", "per_square_degree"), [(17.77, 90), (19.8, 1000), (22.0, 7800), (23.5, 31300)])
def test_numbers_on_the_sky_are_those_that_surveys_count(limit, per_square_degree):
    """SDSS (Strauss et al. 2002), GAMA (Driver et al. 2011, MNRAS 413, 971), and GOODS-South in the shipped table."""
    _, cumulative = module._population(limit - module._MARGIN)
    assert cumulative[-1] == pytest.approx(per_square_degree, rel=0.2)


def test_past_galaxies_form_more_stars(galaxies, deep):
    def rate(sample, low, high):
        chosen = (sample.redshift > low) & (sample.redshift < high) & (np.abs(sample.log_stellar_mass - 10.5) < 0.3)
        alive = sample.log_specific_star_formation_rate[chosen]
        return np.percentile(alive, 75)

    assert rate(deep, 0.9, 1.1) - rate(galaxies, 0.05, 0.15) == pytest.approx(2.5 * np.log10(2 / 1.1), abs=0.2)


def test_evolution_is_none_today_and_grows_with_redshift():
    redshift, dead = np.array([0.0, 0.5, 1.0, 2.0, 3.0]), np.zeros(5)
    for factor in (star_formation_growth(redshift, dead), passive_brightening(redshift)):
        np.testing.assert_array_equal(factor[0], 1)
        assert (np.diff(factor, axis=0) >= 0).all()
    np.testing.assert_array_equal(star_formation_growth(redshift, dead + 1), 1)
    assert relative_density(np.array([1.0]), np.array([1.0]))[0] == pytest.approx(0.31, abs=0.01)
    assert relative_density(np.array([0.7]), np.array([0.0]))[0] == 1


def test_latents_share_their_causes(galaxies):
    rate, bulge = galaxies.log_specific_star_formation_rate, galaxies.bulge_fraction
    assert np.corrcoef(rate, bulge)[0, 1] < -0.3  # quiescent galaxies have bulges
    cosine = np.cos(np.radians(galaxies.inclination))
    assert np.corrcoef(cosine, galaxies.axis_ratio[:, 1])[0, 1] > 0.95  # one inclination shapes the disc
    star_forming = rate > -11
    assert np.corrcoef(cosine[star_forming], galaxies.attenuation[star_forming, 1])[0, 1] < -0.3  # and reddens
    assert np.abs(galaxies.attenuation[:, 1].mean()) < 0.06  # about the dust that the templates have already


def test_magnitude_by_which_a_galaxy_was_chosen_is_that_of_its_spectrum(galaxies, deep):
    for some in (galaxies.select(slice(0, 100)), deep.select(slice(0, 100))):
        flux = photometry(some, "decam2014-r")[..., 0]
        np.testing.assert_allclose(flux_to_magnitude(flux.sum(1)), some.r_magnitude, atol=0.01)
        np.testing.assert_allclose(flux[:, 0] / flux.sum(1), some.bulge_fraction, atol=0.01)


def test_bulge_is_redder_than_disc(galaxies):
    some = galaxies.select(slice(0, 200))
    flux = torch.from_numpy(
        photometry(dataclasses.replace(some, attenuation=np.zeros((200, 2))), "sdss2010-g", "sdss2010-r")
    )
    mixed = (flux[..., 1] / flux[..., 1].sum(1, keepdim=True)).min(1).values > 0.1
    color = -2.5 * torch.log10(flux[mixed][..., 0] / flux[mixed][..., 1])
    assert mixed.sum() > 50
    assert (color[:, 0] > color[:, 1] - 0.03).all()
    assert (color[:, 0] - color[:, 1]).mean() > 0.05


@pytest.mark.parametrize("limit", [13.0, 24.5])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(ValueError, match="magnitude_limit"):
        draw_galaxies(np.arange(3), 0, limit)


def test_no_rows_are_no_galaxies():
    none = draw_galaxies(np.arange(0), 0)
    assert len(none) == 0
    assert galaxy_spectra(none).shape == (0, 2, len(observed_wavelength()))


def test_mixes_give_back_the_real_galaxies_magnitudes_and_colors():
    """The table's masses, distances and templates together say what the SDSS measured."""
    with np.load(TABLES_FOLDER / "galaxy_mixes.npz", allow_pickle=False) as table:
        mass, redshift, magnitude = (np.float64(table[n][:200]) for n in ("mass_formed", "redshift", "r_magnitude"))
    spectra = component_flux(mass[:, None], np.zeros((200, 1)), redshift, np.full(200, 100.0))[:, 0]
    curves = [filter_curve(f"sdss2010-{band}") for band in "gr"]
    flux = spectra.double().numpy() @ photometry_weights(curves, observed_wavelength()).T
    difference = flux_to_magnitude(flux[:, 1]) - magnitude
    assert np.abs(np.median(difference)) < 0.02
    assert np.std(difference) < 0.05
    color = flux_to_magnitude(flux[:, 0]) - flux_to_magnitude(flux[:, 1])
    assert 0.3 < np.percentile(color, 5) < 0.65
    assert 1.0 < np.percentile(color, 95) < 1.7
