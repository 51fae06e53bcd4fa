"""Spectra of galaxies: lines and continuum where they belong, dust and gas by their curves; distances by astropy."""

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM

from armillary.data.simulation.cosmology import (
    comoving_distance,
    kiloparsec_per_arcsec,
    luminosity_distance,
    redshift_at,
)
from armillary.data.simulation.galaxy_spectra import EMISSION_LINES, calzetti_curve, component_flux, templates
from armillary.data.simulation.intergalactic import forest, transmission
from armillary.data.simulation.wavelength_grid import observed_wavelength


def test_distances_agree_with_astropy():
    oracle = FlatLambdaCDM(H0=67.66, Om0=0.3111)
    redshift = np.array([0.01, 0.1, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(comoving_distance(redshift), oracle.comoving_distance(redshift).value, rtol=1e-5)
    np.testing.assert_allclose(luminosity_distance(redshift), oracle.luminosity_distance(redshift).value, rtol=1e-5)
    np.testing.assert_allclose(
        kiloparsec_per_arcsec(redshift), 1 / oracle.arcsec_per_kpc_proper(redshift).value, rtol=1e-5
    )
    np.testing.assert_allclose(redshift_at(comoving_distance(redshift)), redshift, rtol=1e-6)


@pytest.mark.parametrize(
    ("redshift", "line"), [(0.02, 6564.61), (0.1234, 6564.61), (0.35, 6564.61), (1.2, 3727.09), (1.6, 3727.09)]
)
def test_line_lands_at_one_plus_redshift_with_its_flux(redshift, line):
    mass = np.zeros((1, 1, 5))
    mass[0, 0, 1] = 1e10  # the template with the strongest lines
    arguments = (np.zeros((1, 1)), np.array([redshift]), np.array([80.0]))
    spectrum = component_flux(mass, *arguments)[0, 0].double().numpy()
    wavelength = observed_wavelength()
    near = np.abs(wavelength / (line * (1 + redshift)) - 1) < 0.0016
    excess = (spectrum - continuum(1, 1e10, redshift))[near]
    within = [i for i, other in enumerate(EMISSION_LINES) if abs(other / line - 1) < 0.001]  # [O II] is two
    flux = templates().line_flux[1, within].double().numpy() * 1e10
    center = (excess * wavelength[near]).sum() / excess.sum()
    expected = (flux * np.array(EMISSION_LINES)[within]).sum() / flux.sum() * (1 + redshift)
    assert center == pytest.approx(expected, rel=3e-5)
    distance = luminosity_distance(np.array([redshift]))[0]
    measured = (excess * np.gradient(wavelength)[near]).sum()
    assert measured == pytest.approx(flux.sum() * (1e-5 / distance) ** 2, rel=0.01)


def continuum(template, mass, redshift):
    rest = templates()
    flux = np.interp(observed_wavelength() / (1 + redshift), rest.wavelength, rest.flux[template].double().numpy())
    return flux * mass * (1e-5 / luminosity_distance(np.array([redshift]))[0]) ** 2 / (1 + redshift)


@pytest.mark.parametrize("redshift", [0.2345678, 1.3])
def test_continuum_is_the_template_interpolated_shifted_and_dimmed(redshift):
    mass = np.zeros((1, 1, 5))
    mass[0, 0, 3] = 1e11
    spectrum = component_flux(mass, np.zeros((1, 1)), np.array([redshift]), np.array([100.0]))[0, 0].double().numpy()
    np.testing.assert_allclose(spectrum, continuum(3, 1e11, redshift), rtol=2e-4)


def test_dust_dims_by_the_calzetti_curve():
    mass = np.full((1, 2, 5), 1e9)
    redshift, width = np.array([0.1]), np.array([100.0])
    spectra = component_flux(mass, np.array([[0.0, 0.7]]), redshift, width)[0].double().numpy()
    magnitudes = -2.5 * np.log10(spectra[1] / spectra[0])
    np.testing.assert_allclose(magnitudes, 0.7 * calzetti_curve(observed_wavelength() / 1.1), atol=2e-3)
    assert calzetti_curve(np.array([5500.0]))[0] == pytest.approx(1.0, abs=0.005)
    assert calzetti_curve(np.array([1500.0]))[0] == pytest.approx(10.3 / 4.05, abs=0.05)  # k(1500 A) of the paper's fit


def test_dust_curve_goes_on_straight_and_rising_below_its_data():
    curve = calzetti_curve(np.arange(800.0, 1300.0, 10))
    np.testing.assert_allclose(np.diff(curve, 2)[:38], 0, atol=1e-9)
    assert (np.diff(curve) < 0).all()


def test_component_flux_refuses_redshifts_it_has_no_template_for():
    with pytest.raises(ValueError, match=r"row 1 has 3\.5"):
        component_flux(np.ones((2, 1, 5)), np.zeros((2, 1)), np.array([0.1, 3.5]), np.full(2, 100.0))


KNOWN_TRANSMISSIONS = (
    (1.6, 2990, 0.9354),
    (2.5, 3255, 0.8080),
    (2.5, 4025, 0.8192),
    (2.9, 3120, 0.2586),
    (3.8, 3840, 0.0641),
    (3.8, 4464, 0.5071),
    (5.5, 7475, 0.1055),
)


def test_gas_takes_what_inoue_and_others_say():
    """Values of the published model, as the code `eazy` 0.8.7 computes them (Inoue14.full_IGM)."""
    wavelength = observed_wavelength()
    for redshift, at, expected in KNOWN_TRANSMISSIONS:
        share = transmission(np.array([redshift]))[0].numpy()
        assert np.interp(at, wavelength, share) == pytest.approx(expected, abs=0.003), (redshift, at)


def test_gas_takes_nothing_above_lyman_alpha_and_dims_with_distance():
    wavelength = observed_wavelength()
    share = transmission(np.array([0.5, 2.0, 3.0, 4.0])).numpy()
    assert (share[0] == 1).all()
    for row, redshift in enumerate((0.5, 2.0, 3.0, 4.0)):
        assert (share[row, wavelength > 1215.7 * (1 + redshift)] == 1).all()
    forest = [
        share[row, (wavelength > 1050 * (1 + z)) & (wavelength < 1170 * (1 + z))].mean()
        for row, z in ((1, 2), (2, 3), (3, 4))
    ]
    # Becker et al. 2013 (MNRAS 430, 2067): 0.86, 0.68 and 0.41 at the redshift of the gas, which is a little lower.
    np.testing.assert_allclose(forest, [0.86, 0.72, 0.48], atol=0.05)
    with pytest.raises(ValueError, match=r"row 1 has 7\.0"):
        transmission(np.array([1.0, 7.0]))


def test_forest_of_lines_has_the_mean_transmission_and_scatters_as_real_ones():
    rng = np.random.default_rng(0)
    for mean in (0.9, 0.75, 0.4):
        lines = forest(np.full(200_000, mean), rng.standard_normal(200_000))
        assert lines.mean() == pytest.approx(mean, abs=0.01)
        assert ((lines >= 0) & (lines <= 1)).all()
        lag = np.corrcoef(lines[:-2], lines[2:])[0, 1]
        assert 0.2 < lag < 0.8  # lines are wider than pixels
        assert np.abs(np.corrcoef(lines[:-20], lines[20:])[0, 1]) < 0.05
    assert 0.2 < forest(np.full(200_000, 0.75), rng.standard_normal(200_000)).std() < 0.35


def test_distant_galaxies_are_dimmed_by_the_gas():
    arguments = (np.ones((1, 1, 5)), np.zeros((1, 1)), np.array([2.8]), np.array([100.0]))
    spectrum = component_flux(*arguments)[0, 0].numpy()
    wavelength = observed_wavelength()
    below, above = (
        spectrum[wavelength < 900 * 3.8].mean(),
        spectrum[(wavelength > 1300 * 3.8) & (wavelength < 1400 * 3.8)].mean(),
    )
    assert below < 0.1 * above
