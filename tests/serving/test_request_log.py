"""The log of requests: one line each that parses and holds no secret, an id that leads from the answer to the line."""

import json
import logging
import re
import socket
import time
from datetime import UTC, datetime

import httpx
import pytest
from fake_model import FakeModel
from fastapi.responses import StreamingResponse
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.limits import Limits
from armillary.serving.middleware.access_keys import AccessKeys
from armillary.serving.middleware.keys_file import add_key, revoke_key
from armillary.serving.middleware.request_log import LONGEST_PATH, LONGEST_TRACE, log_requests

LOGGER = logging.getLogger("armillary.access")
FIELDS = ["time", "id", "method", "path", "status", "ms", "bytes_in", "bytes_out", "key", "client"]


@pytest.fixture
def file(tmp_path):
    """The log's file, for the test alone."""
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    log_requests(tmp_path / "requests.jsonl")
    yield tmp_path / "requests.jsonl"
    for handler in LOGGER.handlers:
        handler.close()
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = before


def lines_of(file, count=None):
    """The lines, when `count` have come: a line is written after the answer."""
    for _ in range(200):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        if count is None or len(lines) >= count:
            break
        time.sleep(0.02)
    assert count is None or len(lines) == count
    return lines


def test_each_request_is_one_line_of_json(model, index, file):
    with TestClient(create_app(model, index)) as http:
        answers = [
            http.get("/v1/models"),
            http.post("/v1/embeddings", json={"input": typed_image()}),
            http.get("/v1/nothing"),
        ]
    lines = lines_of(file)
    assert [list(line) for line in lines] == [FIELDS] * 3
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/v1/models", 200),
        ("POST", "/v1/embeddings", 200),
        ("GET", "/v1/nothing", 404),
    ]
    for line, answer in zip(lines, answers, strict=True):
        assert line["id"] == answer.headers["x-request-id"]
        assert line["bytes_in"] == len(answer.request.content)
        assert line["bytes_out"] == len(answer.content)
        assert line["client"] == "testclient"
        assert line["key"] is None
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 60
        assert line["ms"] > 0
    assert len({line["id"] for line in lines}) == 3


@pytest.mark.parametrize("given", ["a", "Job-7.step_12", "x" * 64])
def test_a_callers_sane_id_is_kept_in_answer_line_and_problem(model, file, given):
    with TestClient(create_app(model)) as http:
        answer = http.get("/v1/nothing", headers={"X-Request-Id": given})
    assert_problem(answer, 404, "not-found")
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == lines_of(file)[0]["id"] == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"x" * 65,
        b"two words",
        b"a\tb",
        b'"},{"status": 200',
        b"<script>",
        "é".encode(),
        b"../../etc/passwd",
        b"%0d%0aSet-Cookie:a=b",
        b"a,b",
    ],
)
def test_any_other_id_is_replaced(model, file, given):
    with TestClient(create_app(model)) as http:
        answer = http.get("/livez", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
    (line,) = lines_of(file)
    assert line["id"] == answer.headers["x-request-id"]
    assert len(given) < 2 or given.decode("latin-1") not in file.read_text()


def test_of_two_ids_none_is_taken(model, file):
    with TestClient(create_app(model)) as http:
        answer = http.get("/livez", headers=[("X-Request-Id", "one"), ("X-Request-Id", "two")])
    assert answer.headers["x-request-id"] not in ("one", "two")


def test_a_request_that_hides_lines_in_its_id_or_path_adds_no_header_and_no_line(model, file, run):
    with run(create_app(model)) as url:
        host, port = url.removeprefix("http://").split(":")
        answers = []
        for request in (
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\rSet-Cookie: b=c\r\nConnection: close\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\nSet-Cookie: b=c\r\nConnection: close\r\n\r\n",
            b"GET /v1/%0a%7B%22status%22:200%7D%0d%0aSet-Cookie:b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(request)
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
            answers.append(answer)
        time.sleep(0.1)
    heads = [answer.partition(b"\r\n\r\n")[0].lower() for answer in answers]
    assert not any(b"set-cookie" in head for head in heads)
    lines = lines_of(file)
    assert len(lines) <= 3
    assert lines[-1]["path"] == '/v1/\n{"status":200}\r\nSet-Cookie:b'
    assert lines[-1]["status"] == 404


def test_no_line_holds_a_key_a_query_or_a_body(model, index, file, tmp_path):
    path = tmp_path / "keys.jsonl"
    added, key = add_key(path, ("read",), note="Ada Lovelace")
    with TestClient(create_app(model, index, api_key="swordfish", access=AccessKeys(path))) as http:
        body = {"input": typed_image(object_id="my-unpublished-object")}
        http.post("/v1/embeddings", json=body, headers={"Authorization": f"Bearer {key}"})
        http.post("/v1/jobs", json=body, headers={"X-API-Key": key})
        http.get("/v1/models", headers={"Authorization": "Bearer swordfish"})
        http.get("/v1/models", headers={"Authorization": "Bearer a-wrong-one"})
        http.get("/v1/models", params={"key": key, "object_id": "my-unpublished-object"})
        http.post("/v1/embeddings", content=b'{"input": "my-unpublished', headers={"X-API-Key": key})
    lines = lines_of(file)
    assert [(line["status"], line["key"]) for line in lines] == [
        (200, added.id),
        (403, added.id),
        (200, "api-key"),
        (401, None),
        (401, None),
        (422, added.id),
    ]
    text = file.read_text()
    for secret in (key, added.sha256, "swordfish", "a-wrong-one", "unpublished", body["input"]["data"], "Ada"):
        assert secret not in text


def test_the_log_tells_who_still_uses_a_key_that_has_ended(model, file, tmp_path):
    path = tmp_path / "keys.jsonl"
    added, key = add_key(path)
    revoke_key(path, added.id)
    with TestClient(create_app(model, access=AccessKeys(path))) as http:
        http.get("/v1/models", headers={"X-API-Key": key})
    (line,) = lines_of(file)
    assert (line["status"], line["key"]) == (401, added.id)


def test_a_fault_is_logged_with_its_trace_under_the_id_that_the_caller_was_told(index, file):
    class Broken(FakeModel):
        def embed(self, observations, space="aligned"):
            raise RuntimeError("the inside of the server")

    with TestClient(create_app(Broken(), index)) as http:
        answer = http.post("/v1/embeddings", json={"input": typed_image()})
    assert_problem(answer, 500, "internal")
    assert "inside" not in answer.text
    # As every answer: completed by the middleware outside.
    assert answer.headers["x-content-type-options"] == "nosniff"
    fault, line = lines_of(file)
    assert fault["fault"] == "RuntimeError"
    assert "the inside of the server" in fault["trace"]
    assert "in embed" in fault["trace"]
    assert line["status"] == 500
    assert fault["id"] == line["id"] == answer.json()["request_id"] == answer.headers["x-request-id"]


def test_the_trace_of_an_exception_that_quotes_much_is_cut_in_its_middle(model, file):
    app = create_app(model)

    @app.get("/v1/broken")
    def broken() -> None:
        raise ValueError("begins " + "x" * 1_000_000 + " ends")

    with TestClient(app) as http:
        http.get("/v1/broken")
    trace = lines_of(file)[0]["trace"]
    assert len(trace) < LONGEST_TRACE + 100
    assert trace.startswith("Traceback")
    assert trace.endswith(" ends\n")
    assert "ValueError: begins" in trace


def test_a_fault_in_the_middle_of_an_answer_ends_the_connection_short(model, file, run):
    app = create_app(model)

    @app.get("/v1/stream")
    def stream() -> StreamingResponse:
        def parts():
            yield b"first"
            raise RuntimeError("later")

        return StreamingResponse(parts())

    with run(app) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{url}/v1/stream")
        assert httpx.get(f"{url}/livez").status_code == 200
    fault, line, _ = lines_of(file, 3)
    assert "later" in fault["trace"]
    assert (line["status"], line["bytes_out"], line["id"]) == (200, 5, fault["id"])


def test_a_caller_who_leaves_is_a_line_and_no_fault(model, file, run):
    with run(create_app(model)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            headers = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 1000"
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\n" + headers + b'\r\n\r\n{"input": ')
            time.sleep(0.2)
        (line,) = lines_of(file, 1)
    assert line["path"] == "/v1/embeddings"
    assert line["bytes_in"] == len(b'{"input": ')
    assert line["status"] != 500


def test_refused_bodies_count_the_bytes_that_came(model, file):
    with TestClient(create_app(model, limits=Limits(max_body_bytes=1000))) as http:
        sent = http.post("/v1/embeddings", content=iter([b"x" * 600] * 5), headers={"Content-Type": "application/json"})
        assert sent.status_code == 413
    (line,) = lines_of(file)
    assert line["status"] == 413
    assert line["bytes_in"] in (1200, 3000)


def test_a_long_path_is_cut(model, file):
    with TestClient(create_app(model)) as http:
        http.get("/" + "x" * 5000)
    assert lines_of(file)[0]["path"] == "/" + "x" * (LONGEST_PATH - 1)


def test_a_file_that_is_moved_away_is_opened_anew(model, file):
    with TestClient(create_app(model)) as http:
        http.get("/livez")
        file.rename(file.with_name("requests.1"))
        http.get("/readyz")
    assert [line["path"] for line in lines_of(file)] == ["/readyz"]
    assert [line["path"] for line in lines_of(file.with_name("requests.1"))] == ["/livez"]


def test_stderr_is_the_place_where_none_is_named_and_takes_that_of_the_one_before(model, file, capsys):
    log_requests()
    with TestClient(create_app(model)) as http:
        http.get("/livez")
    assert json.loads(capsys.readouterr().err)["path"] == "/livez"
    assert file.read_text() == ""


def test_a_server_that_nobody_asked_to_log_writes_nothing(model, capsys):
    with TestClient(create_app(model)) as http:
        assert http.get("/livez").headers["x-request-id"]
    assert capsys.readouterr().err == ""
