"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505).

Each of a few latent dimensions is rounded to a few levels; the product of the levels is the vocabulary. There is no
codebook to learn, so none can die.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

FARTHEST = 8.0
"""No number that is read is farther from zero: a value out of the range that was seen stays one of order one."""


class FiniteScalarQuantizer(nn.Module):
    """Rounds Q latent dimensions to `levels` values each. Raises ValueError for fewer than two levels."""

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"each dimension needs at least two levels, found {list(levels)}")
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        strides = [1, *itertools.accumulate(levels[:-1], operator.mul)]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.vocabulary_size = math.prod(levels)

    def forward(self, z: Float[Tensor, "B N Q"]) -> tuple[Float[Tensor, "B N Q"], Int[Tensor, "B N"]]:
        """Round `z` to the grid; gradients pass straight through. Returns the latents in [-1, 1] and their codes."""
        steps = self.levels - 1
        bounded = torch.sigmoid(2 * z) * steps
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = (bounded.detach().round().long() * self.strides).sum(-1)
        return 2 * rounded / steps - 1, codes

    def from_codes(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "... Q"]:
        """The latents in [-1, 1] of each code."""
        return 2 * self._digits(codes).float() / (self.levels - 1) - 1

    def saturation(self, z: Float[Tensor, "B N Q"]) -> Float[Tensor, ""]:
        """Penalty on latents beyond the range where levels differ, to be added to a loss.

        Without it the latents run off to the outermost levels, where no gradient brings them back, and of all codes
        only the corners of the grid are used.
        """
        return F.relu(z.abs() - 1).square().mean()

    def unevenness(self, z: Float[Tensor, "B N Q"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Penalty on latents, where the mask is True, that leave codes unused: zero where all are used alike, in nats.

        It is the logarithm of the vocabulary's size less the entropy of the codes of this batch, each latent shared
        between the two levels beside it in each dimension so that there is a gradient.
        """
        steps = self.levels - 1
        bounded = torch.sigmoid(2 * z.float()[mask]) * steps
        shares = [
            (1 - (place[:, None] - torch.arange(int(levels), device=z.device)).abs()).clamp(min=0)
            for place, levels in zip(bounded.T, self.levels, strict=True)
        ]
        half = len(shares) // 2
        start = torch.ones_like(bounded[:, :1])
        first, second = (functools.reduce(_outer, part, start) for part in (shares[:half], shares[half:]))
        with torch.autocast(z.device.type, enabled=False):
            use = (first.T @ second).flatten() / len(bounded)
        return math.log(self.vocabulary_size) + (use * use.clamp(min=1e-12).log()).sum()

    def code_features(self) -> Float[Tensor, "V S"]:
        """Each code by its factors: a one-hot vector for each dimension, concatenated. Codes that agree share them."""
        digits = self._digits(torch.arange(self.vocabulary_size, device=self.levels.device))
        return torch.cat([F.one_hot(d, int(n)) for d, n in zip(digits.T, self.levels, strict=True)], -1).float()

    def _digits(self, codes: Tensor) -> Tensor:
        return (codes[..., None] // self.strides) % self.levels


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return (first[:, :, None] * second[:, None, :]).flatten(1)


def even_bins(limits: tuple[float, float], num_codes: int) -> Float64[Tensor, " V"]:
    """The middles of even bins between limits."""
    low, high = limits
    return low + (high - low) * (torch.arange(num_codes, dtype=torch.float64) + 0.5) / num_codes


def number_features(values: Float[Tensor, " V"]) -> Float[Tensor, "V 2"]:
    """One and the number that each code stands for, at most FARTHEST from zero."""
    numbers = values.float().clamp(-FARTHEST, FARTHEST)
    return torch.stack([torch.ones_like(numbers), numbers], 1)


def rank_features(num_codes: int, num_cosines: int = 16) -> Float[Tensor, "V S"]:
    """Cosines of the rank of ordered codes: neighbours have nearly the same features."""
    rank = (torch.arange(num_codes) + 0.5) / num_codes
    return torch.cos(math.pi * rank[:, None] * torch.arange(num_cosines))
