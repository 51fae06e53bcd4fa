"""The check of a job's nodes: what is judged, who is missed, and real processes that meet on this machine."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

from armillary.cli import main
from armillary.training.preflight import rounds_of_ring
from armillary.training.preflight_report import Report, describe_problems, judge
from armillary.training.roll_call import Place, expand_node_list, find_place

NUM_NODES, PER_NODE = 5, 2


def healthy(differences=0.0):
    """Reports of ten processes on gpu-10 to gpu-14."""
    reports = []
    for rank in range(NUM_NODES * PER_NODE):
        node, spread = rank // PER_NODE, 1 + differences * (rank % 7)
        neighbours = (node - 1) % NUM_NODES, (node + 1) % NUM_NODES
        reports.append(
            Report(
                rank,
                rank % PER_NODE,
                f"gpu-{10 + node}",
                versions={"torch": "2.12", "driver": "560.35"},
                gpu="NVIDIA H100",
                gpu_id=f"id-{rank}",
                free_gpu_bytes=int(79e9),
                gpu_bytes=int(80e9),
                matrix_products=640e12 * spread,
                backend="nccl",
                all_bandwidth=40e9,
                node_bandwidth=300e9 * spread,
                pair_bandwidths={f"gpu-{10 + other}": 50e9 * spread for other in neighbours},
                folder="/scratch",
                write_speed=1e9 * spread if rank % PER_NODE == 0 else None,
                read_speed=2e9 / spread if rank % PER_NODE == 0 else None,
                free_bytes=1e12 if rank % PER_NODE == 0 else None,
                clock_seconds=0.01 * (rank % 3),
            )
        )
    return reports


def changed(which, **values):
    """Healthy reports, but for some values of the processes `which`."""
    return [dataclasses.replace(r, **values) if r.rank in which else r for r in healthy()]


def slow_links(*links):
    """Healthy reports, but for the links between these pairs of nodes."""

    def speed(report, other, good):
        return 3e9 if {report.node, other} in [set(link) for link in links] else good

    return [
        dataclasses.replace(r, pair_bandwidths={other: speed(r, other, s) for other, s in r.pair_bandwidths.items()})
        for r in healthy()
    ]


def test_nodes_that_are_alike_have_no_problems():
    assert judge(healthy()) == judge(healthy(differences=0.05)) == []
    assert judge([Report(0, 0, "laptop", versions={"torch": "2.12"}, matrix_products=5e10)]) == []


@pytest.mark.parametrize(
    "reports, expected",
    [
        (changed([4, 5], matrix_products=212e12), "node gpu-12: matrix products at 212 of 640 TFLOP/s (median)"),
        (
            changed([5], matrix_products=212e12),
            "node gpu-12: process 5: matrix products at 212 of 640 TFLOP/s (median)",
        ),
        (changed([2, 3], gpu=None, gpu_id=None), "node gpu-11: no GPU, where others have NVIDIA H100"),
        (changed([2], gpu="NVIDIA A100"), "node gpu-11: process 2: NVIDIA A100, where most have NVIDIA H100"),
        (changed([2, 3], gpu_id="one"), "node gpu-11: processes 2-3 have one GPU between them"),
        (
            changed([7], free_gpu_bytes=int(60e9)),
            "node gpu-13: process 7: 20.0 of 80.0 GB of the GPU's memory are taken already, by another program?",
        ),
        (
            changed([8, 9], versions={"torch": "2.12", "driver": "550.54"}),
            "node gpu-14: driver 550.54, where most have 560.35",
        ),
        (
            changed([0, 1], node_bandwidth=100e9),
            "node gpu-10: all-reduce within the node at 100 of 300 GB/s (median)",
        ),
        (
            slow_links(("gpu-11", "gpu-12"), ("gpu-12", "gpu-13")),
            "node gpu-12: all-reduce with its neighbours at 3 of 50 GB/s (median)",
        ),
        (
            slow_links(("gpu-11", "gpu-12")),
            "link gpu-11 to gpu-12: all-reduce at 3 of 50 GB/s (median); each is well with another",
        ),
        (changed([6], write_speed=0.1e9), "node gpu-13: writing at 0.1 of 1 GB/s (median)"),
        (changed([6], read_speed=0.1e9), "node gpu-13: reading back at 0.1 of 2 GB/s (median)"),
        (changed([6], free_bytes=2e9), "node gpu-13: /scratch: 2.0 GB free, expected 10.0 GB"),
        (changed([6], file_system_error="Read-only"), "node gpu-13: /scratch: Read-only"),
        (changed([6, 7], clock_seconds=-40.0), "node gpu-13: its clock is 40.0 s behind those of most nodes"),
        (changed([3], error="matrix products: boom"), "node gpu-11: process 3: matrix products: boom"),
    ],
)
def test_what_is_wrong_is_said_of_its_node_alone(reports, expected):
    assert [str(problem) for problem in judge(reports)] == [expected]


def test_of_two_nodes_the_slow_one_is_bad():
    reports = [dataclasses.replace(r, pair_bandwidths={}) for r in changed([2, 3], matrix_products=300e12)[:4]]
    assert [problem.place for problem in judge(reports)] == ["node gpu-11"]


def test_what_was_lost_is_named_before_those_who_waited_for_it():
    reports = changed(range(10), error="clocks: not done after 300 s")
    reports[7] = Report(7, 1, "gpu-13", error="ended or hangs", is_lost=True)
    assert describe_problems(judge(reports))[:3] == [
        "node gpu-13: process 7: ended or hangs",
        "nodes gpu-10, gpu-11, gpu-12, gpu-14: clocks: not done after 300 s",
        "node gpu-13: process 6: clocks: not done after 300 s",
    ]


@pytest.mark.parametrize("num_nodes", range(3, 9))
def test_on_the_ring_each_node_meets_both_neighbours_and_never_two_at_once(num_nodes):
    rounds = rounds_of_ring(num_nodes)
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert sorted(map(sorted, met)) == sorted(sorted((i, (i + 1) % num_nodes)) for i in range(num_nodes))
    for pairs in rounds:
        members = [node for pair in pairs for node in pair]
        assert len(members) == len(set(members))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("gpu-[08-10,17],login1", ["gpu-08", "gpu-09", "gpu-10", "gpu-17", "login1"]),
        ("a[1-2]b[3-4]c", ["a1b3c", "a1b4c", "a2b3c", "a2b4c"]),
        ("node1", ["node1"]),
    ],
)
def test_lists_of_nodes_are_read_as_slurm_writes_them(text, expected):
    assert expand_node_list(text) == expected


def test_a_process_finds_its_place_by_what_started_it():
    srun = {"SLURM_JOB_ID": "30007", "SLURM_JOB_NODELIST": "gpu-[1-2]", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8"}
    srun |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "gpu-2"}
    assert find_place(srun) == Place(5, 8, 1, "gpu-2", "gpu-1", 30007, ("gpu-1", "gpu-2"))
    named = find_place({**srun, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (named.address, named.port) == ("10.0.0.1", 29500)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
    torchrun |= {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    by_torchrun = Place(3, 4, 1, socket.gethostname(), "h", 29500, store_stands=True)
    assert find_place(torchrun) == by_torchrun
    assert find_place({**srun, **torchrun, "SLURMD_NODENAME": socket.gethostname()}) == by_torchrun
    assert find_place({}).size == 1
    with pytest.raises(ValueError, match="expected to be started by srun"):
        find_place({name: value for name, value in srun.items() if name != "SLURM_STEP_ID"})
    with pytest.raises(ValueError, match="expected a number in the environment variable MASTER_PORT, found 'x'"):
        find_place({**torchrun, "MASTER_PORT": "x"})


def test_alone_a_machine_is_well_if_its_disk_has_space(tmp_path, monkeypatch, capsys):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert main(["preflight", str(tmp_path), "--least-free", "0"]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert main(["preflight", str(tmp_path), "--least-free", "1e12"]) == 1
    assert "GB free, expected 1000000000000.0 GB" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def start(rank, size, port, *words):
    """A task of a Slurm job that has a node for each, all on this machine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": f"gpu-[1-{size}]",
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": f"gpu-{rank + 1}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "armillary.cli", "preflight", *map(str, words)]
    return subprocess.Popen(
        command, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_processes_meet_and_the_one_without_its_file_system_is_named(tmp_path, port):
    words = ["--minutes-timeout", "2", "--least-free", "0", "--json", tmp_path / "found.json"]
    folders = [tmp_path / "runs", tmp_path / "runs", tmp_path / "not-mounted"]
    processes = [start(rank, 3, port, folder, *words) for rank, folder in enumerate(folders)]
    answers = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 1], answers
    # Speeds of three processes on two cores may differ by anything.
    assert f"node gpu-3: {tmp_path}/not-mounted: No such file or directory" in answers[0][0]
    assert answers[1] == answers[2] == ("", "")
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"place": "node gpu-3", "text": f"{tmp_path}/not-mounted: No such file or directory"} in found["problems"]
    assert [report["node"] for report in found["reports"]] == ["gpu-1", "gpu-2", "gpu-3"]
    for report in found["reports"]:
        assert report["error"] == ""
        assert report["matrix_products"] > 0
        assert report["all_bandwidth"] > 0
        assert abs(report["clock_seconds"]) < 1  # it is one clock
        others = {"gpu-1", "gpu-2", "gpu-3"} - {report["node"]}
        assert set(report["pair_bandwidths"]) == others
    assert [report["file_system_error"] for report in found["reports"][:2]] == ["", ""]  # process 0 made the folder
    assert found["reports"][0]["write_speed"] > 0
    assert found["reports"][2]["write_speed"] is None


def test_who_never_comes_is_named_with_its_node(tmp_path, port):
    process = start(0, 2, port, tmp_path, "--minutes-timeout", "0.03")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (
        "1 of 2 processes came within 2 s; missing: 1. Nobody came from node gpu-2. Present, by node: gpu-1: 0"
        in output
    )
    assert errors == ""


def test_where_process_0_never_comes_the_others_say_so(tmp_path, port):
    process = start(1, 2, port, tmp_path, "--minutes-timeout", "0.02")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"process 1 on gpu-2: nobody answers at 127.0.0.1:{port}" in output
