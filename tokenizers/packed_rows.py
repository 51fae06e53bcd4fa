"""Rows of unequal length without their padding, and attention within them, for CPUs.

Layers that take each vector by itself then do no work for padding, and attention does little. Shapes depend on the
data, so accelerators and compilers have other ways (`blocks.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

RAGGED_DEVICES = ("cpu",)
"""Where shapes may depend on the data; elsewhere the host would wait for the device."""
CACHE_SCORES = 2**20
"""Scores of rows that attend together: so many stay in the cache from the product to the softmax and back."""


def can_pack(mask: Bool[Tensor, "B N"]) -> bool:
    """Whether shapes may depend on the data here: a compiler wants them fixed, too."""
    return mask.device.type in RAGGED_DEVICES and not torch.compiler.is_compiling()


class PackedRows:
    """The valid vectors of B rows of N, one row after the other in the `order` of rows.

    By default the short rows come first, so that those that attend together are of like length.
    """

    def __init__(self, mask: Bool[Tensor, "B N"], order: Int[Tensor, " B"] | None = None):
        lengths = mask.sum(1)
        self.order = lengths.argsort(stable=True) if order is None else order
        self.shape = mask.shape
        self.edges: list[int] = [0, *lengths[self.order].cumsum(0).tolist()]
        self.rows, columns = mask[self.order].nonzero(as_tuple=True)
        """Of each vector, the place of its row in the order."""
        self.places = self.order[self.rows] * mask.shape[1] + columns
        """Of each vector, where it stands among the B N."""
        self.columns = torch.arange(len(columns)) - torch.tensor(self.edges)[self.rows]
        """Of each vector, its place among those of its row."""

    def pack(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "1 V D"]:
        """The valid vectors alone, in one row."""
        return _Take.apply(x.flatten(0, 1), self.places)[None]  # type: ignore[no-untyped-call]

    def spread(self, x: Float[Tensor, "1 V D"]) -> Float[Tensor, "B N D"]:
        """The same vectors where they stand among the padding, which is zero."""
        spread = _Put.apply(x[0], self.places, self.shape.numel())  # type: ignore[no-untyped-call]
        return spread.unflatten(0, self.shape)


@dataclass(frozen=True, eq=False)
class _Side:
    """The queries, or the keys, of a few rows: a range of packed vectors, and for each head of each the place among
    [R H, L]."""

    vectors: slice
    places: Int[Tensor, " P"]
    shape: tuple[int, int]

    def take(self, packed: Float[Tensor, "V H E"]) -> Float[Tensor, "G L E"]:
        """Vectors by row and head, with zeros where a row is shorter than others."""
        spread = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[-1])
        return spread.index_copy_(0, self.places, packed[self.vectors].flatten(0, 1)).unflatten(0, self.shape)

    def put(self, vectors: Float[Tensor, "G L E"], packed: Float[Tensor, "V H E"]) -> None:
        """The way back, into `packed`."""
        own = packed[self.vectors]
        own.copy_(vectors.flatten(0, 1).index_select(0, self.places).view(own.shape))


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Who attends to whom: queries to the keys of their own row, a few rows at a time. Biases [R H, 1, M] hide the keys
    that a row does not have."""

    parts: tuple[tuple[_Side, _Side, Tensor], ...]


def packed_pairs(queries: PackedRows, keys: PackedRows, num_heads: int) -> PackedPairs:
    """For rows of queries and of keys in the same order."""
    asked, given = queries.edges, keys.edges
    parts, first, num_rows = [], 0, len(given) - 1
    while first < num_rows:
        last, num_queries, num_keys = first, 1, 1
        while last < num_rows:
            longer = max(num_queries, asked[last + 1] - asked[last]), max(num_keys, given[last + 1] - given[last])
            if last > first and (last + 1 - first) * num_heads * longer[0] * longer[1] > CACHE_SCORES:
                break
            (num_queries, num_keys), last = longer, last + 1
        lengths = torch.tensor(given[first : last + 1]).diff()[:, None]
        # Of a row without keys all are seen: they are zeros.
        is_hidden = (torch.arange(num_keys) >= lengths) & (lengths > 0)
        bias = torch.zeros(is_hidden.shape).masked_fill_(is_hidden, -torch.inf).repeat_interleave(num_heads, 0)
        sides = _side(queries, first, last, num_queries, num_heads), _side(keys, first, last, num_keys, num_heads)
        parts.append((*sides, bias[:, None]))
        first = last
    return PackedPairs(tuple(parts))


def _side(rows: PackedRows, first: int, last: int, length: int, num_heads: int) -> _Side:
    vectors = slice(rows.edges[first], rows.edges[last])
    heads = (rows.rows[vectors, None] - first) * num_heads + torch.arange(num_heads)
    places = (heads * length + rows.columns[vectors, None]).flatten()
    return _Side(vectors, places, ((last - first) * num_heads, length))


def packed_attention(
    query: Float[Tensor, "1 V H E"], key: Float[Tensor, "1 U H E"], value: Float[Tensor, "1 U H E"], pairs: PackedPairs
) -> Float[Tensor, "1 V H E"]:
    """What `scaled_dot_product_attention` does, for each row and head; precision is that of `value`.

    Faster than that in bf16, whose backward pass is slow on CPUs (docs/performance.md).
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    return _Attention.apply(query[0], key[0], value[0], pairs)[None]  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pairs: PackedPairs) -> Tensor:
        ctx.pairs, ctx.num_keys = pairs, len(key)
        scale, mixed, saved = query.shape[-1] ** -0.5, torch.empty_like(query), []
        for of_queries, of_keys, bias in pairs.parts:
            q, k, v = of_queries.take(query), of_keys.take(key), of_keys.take(value)
            weights = torch.baddbmm(bias.to(q.dtype), q, k.mT, alpha=scale).softmax(-1)
            of_queries.put(torch.bmm(weights, v), mixed)
            saved += [q, k, v, weights]
        ctx.save_for_backward(*saved)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        scale, saved = gradient.shape[-1] ** -0.5, ctx.saved_tensors
        of_query = torch.empty_like(gradient)
        of_key, of_value = (gradient.new_empty(ctx.num_keys, *gradient.shape[1:]) for _ in range(2))
        for number, (of_queries, of_keys, _) in enumerate(ctx.pairs.parts):
            q, k, v, weights = saved[4 * number : 4 * number + 4]
            of_mixed = of_queries.take(gradient)
            of_weights = torch.bmm(of_mixed, v.mT)
            slopes = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(scale)
            of_queries.put(torch.bmm(slopes, k), of_query)
            of_keys.put(torch.bmm(slopes.mT, q), of_key)
            of_keys.put(torch.bmm(weights.mT, of_mixed), of_value)
        return of_query, of_key, of_value, None


class _Take(torch.autograd.Function):
    """`x[places]` for distinct places, whose gradient then needs no sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.length = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Put.apply(gradient, ctx.saved_tensors[0], ctx.length), None  # type: ignore[no-untyped-call]


class _Put(torch.autograd.Function):
    """The way back: zeros but for `x` at distinct places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(length, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Take.apply(gradient, ctx.saved_tensors[0]), None, None  # type: ignore[no-untyped-call]
