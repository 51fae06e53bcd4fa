"""What `armillary submit` does and says, for one stage and for a chain."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..settings import SettingsError, validate_settings
from .chain import read_chain, submit_chain
from .cluster_profile import ClusterProfile
from .job_script import Resources
from .run_tables import short, show_chain
from .submit import PreparedJob, prepare, submit

CheckIndex = Callable[[Sequence[str]], object]
"""Judges the words of `index`."""


def launch_stage(
    stage: str,
    words: Sequence[str],
    asked: Mapping[str, Any],
    cluster: ClusterProfile,
    check_index: CheckIndex,
    dry_run: bool,
) -> None:
    """Submit one stage, and say where it is; a dry run shows its script. Raises SettingsError, SubmitError."""
    resources = validate_settings(Resources, asked, "command line")
    job = prepare(stage, words, resources, cluster, check_index)
    if dry_run:
        _show_script(job)
        return
    number = submit(job)
    print(f"job:    {number}")  # noqa: T201
    print(f"script: {short(job.script)}")  # noqa: T201
    print(f"log:    {short(job.logs_of(number))}")  # noqa: T201
    for run in job.checked.runs:
        print(f"watch:  armillary status {short(run)}")  # noqa: T201


def launch_chain(
    words: Sequence[str],
    asked: Mapping[str, Any],
    cluster: ClusterProfile,
    check_index: CheckIndex,
    first: str | None,
    dry_run: bool,
) -> None:
    """Submit a chain, and show its jobs as a table; a dry run shows its scripts. Raises SettingsError, SubmitError."""
    if asked:
        name = next(iter(asked)).replace("_", "-")
        raise SettingsError(f"submit chain: --{name}: resources stand in the chain's file, or in the cluster profile")
    if len(words) != 1:
        raise SettingsError(f"submit chain: expected one chain file, such as chains/whole.yaml; found {list(words)}")
    links = submit_chain(read_chain(words[0], cluster, check_index, first), cluster, dry_run)
    if dry_run:
        for link in links:
            _show_script(link.job)
            print()  # noqa: T201
    show_chain(links)


def _show_script(job: PreparedJob) -> None:
    files = "".join(f", with its settings in {short(path)}" for path in list(job.settings)[:1])
    print(f"dry run: this script would be written to {short(job.script)}{files}, and submitted", file=sys.stderr)  # noqa: T201
    print(job.text, end="")  # noqa: T201
