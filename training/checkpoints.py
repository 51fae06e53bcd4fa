"""States of a run: everything a loop needs to go on, as safetensors and JSON, written whole or not at all.

`<run>/states/step-00000100/` holds `state.safetensors` (weights, optimiser, random state of each process) and
`state.json` (step, loss, optimiser groups, checksum). A thread writes it from a copy while training goes on, under
another name until it is whole. A torn or damaged state is passed over, with a warning, for the one before it.
"""

import contextlib
import hashlib
import json
import math
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from ..tokenizers.pretrained import PretrainedError, read_tensors, write_folder
from .best_weights import BestWeights
from .run_record import STATES_FOLDER, RunError, log, saved_steps, warn
from .sharding import divided_like, whole
from .step_watch import StepWatch
from .weight_average import WeightAverage


@dataclass(eq=False)
class TrainingState:
    """What changes while training: the objective's trained weights, the optimiser, and metrics not logged yet."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    unlogged: dict[str, Tensor] = field(default_factory=dict)
    """Sum and count of each metric since the last row of the log, in each process [P, 2]."""
    average: WeightAverage | None = None
    watch: StepWatch | None = None
    best: BestWeights | None = None


class StateWriter:
    """Saves states of a run, one at a time, and keeps the newest `keep` of them and the one of least loss.

    `error` is what stopped one of them, known to process 0 alone until `finish` raises it.
    """

    def __init__(self, fabric: Fabric, run_folder: Path, keep: int):
        self.fabric, self.run_folder, self.keep = fabric, run_folder, keep
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.last_saved = time.monotonic()
        """When the last save began, seconds."""
        if fabric.is_global_zero:
            for torn in (run_folder / STATES_FOLDER).glob(".step-*"):
                shutil.rmtree(torn, ignore_errors=True)  # what a killed process left

    def save(self, state: TrainingState, step: int, loss: float | None = None) -> None:
        """Copy the state after `step` steps, and begin to write it. All processes call this."""
        random_states = self.fabric.all_gather(torch.get_rng_state())
        self.last_saved = time.monotonic()
        self.close()
        groups, tensors = _collect(state)
        tensors["random"] = random_states.reshape(self.fabric.world_size, -1)
        copies = {}
        for name, tensor in tensors.items():
            tensor = whole(tensor.detach())
            if self.fabric.is_global_zero:
                copies[name] = tensor.to("cpu", copy=True).contiguous()
        if not self.fabric.is_global_zero:
            return
        description = {"step": step, "loss": loss, "groups": groups}
        self._thread = threading.Thread(target=self._write, args=(description, copies), name="armillary-state")
        self._thread.start()

    def finish(self) -> None:
        """Wait until what was saved is on disk; all processes call this. Raises RunError if it could not be written."""
        self.close()
        told = self.fabric.broadcast("" if self.error is None else self._explained(self.error))
        if told:
            raise RunError(told) from self.error

    def close(self) -> None:
        """Let what is being written come to its end."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        folder = _folder(self.run_folder, description["step"])

        def write(place: Path) -> None:
            path = place / "state.safetensors"
            save_file(tensors, path)
            content = {**description, "sha256": _sha256(path)}
            (place / "state.json").write_text(json.dumps(content), encoding="utf-8")

        try:
            write_folder(folder, write)
            for old in _superfluous(self.run_folder, self.keep):
                shutil.rmtree(_folder(self.run_folder, old), ignore_errors=True)
            log.info("saved %s", folder)
        except BaseException as error:
            log.exception("could not save %s", folder)
            self.error = error

    def _explained(self, error: BaseException) -> str:
        steps = saved_steps(self.run_folder)
        last = f"the last whole state is that of step {steps[-1]}" if steps else "no state was saved before"
        room = shutil.disk_usage(self.run_folder).free / 2**30
        return (
            f"{self.run_folder / STATES_FOLDER}: a state could not be written: {error}. {room:.1f} GiB are free there; "
            f"{last}. Make room and run the same command again"
        )


def _collect(state: TrainingState) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The optimiser's groups, and all tensors by name."""
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
    if state.best is not None:
        tensors["best"] = state.best.record
        tensors.update({f"best.{name}": weight for name, weight in state.best.weights.items()})
    return content["param_groups"], tensors


def _superfluous(run_folder: Path, keep: int) -> list[int]:
    """Steps of the states that are neither among the newest nor that of least loss."""
    steps = saved_steps(run_folder)
    losses = {}
    for step in steps:
        with contextlib.suppress(OSError, json.JSONDecodeError):
            loss = json.loads((_folder(run_folder, step) / "state.json").read_text(encoding="utf-8")).get("loss")
            if loss is not None and math.isfinite(loss):
                losses[step] = loss
    best = min(losses, key=lambda step: losses[step], default=None)
    return [step for step in steps[:-keep] if step != best]


def load_latest_state(fabric: Fabric, run_folder: str | Path, state: TrainingState) -> int:
    """Load the newest whole state into `state`; returns its step, 0 if there is none. All processes call this.

    Process 0 finds it by the checksums, and warns of each damaged one it passes over. Raises PretrainedError if the
    state is of another model.
    """
    run_folder = Path(run_folder)
    step = fabric.broadcast(_newest_whole(run_folder) if fabric.is_global_zero else 0)
    if step:
        folder = _folder(run_folder, step)
        description = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        _fill(folder, description, read_tensors(folder / "state.safetensors"), state, fabric.global_rank)
    return step


def _newest_whole(run_folder: Path) -> int:
    for step in reversed(saved_steps(run_folder)):
        folder = _folder(run_folder, step)
        try:
            expected = json.loads((folder / "state.json").read_text(encoding="utf-8")).get("sha256")
            found = _sha256(folder / "state.safetensors")
        except (OSError, json.JSONDecodeError) as error:
            warn(f"{folder}: passed over, it is damaged: {error}")
            continue
        if found == expected:
            return step
        warn(f"{folder}: passed over, it is damaged: expected sha256 {expected}, found {found}")
    return 0


def _fill(
    folder: Path, description: dict[str, Any], tensors: dict[str, Tensor], state: TrainingState, rank: int
) -> None:
    weights = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    own = state.module.state_dict()
    try:
        state.module.load_state_dict({n: divided_like(t, own[n]) if n in own else t for n, t in weights.items()})
    except RuntimeError as error:
        raise PretrainedError(
            f"{folder}: the state is of another model than the settings describe: {error}. Another run folder?"
        ) from None
    per_weight: dict[int, dict[str, Tensor]] = {}
    trained = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            weight = trained[int(index)]
            per_weight.setdefault(int(index), {})[key] = (
                divided_like(tensor, weight) if tensor.shape == weight.shape else tensor
            )
    state.unlogged = {n.removeprefix("unlogged."): t for n, t in tensors.items() if n.startswith("unlogged.")}
    averages = {n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")}
    if state.average is not None:
        if averages.keys() != state.average.weights.keys():
            raise PretrainedError(f"{folder}: the state has no average of the weights that are trained now")
        for name, weight in state.average.weights.items():
            weight.copy_(averages[name])
    if state.watch is not None and "watch" in tensors:
        state.watch.restore(tensors["watch"])
    if state.best is not None and "best" in tensors:
        state.best.record = tensors["best"].clone()
        for name, weight in state.best.weights.items():
            weight.copy_(tensors[f"best.{name}"])
    state.optimizer.load_state_dict({"state": per_weight, "param_groups": description["groups"]})
    if rank < len(tensors["random"]):
        torch.set_rng_state(tensors["random"][rank].clone())  # a view would be read from its storage's start


def _folder(run_folder: Path, step: int) -> Path:
    return run_folder / STATES_FOLDER / f"step-{step:08d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
