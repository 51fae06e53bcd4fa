"""Narrow lines of a spectrum, found and coded by rule: what a redshift is read off from, and what networks smooth away.

The nodes are cut into cells, each of which has a token if a line stands out in it: a Gaussian over (or under) a
straight continuum that is fitted with it, by least squares with the inverse variances. The token says where the line
peaks, how wide it is and how strong. Lines are taken away in turns, the most significant first, each by its
surroundings alone; what is left is for the networks. A spectrum has as many lines as its noise lets be known.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .quantizers import rank_features

SIGMAS = (0.8, 1.6, 3.2)
"""Standard deviations of lines, in nodes."""
OFFSETS = (-0.25, 0.25)
"""Places of a peak, in nodes from the middle of its node."""
LEAST_SIGNIFICANCE = 4.5
"""Peak over its error: one spectrum of a few has a line that is noise."""
TURNS = 3
REACH = 12
"""Nodes to either side to which a line, and the continuum under it, are fitted."""
APART = 20
"""Nodes to either side among which a line must be the most significant to be taken in one turn: beside a strong line
the fit takes it for continuum, and sees another of the other sign."""
FAINTEST = 0.01
"""Peak of the faintest line, over the spectrum's amplitude."""
STEP = 0.25
"""Natural logarithm of the ratio of neighbouring strengths."""
NUM_EMISSION, NUM_ABSORPTION = 48, 24
"""Strengths of lines over the continuum, and of lines under it."""

_NUM_SHAPES = len(SIGMAS) * len(OFFSETS)
_NUM_STRENGTHS = NUM_EMISSION + NUM_ABSORPTION
_FAR = torch.arange(-REACH, REACH + 1).double()


def num_line_codes(cell: int) -> int:
    """Codes of a line in cells of so many nodes: places, times widths, times strengths."""
    return cell * _NUM_SHAPES * _NUM_STRENGTHS


def line_features(cell: int) -> Float[Tensor, "V S"]:
    """What codes share: cosines of the rank of the place, the width, and cosines of the rank of the strength."""
    places = rank_features(cell * len(OFFSETS)).unflatten(0, (-1, 1, len(OFFSETS), 1))
    widths = torch.eye(len(SIGMAS)).unflatten(0, (1, -1, 1, 1))
    strengths = torch.block_diag(rank_features(NUM_EMISSION), rank_features(NUM_ABSORPTION)).unflatten(0, (1, 1, 1, -1))
    shape = (cell, len(SIGMAS), len(OFFSETS), _NUM_STRENGTHS)
    return torch.cat([part.expand(*shape, -1) for part in (places, widths, strengths)], -1).flatten(0, 3)


def find_lines(
    flux: Float[Tensor, "B G"], weight: Float[Tensor, "B G"], is_valid: Bool[Tensor, "B G"], cell: int
) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Codes of the lines in each cell of so many nodes, and in which of the cells there is one.

    `flux` is in units of the amplitude, `weight` the inverse variance in units to match; lines peak at valid nodes.
    """
    num_objects, size = flux.shape
    found = torch.zeros(num_objects, size // cell, dtype=torch.bool, device=flux.device)
    codes = torch.zeros_like(found, dtype=torch.long)
    starts = torch.arange(size // cell, device=flux.device) * cell
    left, weight = flux, weight * is_valid
    for _ in range(TURNS):
        peak, significance = _fit(left, weight)
        best, shape = torch.where(is_valid[:, None], significance, 0.0).max(1)
        # What rounding leaves of a line stays in its own cell, and makes none beside it.
        stands_out = (best > LEAST_SIGNIFICANCE) & (best == F.max_pool1d(best, 2 * APART + 1, 1, APART))
        stands_out = stands_out & ~found.repeat_interleave(cell, 1)
        most, place = torch.where(stands_out, best, 0.0).unflatten(1, (-1, cell)).max(2)
        shape = shape.gather(1, starts + place)
        strength = peak.flatten(1).gather(1, shape * size + starts + place)
        is_new = most > 0
        codes = torch.where(is_new, (place * _NUM_SHAPES + shape) * _NUM_STRENGTHS + _strength_codes(strength), codes)
        found = found | is_new
        left = flux - draw_lines(codes, found, cell)
    return codes, found


def draw_lines(codes: Int[Tensor, "B M"], found: Bool[Tensor, "B M"], cell: int) -> Float[Tensor, "B G"]:
    """The lines of the cells that have one at all nodes, over the amplitude."""
    strength = _strengths(codes % _NUM_STRENGTHS) * found
    shape = codes // _NUM_STRENGTHS % _NUM_SHAPES
    node = (codes // (_NUM_STRENGTHS * _NUM_SHAPES)).clamp(0, cell - 1)
    node = node + torch.arange(codes.shape[1], device=codes.device) * cell
    index = node[..., None] + _FAR.long().to(codes.device)
    lines = strength[..., None] * _profiles().to(strength)[shape]
    total = torch.zeros(len(codes), codes.shape[1] * cell, device=codes.device)
    inside = (index >= 0) & (index < total.shape[1])
    lines = torch.where(inside, lines, 0.0).flatten(1)
    return total.scatter_add_(1, index.clamp(0, total.shape[1] - 1).flatten(1), lines)


def _profiles() -> Float[Tensor, "T R"]:
    """Each shape within REACH of the node where it peaks: widths, and in each the offsets."""
    offsets, sigmas = torch.tensor(OFFSETS).double(), torch.tensor(SIGMAS).double()
    away = _FAR - offsets[None, :, None]
    return torch.exp(-0.5 * (away / sigmas[:, None, None]) ** 2).flatten(0, 1)


def _fit(
    flux: Float[Tensor, "B G"], weight: Float[Tensor, "B G"]
) -> tuple[Float[Tensor, "B T G"], Float[Tensor, "B T G"]]:
    """Peak of a line of each shape at each node, and the peak's size over its error.

    The normal equations of (constant, slope, line), of which the first two are eliminated; all sums are convolutions.
    """
    line, x = _profiles(), _FAR[None] / REACH
    one = torch.ones_like(x)
    of_weight = torch.cat([one, x, x * x, line, line * x, line * line])
    of_flux = torch.cat([one, x, line])
    # torch's convolution does not turn its kernel around.
    sums, sums_of_flux = (
        F.conv1d(values[:, None], kernels[:, None].to(values), padding=REACH)
        for values, kernels in ((weight, of_weight), (weight * flux, of_flux))
    )
    s, sx, sxx, sg, sgx, sgg = sums.split([1, 1, 1, _NUM_SHAPES, _NUM_SHAPES, _NUM_SHAPES], 1)
    f, fx, fg = sums_of_flux.split([1, 1, _NUM_SHAPES], 1)
    determinant = (s * sxx - sx * sx).clamp(min=1e-6 * s.square()).clamp(min=1e-30)
    constant, slope = (sg * sxx - sgx * sx) / determinant, (sgx * s - sg * sx) / determinant
    information = sgg - constant * sg - slope * sgx
    projected = fg - constant * f - slope * fx
    # A line that the continuum could be, as where most nodes around it are not measured, is none.
    is_known = information > 0.05 * sgg.clamp(min=1e-30)
    information = torch.where(is_known, information, 1.0)
    projected = torch.where(is_known, projected, 0.0)
    return projected / information, projected.abs() / information.sqrt()


def _strength_codes(strength: Float[Tensor, "B M"]) -> Int[Tensor, "B M"]:
    rank = ((strength.abs() / FAINTEST).clamp(min=1e-9).log() / STEP).round().long().clamp(min=0)
    return torch.where(
        strength > 0, rank.clamp(max=NUM_EMISSION - 1), NUM_EMISSION + rank.clamp(max=NUM_ABSORPTION - 1)
    )


def _strengths(codes: Int[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    is_emission = codes < NUM_EMISSION
    rank = torch.where(is_emission, codes, codes - NUM_EMISSION)
    return torch.where(is_emission, 1.0, -1.0) * FAINTEST * torch.exp(STEP * rank)
