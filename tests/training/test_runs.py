"""Whole runs over a token store: interrupted and killed, on one process and on two, to embeddings in the end."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from armillary.data.token_store import TokenStore
from armillary.models.embeddings import read_embedding_shards
from armillary.models.foundation import FoundationModel
from armillary.settings import find_config, load_settings
from armillary.training.align import AlignSettings, align
from armillary.training.embed import EmbedSettings, embed
from armillary.training.metrics_log import SPEED
from armillary.training.pretrain import PretrainSettings, pretrain
from armillary.training.run_record import read_metrics, saved_steps

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 30


@pytest.fixture(scope="module")
def words(pretrain_words):
    return [*pretrain_words, f"loop.steps={STEPS}", "loop.checkpoint_every=7"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    pretrain(settings_of(words, folder))
    return folder


def settings_of(words, folder):
    return load_settings(PretrainSettings, find_config(words[0]), [*words[1:], f"run={folder}"])


def last_state(folder):
    return load_file(folder / "states" / f"step-{saved_steps(folder)[-1]:08d}" / "state.safetensors")


def metrics(folder):
    rows = read_metrics(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows]


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_or_killed_ends_bit_for_bit_as_one_that_was_not(cli, words, whole, tmp_path, number):
    process = cli("pretrain", *words, f"run={tmp_path}")
    wait_for(lambda: saved_steps(tmp_path), process)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "run the same command again to go on from there" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    reached = saved_steps(tmp_path)[-1]
    assert 0 < reached < STEPS
    pretrain(settings_of(words, tmp_path))
    expected, found = last_state(whole), last_state(tmp_path)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert metrics(tmp_path) == metrics(whole)
    assert FoundationModel.load(tmp_path / "checkpoint").model_id == FoundationModel.load(whole / "checkpoint").model_id


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(cli, words, tmp_path, strategy):
    short = [*words, "loop.steps=6", "loop.log_every=1"]
    process = cli("pretrain", *short, f"run={tmp_path / 'two'}", "loop.devices=2", f"loop.strategy={strategy}")
    pretrain(settings_of(short, tmp_path / "one"))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    one, two = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    assert two["random"].shape[0] == 2
    for name in one:
        if name.startswith("module."):
            assert (one[name].double() - two[name]).norm() <= 5e-3 * one[name].double().norm() + 1e-6, name
    saved = FoundationModel.load(tmp_path / "two" / "checkpoint").transformer.state_dict()
    assert all(torch.equal(tensor, two[f"module.transformer.{name}"]) for name, tensor in saved.items())
    rows = [metrics(tmp_path / name) for name in ("one", "two")]
    assert [r["step"] for r in rows[1]] == [1, 2, 3, 4, 5, 6]
    for first, second in zip(*rows, strict=True):
        assert first.keys() == second.keys()
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)


def test_two_processes_have_the_gradient_of_one(cli, words, tmp_path):
    """Adam's first moment after one step is a tenth of the gradient of the whole batch."""
    short = [*words, "loop.steps=1", "loop.betas=[0.9, 0.95]"]
    process = cli("pretrain", *short, f"run={tmp_path / 'two'}", "loop.devices=2")
    pretrain(settings_of(short, tmp_path / "one"))
    pretrain(settings_of([*short, "loop.accumulate=2"], tmp_path / "parts"))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    one, two, parts = (last_state(tmp_path / name) for name in ("one", "two", "parts"))
    moments = [name for name in one if name.endswith(".exp_avg")]
    assert len(moments) > 20
    for name in moments:
        for other in (two, parts):
            assert torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-7), name


def test_speeds_count_all_parts_of_a_batch(words, tmp_path):
    """Per object, a step has as many tokens and operations in parts as at once."""
    found = []
    for name, accumulate in (("whole", 1), ("parts", 2)):
        short = [*words, "loop.steps=3", "loop.peak_tflops=1", f"loop.accumulate={accumulate}"]
        pretrain(settings_of(short, tmp_path / name))
        row = read_metrics(tmp_path / name / "metrics.csv")[-1]
        found.append([row[k] / row["examples_per_second"] for k in ("tokens_per_second", "model_flops_utilization")])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert 2 <= found[0][0] <= 10  # of at most 6 inputs and 4 targets


def test_bf16_differs_from_float32_by_its_rounding_alone(words, whole, tmp_path):
    pretrain(settings_of([*words, "loop.steps=3", "loop.precision=bf16-mixed"], tmp_path))
    exact, rounded = metrics(whole)[0], metrics(tmp_path)[0]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.03)
    assert rounded["loss"] != exact["loss"]
    assert {t.dtype for n, t in last_state(tmp_path).items() if n.startswith("module.")} == {torch.float32, torch.int64}


def test_pretraining_brings_the_loss_down_and_leaves_its_settings_and_record(whole, words):
    rows = metrics(whole)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"nats/image/legacysurvey", "nats/spectrum/desi", "nats/scalar/redshift"} <= set().union(*rows)
    assert load_settings(PretrainSettings, whole / "settings.yaml") == settings_of(words, whole)
    record = FoundationModel.load(whole / "checkpoint").record
    assert record["pretrain"]["num_inputs"] == 6
    assert record["metrics"]["loss"] == rows[-1]["loss"]
    assert record["versions"]["torch"] == torch.__version__


def test_alignment_and_embedding_follow_from_a_checkpoint(whole, tokens, tmp_path):
    settings = AlignSettings(
        checkpoint=str(whole / "checkpoint"),
        tokens=str(tokens),
        run=str(tmp_path / "align"),
        aligned_width=8,
        num_tokens=4,
        loop={
            "steps": 30,
            "batch_size": 8,
            "warmup_steps": 2,
            "log_every": 5,
            "precision": "32-true",
            "learning_rate": 3e-3,
        },
    )
    align(settings)
    rows = read_metrics(tmp_path / "align" / "metrics.csv")
    assert rows[-1]["loss"] < rows[0]["loss"]
    before, after = (FoundationModel.load(f / "checkpoint") for f in (whole, tmp_path / "align"))
    for name, tensor in before.transformer.state_dict().items():
        assert torch.equal(tensor, after.transformer.state_dict()[name]), name

    wanted = EmbedSettings(
        checkpoint=str(tmp_path / "align" / "checkpoint"),
        tokens=str(tokens),
        embeddings=str(tmp_path / "e"),
        shard_size=12,
    )
    assert embed(wanted) == 4
    assert embed(wanted) == 0
    halves = wanted.model_copy(update={"embeddings": str(tmp_path / "halves"), "num_parts": 2})
    assert [embed(halves.model_copy(update={"part": part})) for part in (0, 1)] == [2, 2]
    assert {p.name: p.read_bytes() for p in (tmp_path / "halves").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "e").iterdir()
    }
    table = read_embedding_shards(tmp_path / "e")
    assert len(table.object_id) == 20 + 20
    assert table.model_id == after.model_id
    store = TokenStore(tokens)
    assert set(table.object_id) == set(store.object_ids())
    assert set(table.modality) == {"image/legacysurvey", "spectrum/desi"}
    with pytest.raises(ValueError, match=r"no tokens of \['image/hsc'\]; it holds"):
        embed(wanted.model_copy(update={"modalities": ("image/hsc",)}))
