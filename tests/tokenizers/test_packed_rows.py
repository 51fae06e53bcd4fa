"""Rows without padding: nothing is lost on the way, and attention is that of each row by itself."""

import math

import pytest
import torch

from armillary.tokenizers import packed_rows
from armillary.tokenizers.blocks import Block
from armillary.tokenizers.packed_rows import PackedRows, packed_attention, packed_pairs

ASKED = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
GIVEN = torch.tensor(
    [[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 1]], dtype=torch.bool
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_row(query, key, value, asked=ASKED, given=GIVEN):
    """Attention row by row in float64; a row without keys gives zeros."""
    mixed = torch.zeros(query.shape, dtype=torch.float64)
    for row in range(len(query)):
        if not given[row].any():
            continue
        q, k, v = (x[row, mask[row]].double() for x, mask in ((query, asked), (key, given), (value, given)))
        weights = (torch.einsum("qhe,khe->hqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed[row, asked[row]] = torch.einsum("hqk,khe->qhe", weights, v)
    return mixed


def packed(query, key, value, asked=ASKED, given=GIVEN):
    keys = PackedRows(given)
    queries = PackedRows(asked, keys.order)
    pairs = packed_pairs(queries, keys, query.shape[2])
    q, k, v = (
        rows.pack(x.flatten(2)).unflatten(2, x.shape[2:]) for rows, x in ((queries, query), (keys, key), (keys, value))
    )
    return queries.spread(packed_attention(q, k, v, pairs).flatten(2)).unflatten(2, query.shape[2:])


def test_packed_vectors_come_back_to_their_places():
    rows, x = PackedRows(GIVEN), random(5, 5, 3).requires_grad_()
    there = rows.pack(x)
    assert there.shape == (1, int(GIVEN.sum()), 3)
    assert rows.order.tolist() == [2, 3, 0, 4, 1]  # short ones first
    assert torch.equal(there[0, :1], x[3, :1])
    back = rows.spread(there)
    assert torch.equal(back, x * GIVEN[..., None])
    (gradient,) = torch.autograd.grad((back * random(5, 5, 3, seed=1)).sum(), x)
    assert torch.equal(gradient, random(5, 5, 3, seed=1) * GIVEN[..., None])


@pytest.mark.parametrize("scores", [1, 100, 2**20])
def test_attention_and_its_gradient_are_those_of_each_row_alone(monkeypatch, scores):
    monkeypatch.setattr(packed_rows, "CACHE_SCORES", scores)
    inputs = [random(5, n, 2, 8, seed=n).requires_grad_() for n in (4, 5)]
    inputs.append(random(5, 5, 2, 8, seed=3).requires_grad_())
    found, expected = packed(*inputs), by_row(*inputs)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    upstream = random(5, 4, 2, 8, seed=7)
    for one, other in zip(
        torch.autograd.grad((found * upstream).sum(), inputs),
        torch.autograd.grad((expected * upstream).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-6)


def test_in_bf16_attention_is_as_good_as_that_of_torch():
    mask = torch.arange(96) < torch.tensor([96, 40, 7])[:, None]
    inputs = [random(3, 96, 4, 32, seed=n) for n in range(3)]
    expected = by_row(*inputs, mask, mask)
    narrow = [x.bfloat16() for x in inputs]
    of_torch = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in narrow), attn_mask=mask[:, None, None, :]
    ).transpose(1, 2)
    errors = [(x.double() - expected)[mask].square().mean().sqrt() for x in (packed(*narrow, mask, mask), of_torch)]
    assert errors[0] < 2 * errors[1]


def test_a_block_over_packed_rows_is_that_with_a_mask():
    block = Block(32, 4)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    mask, x = GIVEN[torch.tensor([0, 1, 3, 4])], random(4, 5, 32)  # each has a key
    rows = PackedRows(mask)
    found = rows.spread(block(rows.pack(x), runs=packed_pairs(rows, rows, 4)))
    assert torch.allclose(found, block(x, mask) * mask[..., None], atol=1e-4)


def test_no_rows_are_no_work():
    rows = PackedRows(torch.zeros(0, 4, dtype=torch.bool))
    assert packed_pairs(rows, rows, 2).parts == ()
    assert rows.spread(rows.pack(torch.zeros(0, 4, 8))).shape == (0, 4, 8)
