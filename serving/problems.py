"""Errors of the HTTP API: problem documents (RFC 9457), `application/problem+json`.

A problem has a stable `type`, listed in KINDS and explained at that address; `errors` points into the request body
with JSON pointers (RFC 6901). Code that serves a request raises `ProblemError`; the handlers here write every other
error in the same form.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """One kind of error: its HTTP status, title and what a caller should do."""

    status: int
    title: str
    advice: str


KINDS: dict[str, ProblemKind] = {
    "malformed-body": ProblemKind(
        400, "The body cannot be read", "Send a whole file of the type that Content-Type says."
    ),
    "unauthorized": ProblemKind(401, "A key is needed", "Send the header `Authorization: Bearer KEY`."),
    "forbidden": ProblemKind(403, "The key does not allow this", "Use a key of the scope that `detail` names."),
    "cross-site": ProblemKind(403, "A page of another site asks", "Let the server list the origin of the page."),
    "not-found": ProblemKind(404, "There is no such thing", "See `detail` for the nearest known name."),
    "method-not-allowed": ProblemKind(405, "This address has no such method", "See /openapi.json for the methods."),
    "not-acceptable": ProblemKind(
        406,
        "No type that the caller accepts",
        "Accept one of the types that `detail` names.",
    ),
    "conflict": ProblemKind(409, "Model and index do not fit together", "Use the space and model of the index."),
    "no-state": ProblemKind(409, "The server keeps nothing", "Its operator can give it a folder to keep things in."),
    "key-reused": ProblemKind(
        409, "The idempotency key belongs to another request", "Send a new key with each new request."
    ),
    "not-finished": ProblemKind(409, "The job has no result", "See the job's phase and error."),
    "too-large": ProblemKind(413, "The body or the batch is too large", "Split it by /v1/limits."),
    "unsupported-media-type": ProblemKind(
        415, "The body's type is not supported", "Send a type that the route takes; see /docs."
    ),
    "invalid-request": ProblemKind(422, "The request is not valid", "See `errors` for each field."),
    "invalid-observation": ProblemKind(422, "A measurement is not usable", "See `errors` for the item and the field."),
    "no-labels": ProblemKind(
        422, "No neighbour has the property", "Raise k, or ask for another property; see /v1/collections."
    ),
    "busy": ProblemKind(429, "The server has too much to do", "Ask again after Retry-After seconds."),
    "internal": ProblemKind(500, "The server failed", "This is a fault of ours; the server's log has the trace."),
    "not-ready": ProblemKind(503, "The server starts or stops", "Ask again after Retry-After seconds."),
    "too-slow": ProblemKind(503, "No answer in the time allowed", "Ask again after Retry-After seconds, or for less."),
    "caller-left": ProblemKind(503, "The caller has left", "Stay connected until the answer comes."),
    "storage-full": ProblemKind(507, "The server has no room", "Delete jobs or probes, or tell the server's operator."),
}
RETRY_AFTER_SECONDS = 2
_EXPLAINED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {
                "example": {
                    "type": "/problems/not-found",
                    "title": KINDS["not-found"].title,
                    "status": 404,
                    "advice": KINDS["not-found"].advice,
                }
            }
        }
    },
    404: {
        "description": "There is no such thing (`not-found`)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    },
}


class ProblemError(Exception):
    """An error to answer with: a key of KINDS, what happened, and where in the body."""

    def __init__(
        self, kind: str, detail: str, errors: Sequence[Mapping[str, str]] = (), retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        """Seconds after which to ask again, where that is known better than RETRY_AFTER_SECONDS."""
        self.kind = kind
        self.detail = detail
        self.errors = [dict(error) for error in errors]

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The problem document; `instance` is the address that was asked."""
        kind = KINDS[self.kind]
        document: dict[str, Any] = {
            "type": f"/problems/{self.kind}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
        }
        if instance is not None:
            document["instance"] = instance
        if self.errors:
            document["errors"] = self.errors
        return document


def at(pointer: str, detail: str) -> dict[str, str]:
    """One entry of `errors`: a JSON pointer into the request body, and what is wrong there."""
    return {"pointer": pointer, "detail": detail}


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901): `/input/3/observations/0/data`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def joined(problems: Sequence[ProblemError]) -> ProblemError:
    """One problem for a batch of which no object is usable."""
    if len(problems) == 1:
        return problems[0]
    kinds = {problem.kind for problem in problems}
    return ProblemError(
        kinds.pop() if len(kinds) == 1 else "invalid-request",
        f"none of {len(problems)} objects is usable; the first: {problems[0].detail}",
        [error for problem in problems for error in problem.errors],
    )


def not_found(what: str, name: str, known: Iterable[str]) -> ProblemError:
    """A 404 that names the nearest known name."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return ProblemError(
        "not-found", f"no {what} {name!r}" + (f"; the nearest known is {nearest[0]!r}" if nearest else "")
    )


def from_validation(error: ValidationError, *place: str | int) -> ProblemError:
    """A body that is not JSON, or JSON of the wrong form (both 422): one entry for each wrong field."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(entry["type"] == "json_invalid" for entry in problems):
        return _invalid([((), f"expected a JSON body; {problems[0]['msg']}")])
    return _invalid([(tuple(place) + entry["loc"], entry["msg"]) for entry in problems])


def _invalid(entries: Sequence[tuple[tuple[str | int, ...], str]]) -> ProblemError:
    errors = [at(pointer(*place), message) for place, message in entries]
    first = f"{errors[0]['pointer'] or '/'}: {errors[0]['detail']}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ProblemError("invalid-request", first + more, errors)


def answer(problem: ProblemError, request: Request) -> JSONResponse:
    """The HTTP answer of a problem."""
    status = KINDS[problem.kind].status
    later = {"Retry-After": str(problem.retry_after or RETRY_AFTER_SECONDS)}
    headers = {429: later, 503: later, 401: {"WWW-Authenticate": "Bearer"}}
    document = problem.document(request.url.path)
    request_id = request.scope.get("state", {}).get("request_id")
    if request_id is not None:
        # By which the server's log knows this request (middleware/request_log.py).
        document["request_id"] = request_id
    return JSONResponse(document, status, headers=headers.get(status), media_type=MEDIA_TYPE)


def install_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document, and explain each type at its address."""

    async def of_problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ProblemError)
        return answer(error, request)

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # FastAPI's place begins with `query`, `path` or `body`.
        return answer(_invalid([(tuple(entry["loc"]), entry["msg"]) for entry in error.errors()]), request)

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        by_status = {404: "not-found", 405: "method-not-allowed"}
        kind = by_status.get(error.status_code, "invalid-request" if error.status_code < 500 else "internal")
        phrase = HTTPStatus(error.status_code).phrase
        return answer(ProblemError(kind, f"{phrase}: {request.method} {request.url.path}"), request)

    async def of_fault(request: Request, error: Exception) -> JSONResponse:
        return answer(ProblemError("internal", type(error).__name__), request)

    app.add_exception_handler(ProblemError, of_problem)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_fault)

    @app.get("/problems/{kind}", tags=["about"], summary="What a problem type means", responses=_EXPLAINED)
    def explain(kind: Annotated[str, Path(examples=["not-found"])]) -> dict[str, Any]:
        """Title, status and advice of one problem `type`."""
        if kind not in KINDS:
            raise not_found("problem type", kind, KINDS)
        found = KINDS[kind]
        return {"type": f"/problems/{kind}", "title": found.title, "status": found.status, "advice": found.advice}
