"""Lines are found where they are, and only there."""

import numpy as np
import pytest
import torch

from armillary.tokenizers.spectrum_lines import (
    FAINTEST,
    NUM_ABSORPTION,
    NUM_EMISSION,
    OFFSETS,
    REACH,
    SIGMAS,
    STEP,
    _fit,
    draw_lines,
    find_lines,
    line_features,
    num_line_codes,
)

CELL, SIZE = 18, 720
NODES = np.arange(SIZE)


def gaussian(place, sigma):
    return np.exp(-0.5 * ((NODES - place) / sigma) ** 2)


def find(flux, error, is_valid=None):
    flux = torch.as_tensor(np.atleast_2d(flux), dtype=torch.float32)
    weight = torch.as_tensor(np.broadcast_to(np.asarray(error, float) ** -2, flux.shape).copy(), dtype=torch.float32)
    valid = torch.ones(flux.shape, dtype=torch.bool) if is_valid is None else torch.as_tensor(is_valid)
    return find_lines(flux, weight, valid, CELL)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("peak", [-0.9, 0.6, 30.0])
def test_a_line_is_drawn_again_as_it_was(sigma, peak):
    error = abs(peak) / 25
    flux = 1 + 0.001 * NODES + peak * gaussian(300.2, sigma) + np.random.default_rng(0).normal(0, error, SIZE)
    codes, found = find(flux, error)
    drawn = draw_lines(codes, found, CELL)[0].numpy()
    assert found.sum() <= 3  # what rounding leaves of a strong line may count as another
    assert found[0, 300 // CELL]
    rest = drawn - peak * gaussian(300.2, sigma)
    assert np.sqrt((rest**2).sum() / (peak**2 * gaussian(300.2, sigma) ** 2).sum()) < 0.3
    assert np.abs(rest[np.abs(NODES - 300) > 40]).max() < 1e-6 * abs(peak)


def test_a_triplet_as_of_hydrogen_and_nitrogen_is_found_whole():
    places, peaks = (352.0, 363.0, 378.0), (1.5, 4.0, 2.0)
    flux = 1 + sum(a * gaussian(p, 2.0) for p, a in zip(places, peaks, strict=True))
    codes, found = find(flux + np.random.default_rng(1).normal(0, 0.15, SIZE), 0.15)
    drawn = draw_lines(codes, found, CELL)[0]
    for place, peak in zip(places, peaks, strict=True):
        assert drawn[int(place) - 2 : int(place) + 3].max() == pytest.approx(peak, rel=0.35)


def test_noise_has_hardly_a_line_and_a_slope_has_none():
    noise = np.random.default_rng(2).normal(0, 1.0, (40, SIZE))
    assert find(5 + noise, 1.0)[1].sum() <= 4
    assert not find(np.linspace(-50, 80, SIZE), 0.01)[1][:, 1:-1].any()


def test_nothing_is_found_where_nothing_is_valid_or_measured():
    flux = 1 + 5 * gaussian(100, 1.6) + 5 * gaussian(500, 1.6)
    valid = np.ones((1, SIZE), bool)
    valid[:, 90:108] = False
    assert find(flux, 0.1, valid)[1].nonzero()[:, 1].tolist() == [500 // CELL]
    error = np.where(np.abs(NODES - 500) < 8, 1e6, 0.1)
    assert 500 // CELL not in find(flux, error)[1].nonzero()[:, 1].tolist()
    assert not find(np.zeros(SIZE), np.inf)[1].any()


def test_the_fit_is_least_squares_with_a_straight_continuum():
    rng = np.random.default_rng(3)
    flux, weight = rng.normal(2, 1, (1, 120)), rng.uniform(0.0, 2, (1, 120))
    peak, significance = _fit(torch.tensor(flux), torch.tensor(weight))
    x = np.arange(-REACH, REACH + 1)
    for node in (20, 57, 99):
        inside = slice(node - REACH, node + REACH + 1)
        root = np.sqrt(weight[0, inside])
        for shape, (sigma, offset) in enumerate((s, o) for s in SIGMAS for o in OFFSETS):
            design = np.stack([np.ones(len(x)), x, np.exp(-0.5 * ((x - offset) / sigma) ** 2)], 1) * root[:, None]
            solution = np.linalg.lstsq(design, flux[0, inside] * root, rcond=None)[0]
            error = np.sqrt(np.linalg.inv(design.T @ design)[2, 2])
            assert peak[0, shape, node].item() == pytest.approx(solution[2], rel=1e-6, abs=1e-9)
            assert significance[0, shape, node].item() == pytest.approx(abs(solution[2]) / error, rel=1e-6)


def test_every_code_is_drawn_with_its_place_width_and_strength():
    shapes = [(sigma, offset) for sigma in SIGMAS for offset in OFFSETS]
    ranks = [(1, r) for r in range(NUM_EMISSION)] + [(-1, r) for r in range(NUM_ABSORPTION)]
    generator = torch.Generator().manual_seed(4)
    for code in torch.randint(num_line_codes(CELL), (200,), generator=generator).tolist():
        place, rest = divmod(code, len(shapes) * len(ranks))
        (sigma, offset), (sign, rank) = shapes[rest // len(ranks)], ranks[rest % len(ranks)]
        codes, found = torch.zeros(1, SIZE // CELL, dtype=torch.long), torch.arange(SIZE // CELL)[None] == 7
        codes[0, 7] = code
        expected = sign * FAINTEST * np.exp(STEP * rank) * gaussian(7 * CELL + place + offset, sigma)
        expected[np.abs(NODES - 7 * CELL - place) > REACH] = 0
        np.testing.assert_allclose(draw_lines(codes, found, CELL)[0], expected, rtol=1e-4, atol=1e-6)


def test_lines_at_the_ends_are_drawn_as_far_as_there_are_nodes():
    codes, found = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    codes[0, 1] = num_line_codes(CELL) - NUM_ABSORPTION - 1
    drawn = draw_lines(codes, found, CELL)
    assert drawn.shape == (1, 2 * CELL)
    assert drawn[0, 0] > 0
    assert drawn[0, -1] > 100


def test_features_tell_all_codes_apart():
    features = line_features(CELL)
    assert len(features) == num_line_codes(CELL)
    assert len(features.unique(dim=0)) == len(features)
