"""The one training loop, on Lightning Fabric, shared by tokenizers, pretraining and alignment.

An `Objective` is a module with a stream of batches, and returns the summed loss of one. The stream is a pure function
of (seed, step), so that a run resumes exactly from its step alone, on any number of processes. Signals only set a flag;
at a step's end the processes agree on it, save and stop: USR1 asks Slurm to requeue the job, TERM and INT end it.
"""

import contextlib
import csv
import math
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.fabric import Fabric
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..models.width_transfer import UNSCALED, WeightScaling
from ..settings import Settings
from .checkpoints import TrainingState, load_latest_state, save_state
from .optimizers import Optimizers
from .weight_average import WeightAverage

REQUEUE, END = 1, 2
EPSILON = 1e-8
"""Adam's, at base size."""
console = Console(stderr=True)


class LoopSettings(Settings):
    """How long, how fast and on what to train."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    """Examples of one step, over all processes."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: NonNegativeInt = 50
    schedule: Literal["cosine", "stable"] = "cosine"
    """After the warm-up: a cosine, or stable until the last `decay_share` of the steps."""
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    final_learning_rate: NonNegativeFloat = 0.05
    """Share of the learning rate at the end."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What trains hidden matrices; all else is AdamW's."""
    gradient_clip: PositiveFloat = 1.0
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay in each step of the moving average of the weights, which are those a run ends with; 0 for none."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16-mixed on GPUs and on CPUs with bf16 arithmetic, else 32-true."""
    seed: int = 0
    devices: PositiveInt = 1
    """Processes on each node."""
    num_nodes: PositiveInt = 1
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2


class Objective(Protocol):
    """What the loop trains: a module with examples."""

    fingerprint: str
    """Names the examples and their order."""

    def batches(self, first_step: int) -> Generator[Any, None, None]:
        """This process's share of the examples of each step, from `first_step` on, on the host."""

    def __call__(self, batch: "Batch") -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Sum of the losses, their number (or weight), and metrics, each a sum and a count [2]."""


class Batch:
    """One prepared batch. It hides the content from Fabric, which would cast the positions of tokens to bf16."""

    def __init__(self, content: Any):
        self.content = content


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and has saved
    """Training stopped at a signal after saving; `step` says where."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}; run the same command again to go on from there")
        self.step = step


@dataclass(frozen=True)
class Finished:
    """Result of a run: the last step and the metrics logged last."""

    step: int
    metrics: dict[str, float]


def make_fabric(settings: LoopSettings) -> Fabric:
    """Fabric for these settings: GPUs where there are any, DDP for more than one process; launched."""
    strategy = "ddp" if settings.devices * settings.num_nodes > 1 else "auto"
    fabric = Fabric(
        accelerator="auto",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        precision=choose_precision(settings.precision),
    )
    fabric.launch()
    return fabric


def choose_precision(wanted: str) -> Any:
    """Resolve `auto` for this machine."""
    if wanted != "auto":
        return wanted
    # bf16 pays where the processor multiplies it natively; elsewhere it is emulated, and slower than float32.
    has_bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def train(fabric: Fabric, objective: Any, settings: LoopSettings, run_folder: str | Path, title: str) -> Finished:
    """Train `objective` (an `Objective` that is a module) to `settings.steps`, or go on where `run_folder` stands.

    Writes metrics.csv and checkpoints to `run_folder`. Raises Interrupted after saving at a signal, RuntimeError with
    the step's number if the loss is not finite, and ValueError if the run stands at a step of other examples.
    """
    run_folder = Path(run_folder)
    optimizer = make_optimizer(objective, settings)
    state = TrainingState(objective, optimizer)
    module, optimizer = fabric.setup(objective, optimizer)
    if settings.average_decay:
        state.average = WeightAverage(objective, settings.average_decay)
    # After the setup, which moves the weights but not the optimiser's state to the device.
    start = load_latest_state(run_folder, state)
    _check_examples(fabric, run_folder, objective.fingerprint, start)
    log = MetricsLog(run_folder / "metrics.csv", start) if fabric.is_global_zero else None
    last = _last_logged(run_folder / "metrics.csv", start)
    with (
        Signals() as signals,
        contextlib.closing(objective.batches(start)) as batches,
        _progress(fabric, title, start, settings.steps) as advance,
    ):
        # What was not logged yet belongs to the next row; it is a sum over all processes, so one of them takes it.
        mine_first = float(fabric.is_global_zero)
        sums = {name: value.to(fabric.device) * mine_first for name, value in state.unlogged.items()}
        began, began_step = time.perf_counter(), start
        for step in range(start, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step) * group["scale"]
            loss_sum, count, metrics = module(Batch(next(batches)))
            # The normaliser is that of the whole batch, so that the gradient does not depend on how it is split; DDP
            # averages over processes, hence the factor.
            total = _all_sum(fabric, count.detach())
            fabric.backward(loss_sum * fabric.world_size / total.clamp(min=1e-6))
            norm = fabric.clip_gradients(module, optimizer, max_norm=settings.gradient_clip, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if state.average is not None:
                state.average.update(objective, step + 1)
            metrics = {"loss": torch.stack([loss_sum.detach(), count.detach()]), **metrics}
            norm = torch.as_tensor(norm).detach()
            metrics["gradient_norm"] = torch.stack([norm, torch.ones_like(norm)])
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros(2, device=value.device)) + value
            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                last = _read_sums(fabric, sums)
                elapsed = time.perf_counter() - began
                last["learning_rate"] = learning_rate(settings, step)
                last["examples_per_second"] = (done - began_step) * settings.batch_size / elapsed
                if not np.isfinite(last.get("loss", 0.0)):  # absent if there was nothing to predict
                    raise RuntimeError(
                        f"{title}: the loss is {last['loss']} between steps {done - settings.log_every} and {done}"
                    )
                if log is not None:
                    log.write(done, last)
                sums, began, began_step = {}, time.perf_counter(), done
            advance(done, last)
            asked = signals.agreed(fabric)
            if asked or done % settings.checkpoint_every == 0 or done == settings.steps:
                state.unlogged = {name: _all_sum(fabric, sums[name]) for name in sorted(sums)}
                save_state(fabric, run_folder, state, done, settings.keep_checkpoints)
            if asked and done < settings.steps:
                if asked == REQUEUE:
                    _requeue(fabric)
                raise Interrupted(done)
    if state.average is not None:
        state.average.give_to(objective)
    return Finished(settings.steps, last)


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Linear warm-up, then down to `final_learning_rate` of the peak at the last step, as `schedule` says.

    `cosine`: a half cosine. `stable`: the peak, then in the last `decay_share` of the steps one minus a square root
    (Haegele et al. 2024, arXiv 2405.18392): a run of any length may be continued from before its decay.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    first = settings.warmup_steps
    if settings.schedule == "stable":
        first = max(first, math.floor(settings.steps * (1 - settings.decay_share)))
    progress = max(0, step - first) / max(1, settings.steps - first)
    left = 1 - math.sqrt(progress) if settings.schedule == "stable" else 0.5 * (1 + math.cos(math.pi * progress))
    share = settings.final_learning_rate
    return settings.learning_rate * (share + (1 - share) * left)


def make_optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW, or Muon for hidden matrices beside it; matrices decay, vectors and norms do not; frozen weights stay out.

    A module with `weight_scalings()` says by name which its hidden matrices are, and what its weights' rates are
    multiplied by (`width_transfer.py`). Raises ValueError for Muon and a module that does not.
    """
    scalings: Mapping[str, WeightScaling] = getattr(module, "weight_scalings", dict)()
    groups: dict[tuple[bool, float, float, float], list[nn.Parameter]] = {}
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            scaling = scalings.get(name, UNSCALED)
            decay = settings.weight_decay * scaling.weight_decay if weight.dim() >= 2 else 0.0
            key = (False, -decay, scaling.learning_rate, EPSILON * scaling.epsilon)
            if settings.optimizer == "muon" and scaling.muon is not None:
                key = (True, -settings.weight_decay / scaling.muon, scaling.muon, 0.0)
            groups.setdefault(key, []).append(weight)
    by_muon: list[dict[str, Any]] = []
    by_adamw: list[dict[str, Any]] = []
    for (is_muon, decay, rate, epsilon), weights in sorted(groups.items()):
        group = {"params": weights, "weight_decay": -decay, "scale": rate}
        (by_muon if is_muon else by_adamw).append(group if is_muon else group | {"eps": epsilon})
    adamw = torch.optim.AdamW(by_adamw, lr=settings.learning_rate, betas=settings.betas)
    if settings.optimizer == "adamw":
        return adamw
    if not by_muon:
        raise ValueError("optimizer: muon trains hidden matrices, and this model names none; expected adamw")
    return Optimizers(
        torch.optim.Muon(by_muon, lr=settings.learning_rate, momentum=0.95, adjust_lr_fn="match_rms_adamw"), adamw
    )


def leave(fabric: Fabric) -> None:
    """The end of a command: the processes meet and take their group down, or gloo may abort one that ends first."""
    fabric.barrier()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class MetricsLog:
    """metrics.csv of a run: one row for each logged step. Rows past the step a run resumes from are dropped."""

    def __init__(self, path: Path, start: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(path) if row["step"] <= start]
        self._names: list[str] = list(dict.fromkeys(name for row in rows for name in row))
        self._rows = rows
        self._rewrite()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one row; new names widen the table."""
        row = {"step": float(step), **metrics}
        self._rows.append(row)
        if set(row) <= set(self._names):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._names).writerow(row)
        else:
            self._names += [name for name in row if name not in self._names]
            self._rewrite()

    def _rewrite(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(self.path)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; empty if there is none. Cells left empty are absent from their row."""
    if not Path(path).is_file():
        return []
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _last_logged(path: Path, start: int) -> dict[str, float]:
    """The metrics logged last before the step a run resumes from."""
    rows = [row for row in read_metrics(path) if row["step"] <= start]
    return {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}


class Signals:
    """Turns USR1, TERM and INT into a flag that all processes read at the same step."""

    def __init__(self) -> None:
        self._asked = 0
        self._old: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> "Signals":
        for number, meaning in ((signal.SIGUSR1, REQUEUE), (signal.SIGTERM, END), (signal.SIGINT, END)):

            def remember(_signal: int, _frame: FrameType | None, meaning: int = meaning) -> None:
                self._asked = max(self._asked, meaning)

            with contextlib.suppress(ValueError):  # not the main thread: the program that runs us handles signals
                self._old[number] = signal.signal(number, remember)
        if dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def agreed(self, fabric: Fabric) -> int:
        """What any process was asked to do (0: nothing), the same answer on all; without a wait for the GPU."""
        if fabric.world_size == 1:
            return self._asked
        flag = torch.tensor([self._asked])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return int(flag)


@contextlib.contextmanager
def _progress(fabric: Fabric, title: str, start: int, steps: int) -> Iterator[Any]:
    if not fabric.is_global_zero:
        yield lambda step, metrics: None
        return
    columns = (
        TextColumn(f"[bold]{title}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task(title, total=steps, completed=start, note="")

        def advance(step: int, metrics: dict[str, float]) -> None:
            loss = f"loss {metrics['loss']:.3f}, " if "loss" in metrics else ""
            note = f"{loss}{metrics['examples_per_second']:.0f}/s" if metrics else ""
            progress.update(task, completed=step, note=note)

        yield advance
    if not console.is_terminal:
        console.print(
            f"{title}: at step {int(progress.tasks[0].completed)} of {steps}. {progress.tasks[0].fields['note']}"
        )


def _check_examples(fabric: Fabric, run_folder: Path, fingerprint: str, start: int) -> None:
    """Keep the fingerprint of a run's examples. Raises ValueError if it goes on at `start` with others."""
    path = run_folder / "examples.txt"
    found = path.read_text(encoding="utf-8").strip() if start and path.is_file() else fingerprint
    if found != fingerprint:
        raise ValueError(
            f"{path}: the run stands at step {start} of examples {found}, and these are {fingerprint}: data, held-out "
            "objects, weights or seed have changed. Begin another run."
        )
    fabric.barrier()
    if fabric.is_global_zero:
        run_folder.mkdir(parents=True, exist_ok=True)
        path.write_text(fingerprint + "\n", encoding="utf-8")


def _all_sum(fabric: Fabric, value: Tensor) -> Tensor:
    return value if fabric.world_size == 1 else fabric.all_reduce(value.clone(), reduce_op="sum")


def _read_sums(fabric: Fabric, sums: dict[str, Tensor]) -> dict[str, float]:
    """Weighted means over the steps since the last log and over all processes: the one read of the device."""
    names = sorted(sums)
    table = _all_sum(fabric, torch.stack([sums[name].float() for name in names])).cpu()
    return {name: (total / count).item() for name, (total, count) in zip(names, table, strict=True) if count > 0}


def _requeue(fabric: Fabric) -> None:
    job = os.environ.get("SLURM_JOB_ID")
    if fabric.is_global_zero and job:
        subprocess.run(["scontrol", "requeue", job], check=True)
