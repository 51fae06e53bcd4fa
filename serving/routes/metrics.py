"""`/metrics`: what the server counts, in Prometheus' text format."""

from fastapi import APIRouter
from starlette.responses import Response

from ..middleware.metrics import MEDIA_TYPE
from ..service import Service

_EXAMPLE = 'armillary_queue_objects 0.0\narmillary_cache_lookups_total{result="hit"} 12.0\n'


def metrics_routes(service: Service) -> APIRouter:
    """The one route of metrics."""
    router = APIRouter(tags=["about"])

    @router.get(
        "/metrics",
        summary="Counters and latencies, for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _EXAMPLE}}}},
    )
    def metrics() -> Response:
        """Histograms of seconds by route and stage (queue, model, search), sizes of batches, queue, cache, memory."""
        return Response(service.metrics.text(), media_type=MEDIA_TYPE)

    return router
