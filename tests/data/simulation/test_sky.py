"""The simulated sky: every modality agrees with the object, and the noise is what it claims to be."""

import numpy as np
import pytest
import torch

from armillary.data.filters import ab_flux, filter_curve, photometry_weights
from armillary.data.instruments import Spectrograph, instrument
from armillary.data.modalities import modality
from armillary.data.simulation.galaxies import Galaxies, component_spectra, draw_galaxies
from armillary.data.simulation.galaxy_spectra import observed_wavelength
from armillary.data.simulation.sky import (
    DEFAULT_MODALITIES,
    SkySettings,
    fiber_fractions,
    noiseless_images,
    noiseless_spectra,
    observe_images,
    observe_scalars,
    observe_spectra,
    simulate_sky,
)
from armillary.data.simulation.spectrograph_response import noise_curves, response_matrix
from armillary.settings import SettingsError, find_config, load_settings

LEGACY, HSC = modality("image/legacysurvey"), modality("image/hsc")
DESI, SDSS = modality("spectrum/desi"), modality("spectrum/sdss")


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return draw_galaxies(64, seed=11)


@pytest.fixture(scope="module")
def spectra(galaxies):
    return component_spectra(galaxies)


def median_ratio(first, second):
    return np.median(np.asarray(first) / np.asarray(second))


@pytest.mark.parametrize("declared", [LEGACY, HSC])
def test_total_flux_of_the_image_is_the_photometry(galaxies, spectra, declared):
    small = np.flatnonzero(galaxies.radius.max(1) < 1.2)[:6]
    image = noiseless_images(galaxies.select(small), declared, 160, 0, spectra[small])
    curves = [filter_curve(band.filter_curve) for band in declared.card.bands]
    expected = spectra[small].sum(1).double().numpy() @ photometry_weights(curves, observed_wavelength()).T
    np.testing.assert_allclose(image.flux.sum((2, 3)), expected, rtol=0.005)


def test_spectrum_is_the_photometry_through_the_fibre(galaxies, spectra):
    """An instrument's r flux, from its own spectrum, is each component's r flux times what enters the fibre."""
    curve = [filter_curve("decam2014-r")]
    components = spectra.double().numpy() @ photometry_weights(curve, observed_wavelength())[0]
    for declared in (DESI, SDSS):
        measured = (
            noiseless_spectra(galaxies, declared, spectra)
            @ photometry_weights(curve, declared.card.wavelength(), min_coverage=0.99)[0]
        )
        expected = (components * fiber_fractions(galaxies, declared.card)).sum(1)
        np.testing.assert_allclose(measured, expected, rtol=0.01)


def test_wider_fibre_gathers_more_light(galaxies):
    narrow, wide = (fiber_fractions(galaxies, declared.card) for declared in (DESI, SDSS))
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


@pytest.mark.parametrize("declared", [LEGACY, HSC])
def test_image_noise_has_the_stated_inverse_variance(galaxies, spectra, declared):
    clean = noiseless_images(galaxies, declared, 40, 5, spectra)
    noisy = observe_images(galaxies, declared, 40, 5, spectra)
    pull = ((noisy.flux - clean.flux) * noisy.inverse_variance.sqrt())[noisy.mask]
    assert pull.mean().item() == pytest.approx(0, abs=0.01)
    assert (pull**2).mean().item() == pytest.approx(1, abs=0.02)
    # Bands are independent of each other.
    assert np.corrcoef(pull[: len(pull) // 2], pull[len(pull) // 2 : 2 * (len(pull) // 2)])[0, 1] == pytest.approx(
        0, abs=0.02
    )


def test_sky_pixels_have_the_noise_of_the_depth(galaxies, spectra):
    faint = np.flatnonzero((galaxies.radius.max(1) < 1.5) & (galaxies.r_magnitude > 18.5))
    observed = observe_images(galaxies.select(faint), LEGACY, 48, 0, spectra[faint])
    corner = observed.inverse_variance[..., :6, :6].amax((2, 3)) ** -0.5
    np.testing.assert_allclose(corner, observed.noise(), rtol=0.03)
    # Each object has its own seeing and depth, near the card's.
    assert median_ratio(observed.psf_fwhm, [[band.psf_fwhm for band in LEGACY.card.bands]]) == pytest.approx(1, abs=0.1)
    assert observed.psf_fwhm.std(0).min() > 0.03
    assert observed.depth.std(0).min() > 0.03


def test_bright_pixels_are_noisier_than_sky(galaxies, spectra):
    bright = [int(galaxies.r_magnitude.argmin())]
    observed = observe_images(galaxies.select(bright), LEGACY, 48, 0, spectra[bright])
    ivar = torch.where(observed.mask, observed.inverse_variance, torch.nan)
    assert ivar[0, 1, 23:25, 23:25].nanmean() < 0.5 * observed.noise()[0, 1] ** -2


@pytest.mark.parametrize("declared", [DESI, SDSS])
def test_spectral_noise_has_the_stated_inverse_variance(galaxies, spectra, declared):
    observed = observe_spectra(galaxies, declared, 5, spectra)
    clean = torch.from_numpy(noiseless_spectra(galaxies, declared, spectra))
    pull = ((observed.flux - clean) * observed.inverse_variance.sqrt())[observed.mask]
    assert (pull**2).mean().item() == pytest.approx(1, abs=0.01)
    assert pull.mean().item() == pytest.approx(0, abs=0.01)


def test_desi_noise_rises_at_the_blue_end_and_in_sky_lines(galaxies, spectra):
    variance, _ = noise_curves(DESI.card)
    wavelength = DESI.card.wavelength()
    noise = np.sqrt(variance)
    assert noise[wavelength < 3650].mean() > 4 * np.median(noise[(wavelength > 6000) & (wavelength < 6200)])
    assert noise[np.abs(wavelength - 5578.9) < 2].max() > 2 * np.median(
        noise[np.abs(wavelength - 5578.9) < 60]
    )  # [O I]


@pytest.mark.parametrize("kind", ["image", "spectrum"])
def test_bad_pixels_are_few_and_masked(galaxies, spectra, kind):
    if kind == "image":
        observed = observe_images(galaxies, LEGACY, 48, 0, spectra)
    else:
        observed = observe_spectra(galaxies, DESI, 0, spectra)
    bad = ~observed.mask
    assert 1e-4 < bad.float().mean() < 0.02
    assert (observed.inverse_variance[bad] == 0).all()
    assert (observed.flux[bad] == 0).all()  # the garbage they held is gone
    assert torch.isfinite(observed.flux).all()


def test_lines_are_seen_at_one_plus_redshift(galaxies, spectra):
    brightest = int(np.argmax(galaxies.log_specific_star_formation_rate + (galaxies.redshift < 0.35)))
    flux = noiseless_spectra(galaxies.select([brightest]), DESI, spectra[[brightest]])[0]
    wavelength = DESI.card.wavelength()
    line = 6564.61 * (1 + galaxies.redshift[brightest])
    near = np.flatnonzero(np.abs(wavelength - line) < 60)
    assert wavelength[near[flux[near].argmax()]] == pytest.approx(line, abs=1.0)


def test_latents_are_given_as_they_are(galaxies, spectra):
    for name, values in (
        ("redshift", galaxies.redshift),
        ("stellar_mass", galaxies.log_stellar_mass),
        ("specific_star_formation_rate", galaxies.log_specific_star_formation_rate),
    ):
        observed = observe_scalars(galaxies, modality(f"scalar/{name}"), 0, spectra)
        np.testing.assert_allclose(observed.values, values, rtol=1e-6)
        assert observed.mask.all()
        assert (observed.error == 0).all()


def test_magnitudes_scatter_by_their_errors():
    many = draw_galaxies(400, seed=2)
    spectra = component_spectra(many)
    weights = photometry_weights([filter_curve("sdss2010-g")], observed_wavelength())[0]
    truth = 22.5 - 2.5 * np.log10(spectra.sum(1).double().numpy() @ weights)
    observed = observe_scalars(many, modality("scalar/sdss_g"), 0, spectra)
    pull = ((observed.values - torch.from_numpy(truth)) / observed.error)[observed.mask]
    assert (pull**2).mean().item() == pytest.approx(1, abs=0.25)
    assert observed.error.min() >= 0.019
    brightness = np.argsort(truth)
    assert observed.error[brightness[:50]].median() < observed.error[brightness[-50:]].median()


def test_undetected_magnitudes_are_masked():
    faint = draw_galaxies(300, seed=3)
    observed = observe_scalars(faint, modality("scalar/sdss_u"), 0)
    assert 0.5 < observed.mask.float().mean() < 1.0
    assert (observed.error[observed.mask] < 0.55).all()


def test_other_catalogues_are_refused(galaxies):
    with pytest.raises(LookupError, match="twomass_k is not simulated"):
        observe_scalars(galaxies, modality("scalar/twomass_k"), 0)


def settings(**changes):
    return SkySettings(num_objects=12, seed=4, **changes)


def test_sky_does_not_depend_on_batch_size():
    (whole,) = simulate_sky(settings(), batch_size=12)
    parts = list(simulate_sky(settings(), batch_size=5))
    assert [len(part[0]) for part in parts] == [5, 5, 2]
    for place, name in enumerate(DEFAULT_MODALITIES):
        assert whole[place].modality.name == name
        assert whole[place].object_id == tuple(i for part in parts for i in part[place].object_id)
        values = "values" if whole[place].modality.kind == "scalar" else "flux"
        together = torch.cat([getattr(part[place], values) for part in parts])
        torch.testing.assert_close(together, getattr(whole[place], values), rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.cat([part[place].mask for part in parts]), whole[place].mask)


def test_noise_differs_between_seeds_objects_and_modalities(galaxies, spectra):
    first, other = (observe_spectra(galaxies, DESI, seed, spectra) for seed in (0, 1))
    clean = torch.from_numpy(noiseless_spectra(galaxies, DESI, spectra))
    pulls = [(o.flux - clean) * o.inverse_variance.sqrt() for o in (first, other)]
    for a, b in ((pulls[0][0], pulls[1][0]), (pulls[0][0], pulls[0][1])):
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(0, abs=0.05)
    bands = observe_images(galaxies, LEGACY, 48, 0, spectra), observe_images(galaxies, HSC, 48, 0, spectra)
    noise = [(o.flux * o.inverse_variance.sqrt())[0, 0, :8].flatten() for o in bands]
    assert not torch.equal(*noise)


def test_shipped_settings_are_the_defaults():
    assert load_settings(SkySettings, find_config("data/sky.yaml")) == SkySettings()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modalities=[image/hcs]", "image/hsc"),
        ("modalities=[scalar/twomass_k]", "not simulated"),
        ("image_sizes={image/hsc: 64}", "image/legacysurvey"),
        ("modalities=[image/hsc,image/hsc]", "must differ"),
        ("num_object=3", "num_objects"),
    ],
)
def test_wrong_settings_are_explained(override, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(SkySettings, overrides=[override])
