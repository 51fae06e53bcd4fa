"""Spectra to tokens and back, on any grid."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, SpectrumObservation
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.tokenizers.quantizers import rank_features
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings, split_noise
from armillary.tokenizers.spectrum_amplitude import AMPLITUDE_RANGE, NUM_RATIOS, SIGNAL_TO_NOISE
from armillary.tokenizers.spectrum_lines import APART, REACH, TURNS, num_line_codes


def with_flux(observation, flux, ivar):
    return replace(observation, flux=flux, inverse_variance=ivar)


EDGES = np.geomspace(3300, 10500, 25)
"""Of the windows of the tokenizer under test, angstrom."""
MIDDLES = np.sqrt(EDGES[1:] * EDGES[:-1])


def first_token(tokenizer, observation):
    """Bins of amplitude and signal-to-noise ratio of each object."""
    num_codes = NUM_RATIOS * tokenizer.settings.num_amplitudes
    num_lines = num_line_codes(tokenizer.settings.num_nodes // tokenizer.settings.num_cells)
    size = tokenizer.vocabulary_size(observation.modality)
    codes = tokenizer.encode(observation).codes[:, 0] - (size - num_lines - num_codes)
    return codes // NUM_RATIOS, codes % NUM_RATIOS


def reach_of(settings):
    """Windows to either side that a token may depend on."""
    lines = math.ceil((TURNS * (2 * REACH + APART) + 1) / settings.num_nodes)
    return lines + settings.num_mixers * settings.stretch + settings.stretch - 1


def is_local(first, second, changed, settings):
    """Whether tokens are the same but for those within reach of the windows that `changed` [W]."""
    near = (
        torch.nn.functional.max_pool1d(changed[None].float(), 2 * reach_of(settings) + 1, 1, reach_of(settings))[0] > 0
    )
    near = torch.cat([near, near.repeat_interleave(settings.num_cells)])
    same = ((first.codes == second.codes) & (first.mask == second.mask)).all(0)
    assert not same.all()
    assert near.any()
    assert not near.all()
    return bool(same[0] and same[1:][~near].all())


def test_positions_are_the_middles_of_the_windows_in_log_wavelength(spectrum_tokenizer, sky):
    tokens = spectrum_tokenizer.encode(sky["spectrum/desi"])
    middles = [0.5 * (math.log(a) + math.log(b)) for a, b in itertools.pairwise(EDGES)]
    assert tokens.positions[3, 1:25, 2].tolist() == pytest.approx(middles, abs=1e-5)
    assert tokens.positions[3, 25:, 2].unflatten(0, (24, 2)).mean(1).tolist() == pytest.approx(middles, abs=1e-5)
    assert (tokens.positions[:, 0] == 0).all()
    assert (tokens.positions[..., 3] == (torch.arange(1 + 3 * 24) > 24)).all()
    assert (tokens.positions[..., :2] == 0).all()


def test_a_window_is_valid_where_a_pixel_lies_in_it(spectrum_tokenizer, sky):
    observation = sky["spectrum/sdss"]
    tokens = spectrum_tokenizer.encode(observation)
    for row in range(len(observation)):
        wavelength = observation.wavelength[row][observation.mask[row]].numpy()
        assert tokens.mask[row, 1:25].tolist() == (np.histogram(wavelength, EDGES)[0] > 0).tolist()


@pytest.mark.parametrize("steps", [-40, 25, 60])
def test_the_first_token_keeps_the_amplitude_and_the_others_do_not_know_it(spectrum_tokenizer, sky, steps):
    low, high = AMPLITUDE_RANGE
    factor = 10 ** (steps * (high - low) / 256)
    plain = sky["spectrum/desi"]
    scaled = with_flux(plain, plain.flux * factor, plain.inverse_variance / factor**2)
    first, second = (spectrum_tokenizer.encode(o) for o in (plain, scaled))
    assert torch.equal(second.codes[:, 0] - first.codes[:, 0], torch.full((6,), steps * NUM_RATIOS))
    assert (second.codes[:, 1:] == first.codes[:, 1:]).float().mean() > 0.97  # but for ties in the rounding
    fluxes = [
        spectrum_tokenizer.decode(t, plain).flux
        for t in (first, replace(second, codes=torch.cat([second.codes[:, :1], first.codes[:, 1:]], 1)))
    ]
    assert torch.allclose(fluxes[1] / factor, fluxes[0], rtol=1e-3, atol=1e-4 * fluxes[0].abs().max().item())


def test_the_amplitude_is_within_half_a_bin_of_the_lower_median_of_the_windows_levels(spectrum_tokenizer, sky):
    observation = sky["spectrum/desi"]
    codes, ratios = first_token(spectrum_tokenizer, observation)
    low, high = AMPLITUDE_RANGE
    for row in range(len(observation)):
        valid = observation.mask[row].numpy()
        wavelength, flux, ivar = (
            getattr(observation, n)[row].numpy()[valid] for n in ("wavelength", "flux", "inverse_variance")
        )
        window = np.digitize(wavelength, EDGES) - 1
        asked = [window == w for w in range(24) if 5000 < MIDDLES[w] < 8000]
        errors = np.array([ivar[inside].sum() ** -0.5 for inside in asked])
        levels = np.hypot([np.average(flux[inside], weights=ivar[inside]) for inside in asked], errors)
        median, ratio = (np.sort(x)[(len(asked) - 1) // 2] for x in (levels, levels / errors))
        middle = low + (high - low) * (codes[row].item() + 0.5) / 256
        assert abs(middle - math.log10(median)) <= 0.5 * (high - low) / 256 + 5e-3  # pixels across a window's edge
        assert ratios[row] == np.digitize(ratio, SIGNAL_TO_NOISE)


@pytest.mark.parametrize("shift", [1, 7, 150, 601])
def test_where_the_grid_starts_and_ends_moves_nothing_but_the_edge_tokens(fine_spectrum_tokenizer, sky, shift):
    whole = sky["spectrum/desi"]
    names = ("flux", "inverse_variance", "mask", "wavelength", "resolving_power")
    cut = replace(whole, **{name: getattr(whole, name)[:, shift : -2 * shift] for name in names})
    window = (fine_spectrum_tokenizer.grid.places(whole.wavelength[0]) / fine_spectrum_tokenizer.grid.num_nodes).long()
    changed = torch.zeros(192, dtype=torch.bool)
    changed[window[: shift + 1]] = True
    changed[window[-2 * shift - 1 :]] = True
    assert is_local(
        fine_spectrum_tokenizer.encode(whole),
        fine_spectrum_tokenizer.encode(cut),
        changed,
        fine_spectrum_tokenizer.settings,
    )


def test_a_change_reaches_the_tokens_beside_it_and_no_other(fine_spectrum_tokenizer, sky):
    plain = sky["spectrum/sdss"]
    place = fine_spectrum_tokenizer.grid.places(plain.wavelength) / fine_spectrum_tokenizer.grid.num_nodes
    inside = (place > 80.2) & (place < 80.8)
    flux = torch.where(inside, plain.flux * 3, plain.flux)
    first, second = fine_spectrum_tokenizer.encode(plain), fine_spectrum_tokenizer.encode(replace(plain, flux=flux))
    assert (first.codes != second.codes)[:, 1 + 80].any()
    assert is_local(first, second, torch.arange(192) == 80, fine_spectrum_tokenizer.settings)


@pytest.mark.parametrize("factor", [8.0, 25.0])
def test_a_line_goes_through_tokens_with_place_and_strength_untrained(fine_spectrum_tokenizer, factor):
    grid = 3600 + 0.8 * np.arange(7781)
    rng = np.random.default_rng(5)
    line = np.exp(-0.5 * ((grid - 6911.3) / 2.5) ** 2)
    noise = rng.normal(0, 1, (2, len(grid)))
    flux = np.stack([4 + factor * line + noise[0], 4 + noise[1]])
    observation = SpectrumObservation(modality("spectrum/desi"), "ab", flux, grid, np.ones(flux.shape))
    tokens = fine_spectrum_tokenizer.encode(observation)
    places = tokens.positions[0, 193:, 2].exp()
    assert places[tokens.mask[0, 193:] & ~tokens.mask[1, 193:]].sub(6911).abs().min() < 10
    without = replace(tokens, mask=tokens.mask & (torch.arange(577) < 193))
    added = (fine_spectrum_tokenizer.decode(tokens).flux - fine_spectrum_tokenizer.decode(without).flux)[0].numpy()
    near = np.abs(grid - 6911.3) < 12
    assert added[near].sum() * 0.8 == pytest.approx(factor * 2.5 * math.sqrt(2 * math.pi), rel=0.5)


def test_a_sky_fibre_has_the_amplitude_of_its_noise(spectrum_tokenizer):
    grid, error = np.linspace(4000, 9000, 3000), 0.5
    blank = SpectrumObservation(
        modality("spectrum/desi"), ["sky"], np.zeros((1, 3000)), grid, np.full((1, 3000), error**-2)
    )
    codes, ratios = first_token(spectrum_tokenizer, blank)
    low, high = AMPLITUDE_RANGE
    pixels = np.median(MIDDLES[(MIDDLES > 5000) & (MIDDLES < 8000)]) * math.log(10500 / 3300) / 24 / np.diff(grid)[0]
    found = 10 ** (low + (high - low) * (codes[0].item() + 0.5) / 256)
    assert found == pytest.approx(error / math.sqrt(pixels), rel=0.15)
    assert ratios[0] == 0


@pytest.mark.parametrize("scale", [1e-15, 1e9])
def test_an_amplitude_outside_the_range_is_an_error_that_names_the_object(spectrum_tokenizer, scale):
    grid, flux = np.linspace(4000, 9000, 50), np.full((2, 50), 1.0)
    flux[1] *= scale
    ivar = np.ones((2, 50)) / np.array([[1.0], [scale**2]])
    observation = SpectrumObservation(modality("spectrum/desi"), ["good", "odd"], flux, grid, ivar)
    with pytest.raises(ObservationError, match="object odd: the median absolute flux of its windows must lie in"):
        spectrum_tokenizer.encode(observation)


@pytest.mark.parametrize("wavelength", [3200.0, 10600.0])
def test_a_valid_pixel_out_of_range_is_an_error_that_names_object_and_wavelength(spectrum_tokenizer, wavelength):
    grid = np.sort(np.append(np.linspace(4000, 9000, 50), wavelength))
    mask = np.ones((2, 51), bool)
    mask[0] = grid != wavelength
    arguments = (modality("spectrum/desi"), ["good", "far"], np.ones((2, 51)), grid, np.ones((2, 51)))
    with pytest.raises(ObservationError, match=rf"object far: .* from 3300.0 to 10500.0 A; .* {wavelength} A"):
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


def test_tokens_tell_which_pixels_are_bad(spectrum_tokenizer, fine_spectrum_tokenizer):
    """By construction: AUC 0.95 is asked of 24 windows on spectra with cosmic rays and bad columns, untrained."""
    settings = SkySettings(num_objects=16, modalities=("spectrum/desi", "spectrum/sdss"), seed=11, neighbours=False)
    for observation in next(simulate_sky(settings)):
        for tokenizer, least in ((fine_spectrum_tokenizer, 0.97), (spectrum_tokenizer, 0.9)):
            validity = tokenizer.validity(tokenizer.encode(observation), observation)
            bad, good = validity[~observation.mask], validity[observation.mask]
            wins = (good[:, None] > bad[None]).float().mean() + 0.5 * (good[:, None] == bad[None]).float().mean()
            assert wins > least


def test_validity_is_the_share_of_a_window_that_its_token_says_was_measured(spectrum_tokenizer):
    grid = np.geomspace(EDGES[4] * 1.00001, EDGES[12] * 0.99999, 8 * 60)
    mask = np.ones((1, len(grid)), bool)
    mask[0, 70] = False  # one pixel of window 5
    mask[0, 130:160] = False  # half of window 6
    mask[0, 180:240] = False  # all of window 7
    ones = np.ones((1, len(grid)))
    observation = SpectrumObservation(modality("spectrum/desi"), ["a"], ones, grid, ones, mask)
    validity = spectrum_tokenizer.validity(spectrum_tokenizer.encode(observation), modality("spectrum/sdss"))[0]
    target = modality("spectrum/sdss").card.wavelength()
    window = np.digitize(target, EDGES) - 1
    for w in range(24):
        expected = {5: 0.875, 6: 0.375, 7: 0.0}.get(w, 1.0) if 4 <= w < 12 else 0.0
        assert (validity[torch.from_numpy(window == w)] == expected).all(), w


def test_a_lower_resolution_is_the_spectrum_through_a_gaussian_and_a_higher_one_changes_nothing(
    spectrum_tokenizer, sky
):
    observation = sky["spectrum/sdss"]
    tokens = spectrum_tokenizer.encode(observation)
    grid = observation.wavelength[0]
    plain = spectrum_tokenizer.decode(tokens, observation).flux.double()
    power = observation.resolving_power
    higher = spectrum_tokenizer.decode(tokens, replace(observation, resolving_power=power * 2)).flux
    assert torch.equal(higher.double(), plain)
    wanted = 500.0
    blurred = spectrum_tokenizer.decode(tokens, replace(observation, resolving_power=power * 0 + wanted)).flux
    for pixel in (700, 1500, 2600):
        own = power[0, pixel].item()
        sigma = math.sqrt(wanted**-2 - own**-2) / 2.3548
        weight = torch.exp(-0.5 * ((grid / grid[pixel]).log() / sigma) ** 2)
        expected = (plain * weight).sum(1) / weight.sum()
        spread = (plain - expected[:, None]).square().mul(weight).sum(1).div(weight.sum()).sqrt()
        assert ((blurred[:, pixel] - expected).abs() < 0.05 * spread + 1e-4).all()


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
        losses.append(spectrum_tokenizer.loss(replace(observation, flux=flux, mask=mask)).loss)
    assert losses[0] == losses[1]
    gradients = torch.autograd.grad(losses[0], list(spectrum_tokenizer.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_the_loss_reports_chi2_per_valid_pixel_and_the_codes_of_the_quantiser(spectrum_tokenizer, sky):
    observation = sky["spectrum/desi"]
    found, tokens = spectrum_tokenizer.loss(observation), spectrum_tokenizer.encode(observation)
    back = spectrum_tokenizer.decode(tokens, observation).flux
    squares = ((back - observation.flux) ** 2 * observation.inverse_variance).double()[observation.mask]
    assert found.parts["chi2"].item() == pytest.approx(squares.mean().item(), rel=1e-3)
    shapes = tokens.codes[:, 1:25] % spectrum_tokenizer.quantizer.vocabulary_size
    assert torch.equal(found.mask, tokens.mask[:, 1:25])
    assert torch.equal(found.codes[found.mask], shapes[found.mask])


def test_the_two_halves_of_a_split_have_independent_noise_of_the_stated_variance():
    torch.manual_seed(4)
    grid, truth, ivar = np.linspace(4000, 9000, 5000), 3.0, 0.25
    noise = torch.randn(20, 5000) * ivar**-0.5
    mask = np.random.default_rng(0).random((20, 5000)) > 0.1
    whole = SpectrumObservation(
        modality("spectrum/desi"), range(20), truth + noise, grid, np.full((20, 5000), ivar), mask
    )
    first, second = split_noise(whole, 0.5)
    for half, variance in ((first, 1.5 / ivar), (second, 3.0 / ivar)):
        assert torch.equal(half.mask, whole.mask)
        assert torch.allclose(half.inverse_variance[whole.mask], torch.tensor(1 / variance))
        assert half.flux[whole.mask].var().item() == pytest.approx(variance, rel=0.03)
        assert half.flux[whole.mask].mean().item() == pytest.approx(truth, abs=0.05)
    pair = torch.stack([first.flux[whole.mask], second.flux[whole.mask]])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.015


def test_a_few_steps_on_one_batch_bring_the_loss_down(sky):
    torch.manual_seed(0)
    tokenizer = SpectrumTokenizer(SpectrumTokenizerSettings(width=32, num_blocks=1, num_windows=24, num_nodes=12))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = tokenizer.loss(sky["spectrum/desi"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_tokens_of_another_number_of_windows_are_refused(spectrum_tokenizer, sky):
    tokens = spectrum_tokenizer.encode(sky["spectrum/desi"])
    fewer = {name: getattr(tokens, name)[:, :-1] for name in ("codes", "mask", "positions")}
    with pytest.raises(ObservationError, match=r"tokens of each object, found .* made by another tokenizer"):
        spectrum_tokenizer.decode(replace(tokens, **fewer))


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
        ({"levels": (8, 8, 8, 8, 3)}, "must not exceed 32768"),
        ({"num_windows": 9, "stretch": 2}, "multiple of stretch, found 9 and 2"),
        ({"num_nodes": 9, "num_cells": 2}, "multiple of num_cells, found 9 and 2"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        SpectrumTokenizerSettings(**settings)
