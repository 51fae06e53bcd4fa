"""What the server counts, for Prometheus: `/metrics`.

Seconds by route and by what a request spends them on (waiting, model, search), sizes of batches, the queue, the cache,
and memory of the accelerator. Each application has a registry of its own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .callers import caller

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
UNKNOWN_ROUTE = "(none)"
"""Of requests for addresses that are no route: their own words would make a series each."""


class ServerMetrics:
    """The counters of one server. `stage` is `queue`, `model` or `search`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.request_seconds = Histogram(
            "armillary_request_seconds",
            "Seconds from the request's first byte to the answer's last",
            ["route", "method", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "armillary_stage_seconds",
            "Seconds that a request spent on one thing",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_objects = Histogram(
            "armillary_batch_objects", "Objects in one batch of the model", buckets=_COUNTS, registry=self.registry
        )
        self.queued = Gauge("armillary_queue_objects", "Objects that wait for the model", registry=self.registry)
        self.active = Gauge("armillary_active_requests", "Requests that are worked on", registry=self.registry)
        self.body_bytes = Gauge(
            "armillary_body_bytes", "Bytes of the bodies that are read and worked on", registry=self.registry
        )
        self.cache = Counter(
            "armillary_cache_lookups", "Objects looked up by their content", ["result"], registry=self.registry
        )
        self.token_cache = Counter(
            "armillary_token_cache_lookups",
            "Observations whose tokens were looked up by their content",
            ["result"],
            registry=self.registry,
        )
        self.refused = Counter(
            "armillary_refused_requests",
            "Requests refused for want of room or time",
            ["reason"],
            registry=self.registry,
        )
        self.abandoned = Counter(
            "armillary_abandoned_objects", "Objects not embedded: their caller had left", registry=self.registry
        )
        self.neighbours_expected = Counter(
            "armillary_sampled_neighbours_expected",
            "Nearest neighbours of sampled searches, by an exact search afterwards",
            ["modality"],
            registry=self.registry,
        )
        self.neighbours_found = Counter(
            "armillary_sampled_neighbours_found",
            "Those of them that the search had found",
            ["modality"],
            registry=self.registry,
        )
        self.accelerator = Gauge(
            "armillary_accelerator_bytes",
            "Memory of the accelerator in use, and its most",
            ["kind"],
            registry=self.registry,
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the seconds of a `with` block, and tell the caller's trace of them."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self.stage_seconds.labels(stage).observe(ended - began)
            caller().note_stage(stage, began, ended)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.accelerator.labels("allocated").set(torch.cuda.memory_allocated())
            self.accelerator.labels("peak").set(torch.cuda.max_memory_allocated())
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Count each request by the route that answered it, not by its address."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self.app = app
        self.metrics = metrics
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = self.clock(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.active.inc()
        try:
            await self.app(scope, receive, note_status)
        finally:
            self.metrics.active.dec()
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            method = scope["method"] if route != UNKNOWN_ROUTE else ""
            self.metrics.request_seconds.labels(route, method, str(status)).observe(self.clock() - began)
