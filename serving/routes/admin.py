"""`/v1/admin`: what only a key with the scope admin may do."""

from typing import Any

from fastapi import APIRouter

from ..service import Service
from .documentation import example

_RELOADED = {"index_id": "objects-5d1c0a9e7b21", "num_objects": 200}


def admin_routes(service: Service) -> APIRouter:
    """The one route that changes what is served."""
    router = APIRouter(prefix="/v1/admin", tags=["admin"])

    @router.post("/reload", summary="Open the index anew, without downtime", responses=example(_RELOADED, 409))
    def reload() -> dict[str, Any]:
        """The index is read from where the server found it when it started, and searched from then on; requests in hand
        end with the one they began with. If the new one is damaged or of another model, the old one stays (409). The
        signal SIGHUP does the same.
        """
        manifest = service.reload().manifest
        return {"index_id": manifest.index_id, "num_objects": manifest.num_objects}

    return router
