"""Pixels to nodes and back, against slow loops and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, SpectrumObservation
from armillary.tokenizers.spectrum_windows import WindowGrid, read_blurred, read_nodes, window_spectrum

GRID = WindowGrid(4000.0, 8000.0, 10, 12)
CPU = torch.device("cpu")


def spectrum(wavelength, flux, ivar, mask=None):
    return SpectrumObservation(modality("spectrum/desi"), range(len(flux)), flux, wavelength, ivar, mask)


def at(places):
    """Wavelengths of places on GRID, in nodes."""
    return 4000 * np.exp(np.asarray(places) * GRID.node_width)


@pytest.mark.parametrize("pixel_width", [0.31, 1.0, 2.7, 9.0])
def test_nodes_are_means_by_the_share_of_each_pixel_that_lies_on_them(pixel_width):
    rng = np.random.default_rng(0)
    places = np.arange(10.0, 110.0, pixel_width)
    flux, ivar = rng.normal(2, 1, (2, 3, len(places))).astype(np.float32)
    ivar, mask = np.abs(ivar), rng.random(flux.shape) > 0.2
    found = window_spectrum(spectrum(at(places), flux, ivar, mask), GRID, CPU)
    for row in range(3):
        value, weight, covered = np.zeros((3, GRID.size))
        valid = [float(p) for p in places[mask[row]]]
        for pixel, place in enumerate(places):
            if not mask[row, pixel]:
                continue
            width = min([abs(place - other) for other in valid if other != place] + [12.0])
            for node in range(GRID.size):
                overlap = max(0.0, min(place + width / 2, node + 1) - max(place - width / 2, node))
                weight[node] += overlap / width * ivar[row, pixel]
                value[node] += overlap / width * ivar[row, pixel] * flux[row, pixel]
                covered[node] += overlap
        np.testing.assert_allclose(found.weight[row].flatten(), weight, atol=1e-5)
        seen = weight > 1e-4
        np.testing.assert_allclose(found.flux[row].flatten()[seen], (value[seen] / weight[seen]), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.coverage[row].flatten(), covered.clip(max=1), atol=1e-5)


def test_no_weight_is_lost_at_the_ends_of_the_range():
    places = np.arange(0.2, 119.9, 0.7)
    ivar = np.random.default_rng(1).uniform(1, 2, (1, len(places)))
    found = window_spectrum(spectrum(at(places), np.ones_like(ivar), ivar), GRID, CPU)
    assert found.weight.sum().item() == pytest.approx(ivar.sum(), rel=1e-5)
    assert torch.allclose(found.flux, torch.ones(1, 10, 12))


def test_a_hole_in_the_pixels_is_not_covered_wherever_masked_pixels_claim_to_lie():
    places = np.arange(0.5, 120.0)
    mask = np.ones((1, 120), bool)
    mask[0, 30:40] = False
    plain = spectrum(at(places), np.ones((1, 120)), np.ones((1, 120)), mask)
    lies = torch.where(plain.mask, plain.wavelength, torch.nan)
    for observation in (plain, replace(plain, wavelength=lies)):
        found = window_spectrum(observation, GRID, CPU).coverage[0].flatten()
        assert (found[30:40] == 0).all()
        assert torch.allclose(found[:30], torch.ones(30))
        assert torch.allclose(found[40:], torch.ones(80))


def test_windows_know_the_width_and_resolution_of_their_pixels():
    places = np.concatenate([np.arange(0.5, 60, 1.5), np.arange(60.5, 120, 3.0)])
    shape = (1, len(places))
    plain = spectrum(at(places), np.ones(shape), np.ones(shape))
    power = torch.where(torch.from_numpy(places)[None] < 60, 1000.0, 3000.0)
    found = window_spectrum(replace(plain, resolving_power=power), GRID, CPU)
    assert torch.allclose(found.pixel_width[0, [0, 1, 2, 3]], torch.tensor(1.5))
    assert torch.allclose(found.pixel_width[0, [6, 7, 8, 9]], torch.tensor(3.0))
    assert torch.allclose(found.log_resolving_power.exp()[0, [0, 4, 5, 9]], torch.tensor([1000.0, 1000, 3000, 3000]))


def test_a_lone_pixel_is_as_wide_as_a_window_and_alone_makes_its_window_valid():
    found = window_spectrum(spectrum(at([54.0]), [[3.0]], [[2.0]]), GRID, CPU)
    assert found.is_valid[0].nonzero().flatten().tolist() == [4]
    assert found.weight.sum().item() == pytest.approx(2.0)
    assert found.flux[found.weight > 0].unique().tolist() == [3.0]


def test_a_valid_pixel_outside_the_windows_is_an_error():
    with pytest.raises(ObservationError, match=r"object 1: .* from 4000.0 to 8000.0 A; a valid pixel lies at 8001.0 A"):
        window_spectrum(spectrum([5000.0, 8001.0], np.ones((2, 2)), [[1.0, 0.0], [1.0, 1.0]]), GRID, CPU)


def test_nodes_are_read_as_numpy_interpolates_between_their_middles():
    rng = np.random.default_rng(2)
    nodes, places = rng.normal(size=(2, 120)), rng.uniform(-3, 123, (2, 500))
    found = read_nodes(torch.from_numpy(nodes), torch.from_numpy(places))
    for row in range(2):
        np.testing.assert_allclose(found[row], np.interp(places[row], np.arange(120) + 0.5, nodes[row]), atol=1e-9)


@pytest.mark.parametrize("extra", [0.0, 1.5, 4.0])
def test_blurring_a_gaussian_line_adds_the_variances(extra):
    middles = torch.arange(400) + 0.5
    line = torch.exp(-0.5 * ((middles - 200) / 6) ** 2)[None]
    places = torch.linspace(150, 250, 101, dtype=torch.float64)[None]
    found = read_blurred(line, places, torch.full_like(places, extra))
    variance = 36 + extra**2
    expected = 6 / variance**0.5 * torch.exp(-0.5 * (places - 200) ** 2 / variance)
    assert (found - expected).abs().max() < 0.006
