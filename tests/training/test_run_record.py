"""What a run folder tells of a run, and which runs Slurm may not start again."""

import hashlib
import json
import os
import signal
import sys
import threading
import time
import warnings

import pytest
import torch

from armillary.cli import main
from armillary.training import early_signals
from armillary.training.run_record import RunError, RunRecord, read_attempts, read_status
from armillary.training.signals import Interrupted
from armillary.training.thread_stacks import stacks_at_signal

from .test_loop import Regression, interrupt, run


@pytest.fixture
def job(monkeypatch, tmp_path):
    """As if within a Slurm job; what `scontrol` is asked stands in the file that this returns."""
    asked = tmp_path / "asked"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # Lightning then leaves the job alone
    return asked


def test_a_run_folder_tells_what_was_run_and_how_it_ended(tmp_path):
    run(tmp_path)
    status = read_status(tmp_path)
    assert (status["stage"], status["state"], status["step"], status["steps"]) == ("test", "finished", 20, 20)
    (attempt,) = read_attempts(tmp_path)
    assert attempt["step"] == 0
    assert attempt["slurm"] == {}
    assert attempt["versions"]["torch"] == torch.__version__
    assert attempt["command"] == sys.argv
    log = (tmp_path / "logs" / "process-00000.log").read_text()
    assert f"pid {os.getpid()}" in log
    assert "saved" in log
    assert "step-00000020" in log


@pytest.mark.parametrize("number, state", [(signal.SIGTERM, "stopped"), (signal.SIGUSR1, "requeued")])
def test_a_job_that_is_signalled_saves_and_asks_slurm_for_its_requeue_only_at_usr1(tmp_path, job, number, state):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(folder, Regression(interrupt(number, 6)))
    assert read_status(folder)["state"] == state
    assert read_status(folder)["step"] == 7
    asked = job.read_text().split() if job.exists() else []
    assert asked == (["requeue", "77"] if state == "requeued" else [])
    run(folder)
    assert [attempt["step"] for attempt in read_attempts(folder)] == [0, 7]
    assert read_attempts(folder)[0]["slurm"]["SLURM_JOB_ID"] == "77"
    assert read_status(folder)["state"] == "finished"


def test_a_task_of_an_array_asks_for_itself_alone(tmp_path, job, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(Interrupted):
        run(tmp_path / "run", Regression(interrupt(signal.SIGUSR1, 6)))
    assert job.read_text().split() == ["requeue", "77_3"]


def test_a_requeue_that_slurm_refuses_is_an_error_that_says_what_to_do(tmp_path, job):
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is disabled' >&2\nexit 1\n")
    with pytest.raises(RunError, match=r"saved at step 7, but Slurm .* operation is disabled. Submit the same command"):
        run(tmp_path / "run", Regression(interrupt(signal.SIGUSR1, 6)))
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("stopped", 7)
    assert "operation is disabled" in status["message"]


def test_a_signal_that_comes_while_a_job_starts_is_heeded_after_its_first_step(tmp_path, job):
    before = signal.getsignal(signal.SIGUSR1)
    try:
        assert main(["modalities"]) == 0  # any command: it listens within a job
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Interrupted):
            run(tmp_path / "run")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not early_signals.take()
    assert read_status(tmp_path / "run")["step"] == 1
    assert job.read_text().split() == ["requeue", "77"]


def test_a_running_process_says_what_it_does_when_asked(tmp_path):
    log = tmp_path / "logs" / "process-00000.log"

    def ask(step):
        if step != 5:
            return
        before = log.read_text()
        signal.raise_signal(signal.SIGUSR2)
        # As a run that hangs: in one call, which reads and writes nothing.
        deadline = time.monotonic() + 60
        while "Thread MainThread" not in log.read_text()[len(before) :] and time.monotonic() < deadline:
            time.sleep(0.05)

    run(tmp_path, Regression(ask))
    told = log.read_text()
    assert "Thread MainThread (most recent call last):" in told
    assert ", in ask\n" in told
    assert "Thread armillary-watchdog" in told
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_process_whose_main_thread_waits_in_a_library_says_so(tmp_path):
    """The interpreter runs no handler until the call returns."""
    path = tmp_path / "log"
    with path.open("w") as file, stacks_at_signal(file):
        asking = threading.Thread(target=lambda: [time.sleep(0.1), os.kill(os.getpid(), signal.SIGUSR2)])
        asking.start()
        deadline = time.monotonic() + 60
        while not path.read_text() and time.monotonic() < deadline:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
        asking.join()
        for _ in range(100):
            signal.raise_signal(signal.SIGUSR2)
    assert 'hashlib.pbkdf2_hmac("sha256"' in path.read_text()


class BrokenError(RuntimeError):
    pass


def breaking(at):
    def at_step(step):
        if step == at:
            raise BrokenError

    return at_step


def test_a_job_that_is_started_again_and_again_and_gets_nowhere_ends_itself(tmp_path, job, monkeypatch):
    folder = tmp_path / "run"
    for count in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        with pytest.raises(BrokenError):
            run(folder, Regression(breaking(8)))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(BrokenError):  # twice from step 5 were not enough: the first was from step 0
        run(folder, Regression(breaking(8)))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    with pytest.raises(RunError, match=r"Slurm has started job 77 4 times from step 5, and none got further"):
        run(folder, Regression(breaking(8)))
    assert read_status(folder)["state"] == "failed"
    monkeypatch.setenv("SLURM_JOB_ID", "78")  # submitted anew
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    run(folder)
    assert read_status(folder)["state"] == "finished"


def test_a_failure_stands_in_status_and_log(tmp_path):
    with pytest.raises(BrokenError):
        run(tmp_path, Regression(breaking(3)))
    status = read_status(tmp_path)
    assert (status["state"], status["step"]) == ("failed", 3)
    assert "BrokenError" in status["message"]
    assert "Traceback" in (tmp_path / "logs" / "process-00000.log").read_text()


def test_two_runs_cannot_share_a_folder(tmp_path):
    with RunRecord(tmp_path, "first", 10), pytest.raises(RunError, match=f"another process.*pid {os.getpid()}"):
        run(tmp_path)
    run(tmp_path)


def test_states_are_saved_in_time_and_the_best_is_kept(tmp_path):
    run(tmp_path / "timely", checkpoint_every=1000, checkpoint_minutes=1e-9, keep_checkpoints=100)
    assert len(list((tmp_path / "timely" / "states").iterdir())) == 20

    class Rising(Regression):
        def forward(self, batch):
            loss, count, metrics = super().forward(batch)
            return loss + 100.0 * self.seen[-1] * count, count, metrics

    run(tmp_path / "rising", Rising(), log_every=1, spike_factor=None)
    losses = {
        int(path.parent.name[5:]): json.loads(path.read_text())["loss"]
        for path in (tmp_path / "rising" / "states").glob("*/state.json")
    }
    assert sorted(losses) == [5, 15, 20]
    assert min(losses, key=losses.get) == 5


def test_weights_are_divided_only_where_they_are_gathered_in_the_end(tmp_path):
    with pytest.raises(ValueError, match="fsdp is for pretraining alone"):
        run(tmp_path, strategy="fsdp")


def test_a_torn_row_of_the_log_does_not_stop_a_run(tmp_path):
    with pytest.raises(Interrupted), warnings.catch_warnings():
        run(tmp_path, Regression(interrupt(signal.SIGTERM, 9)))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("12.0,0.1e-")
    run(tmp_path)
    assert read_status(tmp_path)["state"] == "finished"
