"""`armillary preflight`: before a job begins, each of its processes tries its GPU, its network and its file system.

Run as one task for each GPU, like the training that follows. Every check ends in a time: one that fails or hangs is
named by `roll_call.py`, and `preflight_report.py` says which node is bad.
"""

import contextlib
import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from rich.console import Console

from ..data.parquet_files import replacing
from .preflight_report import LEAST_FREE_BYTES, Report, describe_problems, judge, make_table
from .roll_call import GRACE_SECONDS, AbsentError, Place, RollCall, find_place

MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
REDUCED_BYTES = {"cuda": 2**27, "cpu": 2**22}
FILE_BYTES = {"cuda": 2**28, "cpu": 2**24}
"""What is measured on GPUs, and what on CPUs: each takes well under a second where all is well."""
REPEATS = 5


def preflight(
    folder: str | Path,
    minutes: float = 5.0,
    json_file: str | Path | None = None,
    least_free_bytes: float = LEAST_FREE_BYTES,
) -> int:
    """Try the nodes of this job and the file system of `folder`; returns 0 if all is well, else 1, on all processes.

    Process 0 shows a table and names what is bad, and writes all figures to `json_file`. `minutes`: how long processes
    may take to come, and each check may take. Where a check hangs the process is ended, for it could not end itself.
    """
    place, seconds = find_place(os.environ), 60 * minutes
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    try:
        calls = RollCall(place, seconds)
        report = _examine(place, calls, Path(folder), seconds)
        calls.say("report", dataclasses.asdict(report))
        if place.rank == 0:
            calls.announce("verdict", _conclude(calls, console, json_file, least_free_bytes))
        status = int(calls.listen("verdict", 4 * GRACE_SECONDS))
    except AbsentError as error:
        if str(error):
            console.print(f"preflight: {error}", markup=False, soft_wrap=True)
        _end_at_once(1)
    if report.error and place.size > 1:
        _end_at_once(status)
    if dist.is_initialized():
        dist.destroy_process_group()
        calls.say("left", True)
        if place.rank == 0 and not place.store_stands:
            calls.hear("left", GRACE_SECONDS)  # whoever holds the store goes last
    return status


@dataclass(frozen=True)
class _Setting:
    """What the checks of a process need to know."""

    place: Place
    nodes: tuple[str, ...]
    """Of each process."""
    folder: Path
    device: torch.device
    store: Any
    seconds: float

    @property
    def on_gpus(self) -> bool:
        return self.device.type == "cuda"

    def ranks_of(self, *nodes: str) -> list[int]:
        return [rank for rank, node in enumerate(self.nodes) if node in nodes]


def _examine(place: Place, calls: RollCall, folder: Path, seconds: float) -> Report:
    """This process's report. All processes end together at the first check that fails on any."""
    report = Report(place.rank, place.local_rank, place.node, folder=str(folder))
    try:
        found = _within(seconds, functools.partial(_look, place, folder))
    except Exception as error:
        report = dataclasses.replace(report, error=f"the GPU: {_first_line(error)}")
    else:
        report = dataclasses.replace(report, **found)
    # NCCL wants a GPU for each process; else the network is tried by gloo.
    calls.say("device", [place.node, report.gpu_id, not report.error])
    if place.rank == 0:
        said = list(calls.hear("device", seconds + GRACE_SECONDS).values())
        gpus = {(node, gpu) for node, gpu, _ in said if gpu is not None}
        is_well = len(said) == place.size and all(well for *_, well in said)
        calls.announce("device, all", {"go": is_well, "on_gpus": len(gpus) == place.size})
    decision = calls.listen("device, all", seconds + 2 * GRACE_SECONDS)
    if not decision["go"]:
        return report
    device = torch.device("cpu")
    if decision["on_gpus"]:
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    setting = _Setting(place, calls.nodes, folder, device, calls.store_of_groups, seconds)
    for name, check in CHECKS.items():
        began = time.monotonic()
        try:
            found = _within(seconds, functools.partial(_on_device, check, setting))
        except Exception as error:
            report = dataclasses.replace(report, error=f"{name}: {_first_line(error)}")
        else:
            pairs = report.pair_bandwidths | found.pop("pair_bandwidths", {})
            report = dataclasses.replace(report, **found, pair_bandwidths=pairs)
        left = seconds + GRACE_SECONDS - (time.monotonic() - began)
        if not calls.all_well(name, not report.error, left, seconds):
            break
    return report


def _conclude(calls: RollCall, console: Console, json_file: str | Path | None, least_free_bytes: float) -> int:
    """Judge all reports, and show and keep them; returns the exit status."""
    heard = calls.hear("report", GRACE_SECONDS)
    reports = [Report(**heard[rank]) for rank in heard]
    for rank, subject in calls.lost.items():
        told = f"ended or hangs, and did not come out of: {subject}"
        if rank not in heard:
            reports.append(Report(rank, 0, calls.nodes[rank], error=told, is_lost=True))
        elif not heard[rank]["error"]:
            reports = [dataclasses.replace(r, error=told) if r.rank == rank else r for r in reports]
    reports.sort(key=lambda report: report.rank)
    problems = judge(reports, least_free_bytes)
    console.print(make_table(reports))
    for line in describe_problems(problems):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"preflight: {f'{len(problems)} problem(s)' if problems else 'nothing wrong'}")
    if json_file is not None:
        try:
            _write(Path(json_file), {"problems": problems, "reports": reports})
        except OSError as error:
            console.print(f"preflight: {json_file} cannot be written: {error}", markup=False, soft_wrap=True)
            return 1
    return int(bool(problems))


def _write(path: Path, content: dict[str, list[Any]]) -> None:
    rows = {name: [dataclasses.asdict(row) for row in found] for name, found in content.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(rows, indent=1) + "\n").encode())


def _look(place: Place, folder: Path) -> dict[str, Any]:
    """What this process runs on. Process 0 makes the folder: where it is missing then, its file system is."""
    if place.rank == 0:
        with contextlib.suppress(OSError):  # the check of the file system will say it
            folder.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "armillary": version("armillary")}
    if not torch.cuda.is_available():
        return {"versions": versions}
    device = place.local_rank % torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none"
    return {
        "versions": {**versions, "CUDA": str(torch.version.cuda), "NCCL": nccl, "driver": _driver()},
        "gpu": properties.name,
        "gpu_id": str(getattr(properties, "uuid", device)),
        "free_gpu_bytes": free,
        "gpu_bytes": total,
    }


def _driver() -> str:
    """Version of NVIDIA's driver, which is the number in: NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].split()
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def _connect(setting: _Setting) -> dict[str, Any]:
    if setting.place.size == 1:
        return {}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if setting.on_gpus else "gloo",
        store=setting.store,
        rank=setting.place.rank,
        world_size=setting.place.size,
        # Our own time-out comes first, and says more.
        timeout=timedelta(seconds=2 * setting.seconds + GRACE_SECONDS),
    )
    return {"backend": "nccl" if setting.on_gpus else "gloo"}


def _matrix_products(setting: _Setting) -> dict[str, Any]:
    """Operations per second of square products: bf16 on GPUs, float32 on CPUs."""
    size, dtype = MATRIX_SIZE[setting.device.type], torch.bfloat16 if setting.on_gpus else torch.float32
    first, second = (torch.randn(size, size, dtype=dtype, device=setting.device) for _ in range(2))
    product = torch.empty_like(first)
    count = 20 if setting.on_gpus else 4

    def multiply() -> None:
        for _ in range(count):
            torch.mm(first, second, out=product)

    seconds = _seconds(multiply, setting.device)
    if not bool(product.isfinite().all()):
        raise RuntimeError("a product of finite matrices is not finite")
    return {"matrix_products": 2 * size**3 * count / min(seconds)}


def _file_system(setting: _Setting) -> dict[str, Any]:
    """Write, flush, read back: by the first process of each node, all nodes at once."""
    if setting.ranks_of(setting.place.node)[0] != setting.place.rank:
        return {}
    block = os.urandom(2**20)
    count = FILE_BYTES[setting.device.type] // len(block)
    try:
        space = os.statvfs(setting.folder)
        with tempfile.TemporaryFile(prefix=".preflight-", dir=setting.folder, buffering=0) as file:
            began = time.perf_counter()
            for _ in range(count):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter() - began
            # Else it would be read from memory; some file systems know better, and do.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            began = time.perf_counter()
            is_same = all(file.read(len(block)) == block for _ in range(count))
            read = time.perf_counter() - began
    except OSError as error:
        return {"file_system_error": error.strerror or str(error)}
    return {
        "free_bytes": float(space.f_bavail * space.f_frsize),
        "write_speed": count * len(block) / written,
        "read_speed": count * len(block) / read,
        "file_system_error": "" if is_same else "what was written was not what was read back",
    }


def _clock(setting: _Setting) -> dict[str, Any]:
    """Seconds by which this clock is ahead of most, read when all have just met; the least of a few times."""
    if setting.place.size == 1:
        return {}
    differences = []
    for _ in range(REPEATS):
        dist.all_reduce(torch.zeros(1))
        now = torch.tensor([time.time()], dtype=torch.float64)
        times = [torch.empty_like(now) for _ in range(setting.place.size)]
        dist.all_gather(times, now)
        differences.append(float(now - torch.cat(times).median()))
    return {"clock_seconds": min(differences, key=abs)}


def _within_node(setting: _Setting) -> dict[str, Any]:
    ranks = setting.ranks_of(setting.place.node)
    if len(ranks) in (1, setting.place.size):
        return {}
    return {"node_bandwidth": _bandwidth(setting, ranks)}


def _with_neighbour(setting: _Setting, round_number: int) -> dict[str, Any]:
    """All-reduce with the processes of one neighbouring node."""
    nodes = list(dict.fromkeys(setting.nodes))
    for pair in rounds_of_ring(len(nodes))[round_number : round_number + 1]:
        for first, second in pair:
            names = [nodes[first], nodes[second]]
            if setting.place.node in names:
                other = names[1 - names.index(setting.place.node)]
                return {"pair_bandwidths": {other: _bandwidth(setting, setting.ranks_of(*names))}}
    return {}


def rounds_of_ring(num_nodes: int) -> list[list[tuple[int, int]]]:
    """Pairs of neighbours on a ring, in rounds in which no node has two.

    None for less than three nodes, where the all-reduce among all says as much.
    """
    if num_nodes < 3:
        return []
    pairs = [(index, (index + 1) % num_nodes) for index in range(num_nodes)]
    if num_nodes % 2 == 0:
        return [pairs[::2], pairs[1::2]]
    return [pairs[:-1:2], pairs[1::2], pairs[-1:]]


def _among_all(setting: _Setting) -> dict[str, Any]:
    if setting.place.size == 1:
        return {}
    return {"all_bandwidth": _bandwidth(setting, list(range(setting.place.size)))}


CHECKS: dict[str, Callable[[_Setting], dict[str, Any]]] = {
    "matrix products": _matrix_products,
    "file system": _file_system,
    "connecting": _connect,
    "clocks": _clock,
    "all-reduce within the node": _within_node,
    **{
        f"all-reduce with a neighbour, round {n + 1}": functools.partial(_with_neighbour, round_number=n)
        for n in range(3)
    },
    "all-reduce among all": _among_all,
}
"""From what one process does to what all do, so that the fewest are suspected where a check fails or hangs."""


def _bandwidth(setting: _Setting, ranks: list[int]) -> float:
    """Bus bandwidth of an all-reduce among `ranks`, in bytes per second: 2 (n - 1) / n * bytes / seconds.

    It is what each link carries, whatever the number n of processes (as in NCCL's own tests).
    """
    # Only its members make a group, so that it costs the same in a job of any size.
    backend, timeout = "nccl" if setting.on_gpus else "gloo", timedelta(seconds=2 * setting.seconds + GRACE_SECONDS)
    group = dist.new_group(ranks, timeout, backend, use_local_synchronization=True)
    num_bytes = REDUCED_BYTES[setting.device.type]
    tensor = torch.ones(num_bytes // 4, device=setting.device)
    dist.all_reduce(tensor, group=group)
    if not bool((tensor == len(ranks)).all()):
        raise RuntimeError(f"the sum of ones over {len(ranks)} processes is not {len(ranks)} everywhere")
    tensor.zero_()
    seconds = statistics.median(_seconds(lambda: dist.all_reduce(tensor, group=group), setting.device))
    # The name of a group holds how many groups there are, which must be the same for all its members.
    dist.destroy_process_group(group)
    return 2 * (len(ranks) - 1) / len(ranks) * num_bytes / seconds


def _seconds(function: Callable[[], Any], device: torch.device) -> list[float]:
    """How long calls of `function` take, after one to warm up."""
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _on_device(check: Callable[[_Setting], dict[str, Any]], setting: _Setting) -> dict[str, Any]:
    if setting.on_gpus:
        torch.cuda.set_device(setting.device)  # each thread has its own
    return check(setting)


def _within(seconds: float, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `check` returns or raises. It runs in a thread, for a disk or a network that hangs does not come back: then
    TimeoutError is raised."""
    found: list[dict[str, Any]] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(check())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"not done after {seconds:.0f} s")
    return found[0]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _end_at_once(status: int) -> NoReturn:
    """End the process, though a thread of it may hang, or others of a collective be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
