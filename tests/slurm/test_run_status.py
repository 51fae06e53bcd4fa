"""`armillary status` and `runs` tell the truth: what the folder says, unless Slurm or the machine knows better."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from armillary import cli
from armillary.slurm.job_queue import GONE, UNKNOWN, QueuedJob, ask_queue
from armillary.slurm.run_status import find_runs, run_status

NOW = datetime(2026, 1, 28, 12, tzinfo=UTC)


def ago(seconds):
    return (NOW - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def make_run(folder, state="running", age=30, job="7", message="", attempts=1, **slurm):
    """A run at step 60 of 100 that said its last word `age` seconds ago."""
    (folder / "states" / "step-00000050").mkdir(parents=True)
    (folder / "states" / ".step-00000060.tmp").mkdir()
    status = {"stage": "pretrain", "state": state, "step": 60, "steps": 100, "time": ago(age), "message": message}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "settings.yaml").write_text("loop: {batch_size: 8}\n")
    (folder / "metrics.csv").write_text("step,loss,examples_per_second,seconds\n40,3,2,10\n60,2.5,4,20\n80,")
    variables = {**({"SLURM_JOB_ID": job} if job else {}), **slurm}
    attempt = {
        "started": ago(900),
        "stage": "pretrain",
        "step": 0,
        "steps": 100,
        "slurm": variables,
        "git_commit": "abc",
    }
    (folder / "attempts.jsonl").write_text(f"{json.dumps(attempt)}\n" * attempts)
    return folder


def queue(state, **more):
    return lambda job: QueuedJob(job, state, **more)


def never(job):
    raise AssertionError("the queue was asked")


def test_a_run_that_goes_on_shows_step_speed_and_time_left(tmp_path):
    found = run_status(make_run(tmp_path, attempts=2), queue("RUNNING", time_left="1:00:00"), NOW)
    assert (found.state, found.step, found.steps, found.loss) == ("running", 60, 100, 2.5)
    assert found.examples_per_second == 3
    assert found.seconds_left == pytest.approx(40 * 8 / 3)
    assert (found.attempts, found.last_checkpoint, found.job.time_left) == (2, "step-00000050", "1:00:00")


@pytest.mark.parametrize(
    "state, age, queued, expected",
    [
        ("running", 30, "RUNNING", "running"),
        ("running", 90_000, "RUNNING", "running"),
        ("running", 30, "FAILED", "died"),
        ("running", 30, "NODE_FAIL", "died"),
        ("running", 3000, GONE, "died"),
        ("running", 5, GONE, "running"),
        ("running", 30, UNKNOWN, "running"),
        ("running", 90_000, UNKNOWN, "silent"),
        ("running", 30, "PENDING", "waiting"),
        ("requeued", 30, "PENDING", "waiting"),
        ("requeued", 30, "COMPLETING", "requeued"),
        ("requeued", 30, "RUNNING", "starting"),
        ("requeued", 3000, GONE, "stopped"),
        ("stopped", 30, "CANCELLED", "stopped"),
        ("failed", 30, "FAILED", "failed"),
        ("failed", 30, GONE, "failed"),
        ("finished", 3000, GONE, "finished"),
        ("finished", 3, "RUNNING", "finished"),
    ],
)
def test_folder_and_queue_together_give_the_state(state, age, queued, expected, tmp_path):
    found = run_status(make_run(tmp_path, state, age), queue(queued), NOW)
    assert found.state == expected
    assert (found.seconds_left is None) == (expected in ("died", "silent", "stopped", "failed", "finished"))


def test_of_a_run_that_was_killed_it_is_told_where_and_how_it_goes_on(tmp_path):
    found = run_status(make_run(tmp_path), queue("NODE_FAIL"), NOW)
    assert (
        found.message == "killed at or after step 60: job 7 ended as NODE_FAIL; the same command goes on from step 50"
    )


def test_a_run_that_was_killed_before_its_checkpoint_was_written_says_so(tmp_path):
    folder = make_run(tmp_path, "finished")
    assert "the same command writes it" in run_status(folder, queue("FAILED"), NOW).message
    (folder / "checkpoint").mkdir()
    assert run_status(folder, queue("COMPLETED"), NOW).message == ""


def test_why_a_run_failed_is_told(tmp_path):
    found = run_status(make_run(tmp_path, "failed", message="No space left on device"), queue(GONE), NOW)
    assert found.message.startswith("No space left on device; the same command goes on from step 50")


def test_why_a_job_waits_is_told(tmp_path):
    found = run_status(
        make_run(tmp_path, "requeued"), queue("PENDING", reason="Priority", start="2026-11-29T01:00"), NOW
    )
    assert found.message == "Priority: jobs of higher priority come first"
    assert found.job.start == "2026-11-29T01:00"


def test_a_task_of_an_array_is_asked_for_by_its_number_there(tmp_path):
    asked = []

    def ask(job):
        asked.append(job)
        return QueuedJob(job, "RUNNING")

    run_status(make_run(tmp_path, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2"), ask, NOW)
    assert asked == ["7_2"]


def test_without_slurm_a_process_of_this_machine_is_looked_for(tmp_path):
    run = make_run(tmp_path, job=None)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    for process, expected in ((os.getpid(), "running"), (int(gone.stdout), "died")):
        (run / "lock").write_text(f"{socket.gethostname()}, pid {process}, since {ago(900)}\n")
        assert run_status(run, never, NOW).state == expected
    (run / "lock").write_text(f"another-machine, pid {gone.stdout.strip()}, since {ago(900)}\n")
    assert run_status(run, never, NOW).state == "running"


def submitted(run, job, age, log="x.log"):
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    line = {"job": job, "stage": "pretrain", "submitted": ago(age), "script": "x", "log": log}
    (run / "slurm" / "jobs.jsonl").write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize("queued, expected", [("PENDING", "waiting"), ("RUNNING", "starting"), ("FAILED", "unstarted")])
def test_a_run_that_was_submitted_and_has_not_begun(queued, expected, tmp_path):
    submitted(tmp_path, "9", 60, "here.log")
    found = run_status(tmp_path, queue(queued), NOW)
    assert (found.state, found.stage, found.job.job, found.step) == (expected, "pretrain", "9", None)
    assert ("here.log" in found.message) == (expected == "unstarted")


def test_a_run_that_was_submitted_again_is_that_of_the_new_job(tmp_path):
    submitted(make_run(tmp_path, "failed", age=800), "9", 60)
    found = run_status(tmp_path, queue("PENDING"), NOW)
    assert (found.state, found.job.job, found.step) == ("waiting", "9", 60)


def test_an_attempt_after_the_submission_is_the_newer(tmp_path):
    submitted(make_run(tmp_path, job="12"), "9", 5000)
    assert run_status(tmp_path, queue("RUNNING"), NOW).job.job == "12"


def test_a_folder_that_is_of_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path / "no")]) == 2


def fake_squeue(tmp_path, monkeypatch, text):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/bash\n[[ $* == *--jobs=7* ]] || exit 3\n{text}\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("echo 'RUNNING|None|2026-11-28T09:00:00|9:45'", QueuedJob("7", "RUNNING", "", "2026-11-28T09:00:00", "9:45")),
        ("echo 'PENDING|Priority|N/A|20:00:00'", QueuedJob("7", "PENDING", "Priority", "", "20:00:00")),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", QueuedJob("7", GONE)),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", QueuedJob("7", UNKNOWN)),
        ("true", QueuedJob("7", GONE)),
    ],
)
def test_what_squeue_says_is_understood(text, expected, tmp_path, monkeypatch):
    fake_squeue(tmp_path, monkeypatch, text)
    assert ask_queue("7") == expected


def test_runs_are_listed_with_their_true_states(tmp_path, monkeypatch, capsys):
    fake_squeue(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    make_run(tmp_path / "runs" / "first")
    make_run(tmp_path / "runs" / "deep" / "second", "finished")
    (tmp_path / "runs" / "data").mkdir()
    assert [path.name for path in find_runs(tmp_path / "runs")] == ["second", "first"]
    assert cli.main(["runs", str(tmp_path / "runs")]) == 0
    lines = {line.split()[0].rpartition("/")[2]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"second", "first"} <= lines.keys()
    assert "died" in lines["first"]
    assert "60 of 100" in lines["first"]
    assert "finished" in lines["second"]
    assert cli.main(["status", str(tmp_path / "runs" / "first"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["step"], told["job"]["state"]) == ("died", 60, "GONE")
    assert cli.main(["status", str(tmp_path / "runs" / "first")]) == 0
    assert "killed at or after step 60" in capsys.readouterr().out
