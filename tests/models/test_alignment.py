"""The contrastive head, its views, and its losses."""

import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from armillary.data.modalities import MODALITIES, modality
from armillary.models import alignment_losses
from armillary.models.alignment import MAXIMUM_SCALE, AlignmentHead, AlignmentHeadSettings, head_for
from armillary.models.alignment_losses import info_nce, sigmoid_loss
from armillary.models.alignment_views import embedded_rows, group_by_view, parse_views, view_of
from armillary.models.foundation import FoundationModel
from armillary.tokenizers.pretrained import PretrainedError

VALID = torch.tensor([True, True, False, True, False, True])


def unit(seed, shape=(5, 8), dtype=torch.float64):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_info_nce_equals_its_formula_by_loops():
    first, second, scale = unit(0), unit(1), 7.0
    expected = 0.0
    for i in range(5):
        for rows, columns in ((first, second), (second, first)):
            scores = [scale * float(rows[i] @ column) for column in columns]
            expected += 0.5 * (math.log(sum(map(math.exp, scores))) - scores[i])
    assert info_nce(first, second, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-12)


def test_the_sigmoid_loss_equals_its_formula_by_loops():
    first, second, scale, bias = unit(0), unit(1), 7.0, -3.0
    expected = 0.0
    for i, j in itertools.product(range(5), repeat=2):
        logit = scale * float(first[i] @ second[j]) + bias
        expected -= log_sigmoid(logit if i == j else -logit)
    found = sigmoid_loss(first, second, torch.tensor(scale), torch.tensor(bias))
    assert found.item() == pytest.approx(expected, rel=1e-12)


LOSSES = {
    "infonce": lambda first, second, valid=None: info_nce(first, second, torch.tensor(7.0), valid),
    "sigmoid": lambda first, second, valid=None: sigmoid_loss(
        first, second, torch.tensor(7.0), torch.tensor(-3.0), valid
    ),
}
EACH_LOSS = pytest.mark.parametrize("name", LOSSES)


def gradients(loss, *vectors):
    vectors = [v.clone().requires_grad_() for v in vectors]
    value = loss(*vectors)
    return value.detach(), *torch.autograd.grad(value, vectors)


@EACH_LOSS
def test_objects_without_both_views_are_as_if_they_were_not_there(name):
    first, second = unit(0, (6, 8)), unit(1, (6, 8))
    found = gradients(lambda *v: LOSSES[name](*v, VALID), first, second)
    expected = gradients(LOSSES[name], first[VALID], second[VALID])
    assert torch.allclose(found[0], expected[0], rtol=1e-12)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(ours[VALID], theirs, rtol=1e-10)
        assert ours[~VALID].abs().max() == 0


@EACH_LOSS
def test_a_batch_in_which_no_object_has_both_views_has_no_loss(name):
    nobody = torch.zeros(6, dtype=torch.bool)
    for value in gradients(lambda *v: LOSSES[name](*v, nobody), unit(0, (6, 8)), unit(1, (6, 8))):
        assert value.abs().max() == 0


@EACH_LOSS
def test_logits_made_for_some_rows_at_a_time_change_nothing(name, monkeypatch):
    first, second = unit(0, (6, 8)), unit(1, (6, 8))
    whole = gradients(lambda *v: LOSSES[name](*v, VALID), first, second)
    monkeypatch.setattr(alignment_losses, "MOST_LOGITS", 13)
    for ours, theirs in zip(gradients(lambda *v: LOSSES[name](*v, VALID), first, second), whole, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


@EACH_LOSS
def test_logits_are_exact_under_autocast(name):
    """A scale of 100 makes of bf16's rounding of the dot product an error of nearly one half."""
    first, second = unit(0, dtype=torch.float32), unit(1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](first, second)
    assert found.item() == pytest.approx(LOSSES[name](first, second).item(), rel=1e-6)


def test_one_pair_at_a_time_has_no_loss():
    """AstroCLIP crashes on a single object."""
    assert info_nce(unit(0, (1, 8)), unit(1, (1, 8)), torch.tensor(10.0)) == 0


WORKER = """
import os, sys, torch, torch.distributed as dist
from armillary.models.alignment_losses import info_nce, sigmoid_loss
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
first, second, valid = torch.load(f"{folder}/vectors.pt", weights_only=True)
scale, bias, mine = torch.tensor(7.0), torch.tensor(-3.0), slice(3 * rank, 3 * rank + 3)
answers = []
for loss in (lambda *v: info_nce(*v, scale, valid[mine]), lambda *v: sigmoid_loss(*v, scale, bias, valid[mine])):
    own = [v[mine].clone().requires_grad_() for v in (first, second)]
    value = loss(*own)
    value.backward()
    answers += [value.detach(), *(v.grad for v in own)]
torch.save(answers, f"{folder}/answer-{rank}.pt")
dist.barrier()
os._exit(0)  # gloo's threads sometimes abort a process that ends in the ordinary way
"""


def test_negatives_come_from_all_processes_in_loss_and_gradient(tmp_path):
    """AstroCLIP's negatives stay on each GPU."""
    whole = unit(0, (6, 8)), unit(1, (6, 8))
    torch.save([*whole, VALID], tmp_path / "vectors.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    answers = [torch.load(tmp_path / f"answer-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for number, name in enumerate(LOSSES):
        value, *expected = gradients(lambda *v, name=name: LOSSES[name](*v, VALID), *whole)
        first = 3 * number
        assert sum(a[first].item() for a in answers) == pytest.approx(value.item(), rel=1e-12)
        for index, gradient in enumerate(expected, first + 1):
            assert torch.allclose(torch.cat([a[index] for a in answers]), gradient, rtol=1e-10)


def test_pairs_that_agree_have_less_loss_than_pairs_that_do_not():
    vectors, scale = unit(2, (6, 32)), torch.tensor(50.0, dtype=torch.float64)
    assert info_nce(vectors, vectors, scale) < 1e-3
    assert info_nce(vectors, vectors.flip(0), scale) > 6 * math.log(6)


def test_vectors_have_unit_length_and_masked_tokens_change_nothing(head):
    vectors = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[:, 0] = True
    for view in ("image", "spectrum"):
        pooled = head(view, vectors, mask)
        assert torch.allclose(pooled.norm(dim=1), torch.ones(4), atol=1e-5)
        assert torch.equal(pooled, head(view, torch.where(mask[..., None], vectors, 9.0), mask))
        assert torch.allclose(pooled[2:3], head(view, vectors[2:3][:, mask[2]], mask[2:3][:, mask[2]]), atol=1e-5)


def test_each_view_has_a_pooling_of_its_own(head):
    vectors, mask = (
        torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)),
        torch.ones(2, 3, dtype=torch.bool),
    )
    assert not torch.allclose(head("image", vectors, mask), head("spectrum", vectors, mask), atol=1e-2)
    with pytest.raises(KeyError, match="radio"):
        head("radio", vectors, mask)


@pytest.mark.parametrize("log_scale, expected", [(-3.0, 1.0), (math.log(10), 10.0), (9.0, MAXIMUM_SCALE)])
def test_the_scale_stays_in_its_limits(log_scale, expected):
    head = AlignmentHead(AlignmentHeadSettings(input_width=32))
    head.log_scale.data.fill_(log_scale)
    assert head.scale().item() == pytest.approx(expected, rel=1e-5)


def test_the_head_learns_one_batch_by_heart():
    torch.manual_seed(0)
    head = AlignmentHead(AlignmentHeadSettings(input_width=32, aligned_width=16)).train()
    images, spectra = torch.randn(8, 6, 32), torch.randn(8, 4, 32)
    masks = torch.ones(8, 6, dtype=torch.bool), torch.ones(8, 4, dtype=torch.bool)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    for _ in range(60):
        loss = info_nce(head("image", images, masks[0]), head("spectrum", spectra, masks[1]), head.scale()) / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * math.log(8)


def test_a_saved_head_comes_back_bit_for_bit_and_a_torn_one_is_an_error(head, tmp_path):
    head.save_pretrained(tmp_path / "head")
    loaded = AlignmentHead.from_pretrained(tmp_path / "head")
    assert loaded.settings == head.settings
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    path = tmp_path / "head" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match="expected a whole safetensors file"):
        AlignmentHead.from_pretrained(tmp_path / "head")


def test_a_list_of_kinds_is_a_view_of_each_and_labels_stay_out_of_patterns():
    views = parse_views(["image", "spectrum", "photometry"])
    assert views == {"image": ("image",), "spectrum": ("spectrum",), "photometry": ("photometry",)}
    taken = {m.name: view_of(views, m) for m in MODALITIES}
    assert taken["image/hsc"] == "image"
    assert taken["scalar/sdss_u"] == taken["scalar/gaia_bp"] == "photometry"
    assert {taken[name] for name in ("scalar/redshift", "scalar/stellar_mass", "scalar/gaia_parallax")} == {None}
    numbers = parse_views({"numbers": ["scalar/*"], "labels": "scalar/redshift"})
    assert view_of(numbers, modality("scalar/gaia_parallax")) == "numbers"
    assert view_of(numbers, modality("scalar/redshift")) == "labels"
    assert view_of(numbers, modality("scalar/stellar_mass")) is None


@pytest.mark.parametrize(
    "views, problem",
    [
        (
            ["image", "imgae"],
            r"a list of views names each of \['image', .*, 'photometry'\] at most once, found .*imgae",
        ),
        (["image", "image"], "at most once"),
        ({"image.hsc": ["image/hsc"]}, "a name of letters, digits and _ with at least one modality"),
        ({"image": []}, "at least one modality"),
    ],
)
def test_views_that_cannot_be_are_refused(views, problem):
    with pytest.raises(ValueError, match=problem):
        parse_views(views)


def test_a_view_of_nothing_and_a_modality_of_two_views_are_refused():
    known = [modality("image/hsc"), modality("spectrum/desi")]
    with pytest.raises(
        ValueError, match=r"no modality of the views {'photometry': .*it holds \['image/hsc', 'spectrum/desi'\]"
    ):
        group_by_view(parse_views(["image", "photometry"]), known, "store")
    with pytest.raises(ValueError, match=r"image/hsc may belong to one view, found it in \['image', 'deep'\]"):
        group_by_view(parse_views({"image": "image", "deep": "image/hsc"}), known, "store")


def test_scalars_of_a_view_are_one_row_and_every_image_is_one():
    names = ("image/hsc", "image/legacysurvey", "scalar/sdss_g", "scalar/sdss_r", "scalar/redshift")
    rows = embedded_rows(parse_views(["image", "photometry"]), map(modality, names))
    assert {name: [m.name for m in members] for name, members in rows.items()} == {
        "image/hsc": ["image/hsc"],
        "image/legacysurvey": ["image/legacysurvey"],
        "photometry": ["scalar/sdss_g", "scalar/sdss_r"],
    }


def trained(transformer, **settings):
    torch.manual_seed(4)
    return head_for(transformer, AlignmentHeadSettings(aligned_width=16, **settings))


def test_unfrozen_blocks_begin_as_the_pretrained_ones(transformer, model, grids):
    model.head = trained(transformer, encoder="last_blocks", num_unfrozen_blocks=1)
    unfrozen = model.embed_grids(grids).vectors
    frozen = AlignmentHead(model.head.settings.model_copy(update={"encoder": "frozen"})).eval()
    frozen.load_state_dict({n: t for n, t in model.head.state_dict().items() if not n.startswith("last_blocks")})
    model.head = frozen
    assert torch.equal(model.embed_grids(grids).vectors, unfrozen)


@pytest.mark.parametrize("encoder", [{"encoder": "last_blocks", "num_unfrozen_blocks": 1}, {"encoder": "scratch"}])
def test_what_was_trained_of_the_encoder_is_saved_and_leaves_the_pretrained_model_alone(
    encoder, transformer, model, grids, tmp_path
):
    model.head = trained(transformer, **encoder, loss="sigmoid").eval()
    before = model.save(tmp_path / "before")
    alone = model.embed_grids(grids, "encoder").vectors
    aligned = model.embed_grids(grids).vectors
    with torch.no_grad():
        for name, weight in model.head.named_parameters():
            if "last_blocks" in name or "encoders" in name:
                weight.add_(0.1)
    assert model.save(tmp_path / "after") != before
    loaded = FoundationModel.load(tmp_path / "after")
    assert torch.equal(loaded.embed_grids(grids).vectors, model.embed_grids(grids).vectors)
    assert not torch.allclose(loaded.embed_grids(grids).vectors, aligned, atol=1e-3)
    assert torch.equal(loaded.embed_grids(grids, "encoder").vectors, alone)


def test_there_must_be_blocks_to_unfreeze(transformer):
    with pytest.raises(ValueError, match="num_unfrozen_blocks, at least 1 and at most the encoder's 1; found 2"):
        trained(transformer, encoder="last_blocks", num_unfrozen_blocks=2)


def test_a_head_saved_before_views_had_names_loads(head, tmp_path):
    head.save_pretrained(tmp_path)
    old = {"model_type": "armillary-alignment-head", "input_width": 32, "aligned_width": 16, "num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**old, "num_blocks": 1, "views": ["image", "spectrum"]}))
    loaded = AlignmentHead.from_pretrained(tmp_path)
    assert loaded.settings == head.settings


def test_an_object_without_a_vector_changes_nothing_of_the_others(head):
    vectors = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    pooled = head("image", vectors, mask)
    assert pooled.isfinite().all()
    assert torch.allclose(pooled[::2], head("image", vectors[::2], mask[::2]), atol=1e-6)
