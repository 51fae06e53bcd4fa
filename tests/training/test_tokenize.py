"""Datasets to tokenizers, token stores, and checks that tokens and tokenizers belong together."""

import numpy as np
import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.data.token_shards import object_key
from armillary.data.token_store import TokenStore
from armillary.models.embeddings import read_embedding_shards
from armillary.models.foundation import FoundationModel, new_transformer
from armillary.settings import load_settings
from armillary.tokenizers.image import ImageTokenizer
from armillary.tokenizers.scalar import ScalarTokenizer
from armillary.training.embed import EmbedSettings, embed
from armillary.training.pretrain import (
    PretrainObjective,
    PretrainSettings,
    check_tokens,
    pretrain,
    read_batch,
    read_ids,
)
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


def test_a_batch_is_what_the_store_holds_even_with_an_object_twice(tokens, tokenizer_folder):
    store = TokenStore(tokens)
    vocabularies = {"image": 0, "scalar/redshift": 1, "spectrum": 2}
    objects = np.array([6, 2, 6, 9])
    batch = read_batch(store, objects, vocabularies)
    assert len(batch) == 4
    assert torch.equal(batch.codes[0], batch.codes[2])
    start = 0
    for declared in store.modalities:
        rows = store.read(declared.name, objects)
        part = slice(start, start + store.num_tokens(declared.name))
        for place, row in enumerate(rows.rows):
            assert batch.codes[row, part].tolist() == rows.codes[place].tolist()
        start = part.stop


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
    transformer = new_transformer("nano", tokenizers, store.modalities)
    objective = PretrainObjective(transformer, store, pretrain_settings(tokens, tokenizer_folder, tmp_path), held_out)
    seen = sorted(int(i) for group in objective.groups for i in group)
    assert seen == [i for i in range(24) if store.object_ids()[i] not in held_out]
    with pytest.raises(ValueError, match="every one of its 24 objects is held out"):
        PretrainObjective(transformer, store, objective.settings, set(store.object_ids()))


def test_objects_of_a_step_have_the_same_modalities(tokens, tokenizer_folder, tmp_path):
    store, tokenizers = TokenStore(tokens), load_tokenizers(tokenizer_folder)
    transformer = new_transformer("nano", tokenizers, store.modalities)
    objective = PretrainObjective(transformer, store, pretrain_settings(tokens, tokenizer_folder, tmp_path), set())
    for group, modalities in zip(objective.groups, objective.modalities, strict=True):
        for declared in store.modalities:
            assert (store.has(declared.name)[group] == (declared in modalities)).all()


def test_a_weight_for_a_modality_that_is_not_there_is_refused(tokens, tokenizer_folder, tmp_path):
    settings = pretrain_settings(tokens, tokenizer_folder, tmp_path, modality_weights={"image/hcs": 2.0})
    with pytest.raises(ValueError, match=r"modality_weights names \['image/hcs'\]; the store has"):
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
        "image": {"width": 16, "num_blocks": 1},
        "spectrum": {"width": 16, "num_blocks": 1, "num_windows": 8, "num_nodes": 6},
    }
    loop = {"steps": 4, "batch_size": 8, "warmup_steps": 2, "log_every": 2, "precision": "32-true"}
    settings = TrainTokenizerSettings(kind=kind, data=str(data), run=str(tmp_path / kind), loop=loop, **sizes)
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
    values = dataset.read("scalar/redshift", ids[10:]).values.double().numpy()
    fitted = ScalarTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert np.allclose(fitted.edges[0], np.quantile(values, np.linspace(0, 1, 7)))


def test_a_dataset_without_the_kind_is_an_error(tokenizer_folder, tmp_path):
    redshifts_alone(tmp_path, tokenizer_folder)
    with pytest.raises(ValueError, match="no modality of kind image"):
        train_tokenizer(TrainTokenizerSettings(kind="image", data=str(tmp_path / "data"), run=str(tmp_path / "r")))


def test_the_hash_of_a_tokenizer_names_its_weights_and_settings(tokenizer_folder):
    first, again = load_tokenizers(tokenizer_folder), load_tokenizers(tokenizer_folder)
    assert tokenizer_hash(first["image"]) == tokenizer_hash(again["image"])
    with torch.no_grad():
        again["image"].patch_out.bias[0] += 1e-6
    assert tokenizer_hash(first["image"]) != tokenizer_hash(again["image"])
