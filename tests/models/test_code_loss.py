"""The loss over each token's own vocabulary, both ways, against loops in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from armillary.models import code_loss
from armillary.models.code_loss import code_losses
from armillary.tokenizers import packed_rows

SIZES = (40, 4, 12, 7, 9)
OFFSETS = (0, 40, 44, 56, 63, 72)
COUNTS = (9, 2, 6, 2, 1)
"""Tokens of each vocabulary in each row."""
B, T, D = 6, 20, 16


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    of_row = torch.repeat_interleave(torch.arange(5), torch.tensor(COUNTS))
    vocabularies = torch.stack([of_row[torch.randperm(T, generator=generator)] for _ in range(B)])
    codes = (torch.rand(B, T, generator=generator) * torch.tensor(SIZES)[vocabularies]).long()
    weights = torch.rand(B, T, generator=generator)
    weights = torch.where(torch.rand(B, T, generator=generator) < 0.8, weights, 0.0)
    hidden = torch.randn(B, T, D, generator=generator, requires_grad=True)
    vectors = torch.randn(OFFSETS[-1], D, generator=generator, requires_grad=True)
    return hidden, vectors, codes, vocabularies, weights


def by_loops(hidden, vectors, codes, vocabularies, weights):
    losses = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            v = int(vocabularies[b, t])
            logits = vectors[OFFSETS[v] : OFFSETS[v + 1]].double() @ hidden[b, t].double()
            losses[b, t] = F.cross_entropy(logits[None], codes[b, t][None])
    return (losses * weights).sum(), losses * (weights != 0)


WAYS = pytest.mark.parametrize(
    "devices, few, part", [(("cpu",), 8, 100), ((), 8, 1), ((), 2, 2**20), ((), 0, 2**20)], ids=str
)


@pytest.fixture
def way(monkeypatch, devices, few, part):
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", devices)
    monkeypatch.setattr(code_loss, "FEW", few)
    monkeypatch.setattr(code_loss, "CACHE_PART", part)
    monkeypatch.setattr(code_loss, "DEVICE_PART", part)


@WAYS
def test_losses_and_gradients_equal_loops_in_float64(way):
    arguments = problem()
    expected, each = by_loops(*arguments)
    total, losses = code_losses(*arguments, OFFSETS, COUNTS)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(losses.double(), each, atol=1e-5)
    wanted = torch.autograd.grad(3 * expected, arguments[:2])
    found = torch.autograd.grad(3 * total, arguments[:2])
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@WAYS
def test_a_batch_without_tokens_has_no_loss_and_no_gradient(way):
    hidden, vectors, codes, vocabularies, weights = problem()
    total, losses = code_losses(hidden, vectors, codes, vocabularies, torch.zeros_like(weights), OFFSETS, COUNTS)
    gradients = torch.autograd.grad(total, (hidden, vectors))
    assert total == 0
    assert not losses.any()
    assert not any(gradient.any() for gradient in gradients)


@WAYS
def test_autocast_changes_losses_by_its_rounding_alone(way):
    arguments = problem()
    expected, each = by_loops(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = code_losses(*arguments, OFFSETS, COUNTS)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), each, atol=0.1)
    wanted = torch.autograd.grad(expected, arguments[:2])
    for a, b in zip(wanted, torch.autograd.grad(total, arguments[:2]), strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * a.norm()


def test_vocabularies_of_which_a_row_can_have_no_token_cost_nothing_and_get_no_gradient(monkeypatch):
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", ())
    hidden, vectors, codes, vocabularies, weights = problem()
    weights = torch.where((vocabularies == 0) | (vocabularies == 3), 0.0, weights)
    total, _ = code_losses(hidden, vectors, codes, vocabularies, weights, OFFSETS, (0, 2, 6, 0, 1))
    expected, _ = by_loops(hidden, vectors, codes, vocabularies, weights)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(total, vectors)
    assert not gradient[:40].any()
    assert not gradient[56:63].any()
    assert gradient[40:56].any()


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation gave."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        found = out if isinstance(out, (tuple, list)) else (out,)
        self.elements = max([self.elements, *(x.numel() for x in found if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("devices", [("cpu",), ()])
def test_the_logits_of_all_tokens_never_exist(monkeypatch, devices):
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", devices)
    monkeypatch.setattr(code_loss, "CACHE_PART", 256 * 3000)
    monkeypatch.setattr(code_loss, "DEVICE_PART", 256 * 3000)
    rows, size = 4096, 3000
    hidden, vectors = torch.randn(64, 64, 8, requires_grad=True), torch.randn(size, 8, requires_grad=True)
    codes = torch.randint(size, (64, 64))
    with Largest() as seen:
        total, _ = code_losses(hidden, vectors, codes, torch.zeros_like(codes), torch.ones(64, 64), (0, size), (64,))
        total.backward()
    assert seen.elements <= 256 * size < rows * size
