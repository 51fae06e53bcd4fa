"""A run that came to a bad step, and the replay of that step."""

import json

import pytest
import torch
from safetensors.torch import load_file

from armillary import cli
from armillary.data.token_store import TokenStore
from armillary.settings import find_config, load_settings
from armillary.tokenizers.pretrained import PretrainedError
from armillary.training.pretrain import PretrainSettings, pretrain
from armillary.training.replay import replay
from armillary.training.run_record import saved_steps
from armillary.training.step_watch import BadStepError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stopped(pretrain_words, tmp_path_factory):
    """Words and folder of a run whose rate is so high that its second step has no finite loss."""
    folder = tmp_path_factory.mktemp("stopped")
    words = [*pretrain_words, f"run={folder}", "loop.steps=9", "loop.learning_rate=1e30", "loop.warmup_steps=0"]
    with pytest.raises(BadStepError) as caught:
        pretrain(load_settings(PretrainSettings, find_config(words[0]), words[1:]))
    return words, folder, str(caught.value)


def test_the_message_names_the_step_and_its_objects_and_the_batch_is_kept(stopped, tokens):
    _, folder, message = stopped
    kept = folder / "bad-steps" / "step-00000001" / "process-0"
    description = json.loads((kept / "objects.json").read_text())
    assert "at step 1 is not finite" in message
    assert str(kept) in message
    assert f"(4 objects: {', '.join(description['object_ids'][:3])}, ...)" in message
    store = TokenStore(tokens)
    assert set(description["object_ids"]) <= set(store.object_ids())
    batch = load_file(kept / "batch.safetensors")
    assert batch["keys"].tolist() == store.keys(store.find(description["object_ids"])).tolist()
    assert saved_steps(folder) == []  # nothing was saved of a run that is broken


def test_a_replay_says_whose_loss_and_which_gradients_are_not_finite(stopped):
    words, folder, _ = stopped
    settings = load_settings(PretrainSettings, find_config(words[0]), words[1:])
    kept = folder / "bad-steps" / "step-00000001" / "process-0"
    lines = replay(settings, kept)
    ids = json.loads((kept / "objects.json").read_text())["object_ids"]
    assert lines[0].startswith("step 1, 4 objects of ")
    assert any(name in lines[1] for name in ids)
    assert "nan" in lines[1]
    assert "codes.rows" in lines[2]


def test_a_replay_of_a_step_with_healthy_weights_finds_nothing(stopped, capsys):
    """The weights before the first step would have taken it."""
    words, folder, _ = stopped
    kept = folder / "bad-steps" / "step-00000001" / "process-0"
    from safetensors.torch import save_file

    weights = load_file(kept / "weights.safetensors")
    healthy = {name: torch.zeros_like(w) if w.is_floating_point() else w for name, w in weights.items()}
    save_file(healthy, kept / "weights.safetensors")
    assert cli.main(["pretrain", *words, "--replay", str(kept)]) == 0
    shown = capsys.readouterr().out
    assert "gradients that are not finite: none" in shown
    save_file(weights, kept / "weights.safetensors")


def test_a_folder_without_a_kept_step_is_an_error(stopped, tmp_path):
    words, _, _ = stopped
    settings = load_settings(PretrainSettings, find_config(words[0]), words[1:])
    with pytest.raises(PretrainedError, match="expected a step that was kept when a run stopped"):
        replay(settings, tmp_path)


def test_profiling_from_the_command_line_leaves_a_trace(pretrain_words, tmp_path):
    assert cli.main(["pretrain", *pretrain_words, f"run={tmp_path}", "loop.steps=12", "--profile"]) == 0
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
