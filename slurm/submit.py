"""`armillary submit`: a stage is checked, written as a job script beside its output, and given to Slurm."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..settings import to_yaml
from ..training.run_record import write_whole
from .cluster_profile import ClusterProfile
from .job_script import Resources, array_tasks, render, sbatch_options, template_option
from .stages import TRAINING, CheckedStage, check_stage

JOBS = "slurm/jobs.jsonl"
"""In a run folder: a line for each job that was submitted for it."""


class SubmitError(ValueError):
    """Slurm took no job; the message says what it said, and what to do."""


@dataclass(frozen=True)
class PreparedJob:
    """A job as it would be submitted."""

    checked: CheckedStage
    name: str
    script: Path
    text: str
    settings: dict[Path, str]
    """Files that the script reads, with their content: settings cannot change while the job waits."""
    log: str
    """Path of Slurm's log, with `%j`, `%A` and `%a` for numbers."""

    @property
    def stage(self) -> str:
        """Its stage."""
        return self.checked.stage

    def logs_of(self, job: str) -> str:
        """The log's path once the job's number is known; `*` stands for the tasks of an array."""
        return self.log.replace("%j", job).replace("%A", job).replace("%a", "*")


def prepare(
    stage: str,
    words: Sequence[str],
    resources: Resources,
    cluster: ClusterProfile,
    check_index: Callable[[Sequence[str]], object],
    options: dict[str, str | None] | None = None,
) -> PreparedJob:
    """Check a stage and write its script, in memory; `options` are more of sbatch's. Raises SettingsError."""
    return write_script(check_stage(stage, words, resources, cluster, check_index), cluster, options or {})


def write_script(checked: CheckedStage, cluster: ClusterProfile, options: dict[str, str | None]) -> PreparedJob:
    """The job of a stage that was checked."""
    stage, folder = checked.stage, checked.folder
    chosen = {**sbatch_options(checked.resources, cluster), **options}
    if stage == "index" or stage not in TRAINING:
        chosen.pop("ntasks-per-node", None)
    name = chosen.get("job-name") or template_option(stage, "job-name") or stage
    log = str(folder / f"{name}-{'%A-%a' if checked.is_array else '%j'}.log")
    escaped = str(folder).replace("%", "%%") + f"/%x-{'%A-%a' if checked.is_array else '%j'}.log"
    chosen.setdefault("output", escaped)
    stem = _free_name(folder, f"{stage}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    suffixes = [""] if len(checked.settings) == 1 else [f"-{number}" for number in range(len(checked.settings))]
    files = {
        folder / f"{stem}{suffix}.yaml": to_yaml(settings)
        for suffix, settings in zip(suffixes, checked.settings, strict=False)
    }
    environment = {"ARMILLARY_PREFLIGHT": str(checked.runs[0])} if checked.resources.preflight else {}
    words = list(checked.words) or [str(path) for path in files]
    text = render(stage, words, chosen, cluster, environment)
    return PreparedJob(checked, name, folder / f"{stem}.sbatch", text, files, log)


def submit(job: PreparedJob) -> str:
    """Write a job's files and give it to Slurm; returns its number. Raises SubmitError."""
    if shutil.which("sbatch") is None:
        raise SubmitError(
            "sbatch is not on PATH: run this on a login node of a Slurm cluster, or see the script with --dry-run"
        )
    for run in job.checked.runs:
        (run / JOBS).parent.mkdir(parents=True, exist_ok=True)
    job.script.parent.mkdir(parents=True, exist_ok=True)
    for path, content in {**job.settings, job.script: job.text}.items():
        write_whole(path, content)
    answer = subprocess.run(
        ["sbatch", "--parsable", str(job.script)], env=_environment(), capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise SubmitError(_explain(answer.stderr, job.script))
    number = answer.stdout.strip().splitlines()[-1].partition(";")[0]  # 1234, or 1234;cluster
    _remember(job, number)
    return number


def _environment() -> dict[str, str]:
    """Ours; within a job without the variables that describe that job, which would be taken for options of the new."""
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}


def _remember(job: PreparedJob, number: str) -> None:
    """Say in each run folder which job is its."""
    tasks = array_tasks(job.checked.resources.array) if job.checked.resources.array is not None else None
    for index, run in enumerate(job.checked.runs):
        if tasks is not None and index not in tasks:
            continue
        log = job.logs_of(number)
        line = {
            "job": number if tasks is None else f"{number}_{index}",
            "stage": job.stage,
            "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
            "script": str(job.script),
            "log": log if tasks is None else log.replace("*", str(index)),
        }
        with (run / JOBS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _free_name(folder: Path, name: str) -> str:
    """The name, with a number if a script of this second stands already."""
    names = [name, *(f"{name}-{number}" for number in range(2, 100))]
    return next(n for n in names if not (folder / f"{n}.sbatch").exists())


_ADVICE = {
    "invalid partition": "`sinfo -s` lists the partitions; give --partition, or set `partition` in the cluster profile",
    "invalid account": "`sacctmgr show assoc user=$USER` lists your accounts; give --account, or set `account` in the "
    "cluster profile",
    "invalid qos": "`sacctmgr show assoc user=$USER format=account,qos` lists what you may use; set `qos`",
    "time limit": "`sinfo -o '%P %l'` shows the longest time of each partition; give a shorter --time: the job is "
    "requeued and goes on",
    "memory specification": "give --sbatch-option mem=..., or set it in `sbatch_options` of the cluster profile",
    "node configuration is not available": "no node of the partition has that many GPUs or CPUs; "
    "`sinfo -o '%P %D %c %m %G'` shows what they have",
    "node count": "`sinfo -s` shows how many nodes the partitions have; give fewer --nodes",
    "generic resource": "`sinfo -o '%P %G'` shows the GPUs of each partition; for CPUs give --tasks-per-node",
    "dependency": "the job it waits for is unknown to Slurm, or has failed; `sacct -j JOB` tells",
    "contact slurm controller": "Slurm's controller does not answer; try again in a moment",
    "configuration file": "this machine does not know where Slurm's controller is; run this on a login node",
    "configuration source": "this machine does not know where Slurm's controller is; run this on a login node",
    "association": "a limit of your account is reached; `sacctmgr show assoc user=$USER` shows them",
}
"""What to do, by words of Slurm's message."""


def _explain(message: str, script: Path) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in message.splitlines()]
    said = "; ".join(line for line in lines if line) or "no reason"
    advice = [text for words, text in _ADVICE.items() if words in said.lower()]
    return f"sbatch: {said}. What to do: {advice[0] if advice else 'see the options in its script'} ({script})"
