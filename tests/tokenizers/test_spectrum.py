"""Spectra to tokens and back, on any grid."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, SpectrumObservation
from armillary.tokenizers.spectrum import (
    AMPLITUDE_RANGE,
    SpectrumTokenizer,
    SpectrumTokenizerSettings,
    _nodes,
    rank_features,
)


def with_flux(observation, flux, ivar):
    return replace(observation, flux=flux, inverse_variance=ivar)


def test_positions_are_the_middles_of_the_windows_in_log_wavelength(spectrum_tokenizer, sky):
    tokens = spectrum_tokenizer.encode(sky["spectrum/desi"])
    edges = np.geomspace(3500, 10500, 25)
    middles = [0.5 * (math.log(a) + math.log(b)) for a, b in itertools.pairwise(edges)]
    assert tokens.positions[3, 1:, 2].tolist() == pytest.approx(middles, abs=1e-5)
    assert (tokens.positions[:, 0] == 0).all()
    assert (tokens.positions[..., :2] == 0).all()


def test_a_window_is_valid_where_a_pixel_lies_in_it(spectrum_tokenizer, sky):
    observation = sky["spectrum/sdss"]
    tokens = spectrum_tokenizer.encode(observation)
    edges = np.geomspace(3500, 10500, 25)
    for row in range(len(observation)):
        wavelength = observation.wavelength[row][observation.mask[row]].numpy()
        assert tokens.mask[row, 1:].tolist() == (np.histogram(wavelength, edges)[0] > 0).tolist()


@pytest.mark.parametrize("steps", [-40, 25, 60])
def test_the_first_token_keeps_the_amplitude_and_the_others_do_not_know_it(spectrum_tokenizer, sky, steps):
    low, high = AMPLITUDE_RANGE
    factor = 10 ** (steps * (high - low) / 256)
    plain = sky["spectrum/desi"]
    scaled = with_flux(plain, plain.flux * factor, plain.inverse_variance / factor**2)
    first, second = (spectrum_tokenizer.encode(o) for o in (plain, scaled))
    assert torch.equal(second.codes[:, 0] - first.codes[:, 0], torch.full((6,), steps))
    assert (second.codes[:, 1:] == first.codes[:, 1:]).float().mean() > 0.97  # but for ties in the rounding
    fluxes = [
        spectrum_tokenizer.decode(t, plain).flux
        for t in (first, replace(second, codes=torch.cat([second.codes[:, :1], first.codes[:, 1:]], 1)))
    ]
    assert torch.allclose(fluxes[1], fluxes[0] * factor, rtol=1e-3)


def test_the_amplitude_is_within_half_a_bin_of_the_median_absolute_flux(spectrum_tokenizer, sky):
    observation = sky["spectrum/desi"]
    codes = spectrum_tokenizer.encode(observation).codes[:, 0] - spectrum_tokenizer.quantizer.vocabulary_size
    low, high = AMPLITUDE_RANGE
    for row in range(len(observation)):
        median = np.median(np.abs(observation.flux[row][observation.mask[row]].numpy()))
        middle = low + (high - low) * (codes[row].item() + 0.5) / 256
        assert abs(middle - math.log10(median)) <= 0.5 * (high - low) / 256 + 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_an_amplitude_outside_the_range_is_an_error_that_names_the_object(spectrum_tokenizer, scale):
    grid, flux = np.linspace(4000, 9000, 50), np.full((2, 50), 1.0)
    flux[1] *= scale
    observation = SpectrumObservation(modality("spectrum/desi"), ["good", "odd"], flux, grid, np.ones((2, 50)))
    with pytest.raises(ObservationError, match="object odd: the median absolute flux must lie in"):
        spectrum_tokenizer.encode(observation)


@pytest.mark.parametrize("wavelength", [3400.0, 10600.0])
def test_a_valid_pixel_out_of_range_is_an_error_that_names_object_and_wavelength(spectrum_tokenizer, wavelength):
    grid = np.sort(np.append(np.linspace(4000, 9000, 50), wavelength))
    mask = np.ones((2, 51), bool)
    mask[0] = grid != wavelength
    arguments = (modality("spectrum/desi"), ["good", "far"], np.ones((2, 51)), grid, np.ones((2, 51)))
    with pytest.raises(ObservationError, match=rf"object far: .* from 3500.0 to 10500.0 A; .* {wavelength} A"):
        spectrum_tokenizer.encode(SpectrumObservation(*arguments, mask))
    mask[1] = mask[0]
    assert spectrum_tokenizer.encode(SpectrumObservation(*arguments, mask)).mask[:, 0].all()


def test_appended_masked_pixels_change_no_code_whatever_they_hold(spectrum_tokenizer, sky):
    plain = sky["spectrum/desi"].select([0, 1])
    fields = {}
    for name, fill in (("flux", 1e6), ("inverse_variance", 9.0), ("mask", False), ("resolving_power", -1.0)):
        value = getattr(plain, name)
        fields[name] = torch.cat([value, torch.full((2, 77), fill, dtype=value.dtype)], 1)
    junk = torch.linspace(20000, -500, 77, dtype=torch.float64).expand(2, -1)
    padded = replace(plain, wavelength=torch.cat([plain.wavelength, junk], 1), **fields)
    first, second = spectrum_tokenizer.encode(plain), spectrum_tokenizer.encode(padded)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.mask, second.mask)
    back = spectrum_tokenizer.decode(second, padded)
    expected = spectrum_tokenizer.decode(first, plain).flux[plain.mask]
    assert torch.allclose(back.flux[:, :-77][plain.mask], expected, rtol=1e-4, atol=1e-4)
    assert not back.mask[:, -77:].any()


def test_decoding_as_another_spectrograph_gives_its_wavelengths(spectrum_tokenizer, sky):
    tokens = spectrum_tokenizer.encode(sky["spectrum/desi"])
    other = modality("spectrum/sdss")
    back = spectrum_tokenizer.decode(tokens, other)
    grid = other.card.wavelength()
    assert back.modality == other
    assert np.array_equal(back.wavelength, np.tile(grid, (6, 1)))
    assert back.flux.isfinite().all()
    covered = (grid > 3600) & (grid < 9800)
    assert back.mask[:, covered].all()


def test_wavelengths_that_no_token_covers_are_masked(spectrum_tokenizer, sky):
    whole = sky["spectrum/desi"]
    blue = replace(whole, mask=whole.mask & (whole.wavelength < 5000))
    back = spectrum_tokenizer.decode(spectrum_tokenizer.encode(blue), modality("spectrum/desi"))
    assert back.mask[:, back.wavelength[0] < 5000].all()
    assert not back.mask[:, back.wavelength[0] > 5300].any()


def test_pixels_are_shared_between_the_nodes_beside_them_by_distance():
    window = torch.tensor([[0, 0, 1, 2]])
    place = torch.tensor([[0.0, 0.3, 0.5, 0.9999]])
    node, share = _nodes(window, place, 5)
    for w, p, n, s in zip(window[0].tolist(), place[0].tolist(), node[0].tolist(), share[0].tolist(), strict=True):
        assert w * 5 <= n <= w * 5 + 3
        assert n - 5 * w + s == pytest.approx(4 * p, abs=1e-5)
        assert 0 <= s <= 1


def test_the_features_of_ordered_codes_are_nearest_for_neighbours():
    features = rank_features(64)
    distance = torch.cdist(features, features)
    assert (distance + 100 * torch.eye(64)).argmin(1).sub(torch.arange(64)).abs().max() == 1


def test_the_loss_ignores_masked_pixels_and_has_a_gradient_for_every_weight(spectrum_tokenizer, sky):
    observation = sky["spectrum/sdss"]
    mask = observation.mask & (torch.rand(observation.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.2)
    losses = []
    for spoil in (0.0, 50.0):
        flux = torch.where(mask, observation.flux, spoil)
        losses.append(spectrum_tokenizer.loss(replace(observation, flux=flux, mask=mask)))
    assert losses[0] == losses[1]
    gradients = torch.autograd.grad(losses[0], list(spectrum_tokenizer.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_a_few_steps_on_one_batch_bring_the_loss_down(sky):
    torch.manual_seed(0)
    tokenizer = SpectrumTokenizer(SpectrumTokenizerSettings(width=32, num_blocks=1, num_windows=24, num_nodes=12))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = tokenizer.loss(sky["spectrum/desi"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_spectra_decode_to_spectra_of_as_many_objects_only(spectrum_tokenizer, sky):
    tokens = spectrum_tokenizer.encode(sky["spectrum/desi"])
    with pytest.raises(ObservationError, match="spectra decode to spectra; found the target image/hsc"):
        spectrum_tokenizer.decode(tokens, modality("image/hsc"))
    with pytest.raises(ObservationError, match="expected a target of 6 objects, found 1"):
        spectrum_tokenizer.decode(tokens, sky["spectrum/desi"].select([0]))


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"wavelength_min": 9000, "wavelength_max": 4000}, "0 < wavelength_min < wavelength_max"),
        ({"levels": (8, 8, 8, 8, 8)}, "must not exceed 32768"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        SpectrumTokenizerSettings(**settings)
