"""The two networks of the spectrum tokenizer: windows to latents, and latents to the flux at the nodes.

The encoder sees a few windows to either side and no more, so that a token depends on its neighbourhood alone, wherever
the spectrum begins. The decoder attends to all tokens: it may use a redshift, which every line tells of, for each.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .blocks import Block, NumbersEmbedding, PositionEmbedding, RMSNorm, SinusoidalFeatures, attendable
from .spectrum_windows import WindowedSpectrum

NUM_CONDITIONS = 2
"""Numbers that describe the spectrograph in each window; see `conditions`."""


def conditions(
    log_resolving_power: Float[Tensor, "... W"], pixel_width: Float[Tensor, "... W"]
) -> Float[Tensor, "... W C"]:
    """What the networks are told of a spectrograph: resolving power and width of a pixel (nodes), of order one."""
    return torch.stack([(log_resolving_power - 7.6) / 0.7, pixel_width.clamp(min=1e-3).log()], -1)


class NeighbourMixer(nn.Module):
    """Adds to each window what a convolution over it and `reach` windows to either side makes of them."""

    def __init__(self, width: int, reach: int = 1):
        super().__init__()
        self.norm = RMSNorm(width)
        self.mix = nn.Conv1d(width, 2 * width, 2 * reach + 1, padding=reach, bias=False)
        self.to_output = nn.Linear(2 * width, width, bias=False)
        nn.init.zeros_(self.to_output.weight)

    def forward(self, x: Float[Tensor, "B W D"], mask: Bool[Tensor, "B W"]) -> Float[Tensor, "B W D"]:
        """Windows outside the mask count as zero: as if there were none."""
        normed = torch.where(mask[..., None], self.norm(x), 0.0)
        return x + self.to_output(F.silu(self.mix(normed.transpose(1, 2)).transpose(1, 2)))


class WindowEncoder(nn.Module):
    """Windows of a spectrum to latents. The windows of a stretch, `num_windows` of them, are looked at together."""

    def __init__(self, num_nodes: int, num_windows: int, width: int, num_mixers: int, num_latents: int):
        super().__init__()
        self.num_windows = num_windows
        self.levels = SinusoidalFeatures(longest=16.0, shortest=0.25, num_frequencies=7)
        num_features = 3 * num_windows * num_nodes + 3 * (1 + self.levels.size)
        self.enter = nn.Sequential(nn.Linear(num_features, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.straight = nn.Linear(num_features, width)
        self.conditions = NumbersEmbedding(NUM_CONDITIONS, width)
        self.mixers = nn.ModuleList(NeighbourMixer(width) for _ in range(num_mixers))
        self.to_latent = nn.Sequential(RMSNorm(width), nn.Linear(width, num_windows * num_latents))

    def forward(self, spectrum: WindowedSpectrum, amplitude: Float[Tensor, " B"]) -> Float[Tensor, "B W Q"]:
        """Latents of all windows; those of windows that are not valid mean nothing."""
        flux, weight, coverage = (
            x.unflatten(1, (-1, self.num_windows)).flatten(2)
            for x in (spectrum.flux, spectrum.weight, spectrum.coverage)
        )
        seen = (weight > 0).sum(-1, keepdim=True).clamp(min=1)
        total = weight.sum(-1, keepdim=True).clamp(min=1e-30)
        level = (weight * flux).sum(-1, keepdim=True) / total
        relative_weight = (weight * seen / total).clamp(max=4)
        # The unit of what is seen within a stretch: its own level and the noise of its nodes.
        scale = torch.hypot(level, (total / seen).rsqrt())
        shape = torch.asinh((flux - level) / scale * relative_weight)
        amplitude = amplitude[:, None, None]
        levels = torch.cat(
            [torch.asinh(level / amplitude), (scale / amplitude).log(), torch.asinh(level * total.sqrt()) / 3], -1
        )
        numbers = torch.cat([levels, self.levels(levels).flatten(-2)], -1)
        features = torch.cat([shape, relative_weight, coverage, numbers], -1)
        told = conditions(spectrum.log_resolving_power, spectrum.pixel_width)
        x = self.enter(features) + self.straight(features)
        x = x + self.conditions(_of_stretches(told, self.num_windows, spectrum.is_valid))
        mask = spectrum.is_valid.unflatten(1, (-1, self.num_windows)).any(-1)
        for mixer in self.mixers:
            x = mixer(x, mask)
        return self.to_latent(x).float().unflatten(-1, (self.num_windows, -1)).flatten(1, 2)


class WindowDecoder(nn.Module):
    """Latents of all windows to values on their nodes."""

    def __init__(self, num_nodes: int, num_windows: int, width: int, num_blocks: int, num_heads: int, num_latents: int):
        super().__init__()
        self.num_windows = num_windows
        num_features = num_windows * (num_latents + 1 + num_nodes)
        self.enter = nn.Sequential(nn.Linear(num_features, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.position = PositionEmbedding(width)
        self.conditions = NumbersEmbedding(1 + NUM_CONDITIONS, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        num_values = num_windows * num_nodes
        self.leave = nn.Sequential(
            RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, num_values)
        )
        self.straight = nn.Linear(width, num_values)

    def forward(
        self,
        latents: Float[Tensor, "B W Q"],
        mask: Bool[Tensor, "B W"],
        lines: Float[Tensor, "B G"],
        positions: Float[Tensor, "B W P"],
        conditions: Float[Tensor, "B W C"],
    ) -> Float[Tensor, "B G"]:
        """Values at the nodes of all windows, from the latents of those in the mask.

        It is told of the `lines` that are added to what it says: they tell the redshift.
        """
        latents = torch.where(mask[..., None], latents, 0.0)
        lines = torch.asinh(lines).unflatten(1, (mask.shape[1], -1))
        known = torch.cat([latents, mask[..., None].float(), lines], -1)
        x = self.enter(known.unflatten(1, (-1, self.num_windows)).flatten(2))
        x = x + self.position(_of_stretches(positions, self.num_windows))
        x = x + self.conditions(_of_stretches(conditions, self.num_windows))
        visible = attendable(mask.unflatten(1, (-1, self.num_windows)).any(-1))
        for block in self.blocks:
            x = block(x, visible)
        return (self.leave(x) + self.straight(x)).float().flatten(1)


def _of_stretches(
    numbers: Float[Tensor, "B W F"], num_windows: int, mask: Bool[Tensor, "B W"] | None = None
) -> Float[Tensor, "B S F"]:
    """Means over the windows of each stretch, or over those in the mask; zero where there are none."""
    numbers = numbers.unflatten(1, (-1, num_windows))
    if mask is None:
        return numbers.mean(2)
    share = mask.unflatten(1, (-1, num_windows))[..., None].float()
    return (numbers * share).sum(2) / share.sum(2).clamp(min=1)
