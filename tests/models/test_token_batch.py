"""Tokens of all modalities of a batch of objects in one sequence."""

from dataclasses import replace

import pytest
import torch

from armillary.models.token_batch import join_grids


@pytest.fixture
def vocabularies(transformer):
    return transformer.vocabulary_index


def test_each_object_has_the_tokens_of_its_grids_one_modality_after_the_other(grids, vocabularies):
    batch, ids = join_grids(grids, vocabularies)
    assert ids == grids[0].object_id
    start = 0
    for slot, grid in enumerate(grids):
        part = slice(start, start + grid.num_tokens)
        assert torch.equal(batch.codes[:, part], grid.codes.long())
        assert torch.equal(batch.mask[:, part], grid.mask)
        assert torch.equal(batch.positions[:, part], grid.positions)
        assert (batch.slots[:, part] == slot).all()
        assert torch.equal(batch.instruments[:, slot], grid.instrument)
        assert batch.slot_vocabularies[slot] == vocabularies[grid.modality.vocabulary]
        start += grid.num_tokens
    assert batch.codes.shape[1] == start


def test_a_modality_that_an_object_lacks_is_padding(grids, vocabularies):
    image, spectrum = grids[0].select(torch.tensor([2, 0])), grids[2].select(torch.tensor([0, 1]))
    batch, ids = join_grids([image, spectrum], vocabularies)
    assert ids == tuple(grids[0].object_id[i] for i in (2, 0, 1))
    n = image.num_tokens
    assert batch.mask[:, :n].any(1).tolist() == [True, True, False]
    assert batch.mask[:, n:].any(1).tolist() == [False, True, True]
    assert torch.equal(batch.codes[1, n:], spectrum.codes[0].long())
    assert torch.equal(batch.codes[2, n:], spectrum.codes[1].long())


def test_rows_follow_the_ids_that_are_asked_for(grids, vocabularies):
    wanted = tuple(reversed(grids[0].object_id))
    batch, ids = join_grids(grids[:1], vocabularies, wanted)
    assert ids == wanted
    assert torch.equal(batch.codes, grids[0].codes.flip(0).long())


def test_taking_tokens_by_place_keeps_all_that_belongs_to_them(grids, vocabularies):
    batch, _ = join_grids(grids, vocabularies)
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(batch.codes.shape[1], (6, 7), generator=generator)
    valid = torch.rand(6, 7, generator=generator) > 0.3
    taken = batch.take(places, valid)
    for row in range(6):
        for column, place in enumerate(places[row].tolist()):
            for name in ("codes", "positions", "slots"):
                assert torch.equal(getattr(taken, name)[row, column], getattr(batch, name)[row, place])
            assert taken.mask[row, column] == (batch.mask[row, place] and valid[row, column])


def test_only_keeps_the_tokens_of_the_chosen_slots(grids, vocabularies):
    batch, _ = join_grids(grids, vocabularies)
    part = batch.only([1, 3])
    assert part.codes.shape[1] == grids[1].num_tokens + grids[3].num_tokens
    assert torch.equal(part.codes, torch.cat([grids[1].codes, grids[3].codes], 1).long())
    assert torch.equal(part.mask, torch.cat([grids[1].mask, grids[3].mask], 1))


def test_packing_keeps_the_valid_tokens_of_each_object_in_their_order(grids, vocabularies):
    batch, _ = join_grids(grids, vocabularies)
    scattered = replace(batch, mask=torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3)

    packed = scattered.packed()

    assert packed.mask.shape[1] == scattered.mask.sum(1).max() < batch.mask.shape[1]
    for row in range(len(batch)):
        for name in ("codes", "positions", "slots"):
            kept, before = getattr(packed, name)[row], getattr(scattered, name)[row]
            assert torch.equal(kept[packed.mask[row]], before[scattered.mask[row]]), name
    nothing = replace(batch, mask=torch.zeros_like(batch.mask)).packed()
    assert nothing.mask.shape[1] == 1
    assert not nothing.mask.any()


def test_mistakes_of_the_caller_are_named(grids, vocabularies):
    with pytest.raises(ValueError, match="expected at least one modality, found none"):
        join_grids([], vocabularies)
    with pytest.raises(ValueError, match="each modality may come once"):
        join_grids([grids[0], grids[0]], vocabularies)
    with pytest.raises(
        ValueError, match=r"scalar/redshift: the model has no vocabulary 'scalar/redshift'.*\['image'\]"
    ):
        join_grids([grids[3]], {"image": 0})
    doubled = replace(grids[0], object_id=("a",) * 6)
    with pytest.raises(ValueError, match="image/legacysurvey: the same object_id stands twice"):
        join_grids([doubled], vocabularies)
