"""Whether predicted distributions are honest: probability integral transforms, coverage, and a proper score.

A calibrated prediction has a probability integral transform (PIT) that is uniform over objects, and intervals that hold
the truth as often as they say. The continuous ranked probability score (CRPS) rewards calibration and sharpness at
once, in the unit of the quantity; less is better, and of a prediction without width it is the absolute error. (Gneiting
& Raftery 2007, doi 10.1198/016214506000001437.)
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .foundation import ScalarPrediction


def pit(prediction: ScalarPrediction, true: Float[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """The predicted probability of less than the true value, linear within bins."""
    return _cumulative(prediction, true.double()[:, None]).gather(1, _bin_of(prediction, true)[:, None])[:, 0]


def crps(prediction: ScalarPrediction, true: Float[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """The integral of (F(x) - [x >= true])^2 over x: F is linear within bins, so that it has a closed form."""
    low, high = prediction.low.double(), prediction.high.double()
    value = true.double()[:, None]
    within = value.clamp(min=low).clamp(max=high)
    upper = _shares(prediction).cumsum(1)
    lower, middle = upper - _shares(prediction), _cumulative(prediction, value)
    # Of each bin, what lies below the truth and what lies above; beyond all bins, F is zero or one.
    below = (within - low) * _mean_square(lower, middle)
    above = (high - within) * _mean_square(1 - middle, 1 - upper)
    beyond = (value[:, 0] - high[-1]).clamp(min=0) + (low[0] - value[:, 0]).clamp(min=0)
    return (below + above).sum(1) + beyond


def coverage(prediction: ScalarPrediction, true: Float[Tensor, " B"], level: float) -> float:
    """Share of the objects whose truth lies in the central interval that claims `level`."""
    low, high = prediction.interval(level)
    return ((low <= true) & (true <= high)).double().mean().item()


def crps_of_samples(samples: Float[Tensor, "S ..."], true: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """CRPS of S samples of each number: E|X - true| - E|X - X'| / 2, unbiased in S (Ferro 2014, doi 10.1002/qj.2270).

    Of one sample, the absolute error.
    """
    ordered = samples.double().sort(0).values
    count = len(ordered)
    error = (ordered - true.double()).abs().mean(0)
    rank = 2 * torch.arange(count, dtype=torch.float64) - (count - 1)
    spread = (ordered * rank.view(-1, *[1] * true.dim())).sum(0) / max(1, count * (count - 1))
    return error - spread


def _shares(prediction: ScalarPrediction) -> Float64[Tensor, "B V"]:
    probability = prediction.probabilities.double()
    return probability / probability.sum(1, keepdim=True)


def _cumulative(prediction: ScalarPrediction, value: Float64[Tensor, "B 1"]) -> Float64[Tensor, "B V"]:
    """The distribution at the value, or at the nearer bound of the bin where the value is not in it."""
    low, high = prediction.low.double(), prediction.high.double()
    share = _shares(prediction)
    place = ((value - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    return share.cumsum(1) - share * (1 - place)


def _bin_of(prediction: ScalarPrediction, true: Float[Tensor, " B"]) -> Tensor:
    return torch.searchsorted(prediction.high.double(), true.double()).clamp(max=len(prediction.high) - 1)


def _mean_square(first: Tensor, last: Tensor) -> Tensor:
    """Mean of the square of what goes evenly from `first` to `last`."""
    return (first.square() + first * last + last.square()) / 3
