"""What a step of alignment draws, and that its gradient does not depend on how the step is done."""

import contextlib

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric

from armillary.data.modalities import modality
from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_store import TokenStore
from armillary.models.alignment import AlignmentHeadSettings, head_for
from armillary.models.alignment_views import parse_views
from armillary.models.foundation import FoundationModel
from armillary.models.token_batch import TokenBatch
from armillary.training.align_objective import AlignObjective
from armillary.training.align_validation import ranks_of_partners
from armillary.training.align_views import draw_rows, draw_tokens, make_pairs, rows_of_views
from armillary.training.encoded_views import encode_rows
from armillary.training.loop import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
VIEWS = parse_views({"image": "image", "spectrum": "spectrum", "distance": "scalar/redshift"})


@pytest.fixture
def objective_for(untrained, tokens, tmp_path):
    """Objectives over all objects of the store at once, by the settings of their heads."""

    def make(num_tokens=4, encoded=False, micro_batch=None, **head):
        store = TokenStore(tokens)
        model = FoundationModel.load(untrained)
        torch.manual_seed(0)
        model.head = head_for(model.transformer, AlignmentHeadSettings(aligned_width=8, views=VIEWS, **head))
        with torch.no_grad():  # let every block have its say
            for name, weight in model.head.named_parameters():
                if name.endswith(("to_output.weight", "down.weight")):
                    weight.normal_(std=0.05)
        rows = rows_of_views(VIEWS, store.modalities)
        names = {row: members for of_view in rows.values() for row, members in of_view.items()}
        vectors = None
        if encoded:
            fabric = Fabric(accelerator="cpu", devices=1)
            vectors = encode_rows(fabric, model, store, np.arange(len(store)), names, tmp_path / "encoded")
        return AlignObjective(
            model,
            TokenLoader([TokenSource(store)], len(store), 0),
            rows,
            make_pairs(rows, {}, 0.5),
            num_tokens=num_tokens,
            seed=0,
            micro_batch=micro_batch,
            encoded=vectors,
        )

    return make


def first_batch(objective):
    with contextlib.closing(objective.batches(0)) as batches:
        return Batch(next(batches))


def test_pairs_are_counted_on_the_objects_that_have_both_views(objective_for):
    """Twenty of 24 objects have an image, twenty a spectrum, sixteen both, all a redshift."""
    objective = objective_for()
    loss, count, metrics = objective(first_batch(objective))
    assert loss.isfinite()
    assert {name: int(value[1]) for name, value in metrics.items() if name.startswith("recall")} == {
        "recall@1/image-spectrum": 16,
        "recall@1/image-distance": 20,
        "recall@1/spectrum-distance": 20,
    }
    assert count == 56


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"encoder": "last_blocks", "num_unfrozen_blocks": 2, "loss": "sigmoid"},
        {"encoder": "scratch", "num_blocks": 0},
    ],
)
def test_gradients_by_parts_are_those_of_the_whole_batch(objective_for, head, monkeypatch):
    """In float64: what the code makes float32 is made float64 here."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    found = []
    for micro_batch in (None, 5):
        objective = objective_for(micro_batch=micro_batch, **head)
        objective.double()
        objective._model[0].transformer.double()
        loss, count, _ = objective(first_batch(objective))
        (loss / count).backward()
        found.append({name: weight.grad for name, weight in objective.named_parameters() if weight.requires_grad})
    whole, parts = found
    assert all(gradient is not None for gradient in whole.values())
    largest = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        assert (gradient - parts[name]).abs().max() < 1e-12 * largest, name
        assert gradient.dtype == torch.float64
    trained = "last_blocks" if head.get("encoder") == "last_blocks" else "encoders"
    if "encoder" in head:
        assert sum(bool(g.any()) for name, g in whole.items() if name.startswith(f"head.{trained}")) > 10


def test_parts_keep_what_one_of_them_needs(objective_for):
    """The tensors that a forward pass keeps for its gradient are a small part of those of the whole batch."""
    kept = []
    for micro_batch in (None, 2):
        objective = objective_for(micro_batch=micro_batch, encoder="last_blocks", num_unfrozen_blocks=4)
        batch, sizes = first_batch(objective), []

        def pack(tensor, sizes=sizes):
            if tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter):
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            objective(batch)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 10


def test_vectors_kept_on_disk_give_the_loss_that_their_tokens_give(objective_for):
    """Where all tokens are drawn; kept vectors are float16."""
    losses = []
    for encoded in (False, True):
        objective = objective_for(num_tokens=1000, encoded=encoded)
        loss, count, _ = objective(first_batch(objective))
        losses.append((loss / count).item())
        with torch.autocast("cpu", torch.bfloat16):
            rounded, count, _ = objective(first_batch(objective))
        assert (rounded / count).item() == pytest.approx(losses[0], rel=2e-2)
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1] != losses[0]


@pytest.mark.parametrize(
    "encoder, part",
    [({"encoder": "last_blocks", "num_unfrozen_blocks": 2}, "last_blocks"), ({"encoder": "scratch"}, "encoders")],
)
def test_what_is_trained_of_the_encoder_has_a_learning_rate_of_its_own(objective_for, encoder, part):
    objective = objective_for(**encoder)
    objective.encoder_learning_rate = 0.25
    scalings = objective.weight_scalings()
    assert set(scalings) == {name for name, _ in objective.named_parameters() if name.startswith(f"head.{part}")}
    assert {scaling.learning_rate for scaling in scalings.values()} == {0.25}


SURVEYS = tuple(map(modality, ("image/hsc", "image/legacysurvey", "image/sdss", "spectrum/desi")))


def test_two_surveys_of_a_view_are_a_pair_and_a_weight_of_zero_is_none():
    rows = rows_of_views(parse_views(["image", "spectrum"]), SURVEYS)
    assert [(p.name, p.weight) for p in make_pairs(rows, {}, 0.5)] == [("image-spectrum", 1.0), ("image-image", 0.5)]
    assert [p.name for p in make_pairs(rows, {"image-spectrum": 2.0}, 0.0)] == ["image-spectrum"]


def test_two_different_surveys_are_drawn_evenly_among_those_an_object_has():
    keys = torch.arange(3000)
    present = torch.tensor([[True, True, True], [False, True, False], [True, False, True]]).repeat(1000, 1)
    rows, enough = draw_rows(present, keys, 0, 0)
    assert present.gather(1, rows[:, :1]).all()
    assert enough[:, 0].all()
    assert torch.equal(enough[:, 1], present.sum(1) > 1)
    two = rows[enough[:, 1]]
    assert (two[:, 0] != two[:, 1]).all()
    shares = torch.bincount(rows[::3, 0], minlength=3) / 1000
    assert ((shares - 1 / 3).abs() < 0.06).all()
    again, _ = draw_rows(present, keys, 0, 1)
    assert not torch.equal(rows, again)


def photometry(num_objects):
    """Two surveys of two and three bands, as slots of one token each."""
    width = 5
    return TokenBatch(
        codes=torch.zeros(num_objects, width, dtype=torch.long),
        mask=torch.ones(num_objects, width, dtype=torch.bool),
        positions=torch.zeros(num_objects, width, 4),
        slots=torch.arange(width).expand(num_objects, -1),
        slot_vocabularies=torch.arange(width),
        instruments=torch.zeros(num_objects, width, 2),
    )


def test_photometry_is_seen_of_one_survey_or_the_other_or_of_both():
    tokens, keys = photometry(2000), torch.arange(2000)
    row, one_row, surveys = torch.zeros(2000, dtype=torch.long), torch.zeros(5, dtype=torch.long), [0, 0, 1, 1, 1]
    drawn = draw_tokens(tokens, row, one_row, torch.tensor(surveys), keys, 0, 0, 64)
    seen = [tuple(sorted(s[m].tolist())) for s, m in zip(drawn.slots, drawn.mask, strict=True)]
    shares = {what: seen.count(what) / 2000 for what in set(seen)}
    assert set(shares) == {(0, 1), (2, 3, 4), (0, 1, 2, 3, 4)}
    assert min(shares.values()) > 0.25


def test_ranks_count_those_as_near_as_the_partner():
    queries = torch.eye(3)
    targets = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 0]])
    everyone = torch.ones(3, dtype=torch.bool)
    assert ranks_of_partners(queries, targets, everyone, everyone).tolist() == [2, 3, 3]
    assert ranks_of_partners(queries, targets, everyone, torch.tensor([True, False, True])).tolist() == [1, 2]
    nan = torch.full((3, 3), torch.nan)
    assert ranks_of_partners(nan, nan, everyone, everyone).tolist() == [3, 3, 3]
