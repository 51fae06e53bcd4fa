"""Point sources of images: stars of known place and flux, galaxies that are none, and their tokens."""

import math

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation
from armillary.tokenizers.point_sources import (
    find_sources,
    num_source_codes,
    render_sources,
    source_codes,
    source_positions,
    sources_of,
)
from armillary.tokenizers.token_grid import DETAIL, LOG_WAVELENGTH

CPU = torch.device("cpu")
FLUXES = {"image/hsc": (40.0, 90.0, 120.0, 140.0, 150.0), "image/legacysurvey": (60.0, 120.0, 150.0, 180.0)}
BETA = 3.5


def star(name, places, fluxes, *, size=40, noise=True, mask=None, seed=0):
    """Moffat profiles at places (row, column) in pixels, with the card's PSF and noise."""
    card = modality(name).card
    blank = ImageObservation(modality(name), ["a"], np.zeros((1, len(card.bands), size, size)), band_names(name))
    fwhm = blank.psf_fwhm.numpy()[0][:, None, None]
    a = fwhm / 2 / math.sqrt(2 ** (1 / BETA) - 1)
    flux = np.zeros(blank.flux.shape[1:])
    for (row, column), of_bands in zip(places, fluxes, strict=True):
        square = ((np.mgrid[:size, :size] - np.reshape([row, column], (2, 1, 1))) ** 2).sum(0) * card.pixel_scale**2
        profile = (BETA - 1) / (math.pi * a**2) * (1 + square / a**2) ** -BETA * card.pixel_scale**2
        flux += np.reshape(of_bands, (-1, 1, 1)) * profile
    sigma = blank.noise().numpy()[0][:, None, None]
    if noise:
        flux = flux + sigma * np.random.default_rng(seed).normal(size=flux.shape)
    ivar = np.broadcast_to(sigma**-2, flux.shape)
    return ImageObservation(modality(name), ["a"], flux[None], band_names(name), ivar[None], mask)


def band_names(name):
    return [band.name for band in modality(name).card.bands]


def wavelengths(name):
    return [band.wavelength for band in modality(name).card.bands]


@pytest.mark.parametrize("name", FLUXES)
@pytest.mark.parametrize("place", [(19.5, 19.5), (12.3, 25.8), (1.2, 38.1)])
def test_a_star_is_found_at_its_place_with_its_flux_to_the_noise(name, place):
    observation = star(name, [place], [FLUXES[name]])

    found = find_sources(observation, 3, CPU)

    assert found.measured[0].any(1).tolist() == [True, False, False]
    assert found.measured[0, 0].all()
    scale = observation.card.pixel_scale
    offset = (np.array(place)[::-1] - 19.5) * scale
    # The place is known to about the PSF's width over the signal-to-noise ratio, some hundreds here.
    np.testing.assert_allclose(found.place[0, 0], offset, atol=0.01)
    np.testing.assert_allclose(found.flux[0, 0], FLUXES[name], rtol=0.03)


def test_two_stars_come_the_brightest_first_and_no_more_than_wanted():
    faint = tuple(0.3 * flux for flux in FLUXES["image/hsc"])
    observation = star("image/hsc", [(10.0, 10.0), (25.0, 28.0)], [faint, FLUXES["image/hsc"]])

    both = find_sources(observation, 2, CPU)
    one = find_sources(observation, 1, CPU)

    np.testing.assert_allclose(both.flux[0].numpy(), [FLUXES["image/hsc"], faint], rtol=0.05)
    assert torch.equal(one.flux[0, 0], both.flux[0, 0])
    assert find_sources(observation, 0, CPU).place.shape == (1, 0, 2)


def test_a_star_under_a_masked_core_is_found_by_its_wings():
    mask = np.ones((1, 5, 40, 40), dtype=bool)
    mask[:, :, 19:21, 19:21] = False
    observation = star("image/hsc", [(19.6, 19.4)], [FLUXES["image/hsc"]], mask=mask)

    found = find_sources(observation, 2, CPU)

    assert found.measured[0].any(1).tolist() == [True, False]
    np.testing.assert_allclose(found.flux[0, 0], FLUXES["image/hsc"], rtol=0.05)


def test_noise_galaxies_and_single_hot_pixels_are_no_point_sources():
    name = "image/hsc"
    nothing = star(name, [], [])
    radius = np.hypot(*np.mgrid[:40, :40] - 19.5) * modality(name).card.pixel_scale
    galaxy = star(name, [], []).flux + torch.tensor(5.0 * np.exp(-radius / 0.6)).float()
    hot = star(name, [], []).flux.clone()
    hot[:, :, 20, 20] += 100
    for flux in (nothing.flux, galaxy, hot):
        observation = ImageObservation(modality(name), ["a"], flux, band_names(name), nothing.inverse_variance)
        assert not find_sources(observation, 4, CPU).measured.any()


def test_tokens_keep_places_to_a_milliarcsecond_and_fluxes_to_half_a_per_cent():
    found = find_sources(star("image/hsc", [(12.3, 25.8)], [FLUXES["image/hsc"]]), 3, CPU)

    codes, mask = source_codes(found)
    back = sources_of(codes, mask, 5)

    assert codes.shape == mask.shape == (1, 3 * 16)
    assert mask.sum() == 16
    assert ((codes >= 0) & (codes < num_source_codes())).all()
    assert torch.equal(back.measured, found.measured)
    np.testing.assert_allclose(back.place[0, 0], found.place[0, 0], atol=3e-4)
    np.testing.assert_allclose(back.flux[0, 0], found.flux[0, 0], rtol=3e-3)
    mask[0, 8] = False  # a digit of the second band
    assert sources_of(codes, mask, 5).measured[0, 0].tolist() == [True, False, True, True, True]


def test_light_of_a_source_is_its_flux_through_every_camera():
    name = "image/hsc"
    found = find_sources(star(name, [(19.5, 19.5)], [FLUXES[name]], noise=False), 1, CPU)
    for other in ("image/hsc", "image/legacysurvey"):
        card = modality(other).card
        target = ImageObservation(modality(other), ["a"], np.zeros((1, len(card.bands), 101, 101)), band_names(other))

        light = render_sources(found, wavelengths(name), target)

        # Interpolated between the bands of HSC, whose fluxes rise.
        expected = np.interp(np.log(wavelengths(other)), np.log(wavelengths(name)), np.log(FLUXES[name]))
        np.testing.assert_allclose(light.sum((2, 3))[0], np.exp(expected), rtol=0.02)
        assert light[0, 0].argmax() == 50 * 101 + 50


def test_a_band_without_a_valid_pixel_has_no_flux_and_is_filled_from_its_neighbours():
    name = "image/hsc"
    mask = np.ones((1, 5, 40, 40), dtype=bool)
    mask[:, 2] = False
    observation = star(name, [(19.5, 19.5)], [FLUXES[name]], mask=mask)

    found = find_sources(observation, 1, CPU)
    light = render_sources(found, wavelengths(name), star(name, [], [], size=81))

    assert found.measured[0, 0].tolist() == [True, True, False, True, True]
    np.testing.assert_allclose(light[0, 2].sum(), FLUXES[name][2], rtol=0.05)


def test_positions_tell_band_source_and_role_but_not_where_a_source_lies():
    positions = source_positions(2, 3, wavelengths("image/hsc"))

    assert positions.shape == (2, 3 * 16, 4)
    assert (positions[..., :2] == 0).all()
    assert (positions[..., DETAIL] < 0).all()
    roles = {tuple(row) for row in positions[0, :, [LOG_WAVELENGTH, DETAIL]].tolist()}
    assert len(roles) == 3 * 16
