"""Datasets to tokenizers, token stores, and checks that tokens and tokenizers belong together."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_shards import object_key
from armillary.data.token_store import TokenStore, TokenStoreError
from armillary.data.turned_tokens import open_turned
from armillary.models.embeddings import read_embedding_shards
from armillary.models.foundation import FoundationModel, new_transformer
from armillary.models.token_batch import join_grids
from armillary.settings import load_settings
from armillary.tokenizers.image import ImageTokenizer
from armillary.tokenizers.scalar import ScalarTokenizer
from armillary.training.embed import EmbedSettings, embed
from armillary.training.pretrain import PretrainSettings, pretrain
from armillary.training.token_sources import check_tokens, open_sources, read_grid, read_ids, token_batch
from armillary.training.tokenize import TokenizeSettings, tokenize
from armillary.training.tokenizers import (
    TrainTokenizerSettings,
    load_tokenizers,
    tokenizer_hash,
    train_tokenizer,
)


def test_the_store_holds_the_tokens_that_encoding_each_object_gives(data, tokenizer_folder, tokens):
    dataset, tokenizers, store = ObservationDataset(data), load_tokenizers(tokenizer_folder), TokenStore(tokens)
    assert len(store) == 24
    for declared in dataset.modalities:
        ids = dataset.object_ids(declared.name)
        expected = tokenizers[declared.kind].encode(dataset.read(declared.name))
        rows = store.read(declared.name, np.arange(len(store)))
        assert len(rows.rows) == len(ids)
        for place, row in enumerate(rows.rows):
            source = ids.index(store.object_ids()[row])
            assert np.array_equal(rows.codes[place], expected.codes[source])
            assert np.array_equal(rows.mask[place], expected.mask[source])
            assert np.allclose(rows.positions[place], expected.positions[source])
        assert store.tokenizer_hashes[declared.name] == tokenizer_hash(tokenizers[declared.kind])


def test_tokenizing_goes_on_where_it_stopped_and_touches_no_shard_that_stands(data, tokenizer_folder, tmp_path):
    folder = tmp_path / "store"
    settings = TokenizeSettings(data=str(data), tokenizers=str(tokenizer_folder), tokens=str(folder), shard_size=10)
    assert tokenize(settings.model_copy(update={"modalities": ("image/legacysurvey",)})) == 3
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("shard-*/*")}
    assert len(TokenStore(folder)) == 24
    assert tokenize(settings) == 6
    assert tokenize(settings) == 0
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())


def test_turned_images_have_stores_of_their_own_of_the_same_objects(data, tokenizer_folder, tokens, tmp_path):
    settings = TokenizeSettings(data=str(data), tokenizers=str(tokenizer_folder), tokens=str(tmp_path / "store"))
    written = tokenize(settings)
    assert tokenize(settings.model_copy(update={"turns": 6})) == 5
    assert tokenize(settings.model_copy(update={"turns": 6})) == 0
    assert written == len(TokenStore(tokens).modalities)
    store, dataset = TokenStore(tmp_path / "store"), ObservationDataset(data)
    turned = open_turned(store, 6)[4]
    assert [m.name for m in turned.modalities] == ["image/legacysurvey"]
    assert not store.has("image/legacysurvey").all()
    assert np.array_equal(turned.has("image/legacysurvey"), store.has("image/legacysurvey"))
    ids = dataset.object_ids("image/legacysurvey")
    images = dataset.read("image/legacysurvey").turned(5)
    expected = load_tokenizers(tokenizer_folder)["image"].encode(images)
    rows = turned.read("image/legacysurvey", store.find(ids))
    assert np.array_equal(rows.codes, expected.codes)
    assert not np.array_equal(rows.codes, store.read("image/legacysurvey", store.find(ids)).codes)


def test_turned_images_that_do_not_belong_to_a_store_are_refused(data, tokenizer_folder, tokens, tmp_path):
    store = TokenStore(tokens)
    with pytest.raises(TokenStoreError, match=r"turned.1: no tokens of turned images; .* Tokenize with turns=2"):
        open_turned(store, 2)
    shutil.copytree(tokens, tmp_path / "store")
    others = redshifts_alone(tmp_path, tokenizer_folder)
    shutil.copytree(others, tmp_path / "store" / "turned" / "1")
    with pytest.raises(TokenStoreError, match=r"turned.1: its objects are not those of .*store"):
        open_turned(TokenStore(tmp_path / "store"), 2)


def test_modalities_without_data_or_tokenizer_are_named(data, tokenizer_folder, tmp_path):
    settings = TokenizeSettings(
        data=str(data), tokenizers=str(tokenizer_folder), tokens=str(tmp_path), modalities=("image/hsc",)
    )
    with pytest.raises(ValueError, match=r"no data or no tokenizer for \['image/hsc'\]"):
        tokenize(settings)
    with pytest.raises(ValueError, match="expected tokenizers in folders named"):
        load_tokenizers(tmp_path)


def test_tokens_of_other_tokenizers_are_refused(tokens, tokenizer_folder, tmp_path):
    store, tokenizers = TokenStore(tokens), load_tokenizers(tokenizer_folder)
    check_tokens(store, tokenizers)
    torch.manual_seed(77)
    other = {**tokenizers, "image": ImageTokenizer(tokenizers["image"].settings)}
    with pytest.raises(ValueError, match=r"tokens of image/legacysurvey were made by tokenizer \w+, expected \w+"):
        check_tokens(store, other)
    with pytest.raises(ValueError, match="no tokenizer for scalar/redshift"):
        check_tokens(store, {kind: t for kind, t in tokenizers.items() if kind != "scalar"})


def test_a_batch_of_a_loader_is_what_the_store_holds_and_can_be_some_of_its_modalities(tokens):
    store = TokenStore(tokens)
    vocabularies = {"image": 0, "scalar/redshift": 1, "spectrum": 2}
    samples = next(iter(TokenLoader([TokenSource(store)], 30, 0)))
    batch = token_batch(samples, range(3), vocabularies)
    grids = []
    for declared in store.modalities:
        grid, rows = read_grid(store, samples.objects.numpy(), declared)
        grids.append(replace(grid, object_id=tuple(map(str, rows))))  # where epochs meet, an object comes twice
    expected, _ = join_grids(grids, vocabularies, [str(row) for row in range(30)])
    assert torch.equal(batch.mask, torch.arange(batch.mask.shape[1]) < expected.mask.sum(1, keepdim=True))
    assert torch.equal(batch.slot_vocabularies, expected.slot_vocabularies)
    for name in ("slots", "codes", "positions"):
        assert torch.equal(getattr(batch, name)[batch.mask], getattr(expected, name)[expected.mask]), name
    assert torch.equal(batch.places[batch.mask], expected.mask.nonzero()[:, 1])
    present = torch.stack([(batch.mask & (batch.slots == slot)).any(1) for slot in range(3)], 1)
    assert torch.equal(batch.instruments[present], expected.instruments[present])
    spectra = token_batch(samples, [2], vocabularies)
    assert torch.equal(spectra.codes[spectra.mask], batch.codes[batch.mask & (batch.slots == 2)])
    assert torch.equal(spectra.mask.sum(1), (batch.mask & (batch.slots == 2)).sum(1))
    assert spectra.slot_vocabularies.tolist() == [2]


def test_the_key_of_an_object_is_fixed_for_all_time():
    assert object_key("39633345008634465") == object_key("39633345008634465")
    assert len({object_key(str(i)) for i in range(1000)}) == 1000
    assert object_key("") == 0xE3B0C44298FC1C14 >> 1  # the published SHA-256 of nothing


def pretrain_settings(tokens, tokenizer_folder, run, **others):
    loop = {"steps": 2, "batch_size": 2, "precision": "32-true"}
    return PretrainSettings(tokens=str(tokens), tokenizers=str(tokenizer_folder), run=str(run), loop=loop, **others)


def test_held_out_objects_are_never_seen(tokens, tokenizer_folder, tmp_path):
    store, tokenizers = TokenStore(tokens), load_tokenizers(tokenizer_folder)
    (tmp_path / "ids").write_text("\n".join(store.object_ids()[5:12]))
    held_out = read_ids(tmp_path / "ids")
    loader = TokenLoader(open_sources(str(tokens), tokenizers, held_out), 17, 0)
    seen = next(iter(loader)).objects.tolist()
    assert sorted(seen) == [i for i in range(24) if not 5 <= i < 12]
    with pytest.raises(ValueError, match="none of its 24 objects can be drawn"):
        TokenLoader(open_sources(str(tokens), tokenizers, set(store.object_ids())), 4, 0)


def test_stores_are_mixed_by_the_weights_of_the_settings(data, tokens, tokenizer_folder, tmp_path):
    settings = {"data": str(data), "tokenizers": str(tokenizer_folder), "tokens": str(tmp_path / "redshifts")}
    tokenize(TokenizeSettings(**settings, modalities=("scalar/redshift",)))
    chosen = pretrain_settings(tokens, tokenizer_folder, tmp_path / "run")
    chosen = chosen.model_copy(update={"tokens": {str(tokens): 3.0, str(tmp_path / "redshifts"): 1.0}})
    assert pretrain(chosen).step == 2
    sources = open_sources(chosen.tokens, load_tokenizers(tokenizer_folder), set())
    samples = next(iter(TokenLoader(sources, 40, 0)))
    assert (samples.sources == 1).sum() == 10
    assert samples.availability[samples.sources == 1].sum(0).tolist() == [0, 10, 0]


def test_a_run_does_not_go_on_with_other_examples(tokens, tokenizer_folder, tmp_path):
    settings = pretrain_settings(tokens, tokenizer_folder, tmp_path / "run")
    pretrain(settings)
    (tmp_path / "ids").write_text(TokenStore(tokens).object_ids()[3])
    longer = settings.model_copy(update={"loop": settings.loop.model_copy(update={"steps": 3})})
    with pytest.raises(ValueError, match=r"examples.txt: the run stands at step 2 of examples \w+, and these are \w+"):
        pretrain(longer.model_copy(update={"held_out": str(tmp_path / "ids")}))
    assert pretrain(longer).step == 3


def test_a_weight_for_a_modality_that_is_not_there_is_refused(tokens, tokenizer_folder, tmp_path):
    settings = pretrain_settings(tokens, tokenizer_folder, tmp_path, modality_weights={"image/hcs": 2.0})
    with pytest.raises(ValueError, match=r"modality_weights names \['image/hcs'\]; the tokens are of"):
        pretrain(settings)


def redshifts_alone(folder, tokenizer_folder, num_missing=0):
    """A token store of objects of which nothing is known but a redshift, and of some not even that."""
    values = np.linspace(0.05, 0.4, 8)
    ids = [f"z{i}" for i in range(8)]
    mask = np.arange(8) >= num_missing
    observed = ScalarObservation(modality("scalar/redshift"), ids, values, mask)
    write_dataset(folder / "data", [observed], allow_unplaced=True)
    tokenize(TokenizeSettings(data=str(folder / "data"), tokenizers=str(tokenizer_folder), tokens=str(folder / "t")))
    return folder / "t"


def test_objects_with_nothing_left_to_predict_do_not_stop_a_run(tokenizer_folder, tmp_path):
    tokens = redshifts_alone(tmp_path, tokenizer_folder)
    assert pretrain(pretrain_settings(tokens, tokenizer_folder, tmp_path / "run")).step == 2


def test_objects_whose_value_is_missing_are_left_out_of_embeddings(tokenizer_folder, tmp_path):
    tokens = redshifts_alone(tmp_path, tokenizer_folder, num_missing=3)
    tokenizers = load_tokenizers(tokenizer_folder)
    modalities = TokenStore(tokens).modalities
    model = FoundationModel(tokenizers, new_transformer("nano", tokenizers, modalities), modalities)
    model.save(tmp_path / "c")
    settings = EmbedSettings(
        checkpoint=str(tmp_path / "c"),
        tokens=str(tokens),
        embeddings=str(tmp_path / "e"),
        space="encoder",
        shard_size=3,
    )
    embed(settings)
    assert sorted(read_embedding_shards(tmp_path / "e").object_id) == [f"z{i}" for i in range(3, 8)]


@pytest.mark.parametrize("kind", ["image", "spectrum"])
def test_a_tokenizer_learns_from_a_dataset_and_is_left_in_the_run_folder(data, tmp_path, kind):
    sizes = {
        "image": {"max_frequency": 3, "num_latents": 12, "num_details": 2, "width": 16, "num_blocks": 1},
        "spectrum": {"width": 16, "num_blocks": 1, "num_windows": 8, "num_nodes": 6},
    }
    loop = {"steps": 4, "batch_size": 8, "warmup_steps": 2, "log_every": 2, "precision": "32-true"}
    prior = {"rounds": 2, "batches": 4}
    settings = TrainTokenizerSettings(
        kind=kind, data=str(data), run=str(tmp_path / kind), loop=loop, prior=prior, **sizes
    )
    finished = train_tokenizer(settings)
    assert finished.step == 4
    assert np.isfinite(finished.metrics["loss"])
    assert load_tokenizers(tmp_path)[kind].settings == getattr(settings, kind)
    assert load_settings(TrainTokenizerSettings, tmp_path / kind / "settings.yaml") == settings


def test_the_scalar_tokenizer_learns_from_objects_that_are_not_held_out(data, tmp_path):
    dataset = ObservationDataset(data)
    ids = dataset.object_ids("scalar/redshift")
    (tmp_path / "ids").write_text("\n".join(ids[:10]))
    settings = TrainTokenizerSettings(
        kind="scalar",
        data=str(data),
        run=str(tmp_path / "run"),
        held_out=str(tmp_path / "ids"),
        scalar={"num_codes": 8},
    )
    train_tokenizer(settings)
    seen = ScalarTokenizer(settings.scalar).fit_stream([dataset.read("scalar/redshift", ids[10:])])
    fitted = ScalarTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert torch.equal(fitted.value_bins.edges, seen.value_bins.edges)


def test_a_dataset_without_the_kind_is_an_error(tokenizer_folder, tmp_path):
    redshifts_alone(tmp_path, tokenizer_folder)
    with pytest.raises(ValueError, match="no modality of kind image"):
        train_tokenizer(TrainTokenizerSettings(kind="image", data=str(tmp_path / "data"), run=str(tmp_path / "r")))


def test_the_hash_of_a_tokenizer_names_its_weights_and_settings(tokenizer_folder):
    first, again = load_tokenizers(tokenizer_folder), load_tokenizers(tokenizer_folder)
    assert tokenizer_hash(first["image"]) == tokenizer_hash(again["image"])
    with torch.no_grad():
        again["image"].refiner.shift.bias[0] += 1e-6
    assert tokenizer_hash(first["image"]) != tokenizer_hash(again["image"])
