"""Quasars: colour tracks of the SDSS, lines where and as strong as published, redshifts of a luminosity function."""

import dataclasses

import numpy as np
import pytest

from armillary.data.filters import filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.simulation import quasars as module
from armillary.data.simulation.quasars import LINES, Quasars, draw_quasars, quasar_spectra
from armillary.data.simulation.wavelength_grid import observed_wavelength

RICHARDS_2001 = {
    0.3: (0.208, 0.385, 0.154, 0.486),
    0.5: (0.278, -0.059, 0.214, 0.097),
    0.7: (0.329, 0.015, 0.019, 0.129),
    0.9: (0.250, 0.119, -0.069, 0.127),
    1.1: (0.114, 0.214, -0.042, -0.065),
    1.3: (0.065, 0.259, 0.025, -0.059),
    1.5: (0.169, 0.150, 0.182, -0.028),
    1.7: (0.106, 0.035, 0.251, 0.024),
    1.9: (-0.009, 0.046, 0.251, 0.057),
    2.1: (0.184, 0.100, 0.112, 0.217),
    2.4: (0.570, 0.062, 0.077, 0.250),
    2.6: (0.795, 0.172, 0.083, 0.252),
    3.0: (1.475, 0.245, 0.088, 0.112),
}
"""Median u-g, g-r, r-i, i-z of SDSS quasars around each redshift (AJ 121, 2308, Table 3)."""


@pytest.fixture(scope="module")
def quasars() -> Quasars:
    return draw_quasars(np.arange(1200), 3, 20.0)


@pytest.fixture(scope="module")
def spectra(quasars):
    return quasar_spectra(quasars).double().numpy()


def test_colors_follow_the_tracks_of_the_sdss(quasars, spectra):
    weights = photometry_weights([filter_curve(f"sdss2010-{band}") for band in "ugriz"], observed_wavelength())
    colors = -np.diff(flux_to_magnitude(spectra.sum(1) @ weights.T))
    differences = []
    for redshift, expected in RICHARDS_2001.items():
        near = np.abs(quasars.redshift - redshift) < 0.12
        assert near.sum() > 10
        differences.append(np.median(colors[near], axis=0) - expected)
    differences = np.array(differences)
    assert np.sqrt((differences[:, 1:] ** 2).mean()) < 0.09
    assert np.sqrt((differences[:11, 0] ** 2).mean()) < 0.12  # u - g, until the forest leaves little light in u
    assert np.abs(differences[:, 1:]).max() < 0.25
    # One-sigma widths of the published relation are about 0.15.
    near = np.abs(quasars.redshift - 1.3) < 0.2
    assert 0.06 < colors[near, 1].std() < 0.25


def test_redshifts_and_numbers_are_those_of_the_luminosity_function(quasars):
    assert 1.0 < np.median(quasars.redshift) < 1.7
    assert quasars.redshift.min() > 0.1
    assert quasars.redshift.max() > 3
    _, _, cumulative, _ = module._population(21.0)
    assert cumulative[-1] == pytest.approx(45, rel=0.25)  # a square degree: Ross et al. 2013, Fig. 5
    faint, bright = (np.median(draw_quasars(np.arange(600), 1, limit).redshift) for limit in (22.0, 18.5))
    assert faint > bright


def test_magnitude_of_the_nucleus_is_that_of_its_spectrum(quasars, spectra):
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    np.testing.assert_allclose(flux_to_magnitude(spectra[:, 2] @ weights), quasars.r_magnitude, atol=1e-3)
    assert quasars.r_magnitude.max() <= 20.0


def test_lines_have_the_published_strengths_at_one_plus_redshift():
    drawn = draw_quasars(np.arange(200), 4, 19.0)
    nearby = np.flatnonzero((drawn.redshift > 0.9) & (drawn.redshift < 1.4))[:1]
    plain = dataclasses.replace(drawn, **{f.name: getattr(drawn, f.name)[nearby] for f in dataclasses.fields(drawn)})
    plain = dataclasses.replace(
        plain, line_strength=np.ones((1, len(LINES))), line_width=np.ones((1, len(LINES))), iron_strength=np.zeros(1)
    )
    bare = dataclasses.replace(plain, line_strength=np.zeros((1, len(LINES))))
    wavelength, redshift = observed_wavelength(), plain.redshift[0]
    ratio = np.array([quasar_spectra(q)[0, 2].double().numpy() for q in (plain, bare)])
    excess = ratio[0] / ratio[1]
    excess /= np.median(excess)
    for line in (line for line in LINES if line.wavelength in (1906.0, 2800.3)):
        near = np.abs(wavelength / (1 + redshift) - line.wavelength) < 5 * line.sigma
        width = ((excess[near] - 1) * np.gradient(wavelength)[near]).sum() / (1 + redshift)
        assert width == pytest.approx(line.equivalent_width, rel=0.1)
        peak = wavelength[near][excess[near].argmax()] / (1 + redshift)
        assert peak == pytest.approx(line.wavelength, abs=1.0)


def test_luminous_quasars_have_weaker_lines():
    """The Baldwin effect: a factor of ten in luminosity takes 30 % off the broad lines."""
    quasars = draw_quasars(np.arange(3000), 6, 21.0)
    strength = np.log(quasars.line_strength[:, 6])
    slope = np.polyfit(-0.4 * quasars.absolute_magnitude, strength / np.log(10), 1)[0]
    assert slope == pytest.approx(-0.15, abs=0.03)


def test_gas_takes_the_light_below_lyman_alpha(quasars, spectra):
    wavelength = observed_wavelength()
    for row in np.flatnonzero(quasars.redshift > 3)[:3]:
        rest = wavelength / (1 + quasars.redshift[row])
        mean = [spectra[row, 2][(rest > low) & (rest < high)].mean() for low, high in ((1050, 1170), (1270, 1370))]
        assert 0.3 < mean[0] / mean[1] < 1.1
        if rest[0] < 880:
            assert spectra[row, 2][rest < 880].mean() < 0.45 * mean[1]


def test_every_quasar_has_its_own_forest(quasars, spectra):
    wavelength = observed_wavelength()
    far = np.flatnonzero((quasars.redshift > 2.6) & (quasars.redshift < 3.2))[:20]
    forests = []
    for row in far:
        rest = wavelength / (1 + quasars.redshift[row])
        part = spectra[row, 2][(rest > 1060) & (rest < 1160)][:800]
        forests.append(part / np.convolve(part, np.full(101, 1 / 101), "same"))
    forests = np.array(forests)[:, 60:-60]
    assert 0.2 < forests.std(1).mean() < 0.6
    assert np.abs(np.corrcoef(forests) - np.eye(len(far))).max() < 0.35
    again = quasar_spectra(draw_quasars(far[:2], 3, 20.0)).double().numpy()
    np.testing.assert_allclose(again, spectra[far[:2]], rtol=1e-5, atol=1e-9)


def test_hosts_matter_nearby_and_vanish_far_away(quasars, spectra):
    share = spectra[:, :2].sum((1, 2)) / spectra.sum((1, 2))
    assert 0.1 < np.median(share[quasars.redshift < 0.4]) < 0.6
    assert np.median(share[(quasars.redshift > 1.5)]) < 0.02
    assert (share[quasars.redshift > 3] == 0).all()
