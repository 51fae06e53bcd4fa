"""What search and prediction share: how a query is checked, and what the answer says of a neighbour."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..index.cone import Cone
from ..index.protocol import EmbeddingIndexError, Neighbours, SearchIndex
from ..problems import ProblemError, at, not_found
from ..schemas.common import QueryBody
from ..service import Service

PROVENANCE_EXAMPLE = {
    "model_id": "armillary-1f3a9c0d2b4e",
    "index_id": "objects-5d1c0a9e7b21",
    "space": "aligned",
    "metric": "inner product of unit vectors",
}
NEIGHBOUR_EXAMPLE = {
    "object_id": "39633345008634465",
    "modality": "spectrum/desi",
    "similarity": 0.93,
    "ra": 150.1,
    "dec": 2.2,
    "labels": {"scalar/redshift": 0.21},
}


@contextmanager
def wrong_vectors() -> Iterator[None]:
    """A vector that cannot be searched with is the caller's mistake."""
    try:
        yield
    except EmbeddingIndexError as error:
        raise ProblemError("invalid-request", str(error), [at("/vector", str(error))]) from None


def cone_of(asked: QueryBody) -> Cone | None:
    """The cone that a query asks for, if any."""
    return None if asked.cone is None else Cone(asked.cone.ra, asked.cone.dec, asked.cone.radius_deg)


def check_target(index: SearchIndex, target: str | None) -> None:
    """Raises ProblemError (404) if the index has no such modality."""
    if target is not None and target not in index.modalities:
        raise not_found("modality of the collection", target, index.modalities)


def check_k(service: Service, k: int) -> None:
    """Raises ProblemError if more neighbours are asked for than one call may."""
    if k > service.limits.max_neighbours:
        detail = f"k must be at most {service.limits.max_neighbours}, found {k}; see /v1/limits"
        raise ProblemError("invalid-request", f"/k: {detail}", [at("/k", detail)])


def neighbour_body(
    index: SearchIndex, found: Neighbours, place: int, with_labels: bool, query: int = 0
) -> dict[str, Any]:
    """The neighbour of one query at this place."""
    object_id = str(found.object_id[query, place])
    return {
        "object_id": object_id,
        "modality": str(found.modality[query, place]),
        "similarity": float(found.similarity[query, place]),
        "ra": number_or_null(float(found.ra[query, place])),
        "dec": number_or_null(float(found.dec[query, place])),
        "labels": index.labels_of(object_id) if with_labels else None,
    }


def number_or_null(value: float) -> float | None:
    """JSON has no NaN: what is not known is null."""
    return None if math.isnan(value) else value
