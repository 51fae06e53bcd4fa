"""The population: distances, latents with shared causes, and spectra that follow from them."""

import dataclasses

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM

from armillary.data.filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.simulation.cosmology import (
    comoving_distance,
    kiloparsec_per_arcsec,
    luminosity_distance,
    redshift_at,
)
from armillary.data.simulation.galaxies import Galaxies, component_spectra, draw_galaxies
from armillary.data.simulation.galaxy_spectra import (
    EMISSION_LINES,
    calzetti_curve,
    component_flux,
    observed_wavelength,
    templates,
)


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return draw_galaxies(600, seed=7)


def test_distances_agree_with_astropy():
    oracle = FlatLambdaCDM(H0=67.66, Om0=0.3111)
    redshift = np.array([0.01, 0.1, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(comoving_distance(redshift), oracle.comoving_distance(redshift).value, rtol=1e-5)
    np.testing.assert_allclose(luminosity_distance(redshift), oracle.luminosity_distance(redshift).value, rtol=1e-5)
    np.testing.assert_allclose(
        kiloparsec_per_arcsec(redshift), 1 / oracle.arcsec_per_kpc_proper(redshift).value, rtol=1e-5
    )
    np.testing.assert_allclose(redshift_at(comoving_distance(redshift)), redshift, rtol=1e-6)


def test_larger_draw_begins_with_the_smaller_one(galaxies):
    small = draw_galaxies(40, seed=7)
    first = galaxies.select(slice(0, 40))
    assert small.object_id == first.object_id
    for name in ("redshift", "mass_formed", "radius", "ra", "dec", "r_magnitude"):
        np.testing.assert_array_equal(getattr(small, name), getattr(first, name))


def test_seeds_give_different_galaxies(galaxies):
    other = draw_galaxies(40, seed=8)
    assert other.object_id[0] == "sim-8-0"
    assert not np.isin(other.redshift, galaxies.redshift).any()


def test_sample_is_like_a_bright_galaxy_survey(galaxies):
    assert galaxies.r_magnitude.max() < 19.8
    # Counts grow steeply with magnitude: Euclidean counts have 10^0.6 per magnitude, real ones less.
    counts = np.histogram(galaxies.r_magnitude, [16.8, 17.8, 18.8, 19.8])[0]
    assert 2 < counts[2] / counts[1] < 4
    assert 0.15 < np.median(galaxies.redshift) < 0.28
    assert galaxies.redshift.min() >= 0.01
    assert 10.3 < np.median(galaxies.log_stellar_mass) < 11.1


def test_directions_are_uniform_on_the_sphere(galaxies):
    ra, sine = galaxies.ra, np.sin(np.radians(galaxies.dec))
    assert ((ra >= 0) & (ra < 360)).all()
    for uniform in (ra / 360, (sine + 1) / 2):
        assert np.abs(np.histogram(uniform, 4, (0, 1))[0] - 150).max() < 50


def test_latents_share_their_causes(galaxies):
    rate, bulge = galaxies.log_specific_star_formation_rate, galaxies.bulge_fraction
    assert np.corrcoef(rate, bulge)[0, 1] < -0.3  # quiescent galaxies have bulges
    cosine = np.cos(np.radians(galaxies.inclination))
    assert np.corrcoef(cosine, galaxies.axis_ratio[:, 1])[0, 1] > 0.95  # one inclination shapes the disc
    star_forming = rate > -11
    assert np.corrcoef(cosine[star_forming], np.log(galaxies.attenuation[star_forming, 1]))[0, 1] < -0.3  # and reddens


def test_magnitude_is_that_of_the_spectrum(galaxies):
    some = galaxies.select([0, 5, 99])
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    flux = component_spectra(some).double().numpy() @ weights
    np.testing.assert_allclose(flux_to_magnitude(flux.sum(1)), some.r_magnitude, atol=1e-4)
    np.testing.assert_allclose(flux[:, 0] / flux.sum(1), some.bulge_fraction, atol=1e-4)


def test_bulge_is_redder_than_disc(galaxies):
    curves = [filter_curve(f"sdss2010-{band}") for band in "gr"]
    weights = torch.from_numpy(photometry_weights(curves, observed_wavelength())).float()
    some = galaxies.select(slice(0, 200))
    flux = component_spectra(dataclasses.replace(some, attenuation=np.zeros((200, 2)))) @ weights.T
    mixed = (flux[..., 1] / flux[..., 1].sum(1, keepdim=True)).min(1).values > 0.1
    color = -2.5 * torch.log10(flux[mixed][..., 0] / flux[mixed][..., 1])
    assert mixed.sum() > 50
    assert (color[:, 0] > color[:, 1] - 0.03).all()
    assert (color[:, 0] - color[:, 1]).mean() > 0.05


@pytest.mark.parametrize("redshift", [0.02, 0.1234, 0.35])
def test_h_alpha_lands_at_one_plus_redshift_with_its_flux(redshift):
    mass = np.zeros((1, 1, 5))
    mass[0, 0, 1] = 1e10  # the template with the strongest lines
    arguments = (np.zeros((1, 1)), np.array([redshift]), np.array([80.0]))
    spectrum = component_flux(mass, *arguments)[0, 0].double().numpy()
    wavelength = observed_wavelength()
    line = 6564.61 * (1 + redshift)
    near = np.abs(wavelength / line - 1) < 0.0012
    continuum = np.median(spectrum[np.abs(wavelength / line - 1) < 0.02])
    excess = (spectrum - continuum)[near]
    center = (excess * wavelength[near]).sum() / excess.sum()
    assert center == pytest.approx(line, rel=3e-5)
    distance = luminosity_distance(np.array([redshift]))[0]
    expected = 1e10 * templates().line_flux[1, EMISSION_LINES.index(6564.61)].item() * (1e-5 / distance) ** 2
    measured = (excess * np.gradient(wavelength)[near]).sum()
    assert measured == pytest.approx(expected, rel=0.03)


def test_continuum_is_the_template_interpolated_shifted_and_dimmed():
    mass = np.zeros((1, 1, 5))
    mass[0, 0, 3] = 1e11
    redshift = 0.2345678
    spectrum = component_flux(mass, np.zeros((1, 1)), np.array([redshift]), np.array([100.0]))[0, 0].double().numpy()
    rest = templates()
    expected = np.interp(observed_wavelength() / (1 + redshift), rest.wavelength, rest.flux[3].double().numpy())
    expected *= 1e11 * (1e-5 / luminosity_distance(np.array([redshift]))[0]) ** 2 / (1 + redshift)
    np.testing.assert_allclose(spectrum, expected, rtol=2e-4)


def test_dust_dims_by_the_calzetti_curve():
    mass = np.full((1, 2, 5), 1e9)
    redshift, width = np.array([0.1]), np.array([100.0])
    spectra = component_flux(mass, np.array([[0.0, 0.7]]), redshift, width)[0].double().numpy()
    magnitudes = -2.5 * np.log10(spectra[1] / spectra[0])
    np.testing.assert_allclose(magnitudes, 0.7 * calzetti_curve(observed_wavelength() / 1.1), atol=2e-3)
    assert calzetti_curve(np.array([5500.0]))[0] == pytest.approx(1.0, abs=0.005)
    assert calzetti_curve(np.array([1500.0]))[0] == pytest.approx(10.3 / 4.05, abs=0.05)  # k(1500 A) of the paper's fit


def test_component_flux_refuses_redshifts_it_has_no_template_for():
    with pytest.raises(ValueError, match=r"row 1 has 2\.5"):
        component_flux(np.ones((2, 1, 5)), np.zeros((2, 1)), np.array([0.1, 2.5]), np.full(2, 100.0))


@pytest.mark.parametrize(("arguments", "message"), [((0, 0), "num_objects"), ((1, 0, 30.0), "magnitude_limit")])
def test_impossible_draws_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_galaxies(*arguments)


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
