"""The memory of all bodies together: what has no room is refused, and nothing is held longer than its request."""

import contextlib
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest
from http_bodies import assert_problem

from armillary.serving.app import create_app
from armillary.serving.limits import Limits
from armillary.serving.middleware import body_memory

MOST = 1000
ADDRESS = "/v1/collections/objects/search"
WAIT = 20.0


def query(size):
    """A search whose body has so many bytes."""
    return b'{"object_id": "object-3", "k": 1}'.ljust(size)


@pytest.fixture
def held(monkeypatch, model, index, run, tmp_path):
    """A client of a server with little memory, and what bodies hold of it."""
    monkeypatch.setattr(body_memory, "WAIT_SECONDS", 0.05)
    app = create_app(model, index, limits=Limits(max_bytes_in_flight=MOST), state=tmp_path)
    with run(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=WAIT) as client:

        def num_bytes():
            return app.state.service.metrics.registry.get_sample_value("armillary_body_bytes")

        yield client, num_bytes


def until(count, num_bytes):
    end = time.monotonic() + WAIT
    while num_bytes() != count:
        assert time.monotonic() < end, f"{num_bytes()} bytes are held, not {count}"
        time.sleep(0.005)


@contextlib.contextmanager
def begun(client, headers, part):
    """A connection that has sent a part of its body."""
    url = urlsplit(str(client.base_url))
    head = f"POST {ADDRESS} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n{headers}\r\n\r\n"
    with socket.create_connection((url.hostname, url.port), WAIT) as connection:
        connection.sendall(head.encode() + part)
        yield connection


def status_of(connection):
    return int(connection.recv(4096).split(b" ", 2)[1])


def test_a_body_without_room_is_refused_until_the_other_request_ends(held):
    client, num_bytes = held
    body = query(800)
    with begun(client, f"Content-Length: {len(body)}", body[:100]) as slow:
        until(800, num_bytes)
        refused = client.post(ADDRESS, content=query(400))
        assert_problem(refused, 429, "busy", says=f"at most {MOST}")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.post(ADDRESS, content=query(200)).status_code == 200
        slow.sendall(body[100:])
        assert status_of(slow) == 200
    until(0, num_bytes)
    assert client.post(ADDRESS, content=query(400)).status_code == 200
    assert 'armillary_refused_requests_total{reason="memory"} 1.0' in client.get("/metrics").text


def test_a_body_waits_a_little_for_room(held, monkeypatch):
    monkeypatch.setattr(body_memory, "WAIT_SECONDS", WAIT)
    client, num_bytes = held
    body = query(800)
    with begun(client, "Content-Length: 800", body[:100]) as slow, begun(client, "Content-Length: 400", b"") as waiting:
        until(800, num_bytes)
        slow.sendall(body[100:])
        assert status_of(slow) == 200
        waiting.sendall(query(400))
        assert status_of(waiting) == 200
    until(0, num_bytes)


@pytest.mark.parametrize(
    "headers, part, size", [("Content-Length: 800", b"", 800), ("Transfer-Encoding: chunked", b"3\r\n{  \r\n", 3)]
)
def test_a_caller_that_leaves_holds_nothing(held, headers, part, size):
    client, num_bytes = held
    with begun(client, headers, part):
        until(size, num_bytes)
    until(0, num_bytes)


def test_a_body_of_unknown_length_is_counted_as_it_comes(held):
    client, num_bytes = held
    with begun(client, "Content-Length: 500", b"{") as slow:
        until(500, num_bytes)
        with begun(client, "Transfer-Encoding: chunked", b"12c\r\n" + query(300) + b"\r\n") as growing:
            until(800, num_bytes)
            growing.sendall(b"12c\r\n" + b" " * 300 + b"\r\n")
            assert status_of(growing) == 429
        until(500, num_bytes)
        slow.sendall(query(500)[1:])
        assert status_of(slow) == 200
    until(0, num_bytes)


def test_a_caller_that_stalls_keeps_no_room_for_what_does_not_come(held, monkeypatch):
    monkeypatch.setattr(body_memory, "ANNOUNCED_SECONDS", 0.05)
    client, num_bytes = held
    body = query(800)
    with begun(client, "Content-Length: 800", body[:100]) as slow:
        until(100, num_bytes)
        assert client.post(ADDRESS, content=query(800)).status_code == 200
        slow.sendall(body[100:])
        assert status_of(slow) == 200
    until(0, num_bytes)


def test_a_body_larger_than_all_room_is_read_alone_and_uploads_of_jobs_need_none(held):
    client, num_bytes = held
    assert client.post(ADDRESS, content=query(3 * MOST)).status_code == 200
    with begun(client, f"Content-Length: {MOST}", b"{"):
        until(MOST, num_bytes)
        job = b'{"object_ids": ["object-1"], "modality": "image/hsc", "k": 2}'.ljust(500)
        answer = client.post("/v1/jobs?kind=neighbours", content=job, headers={"Content-Type": "application/json"})
        assert answer.status_code == 202
    until(0, num_bytes)
