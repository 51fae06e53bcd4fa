"""What /openapi.json says of bodies and errors beyond what FastAPI knows by itself."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .access import KEY_HEADER, needed_scope
from .problems import KINDS, MEDIA_TYPE
from .schemas import REQUEST_BODIES, ProblemDocument

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


def answers(model: type[BaseModel], example: Any, *statuses: int) -> Responses:
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
        models = [(model, "validation") for model in (*REQUEST_BODIES, ProblemDocument)]
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


def add_access(app: FastAPI, open_paths: Sequence[str]) -> None:
    """Put the key into the document: how it is sent, the scope of each operation, and what is answered without it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer arm_...`"},
            "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
        }
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                scope = needed_scope(method.upper(), path, open_paths)
                if scope is None:
                    operation["security"] = []
                    continue
                # OpenAPI 3.1 lets schemes of every type name the roles that are needed.
                operation["security"] = [{"bearer": [scope]}, {"header": [scope]}]
                refusals = {str(status): answer for status, answer in errors(401, 403).items()}
                operation["responses"] = dict(sorted((operation["responses"] | refusals).items()))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
