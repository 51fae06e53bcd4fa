"""Jobs and runs as tables on a terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .chain import SubmittedLink
from .run_status import RunStatus, duration

_COLOURS = {
    "running": "green",
    "finished": "green",
    "failed": "red",
    "died": "red",
    "unstarted": "red",
    "silent": "yellow",
}


def show_status(status: RunStatus) -> None:
    """One run, a line for each thing that is known."""
    console = Console(soft_wrap=True, highlight=False)
    progress = None if status.step is None else _of(status.step, status.steps)
    attempts = f"{status.attempts}, restarted by Slurm {status.restarts} times" if status.restarts else status.attempts
    rows = {
        "run": status.folder,
        "stage": status.stage,
        "state": Text(status.state, style=_COLOURS.get(status.state, "")),
        "": status.message,
        "step": progress,
        "loss": None if status.loss is None else f"{status.loss:.4f}",
        "speed": None if status.examples_per_second is None else f"{status.examples_per_second:.1f} examples/s",
        "time left": None if status.seconds_left is None else duration(status.seconds_left),
        "attempts": str(attempts) if status.attempts else None,
        "last state": status.last_checkpoint,
        "last change": status.last_change,
        "job": _job(status),
        "git commit": status.git_commit,
    }
    for name, value in rows.items():
        if value:
            console.print(Text.assemble((f"{name:<12}", "bold"), value))


def show_runs(statuses: Sequence[RunStatus]) -> None:
    """Many runs, a line for each."""
    table = Table("run", "stage", "state", "step", "loss", "last change (UTC)", "commit", box=None, header_style="bold")
    for status in statuses:
        table.add_row(
            Text(status.folder),
            status.stage or "",
            Text(status.state, style=_COLOURS.get(status.state, "")),
            "" if status.step is None else _of(status.step, status.steps),
            "" if status.loss is None else f"{status.loss:.4f}",
            (status.last_change or "")[:19].replace("T", " "),
            (status.git_commit or "")[:9],
        )
    _wide_console(table).print(table)


def show_chain(links: Sequence[SubmittedLink]) -> None:
    """The jobs of a chain."""
    table = Table("stage", "job", "after", "array", "log", box=None, header_style="bold")
    for link in links:
        number = link.number or "(dry run)"
        array = link.job.checked.resources.array
        log = link.job.log if link.number is None else link.job.logs_of(link.number)
        table.add_row(link.name, number, ", ".join(link.after), "" if array is None else str(array), Text(short(log)))
    _wide_console(table).print(table)


def _wide_console(table: Table) -> Console:
    """A console that breaks no path: where output goes to a file or a narrow terminal, lines are as long as need be."""
    console = Console()
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)
    return console


def _of(step: int, steps: int | None) -> str:
    return f"{step}" if steps is None else f"{step} of {steps}"


def _job(status: RunStatus) -> str | None:
    job = status.job
    if job is None:
        return None
    parts = [f"{job.job} {job.state.lower()}"]
    if job.is_waiting:
        parts.append(f"expected to start {job.start}" if job.start else "no start is expected yet")
    elif job.is_alive and job.time_left:
        parts.append(f"{job.time_left} left before its limit")
    return ", ".join(parts)


def short(path: str | Path) -> str:
    """A path as seen from here."""
    return str(path).removeprefix(f"{Path.cwd()}/")
