"""What a site wants in every job script: one YAML file for each cluster, named on the command line by `--cluster`."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from ..settings import Settings, SettingsError, find_config, load_settings

VARIABLE = "ARMILLARY_CLUSTER"
"""Environment variable with the profile to take where `--cluster` is not given."""


class ClusterProfile(Settings):
    """A site's settings; all may be left out."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    gpus_per_node: NonNegativeInt | None = None
    """GPUs of a node, which pretraining and alignment ask for; stages of one process ask for one of them, or none."""
    cpus_per_task: PositiveInt | None = None
    """CPU cores of one process: those of a node, divided by its GPUs."""
    sbatch_options: tuple[str, ...] = ()
    """More of sbatch's options, such as `--constraint=a100`."""
    modules: tuple[str, ...] = ()
    """Each is given to `module load`, in this order."""
    setup: tuple[str, ...] = ()
    """Lines of bash that come after the modules."""
    python_environment: str | None = None
    """Folder of the virtual environment to activate; by default that in which `armillary submit` runs."""
    container: str | None = None
    """What comes before `armillary` on the command line to run it in a container; words are split at spaces alone."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the job; `$NAME` in a value is replaced in the job."""

    @field_validator("container")
    @classmethod
    def _no_quotes(cls, value: str | None) -> str | None:
        if value is not None and any(quote in value for quote in "\"'"):
            raise ValueError("expected words without quotes, for they are split at spaces alone")
        return value

    @field_validator("environment", mode="before")
    @classmethod
    def _numbers_are_text(cls, values: Any) -> Any:
        """`NCCL_IB_TIMEOUT: 22` is as good as `"22"`."""
        if not isinstance(values, dict):
            return values
        return {k: str(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in values.items()}


def load_cluster(name: str | None) -> ClusterProfile:
    """The profile of that name in configs/clusters, or at that path; by default $ARMILLARY_CLUSTER's, or an empty one.

    Raises SettingsError.
    """
    name = name or os.environ.get(VARIABLE)
    if not name:
        return ClusterProfile()
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    try:
        path = find_config(name if is_path else f"clusters/{name}.yaml")
    except SettingsError as error:
        raise SettingsError(f"--cluster {name}: {error}; give a path to your own profile (docs/cluster.md)") from None
    profile = load_settings(ClusterProfile, path)
    if profile.python_environment and not profile.container:
        activate = Path(profile.python_environment).expanduser() / "bin" / "activate"
        if not activate.is_file():
            raise SettingsError(f"{path}: python_environment: expected a virtual environment; there is no {activate}")
    return profile
