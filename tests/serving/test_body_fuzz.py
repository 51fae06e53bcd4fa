"""Hostile bodies against a server in a process of its own: each is refused or read, memory stays, and it answers on."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from fake_model import FakeModel, images
from hostile_bodies import BOMB, HSC, NPY, corpus, made_to_hurt, npy, whole

MAX_BODY_BYTES = 8 * 2**20
MAX_GROWTH_BYTES = 96 * 2**20
"""What the server may take at most at any moment, beyond what it had after its first answers: twelve bodies."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    script = Path(__file__).with_name("serve_fake_model.py")
    command = [sys.executable, script, str(MAX_BODY_BYTES), tmp_path_factory.mktemp("state")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = process.stdout.readline().strip()
    assert port, process.wait()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield http, process
    finally:
        process.terminate()
        process.wait(20)


def peak(process):
    """The most memory that the process ever had, bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def send(http, media_type, query, body):
    return http.post(f"/v1/embeddings?{query}", content=body, headers={"content-type": media_type})


def assert_answers(http):
    answer = send(http, NPY, HSC, npy(images(1).flux[0].numpy()))
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json()["data"][0]["embedding"])
    np.testing.assert_allclose(found, FakeModel().embed([images(1)]).numpy()[0], atol=1e-6)


def test_hostile_bodies_are_refused_memory_stays_and_the_server_answers(server):
    http, process = server
    for name, (media_type, query, body) in whole().items():
        answer = send(http, media_type, query, body)
        assert answer.status_code == 200, (name, answer.text)
    assert_answers(http)
    before = peak(process)
    statuses, wrong = {}, []
    for name, media_type, query, body in corpus():
        assert len(body) <= MAX_BODY_BYTES, name
        answer = send(http, media_type, query, body)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        is_problem = answer.headers["content-type"] == "application/problem+json" and answer.json()["detail"]
        if not (answer.status_code == 200 or (400 <= answer.status_code < 500 and is_problem)):
            wrong.append((name, answer.status_code, answer.text[:300]))
        elif answer.status_code == 200:
            vectors = [datum["embedding"] for datum in answer.json()["data"] if datum["embedding"] is not None]
            assert np.isfinite(vectors).all(), name
    assert not wrong
    grown = peak(process) - before
    # A bomb that went off would show.
    assert MAX_GROWTH_BYTES < BOMB / 4
    assert grown < MAX_GROWTH_BYTES, grown
    assert process.poll() is None
    assert_answers(http)
    assert sum(statuses.values()) > 600
    assert statuses[400] > 200
    assert statuses[422] > 30


def test_hostile_uploads_of_jobs_are_refused_too(server):
    http, process = server
    before, refused = peak(process), 0
    for name, media_type, query, body in made_to_hurt():
        answer = http.post(f"/v1/jobs?kind=embed&{query}", content=body, headers={"content-type": media_type})
        assert answer.status_code == 202 or 400 <= answer.status_code < 500, (name, answer.status_code, answer.text)
        refused += answer.status_code in (400, 413, 422)
    assert refused > 50
    assert peak(process) - before < MAX_GROWTH_BYTES
    assert_answers(http)
