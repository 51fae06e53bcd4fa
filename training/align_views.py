"""What alignment sees of an object in a step: of each view one row, or two of two surveys, and some of its tokens.

A row is what becomes one vector (`alignment_views.embedded_rows`): an image or a spectrum of one survey, or all scalars
of a view. Every number comes from a hash of (seed, draw, object, token), as in pretraining: the same on any device, any
number of processes, after any restart, and when a part of the batch is computed a second time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.modalities import Modality
from ..models.alignment_views import embedded_rows
from ..models.hashed_numbers import hashed_uniform
from ..models.token_batch import TokenBatch
from .mask_sampler import places_of, smallest

ROW, TOKEN, TURN, SURVEY_SHARE, SURVEY = 5, 6, 7, 0, 1
"""Streams of random numbers."""


@dataclass(frozen=True)
class Pair:
    """Two sides of a batch that are brought together; a side is a view and the number of its draw."""

    name: str
    first: tuple[str, int]
    second: tuple[str, int]
    weight: float


def rows_of_views(
    views: Mapping[str, Sequence[str]], modalities: Sequence[Modality]
) -> dict[str, dict[str, list[Modality]]]:
    """The rows of each view, and the modalities of each row."""
    return {view: embedded_rows({view: members}, modalities) for view, members in views.items()}


def make_pairs(
    rows: Mapping[str, Mapping[str, Sequence[Modality]]], weights: Mapping[str, float], across_surveys: float
) -> list[Pair]:
    """All pairs of views, and pairs of two rows of one view, without those of weight zero.

    `weights` by name (`image-spectrum`), else one. Raises ValueError for names of no pair, and for a view that has no
    pair with another view left.
    """
    views = list(rows)
    pairs = [
        Pair(f"{first}-{second}", (first, 0), (second, 0), weights.get(f"{first}-{second}", 1.0))
        for index, first in enumerate(views)
        for second in views[index + 1 :]
    ]
    known = [pair.name for pair in pairs]
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise ValueError(f"pair_weights names {unknown}; the pairs are {known}")
    pairs += [Pair(f"{view}-{view}", (view, 0), (view, 1), across_surveys) for view in views if len(rows[view]) > 1]
    pairs = [pair for pair in pairs if pair.weight > 0]
    across = {side[0] for pair in pairs for side in (pair.first, pair.second) if pair.first[0] != pair.second[0]}
    if across != set(views):
        raise ValueError(
            f"pair_weights: every view needs a pair of weight above 0 with another, {sorted(set(views) - across)} have "
            f"none; the pairs are {known}"
        )
    return pairs


def draw_rows(
    present: Bool[Tensor, "B R"], keys: Int[Tensor, " B"], seed: int, draw: int
) -> tuple[Int[Tensor, "B 2"], Bool[Tensor, "B 2"]]:
    """Two different rows of a view at random among those `present` in each object, and whether there are so many."""
    chance = torch.where(present, hashed_uniform(keys, present.shape[1], seed, draw, ROW), 2.0)
    order = chance.argsort(1)
    first, second = order[:, :1], order[:, 1:2] if present.shape[1] > 1 else order[:, :1]
    enough = present.sum(1, keepdim=True) > torch.arange(2, device=present.device)
    return torch.cat([first, second], 1), enough


def present_rows(tokens: TokenBatch, row_of_slot: Int[Tensor, " S"], num_rows: int) -> Bool[Tensor, "B R"]:
    """Which rows of a view each object has a valid token of."""
    counts = torch.zeros(len(tokens), num_rows, dtype=torch.long, device=tokens.codes.device)
    return counts.scatter_add_(1, row_of_slot[tokens.slots], tokens.mask.long()) > 0


def draw_tokens(
    tokens: TokenBatch,
    row: Int[Tensor, " B"],
    row_of_slot: Int[Tensor, " S"],
    surveys: Int[Tensor, " S"] | None,
    keys: Int[Tensor, " B"],
    seed: int,
    draw: int,
    num_tokens: int,
) -> TokenBatch:
    """`num_tokens` tokens at random of the chosen row of each object.

    `surveys`, for rows of scalars, tells which survey's each slot is: some of an object's surveys are then visible,
    each with one probability, itself uniform, and at least one, so that the head learns photometry of any of them.
    """
    seen = tokens.mask & (row_of_slot[tokens.slots] == row[:, None])
    if surveys is not None:
        own = surveys[tokens.slots]
        num_surveys = len(surveys)
        present = torch.zeros(len(tokens), num_surveys, dtype=torch.long, device=own.device)
        present = present.scatter_add_(1, own, seen.long()) > 0
        chance = torch.where(present, hashed_uniform(keys, num_surveys, seed, draw, SURVEY), 2.0)
        visible = chance < hashed_uniform(keys, 1, seed, draw, SURVEY_SHARE)
        visible = visible.scatter(1, chance.argmin(1, keepdim=True), True)
        seen = seen & visible.gather(1, own)
    order = torch.where(seen, hashed_uniform(keys, places_of(tokens), seed, draw, TOKEN), torch.inf)
    return tokens.take(*smallest(order, num_tokens), valid_first=True)


def draw_vectors(
    vectors: Float[Tensor, "B N D"],
    mask: Bool[Tensor, "B N"],
    keys: Int[Tensor, " B"],
    seed: int,
    draw: int,
    num_tokens: int,
) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
    """`num_tokens` of the encoder's vectors of each object at random; valid ones come first."""
    order = torch.where(mask, hashed_uniform(keys, mask.shape[1], seed, draw, TOKEN), torch.inf)
    places, valid = smallest(order, num_tokens)
    return vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[-1])), valid
