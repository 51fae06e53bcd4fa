"""The HTTP API as a FastAPI application: routes, limits, the key, and problem documents for every error.

app = create_app(model, index, predictors)
uvicorn.run(app)                      # or: serving.server.serve(checkpoint, index)
"""

import hmac
from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import Response

from ..models.neighbour_prediction import NeighbourPredictor
from .documentation import add_body_schemas
from .index import EmbeddingIndex
from .limits import Limits
from .problems import ProblemError, answer, install_handlers
from .routes_about import about_routes
from .routes_embeddings import embedding_routes
from .routes_search import search_routes
from .service import EmbeddingModel, Service

API_VERSION = "1.0"
OPEN_PATHS = ("/livez", "/readyz")
"""Asked by machines that hold no key."""


def create_app(
    model: EmbeddingModel | None,
    index: EmbeddingIndex | None = None,
    predictors: Mapping[str, NeighbourPredictor] | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
) -> FastAPI:
    """The application for one model and, where given, its index and predictors (by `predictor_key`).

    Without a model every route that needs one answers 503; `app.state.service.take(model)` gives it later. With
    `api_key`, each request must bear it. Raises EmbeddingIndexError if index or predictors belong to another model.
    """
    service = Service(model, index, predictors or {}, limits or Limits())
    # The pages of /docs load scripts from a CDN; /openapi.json serves every viewer.
    app = FastAPI(
        title="Armillary",
        version=API_VERSION,
        summary="Embeddings, search and prediction for images, spectra and scalars of the sky",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    install_handlers(app)
    for router in (about_routes(service), embedding_routes(service), search_routes(service)):
        app.include_router(router)
    add_body_schemas(app)
    if api_key is not None:
        _require_key(app, api_key)
    return app


def _require_key(app: FastAPI, api_key: str) -> None:
    expected = f"Bearer {api_key}".encode()

    @app.middleware("http")
    async def check_key(request: Request, call_next: RequestResponseEndpoint) -> Response:
        given = request.headers.get("authorization", "").encode()
        if request.url.path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            return answer(ProblemError("unauthorized", "the request bears no valid key"), request)
        return await call_next(request)
