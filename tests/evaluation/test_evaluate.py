"""`armillary evaluate` on a made-up checkpoint: what it reports, that it goes on where it stood, what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.simulation.sky import SkySettings, simulate_sky
from armillary.data.token_store import TokenStore
from armillary.data.turned_tokens import open_turned
from armillary.evaluation import evaluate as evaluate_module
from armillary.evaluation.accuracy import galleries
from armillary.evaluation.evaluate import evaluate
from armillary.evaluation.objects import EvaluationObjects, Subset
from armillary.evaluation.settings import EvaluateSettings
from armillary.evaluation.vectors import VectorStore
from armillary.evaluation.zero_shot import unit
from armillary.models.alignment import AlignmentHead, AlignmentHeadSettings
from armillary.models.embeddings import EmbeddingsError, read_embedding_shards, write_embedding_shard
from armillary.models.foundation import FoundationModel
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings
from armillary.training.tokenize import TokenizeSettings, tokenize

BANDS = tuple(f"scalar/legacysurvey_{band}" for band in "grz")
LABELS = ("scalar/redshift", "scalar/stellar_mass")
NAMES = ("image/legacysurvey", "image/hsc", "spectrum/desi", *LABELS, *BANDS)
COUNTS = {"train": 50, "validation": 44, "test": 26}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings of a small evaluation, but for the output folder: dataset, tokens, checkpoint and parts."""
    folder = tmp_path_factory.mktemp("evaluation")
    sky = SkySettings(
        num_objects=sum(COUNTS.values()),
        modalities=NAMES,
        image_sizes={"image/legacysurvey": 16, "image/hsc": 16},
        seed=3,
        magnitude_limit=18.0,
        star_fraction=0.0,
        quasar_fraction=0.0,
    )
    observations = [o for shard in simulate_sky(sky) for o in shard]
    for observation in [o for o in observations if o.modality.name in ("scalar/redshift", *BANDS)]:
        # They stand for real galaxies, the last of which has no magnitude in g.
        twin = replace(observation, object_id=tuple(i.replace("sim-", "real-") for i in observation.object_id))
        observations.append(twin.select(range(len(twin) - 1)) if observation.modality.name == BANDS[0] else twin)
    write_dataset(folder / "data", observations)
    dataset = ObservationDataset(folder / "data")
    torch.manual_seed(0)
    tokenizers = {
        "image": ImageTokenizer(
            ImageTokenizerSettings(
                max_frequency=3, num_latents=12, num_details=2, digits_per_token=3, width=16, num_blocks=1
            )
        ).eval(),
        "spectrum": SpectrumTokenizer(
            SpectrumTokenizerSettings(
                width=16, num_blocks=1, num_windows=8, num_nodes=6, levels=(5, 5), num_amplitudes=16
            )
        ).eval(),
        "scalar": ScalarTokenizer(ScalarTokenizerSettings(num_codes=16)).fit(
            {name: dataset.read(name).values.numpy() for name in (*LABELS, *BANDS)}
        ),
    }
    for kind, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / "tokenizers" / kind)
    tokenize(
        TokenizeSettings(
            data=str(folder / "data"), tokenizers=str(folder / "tokenizers"), tokens=str(folder / "tokens")
        )
    )
    features = {m.vocabulary: tokenizers[m.kind].code_features(m) for m in dataset.modalities}
    config = MaskedTransformerConfig(
        encoder_blocks=1,
        decoder_blocks=1,
        width=16,
        num_heads=2,
        vocabularies={name: len(values) for name, values in features.items()},
        code_feature_sizes={name: values.shape[1] for name, values in features.items()},
    )
    transformer = MaskedTransformer(config)
    transformer.codes.set_features(features)
    head = AlignmentHead(AlignmentHeadSettings(input_width=16, aligned_width=8, num_heads=2))
    # The second camera is unknown to the model.
    known = tuple(m for m in dataset.modalities if m.name != "image/hsc")
    FoundationModel(tokenizers, transformer, known, head).save(folder / "checkpoint")
    ids = dataset.object_ids("image/legacysurvey")
    (folder / "parts").mkdir()
    start = 0
    for part, count in COUNTS.items():
        members = ids[start : start + count]
        twins = [i.replace("sim-", "real-") for i in members]
        (folder / "parts" / f"{part}.txt").write_text("".join(f"{i}\n" for i in (*members, *twins)))
        start += count
    return {
        "checkpoint": str(folder / "checkpoint"),
        "data": str(folder / "data"),
        "tokens": str(folder / "tokens"),
        "parts": str(folder / "parts"),
        "labels": list(LABELS),
        "subsets": ["photometry", "image/legacysurvey", "spectrum/desi", "image/legacysurvey+photometry"],
        "real_photometry": list(BANDS),
        "label_counts": [10, 20],
        "seeds": 2,
        "num_bootstrap": 20,
        "num_distributions": 20,
        "supervised": {
            "label_counts": [20],
            "min_steps": 2,
            "max_steps": 3,
            "batch_size": 8,
            "num_validations": 1,
            "precision": "32",
        },
    }


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    """An evaluation of it, once."""
    output = tmp_path_factory.mktemp("done") / "evaluation"
    return output, evaluate(EvaluateSettings.model_validate({**made, "output": str(output)}))


def test_the_report_has_every_section_and_fetches_nothing(done):
    output, results = done
    page = (output / "report.html").read_text()
    text = re.sub(r"data:image/png;base64,[^']*", "", page)
    stored = json.loads((output / "report.json").read_text())

    assert page.count("data:image/png;base64,") >= 6
    assert not re.search(r"(src|href)='[^']", text)
    assert not re.search(r"\bnan\b|\binf\b|None", text)
    assert text.count("Other data") >= 1
    assert "simulated" in text
    assert results["about"]["model_id"] in text
    assert stored["about"]["num_objects"] == COUNTS
    assert set(stored["subsets"]) == {
        "photometry",
        "image/legacysurvey",
        "spectrum/desi",
        "image/legacysurvey+photometry",
    }
    assert stored["real"]["num_objects"] == COUNTS
    assert sorted(p.name for p in (output / "images").iterdir())


def test_every_method_is_scored_on_all_test_objects_beside_trivial_ones(done):
    _, results = done
    for label in LABELS:
        assert set(results["baselines"][label]) == {"constant", "line on magnitudes", "trees on magnitudes"}
        for scores in results["baselines"][label].values():
            assert scores["num_objects"] == COUNTS["test"]
        assert results["baselines"][label]["constant"]["r2"] < 0.05
        for labels in results["subsets"].values():
            assert set(labels[label]) == {"zero-shot", "linear probe", "model's distribution"}
            assert labels[label]["linear probe"]["num_objects"] == COUNTS["test"]
            assert len(labels[label]["zero-shot"]["strata"]["magnitude"]) == 3


def test_retrieval_and_transfer_know_every_direction(done):
    _, results = done
    pairs = {(p["query"], p["target"]) for p in results["retrieval"]}
    transfers = {(t["fitted_on"], t["applied_to"]): t for t in results["transfer"]}

    assert len(pairs) == 6
    assert all(
        set(p["methods"]) == {"encoder space", "aligned space", "brightness alone"} for p in results["retrieval"]
    )
    assert set(transfers) == {("image/legacysurvey", "image/hsc"), ("image/hsc", "image/legacysurvey")}
    assert not transfers["image/legacysurvey", "image/hsc"]["is_known_to_model"]
    assert transfers["image/hsc", "image/legacysurvey"]["is_known_to_model"]


def test_curves_end_with_all_labels_and_the_network_saw_the_same_draws(done):
    _, results = done
    curve = results["curves"]["scalar/redshift"]

    assert curve["counts"] == [10, 20, COUNTS["train"]]
    assert [len(draws) for draws in curve["r2"]["linear probe"]] == [2, 2, 1]
    assert [n["num_labels"] for n in results["networks"]] == [20, COUNTS["train"]]


def test_predictions_are_stored_beside_the_truth(done, made):
    output, results = done
    table = pq.read_table(output / "predictions.parquet").to_pandas()
    chosen = table[(table.label == LABELS[0]) & (table.subset == "spectrum/desi") & (table.method == "linear probe")]

    r2 = 1 - np.square(chosen.predicted - chosen.true).sum() / np.square(chosen.true - chosen.true.mean()).sum()
    assert r2 == pytest.approx(results["subsets"]["spectrum/desi"][LABELS[0]]["linear probe"]["r2"], abs=1e-4)


def test_vectors_are_those_of_the_model(done, made):
    output, _ = done
    model = FoundationModel.load(made["checkpoint"])
    dataset = ObservationDataset(made["data"])
    for space in ("encoder", "aligned"):
        path = next((output / "embeddings").glob(f"{space}-spectrum-desi-*.parquet"))
        table = read_embedding_shards(path)
        expected = model.embed([dataset.read("spectrum/desi", list(table.object_id))], space)
        assert table.vectors.astype(np.float32) == pytest.approx(expected.numpy(), abs=2e-3)


def test_an_image_may_be_embedded_as_it_is_seen_from_several_sides(made, tmp_path):
    shutil.copytree(made["tokens"], tmp_path / "tokens")
    folders = {"data": made["data"], "tokens": str(tmp_path / "tokens"), "modalities": ("image/legacysurvey",)}
    tokenize(TokenizeSettings(**folders, tokenizers=str(Path(made["tokens"]).parent / "tokenizers"), turns=3))
    model, tokens = FoundationModel.load(made["checkpoint"]), TokenStore(tmp_path / "tokens")
    vectors = VectorStore(model, tokens, tmp_path / "vectors", turned=open_turned(tokens, 3))
    images = ObservationDataset(made["data"]).read("image/legacysurvey")
    subset = Subset("image/legacysurvey", ("image/legacysurvey",))
    for space in ("encoder", "aligned"):
        expected = np.mean([model.embed([images.turned(n)], space).numpy() for n in range(3)], axis=0)
        expected = unit(expected) if space == "aligned" else expected
        found = vectors.get(subset, space, list(images.object_id))
        assert found == pytest.approx(expected, abs=2e-3)
        assert found != pytest.approx(model.embed([images], space).numpy(), abs=2e-3)
        again = VectorStore(model, tokens, tmp_path / "vectors", turned=open_turned(tokens, 3))
        again._embed = lambda *_: pytest.fail("it stands already")
        assert np.array_equal(again.get(subset, space, list(images.object_id)), found)


def test_labelled_objects_may_be_found_by_all_their_surveys(done, made, tmp_path):
    output, results = done
    vectors = VectorStore(FoundationModel.load(made["checkpoint"]), TokenStore(made["tokens"]), tmp_path)
    objects = EvaluationObjects(
        ObservationDataset(made["data"]), EvaluateSettings.model_validate({**made, "output": str(output)})
    )
    names = [[part.name for part in gallery] for _, gallery in galleries(objects, vectors, objects.subsets[1])]
    image, second, spectrum = "image/legacysurvey", "image/hsc", "spectrum/desi"
    assert names == [[image], [image], [second], [spectrum], [second, image, spectrum]]
    for labels in results["subsets"].values():
        assert labels[LABELS[0]]["zero-shot"]["chosen"]["gallery"] in [*names, ["photometry"], [f"{image}+photometry"]]
    ids = objects.ids["train"]
    parts = [Subset(name, (name,)) for name in (image, spectrum)]
    both = vectors.together(parts, "aligned", ids)
    assert both == pytest.approx(np.mean([unit(vectors.get(part, "aligned", ids)) for part in parts], axis=0))


def test_real_galaxies_are_told_by_every_probe_beside_trees(done):
    real = done[1]["real"]
    assert real["num_objects"] == COUNTS
    own = {"zero-shot", "linear probe", "attentive probe", "kernel probe", "model's distribution"}
    assert own <= set(real["methods"])
    assert set(real["scatter_less_trees"]) == own
    assert len(real["true"]) == COUNTS["test"]
    assert len({tuple(scores["predicted"]) for scores in real["methods"].values()}) == len(real["methods"])
    curves = real["curves"]
    assert curves["counts"] == [10, 20, COUNTS["train"]]
    for method in ("kernel probe", "trees on magnitudes"):
        few, more, every = curves["scatter"][method]
        assert len(few) == len(more) == 2
        # With all labels a curve ends where the table stands.
        assert every == pytest.approx([real["methods"][method]["scatter"]])


def test_a_second_start_measures_nothing_and_another_setting_only_what_it_changes(done, made, tmp_path, monkeypatch):
    results = done[1]
    output = shutil.copytree(done[0], tmp_path / "evaluation")
    before = {p: p.stat().st_mtime_ns for p in (output / "sections").iterdir()}
    changed = {**made["supervised"], "learning_rate": 1e-3}

    again = evaluate(EvaluateSettings.model_validate({**made, "output": str(output)}))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert again["subsets"] == results["subsets"]
    monkeypatch.setattr(evaluate_module.Accuracy, "subset", lambda *_: pytest.fail("it stands already"))
    evaluate(EvaluateSettings.model_validate({**made, "output": str(output), "supervised": changed}))
    renewed = {p.name for p in before if p.stat().st_mtime_ns != before[p]}
    assert renewed == {"network scalar-redshift 20 0.json", "network scalar-redshift 50 0.json"}


def test_another_model_leaves_baselines_and_networks_as_they_are(done, made, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    model = FoundationModel.load(made["checkpoint"])
    with torch.no_grad():
        model.transformer.encoder_norm.weight.mul_(torch.linspace(0.5, 1.5, 16))
    model.save(tmp_path / "other")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "sections").iterdir()}
    few = {"subsets": ["image/legacysurvey"], "surveys": ["image/legacysurvey"], "output": str(tmp_path / "out")}
    evaluate(EvaluateSettings.model_validate({**made, **few, "checkpoint": str(tmp_path / "other")}))
    renewed = {p.name for p in before if p.stat().st_mtime_ns != before[p]}
    assert renewed == {"subset image-legacysurvey.json", "curves scalar-redshift.json", "real galaxies.json"}


@pytest.mark.slow
def test_killed_it_goes_on_where_it_stood(made, done, tmp_path):
    output = tmp_path / "evaluation"
    config = tmp_path / "evaluate.yaml"
    config.write_text(yaml.safe_dump({**made, "output": str(output)}))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "armillary.cli", "evaluate", str(config)]
    first = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (output / "sections" / "baselines.json").exists():
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    first.wait(60)
    assert not (output / "report.html").exists()
    standing = {p: p.stat().st_mtime_ns for p in (output / "sections").glob("*.json")}

    results = evaluate(EvaluateSettings.model_validate({**made, "output": str(output)}))

    assert {p: p.stat().st_mtime_ns for p in standing} == standing
    assert results["subsets"] == done[1]["subsets"]


def refused(made, tmp_path, **changes):
    return evaluate(EvaluateSettings.model_validate({**made, "output": str(tmp_path / "out"), **changes}))


def parts(made, tmp_path, **ids):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in COUNTS:
        text = ids.get(part) or open(f"{made['parts']}/{part}.txt").read().split()  # noqa: PTH123, SIM115
        (folder / f"{part}.txt").write_text("\n".join(text))
    return str(folder)


def test_parts_that_share_an_object_are_refused(made, tmp_path):
    train = open(f"{made['parts']}/train.txt").read().split()  # noqa: PTH123, SIM115
    test = open(f"{made['parts']}/test.txt").read().split()  # noqa: PTH123, SIM115
    folder = parts(made, tmp_path, test=[*test, train[7]])

    with pytest.raises(ValueError, match=rf"test\.txt: object '{train[7]}' is also in train\.txt"):
        refused(made, tmp_path, parts=folder)


def test_parts_of_another_dataset_are_refused(made, tmp_path):
    folder = parts(made, tmp_path, test=[f"stranger-{i}" for i in range(20)])

    with pytest.raises(ValueError, match=r"object 'stranger-0' and 19 more are not in"):
        refused(made, tmp_path, parts=folder)


def test_too_few_validation_objects_are_refused_with_their_number(made, tmp_path):
    with pytest.raises(ValueError, match=r"at least 40 objects of validation\.txt .* found 12"):
        refused(made, tmp_path, num_validation=12)


def test_a_missing_part_is_named(made, tmp_path):
    (tmp_path / "parts").mkdir()

    with pytest.raises(FileNotFoundError, match=r"missing: \['train.txt', 'validation.txt', 'test.txt'\]"):
        refused(made, tmp_path, parts=str(tmp_path / "parts"))


def test_a_subset_that_holds_the_label_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"image/hsc\+scalar/redshift holds the label scalar/redshift itself"):
        refused(made, tmp_path, subsets=["image/hsc+scalar/redshift"])


def test_an_unknown_modality_is_named_with_those_there_are(made, tmp_path):
    with pytest.raises(ValueError, match=r"labels: .* has no scalar/metallicity; it holds \['image/hsc'"):
        refused(made, tmp_path, labels=["scalar/metallicity"])


def test_given_embeddings_are_used_and_those_of_another_model_refused(made, done, tmp_path):
    output, _ = done
    table = read_embedding_shards(sorted((output / "embeddings").glob("aligned-spectrum-desi-*.parquet")))
    own = (table.object_id, table.modality, table.vectors)
    write_embedding_shard(tmp_path / "given" / "a.parquet", *own, model_id=table.model_id, space="aligned")
    write_embedding_shard(tmp_path / "other" / "a.parquet", *own, model_id="another", space="aligned")
    few = {"subsets": ["spectrum/desi"], "surveys": ["spectrum/desi"], "supervised": None, "label_counts": []}

    results = refused(made, tmp_path, **few, embeddings=[str(tmp_path / "given")])
    assert not list((tmp_path / "out" / "embeddings").glob("aligned-*"))
    assert results["subsets"]["spectrum/desi"] == done[1]["subsets"]["spectrum/desi"]
    with pytest.raises(EmbeddingsError, match="embeddings of model another, expected those of armillary-"):
        refused(made, tmp_path, **few, embeddings=[str(tmp_path / "other")])
