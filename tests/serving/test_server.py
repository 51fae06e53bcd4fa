import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from fake_model import FakeModel, images

from armillary.serving import server
from armillary.serving.client import Client
from armillary.serving.index import EmbeddingIndexError

HERE = Path(__file__).parent


def start(index_folder, ready_file):
    """The real `serve` in a process of its own; only the checkpoint is fake."""
    program = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(HERE)!r})
        from fake_model import FakeModel
        from armillary.serving import server

        class Checkpoint(FakeModel):
            @classmethod
            def load(cls, folder, device="cpu"):
                return cls()

            def embed(self, observations, space="aligned"):
                sys.stdout.write("working\\n"), sys.stdout.flush()
                time.sleep(1.5)
                return super().embed(observations, space)

        server.FoundationModel = Checkpoint
        server.serve("checkpoint", {str(index_folder)!r}, port=0, ready_file={str(ready_file)!r})
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(path, process):
    for _ in range(1500):
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


def test_an_index_of_another_model_stops_the_server_at_its_start(index_folder, tmp_path, monkeypatch):
    class OtherCheckpoint(FakeModel):
        model_id = "armillary-ffffffffffff"

        @classmethod
        def load(cls, folder, device="cpu"):
            return cls()

    monkeypatch.setattr(server, "FoundationModel", OtherCheckpoint)
    with pytest.raises(EmbeddingIndexError, match="index holds embeddings of model 'armillary-0123456789ab'"):
        server.serve("checkpoint", index_folder, port=0, ready_file=tmp_path / "ready.json")
    assert not (tmp_path / "ready.json").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "galaxies.example.org"])
def test_other_machines_are_answered_only_with_a_key(host):
    with pytest.raises(ValueError, match="set an api_key"):
        server.check_host(host, None)
    server.check_host(host, "secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_key(host):
    server.check_host(host, None)
