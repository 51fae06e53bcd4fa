"""A small transformer over the patches of an image that says where in their cells the latents lie."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .blocks import Block, RMSNorm, SinusoidalFeatures, attendable

LARGEST = 2.0
"""Most spreads by which a latent moves."""


class PatchRefiner(nn.Module):
    """From the middles and spreads of the cells of D latents, of all patches, to shifts in spreads; zero at first."""

    def __init__(self, num_latents: int, width: int, num_blocks: int, num_heads: int):
        super().__init__()
        self.angle = SinusoidalFeatures(longest=100.0, shortest=2.0, num_frequencies=10)
        self.brightness = SinusoidalFeatures(longest=40.0, shortest=1.0, num_frequencies=8)
        inputs = 2 * num_latents + 2 * self.angle.size + self.brightness.size
        self.project = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.norm = RMSNorm(width)
        self.shift = nn.Linear(width, num_latents)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    def forward(
        self,
        brightness: Float[Tensor, "B P"],
        numbers: Float[Tensor, "B P D"],
        spread: Float[Tensor, "B P D"],
        mask: Bool[Tensor, "B P"],
        middles: Float[Tensor, "B P 2"],
    ) -> Float[Tensor, "B P D"]:
        """`brightness` compressed by arcsinh; `middles` in arcsec from the object."""
        features = [
            torch.asinh(10 * numbers),
            torch.log(spread.clamp(min=1e-5)) / 5,
            self.angle(middles).flatten(-2),
            self.brightness(brightness),
        ]
        x = self.project(torch.cat(features, -1))
        visible = attendable(mask)
        for block in self.blocks:
            x = block(x, visible)
        return LARGEST * torch.tanh(self.shift(self.norm(x)).float() / LARGEST)
