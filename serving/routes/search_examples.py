"""A query from examples: like these, unlike those.

By Rocchio (1971, "Relevance feedback in information retrieval"), with unit vectors, no query before the examples, the
weight 1 for the positive and `negative_weight` for the negative ones:

    query = mean(positive) - negative_weight * mean(negative)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..formats import bodies
from ..index.protocol import SearchIndex
from ..index.queries import unit_queries
from ..problems import ProblemError, at, pointer
from ..schemas.common import ExampleBody, QueryBody, SearchRequest
from ..service import EmbeddedItem, Query, Service
from .search_queries import wrong_vectors

SIDES = ("positive", "negative")
SHORTEST = 1e-4
"""A sum of examples that is shorter than this has no direction: they cancel."""


def query_and_objects(service: Service, asked: SearchRequest, index: SearchIndex) -> tuple[Query, list[str]]:
    """The query of a search, and the objects of the index that it was made of. Raises ProblemError."""
    if asked.positive is None and not asked.negative:
        query = service.query(asked, index)
        return query, [] if query.object_id is None else [query.object_id]
    others = [name for name in ("vector", "object_id", "observations", "modality") if getattr(asked, name) is not None]
    if others:
        raise _wrong(others[0], detail="examples stand in the place of it: give it, or positive and negative")
    if not asked.positive:
        raise _wrong("positive", detail="expected at least one example of what is looked for, found none")
    count = len(asked.positive) + len(asked.negative)
    if count > service.limits.max_items:
        detail = f"at most {service.limits.max_items} examples in one search, found {count}; see /v1/limits"
        raise ProblemError("too-large", detail, [at("/positive", detail)])
    examples = _examples(service, asked, index)
    dimension = index.manifest.dimension
    vector = _mean(examples, "positive", dimension) - asked.negative_weight * _mean(examples, "negative", dimension)
    length = float(np.linalg.norm(vector))
    if not length > SHORTEST:
        raise _wrong("positive", detail="the examples cancel each other, and leave no direction to search in")
    ids = dict.fromkeys(one.object_id for one in examples.values() if one.object_id is not None)
    return Query((vector / length).astype(np.float32)[None], None), list(ids)


def _examples(service: Service, asked: SearchRequest, index: SearchIndex) -> Mapping[bodies.Place, Query]:
    """Each example by its place in the request; those that were measured go to the model together."""
    found: dict[bodies.Place, Query] = {}
    measured: list[tuple[bodies.Place, Any]] = []
    for side in SIDES:
        for number, given in enumerate(getattr(asked, side) or ()):
            place: bodies.Place = (side, number)
            example = _parsed(given, place)
            if example.observations is not None:
                content = {"observations": example.observations}
                measured.append(
                    (place, bodies.observations_of(content, place, service.known_modalities(), service.limits))
                )
                continue
            below = place if isinstance(given, str) else (*place, "object_id")
            with _pointing_below(place, below if example.object_id is not None else place), wrong_vectors():
                query = service.query(QueryBody(**example.model_dump()), index)
                unit = unit_queries(query.vector, index.manifest.dimension)
                found[place] = Query(unit, query.object_id, query.modalities)
    space = index.manifest.space
    if measured:
        service.check_space(space)
    embedded = service.embed_objects({number: given for number, (_, given) in enumerate(measured)}, space)
    for number, (place, _) in enumerate(measured):
        found[place] = _measured(embedded[number], place, index)
    return found


def _parsed(given: Any, place: bodies.Place) -> ExampleBody:
    """One example. Raises ProblemError (422) unless it says in one way which object is meant."""
    example = ExampleBody(object_id=given) if isinstance(given, str) else bodies.parse_fields(ExampleBody, given, place)
    ways = [name for name in ("vector", "object_id", "observations") if getattr(example, name) is not None]
    if len(ways) != 1:
        raise _wrong(
            *place, detail=f"expected exactly one of vector, object_id and observations; found {ways or 'none'}"
        )
    if example.modality is not None and example.object_id is None:
        raise _wrong(*place, "modality", detail="goes with object_id alone, and says which of its vectors is meant")
    return example


def _measured(result: EmbeddedItem | ProblemError, place: bodies.Place, index: SearchIndex) -> Query:
    where = pointer(*place, "observations")
    if isinstance(result, ProblemError):
        raise ProblemError(result.kind, f"{where}: {result.detail}", [at(where, e["detail"]) for e in result.errors])
    with _pointing_below(place, (*place, "observations")), wrong_vectors():
        return Query(unit_queries(result.vector[None], index.manifest.dimension), result.object_id, result.modalities)


def _mean(examples: Mapping[bodies.Place, Query], side: str, dimension: int) -> Float32[np.ndarray, " D"]:
    vectors = [query.vector[0] for place, query in examples.items() if place[0] == side]
    return np.stack(vectors).mean(0) if vectors else np.zeros(dimension, np.float32)


@contextmanager
def _pointing_below(place: bodies.Place, otherwise: bodies.Place) -> Iterator[None]:
    """Problems of a query alone point to the example that it is; those that point nowhere, to `otherwise`."""
    try:
        yield
    except ProblemError as problem:
        errors = [at(pointer(*place) + e["pointer"], e["detail"]) for e in problem.errors]
        errors = errors or [at(pointer(*otherwise), problem.detail)]
        detail = f"{errors[0]['pointer']}: {errors[0]['detail']}"
        raise ProblemError(problem.kind, detail, errors) from None


def _wrong(*place: str | int, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
