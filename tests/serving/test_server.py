import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest
from fake_model import FakeModel, embedding_table, images

from armillary.serving import served, server
from armillary.serving.client.client import Client
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError

HERE = Path(__file__).parent


def start(index_folder, ready_file, warm_up=False, drain_seconds=0.0, seconds=1.5):
    """The real `serve` in a process of its own; only the checkpoint is fake."""
    program = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(HERE)!r})
        from fake_model import FakeModel
        from armillary.serving import served, server
        from armillary.serving.server_settings import ServerSettings

        class Checkpoint(FakeModel):
            @classmethod
            def load(cls, folder, device="cpu"):
                return cls()

            def embed(self, observations, space="aligned"):
                sys.stdout.write("working\\n"), sys.stdout.flush()
                time.sleep({seconds})
                return super().embed(observations, space)

        served.FoundationModel = Checkpoint
        settings = ServerSettings(warm_up={warm_up}, drain_seconds={drain_seconds})
        what = served.Served("checkpoint", {str(index_folder)!r}, settings=settings)
        server.serve(what, port=0, ready_file={str(ready_file)!r})
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(path, process):
    for _ in range(6000):
        if path.exists():
            return json.loads(path.read_text())
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("the server did not start")


def test_the_server_announces_itself_finishes_its_work_on_sigterm_and_ends_well(index_folder, tmp_path):
    process = start(index_folder, tmp_path / "ready.json")
    try:
        ready = wait_for(tmp_path / "ready.json", process)
        assert ready["pid"] == process.pid
        assert ready["url"].startswith("http://127.0.0.1:")
        assert process.stdout.readline() == f"Armillary answers on {ready['url']}\n"
        answers = []
        with Client(ready["url"]) as client:
            assert client.neighbours("object-3", 2)
            thread = threading.Thread(target=lambda: answers.append(client.embed([images(2)])))
            thread.start()
            assert process.stdout.readline() == "working\n"
            process.send_signal(signal.SIGTERM)
            thread.join(20)
        assert len(answers[0]) == 2
        assert process.wait(20) == 0, process.stderr.read()
        assert not (tmp_path / "ready.json").exists()
    finally:
        process.kill()
        process.communicate()


def test_before_it_stops_a_server_is_unready_and_answers_still_for_as_long_as_it_was_told(index_folder, tmp_path):
    process = start(index_folder, tmp_path / "ready.json", drain_seconds=2.0)
    try:
        url = wait_for(tmp_path / "ready.json", process)["url"]
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 20
        while (answer := httpx.get(f"{url}/readyz", trust_env=False)).status_code == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        with Client(url) as client:
            assert client.neighbours("object-3", 2)
        assert process.wait(20) == 0, process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_a_server_is_ready_only_when_it_is_warm(index_folder, tmp_path):
    process = start(index_folder, tmp_path / "ready.json", warm_up=True, seconds=0.0)
    try:
        url = wait_for(tmp_path / "ready.json", process)["url"]
        lines = []
        while not lines or not lines[-1].startswith("Armillary"):
            lines.append(process.stdout.readline())
        # Two cameras and a spectrograph, in two spaces, alone and together.
        assert lines == ["working\n"] * 12 + [f"Armillary answers on {url}\n"]
    finally:
        process.kill()
        process.communicate()


def test_sighup_opens_the_index_anew_and_a_damaged_one_leaves_the_old(index_folder, tmp_path):
    place = shutil.copytree(index_folder, tmp_path / "index")
    process = start(place, tmp_path / "ready.json")
    try:
        url = wait_for(tmp_path / "ready.json", process)["url"]

        def index_id():
            return httpx.get(f"{url}/readyz", trust_env=False).json()["index_id"]

        first = index_id()
        table = embedding_table(FakeModel(), [images(30)])
        EmbeddingIndex.build(table).save(tmp_path / "smaller")
        place.rename(tmp_path / "old")
        (tmp_path / "smaller").rename(place)
        process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 20
        while (second := index_id()) == first and time.monotonic() < until:
            time.sleep(0.02)
        assert second != first
        with Client(url) as client:
            assert client.collections()[0]["num_objects"] == 30

        next(place.glob("manifest*.json")).write_text("{")
        answer = httpx.post(f"{url}/v1/admin/reload", trust_env=False)
        assert answer.status_code == 409
        assert "the index is as before" in answer.json()["detail"]
        with Client(url) as client:
            assert len(client.neighbours("object-3", 5)) == 5
        assert index_id() == second
    finally:
        process.kill()
        process.communicate()


def test_an_index_of_another_model_stops_the_server_at_its_start(index_folder, tmp_path, monkeypatch):
    class OtherCheckpoint(FakeModel):
        model_id = "armillary-ffffffffffff"

        @classmethod
        def load(cls, folder, device="cpu"):
            return cls()

    monkeypatch.setattr(served, "FoundationModel", OtherCheckpoint)
    with pytest.raises(EmbeddingIndexError, match="index holds embeddings of model 'armillary-0123456789ab'"):
        server.serve(served.Served("checkpoint", index_folder), port=0, ready_file=tmp_path / "ready.json")
    assert not (tmp_path / "ready.json").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "galaxies.example.org"])
def test_other_machines_are_answered_only_with_a_key(host):
    with pytest.raises(ValueError, match="set an api_key"):
        served.check_host(host, False)
    served.check_host(host, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_key(host):
    served.check_host(host, False)
