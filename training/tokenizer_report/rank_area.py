"""Area under the ROC curve of predicted validity, as a rank statistic, over any number of pixels in fixed memory.

The area is the chance that a valid pixel is given a higher probability than a bad one, ties counting half (Mann and
Whitney 1947). Probabilities are ranked by their bin in the logarithm of the odds, so that nothing is stored or sorted.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_BINS = 2**14
LARGEST_LOGIT = 16.0
"""Float32 tells no probability above 1 - 6e-8, a logit of 16.6, from one."""


class RankArea:
    """Histograms of the probability of being valid, of pixels that are and pixels that are not."""

    def __init__(self) -> None:
        self.valid = np.zeros(NUM_BINS, np.int64)
        self.invalid = np.zeros(NUM_BINS, np.int64)

    def add(self, probability: Float[Tensor, " n"], is_valid: Bool[Tensor, " n"]) -> None:
        """Count these pixels."""
        bins = probability_bins(probability)
        self.valid += np.bincount(bins[is_valid].cpu().numpy(), minlength=NUM_BINS)
        self.invalid += np.bincount(bins[~is_valid].cpu().numpy(), minlength=NUM_BINS)

    @property
    def area(self) -> float:
        """The area; NaN unless there are pixels of both kinds."""
        pairs = float(self.valid.sum()) * float(self.invalid.sum())
        if not pairs:
            return math.nan
        below = np.cumsum(self.invalid) - self.invalid
        return float((self.valid * (below + 0.5 * self.invalid)).sum() / pairs)


def probability_bins(probability: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The bin of each probability: even in the logarithm of the odds, the outermost open."""
    logit = torch.logit(probability.double()).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    return ((logit + LARGEST_LOGIT) / (2 * LARGEST_LOGIT) * NUM_BINS).long().clamp(max=NUM_BINS - 1)
