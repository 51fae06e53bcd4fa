"""What the processes of a job found of their nodes before it begins, and which node is bad.

Nodes of one job should be alike, so most of them say what is normal: a node is slow where it has less than a share of
the median. `judge` is a pure function of the reports.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from .roll_call import ranges

SLOW_SHARE = 0.5
"""Less than this share of the median is a problem."""
SLOW_DISK_SHARE = 0.2
"""The same for reading and writing, of which nodes that share a file system get uneven parts."""
LEAST_FREE_BYTES = 10e9
MOST_TAKEN_SHARE = 0.1
"""Of a GPU's memory, before the job has taken any."""
MOST_CLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Report:
    """What one process found. Speeds are in bytes or operations per second; None is what was not measured."""

    rank: int
    local_rank: int
    node: str
    error: str = ""
    """What ended its checks."""
    is_lost: bool = False
    """It said nothing more; `error` is what the others say of it."""
    versions: dict[str, str] = field(default_factory=dict)
    gpu: str | None = None
    """Its name."""
    gpu_id: str | None = None
    free_gpu_bytes: int | None = None
    gpu_bytes: int | None = None
    matrix_products: float | None = None
    backend: str = ""
    """What the all-reduces went by: nccl or gloo. Their speeds are bus bandwidths."""
    all_bandwidth: float | None = None
    node_bandwidth: float | None = None
    """Among the processes of the node."""
    pair_bandwidths: dict[str, float] = field(default_factory=dict)
    """With the processes of each neighbouring node."""
    folder: str = ""
    file_system_error: str = ""
    write_speed: float | None = None
    read_speed: float | None = None
    free_bytes: float | None = None
    clock_seconds: float | None = None
    """How much later it is here than on most processes."""


@dataclass(frozen=True)
class Problem:
    """Something wrong, and where: a node, or a link between two."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def judge(reports: Sequence[Report], least_free_bytes: float = LEAST_FREE_BYTES) -> list[Problem]:
    """What is wrong with which node, by the reports of all processes."""
    nodes: dict[str, list[Report]] = {}
    for report in reports:
        nodes.setdefault(report.node, []).append(report)
    return [
        *_errors(nodes),
        *_gpus(nodes),
        *_versions(nodes),
        *_slow_products(nodes),
        *_slow(nodes, "all-reduce within the node", lambda report: report.node_bandwidth, SLOW_SHARE),
        *_slow_links(nodes),
        *_slow(nodes, "writing", lambda report: report.write_speed, SLOW_DISK_SHARE),
        *_slow(nodes, "reading back", lambda report: report.read_speed, SLOW_DISK_SHARE),
        *_disks(nodes, least_free_bytes),
        *_clocks(nodes),
    ]


_Nodes = Mapping[str, Sequence[Report]]


def _errors(nodes: _Nodes) -> Iterator[Problem]:
    """Those that were lost come first: the others' collectives failed for want of them."""
    for is_lost in (True, False):
        for node, reports in nodes.items():
            failed = [report for report in reports if report.error and report.is_lost == is_lost]
            for error in dict.fromkeys(report.error for report in failed):
                yield Problem(f"node {node}", _whose([r for r in failed if r.error == error], reports) + error)


def _gpus(nodes: _Nodes) -> Iterator[Problem]:
    names = Counter(report.gpu for reports in nodes.values() for report in reports if report.gpu)
    if not names:
        return
    usual = names.most_common(1)[0][0]
    for node, reports in nodes.items():
        without = [report for report in reports if report.gpu is None and report.versions]
        if without:
            yield Problem(f"node {node}", f"{_whose(without, reports)}no GPU, where others have {usual}")
        for name in dict.fromkeys(report.gpu for report in reports if report.gpu not in (None, usual)):
            others = [report for report in reports if report.gpu == name]
            yield Problem(f"node {node}", f"{_whose(others, reports)}{name}, where most have {usual}")
        users: dict[str, list[Report]] = {}
        for report in reports:
            if report.gpu_id is not None:
                users.setdefault(report.gpu_id, []).append(report)
        for sharing in users.values():
            if len(sharing) > 1:
                yield Problem(f"node {node}", f"{_processes(sharing)} have one GPU between them")
            report = sharing[0]
            taken = (report.gpu_bytes or 0) - (report.free_gpu_bytes or 0)
            if taken > MOST_TAKEN_SHARE * (report.gpu_bytes or 0):
                yield Problem(
                    f"node {node}",
                    f"{_processes(sharing)}: {taken / 1e9:.1f} of {(report.gpu_bytes or 0) / 1e9:.1f} GB of the GPU's "
                    "memory are taken already, by another program?",
                )


def _versions(nodes: _Nodes) -> Iterator[Problem]:
    names = dict.fromkeys(name for reports in nodes.values() for report in reports for name in report.versions)
    for name in names:
        found = Counter(
            report.versions.get(name, "none") for reports in nodes.values() for report in reports if report.versions
        )
        usual = found.most_common(1)[0][0]
        for node, reports in nodes.items():
            for version in dict.fromkeys(report.versions.get(name, "none") for report in reports if report.versions):
                if version != usual:
                    yield Problem(f"node {node}", f"{name} {version}, where most have {usual}")


def _slow_products(nodes: _Nodes) -> Iterator[Problem]:
    speeds = [r.matrix_products for reports in nodes.values() for r in reports if r.matrix_products is not None]
    if not speeds:
        return
    usual = statistics.median_high(speeds)
    for node, reports in nodes.items():
        slow = [r for r in reports if r.matrix_products is not None and r.matrix_products < SLOW_SHARE * usual]
        if slow:
            worst = min(report.matrix_products or 0.0 for report in slow)
            figures = f"{worst / 1e12:.3g} of {usual / 1e12:.3g} TFLOP/s (median)"
            yield Problem(f"node {node}", f"{_whose(slow, reports)}matrix products at {figures}")


def _slow(
    nodes: _Nodes, what: str, speed_of: Callable[[Report], float | None], least_share: float
) -> Iterator[Problem]:
    speeds = {node: _median(map(speed_of, reports)) for node, reports in nodes.items()}
    known = [speed for speed in speeds.values() if speed is not None]
    for node, speed in speeds.items():
        # The higher of two in the middle: where half of the nodes are slow, they are the bad half.
        if speed is not None and speed < least_share * statistics.median_high(known):
            yield Problem(f"node {node}", f"{what} {_of(speed, statistics.median_high(known))}")


def _slow_links(nodes: _Nodes) -> Iterator[Problem]:
    """A bad node is slow with both of its neighbours, each of which is not slow with its other one."""
    links: dict[tuple[str, str], list[float]] = {}
    for node, reports in nodes.items():
        for report in reports:
            for other, speed in report.pair_bandwidths.items():
                links.setdefault((min(node, other), max(node, other)), []).append(speed)
    if not links:
        return
    speeds = {link: statistics.median(measured) for link, measured in links.items()}
    best = {node: max((s for link, s in speeds.items() if node in link), default=0.0) for node in nodes}
    usual = statistics.median_high([speed for speed in best.values() if speed])
    slow = {node for node, speed in best.items() if speed and speed < SLOW_SHARE * usual}
    for node in nodes:
        if node in slow:
            yield Problem(f"node {node}", f"all-reduce with its neighbours {_of(best[node], usual)}")
    usual = statistics.median_high(speeds.values())
    for link, speed in speeds.items():
        if speed < SLOW_SHARE * usual and not slow & set(link):
            yield Problem(f"link {link[0]} to {link[1]}", f"all-reduce {_of(speed, usual)}; each is well with another")


def _disks(nodes: _Nodes, least_free_bytes: float) -> Iterator[Problem]:
    for node, reports in nodes.items():
        for report in reports:
            if report.file_system_error:
                yield Problem(f"node {node}", f"{report.folder}: {report.file_system_error}")
            if report.free_bytes is not None and report.free_bytes < least_free_bytes:
                yield Problem(
                    f"node {node}",
                    f"{report.folder}: {report.free_bytes / 1e9:.1f} GB free, expected {least_free_bytes / 1e9:.1f} GB",
                )


def _clocks(nodes: _Nodes) -> Iterator[Problem]:
    for node, reports in nodes.items():
        difference = _median(report.clock_seconds for report in reports)
        if difference is not None and abs(difference) > MOST_CLOCK_SECONDS:
            sign = "ahead of" if difference > 0 else "behind"
            yield Problem(f"node {node}", f"its clock is {abs(difference):.1f} s {sign} those of most nodes")


def describe_problems(problems: Sequence[Problem]) -> list[str]:
    """A line for each problem; the same on several nodes is one line that names them."""
    places: dict[str, list[str]] = {}
    for problem in problems:
        places.setdefault(problem.text, []).append(problem.place)
    lines = []
    for text, found in places.items():
        if len(found) > 1 and all(place.startswith("node ") for place in found):
            lines.append(f"nodes {', '.join(place.removeprefix('node ') for place in found)}: {text}")
        else:
            lines += [f"{place}: {text}" for place in found]
    return lines


def make_table(reports: Sequence[Report]) -> Table:
    """A row for each node: the slowest of its processes, and the slowest of its neighbours."""
    backend = next((report.backend for report in reports if report.backend), "")
    table = Table(title="preflight", caption=f"all-reduce by {backend}: bus bandwidth" if backend else None)
    for column in ("node", "processes", "GPU", "GPU memory free"):
        table.add_column(column)
    for column in ("products\nTFLOP/s", "in node\nGB/s", "neighbours\nGB/s", "all\nGB/s"):
        table.add_column(column, justify="right")
    for column in ("write\nGB/s", "read\nGB/s", "free\nGB", "clock\ns"):
        table.add_column(column, justify="right")
    nodes: dict[str, list[Report]] = {}
    for report in reports:
        nodes.setdefault(report.node, []).append(report)
    for node, of_node in nodes.items():
        memory = [r.free_gpu_bytes for r in of_node if r.free_gpu_bytes is not None]
        table.add_row(
            node,
            ranges([report.rank for report in of_node]),
            ", ".join(f"{count} x {name or 'none'}" for name, count in Counter(r.gpu for r in of_node).items()),
            f"{min(memory) / 1e9:.1f} GB" if memory else "-",
            _least([r.matrix_products for r in of_node], 1e12),
            _least([r.node_bandwidth for r in of_node], 1e9),
            _least([speed for r in of_node for speed in r.pair_bandwidths.values()], 1e9),
            _least([r.all_bandwidth for r in of_node], 1e9),
            _least([r.write_speed for r in of_node], 1e9),
            _least([r.read_speed for r in of_node], 1e9),
            _least([r.free_bytes for r in of_node], 1e9),
            _least([_median(r.clock_seconds for r in of_node)], 1.0, "{:+.3f}"),
        )
    return table


def _least(values: Sequence[float | None], unit: float, form: str = "{:.3g}") -> str:
    known = [value for value in values if value is not None]
    return form.format(min(known) / unit) if known else "-"


def _median(values: Iterator[float | None] | Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _of(speed: float, usual: float) -> str:
    return f"at {speed / 1e9:.3g} of {usual / 1e9:.3g} GB/s (median)"


def _whose(found: Sequence[Report], of_node: Sequence[Report]) -> str:
    """Which processes of a node, where it is not all."""
    return "" if len(found) == len(of_node) else f"{_processes(found)}: "


def _processes(reports: Sequence[Report]) -> str:
    return f"process{'es' * (len(reports) > 1)} {ranges([report.rank for report in reports])}"
