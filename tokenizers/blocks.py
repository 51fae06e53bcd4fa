"""Transformer blocks shared by the tokenizers and the models: pre-norm, RMSNorm, QK-norm, SwiGLU, no biases.

Attention is torch's `scaled_dot_product_attention` with key masks (True = valid). Sources: RMSNorm (Zhang & Sennrich
2019, arXiv 1910.07467), SwiGLU (Shazeer 2020, arXiv 2002.05202), QK-norm (Dehghani et al. 2023, arXiv 2302.05442).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .token_grid import DETAIL, LOG_WAVELENGTH


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm, computed in float32 whatever the precision around it."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Scale each vector to unit root mean square, times the learned weight."""
        return super().forward(x.float())


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to `context`."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, found {width} and {num_heads}")
        self.num_heads = num_heads
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)
        self.query_norm = RMSNorm(width // num_heads)
        self.key_norm = RMSNorm(width // num_heads)

    def forward(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"], context_mask: Bool[Tensor, "B M"] | None
    ) -> Float[Tensor, "B N D"]:
        """Attend from `x` to the valid vectors of `context`."""
        query = self.query_norm(self._split(self.to_query(x)))
        key = self.key_norm(self._split(self.to_key(context)))
        value = self._split(self.to_value(context))
        mask = None if context_mask is None else context_mask[:, None, None, :]
        # Autocast would make these bf16, in which torch's attention on CPUs is much slower backward.
        precision = torch.float32 if value.device.type == "cpu" else value.dtype
        with torch.autocast(value.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(
                query.to(precision), key.to(precision), value.to(precision), attn_mask=mask
            )
        return self.to_output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attendable(mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
    """The mask, but with all tokens visible where an object has none: attention over nothing would be NaN."""
    return mask | ~mask.any(1, keepdim=True)


class SwiGLU(nn.Module):
    """Gated feed-forward layer: silu(x U) * (x V), then back to the width."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Apply to each vector."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, to itself or to a context, and a feed-forward layer, each added to what comes in times `branch`."""

    def __init__(self, width: int, num_heads: int, branch: float = 1.0):
        super().__init__()
        self.branch = branch
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = RMSNorm(width)
        # Two thirds of 4 D, as SwiGLU has three matrices where a plain layer has two; a multiple of 32 for hardware.
        self.mlp = SwiGLU(width, 32 * math.ceil(8 * width / 3 / 32))
        self.reset_outputs()

    def reset_outputs(self) -> None:
        """Make the block start as the identity, so that depth does not change the scale of what passes through."""
        nn.init.zeros_(self.attention.to_output.weight)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: Bool[Tensor, "B M"] | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attend to the vectors of `x`, or of `context` where there is one, for which `mask` is True."""
        normed = self.attention_norm(x)
        x = x + self.branch * self.attention(normed, normed if context is None else context, mask)
        return x + self.branch * self.mlp(self.mlp_norm(x))


class SinusoidalFeatures(nn.Module):
    """Sines and cosines of each number, with periods spaced evenly in logarithm from `longest` to `shortest`."""

    frequencies: Tensor

    def __init__(self, longest: float, shortest: float, num_frequencies: int):
        super().__init__()
        periods = torch.logspace(math.log10(longest), math.log10(shortest), num_frequencies, dtype=torch.float64)
        self.register_buffer("frequencies", (2 * math.pi / periods).float())
        self.size = 2 * num_frequencies

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... S"]:
        """The features of each number of `x`, in a new last dimension."""
        angles = x[..., None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


class NumbersEmbedding(nn.Module):
    """Physical numbers of order one (instrument or band features) to a vector: sinusoids, then a small MLP."""

    def __init__(self, num_numbers: int, width: int):
        super().__init__()
        self.sinusoids = SinusoidalFeatures(longest=16.0, shortest=0.5, num_frequencies=6)
        self.layers = nn.Sequential(
            nn.Linear(num_numbers * (1 + self.sinusoids.size), width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, numbers: Float[Tensor, "... F"]) -> Float[Tensor, "... D"]:
        """Embed the last dimension."""
        return self.layers(torch.cat([numbers, self.sinusoids(numbers).flatten(-2)], -1))


class PositionEmbedding(nn.Module):
    """Positions (`token_grid.POSITION_FEATURES`) to a vector."""

    def __init__(self, width: int):
        super().__init__()
        self.angle = SinusoidalFeatures(longest=200.0, shortest=1.5, num_frequencies=16)
        self.log_wavelength = SinusoidalFeatures(longest=20.0, shortest=0.015, num_frequencies=20)
        self.detail = SinusoidalFeatures(longest=400.0, shortest=2.5, num_frequencies=8)
        self.project = nn.Linear(2 * self.angle.size + self.log_wavelength.size + self.detail.size, width, bias=False)

    def forward(self, positions: Float[Tensor, "B N P"]) -> Float[Tensor, "B N D"]:
        """Embed [..., (x arcsec, y arcsec, log wavelength, detail)]."""
        angles = self.angle(positions[..., :2]).flatten(-2)
        along = [self.log_wavelength(positions[..., LOG_WAVELENGTH]), self.detail(positions[..., DETAIL])]
        return self.project(torch.cat([angles, *along], -1))
