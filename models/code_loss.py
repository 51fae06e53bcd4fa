"""Cross-entropy of tokens, each over its own vocabulary, in parts that are small whatever the batch.

Loss and gradient of a part are worked out together, so that its logits are needed once and never wait for the backward
pass (as Hsu et al. 2024, arXiv 2410.10989, section 3.2, do for one vocabulary). Two ways to the same numbers:

- On CPUs tokens are sorted by vocabulary, and each meets the codes of its own alone. How many there are of each is
  known only then, so that a compiler sees one opaque operator.
- On accelerators shapes must not depend on the data, or the host would wait for the device. A row of the batch has at
  most so many tokens of each vocabulary (`most`): one or two of a scalar's, which are picked out and done for all
  scalars at once. Where all of a row's tokens may be of one vocabulary, all meet its codes, with weight zero if they
  are of another.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tokenizers import packed_rows

CACHE_PART, DEVICE_PART = 2**23, 2**27
"""Logits of a part on CPUs, so that they stay in the cache, and on accelerators."""
FEW = 8
"""Vocabularies of which a row has at most so many tokens are done at once."""


def code_losses(
    hidden: Float[Tensor, "B T D"],
    vectors: Float[Tensor, "V D"],
    codes: Int[Tensor, "B T"],
    vocabularies: Int[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    offsets: Sequence[int],
    most: Sequence[int],
) -> tuple[Float[Tensor, ""], Float[Tensor, "B T"]]:
    """Weighted sum of the losses of tokens, and each loss in nats (without gradient; zero where the weight is zero).

    The logits of a token are `vectors @ hidden` over the rows offsets[v] to offsets[v + 1] of its vocabulary v. A row
    of the batch has at most `most[v]` tokens of vocabulary v. Products are taken in autocast's precision, sums in
    float32.
    """
    device = hidden.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_on else hidden.dtype
    total, losses = _CodeLosses.apply(  # type: ignore[no-untyped-call]
        hidden, vectors, codes, vocabularies, weights.float(), tuple(offsets), tuple(most), dtype
    )
    return total, losses


class _CodeLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        vectors: Tensor,
        codes: Tensor,
        vocabularies: Tensor,
        weights: Tensor,
        offsets: tuple[int, ...],
        most: tuple[int, ...],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtypes = hidden.dtype, vectors.dtype
        inputs = hidden.detach().to(dtype), vectors.detach().to(dtype), codes, vocabularies, weights
        with torch.autocast(hidden.device.type, enabled=False):
            if hidden.device.type in packed_rows.RAGGED_DEVICES:
                losses, of_hidden, of_vectors = sorted_losses(*inputs, list(offsets))
            else:
                losses, of_hidden, of_vectors = fixed_losses(*inputs, offsets, most)
        ctx.save_for_backward(of_hidden, of_vectors)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        of_hidden, of_vectors = ctx.saved_tensors
        of_total = upstream[0]
        to_hidden, to_vectors = ctx.dtypes
        gradients = (of_total * of_hidden).to(to_hidden), (of_total * of_vectors).to(to_vectors)
        return *gradients, None, None, None, None, None, None


def _part(
    hidden: Tensor, vectors: Tensor, codes: Tensor, weights: Tensor, exists: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [..., R], gradients of hidden [..., R, D] and of vectors [..., V, D], of R tokens over V codes.

    `exists` [..., 1, V]: which of the codes there are.
    """
    logits = (hidden @ vectors.mT).float()
    if exists is not None:
        logits = torch.where(exists, logits, -torch.inf)
    total = logits.logsumexp(-1, keepdim=True)
    losses = total[..., 0] - logits.gather(-1, codes[..., None])[..., 0]
    is_true = torch.arange(vectors.shape[-2], device=codes.device) == codes[..., None]
    slopes = ((logits - total).exp() - is_true.float()).to(hidden.dtype)
    weights = weights[..., None].to(hidden.dtype)
    return losses, (slopes @ vectors) * weights, slopes.mT @ (hidden * weights)


@torch.library.custom_op("armillary::sorted_losses", mutates_args=())
def sorted_losses(
    hidden: Tensor, vectors: Tensor, codes: Tensor, vocabularies: Tensor, weights: Tensor, offsets: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B, T], gradients of hidden and, in float32, of vectors; tokens sorted by their vocabulary."""
    of_vectors = torch.zeros_like(vectors, dtype=torch.float32)
    flat, of_hidden, losses = hidden.flatten(0, 1), torch.zeros_like(hidden.flatten(0, 1)), torch.zeros(codes.numel())
    codes, vocabularies, weights = codes.flatten(), vocabularies.flatten(), weights.flatten()
    for index, (start, stop) in enumerate(itertools.pairwise(offsets)):
        rows = ((vocabularies == index) & (weights != 0)).nonzero()[:, 0]
        table = vectors[start:stop]
        for part in rows.split(max(1, CACHE_PART // max(1, stop - start))):
            losses[part], of_hidden[part], slopes = _part_in_place(flat[part], table, codes[part], weights[part])
            of_vectors[start:stop] += slopes
    return losses.view(hidden.shape[:2]), of_hidden.view(hidden.shape), of_vectors


@sorted_losses.register_fake
def _(hidden: Tensor, vectors: Tensor, codes: Tensor, vocabularies: Tensor, weights: Tensor, offsets: Any) -> Any:
    losses = hidden.new_empty(hidden.shape[:2], dtype=torch.float32)
    return losses, torch.empty_like(hidden), torch.empty_like(vectors, dtype=torch.float32)


def _part_in_place(hidden: Tensor, vectors: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `_part`, in as few passes over the logits as there are without a compiler; losses up to 87 nats."""
    rows = torch.arange(len(codes))
    slopes = (hidden @ vectors.T).softmax(1)
    losses = -slopes[rows, codes].float().clamp(min=1e-38).log()
    slopes[rows, codes] -= 1.0
    weights = weights[:, None].to(hidden.dtype)
    return losses, (slopes @ vectors) * weights, slopes.T @ (hidden * weights)


def fixed_losses(
    hidden: Float[Tensor, "B T D"],
    vectors: Float[Tensor, "V D"],
    codes: Int[Tensor, "B T"],
    vocabularies: Int[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    offsets: Sequence[int],
    most: Sequence[int],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T D"], Float[Tensor, "V D"]]:
    """The same as `sorted_losses`, in operations whose shapes do not depend on the values."""
    flat, flat_codes, flat_weights = hidden.flatten(0, 1), codes.flatten(), weights.flatten()
    losses, of_hidden = torch.zeros_like(flat_weights), torch.zeros_like(flat)
    of_vectors: dict[int, Tensor] = {}
    few = [v for v, count in enumerate(most) if 0 < count <= FEW]
    for index, count in enumerate(most):
        sizes = slice(offsets[index], offsets[index + 1])
        if count == 0:
            of_vectors[index] = torch.zeros_like(vectors[sizes], dtype=torch.float32)
        if count <= FEW:
            continue
        here = (vocabularies == index).flatten()
        inside = flat_codes.clamp(max=offsets[index + 1] - offsets[index] - 1)
        found = _by_parts(flat, vectors[sizes], inside, flat_weights * here)
        losses, of_hidden = losses + found[0] * here, of_hidden + found[1]
        of_vectors[index] = found[2]
    if few:
        is_there, places = _pick(vocabularies, weights, few, max(most[v] for v in few))
        tables, exists = _tables([vectors[offsets[v] : offsets[v + 1]] for v in few])
        inside = torch.where(is_there, flat_codes[places], 0)
        found = _by_parts(flat[places], tables, inside, flat_weights[places] * is_there, exists)
        losses = losses.index_add(0, places.flatten(), (found[0] * is_there).flatten())
        of_hidden = of_hidden.index_add(0, places.flatten(), found[1].flatten(0, 1))
        of_vectors |= {v: found[2][place, : offsets[v + 1] - offsets[v]] for place, v in enumerate(few)}
    losses = torch.where(flat_weights != 0, losses, 0.0)
    joined = torch.cat([of_vectors[v] for v in range(len(most))])
    return losses.view(codes.shape), of_hidden.view(hidden.shape), joined


def _by_parts(
    hidden: Tensor, vectors: Tensor, codes: Tensor, weights: Tensor, exists: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`_part` over some rows at a time; the gradient of the vectors in float32."""
    logits_of_row = vectors.shape[:-1].numel()
    num_rows = max(256, DEVICE_PART // logits_of_row // 256 * 256)
    losses, of_hidden, of_vectors = [], [], torch.zeros_like(vectors, dtype=torch.float32)
    for first in range(0, codes.shape[-1], num_rows):
        rows = slice(first, first + num_rows)
        found = _part(hidden[..., rows, :], vectors, codes[..., rows], weights[..., rows], exists)
        losses.append(found[0])
        of_hidden.append(found[1])
        of_vectors = of_vectors + found[2]
    return torch.cat(losses, -1), torch.cat(of_hidden, -2), of_vectors


def _pick(
    vocabularies: Int[Tensor, "B T"], weights: Float[Tensor, "B T"], group: Sequence[int], count: int
) -> tuple[Bool[Tensor, "G R"], Int[Tensor, "G R"]]:
    """The tokens of each vocabulary of a group, `count` of each row: whether they are there, and their flat places."""
    here = torch.stack([vocabularies == index for index in group]) & (weights != 0)
    found, places = here.to(torch.uint8).topk(count, dim=2)
    first = torch.arange(len(vocabularies), device=places.device)[:, None] * vocabularies.shape[1]
    return (found > 0).flatten(1), (places + first).flatten(1)


def _tables(tables: Sequence[Tensor]) -> tuple[Float[Tensor, "G W D"], Bool[Tensor, "G 1 W"] | None]:
    """The codes' vectors of several vocabularies, filled up to those of the largest, and which codes there are."""
    largest = max(len(table) for table in tables)
    padded = torch.stack([F.pad(table, (0, 0, 0, largest - len(table))) for table in tables])
    if all(len(table) == largest for table in tables):
        return padded, None
    columns = torch.arange(largest, device=padded.device)
    return padded, torch.stack([columns < len(table) for table in tables])[:, None]
