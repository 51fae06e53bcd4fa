"""The objective of pretraining on a small store: packed tokens, one graph, no wait for the device."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_store import TokenStore
from armillary.models.foundation import new_transformer
from armillary.models.token_batch import TokenBatch
from armillary.tokenizers import packed_rows
from armillary.training.loop import Batch, LoopSettings, _scale_gradients, make_optimizer
from armillary.training.mask_sampler import draw_masks
from armillary.training.pretrain_objective import PretrainObjective, code_frequencies
from armillary.training.step_watch import StepWatch
from armillary.training.token_sources import token_batch
from armillary.training.tokenizers import load_tokenizers

from ..pretended_device import PretendDevice, move

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def objective(tokens, tokenizer_folder):
    return make(tokens, tokenizer_folder)


def make(tokens, tokenizer_folder, batch_size=12, weights=None, **others):
    loader = TokenLoader([TokenSource(TokenStore(tokens))], batch_size, 0)
    torch.manual_seed(0)
    transformer = new_transformer("nano", load_tokenizers(tokenizer_folder), loader.modalities).train()
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if name.endswith(("to_output.weight", "down.weight")):
                weight.normal_(std=0.05)
    return PretrainObjective(transformer, loader, 24, 16, weights=weights, **others)


def first_batch(objective):
    return next(objective.batches(0))


def gradients(objective, content):
    loss, count, metrics = objective(Batch(content))
    (loss / count).backward()
    found = {name: weight.grad.clone() for name, weight in objective.named_parameters()}
    objective.zero_grad()
    return loss / count, found, metrics


class Waits(TorchDispatchMode):
    """The operations that would make the host wait for a device: values read, and shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for i in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        if name in self.NAMES or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def one_step(objective, optimizer, watch, inputs, targets, layout):
    """All that a step does on the device."""
    loss, count, _ = objective.losses(layout, inputs, targets)
    loss.backward()
    norm = _scale_gradients(list(objective.parameters()), 1 / count, 1.0)
    optimizer.found_inf = watch.judge(3, loss.detach() / count, norm, count > 0).float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("masks", ["even", "aion", "dirichlet"])
def test_nothing_in_a_step_waits_for_the_device(tokens, tokenizer_folder, monkeypatch, masks):
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", ())
    objective = make(tokens, tokenizer_folder, masks=masks)
    content = first_batch(objective)
    layout = objective.layout(content[1])
    batch = token_batch(content[1], layout.columns, objective.transformer.vocabulary_index, 24)
    optimizer, watch = make_optimizer(objective, LoopSettings()), StepWatch(torch.device("cpu"), "skip", 3.0)
    with Waits() as seen:
        inputs, targets = objective.draw(layout, batch, torch.cat([content[1].keys, torch.tensor([0])]))
        one_step(objective, optimizer, watch, inputs, targets, layout)
    assert seen.found == []
    with Waits() as seen:  # so that the check can fail
        inputs.codes[inputs.mask].sum().item()
    assert {"index", "_local_scalar_dense"} <= set(seen.found)


def test_the_two_ways_of_the_loss_give_one_gradient(objective, monkeypatch):
    content = first_batch(objective)
    loss, expected, metrics = gradients(objective, content)
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", ())
    again, found, others = gradients(objective, content)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    for name in expected:
        assert torch.allclose(expected[name], found[name], atol=1e-6, rtol=1e-4), name
    for name, value in metrics.items():
        assert torch.allclose(value, others[name], rtol=1e-5), name


def test_activations_that_are_worked_out_again_give_the_same_gradient(objective):
    content = first_batch(objective)
    loss, expected, _ = gradients(objective, content)
    objective.transformer.gradient_checkpointing = True
    again, found, _ = gradients(objective, content)
    assert torch.equal(loss, again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_packed_tokens_have_the_masks_of_those_in_their_places(objective):
    """Leaving out what no object has changes neither inputs nor targets."""
    samples = first_batch(objective)[1]
    names = objective.transformer.vocabulary_index
    packed = token_batch(samples, range(3), names)
    codes = torch.cat(samples.codes, 1)
    slots = torch.repeat_interleave(torch.arange(3), torch.tensor([c.shape[1] for c in samples.codes]))
    whole = TokenBatch(
        codes.clamp(min=0).long(),
        codes >= 0,
        torch.cat(samples.positions, 1),
        slots.expand(codes.shape),
        packed.slot_vocabularies,
        packed.instruments,
    )
    assert packed.codes.shape[1] <= whole.codes.shape[1]
    for scheme in ("even", "aion", "dirichlet"):
        pairs = zip(
            draw_masks(packed, samples.keys, 0, 5, 8, 6, scheme), draw_masks(whole, samples.keys, 0, 5, 8, 6, scheme),
            strict=True,
        )  # fmt: skip
        for found, expected in pairs:
            assert torch.equal(found.mask, expected.mask)
            for name in ("codes", "slots", "positions"):
                assert torch.equal(getattr(found, name)[found.mask], getattr(expected, name)[found.mask])


def test_tokens_are_packed_without_an_operation_of_torch(objective):
    """In the thread beside the step it would start threads of its own that take the cores from the step's."""

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view:
                seen.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    samples, seen = first_batch(objective)[1], []
    with Operations():
        batch = token_batch(samples, range(3), objective.transformer.vocabulary_index)
        assert seen == []
        batch.codes.long() + 1
    assert seen == ["add"]  # so that the check can fail


def test_the_number_of_packed_tokens_is_a_power_of_two_or_all_there_are(objective):
    samples = first_batch(objective)[1]
    most = int(sum((codes >= 0).sum(1) for codes in samples.codes).max())
    columns = sum(codes.shape[1] for codes in samples.codes)
    for least in (1, 16, 10_000):
        found = token_batch(samples, range(3), objective.transformer.vocabulary_index, least)
        size = found.codes.shape[1]
        assert size in {columns, max(least, 2 ** int(np.ceil(np.log2(most))))}
        assert most <= size <= columns


def test_metrics_are_nats_and_what_they_gain_over_frequencies(objective):
    content = first_batch(objective)
    layout = objective.layout(content[1])
    total, count, metrics = objective(Batch(content))
    batch = token_batch(content[1], layout.columns, objective.transformer.vocabulary_index, 24)
    inputs, targets = objective.draw(layout, batch, torch.cat([content[1].keys, torch.tensor([content[0]])]))
    losses = objective.transformer(inputs, targets).token_losses
    assert count == targets.mask.sum()
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    store = objective.loader.sources[0].store
    for slot, modality in enumerate(layout.modalities):
        here = targets.mask & (targets.slots == slot)
        assert metrics[f"nats/{modality.name}"][1] == here.sum()
        assert metrics[f"nats/{modality.name}"][0].item() == pytest.approx(losses[here].sum().item(), rel=1e-4)
        codes = store.read(modality.name, np.arange(len(store)))
        counts = np.bincount(codes.codes[codes.mask], minlength=int(layout.num_codes[slot])) + 0.5
        baseline = -np.log(counts / counts.sum())[targets.codes[here].numpy()]
        gain = metrics[f"gain/{modality.name}"][0].item()
        assert gain == pytest.approx(baseline.sum() - losses[here].sum().item(), rel=1e-3, abs=1e-2)
    assert metrics["tokens"][0] == inputs.mask.sum() + targets.mask.sum()


def test_a_model_of_frequencies_gains_nothing(tokens):
    """The gain's zero: what follows from the frequencies alone."""
    source = TokenSource(TokenStore(tokens))
    shares = code_frequencies(source, "scalar/redshift", 10)
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (shares > 0).all()


def test_weights_of_modalities_multiply_losses_and_not_what_divides_them(tokens, tokenizer_folder):
    plain = make(tokens, tokenizer_folder)
    weighted = make(tokens, tokenizer_folder, weights={"scalar/redshift": 5.0, "spectrum/desi": 0.0})
    content = first_batch(plain)
    total, count, metrics = plain(Batch(content))
    heavier, same_count, others = weighted(Batch(content))
    assert same_count == count
    of = {name: metrics[f"nats/{name}"][0] for name in ("image/legacysurvey", "scalar/redshift", "spectrum/desi")}
    expected = of["image/legacysurvey"] + 5 * of["scalar/redshift"]
    assert heavier.item() == pytest.approx(expected.item(), rel=1e-5)
    assert total.item() == pytest.approx(sum(of.values()).item(), rel=1e-5)
    assert others["nats/spectrum/desi"][1] == 0


def test_targets_of_a_vocabulary_are_never_more_than_the_layout_says(objective):
    for _, (step, samples, _tokens) in zip(range(3), objective.batches(0), strict=False):
        layout = objective.layout(samples)
        batch = token_batch(samples, layout.columns, objective.transformer.vocabulary_index, 24)
        _, targets = objective.draw(layout, batch, torch.cat([samples.keys, torch.tensor([step])]))
        vocabularies = targets.slot_vocabularies[targets.slots]
        for index, most in enumerate(layout.most):
            assert ((vocabularies == index) & targets.mask).sum(1).max() <= most


def test_parts_of_a_batch_have_the_masks_of_the_whole(objective):
    content = first_batch(objective)
    loss, expected, _ = gradients(objective, content)
    total = sum(objective(Batch(part))[0] for part in objective.split(content, 3))
    count = sum(objective(Batch(part))[1] for part in objective.split(content, 3))
    assert (total / count).item() == pytest.approx(loss.item(), rel=1e-5)
    (total / count).backward()
    for name, weight in objective.named_parameters():
        assert torch.allclose(weight.grad, expected[name], atol=1e-6, rtol=1e-3), name
    with pytest.raises(ValueError, match=r"loop\.accumulate 5 does not divide the 12 objects of a process's batch"):
        objective.split(content, 5)


def test_padding_in_the_store_changes_nothing(objective):
    content = first_batch(objective)
    step, samples, _ = content
    loss, expected, _ = gradients(objective, content)
    wider = replace(
        samples,
        codes=tuple(torch.nn.functional.pad(c, (0, 9), value=-1) for c in samples.codes),
        positions=tuple(torch.nn.functional.pad(p, (0, 0, 0, 9), value=77.0) for p in samples.positions),
    )
    # Tokens are named by their places, so that the masks are others; without masks to draw nothing changes.
    names = objective.transformer.vocabulary_index
    first, second = (token_batch(s, range(3), names) for s in (samples, wider))
    for name in ("codes", "mask", "positions", "slots"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert loss.isfinite()
    assert set(expected) == dict(objective.named_parameters()).keys()
    assert step == 0


@pytest.mark.slow
def test_compiled_and_eager_agree(tokens, tokenizer_folder, tmp_path):
    """In processes of their own: the compiler does not see through what checks the shapes of tests. The compiled one is
    within DDP, as in runs of several processes."""
    program = f"""
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_store import TokenStore
from armillary.tokenizers import packed_rows
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.training.loop import Batch
from armillary.training.pretrain_objective import PretrainObjective
from armillary.training.tokenizers import load_tokenizers
import sys
if sys.argv[1] == "fixed":
    packed_rows.RAGGED_DEVICES = ()
loader = TokenLoader([TokenSource(TokenStore({str(tokens)!r}))], 12, 0)
tokenizers = load_tokenizers({str(tokenizer_folder)!r})
features = {{m.vocabulary: tokenizers[m.kind].code_features(m) for m in loader.modalities}}
sizes = {{name: len(values) for name, values in features.items()}}
widths = {{name: values.shape[1] for name, values in features.items()}}
config = MaskedTransformerConfig(1, 1, 32, 2, vocabularies=sizes, code_feature_sizes=widths)
found = []
for compiled in (False, True):
    torch.manual_seed(0)
    model = MaskedTransformer(config).train()
    model.codes.set_features(features)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)
    objective = PretrainObjective(model, loader, 24, 16, compiled=compiled)
    content = Batch(next(objective.batches(0)))
    if compiled:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        objective = DistributedDataParallel(objective, bucket_cap_mb=0.02)
    loss, count, metrics = objective(content)
    loss.backward()
    found.append((loss, count, *metrics.values(), *(weight.grad for weight in model.parameters())))
for number, (eager, compiled) in enumerate(zip(*found, strict=True)):
    assert torch.allclose(eager, compiled, atol=1e-4, rtol=1e-4), (number, eager, compiled)
dist.destroy_process_group()
print("agree")
"""
    for way in ("sorted", "fixed"):
        done = subprocess.run([sys.executable, "-c", program, way], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("agree")


def test_a_step_on_another_device_is_that_on_the_cpu(objective, monkeypatch):
    """A pretended device, where there is no accelerator: nothing is left behind."""
    monkeypatch.setattr(packed_rows, "RAGGED_DEVICES", ())
    content = first_batch(objective)
    with torch.no_grad():
        total, count, metrics = objective(Batch(content))
        objective.transformer = move(objective.transformer)
        objective._layouts.clear()
        with PretendDevice():
            found, found_count, found_metrics = objective(Batch(content))
    assert found.values.item() == pytest.approx(total.item(), rel=1e-5)
    assert found_count.values == count
    for name, value in metrics.items():
        assert torch.allclose(found_metrics[name].values, value, rtol=1e-4), name
