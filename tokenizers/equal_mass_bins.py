"""Bins of equal mass: a monotone map from a quantity to codes that are used alike.

Edges are values that were seen, and every bin is half-open, [edge, next edge), so that a float32 number lies in one bin
and its bounds hold it exactly. A value that holds more than a bin's share of the mass gets a bin of its own, and where
there are no more different values than bins, each does: integers and classes come back as they were.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class EqualMassBins:
    """n bins of one quantity; code 0 stands for what lies below them, codes 1 to n for the bins, n + 1 for above.

    `edges` (E = n + 1) ascend strictly; the last lies one float32 above the largest value seen. `centers` are the
    medians of what was seen in each bin, values of the bin themselves; `spreads` its root-mean-square distance from
    them.
    """

    edges: Float64[Tensor, " E"]
    centers: Float64[Tensor, " n"]
    spreads: Float64[Tensor, " n"]

    @property
    def num_codes(self) -> int:
        """V: the bins and the two outer codes."""
        return len(self.centers) + 2

    def encode(self, values: Float32[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The code of each value."""
        return torch.searchsorted(self.edges, values.double(), right=True)

    def decode(self, codes: Int[Tensor, "..."]) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
        """Centre and spread of each code: of the outer ones the extreme value seen, and NaN."""
        unknown = torch.full((1,), torch.nan, dtype=torch.float64)
        centers = torch.cat([self.edges[:1], self.centers, _next_below(self.edges[-1:])])
        return centers[codes], torch.cat([unknown, self.spreads, unknown])[codes]

    def standardised(self) -> Float64[Tensor, " V"]:
        """The value of each code in standard deviations from the mean, bins counting alike, as they hold equal mass."""
        inner = self.centers
        deviation = inner.std(correction=0).clamp(min=torch.finfo(torch.float32).tiny)
        return (self.decode(torch.arange(self.num_codes))[0] - inner.mean()) / deviation

    def bounds(self, minimum: float, maximum: float) -> tuple[Float64[Tensor, " V"], Float64[Tensor, " V"]]:
        """Lower and upper bound of each code; the outer codes reach to the least and the largest value possible.

        Bins are half-open, [low, high); that of the code above is closed. An outer code that no possible value has
        gets an empty interval at the edge.
        """
        # The edge of what is possible is compared with in float32, so it is rounded as values are.
        least, largest = (torch.tensor([v], dtype=torch.float32).double() for v in (minimum, maximum))
        low = torch.cat([torch.minimum(least, self.edges[:1]), self.edges])
        return low, torch.cat([self.edges, torch.maximum(largest, self.edges[-1:])])


def equal_mass_bins(
    values: Float32[np.ndarray, " m"], weights: Float64[np.ndarray, " m"], max_bins: int
) -> EqualMassBins:
    """At most `max_bins` bins of what `values`, different and ascending, with these positive weights say was seen.

    Each bin takes values, upwards, to where its share of the mass ends most nearly, and at least one, so that no bin is
    empty.
    """
    starts = np.arange(len(values)) if len(values) <= max_bins else _starts(weights, max_bins)
    seen = values.astype(np.float64)
    before = np.concatenate([[0.0], np.cumsum(weights)])
    stops = np.append(starts[1:], len(values))
    # The lower median: the first value with half of the bin's mass at or below it.
    middles = np.searchsorted(before[1:], (before[starts] + before[stops]) / 2)
    centers = seen[np.clip(middles, starts, stops - 1)]
    distances = (seen - np.repeat(centers, stops - starts)) ** 2 * weights
    spreads = np.sqrt(np.add.reduceat(distances, starts) / np.add.reduceat(weights, starts))
    beyond = np.nextafter(values[-1], np.float32(np.inf))
    return EqualMassBins(
        torch.from_numpy(np.append(seen[starts], beyond.astype(np.float64))),
        torch.from_numpy(centers),
        torch.from_numpy(spreads),
    )


class BinTable(nn.Module):
    """The bins of several quantities as tensors to save: a row for each, infinity after its last bin."""

    edges: Tensor
    centers: Tensor
    spreads: Tensor

    def __init__(self, num_quantities: int, max_bins: int):
        super().__init__()
        for name, size in (("edges", max_bins + 1), ("centers", max_bins), ("spreads", max_bins)):
            self.register_buffer(name, torch.full((num_quantities, size), torch.inf, dtype=torch.float64))

    def set(self, row: int, bins: EqualMassBins) -> None:
        """Fill a row."""
        for name in ("edges", "centers", "spreads"):
            values = getattr(bins, name)
            getattr(self, name)[row, : len(values)] = values

    def bins(self, row: int) -> EqualMassBins | None:
        """The bins of a row, on the CPU; None if it was never filled."""
        count = int(self.centers[row].isfinite().sum())
        if count == 0:
            return None
        # Observations and token grids live on the CPU, wherever the weights of the model are.
        return EqualMassBins(
            self.edges[row, : count + 1].cpu(), self.centers[row, :count].cpu(), self.spreads[row, :count].cpu()
        )


def _starts(weights: Float64[np.ndarray, " m"], max_bins: int) -> Int[np.ndarray, " n"]:
    """Where bins start. Those of heavy values are set aside; `spare` counts the bins left for the light ones."""
    heavy = _heavy(weights, max_bins)
    spare = max_bins - len(heavy)
    before = np.concatenate([[0.0], np.cumsum(np.where(np.isin(np.arange(len(weights)), heavy), 0.0, weights))])
    ends = np.append(heavy, len(weights))
    starts, reached = [0], 0.0
    while starts[-1] < len(weights):
        start = starts[-1]
        place = int(np.searchsorted(heavy, start))
        if ends[place] == start:
            # The light values up to the next heavy one join this one where no bin is left for them.
            stop = start + 1 if spare else int(ends[place + 1])
        else:
            goal = reached + (before[-1] - reached) / spare
            stop = int(np.searchsorted(before, min(goal, before[-1])))
            if goal - before[stop - 1] < before[stop] - goal:
                stop -= 1
            stop = min(max(stop, start + 1), int(ends[place]))
            reached = goal if stop < ends[place] else before[stop]
            spare -= 1
        starts.append(stop)
    return np.array(starts[:-1])


def _heavy(weights: Float64[np.ndarray, " m"], max_bins: int) -> Int[np.ndarray, " h"]:
    """Places of the values that hold more than a bin's share of what is left without them; fewer than `max_bins`."""
    heavy = np.zeros(len(weights), dtype=bool)
    while True:
        share = weights[~heavy].sum() / (max_bins - heavy.sum())
        more = ~heavy & (weights > share)
        if not more.any():
            return heavy.nonzero()[0]
        heavy |= more


def _next_below(values: Float64[Tensor, " 1"]) -> Float64[Tensor, " 1"]:
    infinity = torch.tensor(-torch.inf, dtype=torch.float32)
    return torch.nextafter(values.float(), infinity).double()
