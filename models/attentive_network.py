"""The network of an attentive probe: learned queries attend to an object's frozen token vectors, and a head reads them.

Attentive probing is of Chen et al. 2023 (CAE, arXiv 2202.03026) and Bardes et al. 2024 (V-JEPA, arXiv 2404.08471): a
cross-attention with a learned query, then a small MLP. Here there are several queries, and each token passes a small
MLP first.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

WARMUP_SHARE = 0.05
CLIP = 1.0


class AttentiveNetwork(nn.Module):
    """From token vectors [B, N, D] to `num_outputs` numbers for each object."""

    def __init__(
        self, input_width: int, width: int, num_queries: int, num_heads: int, num_outputs: int, dropout: float
    ):
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("mean", torch.zeros(input_width))
        self.register_buffer("scale", torch.ones(input_width))
        self.embed = nn.Linear(input_width, width)
        self.token_mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.queries = nn.Parameter(torch.randn(num_queries, num_heads, width // num_heads))
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(num_queries * width), nn.Linear(num_queries * width, 2 * width), nn.GELU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(2 * width, num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def standardise_by(self, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> None:
        """Centre and scale inputs by those of these vectors that are valid."""
        valid = vectors[mask]
        self.mean = valid.mean(0)
        self.scale = valid.std(0, correction=0).clamp(min=1e-6)

    def pool(self, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B H"]:
        """What the queries gather from the valid tokens."""
        x = self.dropout(self.embed((vectors - self.mean) / self.scale))
        x = self.norm(x + self.token_mlp(x))
        key, value = (project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.to_key, self.to_value))
        logits = torch.einsum("qhd,bnhd->bhqn", self.queries, key) / math.sqrt(key.shape[-1])
        weights = logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
        return self.mlp(torch.einsum("bhqn,bnhd->bqhd", weights, value).flatten(1))

    def forward(self, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B O"]:
        """Outputs of each object, which must have a valid token."""
        return self.head(self.pool(vectors, mask))


class ValueWithScale(AttentiveNetwork):
    """Two outputs: a value, and the logarithm of how far off it may be, which learns from the value's errors alone."""

    def __init__(self, input_width: int, width: int, num_queries: int, num_heads: int, dropout: float):
        super().__init__(input_width, width, num_queries, num_heads, 1, dropout)
        self.log_scale = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.log_scale.weight)
        nn.init.zeros_(self.log_scale.bias)

    def forward(self, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B 2"]:
        """Value and log scale."""
        pooled = self.pool(vectors, mask)
        return torch.cat([self.head(pooled), self.log_scale(pooled.detach()).clamp(-8, 4)], 1)


def value_loss(outputs: Float[Tensor, "B 2"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Absolute error of the value, and negative log likelihood of a Laplace distribution for the scale."""
    error, log_scale = (outputs[:, 0] - labels).abs(), outputs[:, 1]
    return error.mean() + 0.1 * (error.detach() * torch.exp(-log_scale) + log_scale).mean()


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained: AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with warm-up and a cosine."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    seed: int


def train_network(
    network: AttentiveNetwork,
    vectors: Float[Tensor, "B N D"],
    mask: Bool[Tensor, "B N"],
    labels: Tensor,
    train: Tensor,
    stop: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    watched: Callable[[Tensor, Tensor], Tensor],
    settings: TrainingSettings,
) -> int:
    """Train on the objects `train`; keep the weights of the epoch at which `watched` is least on the objects `stop`.

    Stops after `patience` epochs that were no better. Returns the number of epochs of the weights kept.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    decaying = [p for p in network.parameters() if p.ndim == 2]
    others = [p for p in network.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
    )
    total = settings.epochs * math.ceil(len(train) / settings.batch_size)
    step, best, kept, kept_epoch = 0, math.inf, network.state_dict(), 0
    for epoch in range(1, settings.epochs + 1):
        network.train()
        for rows in _batches(train, settings.batch_size, generator):
            share = step / total
            factor = min(1.0, (share + 1 / total) / WARMUP_SHARE) * 0.5 * (1 + math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            optimizer.zero_grad()
            loss(network(vectors[rows], mask[rows]), labels[rows]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            step += 1
        error = float(watched(outputs_of(network, vectors[stop], mask[stop]), labels[stop]))
        if error < best:
            best, kept_epoch = error, epoch
            kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        elif epoch - kept_epoch >= settings.patience:
            break
    network.load_state_dict(kept)
    return kept_epoch


@torch.no_grad()
def outputs_of(
    network: AttentiveNetwork, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], batch_size: int = 1024
) -> Float[Tensor, "B O"]:
    """Outputs of many objects, without gradients or dropout."""
    network.eval()
    parts = [network(vectors[i : i + batch_size], mask[i : i + batch_size]) for i in range(0, len(vectors), batch_size)]
    return torch.cat(parts)


def cross_entropy(outputs: Float[Tensor, "B C"], labels: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy of class numbers [B]."""
    return F.cross_entropy(outputs, labels)


def value_error(outputs: Float[Tensor, "B 2"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return (outputs[:, 0] - labels).abs().mean()


def _batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = rows[torch.randperm(len(rows), generator=generator)]
    yield from order.split(size)
