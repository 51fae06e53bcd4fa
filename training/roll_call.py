"""Who came to a rendezvous, and who did not: the processes of a job write their names before they depend on each other.

A collective that waits for a process says only that it waited. Here each process writes to a store, which process 0
holds, and process 0 reads whose word is missing. A word may also be how a check went, so that one that failed or hangs
is named too.
"""

import json
import re
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

GRACE_SECONDS = 15.0
"""How much longer process 0's decision is awaited than the words it decides by."""


class AbsentError(RuntimeError):
    """Processes did not come; the message says which, and from which nodes. It is empty where process 0 says it."""


@dataclass(frozen=True)
class Place:
    """Which process this is, and where its job meets. `nodes`: all nodes of the job, where that is known."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: str = ""
    address: str = ""
    port: int = 0
    nodes: tuple[str, ...] = ()
    store_stands: bool = False
    """The launcher (torchrun) holds the store, not process 0."""


def find_place(environment: Mapping[str, str]) -> Place:
    """This process's place by the variables of torchrun, else of Slurm's srun, else RANK and WORLD_SIZE, else alone.

    Without MASTER_ADDR a Slurm job meets on its first node. Raises ValueError for a variable that is missing or wrong.
    """

    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name, "" if default is None else str(default))
        if not text.isdigit():
            raise ValueError(f"expected a number in the environment variable {name}, found {text!r}")
        return int(text)

    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    by_slurm = "SLURM_PROCID" in environment and "TORCHELASTIC_RUN_ID" not in environment
    if by_slurm:
        nodes = tuple(
            expand_node_list(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", node))
        )
        rank, size = number("SLURM_PROCID"), number("SLURM_NTASKS", 1)
        if size > 1 and "SLURM_STEP_ID" not in environment:
            raise ValueError(f"the job has {size} tasks, and this is its batch script: expected to be started by srun")
        address = environment.get("MASTER_ADDR") or nodes[0]
        port = number("MASTER_PORT", 20_000 + number("SLURM_JOB_ID", 0) % 20_000)
        return Place(rank, size, number("SLURM_LOCALID", 0), node, address, port, nodes)
    if "RANK" in environment and number("WORLD_SIZE") > 1:
        place = number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK", 0)
        stands = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Place(*place, node, environment.get("MASTER_ADDR", ""), number("MASTER_PORT"), store_stands=stands)
    return Place(node=node)


def expand_node_list(text: str) -> list[str]:
    """The names in a list as Slurm writes it: `gpu-[08-10,17],login1` is gpu-08, gpu-09, gpu-10, gpu-17, login1."""
    names = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        match = re.match(r"([^\[]*)\[([^\]]*)\](.*)", word)
        if match is None:
            names.append(word)
            continue
        before, numbers, after = match.groups()
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names += expand_node_list(f"{before}{number:0{len(first)}d}{after}")
    return names


class RollCall:
    """The processes of a job, once all have come. Raises AbsentError where some have not within `seconds`."""

    def __init__(self, place: Place, seconds: float):
        self.place = place
        self.lost: dict[int, str] = {}
        """Of process 0: processes that did not answer in time, and to what."""
        self.nodes: tuple[str, ...] = (place.node,)
        """The node of each process."""
        if place.size == 1:
            self.store: Any = dist.HashStore()  # type: ignore[attr-defined]
            self.store_of_groups: Any = self.store
            return
        self.store = dist.PrefixStore("preflight", _open_store(place, seconds))  # type: ignore[attr-defined]
        # A connection is held by whoever waits on it, and collectives may wait for long.
        self.store_of_groups = self.store.clone()
        self.say("arrived", place.node)
        if place.rank == 0:
            came = self.hear("arrived", seconds)
            told = _describe_absent(place, came, seconds) if self.lost else ""
            self.announce("all here", {"told": told, "nodes": [came.get(rank, "") for rank in range(place.size)]})
        answer = self.listen("all here", seconds + GRACE_SECONDS)
        if answer["told"]:
            self.say("told", True)
            if place.rank == 0:
                self.hear("told", GRACE_SECONDS)  # whoever holds the store goes last
            raise AbsentError(answer["told"] if place.rank == 0 else "")
        self.nodes = tuple(answer["nodes"])

    def say(self, subject: str, word: Any) -> None:
        """Give this process's word (of JSON) on a subject."""
        self.store.set(f"{subject}/{self.place.rank}", json.dumps(word))

    def hear(self, subject: str, seconds: float) -> dict[int, Any]:
        """The words of all processes that speak within `seconds`; the others are `lost`. For process 0."""
        deadline = time.monotonic() + seconds
        words = {}
        for rank in range(self.place.size):
            key = f"{subject}/{rank}"
            # One that was lost before may have spoken since, but is not waited for.
            left = 0.0 if rank in self.lost else deadline - time.monotonic()
            if self._wait(key, left):
                words[rank] = json.loads(self.store.get(key))
            else:
                self.lost.setdefault(rank, subject)
        return words

    def announce(self, subject: str, decision: Any) -> None:
        """Tell all processes what process 0 has decided."""
        self.store.set(subject, json.dumps(decision))

    def listen(self, subject: str, seconds: float) -> Any:
        """What process 0 has decided. Raises AbsentError if it says nothing within `seconds`."""
        if not self._wait(subject, seconds):
            raise AbsentError(
                f"process {self.place.rank} on {self.place.node}: process 0 at {self.place.address} did not answer "
                f"within {seconds:.0f} s ({subject})"
            )
        return json.loads(self.store.get(subject))

    def all_well(self, subject: str, is_well: bool, left: float, seconds: float) -> bool:
        """Whether all processes say that they are well within the `left` of `seconds`; the same answer on all."""
        self.say(subject, is_well)
        if self.place.rank == 0:
            words = self.hear(subject, left)
            self.announce(f"{subject}, all", len(words) == self.place.size and all(words.values()))
        return bool(self.listen(f"{subject}, all", seconds + 2 * GRACE_SECONDS))

    def _wait(self, key: str, seconds: float) -> bool:
        try:
            self.store.wait([key], timedelta(seconds=max(seconds, 0.01)))
        except RuntimeError:  # time-out, or the connection is lost
            return False
        return True


def ranges(numbers: Collection[int]) -> str:
    """Numbers as text, runs shortened: 0-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _open_store(place: Place, seconds: float) -> Any:
    holds = place.rank == 0 and not place.store_stands
    where = f"{place.address}:{place.port} (MASTER_ADDR, MASTER_PORT)"
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            place.address,
            place.port,
            place.size,
            is_master=holds,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        told = f"process 0 on {place.node} cannot listen at {where}"
        if not holds:
            told = f"process {place.rank} on {place.node}: nobody answers at {where}; did process 0 start?"
        raise AbsentError(f"{told}: {reason}") from None


def _describe_absent(place: Place, came: Mapping[int, str], seconds: float) -> str:
    absent = set(range(place.size)) - set(came)
    by_node: dict[str, list[int]] = {}
    for rank, node in came.items():
        by_node.setdefault(node, []).append(rank)
    silent = [node for node in place.nodes if node not in by_node]
    from_whom = f" Nobody came from node{'s' * (len(silent) > 1)} {', '.join(silent)}." if silent else ""
    present = "; ".join(f"{node}: {ranges(ranks)}" for node, ranks in by_node.items())
    return (
        f"{len(came)} of {place.size} processes came within {seconds:.0f} s; missing: {ranges(absent)}.{from_whom} "
        f"Present, by node: {present}"
    )
