"""Contrastive losses between two views of B objects, with negatives from all processes.

Both take unit vectors [B, A] of this process's objects and tell by `valid` which of these have both views: others are
neither positive nor negative. Both return the sum over this process's valid objects, so that the loop divides by
their number over all processes. Logits are float32 whatever the precision around them, and are made for some rows at a
time where there are many.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LossName = Literal["infonce", "sigmoid"]
MOST_LOGITS = 2**26
"""Logits that are held at once: 256 MiB of float32."""
HIDDEN = -1e9
"""Logit of what is no candidate: finite, so that a row without any has no NaN."""


def info_nce(
    first: Float[Tensor, "B A"],
    second: Float[Tensor, "B A"],
    scale: Float[Tensor, ""],
    valid: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, equation 4), halved over directions.

    Each object's partner is told from the partners of all other objects by a softmax over scaled dot products.
    """
    valid, candidates, firsts, seconds, start = _with_others(first, second, valid)
    hidden = torch.where(candidates, 0.0, HIDDEN).to(first.dtype)

    def loss_of(rows: slice) -> Tensor:
        labels = torch.arange(start + rows.start, start + rows.stop, device=first.device)
        there = F.cross_entropy(scale * first[rows] @ seconds.T + hidden, labels, reduction="none")
        back = F.cross_entropy(scale * second[rows] @ firsts.T + hidden, labels, reduction="none")
        return ((there + back) / 2 * valid[rows]).sum()

    return _in_parts(loss_of, len(first), len(seconds), first.device)


def sigmoid_loss(
    first: Float[Tensor, "B A"],
    second: Float[Tensor, "B A"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    valid: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Sigmoid loss (SigLIP, Zhai et al. 2023, arXiv 2303.15343, section 3.2): each pair of objects is a yes or no.

    -log sigmoid(z (scale first_i . second_j + bias)) over this process's i and everybody's j; z is 1 for i = j, else
    -1. No softmax couples the pairs, so that sigmoid(scale x . y + bias) is the odds that two views are of one object.
    """
    valid, candidates, _, seconds, start = _with_others(first, second, valid)

    def loss_of(rows: slice) -> Tensor:
        logits = scale * first[rows] @ seconds.T + bias
        partner = torch.arange(start + rows.start, start + rows.stop, device=first.device)
        is_partner = partner[:, None] == torch.arange(len(seconds), device=first.device)
        losses = -F.logsigmoid(torch.where(is_partner, logits, -logits))
        return (losses * (valid[rows, None] & candidates)).sum()

    return _in_parts(loss_of, len(first), len(seconds), first.device)


def _with_others(first: Tensor, second: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """`valid` here and everywhere, both vectors of all processes, and the place of this process's first among them."""
    if valid is None:
        valid = torch.ones(len(first), dtype=torch.bool, device=first.device)
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return valid, valid, first, second, 0
    from torch.distributed.nn.functional import all_gather

    # One exchange for all; others' vectors come with a graph, so that their gradients go back to them.
    joined = torch.cat([first, second, valid[:, None].to(first.dtype)], 1)
    firsts, seconds, validity = torch.cat(list(all_gather(joined))).split([first.shape[1], second.shape[1], 1], 1)
    return valid, validity[:, 0] > 0.5, firsts, seconds, dist.get_rank() * len(first)


def _in_parts(
    loss_of: Callable[[slice], Tensor], num_rows: int, num_columns: int, device: torch.device
) -> Float[Tensor, ""]:
    """The sum of `loss_of` over some rows at a time; where there are several parts, none keeps its logits."""
    share = max(1, MOST_LOGITS // max(1, num_columns))
    parts = [slice(begin, min(begin + share, num_rows)) for begin in range(0, num_rows, share)]
    with torch.autocast(device.type, enabled=False):
        if len(parts) == 1:
            return loss_of(parts[0])
        losses: list[Any] = [checkpoint(loss_of, part, use_reentrant=False) for part in parts]
        return torch.stack(losses).sum()
