"""Masks: which tokens the encoder sees, and which the decoder predicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from armillary.models import hashed_numbers
from armillary.models.hashed_numbers import hashed_uniform, mix
from armillary.models.token_batch import TokenBatch
from armillary.training import mask_sampler
from armillary.training.mask_sampler import draw_masks, smallest

COUNTS = (9, 16, 1, 1)
"""Tokens of each of four modalities."""
KEYS = torch.randint(2**62, (200,), generator=torch.Generator().manual_seed(0))


def tokens(num_objects=200, share=0.8):
    """Each token's code is its place in the sequence, so that it can be followed."""
    slots = torch.cat([torch.full((c,), s) for s, c in enumerate(COUNTS)]).expand(num_objects, -1)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(slots.shape, generator=generator) < share
    mask[:, :9] &= torch.rand(num_objects, 1, generator=generator) < 0.7  # some lack the first modality
    mask[:, 9] = True
    return TokenBatch(
        codes=torch.arange(sum(COUNTS)).expand(num_objects, -1),
        mask=mask,
        positions=torch.zeros(num_objects, sum(COUNTS), 3),
        slots=slots,
        slot_vocabularies=torch.arange(4),
        instruments=torch.zeros(num_objects, 4, 11),
    )


SCHEMES = pytest.mark.parametrize("scheme", ["even", "aion", "dirichlet"])


def rows_of(batch, rows):
    return TokenBatch(
        *(getattr(batch, f)[rows] for f in ("codes", "mask", "positions", "slots")),
        batch.slot_vocabularies,
        batch.instruments[rows],
    )


def places(part, row):
    return part.codes[row][part.mask[row]].tolist()


@SCHEMES
@pytest.mark.parametrize("num_inputs, num_targets", [(8, 6), (3, 40), (40, 3)])
def test_inputs_and_targets_are_distinct_valid_tokens_within_the_budget(scheme, num_inputs, num_targets):
    batch = tokens()
    inputs, targets = draw_masks(batch, KEYS, 0, 5, num_inputs, num_targets, scheme)
    assert inputs.codes.shape == (200, min(num_inputs, sum(COUNTS)))
    assert targets.codes.shape == (200, min(num_targets, sum(COUNTS)))
    for row in range(200):
        seen, wanted = places(inputs, row), places(targets, row)
        valid = set(batch.mask[row].nonzero()[:, 0].tolist())
        assert len(seen) == len(set(seen))
        assert len(wanted) == len(set(wanted))
        assert not set(seen) & set(wanted)
        assert set(seen) | set(wanted) <= valid
        assert 1 <= len(seen) <= num_inputs
        assert len(wanted) == min(num_targets, len(valid) - len(seen))
        if scheme != "even" and len(valid) > num_inputs:
            assert len(seen) == num_inputs


def test_inputs_fill_the_budget_from_the_visible_modalities():
    batch = tokens()
    inputs, _ = draw_masks(batch, KEYS, 0, 5, 8, 6)
    for row in range(200):
        of_slot = [int((batch.mask[row] & (batch.slots[row] == s)).sum()) for s in range(4)]
        visible = {int(s) for s in inputs.slots[row][inputs.mask[row]]}
        available = sum(of_slot[s] for s in visible)
        assert len(places(inputs, row)) >= min(8, available) or available == sum(of_slot)


@SCHEMES
def test_every_object_of_two_tokens_or_more_has_something_to_predict(scheme):
    batch = tokens()
    inputs, targets = draw_masks(batch, KEYS, 0, 5, 40, 6, scheme)
    several = batch.mask.sum(1) > 1
    assert targets.mask[several].any(1).all()
    assert inputs.mask.any(1).all()


def test_an_object_of_one_modality_is_seen_in_part_of_any_size():
    batch = rows_of(tokens(share=1.0), torch.arange(200))
    only = TokenBatch(
        batch.codes,
        batch.mask & (batch.slots == 1),
        *(getattr(batch, f) for f in ("positions", "slots")),
        batch.slot_vocabularies,
        batch.instruments,
    )
    inputs, targets = draw_masks(only, KEYS, 0, 5, 40, 40)
    sizes = inputs.mask.sum(1)
    assert torch.equal(sizes + targets.mask.sum(1), torch.full((200,), 16))
    assert set(sizes.tolist()) == set(range(1, 16))


@SCHEMES
def test_masks_are_a_pure_function_of_seed_step_and_object(scheme):
    batch = tokens()
    first, again = (draw_masks(batch, KEYS, 3, 11, 8, 6, scheme) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.codes, b.codes)
        assert torch.equal(a.mask, b.mask)
    for seed, step in ((4, 11), (3, 12)):
        other = draw_masks(batch, KEYS, seed, step, 8, 6, scheme)
        differs = [places(first[0], r) != places(other[0], r) for r in range(200)]
        assert np.mean(differs) > 0.9


@SCHEMES
def test_an_object_alone_has_the_masks_it_has_in_any_batch(scheme):
    batch = tokens()
    together = draw_masks(batch, KEYS, 0, 7, 8, 6, scheme)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))[:50]
    for rows in (order, order[:1], order[1:2]):
        few = draw_masks(rows_of(batch, rows), KEYS[rows], 0, 7, 8, 6, scheme)
        for a, b in zip(together, few, strict=True):
            for place, row in enumerate(rows.tolist()):
                assert places(a, row) == places(b, place)


def test_each_modality_is_seen_alone_and_predicted_often():
    batch = tokens(share=1.0)
    inputs, targets = draw_masks(batch, KEYS, 0, 1, 12, 8)
    for slot in range(1, 4):
        seen = (inputs.mask & (inputs.slots == slot)).any(1)
        alone = seen & ~(inputs.mask & (inputs.slots != slot)).any(1)
        predicted = (targets.mask & (targets.slots == slot)).any(1)
        assert seen.float().mean() > 0.3
        assert alone.float().mean() > 0.02
        assert predicted.float().mean() > 0.25


def whole(num_objects):
    """Objects that have every token."""
    batch = tokens(num_objects, share=1.0)
    return replace(batch, mask=torch.ones_like(batch.mask))


MANY = torch.randint(2**62, (8000,), generator=torch.Generator().manual_seed(2))


def test_inputs_of_aion_follow_its_scheme():
    """Modalities of 9, 16, 1 and 1 tokens and 12 inputs: the first is each of them in a quarter of the cases."""
    inputs, _ = draw_masks(whole(8000), MANY, 0, 1, 12, 8, "aion")
    of_slot = [(inputs.mask & (inputs.slots == slot)).sum(1).double() for slot in range(4)]
    # First itself: a mean of 5. After the second, 12 - k of 11 others; after one token, 11 of 26 others.
    expected = (5 + 5.5 * 9 / 11 + 2 * 11 * 9 / 26) / 4
    assert of_slot[0].mean().item() == pytest.approx(expected, abs=4 * of_slot[0].std().item() / 8000**0.5)
    # One token alone: first, or among the rest.
    expected = (1 + 4 / 18 * 1.75 + 5.5 / 11 + 11 / 26) / 4
    assert of_slot[2].mean().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("which", [0, 1])
def test_budgets_of_dirichlet_are_divided_as_its_mixture_says(which):
    """Of two modalities of ample tokens, the first's share has mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    slots = torch.arange(2).repeat_interleave(60).expand(8000, -1)
    batch = TokenBatch(
        torch.zeros_like(slots),
        torch.ones_like(slots, dtype=torch.bool),
        torch.zeros(8000, 120, 3),
        slots,
        torch.arange(2),
        torch.zeros(8000, 2, 11),
    )
    part = draw_masks(batch, MANY, 0, 1, 20, 20, "dirichlet")[which]
    assert part.mask.all()
    share = (part.slots == 0).double().mean(1)
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    expected = np.mean([1 / (4 * (2 * alpha + 1)) for alpha in mask_sampler.ALPHAS])
    assert share.var().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("shape", [0.01, 0.2, 1.0, 10.0])
def test_gamma_variates_have_their_distribution(shape):
    def draw(num_columns, stream):
        return hashed_uniform(MANY, num_columns, 0, 1, stream)

    numbers = mask_sampler._log_gamma(torch.full((8000, 1), shape), draw, 3)[:, 0].double().numpy()
    assert stats.kstest(numbers, stats.loggamma(shape).cdf).pvalue > 1e-3


def test_hashed_numbers_are_uniform_and_independent_between_columns_and_streams():
    numbers = hashed_uniform(KEYS, 50, seed=1, step=2, stream=3).double()
    assert stats.kstest(numbers.flatten(), "uniform").pvalue > 1e-3
    for row in range(5):
        assert stats.kstest(numbers[row], "uniform").pvalue > 1e-4
    for other in (
        hashed_uniform(KEYS, 50, seed=1, step=2, stream=4),
        hashed_uniform(KEYS, 50, seed=1, step=3, stream=3),
        hashed_uniform(KEYS, 50, seed=2, step=2, stream=3),
        hashed_uniform(KEYS + 1, 50, seed=1, step=2, stream=3),
        numbers.roll(1, 1),
        numbers.roll(1, 0),
    ):
        correlation = np.corrcoef(numbers.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(numbers.numel())


def test_hashed_numbers_of_neighbouring_steps_are_uniform_for_one_object():
    numbers = [hashed_uniform(KEYS[:1], 1, 0, step, 0).item() for step in range(3000)]
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def splitmix64(x):
    """One output of SplitMix64 for the state `x`, in Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_hash_is_splitmix64():
    states = [0, 1, 2**63 - 1, 12345678901234567, -1, -(2**63)]
    mixed = mix(torch.tensor(states)).tolist()
    assert [m % 2**64 for m in mixed] == [splitmix64(s % 2**64) for s in states]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0


@pytest.mark.parametrize("bits", [0, -1])
def test_hashed_numbers_lie_strictly_between_zero_and_one(monkeypatch, bits):
    monkeypatch.setattr(hashed_numbers, "mix", lambda x: torch.full_like(x, bits))
    number = hashed_uniform(KEYS[:1], 1, 0, 0, 0).item()
    assert 0 < number < 1


@pytest.mark.parametrize("count, num_found", [(2, 2), (4, 4), (6, 4)])
def test_smallest_finds_the_smallest_and_says_which_are_none(count, num_found):
    values = torch.tensor([[0.5, 0.1, torch.inf, 0.3], [torch.inf, torch.inf, torch.inf, 0.7]])
    found, valid = smallest(values, count)
    assert found.shape == valid.shape == (2, num_found)
    assert found[0, valid[0]].tolist() == [1, 3, 0][:num_found]
    assert found[1, valid[1]].tolist() == [3]
