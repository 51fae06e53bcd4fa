"""A trace of a few steps of a run, for chrome://tracing or Perfetto, and a table of what they spent their time on."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED, WARMUP = 5, 2
"""Steps before those that are recorded: compilation, then the profiler's own start."""


@contextlib.contextmanager
def profiled(folder: Path, num_steps: int) -> Iterator[Callable[[], None]]:
    """Records `num_steps` steps, if any, into `<folder>/trace.json` and `<folder>/operators.txt`.

    Gives what is to be called after each step.
    """
    if num_steps == 0:
        yield lambda: None
        return

    def write(found: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "trace.partial.json"
        found.export_chrome_trace(str(temporary))
        temporary.replace(folder / "trace.json")
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=60)
        (folder / "operators.txt").write_text(table, encoding="utf-8")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    when = schedule(skip_first=SKIPPED, wait=0, warmup=WARMUP, active=num_steps, repeat=1)
    with profile(activities=activities, schedule=when, on_trace_ready=write) as running:
        yield running.step
