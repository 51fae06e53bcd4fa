"""Spectra of simulated objects: the light in the fibre, the instrument's resolution, and honest noise."""

import numpy as np
import pytest
import torch

from armillary.data.filters import ab_flux, filter_curve, photometry_weights
from armillary.data.instruments import Spectrograph, instrument
from armillary.data.modalities import modality
from armillary.data.simulation.observe_spectra import fiber_fractions, noiseless_spectra, observe_spectra
from armillary.data.simulation.sky_objects import Population, SkyObjects, draw_objects
from armillary.data.simulation.spectrograph_response import noise_curves, response_matrix
from armillary.data.simulation.wavelength_grid import observed_wavelength

DESI, SDSS = modality("spectrum/desi"), modality("spectrum/sdss")


@pytest.fixture(scope="module")
def objects() -> SkyObjects:
    population = Population(11, 19.8, star_fraction=0.1, quasar_fraction=0.1, shard_size=100, healpix_order=1)
    return draw_objects(population, np.arange(64))


def test_spectrum_is_the_photometry_through_the_fibre(objects):
    """An instrument's r flux, from its own spectrum, is each component's r flux times what enters the fibre."""
    curve = [filter_curve("decam2014-r")]
    components = objects.spectra.double().numpy() @ photometry_weights(curve, observed_wavelength())[0]
    for declared in (DESI, SDSS):
        measured = (
            noiseless_spectra(objects, declared)
            @ photometry_weights(curve, declared.card.wavelength(), min_coverage=0.99)[0]
        )
        expected = (components * fiber_fractions(objects, declared.card)).sum(1)
        np.testing.assert_allclose(measured, expected, rtol=0.01)


def test_wider_fibre_gathers_more_light(objects):
    narrow, wide = (fiber_fractions(objects, declared.card) for declared in (DESI, SDSS))
    assert (narrow < wide).all()
    assert (wide <= 1).all()


@pytest.mark.parametrize("name", ["desi", "sdss"])
def test_response_keeps_flux_and_has_the_stated_resolving_power(name):
    card = instrument(name)
    assert isinstance(card, Spectrograph)
    matrix, fine, wavelength = response_matrix(card), observed_wavelength(), card.wavelength()
    np.testing.assert_allclose(matrix @ np.ones(len(fine)), 1, rtol=1e-5)
    for line in (4000.0, 6563.0, 9000.0):
        spectrum = np.zeros(len(fine))
        pixel = np.searchsorted(fine, line)
        spectrum[pixel] = 1 / (fine[pixel] * 1e-4)  # unit flux
        observed = matrix @ spectrum
        width = np.gradient(wavelength)
        assert (observed * width).sum() == pytest.approx(1, rel=2e-3)
        center = (observed * width * wavelength).sum()
        assert center == pytest.approx(fine[pixel], abs=0.02)
        variance = (observed * width * (wavelength - center) ** 2).sum()
        expected = (line / card.resolving_power_at(np.array([line]))[0] / 2.3548) ** 2
        pixels = np.interp(line, wavelength, width) ** 2 / 12 + (line * 1e-4) ** 2 / 12
        assert variance == pytest.approx(expected + pixels, rel=0.02)


def test_spectrograph_beyond_the_simulated_range_is_refused():
    far = instrument("desi").model_copy(update={"wavelength_max": 12000.0})
    with pytest.raises(ValueError, match="reaches from 3600 to 12000 A"):
        response_matrix(far)


@pytest.mark.parametrize("name", ["desi", "sdss"])
def test_source_of_the_cards_depth_has_signal_to_noise_one_per_angstrom(name):
    card = instrument(name)
    assert isinstance(card, Spectrograph)
    variance, _ = noise_curves(card)
    wavelength = card.wavelength()
    per_angstrom = np.sqrt(variance * np.gradient(wavelength))
    assert np.median(ab_flux(wavelength, card.depth) / per_angstrom) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("declared", [DESI, SDSS])
def test_spectral_noise_has_the_stated_inverse_variance(objects, declared):
    observed = observe_spectra(objects, declared)
    clean = torch.from_numpy(noiseless_spectra(objects, declared))
    pull = ((observed.flux - clean) * observed.inverse_variance.sqrt())[observed.mask]
    assert (pull**2).mean().item() == pytest.approx(1, abs=0.01)
    assert pull.mean().item() == pytest.approx(0, abs=0.01)
    rows = [((observed.flux - clean) * observed.inverse_variance.sqrt())[row] for row in (0, 1)]
    assert np.corrcoef(*rows)[0, 1] == pytest.approx(0, abs=0.05)


def test_desi_noise_rises_at_the_blue_end_and_in_sky_lines():
    variance, _ = noise_curves(DESI.card)
    wavelength = DESI.card.wavelength()
    noise = np.sqrt(variance)
    assert noise[wavelength < 3650].mean() > 4 * np.median(noise[(wavelength > 6000) & (wavelength < 6200)])
    assert noise[np.abs(wavelength - 5578.9) < 2].max() > 2 * np.median(
        noise[np.abs(wavelength - 5578.9) < 60]
    )  # [O I]


def test_noise_follows_each_objects_own_sky():
    """Moonlight makes blue pixels noisier than red ones, the sky's lines rise and fall apart from the continuum."""
    variance, per_flux = noise_curves(DESI.card)
    objects = draw_objects(Population(11, 23.5, 0.0, 0.0, shard_size=100, healpix_order=1), np.arange(100))
    clean = noiseless_spectra(objects, DESI)
    faint = np.flatnonzero(np.median(per_flux * clean / variance, 1) < 0.1)
    observed = observe_spectra(objects.select(faint), DESI)
    wavelength = DESI.card.wavelength()
    ratio = torch.where(observed.mask, 1 / observed.inverse_variance, torch.nan).double().numpy() / variance
    blue, red = (
        np.nanmedian(ratio[:, (wavelength > a) & (wavelength < b)], 1) for a, b in ((3700, 4300), (6000, 6200))
    )
    bright_lines = variance > 5 * np.median(variance)
    lines = np.nanmedian(ratio[:, bright_lines & (wavelength > 7000)], 1)
    assert 0.05 < (blue / red).std() < 0.4
    assert 0.15 < np.log(lines / red).std() < 0.45
    assert np.median(ratio[np.isfinite(ratio)]) == pytest.approx(1, abs=0.15)


def test_bad_pixels_are_few_and_masked(objects):
    observed = observe_spectra(objects, DESI)
    bad = ~observed.mask
    assert 1e-4 < bad.float().mean() < 0.02
    assert (observed.inverse_variance[bad] == 0).all()
    assert (observed.flux[bad] == 0).all()  # the garbage they held is gone
    assert torch.isfinite(observed.flux).all()


def test_lines_are_seen_at_one_plus_redshift(objects):
    rate, redshift = objects.truth["log_specific_star_formation_rate"], objects.truth["redshift"]
    brightest = int(np.nanargmax(rate + (redshift < 0.35)))
    flux = noiseless_spectra(objects.select([brightest]), DESI)[0]
    wavelength = DESI.card.wavelength()
    line = 6564.61 * (1 + redshift[brightest])
    near = np.flatnonzero(np.abs(wavelength - line) < 60)
    assert wavelength[near[flux[near].argmax()]] == pytest.approx(line, abs=1.0)


def test_a_camera_is_no_spectrograph(objects):
    with pytest.raises(ValueError, match="expected a modality of kind spectrum, found image/hsc"):
        observe_spectra(objects, modality("image/hsc"))
