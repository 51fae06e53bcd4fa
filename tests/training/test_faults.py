"""Faults, for real: processes killed and stopped, disks filled; what resumes equals what nothing befell."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armillary.training.metrics_log import SPEED
from armillary.training.run_record import read_attempts, read_metrics, read_status, saved_steps

PROGRAM = Path(__file__).parent / "fault_program.py"


class Runs:
    """Starts runs in processes that a test may kill."""

    def __init__(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.server = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder, **order):
        print(json.dumps({"folder": str(folder), **order}), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def statuses(self):
        return json.loads(self.server.stdout.readline())

    def complete(self, folder, **order):
        self.start(folder, **order)
        assert set(self.statuses()) == {0}, output(folder)


@pytest.fixture(scope="module")
def runs():
    found = Runs()
    yield found
    found.server.stdin.close()
    found.server.wait(30)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    runs.complete(folder)
    return folder


def output(folder, rank=0):
    return (folder / f"{rank}.out").read_text()


def last_state(folder):
    return load_file(folder / "states" / f"step-{saved_steps(folder)[-1]:08d}" / "state.safetensors")


def metrics(folder):
    return [{k: v for k, v in row.items() if k not in SPEED} for row in read_metrics(folder / "metrics.csv")]


def assert_same(folder, expected):
    first, second = last_state(expected), last_state(folder)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert metrics(folder) == metrics(expected)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def fill(path):
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_runs_killed_at_random_moments_go_on_to_the_same_end(runs, whole, tmp_path):
    moments, steps = random.Random(6), []
    for number in range(20):
        folder = tmp_path / str(number)
        began = time.monotonic()
        (pid,) = runs.start(folder, seconds=0.008)
        if number % 2:  # from the first state on: in the middle of steps, rows and saves
            wait_until(lambda folder=folder: saved_steps(folder))
        time.sleep(moments.uniform(0, 0.25))
        assert time.monotonic() - began < 60
        os.kill(pid, signal.SIGKILL)
        (status,) = runs.statuses()
        assert status in (0, -signal.SIGKILL)
        if status:
            steps.append(saved_steps(folder)[-1] if saved_steps(folder) else 0)
        runs.complete(folder)
        assert_same(folder, whole)
        assert not list((folder / "states").glob(".*"))
    assert len(steps) > 10
    assert len(set(steps)) > 2  # they fell at different times


def test_a_full_disk_ends_a_run_with_a_message_and_leaves_its_last_state(runs, whole, tmp_path, tmp_path_factory):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        folder, elsewhere = tmp_path / "run", tmp_path_factory.mktemp("out")
        runs.start(folder, seconds=0.02, out=str(elsewhere))
        wait_until(lambda: saved_steps(folder))
        fill(tmp_path / "filler")
        assert runs.statuses() == [1]
        assert "No space left on device" in output(elsewhere)
        assert "GiB are free there" in output(elsewhere)
        reached = saved_steps(folder)[-1]
        assert 0 < reached < 40
        (tmp_path / "filler").unlink()
        runs.complete(folder)
        assert read_attempts(folder)[-1]["step"] == reached
        assert_same(folder, whole)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_where_a_process_is_killed_the_others_end_and_say_so(runs, tmp_path):
    runs.complete(tmp_path / "whole", num_processes=2)
    folder = tmp_path / "killed"
    pids = runs.start(folder, num_processes=2, seconds=0.02)
    wait_until(lambda: saved_steps(folder))
    os.kill(pids[1], signal.SIGKILL)
    assert runs.statuses() == [1, -signal.SIGKILL], output(folder)
    assert "process 0 of 2 lost the others at step" in output(folder)
    status = read_status(folder)
    assert status["state"] == "failed"
    assert "lost the others" in status["message"]
    assert "lost the others" in (folder / "logs" / "process-00000.log").read_text()
    runs.complete(folder, num_processes=2)
    assert_same(folder, tmp_path / "whole")


def test_where_a_process_hangs_the_others_end_in_time(runs, tmp_path):
    pids = runs.start(tmp_path, num_processes=2, seconds=0.02, loop={"timeout_minutes": 0.1})
    wait_until(lambda: saved_steps(tmp_path))
    os.kill(pids[1], signal.SIGSTOP)
    wait_until(lambda: (read_status(tmp_path) or {}).get("state") == "failed")
    os.kill(pids[1], signal.SIGKILL)
    assert runs.statuses() == [1, -signal.SIGKILL]
    assert "lost the others" in output(tmp_path)


def test_a_run_whose_data_never_come_ends_itself_and_says_where_it_hung(runs, tmp_path):
    runs.start(tmp_path, hang_at=9, loop={"timeout_minutes": 0.03})
    assert runs.statuses() == [1]
    assert "no step has ended for" in output(tmp_path)
    assert read_status(tmp_path)["state"] == "failed"
    log = (tmp_path / "logs" / "process-00000.log").read_text()
    assert "after step 9" in log
    assert 'fault_program.py", line' in log  # the stack of the thread that sleeps
    assert saved_steps(tmp_path) == [4, 8]


def test_a_run_goes_on_with_another_number_of_processes(runs, tmp_path):
    """Two, one, two: the same batches in the same order, and weights that differ by the order of sums alone."""
    orders = {"noise": 0.0, "seconds": 0.01}
    runs.complete(tmp_path / "whole", num_processes=2, **orders)
    folder = tmp_path / "changed"
    for number, count in enumerate((2, 1)):
        pids = runs.start(folder, num_processes=count, **orders)
        wait_until(lambda number=number: (saved_steps(folder) or [0])[-1] > 12 * number)
        os.kill(pids[-1], signal.SIGTERM)
        assert set(runs.statuses()) == {130}, output(folder)
    runs.complete(folder, num_processes=2, **orders)
    attempts = read_attempts(folder)
    assert [a["num_processes"] for a in attempts] == [2, 1, 2]
    assert 0 == attempts[0]["step"] < attempts[1]["step"] < attempts[2]["step"] < 40
    expected, found = last_state(tmp_path / "whole"), last_state(folder)
    for name in expected:
        if name.startswith("module."):
            assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5), name
    rows = metrics(tmp_path / "whole"), metrics(folder)
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]]
    for one, other in zip(*rows, strict=True):
        assert other["worst"] == pytest.approx(one["worst"], rel=1e-3)


def test_weights_divided_over_processes_learn_what_whole_ones_learn(runs, tmp_path):
    """FSDP2, stopped and gone on with; then with whole weights on one process, for states hold whole tensors."""
    orders = {"noise": 0.0, "seconds": 0.01, "num_processes": 2}
    runs.complete(tmp_path / "whole", **orders)
    folder = tmp_path / "divided"
    for number in range(2):
        pids = runs.start(folder, **orders, loop={"strategy": "fsdp"})
        wait_until(lambda number=number: (saved_steps(folder) or [0])[-1] > 12 * number)
        os.kill(pids[1], signal.SIGTERM)
        assert set(runs.statuses()) == {130}, output(folder)
    runs.complete(folder, noise=0.0)
    assert 0 < read_attempts(folder)[1]["step"] < read_attempts(folder)[2]["step"] < 40
    expected, found = last_state(tmp_path / "whole"), last_state(folder)
    assert expected.keys() == found.keys()
    for name in expected:
        if name != "random" and not name.startswith("unlogged."):
            assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5), name
