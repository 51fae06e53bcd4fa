"""Replicas on Ray Serve: the real command, one of its replicas killed under load, a new index, and its end."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from tiny_checkpoint import redshifts, save_tiny_checkpoint, save_tiny_index

import armillary
from armillary import cli
from armillary.serving import replicas
from armillary.serving.client.client import Client
from armillary.serving.client.requests import is_worth_repeating
from armillary.serving.idempotency import KeysInUse
from armillary.serving.problems import ProblemError
from armillary.serving.replicas import check_replicas, import_ray
from armillary.serving.served import Served

START_SECONDS, NOTICE_SECONDS, END_SECONDS = 240, 120, 60
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray; `make test-slow` installs it where it can be had"
)


# ---- what can be asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "served, number, problem",
    [
        (Served("checkpoint"), 0, "at least 1, found 0"),
        (Served("checkpoint", device="cuda:1"), 2, "use device cuda, found 'cuda:1'"),
        (Served("checkpoint", host="::1"), 2, "found host '::1'"),
        (Served("checkpoint", "rows.db#objects"), 2, "milvus-lite lets in one process"),
    ],
)
def test_what_replicas_cannot_serve_is_refused_before_ray_is_started(served, number, problem):
    with pytest.raises(ValueError, match=problem):
        check_replicas(served, number)


def test_other_machines_are_answered_by_replicas_only_with_a_key_too():
    with pytest.raises(ValueError, match="set an api_key or keys"):
        Served("checkpoint", host="0.0.0.0")
    check_replicas(Served("checkpoint", host="0.0.0.0", api_key="a-key"), 2)


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'armillary\[ray\]'"):
        import_ray()


def test_the_command_refuses_in_one_line(capsys):
    assert cli.main(["serve", "checkpoint", "--replicas", "0"]) == 2
    assert capsys.readouterr().err == "armillary: replicas must be at least 1, found 0\n"


def test_what_is_served_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    found = Served("model", "index", probes=("org/probe",), request_log="-", state=Path("state")).for_any_folder()
    assert (found.checkpoint, found.index, found.state) == tuple(
        tmp_path / name for name in ("model", "index", "state")
    )
    assert (found.probes, found.request_log) == (("org/probe",), "-")
    assert Served("org/model", "http://milvus:19530#objects").for_any_folder().index == "http://milvus:19530#objects"


def test_the_commands_of_the_page_are_such_as_the_command_takes(monkeypatch):
    page = (Path(armillary.__file__).parent / "docs" / "serving.md").read_text(encoding="utf-8")
    section = page.split("## More than one machine\n")[1].split("\n## ")[0]
    taken = []
    monkeypatch.setattr(
        replicas, "serve_replicas", lambda served, number, port, **options: taken.append((served.device, number))
    )
    for words in re.findall(r"^    armillary (serve .*)$", section, re.MULTILINE):
        assert cli.main(words.split()) == 0
    assert taken == [("cuda", 2), ("cpu", 8)]


def test_a_client_asks_again_where_a_proxy_lost_its_server_but_not_where_the_server_itself_failed():
    lost = httpx.Response(500, text="Internal Server Error", headers={"content-type": "text/plain"})
    failed = httpx.Response(500, json={"title": "Fault"}, headers={"content-type": "application/problem+json"})
    assert is_worth_repeating(lost)
    assert not is_worth_repeating(failed)


# ---- what processes share ----------------------------------------------------------------------------------------

HOLDER = """
import sys, pathlib
from armillary.serving.client.requests import is_worth_repeating
from armillary.serving.idempotency import KeysInUse
with KeysInUse(pathlib.Path(sys.argv[1])).held(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_key_is_held_in_all_processes_and_given_up_with_its_holder(tmp_path):
    keys, key, other = KeysInUse(tmp_path / "keys.lock"), "ab" * 32, "cd" * 32
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "keys.lock"), key]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ProblemError, match="is being worked on"), keys.held(key):
            pass
        with keys.held(other):
            pass
        holder.kill()
    with keys.held(key):
        pass


# ---- the real command --------------------------------------------------------------------------------------------


def processes_below(pid):
    """The descendants of a process, by id, and their names."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            state, parent = stat.rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: names[child] for child in below - {pid}}


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Replicated:
    """The command with two replicas, in a process of its own."""

    def __init__(self, folder):
        self.folder, self.ready_file = folder, folder / "ready.json"
        self.model = save_tiny_checkpoint(folder / "checkpoint")
        save_tiny_index(folder / "index", self.model)
        self.log = (folder / "log").open("w+")
        words = ["checkpoint", "--index", "index", "--state", "state", "--replicas", "2", "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "armillary.cli", "serve", *words, "--ready-file", str(self.ready_file)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        wait_for(lambda: self.ready_file.exists() or self.process.poll() is not None, START_SECONDS, "replicas")
        assert self.process.poll() is None, self.said()
        self.url = json.loads(self.ready_file.read_text())["url"]

    def said(self):
        return (self.folder / "log").read_text()

    def replicas(self):
        return {pid for pid, name in processes_below(self.process.pid).items() if name.startswith("ray::ServeReplica")}

    def index_ids(self):
        """As the replicas say: each connection goes to the next of them."""
        return {httpx.get(f"{self.url}/readyz", trust_env=False).json()["index_id"] for _ in range(8)}

    def close(self):
        below = processes_below(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.log.close()


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    served = Replicated(tmp_path_factory.mktemp("replicas"))
    try:
        yield served
    finally:
        served.close()


class Load(threading.Thread):
    """Asks one question after another until `stop`; `answers` and `failures` are what came of it."""

    def __init__(self, ask):
        super().__init__(daemon=True)
        self.ask, self.answers, self.failures = ask, [], []
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.is_set():
            try:
                self.answers.append(self.ask())
            except Exception as error:
                self.failures.append(error)

    def stop(self):
        self.stopped.set()
        self.join(60)


@needs_ray
@pytest.mark.slow
def test_a_replica_that_is_killed_under_load_is_replaced_and_no_caller_of_a_client_notices(replicated):
    given = redshifts()
    expected = replicated.model.embed([given], "encoder").numpy()
    first = replicated.replicas()
    assert len(first) == 2
    with Client(replicated.url) as client:
        loads = [Load(lambda: client.embed([given], "encoder").numpy()) for _ in range(3)]
        loads.append(Load(lambda: client.neighbours("object-3", 2).object_id))
        for load in loads:
            load.start()
        wait_for(lambda: all(len(load.answers) > 10 for load in loads), 60, "answers before the kill")
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        now = wait_for(
            lambda: (found := replicated.replicas()) and len(found) == 2 and killed not in found and found,
            NOTICE_SECONDS,
            "a new replica",
        )
        so_far = [len(load.answers) for load in loads]
        wait_for(
            lambda: all(len(load.answers) > 10 + before for load, before in zip(loads, so_far, strict=True)),
            60,
            "answers after it",
        )
        for load in loads:
            load.stop()
    assert len(now & first) == 1
    assert [load.failures for load in loads] == [[]] * 4
    for load in loads[:3]:
        for answer in load.answers:
            np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert len({tuple(answer) for answer in loads[3].answers}) == 1


@needs_ray
@pytest.mark.slow
def test_a_new_index_reaches_all_replicas_without_being_told(replicated):
    (before,) = replicated.index_ids()
    save_tiny_index(replicated.folder / "larger", replicated.model, 25)
    (replicated.folder / "index").rename(replicated.folder / "old")
    (replicated.folder / "larger").rename(replicated.folder / "index")
    replicated.process.send_signal(signal.SIGHUP)
    (now,) = wait_for(lambda: (ids := replicated.index_ids()) and before not in ids and ids, 60, "a new index")
    assert now != before
    with Client(replicated.url) as client:
        assert client.collections()[0]["num_objects"] == 25


@needs_ray
@pytest.mark.slow
def test_a_job_that_one_replica_took_in_is_seen_by_all(replicated):
    with Client(replicated.url) as client:
        job = client.start_neighbours_job(["object-1", "object-2"], 2)
    seen = [httpx.get(f"{replicated.url}/v1/jobs/{job.id}", trust_env=False).status_code for _ in range(8)]
    assert set(seen) == {200}


@needs_ray
@pytest.mark.slow
def test_at_its_end_the_command_answers_what_is_in_hand_and_leaves_no_process(replicated):
    below = processes_below(replicated.process.pid)
    assert len(below) > 5
    body = json.dumps({"input": [{"modality": "scalar/redshift", "data": 0.3}], "space": "encoder"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", int(replicated.url.rsplit(":", 1)[1]))) as caller:
        caller.settimeout(END_SECONDS)
        caller.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:10])
        time.sleep(1)  # nothing tells when the request has come to a replica
        replicated.process.send_signal(signal.SIGTERM)
        wait_for(lambda: _is_refused(replicated.url), END_SECONDS, "the end of new requests")
        caller.sendall(body[10:])
        assert caller.recv(100).startswith(b"HTTP/1.1 200")
    assert replicated.process.wait(END_SECONDS) == 0, replicated.said()
    assert not replicated.ready_file.exists()
    wait_for(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], END_SECONDS, "the end of all")


def _is_refused(url):
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code != 200
    except httpx.TransportError:
        return True
