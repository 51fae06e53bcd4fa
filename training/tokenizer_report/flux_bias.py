"""Flux bias by magnitude: how much brighter or fainter sources come out than they went in."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .pixel_scores import ratio_of_sums


@dataclass(frozen=True)
class FluxBias:
    """Relative error of the flux of the sources of one bin, `faintest` excluded; magnitudes AB.

    `pooled` is the ratio of the summed fluxes minus one, `median` the median over sources of each one's own ratio minus
    one. Both with their standard error: one source of a bin may rule the first, noise of faint ones the second.
    """

    brightest: float
    faintest: float
    num_sources: int
    pooled: float
    pooled_error: float
    median: float
    median_error: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def flux_bias(
    made: Float[np.ndarray, " B"],
    reference: Float[np.ndarray, " B"],
    magnitude: Float[np.ndarray, " B"],
    edges: Sequence[float],
) -> list[FluxBias]:
    """The bias in each bin between neighbouring `edges` (AB magnitude, ascending); an empty bin is left out.

    Sources without a magnitude (NaN) or a positive reference flux are in no bin.
    """
    found = []
    known = np.isfinite(magnitude) & (reference > 0)
    for low, high in itertools.pairwise(edges):
        chosen = known & (magnitude >= low) & (magnitude < high)
        if not chosen.any():
            continue
        pooled, pooled_error = ratio_of_sums(made[chosen], reference[chosen])
        each = made[chosen] / reference[chosen] - 1
        median, median_error = median_with_error(each)
        found.append(
            FluxBias(
                brightest=float(low),
                faintest=float(high),
                num_sources=int(chosen.sum()),
                pooled=pooled - 1,
                pooled_error=pooled_error,
                median=median,
                median_error=median_error,
            )
        )
    return found


def median_with_error(values: Float[np.ndarray, " B"]) -> tuple[float, float]:
    """The median and its standard error, sqrt(pi / 2) sigma / sqrt(B), with sigma from the median absolute deviation.

    The error is NaN for fewer than two values.
    """
    median = float(np.median(values))
    if len(values) < 2:
        return median, math.nan
    sigma = 1.4826 * float(np.median(np.abs(values - median)))
    return median, math.sqrt(math.pi / 2) * sigma / math.sqrt(len(values))
