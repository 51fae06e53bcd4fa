"""Scores of reconstructed pixels: R2, chi2 and PSNR, from sums that add up over batches.

A reference (what was observed, or the noise-free truth) is compared with what was made of tokens, at the pixels chosen;
chi2 is the squared error in units of the noise. Nothing here knows of tokenizers or instruments.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class PixelSums:
    """Sums over pixels, float64: their number, the reference and its square, the squared error, and chi2."""

    count: float = 0.0
    reference: float = 0.0
    square: float = 0.0
    error: float = 0.0
    chi2: float = 0.0

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.count + other.count,
            self.reference + other.reference,
            self.square + other.square,
            self.error + other.error,
            self.chi2 + other.chi2,
        )

    @property
    def r2(self) -> float:
        """Share of the reference's variance that was kept, all pixels pooled; NaN without variance."""
        if not self.count:
            return math.nan
        variance = self.square - self.reference**2 / self.count
        return 1 - self.error / variance if variance > 0 else math.nan

    @property
    def mean_chi2(self) -> float:
        """Mean of the squared error in units of the noise; NaN without pixels."""
        return self.chi2 / self.count if self.count else math.nan


def sum_pixels(
    reference: Float[Tensor, "B *pixels"],
    made: Float[Tensor, "B *pixels"],
    inverse_variance: Float[Tensor, "B *pixels"],
    chosen: Bool[Tensor, "B *pixels"],
) -> PixelSums:
    """The sums over the chosen pixels of a batch."""
    wanted = reference[chosen].double()
    error = (made[chosen].double() - wanted).square()
    return PixelSums(
        count=float(len(wanted)),
        reference=wanted.sum().item(),
        square=wanted.square().sum().item(),
        error=error.sum().item(),
        chi2=(error * inverse_variance[chosen]).sum().item(),
    )


def object_chi2(
    reference: Float[Tensor, "B *pixels"],
    made: Float[Tensor, "B *pixels"],
    inverse_variance: Float[Tensor, "B *pixels"],
    chosen: Bool[Tensor, "B *pixels"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """For each object, the sum of chi2 over its chosen pixels, and their number; float64."""
    error = torch.where(chosen, made - reference, 0.0).double().square() * inverse_variance
    return error.flatten(1).sum(1), chosen.flatten(1).sum(1).double()


def object_psnr(
    reference: Float[Tensor, "B *pixels"], made: Float[Tensor, "B *pixels"], chosen: Bool[Tensor, "B *pixels"]
) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of each object, dB: its largest |reference| over the RMS error, at the chosen pixels.

    NaN for an object without a chosen pixel or without any error.
    """
    peak = torch.where(chosen, reference.abs(), 0.0).double().flatten(1).amax(1)
    error = torch.where(chosen, made - reference, 0.0).double().square().flatten(1).sum(1)
    mean = error / chosen.flatten(1).sum(1)
    return torch.where(mean > 0, 10 * torch.log10(peak.square() / mean), torch.nan)


def ratio_of_sums(numerator: Float[np.ndarray, " B"], denominator: Float[np.ndarray, " B"]) -> tuple[float, float]:
    """The ratio of two sums over objects, and its standard error.

    The error follows from the scatter of the objects about the common ratio (Cochran 1977, Sampling Techniques, eq.
    6.13, of a large population), so that it holds however pixels within an object are correlated. NaN if the
    denominators do not sum to a positive number; the error is NaN for fewer than two objects.
    """
    total = denominator.sum()
    if not total > 0:
        return math.nan, math.nan
    ratio = float(numerator.sum() / total)
    if len(numerator) < 2:
        return ratio, math.nan
    residual = np.square(numerator - ratio * denominator).sum() * len(numerator) / (len(numerator) - 1)
    return ratio, float(np.sqrt(residual) / total)
