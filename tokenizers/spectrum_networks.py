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
    """Windows of a spectrum to latents."""

    def __init__(self, num_nodes: int, width: int, num_mixers: int, num_latents: int):
        super().__init__()
        self.levels = SinusoidalFeatures(longest=16.0, shortest=0.25, num_frequencies=7)
        num_levels = 3 * (1 + self.levels.size)
        num_features = 3 * num_nodes + num_levels
        self.enter = nn.Sequential(nn.Linear(num_features, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.straight = nn.Linear(num_features, width)
        self.position = PositionEmbedding(width)
        self.conditions = NumbersEmbedding(NUM_CONDITIONS, width)
        self.mixers = nn.ModuleList(NeighbourMixer(width) for _ in range(num_mixers))
        self.to_latent = nn.Sequential(RMSNorm(width), nn.Linear(width, num_latents))

    def forward(
        self, spectrum: WindowedSpectrum, amplitude: Float[Tensor, " B"], positions: Float[Tensor, "B W P"]
    ) -> Float[Tensor, "B W Q"]:
        """Latents of all windows; those of windows that are not valid mean nothing."""
        total = spectrum.weight.sum(-1, keepdim=True).clamp(min=1e-30)
        level = (spectrum.weight * spectrum.flux).sum(-1, keepdim=True) / total
        relative_weight = spectrum.weight * (spectrum.weight > 0).sum(-1, keepdim=True) / total
        # The unit of what is seen within a window: its own level and the noise of its nodes.
        noise = (total / (spectrum.weight > 0).sum(-1, keepdim=True).clamp(min=1)).rsqrt()
        scale = torch.hypot(level, noise)
        shape = torch.asinh((spectrum.flux - level) / scale * relative_weight.clamp(max=4))
        amplitude = amplitude[:, None, None]
        levels = torch.cat(
            [torch.asinh(level / amplitude), (scale / amplitude).log(), torch.asinh(level * total.sqrt()) / 3], -1
        )
        numbers = torch.cat([levels, self.levels(levels).flatten(-2)], -1)
        features = torch.cat([shape, relative_weight.clamp(max=4), spectrum.coverage, numbers], -1)
        x = self.enter(features) + self.straight(features) + self.position(positions)
        x = x + self.conditions(conditions(spectrum.log_resolving_power, spectrum.pixel_width))
        for mixer in self.mixers:
            x = mixer(x, spectrum.is_valid)
        return self.to_latent(x).float()


class WindowDecoder(nn.Module):
    """Latents of all windows to values on their nodes."""

    def __init__(self, num_nodes: int, width: int, num_blocks: int, num_heads: int, num_latents: int):
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(num_latents, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.position = PositionEmbedding(width)
        self.conditions = NumbersEmbedding(1 + NUM_CONDITIONS, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.leave = nn.Sequential(
            RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, num_nodes)
        )
        self.straight = nn.Linear(width, num_nodes)

    def forward(
        self,
        latents: Float[Tensor, "B W Q"],
        mask: Bool[Tensor, "B W"],
        positions: Float[Tensor, "B W P"],
        conditions: Float[Tensor, "B W C"],
    ) -> Float[Tensor, "B G"]:
        """Values at the nodes of all windows, from the latents of those in the mask."""
        x = self.enter(latents) + self.position(positions) + self.conditions(conditions)
        visible = attendable(mask)
        for block in self.blocks:
            x = block(x, visible)
        return (self.leave(x) + self.straight(x)).float().flatten(1)
