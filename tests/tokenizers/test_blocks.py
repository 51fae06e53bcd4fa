"""Transformer blocks against references in float64, written with loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from armillary.tokenizers import blocks
from armillary.tokenizers.blocks import Attention, Block, PositionEmbedding, RMSNorm, SinusoidalFeatures


def attention_by_loops(attention, x, context, mask):
    """Softmax attention of one batch, head by head and vector by vector, in float64."""
    weights = {n: w.detach().double().numpy() for n, w in attention.named_parameters()}

    def rms(v, gain):
        return v / np.sqrt(np.mean(v**2) + 1e-6) * gain

    out = np.zeros(x.shape)
    heads, size = attention.num_heads, x.shape[-1] // attention.num_heads
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            mixed = np.zeros(x.shape[-1])
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                query = rms((weights["to_query.weight"] @ x[b, n])[part], weights["query_norm.weight"])
                scores, values = [], []
                for m in range(context.shape[1]):
                    if mask[b, m]:
                        key = rms((weights["to_key.weight"] @ context[b, m])[part], weights["key_norm.weight"])
                        scores.append(query @ key / math.sqrt(size))
                        values.append((weights["to_value.weight"] @ context[b, m])[part])
                share = np.exp(np.array(scores) - max(scores))
                mixed[part] = share / share.sum() @ np.array(values)
            out[b, n] = weights["to_output.weight"] @ mixed
    return out


def test_attention_equals_softmax_by_loops_in_float64():
    torch.manual_seed(0)
    attention = Attention(16, 4)
    with torch.no_grad():
        attention.query_norm.weight.uniform_(0.5, 2)
        attention.key_norm.weight.uniform_(0.5, 2)
    x, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    expected = attention_by_loops(attention, x.double().numpy(), context.double().numpy(), mask.numpy())
    assert np.allclose(attention(x, context, mask).detach(), expected, atol=1e-5)
    everything = attention_by_loops(attention, x.double().numpy(), context.double().numpy(), np.ones((2, 5), bool))
    assert np.allclose(attention(x, context, None).detach(), everything, atol=1e-5)


def test_rms_norm_gives_vectors_of_unit_root_mean_square_in_float32():
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0)) * 9
    out = RMSNorm(32)(x.bfloat16())
    assert out.dtype == torch.float32
    assert torch.allclose(out.square().mean(-1), torch.ones(3, 7), atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 7, 32), (2, 5, 4, 8), (6,)])
def test_rms_norm_and_its_gradient_equal_those_in_float64(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) * 4
    norm = RMSNorm(shape[-1])
    torch.nn.init.normal_(norm.weight, generator=generator)
    upstream = torch.randn(shape, generator=generator)
    inputs = [x.clone().requires_grad_(), norm.weight]
    found = norm(inputs[0])
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = exact[0] / (exact[0].square().mean(-1, keepdim=True) + 1e-6).sqrt() * exact[1]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    gradients = torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, exact, upstream.double())
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)


def test_an_untrained_block_is_the_identity():
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Block(32, 4)(x), x)


def test_masked_vectors_change_no_valid_one():
    torch.manual_seed(1)
    block = Block(32, 4)
    for weight in (block.attention.to_output.weight, block.mlp.down.weight):
        torch.nn.init.normal_(weight, std=0.3)
    x, mask = torch.randn(2, 6, 32), torch.rand(2, 6) > 0.4
    mask[:, 0] = True
    before = block(x, mask)
    after = block(torch.where(mask[..., None], x, 7.0), mask)
    assert torch.equal(before[mask], after[mask])
    assert not torch.allclose(before, block(x), atol=1e-3)


def test_masked_vectors_of_a_context_change_nothing():
    torch.manual_seed(1)
    block = Block(32, 4)
    torch.nn.init.normal_(block.attention.to_output.weight, std=0.3)
    x, context = torch.randn(2, 6, 32), torch.randn(2, 4, 32)
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    before = block(x, mask, context)
    assert torch.equal(before, block(x, mask, torch.where(mask[..., None], context, -7.0)))
    assert not torch.allclose(before, block(x, None, context), atol=1e-3)


def test_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match="multiple of num_heads, found 30 and 4"):
        Attention(30, 4)


def test_sinusoidal_features_are_sines_and_cosines_of_the_periods():
    features = SinusoidalFeatures(longest=8.0, shortest=2.0, num_frequencies=3)
    x = torch.tensor([0.3, -1.7])
    for value, row in zip(x.tolist(), features(x), strict=True):
        angles = [2 * math.pi * value / period for period in (8, 4, 2)]
        assert row.tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-5)


def test_positions_that_differ_by_one_token_have_different_embeddings():
    torch.manual_seed(0)
    embed = PositionEmbedding(32)
    arcsec, log_wavelength = torch.arange(24) * 8 * 0.168, torch.linspace(math.log(3500), math.log(10500), 24)
    for axis, values in ((0, arcsec), (1, arcsec), (2, log_wavelength), (3, torch.arange(24.0))):
        positions = torch.zeros(1, 24, 4)
        positions[0, :, axis] = values
        vectors = embed(positions)[0]
        distance = torch.cdist(vectors, vectors) + 1e3 * torch.eye(24)
        assert distance.min() > 0.05 * vectors.norm(dim=1).mean()


# ---- attention in runs, as GPUs have it ------------------------------------------------------------------------------


class Spoil(torch.autograd.Function):
    """The gradient of some rows is NaN, as memory that no kernel wrote may be."""

    @staticmethod
    def forward(ctx, x, rows):
        ctx.rows = rows
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[ctx.rows] = torch.nan
        return gradient, None


def runs_by_loops(query, key, value, of_queries, of_keys, longest_query, longest_key):
    """What `varlen_attn` is asked for: each run attends within itself, and nothing is known of keys nobody asks for."""
    assert of_queries.dtype == of_keys.dtype == torch.int32
    assert of_queries[-1] == len(query)
    assert of_keys[-1] == len(key)
    runs = [
        (slice(*q), slice(*k))
        for q, k in zip(itertools.pairwise(of_queries.tolist()), itertools.pairwise(of_keys.tolist()), strict=True)
    ]
    nobody = [row for q, k in runs if q.start == q.stop for row in range(k.start, k.stop)]
    key, value = Spoil.apply(key, nobody), Spoil.apply(value, nobody)
    out = torch.zeros_like(query)
    for q, k in runs:
        assert q.stop - q.start <= longest_query
        assert k.stop - k.start <= longest_key
        if q.stop > q.start:
            scores = torch.einsum("qhd,khd->hqk", query[q], key[k]) / math.sqrt(query.shape[-1])
            out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[k])
    return out


@pytest.mark.parametrize("crossed", [False, True])
def test_attention_in_runs_equals_attention_with_a_mask(monkeypatch, crossed):
    torch.manual_seed(0)
    block = Block(32, 4)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, context = torch.randn(4, 5, 32), torch.randn(4, 7, 32)
    lengths = torch.tensor([7, 1, 4, 6]) if crossed else torch.tensor([5, 1, 3, 4])
    keys = context if crossed else x
    mask = torch.arange(keys.shape[1]) < lengths[:, None]
    results = []
    for in_runs in (False, True):
        if in_runs:
            monkeypatch.setattr(blocks, "varlen_attn", runs_by_loops)
            monkeypatch.setattr(blocks, "RUNS_DEVICES", ("cpu",))
            monkeypatch.setattr(blocks, "RUNS_PRECISIONS", (torch.float32,))
        runs = blocks.make_runs(mask, x.shape[1] if crossed else None)
        assert (runs is not None) == in_runs
        inputs = [part.clone().requires_grad_() for part in ((x, context) if crossed else (x,))]
        out = block(inputs[0], mask, inputs[1] if crossed else None, runs)
        if not crossed:
            out = torch.where(mask[..., None], out, 0)  # what padding gives means nothing
        gradients = torch.autograd.grad(out.square().sum(), [*inputs, *block.parameters()])
        results.append((out, *gradients))
    for by_mask, by_runs in zip(*results, strict=True):
        assert torch.allclose(by_mask, by_runs, atol=1e-3, rtol=1e-4)


def test_autocast_converts_what_several_layers_read_once():
    with torch.autocast("cpu", torch.bfloat16):
        assert blocks.autocast_once(torch.ones(2)).dtype == torch.bfloat16
    assert blocks.autocast_once(torch.ones(2)).dtype == torch.float32
