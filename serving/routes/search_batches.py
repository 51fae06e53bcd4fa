"""Bodies of a search that are no JSON: vectors as .npy, and what was measured of one object or of many."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..formats import bodies
from ..formats.raw_bodies import read_objects
from ..index.protocol import SearchIndex
from ..problems import ProblemError, at
from ..schemas.common import SearchRequest
from ..service import EmbeddedItem, Service

QUERY_PARAMETERS = ("k", "target_modality", "survey", "exact", "exclude_self", "cursor")


def is_of_vectors(media_type: str, query: Mapping[str, str]) -> bool:
    """Whether a body holds vectors; a .npy file whose `modality` is said holds measurements."""
    return media_type == bodies.NPY and "modality" not in query


def read_vectors(body: bytes, query: Mapping[str, str], limit: int) -> tuple[Float32[np.ndarray, "Q D"], SearchRequest]:
    """Vectors, and what else was asked. Raises ProblemError: 400, 413 or 422."""
    array = bodies.read_npy(body)
    if array.ndim != 2 or not len(array):
        detail = f"expected vectors of shape [queries, dimension], found {list(array.shape)}"
        raise ProblemError("invalid-request", detail)
    if len(array) > limit:
        raise ProblemError("too-large", f"at most {limit} queries in one call, found {len(array)}; see /v1/limits")
    asked = _parameters(query)
    check_no_cursor(asked)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32), asked


def read_measured(
    service: Service, index: SearchIndex, media_type: str, content_type: str, body: bytes, query: Mapping[str, str]
) -> tuple[list[EmbeddedItem | ProblemError], SearchRequest]:
    """The vector of each object of a body, or what is wrong with it, and what else was asked. Raises ProblemError."""
    given = read_objects(media_type, content_type, body, query, service.known_modalities(), service.limits)
    if not given.objects:
        raise ProblemError("invalid-request", "expected at least one object, found none")
    asked = _parameters(given.query)
    service.check_model(given.query.get("model"))
    space = index.manifest.space
    if given.query.get("space", space) != space:
        raise ProblemError("conflict", f"the index holds vectors of the space {space!r}, not {given.query['space']!r}")
    service.check_space(space)
    usable = {number: one for number, one in enumerate(given.objects) if not isinstance(one, ProblemError)}
    embedded = service.embed_objects(usable, space)
    results = [one if isinstance(one, ProblemError) else embedded[number] for number, one in enumerate(given.objects)]
    return results, asked


def check_no_cursor(asked: SearchRequest) -> None:
    """Raises ProblemError (422): pages are of one query."""
    if asked.cursor is not None:
        detail = "pages are of one query; this body has many"
        raise ProblemError("invalid-request", f"/cursor: {detail}", [at("/cursor", detail)])


def _parameters(query: Mapping[str, str]) -> SearchRequest:
    asked: dict[str, Any] = {name: query[name] for name in QUERY_PARAMETERS if name in query}
    if "include" in query:
        asked["include"] = [name.strip() for name in query["include"].split(",") if name.strip()]
    return bodies.parse_fields(SearchRequest, asked, ())
