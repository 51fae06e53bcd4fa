"""How much of a codebook is used: the share of codes that occur, and the perplexity of their distribution.

The perplexity is exp(entropy): the number of codes that would carry as much if all were equally frequent.
"""

import math

import numpy as np
from jaxtyping import Int
from torch import Tensor


class CodeCounts:
    """How often each of V codes occurs."""

    def __init__(self, vocabulary_size: int):
        self.counts = np.zeros(vocabulary_size, np.int64)

    def add(self, codes: Int[Tensor, " n"]) -> None:
        """Count these codes, each in [0, V)."""
        self.counts += np.bincount(codes.cpu().numpy(), minlength=len(self.counts))

    def summary(self) -> dict[str, int | float]:
        """What the report says of a codebook: `perplexity_share` and `use` are shares of the V codes."""
        return {
            "vocabulary": len(self.counts),
            "num_tokens": int(self.counts.sum()),
            "use": code_use(self.counts),
            "perplexity": perplexity(self.counts),
            "perplexity_corrected": perplexity(self.counts, correct=True),
            "perplexity_share": perplexity(self.counts) / len(self.counts),
        }


def code_use(counts: Int[np.ndarray, " V"]) -> float:
    """Share of the codes that occur at all."""
    return float((counts > 0).mean())


def perplexity(counts: Int[np.ndarray, " V"], *, correct: bool = False) -> float:
    """exp of the entropy of codes that occur `counts` times; NaN if there are none.

    n tokens cannot show more than n codes, so the entropy of a sample is too low, by about (codes seen - 1) / 2n
    (Miller 1955): with `correct` that is added, and the result kept within the codebook.
    """
    total = int(counts.sum())
    if not total:
        return math.nan
    share = counts[counts > 0] / total
    entropy = -float((share * np.log(share)).sum())
    if correct:
        entropy += (len(share) - 1) / (2 * total)
    return min(math.exp(entropy), float(len(counts)))
