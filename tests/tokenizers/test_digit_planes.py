"""Digits of numbers: nested, ordered, decoded to their cells; a prefix is the best short description."""

import numpy as np
import pytest
import torch

from armillary.tokenizers.digit_planes import DigitPlanes

VARIANCES = torch.tensor([1.0, 0.25, 0.04, 0.01, 1e-4])


def draws(count, seed=0):
    """Heavy-tailed numbers of the variances."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.laplace(size=(count, 5)) / np.sqrt(2)).float() * VARIANCES.sqrt()


@pytest.fixture(scope="module")
def planes():
    made = DigitPlanes(num_numbers=5, num_tokens=4, digits_per_token=3, base=3, num_levels=4)
    grid = 1e-3 * torch.sinh(torch.linspace(-10, 10, 4001))
    numbers = draws(40_000)
    counts = torch.zeros(5, len(grid))
    cells = torch.searchsorted((grid[1:] + grid[:-1]) / 2, numbers.contiguous())
    counts.scatter_add_(1, cells.T, torch.ones(5, len(numbers)))
    made.fit(grid, counts, VARIANCES)
    return made


def prefix(codes, count):
    return (torch.arange(codes.shape[1]) < count).expand(codes.shape)


def test_every_code_is_used_nearly_as_often_as_any_other(planes):
    """Cells of the first digits have equal mass, and digits after them are near to even."""
    codes = planes(draws(20_000, seed=1))
    for token in (0, 1):
        share = torch.bincount(codes[:, token], minlength=27).double() / len(codes)
        perplexity = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
        assert perplexity > 0.6 * 27


def test_all_digits_give_the_cell_that_holds_the_number(planes):
    numbers = draws(500, seed=2)
    codes = planes(numbers)
    digits = torch.zeros(5, dtype=torch.long)
    for number in planes.number_of.flatten().tolist():
        digits[number] += 1
    found, _ = planes.decode(codes, prefix(codes, 4))
    for number in range(5):
        inner = planes.edges[number][:: 3 ** (4 - int(digits[number]))][1:-1].contiguous()
        expected = torch.bucketize(numbers[:, number].contiguous(), inner, right=True)
        assert torch.equal(torch.bucketize(found[:, number].contiguous(), inner, right=True), expected)


def test_errors_of_every_prefix_are_those_of_its_decoding(planes):
    numbers = draws(200, seed=3)
    codes = planes(numbers)
    errors = planes.errors(numbers, codes)
    for count in range(5):
        found, _ = planes.decode(codes, prefix(codes, count))
        assert torch.allclose(errors[:, count], (found - numbers).square().sum(1), atol=1e-7)


def test_each_further_token_removes_error_and_the_first_removes_most(planes):
    numbers = draws(20_000, seed=4)
    mean = planes.errors(numbers, planes(numbers)).mean(0)
    removed = -mean.diff()
    assert (removed > 0).all()
    assert removed.argmax() == 0
    assert mean[-1] < 0.02 * mean[0]


def test_digits_come_in_the_order_of_the_error_they_remove_and_none_before_the_one_it_refines(planes):
    seen = [0] * 5
    for number, level in zip(planes.number_of.flatten().tolist(), planes.level_of.flatten().tolist(), strict=True):
        assert level == seen[number]
        seen[number] += 1
    assert planes.number_of[0, 0] == 0
    assert seen[0] >= seen[1] >= seen[3]


def test_spreads_are_the_scatter_of_numbers_in_their_cells(planes):
    numbers = draws(40_000, seed=5)
    codes = planes(numbers)
    for count in (0, 2):
        found, spread = planes.decode(codes, prefix(codes, count))
        pull = ((numbers - found) / spread.clamp(min=1e-12))[:, 0]
        assert pull.square().mean().item() == pytest.approx(1.0, abs=0.25)


def test_numbers_beyond_all_seen_keep_their_sign_and_do_not_wrap(planes):
    numbers = torch.tensor([[1e6] * 5, [-1e6] * 5])
    found, _ = planes.decode(planes(numbers), prefix(planes(numbers), 4))
    assert (found[0, :2] > 5 * VARIANCES[:2].sqrt()).all()
    assert (found[1, :2] < -5 * VARIANCES[:2].sqrt()).all()


def test_more_tokens_than_digits_are_refused():
    with pytest.raises(ValueError, match="5 numbers of 2 digits fill 3 tokens of 3, found 4"):
        DigitPlanes(num_numbers=5, num_tokens=4, digits_per_token=3, base=3, num_levels=2)
