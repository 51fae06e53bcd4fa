"""Errors that the client raises: the server's problem documents (RFC 9457), or that no answer came at all.

Every one is an ApiError, so that `except ApiError` takes all; the classes below it tell them apart by status.
"""

from collections.abc import Mapping
from typing import Any

from ...models.embeddings import Embeddings


class ApiError(Exception):
    """The server did not do what was asked. `status` is that of HTTP, None where no answer came.

    `problem` is the problem document, `request_id` what the server's log calls the request (None where it says none).
    `finished` holds the embeddings of a longer task that were there before it failed, in order from the first object.
    """

    def __init__(self, status: int | None, problem: Mapping[str, Any], request_id: str | None = None) -> None:
        shown = "" if status is None else f"{status} "
        log = "" if request_id is None else f" (request {request_id})"
        super().__init__(f"{shown}{problem.get('title', '')}: {problem.get('detail', '')}{log}")
        self.status = status
        self.problem = dict(problem)
        self.request_id = request_id
        self.finished: Embeddings | None = None


class UnauthorizedError(ApiError):
    """401, 403: the key is missing, unknown, or not allowed to do this."""


class NotFoundError(ApiError):
    """404: no such object, modality, property, collection, probe or address; the detail names the nearest known."""


class ConflictError(ApiError):
    """409: model, index and request do not fit together."""


class TooLargeError(ApiError):
    """413: the body or the batch exceeds the server's limits; raised before sending where that is known."""


class InvalidRequestError(ApiError):
    """400, 406, 415, 422: the server does not take what was sent; `problem["errors"]` points to each field."""


class BusyError(ApiError):
    """429, 503: the server has no room or is not ready, and still was not after all the retries."""


class UnreachableError(ApiError):
    """No answer came, after all the retries: no connection, a cut one, or the time was up. `status` is None."""

    def __init__(self, detail: str) -> None:
        super().__init__(None, {"title": "No answer", "detail": detail})


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    406: InvalidRequestError,
    409: ConflictError,
    413: TooLargeError,
    415: InvalidRequestError,
    422: InvalidRequestError,
    429: BusyError,
    503: BusyError,
}


def api_error(status: int, problem: Mapping[str, Any], request_id: str | None = None) -> ApiError:
    """The error of this status."""
    return _BY_STATUS.get(status, ApiError)(status, problem, request_id)
