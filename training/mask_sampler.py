"""Which tokens the encoder sees and which the decoder predicts: drawn on the device, for the whole batch at once.

Every number comes from a hash of (seed, step, object, token), so the same object at the same step gets the same masks
on any device, any number of processes and after any restart. All schemes know which modalities an object has and never
make all of its tokens inputs; but for the inputs of `even` they fill both budgets while it has tokens:

- `even`: some of an object's modalities are visible, each with one probability, itself uniform, at least one. Inputs
  are drawn evenly from the visible ones, if these fill the budget or not; targets from all other tokens, each modality
  by a random weight over its number of tokens, so that small ones are predicted often.
- `aion`: a uniform number of tokens of one modality, chosen evenly, then any of the others; as targets, of each
  modality a share of what is left that has a Beta distribution skewed to zero (AION-1, Parker et al. 2025, arXiv
  2510.17960).
- `dirichlet`: the budgets are divided over modalities by a Dirichlet distribution of one of ALPHAS, for inputs and for
  targets (4M, Mizrahi et al. 2023, arXiv 2312.06647).

Where a modality has fewer tokens than its part, the rest of the budget is filled evenly from the others.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.hashed_numbers import hashed_uniform
from ..models.token_batch import TokenBatch

Scheme = Literal["even", "aion", "dirichlet"]
ALPHAS = (0.01, 0.1, 1.0, 10.0)
"""Concentrations, one drawn evenly for each object and budget: from one modality alone to nearly even parts."""
BETA = (0.2, 1.0)
"""Of the share of a modality that `aion` wants as targets: a sixth on average, most often nearly none."""
ATTEMPTS = 6
"""Of a draw by rejection; each succeeds in 19 of 20 cases at least."""


def draw_masks(
    batch: TokenBatch,
    object_keys: Int[Tensor, " B"],
    seed: int,
    step: int | Int[Tensor, ""],
    num_inputs: int,
    num_targets: int,
    scheme: Scheme = "even",
) -> tuple[TokenBatch, TokenBatch]:
    """At most `num_inputs` inputs and `num_targets` targets of each object; no token is both. Short rows are padded.

    `object_keys` are integers that name the objects for all time.
    """

    def draw(columns: int | Int[Tensor, "B M"], stream: int) -> Float[Tensor, "B M"]:
        return hashed_uniform(object_keys, columns, seed, step, stream)

    input_order, target_order = {"even": _even, "aion": _aion, "dirichlet": _dirichlet}[scheme]
    inputs, input_valid = smallest(input_order(batch, batch.mask, draw, num_inputs), num_inputs)
    # Where all of an object's tokens are visible and fit in, a random number of them is kept: else nothing is left to
    # predict, and objects of one modality would never teach anything.
    total = batch.mask.sum(1, keepdim=True)
    most = torch.where(input_valid.sum(1, keepdim=True) == total, 1 + (draw(1, stream=7) * (total - 1)).long(), total)
    input_valid = input_valid & (torch.arange(input_valid.shape[1], device=most.device) < most)
    is_input = torch.zeros_like(batch.mask).scatter(1, inputs, input_valid)
    order = target_order(batch, batch.mask & ~is_input, draw, num_targets)
    targets, target_valid = smallest(order, num_targets)
    return batch.take(inputs, input_valid, valid_first=True), batch.take(targets, target_valid, valid_first=True)


Draw = Callable[[int | Tensor, int], Float[Tensor, "B M"]]
"""Numbers in (0, 1), by how many each object needs or what they are for, and the number of their stream."""


def places_of(batch: TokenBatch) -> Int[Tensor, "B N"]:
    """What names the tokens of an object: their places before any were left out."""
    if batch.places is not None:
        return batch.places
    return torch.arange(batch.codes.shape[1], device=batch.codes.device).expand(batch.codes.shape)


def _counts(batch: TokenBatch, free: Bool[Tensor, "B N"]) -> Float[Tensor, "B S"]:
    counts = torch.zeros(len(batch), len(batch.slot_vocabularies), device=batch.codes.device)
    return counts.scatter_add_(1, batch.slots, free.float())


def _even_inputs(batch: TokenBatch, free: Bool[Tensor, "B N"], draw: Draw, budget: int) -> Float[Tensor, "B N"]:
    present = _counts(batch, free) > 0
    share = draw(1, 0)
    chance = torch.where(present, draw(present.shape[1], 1), 2.0)
    slots = torch.arange(present.shape[1], device=chance.device)
    visible = (chance < share) | (slots == chance.argmin(1, keepdim=True))
    return torch.where(free & visible.gather(1, batch.slots), draw(places_of(batch), 2), torch.inf)


def _even_targets(batch: TokenBatch, free: Bool[Tensor, "B N"], draw: Draw, budget: int) -> Float[Tensor, "B N"]:
    # An exponential race: the first to arrive are a sample without replacement by weight.
    counts = _counts(batch, batch.mask)
    weight = -torch.log(draw(counts.shape[1], 3)) / counts.clamp(min=1)
    race = -torch.log(draw(places_of(batch), 4)) / weight.gather(1, batch.slots)
    return torch.where(free, race, torch.inf)


def _aion_inputs(batch: TokenBatch, free: Bool[Tensor, "B N"], draw: Draw, budget: int) -> Float[Tensor, "B N"]:
    counts = _counts(batch, free)
    first = torch.where(counts > 0, draw(counts.shape[1], 1), 2.0).argmin(1, keepdim=True)
    most = counts.gather(1, first).clamp(max=budget)
    wanted = torch.zeros_like(counts).scatter(1, first, 1 + torch.floor(draw(1, 0) * most))
    order = _wanted_first(batch, free, wanted, draw(places_of(batch), 2))
    # What is left of the first modality only fills what the others cannot.
    return order + ((batch.slots == first) & (order >= 1))


def _aion_targets(batch: TokenBatch, free: Bool[Tensor, "B N"], draw: Draw, budget: int) -> Float[Tensor, "B N"]:
    counts = _counts(batch, free)
    one, other = (_log_gamma(torch.full_like(counts, shape), draw, 3 + k) for k, shape in enumerate(BETA))
    wanted = torch.ceil(torch.sigmoid(one - other) * counts)
    return _wanted_first(batch, free, wanted, draw(places_of(batch), 5))


def _dirichlet_order(streams: tuple[int, int, int]) -> Callable[..., Float[Tensor, "B N"]]:
    def order(batch: TokenBatch, free: Bool[Tensor, "B N"], draw: Draw, budget: int) -> Float[Tensor, "B N"]:
        counts = _counts(batch, free)
        alphas = torch.tensor(ALPHAS, device=counts.device)
        alpha = alphas[(draw(1, streams[0]) * len(ALPHAS)).long()]
        of_slots = _log_gamma(alpha.expand(counts.shape), draw, streams[1])
        # An object without a free token has none to want.
        parts = torch.where(counts > 0, of_slots, -torch.inf).softmax(1).nan_to_num(0.0)
        return _wanted_first(batch, free, torch.round(parts * budget), draw(places_of(batch), streams[2]))

    return order


_even = _even_inputs, _even_targets
_aion = _aion_inputs, _aion_targets
_dirichlet = _dirichlet_order((0, 1, 2)), _dirichlet_order((3, 4, 5))


def _wanted_first(
    batch: TokenBatch, free: Bool[Tensor, "B N"], wanted: Float[Tensor, "B S"], numbers: Float[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """An order by random `numbers` in (0, 1): first of each slot as many free tokens as wanted, then, from one on, the
    other free ones; infinite for the rest."""
    numbers = torch.where(free, numbers, torch.inf)
    by_number = numbers.argsort(1)
    place = by_number.gather(1, batch.slots.gather(1, by_number).argsort(dim=1, stable=True))
    counts = _counts(batch, torch.ones_like(free))
    first = (counts.cumsum(1) - counts).gather(1, batch.slots.gather(1, place))
    columns = torch.arange(free.shape[1], device=free.device)
    rank = torch.zeros_like(numbers).scatter(1, place, columns - first)
    return numbers + (rank >= wanted.gather(1, batch.slots))


def _log_gamma(shape: Float[Tensor, "B S"], draw: Draw, stream: int) -> Float[Tensor, "B S"]:
    """Logarithms of gamma variates, by rejection (Marsaglia & Tsang 2000, doi 10.1145/358407.358414, sections 2, 6)."""
    numbers = draw(shape.shape[1] * (3 * ATTEMPTS + 1), stream).unflatten(1, (shape.shape[1], -1))
    d = shape + 1 - 1 / 3
    found = torch.log(d)
    angle, radius, chance = numbers[..., :-1].unflatten(-1, (3, ATTEMPTS)).unbind(-2)
    normal = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * torch.pi * angle)
    cube = (1 + normal / torch.sqrt(9 * d)[..., None]) ** 3
    d_ = d[..., None]
    accepted = (cube > 0) & (torch.log(chance) < normal**2 / 2 + d_ - d_ * cube + d_ * torch.log(cube.clamp(min=1e-30)))
    for attempt in reversed(range(ATTEMPTS)):
        value = torch.log(d * cube[..., attempt].clamp(min=1e-30))
        found = torch.where(accepted[..., attempt], value, found)
    return found + torch.log(numbers[..., -1]) / shape


def smallest(values: Tensor, count: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Places of the `count` smallest values of each row (all, if fewer), and which of them are finite."""
    found = values.topk(min(count, values.shape[1]), dim=1, largest=False)
    return found.indices, found.values.isfinite()
