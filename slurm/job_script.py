"""The text of a job script: a template of this folder, with options, the site's lines and arguments written into it.

The templates are whole scripts, which plain `sbatch` takes; what is written into one is what a person would.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, field_validator

from ..settings import PACKAGE_FOLDER, Settings, SettingsError
from .cluster_profile import ClusterProfile

TEMPLATES_FOLDER = PACKAGE_FOLDER / "slurm"
PLACE = "# (here `armillary submit` writes modules, environment and arguments)\n"


class Resources(Settings):
    """What a job asks Slurm for; what is None is the cluster profile's to say, or the template's."""

    nodes: PositiveInt | None = None
    gpus_per_node: NonNegativeInt | None = None
    """Each GPU has one process."""
    tasks_per_node: PositiveInt | None = None
    """Processes of a node, where there are no GPUs."""
    cpus_per_task: PositiveInt | None = None
    time: str | None = None
    """Limit, as Slurm writes it: `"20:00:00"`, `2-12` (days-hours), or `"90"` (minutes)."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    array: str | int | None = None
    """Tasks of a job array, such as `0-63` or `0-63%8` (eight at once)."""
    job_name: str | None = None
    dependency: str | None = None
    """As Slurm writes it: `afterok:1234`."""
    sbatch_options: tuple[str, ...] = ()
    """More of sbatch's options, such as `--constraint=a100`."""
    preflight: bool = False
    """Try the nodes before training starts (`armillary preflight`)."""
    stage_tokens: str | None = None
    """A folder on each node's own disk, to which token shards are copied first."""

    @field_validator("time", mode="before")
    @classmethod
    def _time_is_text(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError('expected the limit in quotes, such as "20:00:00": bare, YAML takes it for a number')
        return value


def sbatch_options(resources: Resources, cluster: ClusterProfile) -> dict[str, str | None]:
    """Options of sbatch by name, without dashes; None for those that take no value. A job's go before its cluster's."""
    named = {
        "job-name": resources.job_name,
        "nodes": resources.nodes,
        "gpus-per-node": resources.gpus_per_node or None,
        "ntasks-per-node": resources.tasks_per_node,
        "cpus-per-task": resources.cpus_per_task or cluster.cpus_per_task,
        "time": resources.time,
        "account": resources.account or cluster.account,
        "partition": resources.partition or cluster.partition,
        "qos": resources.qos or cluster.qos,
        "array": resources.array,
        "dependency": resources.dependency,
    }
    options: dict[str, str | None] = {name: str(value) for name, value in named.items() if value is not None}
    for option in (*cluster.sbatch_options, *resources.sbatch_options):
        name, separator, value = option.strip().removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise SettingsError(f"sbatch option {option!r}: expected --name=value or --name")
        options[name] = value if separator else None
    return options


def array_tasks(array: str | int) -> list[int]:
    """Numbers of the tasks of a job array. Raises SettingsError if it is not written as Slurm does."""
    tasks: set[int] = set()
    for part in str(array).partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if found is None:
            raise SettingsError(f"array {array!r}: expected numbers as in 0-63, 0-63%8 or 3,7; found {part!r}")
        first, last, step = found.groups()
        tasks.update(range(int(first), int(last or first) + 1, int(step or 1) or 1))
    if not tasks:
        raise SettingsError(f"array {array!r}: has no tasks; expected such as 0-63")
    return sorted(tasks)


def template_option(stage: str, name: str) -> str | None:
    """The value of an option in the template of a stage."""
    found = re.search(rf"^#SBATCH --{name}=(.*)$", _template(stage), re.MULTILINE)
    return found[1] if found else None


def render(
    stage: str,
    words: Sequence[str],
    options: Mapping[str, str | None],
    cluster: ClusterProfile,
    environment: Mapping[str, str],
) -> str:
    """The script of a job: `words` are its arguments, `environment` is exported beside the cluster's."""
    lines: list[str] = []
    for line in _template(stage).splitlines(keepends=True):
        if line.startswith("#SBATCH ") and _option_name(line) in options:
            continue
        if line == PLACE:
            lines = [*lines[:-1], *(_directive(*option) for option in options.items()), lines[-1]]
            line = _site_lines(cluster, environment) + "set -- " + shlex.join(words) + "\n"
        lines.append(line)
    return "".join(lines)


def _template(stage: str) -> str:
    return (TEMPLATES_FOLDER / f"{stage}.sbatch").read_text(encoding="utf-8")


def _option_name(line: str) -> str:
    return line.split()[1].removeprefix("--").partition("=")[0]


def _directive(name: str, value: str | None) -> str:
    if value is None:
        return f"#SBATCH --{name}\n"
    return f'#SBATCH --{name}="{value}"\n' if re.search(r"[\s#;'\"]", value) else f"#SBATCH --{name}={value}\n"


def _site_lines(cluster: ClusterProfile, environment: Mapping[str, str]) -> str:
    lines = []
    if cluster.modules:
        lines.append("type module > /dev/null 2>&1 || source /etc/profile || true  # which defines `module`")
        lines += [f"module load {module}" for module in cluster.modules]
    lines += cluster.setup
    if cluster.container:
        lines.append(f"export ARMILLARY={_quoted(f'{cluster.container} armillary')}")
    elif cluster.python_environment:
        lines.append(f"source {shlex.quote(str(Path(cluster.python_environment).expanduser() / 'bin' / 'activate'))}")
    elif command := os.environ.get("ARMILLARY"):
        lines.append(f"export ARMILLARY={_quoted(command)}")
    else:
        # The installation that submits is the one that runs, whether its environment is active or not.
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    lines += [f"export {name}={_quoted(value)}" for name, value in {**cluster.environment, **environment}.items()]
    return "".join(f"{line}\n" for line in lines)


def _quoted(value: str) -> str:
    """For bash, which still replaces `$NAME`."""
    return '"' + re.sub(r'([\\"`])', r"\\\1", value) + '"'
