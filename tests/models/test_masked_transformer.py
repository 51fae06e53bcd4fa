"""The masked encoder-decoder and its table of codes."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModel

from armillary.models.masked_transformer import SIZES, MaskedTransformer, MaskedTransformerConfig
from armillary.models.token_batch import TokenBatch, join_grids
from armillary.tokenizers import packed_rows

VOCABULARIES = {"wide": 40, "narrow": 4, "middle": 12}
FEATURE_SIZES = {"wide": 5, "narrow": 0, "middle": 3}
ORDER = ["middle", "narrow", "wide"]
"""Places in the table: names are sorted."""


def small(**others):
    torch.manual_seed(0)
    sizes = {"encoder_blocks": 1, "decoder_blocks": 1, "width": 32, "num_heads": 4, **others}
    model = MaskedTransformer(
        MaskedTransformerConfig(vocabularies=VOCABULARIES, code_feature_sizes=FEATURE_SIZES, **sizes)
    )
    model.codes.set_features({n: torch.randn(size, FEATURE_SIZES[n]) for n, size in VOCABULARIES.items()})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.to_output.weight", "mlp.down.weight")):
                weight.normal_(std=0.1)
    return model.eval()


def random_tokens(num_objects, counts, seed=0, num_features=11):
    """Tokens of one slot for each vocabulary of ORDER, `counts` tokens each."""
    generator = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(VOCABULARIES[n], (num_objects, c), generator=generator)
        for n, c in zip(ORDER, counts, strict=True)
    ]
    slots = torch.cat([torch.full((num_objects, c), slot) for slot, c in enumerate(counts)], 1)
    total = sum(counts)
    return TokenBatch(
        codes=torch.cat(codes, 1),
        mask=torch.ones(num_objects, total, dtype=torch.bool),
        positions=torch.randn(num_objects, total, 4, generator=generator),
        slots=slots,
        slot_vocabularies=torch.arange(3),
        instruments=torch.randn(num_objects, 3, num_features, generator=generator),
    )


NUMBERS = {
    "wide": torch.cat([torch.zeros(30, 2), torch.stack([torch.ones(10), torch.arange(10.0)], 1)]),
    "narrow": torch.zeros(4, 0),
    "middle": torch.zeros(12, 0),
}
"""The last ten codes of "wide" stand for the numbers 0 to 9."""


def reads_numbers(**others):
    model = small(code_number_sizes={name: numbers.shape[1] for name, numbers in NUMBERS.items()}, **others)
    features = model.codes.features.clone()
    model.codes.set_features({name: torch.zeros(size, 0) for name, size in VOCABULARIES.items()}, NUMBERS)
    assert torch.equal(model.codes.features, features)
    with torch.no_grad():
        model.codes.rows.normal_()
    return model


def with_mask(tokens, share=0.6, seed=9):
    mask = torch.rand(tokens.mask.shape, generator=torch.Generator().manual_seed(seed)) < share
    mask[:, 0] = True
    return replace(tokens, mask=mask)


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_bit_for_bit_though_vocabularies_were_not_in_order(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, MaskedTransformer)
    assert loaded.config.vocabularies == model.config.vocabularies
    assert loaded.vocabulary_index == model.vocabulary_index
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    inputs, targets = random_tokens(3, (2, 5, 4)), random_tokens(3, (3, 1, 2), seed=1)
    first, second = model(inputs, targets), loaded.eval()(inputs, targets)
    assert torch.equal(first.token_losses, second.token_losses)
    assert torch.equal(first.encoded, second.encoded)


def test_the_order_of_vocabularies_does_not_depend_on_how_they_were_given():
    turned = dict(reversed(VOCABULARIES.items()))
    first = MaskedTransformerConfig(vocabularies=VOCABULARIES)
    assert list(first.vocabularies) == list(MaskedTransformerConfig(vocabularies=turned).vocabularies) == ORDER


def test_a_model_folder_holds_safetensors_and_json_alone(tmp_path):
    small().save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.rglob("*")} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "armillary"


def test_an_unknown_size_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=r"no model size 'huge'; known: \['nano'"):
        MaskedTransformerConfig.of_size("huge", {})


@pytest.mark.parametrize("size", SIZES)
def test_heads_have_the_same_width_in_every_size(size):
    config = MaskedTransformerConfig.of_size(size, {"a": torch.zeros(7, 2)})
    assert config.width / config.num_heads in (32, 64)
    assert config.vocabularies == {"a": 7}
    assert config.code_feature_sizes == {"a": 2}


# ---- what changes nothing --------------------------------------------------------------------------------------------


def test_padding_changes_neither_the_encoder_nor_the_loss():
    model = small()
    inputs, targets = with_mask(random_tokens(4, (6, 9, 5))), with_mask(random_tokens(4, (4, 3, 6), seed=1), seed=2)
    before = model(inputs, targets)
    other = random_tokens(4, (6, 9, 5), seed=7)
    spoiled = replace(
        inputs,
        codes=torch.where(inputs.mask, inputs.codes, other.codes),
        positions=torch.where(inputs.mask[..., None], inputs.positions, 50.0),
    )
    other = random_tokens(4, (4, 3, 6), seed=8)
    spoiled_targets = replace(
        targets,
        codes=torch.where(targets.mask, targets.codes, other.codes),
        positions=torch.where(targets.mask[..., None], targets.positions, -50.0),
    )
    after = model(spoiled, spoiled_targets)
    assert torch.equal(before.encoded[inputs.mask], after.encoded[inputs.mask])
    assert torch.equal(before.token_losses, after.token_losses)
    assert before.loss == after.loss


def test_tokens_without_their_padding_have_the_same_vectors_and_loss():
    model = small()
    inputs, targets = with_mask(random_tokens(4, (6, 9, 5))), with_mask(random_tokens(4, (4, 3, 6), seed=1), seed=2)
    padded = model(inputs, targets)
    for row in range(4):
        alone = []
        for tokens in (inputs, targets):
            places = tokens.mask[row].nonzero()[:, 0][None]
            one = TokenBatch(
                *(getattr(tokens, f)[row : row + 1] for f in ("codes", "mask", "positions", "slots")),
                tokens.slot_vocabularies,
                tokens.instruments[row : row + 1],
            )
            alone.append(one.take(places, torch.ones_like(places, dtype=torch.bool)))
        plain = model(*alone)
        assert torch.allclose(plain.encoded[0], padded.encoded[row][inputs.mask[row]], atol=1e-5)
        assert torch.allclose(plain.token_losses[0], padded.token_losses[row][targets.mask[row]], atol=1e-5)


def test_an_absent_modality_changes_nothing(transformer, grids):
    vocabularies = transformer.vocabulary_index
    one = [grids[0].select(torch.tensor([4]))]
    alone, _ = join_grids(one, vocabularies)
    beside = [
        grids[0].select(torch.tensor([4])),
        grids[2].select(torch.tensor([1])),
        grids[3].select(torch.tensor([1])),
    ]
    together, _ = join_grids(beside, vocabularies)
    query, _ = join_grids([grids[3].select(torch.tensor([4]))], vocabularies)
    n = alone.codes.shape[1]
    assert torch.allclose(transformer.encode(together)[0, :n], transformer.encode(alone)[0], atol=1e-5)
    both = TokenBatch(
        *(torch.cat([getattr(query, f)] * 2) for f in ("codes", "mask", "positions", "slots")),
        query.slot_vocabularies,
        torch.cat([query.instruments] * 2),
    )
    losses = transformer(together, both).token_losses[0], transformer(alone, query).token_losses[0]
    assert torch.allclose(*losses, atol=1e-5)


def test_numbers_are_read_as_numbers_and_other_codes_as_themselves():
    model = reads_numbers()
    wide = model.vocabulary_index["wide"]
    read = model.codes.embed(torch.arange(40)[None], torch.full((1, 40), wide))[0]
    steps = read[30:].diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert steps[0].norm() > 0.5
    torch.testing.assert_close(read[:30], model.codes.vectors(wide)[:30] * 32**0.5)
    middle = model.vocabulary_index["middle"]
    others = model.codes.embed(torch.arange(12)[None], torch.full((1, 12), middle))[0]
    torch.testing.assert_close(others, model.codes.vectors(middle) * 32**0.5)


def test_what_is_read_of_a_number_leaves_how_it_is_predicted_alone():
    model, plain = reads_numbers(), small()
    plain.load_state_dict(model.state_dict(), strict=False)
    hidden = torch.randn(3, 32)
    wide = model.vocabulary_index["wide"]
    torch.testing.assert_close(model.codes.logits(hidden, wide), plain.codes.logits(hidden, wide))
    model.encode(random_tokens(4, (0, 0, 30))).square().sum().backward()
    rows = model.codes.rows.grad[model.codes.offsets[wide] :]
    assert (rows[30:40] == 0).all()
    assert (rows[:30] != 0).any()


def test_a_model_that_reads_numbers_comes_back_from_disk_and_one_from_before_still_does_not(tmp_path):
    tokens = random_tokens(2, (3, 2, 6))
    for name, model in (("new", reads_numbers()), ("old", small())):
        model.save_pretrained(tmp_path / name)
        if name == "old":
            path = tmp_path / name / "config.json"
            config = json.loads(path.read_text())
            del config["code_number_sizes"]
            path.write_text(json.dumps(config))
        again = MaskedTransformer.from_pretrained(tmp_path / name)
        assert (again.codes.readings is None) == (name == "old")
        assert torch.equal(again.encode(tokens), model.encode(tokens))


def test_the_codes_of_targets_are_not_seen():
    model = small()
    inputs, targets = random_tokens(2, (3, 3, 3)), random_tokens(2, (2, 2, 2), seed=1)
    others = replace(targets, codes=random_tokens(2, (2, 2, 2), seed=5).codes)
    encoded = model.encode(inputs)
    assert torch.equal(model.decode(encoded, inputs.mask, targets), model.decode(encoded, inputs.mask, others))


def test_what_is_predicted_of_a_token_does_not_depend_on_which_others_are_asked_for():
    model = small()
    inputs, targets = random_tokens(3, (4, 2, 5)), random_tokens(3, (3, 3, 3), seed=1)
    encoded = model.encode(inputs)
    together = model.decode(encoded, inputs.mask, targets)
    for place in range(9):
        one = targets.take(torch.full((3, 1), place), torch.ones(3, 1, dtype=torch.bool))
        alone = model.decode(encoded, inputs.mask, one)
        assert torch.allclose(alone[:, 0], together[:, place], atol=1e-5)


def test_the_order_of_the_inputs_does_not_matter():
    model = small()
    inputs = random_tokens(2, (3, 4, 5))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    turned = inputs.take(order.expand(2, -1), torch.ones(2, 12, dtype=torch.bool))
    assert torch.allclose(model.encode(turned), model.encode(inputs)[:, order], atol=1e-5)


def test_an_object_without_any_valid_token_stays_finite_and_does_not_touch_the_loss():
    model = small()
    inputs, targets = random_tokens(2, (3, 3, 3)), random_tokens(2, (2, 2, 2), seed=1)
    empty = replace(inputs, mask=inputs.mask & torch.tensor([[True], [False]]))
    no_targets = replace(targets, mask=targets.mask & torch.tensor([[True], [False]]))
    output = model(empty, no_targets)
    assert output.encoded.isfinite().all()
    assert output.loss.item() == pytest.approx(model(inputs, targets).token_losses[0].mean().item(), rel=1e-5)


def test_a_batch_without_any_target_has_a_loss_and_a_gradient_of_zero():
    model = small()
    targets = random_tokens(2, (2, 2, 2))
    loss = model(random_tokens(2, (3, 3, 3)), replace(targets, mask=torch.zeros_like(targets.mask))).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_rows_without_padding_give_what_rows_with_padding_give(monkeypatch):
    """As on CPUs, and as accelerators and compilers do it."""
    found = []
    for devices in (("cpu",), ()):
        monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", devices)
        model = small()
        inputs, targets = random_tokens(4, (3, 4, 5)), random_tokens(4, (2, 3, 2), seed=1)
        inputs = replace(inputs, mask=inputs.mask & (torch.arange(12) % torch.tensor([[1], [2], [3], [5]]) == 0))
        targets = replace(targets, mask=targets.mask & (torch.arange(7) < torch.tensor([[7], [2], [0], [5]])))
        output = model(inputs, targets)
        output.loss.backward()
        gradients = [weight.grad for weight in model.parameters()]
        found.append((output.loss, output.token_losses, output.encoded * inputs.mask[..., None], *gradients))
    for packed, padded in zip(*found, strict=True):
        assert torch.allclose(packed, padded, atol=1e-5)


# ---- defects of AION-1 -----------------------------------------------------------------------------------------------


def test_aion_defect_7_nothing_of_positions_or_modality_is_added_after_the_encoder():
    """What leaves the last block decides the embedding alone, so no shared offset can inflate every cosine."""
    model = small(encoder_blocks=2)
    left = torch.randn(32, generator=torch.Generator().manual_seed(1))
    handle = model.encoder[-1].register_forward_hook(lambda _module, _inputs, output: left.expand_as(output))
    first = random_tokens(3, (3, 4, 5))
    moved = replace(first, positions=first.positions + 5, instruments=first.instruments + 1, slots=first.slots.flip(1))
    vectors = model.encode(first), model.encode(replace(moved, codes=torch.zeros_like(moved.codes)))
    handle.remove()
    assert torch.equal(*vectors)
    assert torch.allclose(vectors[0], nn.functional.rms_norm(left, (32,), eps=1e-6), atol=1e-5)
    assert not torch.allclose(model.encode(first), model.encode(moved), atol=1e-2)  # so the comparison can fail


def test_aion_defect_8_a_token_weighs_the_same_whatever_its_vocabulary_and_neighbours():
    model = small()
    with torch.no_grad():
        model.codes.rows.zero_()
        model.codes.factors.zero_()
    inputs = random_tokens(2, (3, 3, 3))
    sizes = [VOCABULARIES[name] for name in ORDER]
    for counts in [(5, 1, 2), (1, 30, 1), (2, 2, 0)]:
        output = model(inputs, random_tokens(2, counts, seed=3))
        expected = torch.tensor([math.log(size) for size, c in zip(sizes, counts, strict=True) for _ in range(c)])
        assert torch.allclose(output.token_losses, expected.expand(2, -1), atol=1e-5)
        assert output.loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_token_losses_equal_cross_entropy_by_loops_in_float64():
    model = small()
    targets = with_mask(random_tokens(3, (4, 5, 6), seed=2))
    hidden = torch.randn(3, 15, 32, generator=torch.Generator().manual_seed(3))
    weights = targets.mask * torch.rand(3, 15, generator=torch.Generator().manual_seed(4))
    total, losses = model.codes.cross_entropy(hidden, targets.codes, targets.slots, weights)
    assert total.item() == pytest.approx((losses * weights).sum().item(), rel=1e-5)
    start = {name: sum(VOCABULARIES[n] for n in ORDER[:i]) for i, name in enumerate(ORDER)}
    rows, features = model.codes.rows.detach().double(), model.codes.features.double()
    factors = model.codes.factors.detach().double()
    for b in range(3):
        for t in range(15):
            if not targets.mask[b, t]:
                assert losses[b, t] == 0
                continue
            index = int(targets.slots[b, t])
            scores = []
            for code in range(VOCABULARIES[ORDER[index]]):
                row = start[ORDER[index]] + code
                scores.append(float(hidden[b, t].double() @ (rows[row] + features[row] @ factors[index])))
            expected = math.log(sum(map(math.exp, scores))) - scores[int(targets.codes[b, t])]
            assert losses[b, t].item() == pytest.approx(expected, abs=1e-4)


def test_slot_weights_weigh_the_tokens_of_their_slot():
    model = small()
    inputs, targets = random_tokens(2, (3, 3, 3)), random_tokens(2, (2, 3, 4), seed=1)
    weights = torch.tensor([0.0, 2.0, 0.5])
    output = model(inputs, targets, weights)
    plain = model(inputs, targets).token_losses
    assert output.loss.item() == pytest.approx((plain * weights[targets.slots]).sum().item() / 18, rel=1e-5)


def test_what_divides_the_loss_does_not_depend_on_which_modalities_are_there():
    """A weighted token pulls as hard whatever the weights of the tokens beside it."""
    model, inputs = small(), random_tokens(1, (3, 3, 3))
    targets = random_tokens(1, (2, 2, 0), seed=1)
    pulls = []
    for other in (1.0, 7.0):
        loss = model(inputs, targets, torch.tensor([2.0, other, 1.0])).loss
        (gradient,) = torch.autograd.grad(loss, model.codes.rows)
        pulls.append(gradient[:12])  # rows of the first vocabulary, whose weight is the same
    assert torch.allclose(*pulls, atol=1e-6)


def test_predicted_probabilities_agree_with_the_loss():
    model = small()
    inputs, targets = random_tokens(2, (3, 3, 3)), random_tokens(2, (0, 0, 3), seed=1)
    probabilities = model.predict(inputs, targets, "wide")
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, 3), atol=1e-5)
    chosen = probabilities.gather(-1, targets.codes[..., None])[..., 0]
    assert torch.allclose(-chosen.log(), model(inputs, targets).token_losses, atol=1e-4)


def test_the_model_learns_one_batch_by_heart():
    model = small(width=64).train()
    inputs, targets = random_tokens(6, (2, 2, 4)), random_tokens(6, (2, 1, 3), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0)
    first = model(inputs, targets).loss.item()
    for _ in range(120):
        loss = model(inputs, targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first
