"""What /openapi.json says of bodies and errors beyond what FastAPI knows by itself."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..middleware.access import KEY_HEADER, needed_scope
from ..problems import KINDS, MEDIA_TYPE
from ..schemas.common import REQUEST_BODIES, ProblemDocument
from ..schemas.generation import GenerateRequest
from ..schemas.inference import InferRequest
from ..schemas.jobs import NeighboursRequest
from ..schemas.predictions import VectorItem
from ..schemas.probes import PROBE_BODIES

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """The error answers of a route, for FastAPI's `responses`."""
    return {
        status: {
            "description": "; ".join(
                f"{kind.title} (`{name}`)" for name, kind in KINDS.items() if kind.status == status
            ),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
        for status in statuses
    }


def answers(model: Any, example: Any, *statuses: int) -> Responses:
    """A route's answer with its example, and its errors."""
    return {200: {"model": model, "content": {"application/json": {"example": example}}}, **errors(*statuses)}


def example(value: Any, *statuses: int) -> Responses:
    """The example of an answer that no model describes, and its errors."""
    return {200: {"description": "OK", "content": {"application/json": {"example": value}}}, **errors(*statuses)}


def json_body(model: type[BaseModel], examples: dict[str, Any], others: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its JSON body by hand."""
    described = {name: {"summary": name, "value": value} for name, value in examples.items()}
    content = {
        "application/json": {
            "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
            "examples": described,
        }
    }
    return {"requestBody": {"required": True, "content": content | (others or {})}}


def add_body_schemas(app: FastAPI) -> None:
    """Put the schemas of the bodies that are read by hand into the document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        bodies = (
            *REQUEST_BODIES,
            *PROBE_BODIES,
            VectorItem,
            NeighboursRequest,
            GenerateRequest,
            InferRequest,
            ProblemDocument,
        )
        models = [(model, "validation") for model in bodies]
        _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(schemas["$defs"])
        for name in ("HTTPValidationError", "ValidationError"):
            # FastAPI's own errors are never sent: every error is a problem document.
            components.pop(name, None)
        for path in document["paths"].values():
            for operation in path.values():
                answer = operation["responses"].get("422")
                if answer and "HTTPValidationError" in str(answer):
                    operation["responses"]["422"] = errors(422)[422]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def add_refusals(app: FastAPI, open_paths: Sequence[str], needs_key: bool) -> None:
    """Put into the document what is answered before a route is reached, or by what all routes stand on.

    Anything but GET may be refused to a page of another site (403) or for want of room (429). Where keys are needed:
    how they are sent, the scope of each operation, 401 and 403.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        if needs_key:
            document.setdefault("components", {})["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer arm_...`"},
                "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
            }
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                scope = needed_scope(method.upper(), path, open_paths) if needs_key else None
                statuses = [] if method == "get" else [403, 429]
                if scope is not None:
                    statuses += [401, 403]
                if needs_key:
                    # OpenAPI 3.1 lets schemes of every type name the roles that are needed.
                    operation["security"] = [{"bearer": [scope]}, {"header": [scope]}] if scope else []
                refusals = {str(status): answer for status, answer in errors(*statuses).items()}
                # What a route says itself of a status goes first.
                operation["responses"] = dict(sorted((refusals | operation["responses"]).items()))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
