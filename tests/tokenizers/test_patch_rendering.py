"""Patches rendered for another camera: a point of light between patches, through a broader PSF, in closed form."""

import math

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation
from armillary.tokenizers.light_basis import LightBasis
from armillary.tokenizers.patch_grid import PatchGrid, patch_pixels
from armillary.tokenizers.patch_rendering import render_for_camera, render_patches

BETA, SIDE = 3.5, 2.0


@pytest.fixture(scope="module")
def basis():
    return LightBasis(8, (1, 1, 1), 3000.0, 11500.0)


def moffat(observation, place):
    """A source of one nanomaggy at (x, y) arcsec through the PSF of each band, sampled at the pixels' middles."""
    scale = observation.card.pixel_scale
    a = observation.psf_fwhm.double()[..., None, None] / 2 / math.sqrt(2 ** (1 / BETA) - 1)
    y, x = (
        (torch.arange(n) - observation.center[0, axis]) * scale - place[1 - axis]
        for axis, n in enumerate(observation.flux.shape[2:])
    )
    square = y[:, None] ** 2 + x**2
    return ((BETA - 1) / (math.pi * a**2) * (1 + square / a**2) ** -BETA * scale**2).float()


TYPICAL = torch.ones(1, 1, dtype=torch.float64)
"""Colours of an object with the typical spectrum."""


def blank(name, size):
    bands = [band.name for band in modality(name).card.bands]
    return ImageObservation(modality(name), ["a"], torch.zeros(1, len(bands), size, size), bands)


def patches_of(basis, image, through):
    """Coefficients of one band's patches, each fitted by itself."""
    grid = PatchGrid.of(image, SIDE)
    light = grid.cut(image.flux.double())[0, :, 0] / image.card.pixel_scale**2
    transfer = basis.transfer(image.psf_fwhm.double(), grid.pixels * image.card.pixel_scale)[:, through]
    response = transfer[..., basis.spatial_of][:, None, :]
    design = basis.design(response, torch.eye(len(basis), dtype=torch.float64), grid.pixels)[0, 0]
    ridge = 1e-6 * torch.eye(len(basis), dtype=torch.float64)
    return torch.linalg.solve(design.T @ design + ridge, design.T @ light.T).T[None].float(), grid


@pytest.mark.parametrize("name", ["image/legacysurvey", "image/sdss"])
def test_a_broader_psf_carries_light_over_the_edges_of_patches(basis, name):
    hsc = modality("image/hsc").card
    image, target = blank("image/hsc", 84), blank(name, 20)
    # On the border of two patches, near the corner of four.
    place = (1.0, 0.9)
    band = 1
    seen = ImageObservation(image.modality, ["a"], moffat(image, place)[:, band, None], [hsc.bands[band].name])
    coefficients, grid = patches_of(basis, seen, 0)
    coefficients = coefficients / basis.spectral(hsc, (hsc.bands[band].name,))[0, 0].float()
    side = patch_pixels(hsc, SIDE) * hsc.pixel_scale

    found = render_for_camera(basis, coefficients, TYPICAL, grid.offsets(seen), side, hsc, target)

    # In colour, the light is that of the basis: of the band nearest, about one.
    nearest = min(
        range(len(target.bands)), key=lambda c: abs(target.card.bands[c].wavelength - hsc.bands[band].wavelength)
    )
    ratio = basis.spectral(target.card, (target.bands[nearest],))[0, 0] / basis.spectral(hsc, ("r",))[0, 0]
    expected = moffat(target, place)[0, nearest] * ratio
    error = (found[0, nearest] - expected).abs().max() / expected.max()
    assert error < 0.04
    alone = render_patches(basis, coefficients, TYPICAL, grid.offsets(seen), side, target)
    assert (alone[0, nearest] - expected).abs().max() / expected.max() > 0.15


def test_even_light_stays_even_and_the_own_camera_is_rendered_directly(basis):
    hsc, image, target = modality("image/hsc").card, blank("image/hsc", 84), blank("image/sdss", 24)
    grid = PatchGrid.of(image, SIDE)
    coefficients = torch.zeros(1, grid.rows * grid.columns, len(basis))
    coefficients[..., 0] = 1.0
    side = patch_pixels(hsc, SIDE) * hsc.pixel_scale
    middles = grid.offsets(image)

    even = render_for_camera(basis, coefficients, TYPICAL, middles, side, hsc, target)
    expected = basis.spectral(target.card, tuple(target.bands))[:, 0] * target.card.pixel_scale**2
    np.testing.assert_allclose(even[0], expected[:, None, None].expand(-1, 24, 24).numpy(), rtol=1e-3)
    own = render_for_camera(basis, coefficients, TYPICAL, middles, side, hsc, image)
    assert torch.equal(own, render_patches(basis, coefficients, TYPICAL, middles, side, image))
