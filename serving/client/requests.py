"""What both clients share: a request as data, how its answer is read, and when it is sent again.

A `Call` says everything of one request. Every call may be repeated: it changes nothing, or bears an Idempotency-Key, by
which the server knows that it did this already. Waits grow exponentially with full jitter (Brooker, "Exponential
backoff and jitter", AWS 2015), so that clients which failed together do not come back together.
"""

import base64
import email.utils
import json
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from torch import Tensor

from ...data.observe import as_observations
from .batches import json_item, objects_of
from .errors import ApiError, ConflictError, api_error
from .results import ObjectRecord, Prediction, prediction_of

REPEATED_STATUSES = (429, 502, 503, 504)
"""No room, not ready, or a proxy that did not reach the server: asked again."""
JSON = "application/json"
PROBLEM = "application/problem+json"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RetryRules:
    """How long one attempt may take, and how often and how long a request is tried. Seconds."""

    timeout: float = 60.0
    """Of one attempt: until the connection stands, and between two pieces of the answer."""
    deadline: float = 300.0
    """Of one request with all its attempts; a busy server is asked until then."""
    retries: int = 7
    """Attempts after the first where the connection fails."""
    retries_at_first: int = 2
    """The same while the server has never answered: then the address is wrong more often than the server restarts."""
    first_wait: float = 0.25
    longest_wait: float = 20.0

    def __post_init__(self) -> None:
        for name in ("timeout", "deadline", "first_wait", "longest_wait"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")

    def wait(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds to wait after this attempt (from 0); never less than the server asks for."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt, 30))
        return (0.0 if retry_after is None else retry_after) + random.uniform(0, longest)

    def attempts_left(self, attempt: int, was_answered: bool) -> bool:
        """Whether a failed connection is tried once more after this attempt (from 0)."""
        return attempt < (self.retries if was_answered else min(self.retries, self.retries_at_first))


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request, and what makes its result of a successful answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], Answer]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    """In place of `body`: a file that is read as it is sent."""
    into: Path | None = None
    """Where the body of a successful answer goes, whole or not at all; without it, into memory."""


def get(path: str, read: Callable[[Any], Answer]) -> Call[Answer]:
    """A GET; `read` takes the JSON of the answer."""
    return Call("GET", path, lambda response: read(json_of(response)))


def post(path: str, content: Mapping[str, Any], read: Callable[[Any], Answer], creates: bool = False) -> Call[Answer]:
    """A POST of JSON; with `creates`, it bears a key by which the server does it once, however often it comes."""
    headers = {"Content-Type": JSON} | ({"Idempotency-Key": idempotency_key()} if creates else {})
    body = json.dumps(content, allow_nan=False).encode()
    return Call("POST", path, lambda response: read(json_of(response)), body, headers)


def idempotency_key() -> str:
    """A word of which no other request knows."""
    return uuid.uuid4().hex


def delete(path: str) -> Call[None]:
    """A DELETE."""
    return Call("DELETE", path, lambda response: None)


def place(*parts: str) -> str:
    """A path whose parts may hold any characters."""
    return "".join("/" + quote(part, safe="") for part in parts)


def predict_call(
    property: str,
    query: Any,
    method: str,
    k: int | None,
    modality: str | None,
    target_modality: str | None,
    cone: Sequence[Any] | None,
    exclude_self: bool,
) -> Call[Prediction]:
    """See `Client.predict`."""
    body = query_body(query, modality, target_modality, cone) | {
        "property": property,
        "method": method,
        "k": k,
        "exclude_self": exclude_self,
    }
    return post("/v1/predict", body, prediction_of)


def asked_of_many(
    property: str,
    method: str,
    k: int | None,
    target_modality: str | None,
    cone: Sequence[Any] | None,
    exclude_self: bool,
) -> dict[str, Any]:
    """What a prediction for several objects asks of all of them; nothing that is left to the server."""
    asked = query_body(None, None, target_modality, cone) | {"property": property, "method": method, "k": k}
    given = {name: value for name, value in asked.items() if value is not None}
    return given if exclude_self else given | {"exclude_self": False}


def object_call(object_id: str) -> Call[ObjectRecord]:
    """See `Client.object`."""
    return get(place("v1", "objects", object_id), ObjectRecord.of)


def query_body(
    query: Any,
    modality: str | None = None,
    target_modality: str | None = None,
    cone: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """A query as the server reads it: an object's id, a vector [D], the measurements of one object, or None for none.

    `cone` is (ra, dec, radius): numbers of degrees, or astropy quantities. Raises ValueError for several objects.
    """
    body: dict[str, Any] = {"modality": modality, "target_modality": target_modality}
    if cone is not None:
        body["cone"] = dict(zip(("ra", "dec", "radius_deg"), map(_degrees, cone), strict=True))
    if query is None:
        return body
    if isinstance(query, str):
        return body | {"object_id": query}
    if isinstance(query, Tensor):
        query = query.detach().cpu().numpy()
    if isinstance(query, np.ndarray) and not hasattr(query, "unit"):
        return body | {"vector": base64.b64encode(query.astype("<f4").reshape(-1).tobytes()).decode()}
    objects = objects_of(as_observations(query))
    if len(objects) != 1:
        raise ValueError(f"a query is one object; these observations hold {len(objects)}: select one")
    return body | {"observations": json_item(objects[0])["observations"]}


def json_of(response: httpx.Response) -> Any:
    """The JSON of an answer. Raises ApiError where something else came."""
    try:
        return response.json()
    except ValueError:
        shown = response.headers.get("content-type", "no type")
        detail = f"{response.request.url} answers {shown}, not JSON: is this the address of an Armillary server?"
        raise ApiError(response.status_code, {"title": "Not an Armillary server", "detail": detail}) from None


def error_of(response: httpx.Response) -> ApiError:
    """The error that an answer without success means, whoever gave it."""
    request_id = response.headers.get("x-request-id")
    problem: Any = None
    if _is_problem(response):
        try:
            problem = response.json()
        except ValueError:
            problem = None
    if not isinstance(problem, dict):
        problem = {"title": response.reason_phrase, "detail": response.text[:500]}
    return api_error(response.status_code, problem, request_id)


def is_worth_repeating(response: httpx.Response) -> bool:
    """Whether an answer says that the server was not reached, or has no room now.

    Its own 500 is a problem document; a bare one comes from a proxy whose server died with the request in hand.
    """
    return response.status_code in REPEATED_STATUSES or (response.status_code == 500 and not _is_problem(response))


def _is_problem(response: httpx.Response) -> bool:
    return response.headers.get("content-type", "").startswith(PROBLEM)


def is_under_way(error: Exception) -> bool:
    """Whether the server still works on an earlier attempt: only that can have used the key of this request."""
    return isinstance(error, ConflictError) and str(error.problem.get("type", "")).endswith("/key-reused")


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the header Retry-After asks to wait: a number, or a date (RFC 9110); None without one."""
    given = response.headers.get("retry-after", "").strip()
    try:
        return max(float(given), 0.0) if given and np.isfinite(float(given)) else None
    except ValueError:
        try:
            return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
        except ValueError:
            return None


def checked_url(url: str) -> str:
    """The address without a slash at its end. Raises ValueError if it is none of HTTP."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"expected an address that begins with http:// or https://, found {url!r}")
    return url.rstrip("/")


def _degrees(value: Any) -> float:
    """A number of degrees, from a number or a quantity of astropy."""
    return float(value.to_value("deg")) if hasattr(value, "to_value") else float(value)
