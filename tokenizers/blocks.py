"""Transformer blocks shared by the tokenizers and the models: pre-norm, RMSNorm, QK-norm, SwiGLU, no biases.

Attention is torch's `scaled_dot_product_attention` with key masks (True = valid), or on GPUs, where the valid vectors
of each row come first, its variable-length attention, which skips the others and needs no mask. On CPUs padding can be
left out of everything (`packed_rows.py`). Sources: RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), SwiGLU (Shazeer
2020, arXiv 2002.05202), QK-norm (Dehghani et al. 2023, arXiv 2302.05442).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from .packed_rows import PackedPairs, packed_attention
from .token_grid import DETAIL, LOG_WAVELENGTH

RUNS_DEVICES, RUNS_PRECISIONS = ("cuda",), (torch.bfloat16, torch.float16)
"""Where variable-length attention works."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Rows of queries and keys cut into runs that attend within themselves: of each row first its valid vectors, then
    its padding. The edges count vectors of all rows, as variable-length attention wants them."""

    of_queries: Int32[Tensor, " E"]
    of_keys: Int32[Tensor, " E"]


def make_runs(mask: Bool[Tensor, "B M"], num_queries: int | None = None) -> Runs | None:
    """Runs for keys whose valid ones come first in each row, by `mask`, which must be `attendable`.

    The keys are the queries too, or `num_queries` others in each row ask for the valid ones. None where
    variable-length attention does not work.
    """
    if mask.device.type not in RUNS_DEVICES:
        return None
    num_keys = mask.shape[1]
    first = torch.arange(len(mask), device=mask.device)
    middle = first * num_keys + mask.sum(1)
    last = torch.full_like(first[:1], len(mask))
    of_keys = torch.cat([torch.stack([first * num_keys, middle], 1).flatten(), last * num_keys]).int()
    if num_queries is None:
        return Runs(of_keys, of_keys)
    edges = torch.stack([first, first + 1], 1).flatten()  # nobody asks for padding
    return Runs((torch.cat([edges, last]) * num_queries).int(), of_keys)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm, computed in float32 whatever the precision around it."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Scale each vector to unit root mean square, times the learned weight."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _FewPassesNorm.apply(x.float(), self.weight, self.eps)  # type: ignore[no-untyped-call]
        return super().forward(x.float())


class _FewPassesNorm(torch.autograd.Function):
    """`F.rms_norm` for CPUs, where torch makes it of a dozen operations, each a pass over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square().div_(size).add_(eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        normed, weight, inverse = ctx.saved_tensors
        (gradient,) = upstream
        of_normed = gradient * weight
        mean = torch.linalg.vecdot(of_normed, normed).unsqueeze(-1) / normed.shape[-1]
        of_weight = (gradient * normed).reshape(-1, len(weight)).sum(0)
        return torch.addcmul(of_normed, normed, mean, value=-1).mul_(inverse), of_weight, None


def autocast_once(x: Tensor) -> Tensor:
    """In the precision of autocast, where it is on: several layers would each convert the same vectors."""
    device = x.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if is_on else x


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
        self,
        x: Float[Tensor, "B N D"],
        context: Float[Tensor, "B M D"],
        context_mask: Bool[Tensor, "B M"] | None,
        runs: Runs | PackedPairs | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attend from `x` to the valid vectors of `context`. `Runs` say the same as the mask, for GPUs; packed rows
        need `PackedPairs` and no mask."""
        query = self.query_norm(self._split(self.to_query(x)))
        key = self.key_norm(self._split(self.to_key(context)))
        value = self._split(self.to_value(context))
        if isinstance(runs, PackedPairs):
            return self.to_output(packed_attention(query, key, value, runs).flatten(2))
        # Autocast would make these bf16, in which torch's attention on CPUs is much slower backward.
        precision = torch.float32 if value.device.type == "cpu" else value.dtype
        query, key, value = query.to(precision), key.to(precision), value.to(precision)
        with torch.autocast(value.device.type, enabled=False):
            if runs is not None and precision in RUNS_PRECISIONS:
                mixed = self._attend_in_runs(query, key, value, context_mask, runs)
            else:
                mask = None if context_mask is None else context_mask[:, None, None, :]
                query, key, value = (vectors.transpose(1, 2) for vectors in (query, key, value))
                mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
        return self.to_output(mixed.flatten(2))

    def _attend_in_runs(
        self, query: Tensor, key: Tensor, value: Tensor, context_mask: Tensor | None, runs: Runs
    ) -> Tensor:
        if context_mask is not None:
            # Nobody may ask for a run of padding: whatever a kernel leaves as its gradient ends here.
            valid = context_mask[:, :, None, None]
            key, value = torch.where(valid, key, 0), torch.where(valid, value, 0)
        mixed = varlen_attn(
            query.flatten(0, 1).contiguous(),
            key.flatten(0, 1).contiguous(),
            value.flatten(0, 1).contiguous(),
            runs.of_queries,
            runs.of_keys,
            query.shape[1],
            key.shape[1],
        )
        assert isinstance(mixed, Tensor)
        return mixed.view(query.shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


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


def mlp_width(width: int) -> int:
    """Two thirds of 4 D, as SwiGLU has three matrices where a plain layer has two; a multiple of 32 for hardware."""
    return 32 * math.ceil(8 * width / 3 / 32)


class Block(nn.Module):
    """Attention, to itself or to a context, and a feed-forward layer, each added to what comes in times `branch`."""

    def __init__(self, width: int, num_heads: int, branch: float = 1.0):
        super().__init__()
        self.branch = branch
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_width(width))
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
        runs: Runs | PackedPairs | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attend to the vectors of `x`, or of `context` where there is one, for which `mask` is True, as `runs` say."""
        normed = autocast_once(self.attention_norm(x))
        mixed = self.attention(normed, normed if context is None else context, mask, runs)
        x = torch.add(x, mixed, alpha=self.branch)
        return torch.add(x, self.mlp(autocast_once(self.mlp_norm(x))), alpha=self.branch)


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
