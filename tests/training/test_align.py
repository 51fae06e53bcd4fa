"""Alignment runs: which objects and views they see, what they end with, and that they go on exactly."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from armillary.data.token_store import TokenStore
from armillary.data.turned_tokens import turned_folder
from armillary.models.embeddings import read_embedding_shards
from armillary.models.foundation import FoundationModel
from armillary.training.align import AlignSettings, align
from armillary.training.embed import EmbedSettings, embed
from armillary.training.metrics_log import SPEED
from armillary.training.run_record import read_metrics
from armillary.training.tokenize import TokenizeSettings, tokenize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ids(tokens, tmp_path_factory):
    """Files of ids: five objects with both views for validation, and these with one more held out."""
    both = TokenStore(tokens).object_ids(np.arange(6, 12))
    folder = tmp_path_factory.mktemp("ids")
    (folder / "validation.txt").write_text("\n".join(both[:5]))
    (folder / "held-out.txt").write_text("\n".join(both))
    return folder


@pytest.fixture(scope="module")
def settings_for(untrained, tokens, ids):
    def make(run, steps=6, loop=None, **others):
        loop = {
            "steps": steps,
            "batch_size": 8,
            "warmup_steps": 2,
            "log_every": 2,
            "checkpoint_every": 3,
            "keep_checkpoints": 9,
            "precision": "32-true",
            "learning_rate": 3e-3,
            "loggers": (),
            **(loop or {}),
        }
        settings = {
            "checkpoint": str(untrained),
            "tokens": str(tokens),
            "run": str(run),
            "held_out": str(ids / "held-out.txt"),
            "validation": str(ids / "validation.txt"),
            "validate_every": 2,
            "aligned_width": 8,
            "num_tokens": 4,
        }
        return AlignSettings.model_validate({**settings, **others, "loop": loop})

    return make


def rows_of(run):
    rows = read_metrics(run / "metrics.csv")
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]


def head_of(run):
    return FoundationModel.load(run / "checkpoint").head.state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(settings_for, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    align(settings_for(run))
    return run


def test_the_run_ends_with_the_state_that_validation_found_best(settings_for, whole, tmp_path):
    """Not the last one, and not the one of least training loss. Ruinous steps follow the best one here."""
    align(settings_for(tmp_path, steps=8, loop={"learning_rate": 0.5, "schedule": "stable", "warmup_steps": 6}))
    scores = {row["step"]: row["validation/recall@10"] for row in rows_of(tmp_path) if "validation/recall@10" in row}
    assert set(scores) == {2, 4, 6, 8}
    chosen = FoundationModel.load(tmp_path / "checkpoint").record["align_step"]
    ranks = {row["step"]: row["validation/median_rank"] for row in rows_of(tmp_path)}
    assert chosen == min(scores, key=lambda step: (-scores[step], ranks[step], step))
    short = tmp_path / "short"
    loop = {"learning_rate": 0.5, "schedule": "stable", "warmup_steps": 6}
    align(settings_for(short, steps=int(chosen), validation=None, loop=loop))
    assert same(head_of(tmp_path), head_of(short))


def test_a_run_that_was_cut_goes_on_to_the_bit_with_its_best_state(settings_for, whole, tmp_path):
    for name in ("states/step-00000003", "examples.txt", "metrics.csv"):
        source, target = whole / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    align(settings_for(tmp_path))
    assert rows_of(tmp_path) == rows_of(whole)
    assert same(head_of(tmp_path), head_of(whole))
    states = [load_file(run / "states/step-00000006/state.safetensors") for run in (whole, tmp_path)]
    assert same(*states)
    assert "best" in states[0]


def test_objects_of_validation_must_be_held_out(settings_for, tmp_path, ids):
    (tmp_path / "some.txt").write_text("\n".join((ids / "held-out.txt").read_text().split()[1:]))
    with pytest.raises(
        ValueError, match=r"1 of its 5 objects are not held out \(.*some.txt\), so that steps would train"
    ):
        align(settings_for(tmp_path / "run", held_out=str(tmp_path / "some.txt")))
    with pytest.raises(ValueError, match="5 of its 5 objects are not held out"):
        align(settings_for(tmp_path / "run", held_out=None))


def test_turned_images_are_drawn_among(settings_for, whole, tokens, data, tokenizer_folder, tmp_path):
    """Turned alike, nothing changes; turned otherwise, what is learned does, and the same run learns it again."""
    shutil.copytree(tokens, tmp_path / "tokens")
    for number in (1, 2):
        shutil.copytree(tokens, turned_folder(tmp_path / "tokens", number))
    align(settings_for(tmp_path / "same", tokens=str(tmp_path / "tokens"), turns=3))
    assert same(head_of(tmp_path / "same"), head_of(whole))

    shutil.rmtree(tmp_path / "tokens" / "turned")
    folders = {"data": str(data), "tokenizers": str(tokenizer_folder), "tokens": str(tmp_path / "tokens")}
    tokenize(TokenizeSettings(**folders, turns=3))
    for run, stage in (("first", None), ("second", str(tmp_path / "node"))):
        align(settings_for(tmp_path / run, tokens=str(tmp_path / "tokens"), turns=3, stage_tokens=stage))
    assert same(head_of(tmp_path / "first"), head_of(tmp_path / "second"))
    assert not same(head_of(tmp_path / "first"), head_of(whole))
    with pytest.raises(
        ValueError, match=r"turns: 3 asks for encoder: frozen and cache_gib of at least .* found frozen"
    ):
        align(settings_for(tmp_path / "third", tokens=str(tmp_path / "tokens"), turns=3, cache_gib=0))


@pytest.mark.parametrize(
    "others, problem",
    [
        ({"pair_weights": {"spectrum-image": 1.0}}, r"names \['spectrum-image'\]; the pairs are \['image-spectrum'\]"),
        ({"pair_weights": {"image-spectrum": 0.0}}, r"pair of weight above 0 .*\['image', 'spectrum'\] have none"),
        ({"loop": {"accumulate": 2}}, "micro_batch does not"),
        ({"views": ["image", "coefficients"]}, r"no modality of the views {'coefficients': \['coefficients'\]}"),
    ],
)
def test_settings_that_do_not_fit_are_errors(settings_for, tmp_path, others, problem):
    with pytest.raises(ValueError, match=problem):
        align(settings_for(tmp_path, **others))


THREE = {"views": {"image": ["image"], "spectrum": ["spectrum"], "distance": ["scalar/redshift"]}}


def test_three_views_are_trained_validated_and_embedded_together(settings_for, tokens, tmp_path):
    align(settings_for(tmp_path / "run", steps=2, **THREE))
    names = set().union(*rows_of(tmp_path / "run"))
    for pair in ("image-spectrum", "image-distance", "spectrum-distance"):
        assert f"recall@1/{pair}" in names
        assert f"validation/recall@10/{pair.replace('-', '>')}" in names
    settings = {"checkpoint": str(tmp_path / "run" / "checkpoint"), "tokens": str(tokens)}
    assert embed(EmbedSettings(**settings, embeddings=str(tmp_path / "e"))) == 3
    table = read_embedding_shards(tmp_path / "e")
    assert {name: table.modality.count(name) for name in set(table.modality)} == {
        "image/legacysurvey": 20,
        "spectrum/desi": 20,
        "distance": 24,
    }
    model = FoundationModel.load(tmp_path / "run" / "checkpoint")
    assert model.head.settings.views["distance"] == ("scalar/redshift",)


def test_a_modality_that_is_of_no_view_cannot_be_embedded(whole, tokens, tmp_path):
    settings = EmbedSettings(
        checkpoint=str(whole / "checkpoint"),
        tokens=str(tokens),
        embeddings=str(tmp_path),
        modalities=("scalar/redshift",),
    )
    with pytest.raises(ValueError, match=r"no view of \['scalar/redshift'\]"):
        embed(settings)


@pytest.mark.slow
def test_two_processes_with_small_parts_have_the_gradient_of_one(cli, settings_for, tmp_path):
    """Adam's first moment after one step is a tenth of the gradient of the whole batch."""
    others = {**THREE, "loss": "sigmoid", "encoder": "last_blocks", "num_unfrozen_blocks": 1, "validation": None}
    one = settings_for(tmp_path / "one", steps=1, **others)
    words = [
        f"{name}={value}"
        for name, value in {
            "checkpoint": one.checkpoint,
            "tokens": one.tokens,
            "held_out": one.held_out,
            "run": tmp_path / "two",
            "views": "{image: [image], spectrum: [spectrum], distance: [scalar/redshift]}",
            "loss": "sigmoid",
            "encoder": "last_blocks",
            "num_unfrozen_blocks": 1,
            "aligned_width": 8,
            "num_blocks": 1,
            "num_tokens": 4,
            "micro_batch": 3,
            "loop.steps": 1,
            "loop.batch_size": 8,
            "loop.warmup_steps": 2,
            "loop.learning_rate": 0.003,
            "loop.precision": "32-true",
            "loop.devices": 2,
        }.items()
    ]
    process = cli("align", "align/default.yaml", *words)
    align(one)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    states = [load_file(tmp_path / name / "states/step-00000001/state.safetensors") for name in ("one", "two")]
    moments = [name for name in states[0] if name.endswith(".exp_avg")]
    assert len(moments) > 30
    assert sum(bool(states[0][name].any()) for name in moments) > 20
    for name in moments:
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-3, atol=1e-6), name
