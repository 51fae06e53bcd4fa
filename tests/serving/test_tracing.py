"""Traces of requests: whose child a span is, what is in it, and that a collector which is away costs nothing."""

import http.server
import sys
import threading

import pytest
from fake_model import FakeModel
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.middleware import tracing
from armillary.serving.middleware.tracing import TelemetrySettings, Tracing, open_tracing
from armillary.serving.server_settings import ServerSettings
from armillary.settings import SettingsError, load_settings

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "ada-1"}
ITEM = {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}


@pytest.fixture
def spans(model, index):
    """Asks an application once, and gives the spans that it made, by name."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    def ask(method, address, **more):
        exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with TestClient(create_app(model, index, tracing=Tracing(provider), api_key="secret")) as client:
            headers = {"X-API-Key": "secret", **CALLER, **more.pop("headers", {})}
            client.request(method, address, headers=headers, **more)
        return {span.name: span for span in exporter.get_finished_spans()}

    return ask


def test_a_request_continues_the_trace_of_its_caller_and_is_known_by_its_route(spans):
    found = spans("GET", "/v1/objects/object-3?x=what-nobody-may-know")
    (span,) = found.values()
    assert span.name == "GET /v1/objects/{object_id}"
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.attributes["http.route"] == "/v1/objects/{object_id}"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["armillary.request_id"] == "ada-1"
    assert "nobody" not in str(dict(span.attributes))
    assert "secret" not in str(dict(span.attributes))


def test_the_stages_of_a_request_are_spans_below_it(spans):
    found = spans("POST", "/v1/collections/objects/search", json={"observations": [ITEM]})
    request = found.pop("POST /v1/collections/{collection}/search")
    assert set(found) == {"queue", "model", "search"}
    assert {span.parent.span_id for span in found.values()} == {request.context.span_id}
    assert found["queue"].end_time == found["model"].start_time
    ordered = [request.start_time, found["queue"].start_time, found["model"].start_time, found["search"].start_time]
    assert ordered == sorted(ordered)
    assert found["search"].end_time <= request.end_time


def test_a_refused_request_is_traced_too_and_those_that_watch_the_server_are_not(spans):
    (refused,) = spans("GET", "/v1/models", headers={"X-API-Key": "wrong"}).values()
    assert refused.attributes["http.response.status_code"] == 401
    assert refused.attributes["armillary.request_id"] == "ada-1"
    assert spans("GET", "/livez") == {}
    assert spans("GET", "/metrics") == {}


@pytest.fixture
def collector(monkeypatch):
    """A collector of OTLP over HTTP: its address, and the requests for which spans came."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("NO_PROXY", "*")
    came = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", came
        server.shutdown()
        thread.join(20)


def test_spans_reach_a_collector_at_the_latest_when_the_server_ends(collector):
    address, came = collector
    app = create_app(FakeModel(), tracing=open_tracing(TelemetrySettings(endpoint=address)))
    with TestClient(app) as client:
        assert client.get("/v1/models", headers=CALLER).status_code == 200
    ((path, sent),) = came
    (resource,) = sent.resource_spans
    (span,) = resource.scope_spans[0].spans
    assert path == "/v1/traces"
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "armillary"
    assert (span.name, span.trace_id.hex()) == ("GET /v1/models", TRACE)


def test_a_collector_that_is_away_breaks_no_request_and_holds_no_more_than_its_queue(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(tracing, "EXPORT_SECONDS", 0.1)
    monkeypatch.setattr(tracing, "MAX_WAITING_SPANS", 4)
    monkeypatch.setattr(tracing, "SPANS_AT_ONCE", 4)
    made = open_tracing(TelemetrySettings(endpoint="http://127.0.0.1:9"))
    with TestClient(create_app(FakeModel(), tracing=made)) as client:
        assert {client.get("/v1/models").status_code for _ in range(20)} == {200}
    assert client.app.state.service.engine.call(lambda: "works") == "works"


def test_of_traces_that_begin_here_only_a_share_is_kept_and_those_of_callers_all(collector):
    address, came = collector
    made = open_tracing(TelemetrySettings(endpoint=address, sample=0.0))
    with TestClient(create_app(FakeModel(), tracing=made)) as client:
        client.get("/v1/limits")
        client.get("/v1/models", headers=CALLER)
    ((_, sent),) = came
    assert [span.name for span in sent.resource_spans[0].scope_spans[0].spans] == ["GET /v1/models"]


def test_without_the_extra_the_error_names_it_and_a_server_without_traces_needs_it_not(monkeypatch):
    for name in [*sys.modules]:
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"pip install 'armillary\[otel\]'"):
        open_tracing(TelemetrySettings(endpoint="http://127.0.0.1:4318"))
    with TestClient(create_app(FakeModel(), tracing=open_tracing(TelemetrySettings()))) as client:
        assert client.post("/v1/embeddings", json={"input": ITEM}).status_code == 200


def test_an_address_that_is_none_is_an_error_of_the_settings():
    with pytest.raises(SettingsError, match=r"telemetry\.endpoint"):
        load_settings(ServerSettings, None, ["telemetry.endpoint=collector:4318"])
