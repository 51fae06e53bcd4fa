"""The one training loop, on Lightning Fabric, shared by tokenizers, pretraining and alignment.

An `Objective` is a module with a stream of batches, and returns the summed loss of one. The stream is a pure function
of (seed, step), so that a run resumes exactly from its step alone, on any number of processes. Signals only set a flag;
at a step's end the processes agree on it, save and stop: USR1 asks Slurm to requeue the job, TERM and INT end it. What
else can befall a run ends it with a message, and leaves the last state: a process that dies or hangs, a full disk.

Nothing in a step waits for the device: metrics are summed there and read once in `log_every` steps, and steps that must
not be taken are judged there (`step_watch.py`).
"""

import contextlib
import errno
import json
import math
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch import Tensor, nn

from ..models.width_transfer import UNSCALED, WeightScaling
from ..settings import Settings
from .best_weights import BestWeights
from .checkpoints import StateWriter, TrainingState, load_latest_state
from .flops import peak_flops
from .metrics_log import MetricsLog, MetricSums, console, last_logged, make_loggers, means, progress_bar
from .optimizers import Optimizers
from .profiling import profiled
from .run_record import RunError, RunRecord, saved_steps
from .sharding import global_norm, own_part, shard
from .signals import FAIL, REQUEUE, SAVE, Interrupted, Signals, requeue
from .step_watch import BadStepError, StepWatch
from .watchdog import watchdog
from .weight_average import WeightAverage

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk, a quota that is used up, a file that may not grow."""
EPSILON = 1e-8
"""Adam's, at base size."""
MODEL_FLOPS, TOKENS = "model_flops", "tokens"
"""Metrics of a step that are shown as speeds: an objective may count its floating-point operations and its tokens."""


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
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Each process has all weights, or a part of them and of the optimiser's state (FSDP2), where memory is short."""
    accumulate: PositiveInt = 1
    """Parts of a process's share of the batch that are done one after the other, to need less memory."""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """What to do where the loss or the gradient is not finite, or a spike: neither ever reaches the weights."""
    spike_factor: Annotated[float, Field(gt=1)] | None = None
    """A loss so many times the average of the last steps is a spike; by default none is."""
    max_skipped: PositiveInt = 20
    """Bad steps after which a run that skips them stops all the same."""
    log_every: PositiveInt = 10
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where metrics go beside metrics.csv."""
    peak_tflops: PositiveFloat | None = None
    """Of one device, for the share of it that is used; known for common GPUs (`training/flops.py`)."""
    profile: NonNegativeInt = 0
    """Steps to record, soon after the start, in <run>/profile."""
    checkpoint_every: PositiveInt = 500
    """Steps between two saved states."""
    checkpoint_minutes: PositiveFloat = 30.0
    """A state is saved after so long at the latest."""
    keep_checkpoints: PositiveInt = 2
    """Newest states that are kept, beside the one of least loss."""
    timeout_minutes: PositiveFloat = 30.0
    """A run ends where no step has ended for so long: a process, a disk or the network hangs."""
    max_idle_restarts: PositiveInt = 3
    """Times that Slurm may start a job at one and the same step before it ends itself."""


class Objective(Protocol):
    """What the loop trains: a module with examples.

    It may have `split(content, count)`, which divides a batch, `keep(content, folder)`, which stores one for replay and
    returns what it is of, and `weight_scalings()` (`width_transfer.py`). With `validate_every` above zero, the run ends
    with the weights for which `validate(fabric)`, called after so many steps and at the end, returns the highest score;
    it returns metrics beside the score.
    """

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


@dataclass(frozen=True)
class Finished:
    """Result of a run: the last step, the metrics logged last, and the step that validation chose, if it did."""

    step: int
    metrics: dict[str, float]
    best_step: int | None = None


def make_fabric(settings: LoopSettings, can_divide: bool = False) -> Fabric:
    """Fabric for these settings: GPUs where there are any, DDP for more than one process; launched.

    `can_divide`: the caller gathers weights that `strategy: fsdp` has divided; ValueError where it does not.
    """
    if settings.strategy == "fsdp" and not can_divide:
        raise ValueError("loop.strategy: fsdp is for pretraining alone; expected ddp here")
    is_parallel = settings.devices * settings.num_nodes > 1
    # No objective changes buffers while it trains, and they are the same everywhere to begin with.
    timeout = timedelta(minutes=settings.timeout_minutes)
    strategy: Any = DDPStrategy(broadcast_buffers=False, timeout=timeout) if is_parallel else "auto"
    if is_parallel and settings.strategy == "fsdp":
        count = settings.devices * settings.num_nodes
        strategy = ModelParallelStrategy(shard, data_parallel_size=count, tensor_parallel_size=1, timeout=timeout)
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

    Writes metrics.csv, states and the run's record to `run_folder`. Raises Interrupted after saving at a signal,
    BadStepError at a loss or gradient that is not finite or a spike, RunError where a state cannot be written or
    another process is lost, and ValueError if the run stands at a step of other examples.
    """
    run_folder = Path(run_folder)
    with RunRecord(run_folder, title, settings.steps, fabric.global_rank, fabric.world_size) as record:
        try:
            return _train(fabric, objective, settings, run_folder, title, record)
        except OSError as error:
            if error.errno not in FULL:
                raise
            room = shutil.disk_usage(run_folder).free / 2**30
            raise RunError(
                f"{run_folder}: {error.strerror} at step {record.step}; {room:.1f} GiB are free there. Make room and "
                "run the same command again to go on from the last state"
            ) from error
        except RuntimeError as error:
            lost = fabric.world_size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))
            if not lost:
                raise
            steps = saved_steps(run_folder)
            raise RunError(
                f"{title}: process {fabric.global_rank} of {fabric.world_size} lost the others at step {record.step}: "
                f"{str(error).split('. ')[0]}. One of them has died or hangs; {run_folder / 'logs'} says which. The "
                f"last state is that of step {steps[-1] if steps else 0}; run the same command again to go on from it"
            ) from error


def _train(
    fabric: Fabric, objective: Any, settings: LoopSettings, run_folder: Path, title: str, record: RunRecord
) -> Finished:
    if settings.strategy == "fsdp" and (settings.optimizer == "muon" or settings.average_decay):
        raise ValueError("loop.strategy: fsdp takes neither optimizer: muon nor average_decay: both want whole weights")
    module = fabric.setup_module(objective)
    optimizer = make_optimizer(objective, settings)
    state = TrainingState(objective, optimizer)
    optimizer = fabric.setup_optimizers(optimizer)
    if settings.average_decay:
        state.average = WeightAverage(objective, settings.average_decay)
    validate_every: int = getattr(objective, "validate_every", 0)
    if validate_every:
        state.best = BestWeights(objective)
    state.watch = StepWatch(fabric.device, settings.on_bad_step, settings.spike_factor)
    start = load_latest_state(fabric, run_folder, state)
    _check_examples(fabric, run_folder, objective.fingerprint, start)
    record.begin(start, settings.max_idle_restarts)
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    with (
        Signals() as signals,
        contextlib.closing(StateWriter(fabric, run_folder, settings.keep_checkpoints)) as writer,
        contextlib.closing(_Rows(fabric, settings, run_folder, start)) as rows,
        contextlib.closing(objective.batches(start)) as batches,
        progress_bar(fabric, title, start, settings.steps) as advance,
        profiled(run_folder / "profile", settings.profile if fabric.is_global_zero else 0) as recorded,
        watchdog(record, settings.timeout_minutes) as step_ended,
    ):
        # What was not logged yet belongs to the next row.
        sums = MetricSums(_own_share(fabric, state.unlogged))
        for step in range(start, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step) * group["scale"]
            with rows.waiting():
                content = next(batches)
            metrics = _accumulate_gradients(fabric, module, objective, content, settings.accumulate)
            # The normaliser is that of the whole batch, so that the gradient does not depend on how it is split; DDP
            # averages over processes, hence the factor.
            loss_sum, count = _all_sum(fabric, metrics["loss"])
            count = count.clamp(min=1e-6)
            norm = _scale_gradients(weights, fabric.world_size / count, settings.gradient_clip)
            is_bad = state.watch.judge(step, loss_sum / count, norm, count > 1e-6)
            state.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if state.average is not None:
                state.average.update(objective, step + 1)
            sums.add({**metrics, "gradient_norm": torch.stack([norm, torch.ones_like(norm)])})
            recorded()
            done = step + 1
            record.step = done
            step_ended()
            asked = signals.agreed(fabric, _own_wish(fabric, writer, settings))
            if asked == FAIL:
                break
            is_last = done == settings.steps
            is_validated = bool(validate_every) and (done % validate_every == 0 or is_last)
            is_logged = done % settings.log_every == 0 or is_last or is_validated
            is_saved = bool(asked) or done % settings.checkpoint_every == 0 or is_last
            if is_logged or is_saved:
                _face_bad_steps(fabric, objective, state.watch, settings, run_folder, title)
            if is_logged:
                rows.write(done, sums, weights, _validated(fabric, objective, state, done) if is_validated else {})
                sums.clear()
                record.reached(done)
            advance(done, rows.last)
            if is_saved:
                state.unlogged = sums.of_each(fabric)
                writer.save(state, done, rows.last.get("loss"))
            if asked > SAVE and not is_last:
                writer.finish()
                record.end("requeued" if asked == REQUEUE else "stopped")
                if asked == REQUEUE:
                    requeue(fabric, record)
                raise Interrupted(done)
        writer.finish()
    record.end("finished")
    if state.average is not None:
        state.average.give_to(objective)
    if state.best is None:
        return Finished(settings.steps, rows.last)
    state.best.give_to(objective)
    return Finished(settings.steps, rows.last, state.best.step)


def _validated(fabric: Fabric, objective: Any, state: TrainingState, done: int) -> dict[str, float]:
    """Metrics of validation after `done` steps, of the averaged weights where there are; the best weights are kept."""
    assert state.best is not None
    with contextlib.nullcontext() if state.average is None else state.average.lent_to(objective):
        score, metrics = objective.validate(fabric)
        # All processes keep the same weights, even where their sums differ in the last bit.
        state.best.offer(objective, fabric.broadcast(score), done)
    return metrics


def _own_share(fabric: Fabric, unlogged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's sums [2] of those of each [P, 2]; where their number was another, the first takes all."""
    shares = {}
    for name, sums in unlogged.items():
        share = sums.sum(0) * float(fabric.is_global_zero)
        shares[name] = (sums[fabric.global_rank] if len(sums) == fabric.world_size else share).to(fabric.device)
    return shares


def _own_wish(fabric: Fabric, writer: StateWriter, settings: LoopSettings) -> int:
    """What process 0 asks for by itself: a state in time, or the end, where one could not be written."""
    if writer.error is not None:
        return FAIL
    is_due = fabric.is_global_zero and time.monotonic() - writer.last_saved > 60 * settings.checkpoint_minutes
    return SAVE if is_due else 0


class _Rows:
    """Makes the rows of the log: what was summed, and how fast it went."""

    def __init__(self, fabric: Fabric, settings: LoopSettings, run_folder: Path, start: int):
        self.fabric, self.settings = fabric, settings
        path = run_folder / "metrics.csv"
        self.log = MetricsLog(path, start) if fabric.is_global_zero else None
        self.loggers = make_loggers(settings.loggers, run_folder, start) if fabric.is_global_zero else []
        self.last = last_logged(path, start)
        """The row written last, without its step."""
        self._peak = (settings.peak_tflops and settings.peak_tflops * 1e12) or peak_flops(fabric.device)
        self._step, self._began, self._first, self._waited = start, time.perf_counter(), time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """The time within is that of a wait for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def write(self, done: int, sums: MetricSums, weights: Sequence[Tensor], others: dict[str, float]) -> None:
        """Write the row of the steps up to `done`, with `others` beside it; waits for the device."""
        row = means(sums.over_all(self.fabric)) | others
        row["learning_rate"] = learning_rate(self.settings, done - 1)
        row["weight_norm"] = global_norm([weight.detach() for weight in weights]).item()
        now = time.perf_counter()
        elapsed, steps = now - self._began, done - self._step
        row["examples_per_second"] = steps * self.settings.batch_size / elapsed
        # These are counted in each part of a process's share of a batch.
        parts_per_second = steps * self.settings.accumulate / elapsed
        if TOKENS in row:
            row["tokens_per_second"] = row.pop(TOKENS) * parts_per_second * self.fabric.world_size
        flops = row.pop(MODEL_FLOPS, None)
        if flops is not None and self._peak is not None:
            row["model_flops_utilization"] = flops * parts_per_second / self._peak
        row["waiting_for_data"] = self._waited / elapsed
        row["seconds"] = now - self._first
        if self.fabric.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated(self.fabric.device) / 2**30
        if self.log is not None:
            self.log.write(done, row)
        for logger in self.loggers:
            logger.log_metrics(row, step=done)
        self.last = row
        self._step, self._began, self._waited = done, time.perf_counter(), 0.0

    def close(self) -> None:
        """Finish what loggers write."""
        for logger in self.loggers:
            logger.finalize("success")


def _accumulate_gradients(
    fabric: Fabric, module: nn.Module, objective: Any, content: Any, num_parts: int
) -> dict[str, Tensor]:
    """Forward and backward pass of a batch, in parts; gradients are of the summed loss. Returns sums of the metrics."""
    parts = [content] if num_parts == 1 else objective.split(content, num_parts)
    total: dict[str, Tensor] = {}
    for number, part in enumerate(parts, start=1):
        waits = fabric.world_size > 1 and number < len(parts)
        with fabric.no_backward_sync(module) if waits else contextlib.nullcontext():
            loss_sum, count, metrics = module(Batch(part))
            fabric.backward(loss_sum)
        metrics = {"loss": torch.stack([loss_sum.detach(), count.detach()]), **metrics}
        total = {name: total[name] + value for name, value in metrics.items()} if total else metrics
    return total


@torch.no_grad()
def _scale_gradients(weights: Sequence[Tensor], scale: Tensor, largest_norm: float) -> Tensor:
    """Multiply gradients by `scale`, and clip them to a norm; returns their norm before that. One pass over them."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = global_norm(gradients) * scale
    torch._foreach_mul_(
        [own_part(gradient) for gradient in gradients], scale * (largest_norm / (norm + 1e-6)).clamp(max=1)
    )
    return norm


def _face_bad_steps(
    fabric: Fabric, objective: Any, watch: StepWatch, settings: LoopSettings, run_folder: Path, title: str
) -> None:
    """Keep the batches of the bad steps since the last call, and say so; raise BadStepError where that ends the run."""
    for step in watch.new_bad_steps():
        folder = run_folder / "bad-steps" / f"step-{step:08d}" / f"process-{fabric.global_rank}"
        with contextlib.closing(objective.batches(step)) as batches:
            content = next(batches)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step.json").write_text(json.dumps({"step": step, "title": title}), encoding="utf-8")
        what = objective.keep(content, folder) if hasattr(objective, "keep") else ""
        told = (
            f"{title}: the loss or its gradient at step {step} is not finite"
            f"{'' if settings.spike_factor is None else f', or over {settings.spike_factor} times what it was'}. "
            f"The weights are those before it; its batch is kept in {folder}{what}"
        )
        if settings.on_bad_step == "stop":
            if fabric.is_global_zero:
                save_file(objective.state_dict(), folder / "weights.safetensors")
            raise BadStepError(told)
        if fabric.is_global_zero:
            console.print(told)
    if watch.num_bad > settings.max_skipped:
        raise BadStepError(f"{title}: {watch.num_bad} steps had to be skipped, more than loop.max_skipped allows")


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
    # Fused: one kernel a group, and it takes no step where `found_inf` says so.
    adamw = torch.optim.AdamW(by_adamw, lr=settings.learning_rate, betas=settings.betas, fused=True)
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
