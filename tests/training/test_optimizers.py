"""Muon for hidden matrices beside AdamW for the rest: whose weights are whose, and that both resume."""

import copy

import pytest
import torch
from torch import nn

from armillary.models.width_transfer import weight_scaling
from armillary.training.coordinate_check import made_up_tokens, small_transformer, split
from armillary.training.loop import LoopSettings, make_optimizer

SETTINGS = LoopSettings(learning_rate=0.02, weight_decay=0.1, optimizer="muon")


def gradients(model, seed):
    model.zero_grad()
    model(*split(made_up_tokens(4, 6, seed))).loss.backward()


def test_hidden_matrices_take_orthogonal_steps_and_all_others_those_of_adamw():
    model = small_transformer(32, 1, None, seed=0)
    before, reference = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = make_optimizer(model, SETTINGS)
    adamw = make_optimizer(reference, SETTINGS.model_copy(update={"optimizer": "adamw"}))
    for weight, of_reference in zip(model.parameters(), reference.parameters(), strict=True):
        weight.grad = torch.randn_like(weight)
        of_reference.grad = weight.grad.clone()
    optimizer.step()
    adamw.step()
    scalings = model.weight_scalings()
    by_muon = 0
    for (name, weight), start, expected in zip(
        model.named_parameters(), before.parameters(), reference.parameters(), strict=True
    ):
        if scalings[name].muon is None:
            assert torch.equal(weight, expected), name
        else:
            # The first step is the gradient with all singular values made one, of root mean square 0.2.
            moved = (weight - start * (1 - 0.02 * 0.1)) / -0.02
            left, _, right = torch.linalg.svd(weight.grad, full_matrices=False)
            exact = left @ right * 0.2 * max(weight.shape) ** 0.5
            assert torch.nn.functional.cosine_similarity(moved.flatten(), exact.flatten(), 0) > 0.9, name
            assert moved.norm().item() == pytest.approx(exact.norm().item(), rel=0.25)
            by_muon += 1
    assert by_muon == 2 * 7  # of both blocks the attention's four and the feed-forward layer's three


def test_a_saved_state_goes_on_as_if_never_saved():
    model = small_transformer(32, 1, None, seed=0)
    optimizer = make_optimizer(model, SETTINGS)
    gradients(model, 1)
    optimizer.step()
    again = copy.deepcopy(model)
    resumed = make_optimizer(again, SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, taker in ((model, optimizer), (again, resumed)):
        for seed in (2, 3):
            gradients(one, seed)
            for group in taker.param_groups:
                group["lr"] = 0.01 * group["scale"]
            taker.step()
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_muon_scales_with_the_root_of_the_width():
    scaling = weight_scaling("w", (512, 512), "hidden", (128, 128), depth=1.0)
    assert scaling.muon == 0.5
    assert weight_scaling("w", (512, 512), "hidden", (128, 128)).muon is None
    wide = make_optimizer(small_transformer(384, 1, (96, 1), seed=0), SETTINGS)
    muon = [group for group in wide.param_groups if group["part"] == 0]
    assert {group["scale"] for group in muon} == {0.5}
    assert {group["weight_decay"] for group in muon} == {0.2}


def test_muon_without_hidden_matrices_is_an_error():
    with pytest.raises(ValueError, match="this model names none; expected adamw"):
        make_optimizer(nn.Linear(2, 3), SETTINGS)
