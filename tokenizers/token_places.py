"""Where an observation that nobody has made yet would have tokens, and which codes each place may have.

A model that generates an observation needs this: positions to ask for, and, as one vocabulary holds codes of several
sorts (amplitudes, windows and lines of a spectrum), those of the right sort. Tokenizers say it by `token_places`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .token_grid import TokenGrid


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """The places of N tokens for each of B objects.

    `grid` is a token grid without codes: its mask tells where a token may be. `always` tells where every observation of
    these pixels has one; a line or a detail is there only if it stands out of the noise. The code of a place lies in
    [`low`, `high`). `refines` is the place of the token without which a token means nothing, its own if there is none.
    """

    grid: TokenGrid
    always: Bool[Tensor, "B N"]
    low: Int[Tensor, " N"]
    high: Int[Tensor, " N"]
    refines: Int[Tensor, " N"]

    def roots(self) -> Int[Tensor, " N"]:
        """The place that each place refines in the end."""
        roots = self.refines
        while not torch.equal(roots, roots[roots]):
            roots = roots[roots]
        return roots

    def meaningful(self, mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """Those tokens of a mask that refine others which are there."""
        while not torch.equal(mask, mask & mask[:, self.refines]):
            mask = mask & mask[:, self.refines]
        return mask


def code_ranges(parts: list[tuple[int, int, int]]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """`low` and `high` of places that come in parts: (number of places, low, high) of each."""
    counts = torch.tensor([count for count, _, _ in parts])
    low, high = (torch.tensor([part[place] for part in parts]).repeat_interleave(counts) for place in (1, 2))
    return low, high
