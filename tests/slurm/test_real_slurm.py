"""Runs on a real Slurm of two nodes: preempted, requeued, cancelled, killed, and each ends as one left in peace."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import armillary
from armillary.data.token_manifest import MANIFEST
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.training.metrics_log import SPEED
from armillary.training.run_record import read_metrics, saved_steps
from armillary.training.tokenize import TokenizeSettings, tokenize

pytestmark = pytest.mark.slurm

TEMPLATE = Path(armillary.__file__).parent / "slurm" / "pretrain.sbatch"
STEPS = 240
EARLY, LATE = 30, 80
"""Steps at which runs are disturbed: they have saved at least once, and are far from the end."""


@pytest.fixture(scope="module")
def words(pretrain_words):
    return [*pretrain_words, f"loop.steps={STEPS}", "loop.checkpoint_every=25", "loop.log_every=5"]


@pytest.fixture(scope="module")
def submit(cluster, words):
    """Submits a pretraining as a user does; returns the job's number."""

    def submit(run, *more):
        resources = ("--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1")
        told = cluster.run("armillary", "submit", "pretrain", *words, f"run={run}", *resources, *more)
        return re.search(r"^job: +(\d+)$", told, re.MULTILINE)[1]

    return submit


@pytest.fixture(scope="module")
def sbatch(cluster, words):
    """Submits a pretraining by Slurm's own command, with the script that we ship."""

    def submit(run, *more):
        run.mkdir(exist_ok=True)
        options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={run / 'job.log'}")
        options = (*options, *(word for word in more if word.startswith("--")))
        overrides = (word for word in more if not word.startswith("--"))
        return cluster.run("sbatch", "--parsable", *options, TEMPLATE, *words, f"run={run}", *overrides)

    return submit


@pytest.fixture(scope="module")
def status(cluster):
    """What `armillary status` says of a run."""
    return lambda run: json.loads(cluster.run("armillary", "status", run, "--json"))


@pytest.fixture(scope="module")
def whole(cluster, submit, tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    job = submit(run)
    assert cluster.wait(job) == "COMPLETED", told(run)
    return run


def told(run):
    """All that the jobs and processes of a run have said."""
    return "\n".join(path.read_text() for path in sorted(run.rglob("*.log")))


def attempts(run):
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


def reached(run):
    """The last step in the log of a run."""
    rows = read_metrics(run / "metrics.csv")
    return rows[-1]["step"] if rows else 0


def wait_for_step(cluster, job, run, step):
    """Wait until a run has logged a step, and is not yet at its end."""
    cluster.until(lambda: reached(run) >= step or cluster.state(job) == "FAILED", f"step {step} of {run}", 120)
    assert cluster.state(job) == "RUNNING", told(run)
    assert reached(run) < STEPS


def wait_for_requeue(cluster, job, number):
    """Wait until Slurm has taken a job back into its queue for the `number`th time."""
    cluster.until(lambda: cluster.job(job).get("Restarts") == str(number), f"restart {number} of job {job}")
    assert cluster.wait(job, "PENDING") == "PENDING"


def wait_for_end(cluster, job, state):
    """Wait until a job has this state, and none of its processes is left."""
    assert cluster.wait(job) == state
    cluster.until(lambda: not cluster.processes(SLURM_JOB_ID=job), f"the end of the processes of job {job}")


def same_as(whole, run):
    """Last states (weights, optimiser, random numbers) and metrics are equal bit for bit."""
    expected, found = (load_file(r / "states" / f"step-{STEPS:08d}" / "state.safetensors") for r in (whole, run))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    rows = [
        [{k: v for k, v in row.items() if k not in SPEED} for row in read_metrics(r / "metrics.csv")]
        for r in (whole, run)
    ]
    assert rows[0] == rows[1]
    return True


def test_a_submitted_run_preempted_twice_ends_as_one_left_in_peace_and_status_tells_the_truth(
    cluster, submit, status, whole, tmp_path
):
    run = tmp_path / "run"
    job = submit(run)
    assert status(run)["state"] in ("waiting", "starting")
    for number, step in enumerate((EARLY, LATE), start=1):
        wait_for_step(cluster, job, run, step)
        found = status(run)
        assert (found["state"], found["stage"], found["steps"]) == ("running", "pretrain", STEPS)
        assert found["step"] >= step
        assert (found["job"]["job"], found["job"]["state"]) == (job, "RUNNING")
        cluster.run("scancel", "--signal=USR1", job)
        wait_for_requeue(cluster, job, number)
        found = status(run)
        assert (found["state"], found["job"]["state"]) == ("waiting", "PENDING")
        assert step <= found["step"] == saved_steps(run)[-1]
    assert cluster.wait(job) == "COMPLETED", told(run)
    found = status(run)
    assert (found["state"], found["step"], found["attempts"], found["restarts"]) == ("finished", STEPS, 3, 2)
    assert found["loss"] == read_metrics(run / "metrics.csv")[-1]["loss"]
    assert same_as(whole, run)


def test_an_urgent_job_takes_the_nodes_and_the_run_comes_back(cluster, sbatch, status, whole, tmp_path):
    """Submitted by plain sbatch: the scripts need no command of ours."""
    run = tmp_path / "run"
    job = sbatch(run)
    wait_for_step(cluster, job, run, EARLY)
    options = ("--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path / 'urgent.log'}")
    urgent = cluster.run("sbatch", "--parsable", *options, "--wrap", "sleep 5")
    assert cluster.wait(urgent, "RUNNING") == "RUNNING"
    assert status(run)["state"] == "waiting"
    assert cluster.wait(urgent) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", told(run)
    assert len(attempts(run)) == 2
    assert attempts(run)[1]["step"] >= EARLY
    assert same_as(whole, run)


def test_a_cancelled_run_has_saved_and_the_same_command_goes_on(cluster, sbatch, status, whole, tmp_path):
    run = tmp_path / "run"
    job = sbatch(run)
    wait_for_step(cluster, job, run, EARLY)
    cluster.run("scancel", job)
    wait_for_end(cluster, job, "CANCELLED")
    found = status(run)
    assert found["state"] == "stopped"
    assert EARLY <= found["step"] == saved_steps(run)[-1] < STEPS
    assert cluster.wait(sbatch(run)) == "COMPLETED", told(run)
    assert [attempt["step"] for attempt in attempts(run)] == [0, found["step"]]
    assert same_as(whole, run)


def test_a_killed_process_ends_the_job_and_its_last_state_is_gone_on_from(cluster, sbatch, status, whole, tmp_path):
    run = tmp_path / "run"
    job = sbatch(run)
    wait_for_step(cluster, job, run, EARLY)
    tasks = cluster.processes(SLURM_JOB_ID=job, SLURM_PROCID="1")
    assert tasks
    for task in tasks:
        os.kill(task, signal.SIGKILL)
    wait_for_end(cluster, job, "FAILED")
    last = saved_steps(run)[-1]
    assert 25 <= last < STEPS
    found = status(run)
    assert found["state"] in ("failed", "died")
    assert f"goes on from step {last}" in found["message"]
    assert cluster.wait(sbatch(run)) == "COMPLETED", told(run)
    assert [attempt["step"] for attempt in attempts(run)] == [0, last]
    assert same_as(whole, run)


def test_a_signal_while_torch_is_still_imported_is_not_lost_and_kills_nothing(cluster, sbatch, tmp_path):
    run = tmp_path / "run"
    job = sbatch(run, "loop.steps=10")

    def listens():
        """Python, which ignored the signal as its shell did, has a handler for it, and not yet the loop's."""
        tasks = cluster.processes(SLURM_JOB_ID=job, SLURM_PROCID="0")
        return any(is_python(task) and handles(task, signal.SIGUSR1) for task in tasks)

    cluster.until(listens, "the first process of the job")
    assert not (run / "attempts.jsonl").exists()
    cluster.run("scancel", "--signal=USR1", job)
    wait_for_requeue(cluster, job, 1)
    assert cluster.wait(job) == "COMPLETED", told(run)
    assert [attempt["step"] for attempt in attempts(run)] == [0, 1]


def is_python(process):
    try:
        return b"python" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False  # it has ended


def handles(process, number):
    """Whether a process has a handler for a signal."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    return bool(int(re.search(r"^SigCgt:\s+(\w+)$", text, re.MULTILINE)[1], 16) >> (number - 1) & 1)


def test_slurms_own_signal_before_the_time_limit_requeues_a_run(cluster, sbatch, tmp_path):
    """The least limit is a minute, and Slurm looks twice in one: it signals 20 to 50 seconds before the end."""
    run = tmp_path / "run"
    job = sbatch(run, "--time=1", "--signal=USR1@20", "loop.steps=100000")
    cluster.until(lambda: cluster.job(job).get("Restarts") == "1", f"restart of job {job}", 100)
    assert cluster.wait(job, "PENDING") == "PENDING"
    assert json.loads((run / "status.json").read_text())["state"] == "requeued"
    assert saved_steps(run), told(run)
    cluster.run("scancel", job)


@pytest.fixture(scope="module")
def chain(cluster, data, tmp_path_factory):
    """Working folder of a chain of jobs from a dataset to an index, and the number of each stage's job."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "runs").mkdir()
    (folder / "runs" / "instruments").symlink_to(data)
    table = cluster.run("armillary", "submit", "chain", Path(__file__).with_name("tiny_chain.yaml"), folder=folder)
    return folder, dict(re.findall(r"^ *(\S+) +(\d+) ", table, re.MULTILINE))


def test_a_chain_of_jobs_leads_from_a_dataset_to_an_index(cluster, chain):
    folder, jobs = chain
    assert list(jobs) == ["train-tokenizer", "tokenize", "pretrain", "align", "embed", "index"]
    assert cluster.wait(jobs["index"], seconds=300) == "COMPLETED", told(folder)
    assert {stage: cluster.state(job) for stage, job in jobs.items()} == dict.fromkeys(jobs, "COMPLETED")
    index = EmbeddingIndex.load(folder / "runs" / "index")
    assert set(index.modalities) == {"image/legacysurvey", "spectrum/desi"}
    assert len(index) == 20 + 20


def test_an_array_of_jobs_makes_the_tokens_that_one_process_makes(chain, data, tmp_path):
    """After the chain, whose second stage the array is."""
    runs = chain[0] / "runs"
    assert len(list((runs / "slurm").glob("armillary-tokenize-*-[01].log"))) == 2
    settings = {"data": str(data), "tokenizers": str(runs / "tokenizers"), "tokens": str(tmp_path / "tokens")}
    tokenize(TokenizeSettings(**settings, shard_size=10, batch_size=7))
    expected, found = files(tmp_path / "tokens"), files(runs / "tokens")
    assert len(expected) > 9
    assert found == expected


def test_a_task_that_is_signalled_before_its_limit_is_started_again_and_goes_on(
    cluster, data, tokenizer_folder, tokens, tmp_path
):
    """As Slurm signals the shell of a task a minute before its time limit; the other task is left alone."""
    words = ["tokenize.yaml", f"data={data}", f"tokenizers={tokenizer_folder}", f"tokens={tmp_path / 'tokens'}"]
    options = ("--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/%a.log")
    script = TEMPLATE.with_name("tokenize.sbatch")
    job = cluster.run("sbatch", "--parsable", *options, script, *words, "shard_size=10", "batch_size=7")
    other, task = f"{job}_0", f"{job}_1"

    def is_at_work():
        return any(is_python(process) for process in cluster.processes(SLURM_ARRAY_TASK_ID="1"))

    cluster.until(is_at_work, "the second task")
    cluster.run("scancel", "--batch", "--signal=USR1", task)
    cluster.until(lambda: cluster.job(task).get("Restarts") == "1", f"restart of task {task}")
    assert (cluster.wait(task), cluster.wait(other)) == ("COMPLETED", "COMPLETED"), told(tmp_path)
    assert cluster.job(other)["Restarts"] == "0"
    assert files(tmp_path / "tokens") == files(tokens)


def files(store):
    """All files of a token store by their path; of the manifest only that it is there, for it tells the time."""
    paths = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {name: None if path.name == MANIFEST else path.read_bytes() for name, path in paths.items()}
