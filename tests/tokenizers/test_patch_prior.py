"""Learning what patches look like from noisy, incomplete ones: against draws from a known Gaussian."""

import numpy as np
import torch

from armillary.tokenizers.light_basis import LightBasis
from armillary.tokenizers.patch_prior import PatchPrior


def make_patches(basis, regression, root, count, seed, noise):
    """Designs, light, weights, brightness and context of patches seen with noise, some pixels missing."""
    rng = np.random.default_rng(seed)
    num = len(basis)
    context = torch.from_numpy(rng.normal(size=(count, regression.shape[1])))
    context[:, 0] = 1.0
    brightness = torch.from_numpy(10 ** rng.uniform(-1, 1, count))
    response = torch.from_numpy(rng.uniform(0.3, 1.0, (count, 3, num)))
    design = basis.design(response, torch.eye(num, dtype=torch.float64), 5).flatten(1, 2)
    drawn = context @ regression.T + torch.from_numpy(rng.normal(size=(count, num))) @ root.T
    light = (design @ (drawn * brightness[:, None])[..., None])[..., 0]
    deviation = noise * brightness[:, None]
    light = light + deviation * torch.from_numpy(rng.normal(size=light.shape))
    weight = torch.where(torch.from_numpy(rng.random(light.shape)) > 0.2, deviation**-2, 0.0)
    return design, torch.where(weight > 0, light, 1e3), weight, brightness, context


def test_rounds_find_the_regression_and_covariance_behind_noisy_incomplete_patches():
    basis = LightBasis(2, (2, 1, 1), 3000.0, 11500.0)
    rng = np.random.default_rng(1)
    num = len(basis)
    regression = torch.zeros(num, 3, dtype=torch.float64)
    regression[0, 0], regression[1, 0], regression[1, 1], regression[3, 2] = 1.0, 0.3, 0.5, -0.2
    root = torch.from_numpy(rng.normal(size=(num, num)) * 0.3 / np.sqrt(num))
    prior = PatchPrior(basis, num_latents=4, num_context=3)
    patches = make_patches(basis, regression, root, 3000, 2, noise=0.2)
    for _ in range(40):
        prior.maximize(prior.expect(*patches))
    expected = root @ root.T
    assert (prior.regression - regression).abs().max() < 0.03
    assert torch.linalg.norm(prior.covariance - expected) < 0.12 * torch.linalg.norm(expected)


def test_statistics_of_parts_add_to_those_of_the_whole():
    basis = LightBasis(2, (2, 1, 1), 3000.0, 11500.0)
    prior = PatchPrior(basis, num_latents=4)
    patches = make_patches(basis, prior.regression, 0.1 * torch.eye(len(basis), dtype=torch.float64), 60, 3, noise=0.1)
    whole = prior.expect(*patches)
    parts = prior.expect(*(p[:20] for p in patches)) + prior.expect(*(p[20:] for p in patches))
    for one, two in zip(whole.tensors(), parts.tensors(), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def test_latents_have_unit_light_and_fall_in_variance():
    basis = LightBasis(2, (2, 1, 1), 3000.0, 11500.0)
    prior = PatchPrior(basis, num_latents=4)
    root = 0.2 * torch.eye(len(basis), dtype=torch.float64)
    patches = make_patches(basis, prior.regression, root, 400, 4, noise=0.05)
    sums = prior.expect(*patches)
    prior.maximize(sums)
    metric = sums.metric / sums.count
    assert torch.allclose(prior.latents.T @ metric @ prior.latents, torch.eye(4, dtype=torch.float64), atol=1e-4)
    assert (prior.variances.diff() <= 0).all()
    found = prior.latents.T @ metric @ prior.covariance @ metric @ prior.latents
    assert torch.allclose(found.diagonal(), prior.variances, rtol=1e-3)
