"""Which tokens the encoder sees and which the decoder predicts: drawn on the device, for the whole batch at once.

Every number comes from a hash of (seed, step, object, token), so the same object at the same step gets the same masks
on any device, any number of processes and after any restart. Some of an object's modalities are visible: each with one
probability, itself uniform, at least one. Inputs are drawn evenly from the visible modalities, and never all tokens of
an object; targets from all other tokens, each modality by a random weight over its number of tokens, so that small ones
are predicted often.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.token_batch import TokenBatch


def draw_masks(
    batch: TokenBatch, object_keys: Int[Tensor, " B"], seed: int, step: int, num_inputs: int, num_targets: int
) -> tuple[TokenBatch, TokenBatch]:
    """At most `num_inputs` inputs and `num_targets` targets of each object; no token is both. Short rows are padded.

    `object_keys` are integers that name the objects for all time.
    """
    num_slots = len(batch.slot_vocabularies)
    slots = torch.arange(num_slots, device=batch.codes.device)
    counts = torch.zeros(len(batch), num_slots, device=batch.codes.device)
    counts.scatter_add_(1, batch.slots, batch.mask.float())
    present = counts > 0

    def draw(num_columns: int, stream: int) -> Float[Tensor, "B M"]:
        return hashed_uniform(object_keys, num_columns, seed, step, stream)

    share = draw(1, stream=0)
    chance = torch.where(present, draw(num_slots, stream=1), 2.0)
    visible = (chance < share) | (slots == chance.argmin(1, keepdim=True))
    seen = batch.mask & visible.gather(1, batch.slots)
    order = torch.where(seen, draw(batch.codes.shape[1], stream=2), 2.0)
    inputs, input_valid = smallest(order, num_inputs)
    # Where all of an object's tokens are visible and fit in, a random number of them is kept: else nothing is left to
    # predict, and objects of one modality would never teach anything.
    total = batch.mask.sum(1, keepdim=True)
    most = torch.where(input_valid.sum(1, keepdim=True) == total, 1 + (draw(1, stream=7) * (total - 1)).long(), total)
    input_valid = input_valid & (torch.arange(input_valid.shape[1], device=most.device) < most)
    is_input = torch.zeros_like(batch.mask).scatter(1, inputs, input_valid)

    # An exponential race: the first to arrive are a sample without replacement by weight.
    weight = -torch.log(draw(num_slots, stream=3)) / counts.clamp(min=1)
    race = -torch.log(draw(batch.codes.shape[1], stream=4)) / weight.gather(1, batch.slots)
    targets, target_valid = smallest(torch.where(batch.mask & ~is_input, race, torch.inf), num_targets, torch.inf)
    return batch.take(inputs, input_valid), batch.take(targets, target_valid)


def hashed_uniform(
    keys: Int[Tensor, " B"], num_columns: int, seed: int, step: int, stream: int
) -> Float[Tensor, "B M"]:
    """Numbers in (0, 1), a pure function of (key, column, seed, step, stream): the mixing steps of SplitMix64.

    (Steele, Lea & Flood 2014, doi 10.1145/2714064.2660195.)
    """
    columns = torch.arange(num_columns, device=keys.device)
    state = _mix(keys + _mix(torch.full_like(keys, seed) + _mix(torch.full_like(keys, step * 8 + stream))))
    bits = _mix(state[:, None] + columns * _signed(0x9E3779B97F4A7C15))
    # The half is rounded away in the upper half of the range; the greatest number would become one.
    return ((((bits >> 40) & 0xFFFFFF).float() + 0.5) / 2**24).clamp(max=1 - 2**-24)


def smallest(values: Tensor, count: int, never: float = 2.0) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Places of the `count` smallest values of each row (all, if fewer), and which of them lie below `never`."""
    found = values.topk(min(count, values.shape[1]), dim=1, largest=False)
    return found.indices, found.values < never


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right with zeros from the left: torch's int64 is signed."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant
