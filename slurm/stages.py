"""The stages that Slurm runs: their settings, checked on the login node, and where each writes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import Settings, SettingsError, find_config, load_settings
from .cluster_profile import ClusterProfile
from .job_script import Resources, array_tasks, template_option

TRAINING = ("train-tokenizer", "pretrain", "align")
"""Stages with a run folder, whose processes train together."""
DIVIDED = ("tokenize", "embed")
"""Stages whose shards are divided among the tasks of an array."""
STAGES = (*TRAINING, *DIVIDED, "index")


@dataclass(frozen=True)
class CheckedStage:
    """A stage whose settings are known to be good."""

    stage: str
    settings: tuple[Settings, ...]
    """One; of several tokenizers, one for each task of the array; of `index` none."""
    words: tuple[str, ...]
    """Arguments of `index`."""
    resources: Resources
    """With what follows from the settings and the cluster filled in."""
    folder: Path
    """Where the script and Slurm's logs are kept."""
    runs: tuple[Path, ...]
    """Run folders, one for each of the settings; none for stages without."""

    @property
    def is_array(self) -> bool:
        """Whether the job is an array."""
        return self.resources.array is not None


def settings_type(stage: str) -> type[Settings]:
    """The settings of a stage. It imports torch, which takes seconds."""
    if stage == "train-tokenizer":
        from ..training.tokenizers import TrainTokenizerSettings

        return TrainTokenizerSettings
    if stage == "pretrain":
        from ..training.pretrain import PretrainSettings

        return PretrainSettings
    if stage == "align":
        from ..training.align import AlignSettings

        return AlignSettings
    if stage == "tokenize":
        from ..training.tokenize import TokenizeSettings

        return TokenizeSettings
    from ..training.embed import EmbedSettings

    return EmbedSettings


def check_stage(
    stage: str,
    words: Sequence[str],
    resources: Resources,
    cluster: ClusterProfile,
    check_index: Callable[[Sequence[str]], object],
) -> CheckedStage:
    """Check all that can be known before a job waits in the queue. `check_index` judges the words of `index`.

    Raises SettingsError.
    """
    if stage not in STAGES:
        raise SettingsError(f"no stage {stage!r}; there are {', '.join(STAGES)}")
    if stage == "index":
        return _check_index(words, resources, check_index)
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise SettingsError(f"submit {stage}: unknown option {flags[0]!r}; `armillary submit --help` lists them")
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    configs = [word for word in words if word not in overrides]
    if not configs:
        raise SettingsError(f"submit {stage}: expected a settings file, such as {_EXAMPLES[stage]}; found none")
    if len(configs) > 1 and stage != "train-tokenizer":
        raise SettingsError(f"submit {stage}: expected one settings file, found {configs}; overrides have a `=`")
    if stage in TRAINING:
        return _check_training(stage, configs, overrides, resources, cluster)
    _refuse_training_options(stage, resources)
    return _check_divided(stage, configs[0], overrides, resources)


_EXAMPLES = {
    "train-tokenizer": "tokenizers/image.yaml",
    "tokenize": "tokenize.yaml",
    "pretrain": "pretrain/base.yaml",
    "align": "align/default.yaml",
    "embed": "embed/default.yaml",
}


def _check_training(
    stage: str, configs: Sequence[str], overrides: Sequence[str], resources: Resources, cluster: ClusterProfile
) -> CheckedStage:
    gpus, tasks = resources.gpus_per_node, resources.tasks_per_node
    if gpus and tasks and gpus != tasks:
        raise SettingsError(f"submit {stage}: each GPU has one process; found {gpus} GPUs and {tasks} tasks on a node")
    if gpus is None and cluster.gpus_per_node:
        # A tokenizer is small: one GPU unless more are asked for.
        gpus = tasks or (1 if stage == "train-tokenizer" else cluster.gpus_per_node)
    num_nodes, devices = resources.nodes or 1, gpus or tasks or 1
    overrides = [*overrides, f"loop.num_nodes={num_nodes}", f"loop.devices={devices}"]
    if resources.stage_tokens:
        if stage == "train-tokenizer":
            raise SettingsError("submit train-tokenizer: has no tokens to stage; --stage-tokens is for pretrain, align")
        overrides.append(f"stage_tokens={resources.stage_tokens}")
    model = settings_type(stage)
    settings: tuple[Any, ...] = tuple(load_settings(model, find_config(config), overrides) for config in configs)
    for config, one in zip(configs, settings, strict=True):
        num_processes = num_nodes * devices
        if getattr(one, "kind", None) in ("scalar", "coefficients"):
            if num_processes > 1:
                raise SettingsError(f"{config}: a {one.kind} tokenizer is fitted by one process; found {num_processes}")
        elif one.loop.batch_size % num_processes:
            raise SettingsError(
                f"{config}: loop.batch_size {one.loop.batch_size} must be a multiple of the {num_processes} processes "
                f"({num_nodes} nodes x {devices})"
            )
    runs = tuple(Path(one.run).absolute() for one in settings)
    if len(set(runs)) < len(runs):
        raise SettingsError(f"submit {stage}: settings files must have runs of their own; found {list(map(str, runs))}")
    array = _array_over(len(configs), resources.array)
    updated = resources.model_copy(update={"gpus_per_node": gpus, "tasks_per_node": devices, "array": array})
    folder = runs[0] if len(runs) == 1 else Path(os.path.commonpath(runs))
    return CheckedStage(stage, settings, (), updated, folder / "slurm", runs)


def _array_over(num_configs: int, array: str | int | None) -> str | None:
    """The array that has a task for each settings file; None for one file."""
    if array is None:
        return None if num_configs == 1 else f"0-{num_configs - 1}"
    if array_tasks(array)[-1] >= num_configs:
        raise SettingsError(f"array {array}: expected tasks from 0 to {num_configs - 1}, one for each settings file")
    return str(array)


def _check_divided(stage: str, config: str, overrides: Sequence[str], resources: Resources) -> CheckedStage:
    settings: Any = load_settings(settings_type(stage), find_config(config), overrides)
    array = str(resources.array if resources.array is not None else template_option(stage, "array"))
    tasks = array_tasks(array)
    if settings.part is not None:
        raise SettingsError(f"submit {stage}: leave part to the array; found part={settings.part}")
    if settings.num_parts is None:
        if tasks != list(range(len(tasks))):
            raise SettingsError(
                f"array {array}: its tasks are not 0 to {len(tasks) - 1}: say num_parts=, of how many parts these are"
            )
        # Said outright, for a task that is requeued alone must not think itself the whole array.
        settings = settings.model_copy(update={"num_parts": len(tasks)})
    if tasks[-1] >= settings.num_parts:
        raise SettingsError(f"array {array}: tasks must lie in [0, {settings.num_parts - 1}], for num_parts is that")
    gpus = resources.gpus_per_node
    if gpus is None and settings.device.startswith("cuda"):
        gpus = 1
    updated = resources.model_copy(update={"array": array, "gpus_per_node": gpus})
    output = Path(settings.tokens if stage == "tokenize" else settings.embeddings).absolute()
    return CheckedStage(stage, (settings,), (), updated, output.parent / "slurm", ())


def _check_index(
    words: Sequence[str], resources: Resources, check_index: Callable[[Sequence[str]], object]
) -> CheckedStage:
    _refuse_training_options("index", resources)
    if resources.array is not None:
        raise SettingsError("submit index: is one process, and no array")
    words = [word for word in words if word != "--"]
    if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
        raise SettingsError(
            "submit index: expected EMBEDDINGS INDEX first, then the flags of `armillary index`; "
            f"found {' '.join(words) or 'nothing'}"
        )
    check_index(words)
    return CheckedStage("index", (), tuple(words), resources, Path(words[1]).absolute().parent / "slurm", ())


def _refuse_training_options(stage: str, resources: Resources) -> None:
    given: Mapping[str, object] = {
        "--nodes": resources.nodes is not None and resources.nodes > 1,
        "--tasks-per-node": resources.tasks_per_node is not None and resources.tasks_per_node > 1,
        "--preflight": resources.preflight,
        "--stage-tokens": resources.stage_tokens,
    }
    for name, is_given in given.items():
        if is_given:
            raise SettingsError(f"submit {stage}: {name} is for stages that train together; use --array to divide work")
