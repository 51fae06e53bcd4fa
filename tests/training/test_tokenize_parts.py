"""Tokenizing in parts, by processes that are killed, and into stores that stand already."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import armillary
from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ScalarObservation
from armillary.data.token_manifest import MANIFEST, missing_shards, verify_store
from armillary.data.token_shards import TokenStoreError, shard_path
from armillary.data.token_store import TokenStore
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.training.array_parts import choose_device, choose_part
from armillary.training.tokenize import TokenizeSettings, tokenize

pytestmark = pytest.mark.usefixtures("one_thread")

SLURM = {
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "3",
}


def settings(data, tokenizers, tokens, **others):
    return TokenizeSettings(
        data=str(data), tokenizers=str(tokenizers), tokens=str(tokens), **{"shard_size": 5, **others}
    )


def files(folder):
    """All files of a store but the manifest."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}


@pytest.fixture(scope="module")
def whole(data, tokenizer_folder, tmp_path_factory):
    """A store written by one process."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    assert tokenize(settings(data, tokenizer_folder, folder)) == 15
    return folder


def test_the_part_is_that_of_the_settings_or_of_the_slurm_array():
    alone = settings("d", "t", "s")
    assert choose_part(alone, {}) == (0, 1)
    assert choose_part(alone, SLURM) == (2, 4)
    assert choose_part(alone.model_copy(update={"part": 1, "num_parts": 3}), SLURM) == (1, 3)
    # Two tasks of an array that was sent again.
    some = {**SLURM, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "7"}
    assert choose_part(alone.model_copy(update={"num_parts": 8}), some) == (2, 8)
    with pytest.raises(ValueError, match="the Slurm array has 2 tasks, 2 to 7, and not 0 to 1: say num_parts"):
        choose_part(alone, some)
    with pytest.raises(ValueError, match=r"part must lie in \[0, 1\], for num_parts is 2; found 2"):
        choose_part(alone.model_copy(update={"num_parts": 2}), SLURM)


def test_processes_of_one_srun_divide_the_part_again_and_take_a_gpu_each(monkeypatch):
    alone = settings("d", "t", "s")
    # A batch script of a job of four tasks is one process, and does all of it.
    assert choose_part(alone, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == (0, 1)
    of_step = [{"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % 2)} for i in range(3)]
    assert [choose_part(alone, one) for one in of_step] == [(0, 3), (1, 3), (2, 3)]
    assert [choose_part(alone, {**SLURM, **one}) for one in of_step] == [(6, 12), (7, 12), (8, 12)]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device("cuda", one) for one in of_step] == ["cuda:0", "cuda:1", "cuda:0"]
    assert choose_device("cuda", {}) == "cuda"
    assert choose_device("cpu", of_step[1]) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as with --gpus-per-task=1
    assert choose_device("cuda", of_step[1]) == "cuda"


def test_parts_that_run_at_once_write_what_one_process_writes(data, tokenizer_folder, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    # Two tasks of each part: as when a scheduler sends one again that still runs.
    tasks = [
        context.Process(target=tokenize, args=(settings(data, tokenizer_folder, tmp_path, part=part, num_parts=3),))
        for part in (0, 1, 2, 2, 1, 0)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
        assert task.exitcode == 0
    assert files(tmp_path) == files(whole)
    assert (tmp_path / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()


def test_the_template_for_slurm_passes_its_words_on(tmp_path):
    script = Path(armillary.__file__).parent / "slurm" / "tokenize.sbatch"
    stand_in = tmp_path / "armillary"
    stand_in.write_text('#!/bin/sh\necho "$@" on $OMP_NUM_THREADS\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, **SLURM, "ARMILLARY": str(stand_in), "SLURM_CPUS_PER_TASK": "3"}
    run = ["bash", str(script), "tokenize.yaml", "device=cuda", "num_parts=64"]
    assert (
        subprocess.check_output(run, env=environment, text=True)
        == "tokenize tokenize.yaml device=cuda num_parts=64 on 3\n"
    )
    assert subprocess.run(run[:2], env=environment, capture_output=True, check=False).returncode == 1


def test_a_part_that_is_missing_is_told_and_the_last_one_finishes_the_store(data, tokenizer_folder, tmp_path, capsys):
    for part in (2, 0):
        tokenize(settings(data, tokenizer_folder, tmp_path, part=part, num_parts=3))
    assert "part 0 of 3 is done; shards still to come: 2 of objects, 2 of image/legacysurvey" in capsys.readouterr().err
    assert missing_shards(tmp_path)["objects"] == [1, 4]
    with pytest.raises(TokenStoreError, match="not finished: objects lacks shards 1, 4; image/legacysurvey lacks"):
        TokenStore(tmp_path)
    tokenize(settings(data, tokenizer_folder, tmp_path, part=1, num_parts=3))
    assert len(TokenStore(tmp_path)) == 24


def num_shards(folder):
    try:
        return len(list(folder.glob("*/*/shard-*")))
    except FileNotFoundError:  # a folder was renamed meanwhile
        return 0


def test_killed_at_any_point_the_same_command_goes_on(data, tokenizer_folder, whole, tmp_path):
    rng = random.Random(3)
    chosen = settings(data, tokenizer_folder, tmp_path, batch_size=2)
    for target in (1, 4, 9, 13):
        worker = multiprocessing.get_context("fork").Process(target=tokenize, args=(chosen,))
        worker.start()
        while num_shards(tmp_path) < target and worker.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    tokenize(chosen)
    assert files(tmp_path) == files(whole)
    assert verify_store(tmp_path) == 20


def test_new_objects_are_added_and_nothing_is_rewritten(data, tokenizer_folder, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "store")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("shard-*/*")}
    old = TokenStore(store)
    values = np.linspace(0.1, 0.3, 12)
    ids = [*old.object_ids()[:2], *(f"new{n}" for n in range(10))]  # of two nothing new is known
    redshifts = ScalarObservation(modality("scalar/redshift"), ids, values, ra=values, dec=values)
    write_dataset(tmp_path / "more", [redshifts])
    assert tokenize(settings(tmp_path / "more", tokenizer_folder, store, shard_size=4)) == 3 * 3
    for path, (changed, content) in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (changed, content)
    opened = TokenStore(store)
    assert opened.object_ids()[:24] == old.object_ids()
    assert sorted(opened.object_ids()[24:]) == sorted(f"new{n}" for n in range(10))
    assert opened.has("scalar/redshift").all()
    assert not opened.has("image/legacysurvey")[24:].any()
    assert len(opened.read("scalar/redshift", np.arange(24, 34)).rows) == 10
    sources = json.loads((store / MANIFEST).read_text())["sources"]
    assert [entry["dataset"] for entry in sources] == [str(data), str(tmp_path / "more")]


def test_a_shard_that_lacks_what_the_dataset_has_now_is_an_error(data, tokenizer_folder, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "store")
    opened = TokenStore(store)
    place = int(np.flatnonzero(~opened.has("image/legacysurvey"))[0])
    name = opened.object_ids(np.array([place]))[0]
    ra, dec = opened.sky(np.array([place]))[0]
    flux = np.ones((1, 3, 16, 16), np.float32)
    image = ImageObservation(modality("image/legacysurvey"), [name], flux, ("g", "r", "z"), flux, ra=[ra], dec=[dec])
    write_dataset(tmp_path / "more", [image])
    with pytest.raises(
        TokenStoreError, match=rf"object {name} has image/legacysurvey now, and had none when the shard"
    ):
        tokenize(settings(tmp_path / "more", tokenizer_folder, store))


def test_shards_of_another_tokenizer_are_an_error_before_any_work(data, tokenizer_folder, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "store")
    others = shutil.copytree(tokenizer_folder, tmp_path / "tokenizers")
    redshift = ObservationDataset(data).read("scalar/redshift").values.numpy()
    scalar = ScalarTokenizer(ScalarTokenizerSettings(num_codes=9)).fit({"scalar/redshift": redshift})
    shutil.rmtree(others / "scalar")
    scalar.save_pretrained(others / "scalar")
    with pytest.raises(
        TokenStoreError, match=r"scalar/redshift/shard-00000: its tokens were made by tokenizer \w+, exp"
    ):
        tokenize(settings(data, others, store, modalities=("scalar/redshift",)))


def test_another_size_of_shards_than_was_begun_is_an_error(data, tokenizer_folder, tmp_path):
    tokenize(settings(data, tokenizer_folder, tmp_path, part=0, num_parts=2))
    with pytest.raises(
        TokenStoreError, match=r"objects/shard-00000: expected 7 objects as one of 4 shards, found others"
    ):
        tokenize(settings(data, tokenizer_folder, tmp_path, shard_size=7))


def test_a_half_written_shard_is_an_error_that_names_its_file(data, tokenizer_folder, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "store")
    path = shard_path(store, "spectrum/desi", 1) / "codes.npy"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(TokenStoreError, match=r"spectrum/desi/shard-00001/codes.npy: expected \d+ bytes, found \d+"):
        tokenize(settings(data, tokenizer_folder, store))


def test_images_of_several_sizes_are_an_error(tokenizer_folder, tmp_path):
    flux = torch.ones(1, 1, 16, 16)
    sky = {"ra": [1.0], "dec": [2.0]}
    small = ImageObservation(modality("image/hsc"), ["a"], flux, ("r",), flux, **sky)
    wide = torch.ones(1, 1, 32, 32)
    large = ImageObservation(modality("image/hsc"), ["b"], wide, ("r",), wide, ra=[1.1], dec=[2.0])
    write_dataset(tmp_path / "data", [small, large])
    with pytest.raises(
        ValueError, match=r"image/hsc gives \[\d+, \d+\] tokens; a store needs images of one size. Crop"
    ):
        tokenize(settings(tmp_path / "data", tokenizer_folder, tmp_path / "store", shard_size=1))
