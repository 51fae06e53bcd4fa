"""Training that reads its tokens from copies on a disk of the node."""

import shutil

import pytest

from armillary.settings import find_config, load_settings
from armillary.training.align import AlignSettings, align
from armillary.training.metrics_log import SPEED
from armillary.training.pretrain import PretrainSettings, pretrain
from armillary.training.run_record import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def metrics(folder):
    rows = read_metrics(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows]


def test_a_run_may_go_on_with_a_copy_of_its_tokens(pretrain_words, tmp_path, monkeypatch):
    words = [*pretrain_words[1:], "loop.steps=6", "loop.checkpoint_every=3"]

    def run(name, *more):
        pretrain(
            load_settings(PretrainSettings, find_config(pretrain_words[0]), [*words, f"run={tmp_path / name}", *more])
        )

    run("whole")
    for name in ("states/step-00000003", "examples.txt", "metrics.csv"):
        source, target = tmp_path / "whole" / name, tmp_path / "staged" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    run("staged", "stage_tokens=$NODE_DISK/tokens")
    assert len(list((tmp_path / "disk" / "tokens").glob("store-*"))) == 1
    assert [row["step"] for row in metrics(tmp_path / "whole")] == [3, 6]
    assert metrics(tmp_path / "staged") == metrics(tmp_path / "whole")

    tokens = next(word.removeprefix("tokens=") for word in words if word.startswith("tokens="))
    for name, stage in (("align", None), ("align-staged", "$NODE_DISK/align")):
        settings = AlignSettings(
            checkpoint=str(tmp_path / "whole" / "checkpoint"),
            tokens=tokens,
            run=str(tmp_path / name),
            stage_tokens=stage,
            aligned_width=8,
            num_tokens=4,
            loop={"steps": 2, "batch_size": 4, "log_every": 1, "precision": "32-true"},
        )
        align(settings)
    assert len(list((tmp_path / "disk" / "align").glob("store-*"))) == 1
    assert metrics(tmp_path / "align-staged") == metrics(tmp_path / "align")
