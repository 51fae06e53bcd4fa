"""The HTTP API as a FastAPI application: routes, limits, the key, and problem documents for every error.

app = create_app(model, index, predictors)
uvicorn.run(app)                      # or: serving.server.serve(Served(checkpoint, index))
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from ..data.dataset import ObservationDataset
from ..models.neighbour_prediction import NeighbourPredictor
from ..models.probe_loading import AnyProbe
from .docs_page import docs_page
from .engine import EngineSettings
from .explorer_page import explorer_routes
from .index.protocol import SearchIndex
from .index.recall_sample import SearchSettings
from .limits import Limits
from .middleware.access import Access
from .middleware.access_keys import AccessKeys
from .middleware.body_memory import BodyMemory, BodyMemoryMiddleware
from .middleware.callers import CallerMiddleware
from .middleware.cross_site import RefuseOtherSites
from .middleware.metrics import MetricsMiddleware
from .middleware.request_log import FaultAnswers, RequestLog
from .middleware.security_headers import SecurityHeaders, allow_origins
from .middleware.tracing import SpanDetails, Tracing
from .probes.answers import probes_by_label
from .problems import install_handlers
from .routes.about import about_routes
from .routes.admin import admin_routes
from .routes.documentation import add_body_schemas, add_refusals
from .routes.embeddings import embedding_routes
from .routes.generate import generate_routes
from .routes.inference import inference_routes
from .routes.jobs import job_routes
from .routes.map import map_routes
from .routes.metrics import metrics_routes
from .routes.objects import object_routes
from .routes.predict import predict_routes
from .routes.probes import probe_routes
from .routes.search import search_routes
from .service import EmbeddingModel, Service

API_VERSION = "1.0"
OPEN_PATHS = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json")
"""Asked without a key, by machines that watch the server and by people who read how to use it: these say nothing of
what is served."""

DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The browser holds the page of documentation to it: nothing is fetched, no script runs."""


def create_app(
    model: EmbeddingModel | None,
    index: SearchIndex | None = None,
    predictors: Mapping[str, NeighbourPredictor] | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
    probes: Sequence[AnyProbe] = (),
    dataset: ObservationDataset | None = None,
    state: Path | None = None,
    batching: EngineSettings | None = None,
    access: AccessKeys | None = None,
    cors_origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    searching: SearchSettings | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application for one model and, where given, its index, predictors (by `predictor_key`) and probes.

    Without a model every route that needs one answers 503; `app.state.service.take(model)` gives it later. With
    `access`, each request must bear one of its keys, with the scope that it needs; `api_key` is one key of all scopes,
    beside them or alone. Pages of the sites in `cors_origins` may ask from a browser; with `hosts`, the server answers
    only to these names. `dataset` holds the observations of the index's objects, `state` is a folder for what callers
    leave, `batching` says how requests share the model, `searching` how searches are watched, `tracing`
    (`open_tracing`) where traces go. Raises EmbeddingIndexError if index, predictors or probes belong to another model.
    """
    service = Service(
        model,
        index,
        predictors or {},
        limits or Limits(),
        probes_by_label(probes),
        dataset,
        state,
        batching or EngineSettings(),
        searching or SearchSettings(),
    )
    # FastAPI's own pages load scripts from a CDN; ours is whole.
    app = FastAPI(
        title="Armillary",
        version=API_VERSION,
        summary="Embeddings, search and prediction for images, spectra and scalars of the sky",
        docs_url=None,
        redoc_url=None,
        **({} if tracing is None else tracing.app_options()),
    )
    app.state.service = service
    install_handlers(app)
    for routes in (
        embedding_routes,
        search_routes,
        predict_routes,
        about_routes,
        metrics_routes,
        map_routes,
        object_routes,
        probe_routes,
        job_routes,
        generate_routes,
        admin_routes,
        inference_routes,
    ):
        app.include_router(routes(service))
    app.include_router(explorer_routes())
    add_body_schemas(app)
    keys = access if api_key is None else (access or AccessKeys()).beside(api_key)
    add_refusals(app, OPEN_PATHS, needs_key=keys is not None)
    _add_docs(app, keys is not None)
    # The last added is the outermost.
    app.add_middleware(BodyMemoryMiddleware, memory=BodyMemory(service.limits.max_bytes_in_flight, service.metrics))
    app.add_middleware(CallerMiddleware, **({} if tracing is None else {"stages": tracing.stages}))
    if keys is not None:
        app.add_middleware(Access, keys=keys, open_paths=OPEN_PATHS)
    app.add_middleware(RefuseOtherSites, origins=cors_origins, hosts=hosts)
    app.add_middleware(FaultAnswers)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)
    allow_origins(app, cors_origins)
    app.add_middleware(SecurityHeaders)
    if tracing is not None:
        app.add_middleware(SpanDetails)
    app.add_middleware(RequestLog)
    return app


def _add_docs(app: FastAPI, needs_key: bool) -> None:
    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        page = docs_page(app.openapi(), str(request.base_url).rstrip("/"), needs_key)
        return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})
