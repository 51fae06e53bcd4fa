"""Counted operations against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from armillary.tokenizers import packed_rows
from armillary.training.coordinate_check import made_up_tokens, small_transformer, split
from armillary.training.flops import peak_flops, token_flops


@pytest.fixture
def model():
    return small_transformer(128, 3, None, 0)


def by_formula(model, inputs, targets, num_codes):
    return token_flops(model).of_training(inputs.mask, targets.mask, num_codes).item()


def test_operations_of_a_step_are_those_that_torch_counts(model, monkeypatch):
    """But for the backward pass of attention, which works its weights out again, and what is done once for a batch."""
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", ())  # torch sees into this way alone
    inputs, targets = split(made_up_tokens(64, 24, 0))
    # One vocabulary, so that no token meets codes of another's.
    inputs, targets = inputs.only([0]), targets.only([0])
    most = (targets.codes.shape[1], 0)
    counter = FlopCounterMode(display=False)
    with counter:
        total, _, _ = model.weighted_losses(inputs, targets, targets.mask.float(), most)
        total.backward()
    num_codes = torch.full(targets.codes.shape, float(model.codes.sizes[0]))
    assert by_formula(model, inputs, targets, num_codes) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_padding_counts_as_nothing_done(model):
    inputs, targets = split(made_up_tokens(4, 24, 0))
    num_codes = torch.full(targets.codes.shape, 50.0)
    whole = by_formula(model, inputs, targets, num_codes)
    inputs.mask[2:] = False
    targets.mask[2:] = False
    assert by_formula(model, inputs, targets, num_codes) == pytest.approx(whole / 2)


def test_base_at_256_and_128_tokens_asks_for_what_a_count_by_hand_gives():
    """12 + 12 blocks of width 768: 85 M weights in the encoder's matrices, of which each token meets all, and so on."""
    from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig

    with torch.device("meta"):
        model = MaskedTransformer(MaskedTransformerConfig.of_size("base", {"a": torch.zeros(1000, 1)}))
    block, square = 4 * 768**2 + 3 * 768 * 2048, 768**2
    place = 120 * 768
    by_hand = 256 * 2 * (12 * block + 12 * 2 * square + place) + 128 * 2 * (12 * (block - 2 * square) + place)
    by_hand += 12 * 4 * 768 * 256 * (256 + 128) + 128 * 2 * 768 * 1000
    mask = torch.ones(1, 256, dtype=torch.bool)
    found = token_flops(model).of_training(mask, mask[:, :128], torch.full((1, 128), 1000.0))
    assert found.item() == pytest.approx(3 * by_hand, rel=1e-6)


def test_the_peak_of_a_gpu_is_that_of_its_name(monkeypatch):
    for name, peak in [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "another")
    assert peak_flops(torch.device("cuda")) is None
    assert peak_flops(torch.device("cpu")) is None
