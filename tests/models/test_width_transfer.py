"""How weights scale with width and depth: the rules by hand, and what a model makes of them."""

import dataclasses
import math

import pytest
import torch

from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig, role_of
from armillary.models.width_transfer import UNSCALED, WeightScaling, weight_scaling

FEATURES = {"a": torch.rand(40, 3), "b": torch.rand(20, 5)}
NUMBERS = {"a": torch.rand(40, 2), "b": torch.zeros(20, 0)}


def config(width, blocks, base=None):
    return MaskedTransformerConfig(
        blocks,
        2,
        width,
        width // 16,
        vocabularies={name: len(features) for name, features in FEATURES.items()},
        code_feature_sizes={name: features.shape[1] for name, features in FEATURES.items()},
        code_number_sizes={name: numbers.shape[1] for name, numbers in NUMBERS.items()},
        base_width=base and base[0],
        base_encoder_blocks=base and base[1],
    )


@pytest.mark.parametrize(
    ("role", "shape", "base_shape", "depth", "expected"),
    [
        ("input", (512, 10), (128, 10), None, (10**-0.5, 1, 1, 1 / 4, 1)),
        ("hidden", (512, 512), (128, 128), 3.0, (512**-0.5, 1 / 4, 4, 1 / 12, 1)),
        ("branch", (512, 1376), (128, 344), 3.0, (0, 1 / 4, 4, 1 / 12, 1 / 3)),
        ("embedding", (7, 512), (7, 128), None, (0.5, 1, 1, 1 / 4, 1)),
        ("gain", (512,), (128,), 3.0, (0, 1, 1, 1 / 12, 1)),
        ("bias", (512,), (128,), None, (0, 1, 1, 1 / 4, 1)),
        ("table", (2, 5, 512), (2, 5, 128), None, (0.5 * 512**-0.5, 1 / 2, 2, 1 / 2, 1 / 2)),
        ("row", (60, 512), (60, 128), None, (0, 1 / 2, 2, 1 / 2, 1 / 2)),
    ],
)
def test_rules_are_those_of_the_table(role, shape, base_shape, depth, expected):
    found = dataclasses.astuple(weight_scaling("x", shape, role, base_shape, depth))
    assert found[:-1] == pytest.approx(expected)
    assert found[-1] == (1 / 2 if role in ("hidden", "branch") else None)  # they are of blocks


def test_shapes_that_do_not_fit_are_errors_that_name_the_weight():
    with pytest.raises(ValueError, match=r"position: an input matrix keeps its 10 inputs, found 12"):
        weight_scaling("position", (512, 12), "input", (128, 10))
    with pytest.raises(ValueError, match=r"w: expected 1 dimensions as at base size, found shape \(3, 4\)"):
        weight_scaling("w", (3, 4), "gain", (3,))


def test_at_base_size_all_rates_are_those_of_the_settings():
    for name, scaling in MaskedTransformer(config(64, 3)).weight_scalings().items():
        assert scaling == WeightScaling(scaling.std, *[1.0] * 4, muon=scaling.muon and 1.0), name
    assert UNSCALED.learning_rate == 1


def test_weights_are_drawn_as_their_scaling_says():
    torch.manual_seed(0)
    model = MaskedTransformer(config(256, 6, base=(64, 3)))
    scalings = model.weight_scalings()
    for name, weight in model.named_parameters():
        if role_of(name) == "gain":
            assert (weight == 1).all(), name
        elif scalings[name].std == 0:
            assert (weight == 0).all(), name
        else:
            assert weight.std().item() == pytest.approx(scalings[name].std, rel=4 / math.sqrt(weight.numel())), name
    of_block = scalings["encoder.5.attention.to_output.weight"]
    assert (of_block.learning_rate, of_block.multiplier) == (1 / 4, 1 / 2)
    assert model.encoder[5].branch == of_block.multiplier
    assert model.decoder[0].branch == scalings["decoder.0.mlp.down.weight"].multiplier == 1
    assert model.codes.output_scale == scalings["codes.rows"].multiplier


def test_a_model_keeps_its_base_size_when_saved(tmp_path):
    model = MaskedTransformer(config(32, 4, base=(16, 2)))
    model.codes.set_features(FEATURES, NUMBERS)
    model.save_pretrained(tmp_path)
    again = MaskedTransformer.from_pretrained(tmp_path)
    assert again.weight_scalings() == model.weight_scalings()
    assert again.codes.output_scale == 0.5**0.5
    assert again.encoder[0].branch == 0.5
    for (name, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_named_sizes_have_a_base_size():
    chosen = MaskedTransformerConfig.of_size("base", FEATURES, base_size="nano")
    assert (chosen.base_width, chosen.base_encoder_blocks) == (128, 4)
    with pytest.raises(ValueError, match="no model size 'small'"):
        MaskedTransformerConfig.of_size("base", FEATURES, base_size="small")
