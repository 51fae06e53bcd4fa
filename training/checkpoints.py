"""States of a run: everything a loop needs to go on, as safetensors and JSON, written whole or not at all.

`<run>/states/step-00000100/` holds `state.safetensors` (weights, optimiser, random state of each process) and
`state.json` (step, optimiser groups, checksum). A torn or damaged state is passed over, with a warning, for the one
before it.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from ..tokenizers.pretrained import PretrainedError, read_tensors, write_folder
from .step_watch import StepWatch
from .weight_average import WeightAverage

STATES_FOLDER = "states"


@dataclass(eq=False)
class TrainingState:
    """What changes while training: the objective's trained weights, the optimiser, and metrics not logged yet."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    unlogged: dict[str, Tensor] = field(default_factory=dict)
    """Sum and count [2] of each metric since the last row of the log, over all processes."""
    average: WeightAverage | None = None
    watch: StepWatch | None = None


def save_state(fabric: Fabric, run_folder: Path, state: TrainingState, step: int, keep: int) -> None:
    """Save the state after `step` steps, and drop all but the newest `keep`. All processes call this."""
    random_states = fabric.all_gather(torch.get_rng_state())
    if fabric.is_global_zero:
        tensors = {f"module.{name}": tensor for name, tensor in state.module.state_dict().items()}
        content = state.optimizer.state_dict()
        for index, values in content["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        tensors.update({f"unlogged.{name}": value for name, value in state.unlogged.items()})
        if state.average is not None:
            tensors.update({f"average.{name}": weight for name, weight in state.average.weights.items()})
        if state.watch is not None:
            tensors["watch"] = state.watch.state
        tensors["random"] = random_states.reshape(fabric.world_size, -1)

        def write(place: Path) -> None:
            path = place / "state.safetensors"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
            description = {"step": step, "groups": content["param_groups"], "sha256": _sha256(path)}
            (place / "state.json").write_text(json.dumps(description), encoding="utf-8")

        write_folder(_folder(run_folder, step), write)
        for old in saved_steps(run_folder)[:-keep]:
            shutil.rmtree(_folder(run_folder, old), ignore_errors=True)
    fabric.barrier()


def saved_steps(run_folder: str | Path) -> list[int]:
    """Steps of the states in a run folder, oldest first; whether they are whole is seen on loading."""
    folders = (Path(run_folder) / STATES_FOLDER).glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def load_latest_state(run_folder: str | Path, state: TrainingState) -> int:
    """Load the newest whole state into `state`; returns its step, 0 if there is none.

    Warns of each damaged one it passes over. Raises PretrainedError if the state is of another model.
    """
    for step in reversed(saved_steps(run_folder)):
        folder = _folder(Path(run_folder), step)
        try:
            description, tensors = _read(folder)
        except PretrainedError as error:
            warnings.warn(f"{folder}: passed over, it is damaged: {error}", stacklevel=2)
            continue
        _fill(folder, description, tensors, state)
        return step
    return 0


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / "state.safetensors"
    try:
        description = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        found = _sha256(path)
    except (OSError, json.JSONDecodeError) as error:
        raise PretrainedError(f"{error}") from None
    if found != description.get("sha256"):
        raise PretrainedError(f"{path}: expected sha256 {description.get('sha256')}, found {found}")
    return description, read_tensors(path)


def _fill(folder: Path, description: dict[str, Any], tensors: dict[str, Tensor], state: TrainingState) -> None:
    weights = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    try:
        state.module.load_state_dict(weights)
    except RuntimeError as error:
        raise PretrainedError(
            f"{folder}: the state is of another model than the settings describe: {error}. Another run folder?"
        ) from None
    per_weight: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            per_weight.setdefault(int(index), {})[key] = tensor
    state.unlogged = {n.removeprefix("unlogged."): t for n, t in tensors.items() if n.startswith("unlogged.")}
    averages = {n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")}
    if state.average is not None:
        if averages.keys() != state.average.weights.keys():
            raise PretrainedError(f"{folder}: the state has no average of the weights that are trained now")
        for name, weight in state.average.weights.items():
            weight.copy_(averages[name])
    if state.watch is not None and "watch" in tensors:
        state.watch.restore(tensors["watch"])
    state.optimizer.load_state_dict({"state": per_weight, "param_groups": description["groups"]})
    rank = (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )
    if rank < len(tensors["random"]):
        torch.set_rng_state(tensors["random"][rank])


def _folder(run_folder: Path, step: int) -> Path:
    return run_folder / STATES_FOLDER / f"step-{step:08d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
