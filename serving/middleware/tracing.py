"""Traces by OpenTelemetry, for operators who have a collector: a span for each request, and its stages below it.

FastAPI makes the span of a request (route, method, status) and continues the caller's trace (W3C `traceparent`); what
is added here is where spans go, the request's id, and the stages `queue`, `model` and `search`. A thread sends them;
what does not fit its queue is dropped, so that a collector that is slow or away costs no request anything. Without an
endpoint nothing of the SDK is imported.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from ...settings import Settings, SettingsError
from .callers import NoteStage

UNTRACED = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Asked every few seconds by machines that watch the server."""
MAX_WAITING_SPANS = 2048
SPANS_AT_ONCE = 512
LONGEST_ATTRIBUTE = 512
"""Characters: callers choose paths."""
EXPORT_SECONDS = 5.0
"""How long the collector may take for a batch of spans; how long the end of the server may wait for it, too."""
REDACTED = "REDACTED"


class TelemetrySettings(Settings):
    """Where traces go."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/?#]+(/[^?#]*)?$")] | None = None
    """A collector that takes OTLP over HTTP, such as http://collector:4318; without one there are no traces."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces that begin here; in a trace of the caller's, the caller has decided."""


class Tracing:
    """Spans of one application, by a tracer provider of its own (`opentelemetry.sdk.trace.TracerProvider`)."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("armillary")

    def app_options(self) -> dict[str, Any]:
        """For FastAPI's constructor: spans of requests, but neither its metrics nor its logs, which quote bodies."""
        chosen = {
            "tracer_provider": self._provider,
            "tracing": True,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: scope["path"] in UNTRACED,
        }
        return {"telemetry": chosen, "lifespan": self._lifespan}

    def stages(self) -> NoteStage:
        """Takes the stages of the request that is being answered, and makes them spans below its own."""
        from opentelemetry import context

        parent = context.get_current()
        start_of_clock = time.time_ns() - time.monotonic_ns()

        def note(stage: str, began: float, ended: float) -> None:
            span = self._tracer.start_span(stage, parent, start_time=start_of_clock + int(began * 1e9))
            span.end(start_of_clock + int(ended * 1e9))

        return note

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        # The last spans are sent, or given up.
        await anyio.to_thread.run_sync(self._provider.shutdown)


class SpanDetails:
    """ASGI middleware inside the log of requests: a span has the log's id and, as the log, no query."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "http":
            from opentelemetry import trace

            span = trace.get_current_span()
            span.set_attribute("armillary.request_id", scope["state"]["request_id"])
            if scope.get("query_string"):
                span.set_attribute("url.query", REDACTED)
        await self.app(scope, receive, send)


def open_tracing(settings: TelemetrySettings) -> Tracing | None:
    """Traces to the collector of the settings, None where they name none. Raises SettingsError that names the extra."""
    if settings.endpoint is None:
        return None
    try:
        import fastapi.telemetry  # noqa: F401 - not in every FastAPI
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise SettingsError(
            "telemetry.endpoint needs OpenTelemetry's SDK and exporter: pip install 'armillary[otel]'"
        ) from error
    # Of a collector that is away, a line for each batch is enough; the others are of each attempt.
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.ERROR)
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(settings.sample),
        resource=Resource.create({"service.name": "armillary", "service.version": version("armillary")}),
        span_limits=SpanLimits(max_span_attribute_length=LONGEST_ATTRIBUTE),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=MAX_WAITING_SPANS, max_export_batch_size=SPANS_AT_ONCE)
    )
    return Tracing(provider)
