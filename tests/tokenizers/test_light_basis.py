"""What an instrument sees of the basis functions: against GalSim, numpy and plain sums."""

import galsim
import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.tokenizers.light_basis import LEAST_TRANSFER, TYPICAL_LIGHT, LightBasis


@pytest.fixture(scope="module")
def basis():
    return LightBasis(6, (4, 3, 2), 3000.0, 11500.0)


@pytest.mark.parametrize("fwhm", [0.4, 0.8, 1.5])
def test_the_transfer_function_is_that_of_galsims_moffat(basis, fwhm):
    side = 2.0
    found = basis.transfer(torch.tensor([[fwhm]], dtype=torch.float64), side)[0, 0].numpy()
    moffat = galsim.Moffat(beta=3.5, fwhm=fwhm)
    frequency = basis.half_cycles.numpy() / (2 * side)
    expected = [moffat.kValue(2 * np.pi * f, 0.0).real for f in frequency]
    assert found == pytest.approx(np.maximum(expected, LEAST_TRANSFER), abs=1e-3)


def test_cosines_and_polynomials_are_each_orthonormal_over_a_patch(basis):
    place = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    shapes = basis.shapes(place)
    products = shapes.T @ shapes / len(place)
    assert torch.allclose(products[:7, :7], torch.eye(7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(products[7:, 7:], torch.eye(2, dtype=torch.float64), atol=1e-6)
    assert products[0, 7:].abs().max() < 1e-6


def test_light_that_falls_across_a_patch_is_a_sum_of_few_functions(basis):
    """A slope, for which a sum of cosines alone converges slowly."""
    place = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    shapes = basis.shapes(place)
    falling = torch.exp(-2 * place)
    errors = []
    for chosen in (shapes[:, :7], shapes):
        found = torch.linalg.lstsq(chosen, falling[:, None]).solution
        errors.append((chosen @ found - falling[:, None]).abs().max().item())
    assert errors[1] < 0.05 * errors[0]


def test_bands_see_the_mean_of_each_function_of_wavelength(basis):
    card = modality("image/hsc").card
    found = basis.spectral(card, ("g", "y"))
    for row, name in enumerate("gy"):
        band = card.band(name)
        wavelength = np.linspace(band.wavelength - band.width / 2, band.wavelength + band.width / 2, 2001)
        x = 2 * np.log(wavelength / 3000) / np.log(11500 / 3000) - 1
        light = np.interp(wavelength, *TYPICAL_LIGHT)
        for order in range(4):
            expected = (np.polynomial.legendre.Legendre.basis(order)(x) * light).mean()
            assert found[row, order].item() == pytest.approx(expected, abs=2e-3)


def test_the_design_is_the_sum_over_all_functions_written_out(basis):
    rng = np.random.default_rng(0)
    mix = torch.from_numpy(rng.normal(size=(len(basis), 3)))
    response = torch.from_numpy(rng.normal(size=(2, 4, len(basis))))
    found = basis.design(response, mix, pixels=5)
    place = (np.arange(5) + 0.5) / 5
    x = 2 * place - 1
    shapes = [np.ones(5), *(np.sqrt(2) * np.cos(np.pi * k * place) for k in range(1, 7))]
    shapes += [np.sqrt(3) * x, np.sqrt(5) * (3 * x**2 - 1) / 2]
    expected = np.zeros((2, 4, 5, 5, 3))
    for j in range(len(basis)):
        rows, columns = basis.waves[basis.spatial_of[j]].tolist()
        wave = np.outer(shapes[rows], shapes[columns])
        expected += response[:, :, j, None, None, None].numpy() * wave[..., None] * mix[j].numpy()
    assert np.allclose(found.numpy(), expected.reshape(2, 4, 25, 3), atol=1e-10)


def test_the_grid_holds_each_plane_function_where_it_belongs(basis):
    values = torch.arange(1.0, len(basis.waves) + 1)
    grid = basis.to_grid(values)
    for (rows, columns), value in zip(basis.waves.tolist(), values.tolist(), strict=True):
        assert grid[rows, columns] == value
    assert grid.count_nonzero() == len(values)


def test_the_smoothest_coefficients_look_alike_in_the_bands():
    basis = LightBasis(3, (5, 4, 3), 3000.0, 11500.0)
    seen = basis.spectral(modality("image/hsc").card, tuple("grizy"))
    rough = torch.from_numpy(np.random.default_rng(0).normal(size=(20, len(basis))))
    coefficients = rough * (1.0 + basis.spectral_of) ** -2

    found = coefficients @ basis.smoothest(seen).T

    for wave in range(len(basis.waves)):
        pairs = (basis.spatial_of == wave).nonzero()[:, 0]
        before, after = coefficients[:, pairs], found[:, pairs]
        bands = seen[:, : len(pairs)]
        light = (before @ bands.T).square().mean().sqrt()
        assert ((after - before) @ bands.T).abs().max() < 0.1 * light
        roughness = (1.0 + torch.arange(len(pairs))) ** 4
        assert ((after * roughness).square().sum(1) <= (before * roughness).square().sum(1)).all()
    typical = torch.zeros(1, len(basis), dtype=torch.float64)
    typical[0, basis.spectral_of == 0] = 1.0
    assert torch.allclose(typical @ basis.smoothest(seen).T, typical, atol=1e-3)


def test_light_beyond_the_bands_follows_the_typical_spectrum():
    basis = LightBasis(1, (5, 5, 5), 3000.0, 11500.0)
    card = modality("image/hsc").card
    one = basis.smoothest(basis.spectral(card, ("r",)))
    pairs = (basis.spatial_of == 0).nonzero()[:, 0]
    wild = torch.zeros(len(basis), dtype=torch.float64)
    wild[pairs] = torch.tensor([1.0, 3.0, -2.0, 4.0, -5.0], dtype=torch.float64)

    ratio = [(basis.spectral(card, (band,)) @ (one @ wild)[pairs]).item() for band in "grz"]

    of_typical = [basis.spectral(card, (band,))[0, 0].item() for band in "grz"]
    assert ratio[0] / ratio[1] == pytest.approx(of_typical[0] / of_typical[1], rel=0.05)
    assert ratio[2] / ratio[1] == pytest.approx(of_typical[2] / of_typical[1], rel=0.05)
