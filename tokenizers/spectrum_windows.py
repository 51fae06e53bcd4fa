"""Windows of even width in log wavelength, and nodes within them: where spectra of all spectrographs meet.

A spectrum's own pixels are laid over the nodes by the share of each pixel that falls on each node, so that pixels wider
and narrower than a node are treated alike and their weight is kept. Only pixels beside one another matter to each
other: a node knows nothing of the spectrum's start. On the way back nodes are interpolated at the wanted wavelengths,
through a Gaussian where the wanted resolution is lower.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.observations import ObservationError, SpectrumObservation

WIDEST_PIXEL = 1.0
"""In windows. The pixels of a grid as coarse as that, or with no valid neighbour, count as one window wide."""
_GAUSSIAN_POINTS = torch.linspace(-3.0, 3.0, 13)
"""Places, in sigmas, at which a spectrum is read to blur it."""


@dataclass(frozen=True)
class WindowGrid:
    """`num_windows` windows of `num_nodes` nodes from `wavelength_min` to `wavelength_max`, angstrom."""

    wavelength_min: float
    wavelength_max: float
    num_windows: int
    num_nodes: int

    @property
    def size(self) -> int:
        """Nodes of all windows."""
        return self.num_windows * self.num_nodes

    @property
    def node_width(self) -> float:
        """Natural logarithm of the ratio of two neighbouring nodes' wavelengths."""
        return math.log(self.wavelength_max / self.wavelength_min) / self.size

    def places(self, wavelength: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Distance from the first window's start in nodes; node j reaches from j to j + 1."""
        return (wavelength.double() / self.wavelength_min).log() / self.node_width

    def middles(self, parts: int = 1) -> Float[Tensor, " M"]:
        """Natural logarithm of the wavelength (angstrom) in the middle of each window, or of each of its `parts`."""
        places = (torch.arange(self.num_windows * parts, dtype=torch.float64) + 0.5) * self.num_nodes / parts
        return (places * self.node_width + math.log(self.wavelength_min)).float()


@dataclass(frozen=True, eq=False)
class WindowedSpectrum:
    """What valid pixels say, node by node.

    `flux` is the mean over a node's pixels by weight, `weight` the inverse variance that fell on the node (both zero
    where none did), `coverage` the share of the node that pixels cover. For each window: whether a valid pixel's middle
    lies in it, and the mean over its pixels of their width (nodes) and of log resolving power.
    """

    flux: Float[Tensor, "B W K"]
    weight: Float[Tensor, "B W K"]
    coverage: Float[Tensor, "B W K"]
    is_valid: Bool[Tensor, "B W"]
    pixel_width: Float[Tensor, "B W"]
    log_resolving_power: Float[Tensor, "B W"]


def window_spectrum(observation: SpectrumObservation, grid: WindowGrid, device: torch.device) -> WindowedSpectrum:
    """Lay the valid pixels of an observation over the nodes of `grid`.

    Raises ObservationError for a valid pixel outside the windows: nothing is left out in silence.
    """
    mask = observation.mask.to(device)
    place = _valid_places(observation, grid).to(device)
    width = _pixel_widths(place, mask, WIDEST_PIXEL * grid.num_nodes)
    weight = torch.where(mask, observation.inverse_variance.to(device), 0.0).double()
    flux = torch.where(mask, observation.flux.to(device), 0.0).double()

    # In float64, so that the order in which a GPU adds does not matter.
    low, high = place - width / 2, place + width / 2
    first = low.floor()
    num_objects, size = len(observation), grid.size
    sums = torch.zeros(3, num_objects, size, device=device, dtype=torch.float64)
    reach = int((high.floor() - first).amax()) + 1
    for step in range(reach):
        node = first + step
        covered = (torch.minimum(high, node + 1) - torch.maximum(low, node)).clamp(min=0) * mask
        # What lies beyond the first or last node belongs to that node.
        index = node.long().clamp(0, size - 1)
        share = covered / width * weight
        for total, part in zip(sums, (share * flux, share, covered), strict=True):
            total.scatter_add_(1, index, part)
    value, total, coverage = (s.unflatten(-1, (grid.num_windows, grid.num_nodes)) for s in sums)

    window = (place / grid.num_nodes).long().clamp(0, grid.num_windows - 1)
    power = observation.resolving_power.to(device).double().clamp(min=1e-3).log()
    means = torch.zeros(3, num_objects, grid.num_windows, device=device, dtype=torch.float64)
    for mean, part in zip(means, (torch.ones_like(width), width, power), strict=True):
        mean.scatter_add_(1, window, torch.where(mask, part, 0.0))
    count = means[0].clamp(min=1)
    return WindowedSpectrum(
        flux=torch.where(total > 0, value / total.clamp(min=1e-300), 0.0).float(),
        weight=total.float(),
        coverage=coverage.clamp(max=1).float(),
        is_valid=means[0] > 0,
        pixel_width=(means[1] / count).float(),
        log_resolving_power=(means[2] / count).float(),
    )


def read_nodes(nodes: Float[Tensor, "B G"], place: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """The values of nodes at places, linear between their middles and constant beyond the first and last."""
    place = (place - 0.5).clamp(0, nodes.shape[1] - 1)
    below = place.long().clamp(max=nodes.shape[1] - 2)
    share = (place - below).to(nodes.dtype)
    return torch.lerp(nodes.gather(1, below), nodes.gather(1, below + 1), share)


def read_blurred(
    nodes: Float[Tensor, "B G"], place: Float[Tensor, "B L"], sigma: Float[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """As `read_nodes`, but through a Gaussian of standard deviation `sigma` (nodes) at each place."""
    total = torch.zeros_like(place, dtype=nodes.dtype)
    weights = torch.exp(-0.5 * _GAUSSIAN_POINTS**2)
    for point, weight in zip(_GAUSSIAN_POINTS.tolist(), (weights / weights.sum()).tolist(), strict=True):
        total += weight * read_nodes(nodes, place + point * sigma)
    return total


def _valid_places(observation: SpectrumObservation, grid: WindowGrid) -> Float[Tensor, "B L"]:
    """Places of the pixels, in float64; a masked pixel lies where the valid one before it does, or at zero."""
    mask = observation.mask
    place = grid.places(torch.where(mask, observation.wavelength, grid.wavelength_min))
    outside = mask & ((place < 0) | (place >= grid.size))
    if outside.any():
        row, pixel = outside.nonzero()[0].tolist()
        raise ObservationError(
            f"{observation.modality.name}, object {observation.object_id[row]}: this tokenizer reads wavelengths "
            f"from {grid.wavelength_min} to {grid.wavelength_max} A; a valid pixel lies at "
            f"{observation.wavelength[row, pixel].item():.1f} A. Pass mask=False there to leave it out."
        )
    return torch.where(mask, place, 0.0).cummax(1).values


def _pixel_widths(place: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], widest: float) -> Float[Tensor, "B L"]:
    """Width of each valid pixel in nodes: its distance from the nearer valid neighbour, at most `widest`.

    A pixel beside a hole is thus as wide as its other neighbour says, and holes stay uncovered.
    """
    far = torch.full_like(place[:, :1], torch.inf)
    before = torch.cat([-far, torch.where(mask, place, -torch.inf).cummax(1).values[:, :-1]], 1)
    after = torch.where(mask, place, torch.inf).flip(1).cummin(1).values.flip(1)
    after = torch.cat([after[:, 1:], far], 1)
    width = torch.minimum(place - before, after - place).clamp(max=widest)
    return torch.where(mask, width, 1.0)
