"""Searches as requests: one query, or examples of what is looked for and of what is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from .requests import Call, place, post, query_body
from .results import Neighbour, Neighbours, neighbours_of


def neighbours_call(
    query: Any,
    k: int,
    *,
    modality: str | None = None,
    target_modality: str | None = None,
    cone: Sequence[Any] | None = None,
    exclude: Sequence[str] = (),
    exclude_self: bool = True,
    with_labels: bool = False,
    collection: str = "objects",
    survey: str | None = None,
    where: Mapping[str, tuple[float | None, float | None]] | None = None,
    positive: Sequence[Any] = (),
    negative: Sequence[Any] = (),
    negative_weight: float | int = 1.0,
    exact: bool = False,
    cursor: str | None = None,
) -> Call[Neighbours]:
    """See `Client.neighbours`."""
    body = query_body(query, modality, target_modality, cone) | {
        "k": k,
        "exclude": list(exclude),
        "exclude_self": exclude_self,
        "include": ["labels"] if with_labels else [],
        "survey": survey,
        "where": {name: list(bounds) for name, bounds in (where or {}).items()},
        "exact": exact,
        "cursor": cursor,
    }
    if len(positive) or len(negative):
        body |= {
            "positive": [_example(one) for one in positive],
            "negative": [_example(one) for one in negative],
            "negative_weight": negative_weight,
        }
    return post(place("v1", "collections", collection, "search"), body, neighbours_of)


def _example(given: Any) -> str | dict[str, Any]:
    if isinstance(given, str):
        return given
    if isinstance(given, Neighbour):
        return {"object_id": given.object_id, "modality": given.modality}
    body = query_body(given)
    return {name: body[name] for name in ("vector", "observations") if name in body}
