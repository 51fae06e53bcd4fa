"""What a run says of itself: sums kept on the device, rows in metrics.csv, TensorBoard, a progress bar."""

import contextlib
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .run_record import read_metrics

console = Console(stderr=True)
SPEED = (
    "examples_per_second",
    "tokens_per_second",
    "model_flops_utilization",
    "waiting_for_data",
    "memory_gib",
    "seconds",
)
"""Columns of metrics.csv that depend on the machine. `waiting_for_data` is the share of the time spent so."""


class MetricSums:
    """Sums and counts of metrics since the last row of the log: one addition a step, whatever their number."""

    def __init__(self, first: dict[str, Tensor] | None = None):
        self._place_of: dict[str, int] = {}
        self._places: dict[tuple[str, ...], Tensor] = {}
        self._sums: Tensor | None = None
        if first:
            self.add(first)

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the sum and count [2] of each metric."""
        names, values = tuple(metrics), torch.stack(list(metrics.values())).float()
        if names not in self._places:
            new = [name for name in names if name not in self._place_of]
            self._place_of |= {name: place for place, name in enumerate(new, len(self._place_of))}
            zeros = values.new_zeros(len(new), 2)
            self._sums = zeros if self._sums is None else torch.cat([self._sums, zeros])
            self._places[names] = torch.tensor([self._place_of[name] for name in names]).to(values.device)
        assert self._sums is not None
        self._sums.index_add_(0, self._places[names], values)

    def clear(self) -> None:
        """Begin again from zero."""
        if self._sums is not None:
            self._sums.zero_()

    def of_each(self, fabric: Fabric) -> dict[str, Tensor]:
        """Sum and count of each metric in each process, [P, 2]."""
        if self._sums is None:
            return {}
        tables = fabric.all_gather(self._sums).reshape(fabric.world_size, *self._sums.shape)
        return {name: tables[:, place] for name, place in sorted(self._place_of.items())}

    def over_all(self, fabric: Fabric) -> dict[str, Tensor]:
        """Sum and count of each metric over all processes, which have the same ones."""
        if self._sums is None:
            return {}
        table = self._sums.clone()
        table = table if fabric.world_size == 1 else fabric.all_reduce(table, reduce_op="sum")
        return {name: table[place] for name, place in sorted(self._place_of.items())}


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Weighted means of what was summed, where anything was: the one read of the device."""
    if not sums:
        return {}
    table = torch.stack(list(sums.values())).cpu()
    return {name: (total / count).item() for name, (total, count) in zip(sums, table, strict=True) if count > 0}


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


def last_logged(path: Path, start: int) -> dict[str, float]:
    """The metrics logged last before the step a run resumes from."""
    rows = [row for row in read_metrics(path) if row["step"] <= start]
    return {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}


def make_loggers(names: tuple[str, ...], run_folder: Path, start: int = 0) -> list[Any]:
    """Loggers beside metrics.csv, for a run that goes on after step `start`: `tensorboard` writes to <run>/tensorboard,
    `wandb` wants that package and its keys.

    Raises ValueError where a package is missing.
    """
    loggers: list[Any] = []
    for name in names:
        try:
            if name == "tensorboard":
                from lightning.fabric.loggers import TensorBoardLogger

                # What an interrupted run wrote of later steps is hidden.
                loggers.append(TensorBoardLogger(run_folder, name="tensorboard", version="", purge_step=start + 1))
            else:
                from lightning.pytorch.loggers import WandbLogger

                loggers.append(WandbLogger(save_dir=run_folder, name=run_folder.name, project="armillary"))
        except ModuleNotFoundError as error:
            raise ValueError(f"loop.loggers names {name}, and it is not installed: {error}") from None
    return loggers


@contextlib.contextmanager
def progress_bar(
    fabric: Fabric, title: str, start: int, steps: int
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar over the steps, moved by calls with the step and the metrics of the last row; where there is no terminal,
    one line at the end."""
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
            progress.update(task, completed=step, note=_note(metrics))

        yield advance
    if not console.is_terminal:
        console.print(
            f"{title}: at step {int(progress.tasks[0].completed)} of {steps}. {progress.tasks[0].fields['note']}"
        )


def _note(metrics: dict[str, float]) -> str:
    shown = {"loss": "loss {:.3f}", "examples_per_second": "{:.0f}/s", "model_flops_utilization": "MFU {:.0%}"}
    return ", ".join(text.format(metrics[name]) for name, text in shown.items() if name in metrics)
