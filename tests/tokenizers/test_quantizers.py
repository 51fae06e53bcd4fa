"""Finite scalar quantisation against its definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.tokenizers.quantizers import FiniteScalarQuantizer

LEVELS = st.lists(st.integers(2, 8), min_size=1, max_size=4)


def to_z(latents):
    """The inverse of the bounding function, away from the ends."""
    return torch.logit((latents + 1) / 2, eps=1e-6) / 2


@settings(deadline=None, max_examples=25)
@given(LEVELS)
def test_every_code_survives_the_way_to_its_latents_and_back(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.vocabulary_size)
    latents, again = quantizer(to_z(quantizer.from_codes(codes))[None])
    assert torch.equal(again[0], codes)
    assert torch.allclose(latents[0], quantizer.from_codes(codes), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(LEVELS)
def test_the_vocabulary_is_the_product_of_the_levels_and_codes_are_distinct_points_of_the_grid(levels):
    quantizer = FiniteScalarQuantizer(levels)
    assert quantizer.vocabulary_size == math.prod(levels)
    points = {
        tuple(p) for p in quantizer.from_codes(torch.arange(quantizer.vocabulary_size)).round(decimals=4).tolist()
    }
    grid = itertools.product(*([round(2 * k / (n - 1) - 1, 4) for k in range(n)] for n in levels))
    assert {tuple(round(x, 3) for x in p) for p in points} == {tuple(round(x, 3) for x in p) for p in grid}


def test_latents_go_to_the_nearest_of_the_levels_along_each_dimension():
    quantizer = FiniteScalarQuantizer([7, 5])
    z = torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0))
    latents, codes = quantizer(z)
    for (first, second), latent, code in zip(z[0].tolist(), latents[0], codes[0].tolist(), strict=True):
        digits = [round((n - 1) / (1 + math.exp(-2 * x))) for n, x in ((7, first), (5, second))]
        assert code == digits[0] + 7 * digits[1]
        assert latent.tolist() == pytest.approx([2 * digits[0] / 6 - 1, 2 * digits[1] / 4 - 1], abs=1e-6)


def test_gradients_pass_straight_through_the_rounding():
    quantizer = FiniteScalarQuantizer([7, 5, 5])
    z = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(2))
    (quantizer(z)[0] * weight).sum().backward()
    bounded = z.detach().clone().requires_grad_()
    ((2 * torch.sigmoid(2 * bounded) - 1) * weight).sum().backward()
    assert torch.allclose(z.grad, bounded.grad, atol=1e-6)


def test_codes_stay_in_the_vocabulary_for_latents_of_any_size():
    quantizer = FiniteScalarQuantizer([7, 5, 5, 5, 5])
    z = torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30])[None, :, None].expand(1, 5, 5)
    codes = quantizer(z)[1]
    assert codes.min() >= 0
    assert codes.max() < quantizer.vocabulary_size


def test_code_features_are_shared_by_codes_that_agree_in_a_factor():
    quantizer = FiniteScalarQuantizer([3, 2])
    features = quantizer.code_features()
    assert features.shape == (6, 5)
    latents = quantizer.from_codes(torch.arange(6))
    for i, j in itertools.product(range(6), range(6)):
        assert features[i] @ features[j] == (latents[i] == latents[j]).sum()


def test_saturation_is_zero_inside_the_range_and_grows_outside():
    quantizer = FiniteScalarQuantizer([5])
    assert quantizer.saturation(torch.tensor([[[-1.0], [0.3], [1.0]]])) == 0
    assert quantizer.saturation(torch.tensor([[[3.0], [0.0]]])) == pytest.approx(2.0)


@pytest.mark.parametrize("levels", [[], [1], [5, 1]])
def test_fewer_than_two_levels_are_refused(levels):
    with pytest.raises(ValueError, match="two levels"):
        FiniteScalarQuantizer(levels)


def test_unevenness_is_what_the_entropy_of_the_codes_lacks():
    quantizer = FiniteScalarQuantizer([5, 3, 4])
    levels = torch.cartesian_prod(*(torch.arange(float(n)) for n in (5, 3, 4)))
    share = (levels / torch.tensor([4.0, 2.0, 3.0])).clamp(1e-7, 1 - 1e-7)
    z = (share.logit() / 2)[None]  # the middle of every code
    everywhere = torch.ones(1, 60, dtype=torch.bool)
    assert quantizer.unevenness(z, everywhere).item() == pytest.approx(0, abs=1e-4)
    some = torch.arange(60)[None] % 10 == 0  # six codes of sixty
    assert quantizer.unevenness(z, some).item() == pytest.approx(math.log(10), abs=1e-4)
    curve = torch.linspace(-2, 2, 500)[None, :, None].expand(-1, -1, 3)  # each dimension is even, together they are not
    assert quantizer.unevenness(curve, torch.ones(1, 500, dtype=torch.bool)) > 1.0


def test_the_penalty_on_unevenness_spreads_codes_that_have_collapsed():
    quantizer = FiniteScalarQuantizer([5, 5])
    torch.manual_seed(0)
    z, mask = (0.2 * torch.randn(1, 500, 2)).requires_grad_(), torch.ones(1, 500, dtype=torch.bool)
    optimizer = torch.optim.Adam([z], 0.05)
    before = quantizer.unevenness(z, mask).item()
    for _ in range(200):
        loss = quantizer.unevenness(z, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 1.0
    assert loss.item() < 0.3
    assert len(quantizer(z)[1].unique()) == 25
