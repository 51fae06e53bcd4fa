"""The HTTP API as a FastAPI application: routes, limits, the key, and problem documents for every error.

app = create_app(model, index, predictors)
uvicorn.run(app)                      # or: serving.server.serve(checkpoint, index)
"""

import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import Response

from ..data.dataset import ObservationDataset
from ..models.neighbour_prediction import NeighbourPredictor
from ..models.probe_loading import AnyProbe
from .docs_page import docs_page
from .documentation import add_body_schemas
from .index_protocol import SearchIndex
from .limits import Limits
from .probe_answers import probes_by_label
from .problems import ProblemError, answer, install_handlers
from .routes_about import about_routes
from .routes_embeddings import embedding_routes
from .routes_predict import predict_routes
from .routes_search import search_routes
from .service import EmbeddingModel, Service

API_VERSION = "1.0"
OPEN_PATHS = ("/livez", "/readyz", "/", "/docs", "/openapi.json")
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
) -> FastAPI:
    """The application for one model and, where given, its index, predictors (by `predictor_key`) and probes.

    Without a model every route that needs one answers 503; `app.state.service.take(model)` gives it later. With
    `api_key`, each request must bear it. `dataset` holds the observations of the index's objects, `state` is a folder
    for what callers leave. Raises EmbeddingIndexError if index, predictors or probes belong to another model.
    """
    service = Service(model, index, predictors or {}, limits or Limits(), probes_by_label(probes), dataset, state)
    # FastAPI's own pages load scripts from a CDN; ours is whole.
    app = FastAPI(
        title="Armillary",
        version=API_VERSION,
        summary="Embeddings, search and prediction for images, spectra and scalars of the sky",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    install_handlers(app)
    for routes in (embedding_routes, search_routes, predict_routes, about_routes):
        app.include_router(routes(service))
    add_body_schemas(app)
    _add_docs(app, api_key is not None)
    if api_key is not None:
        _require_key(app, api_key)
    return app


def _add_docs(app: FastAPI, needs_key: bool) -> None:
    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        page = docs_page(app.openapi(), str(request.base_url).rstrip("/"), needs_key)
        return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})

    @app.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        return RedirectResponse("/docs")


def _require_key(app: FastAPI, api_key: str) -> None:
    expected = f"Bearer {api_key}".encode()

    @app.middleware("http")
    async def check_key(request: Request, call_next: RequestResponseEndpoint) -> Response:
        given = request.headers.get("authorization", "").encode()
        if request.url.path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            return answer(ProblemError("unauthorized", "the request bears no valid key"), request)
        return await call_next(request)
