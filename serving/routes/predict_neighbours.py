"""Method `neighbours` of /v1/predict: the labels of the nearest objects, for one object or for several at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...models.neighbour_prediction import NeighbourPrediction, NeighbourPredictor
from ..index.labelled_neighbours import labelled_neighbours, predictor_for
from ..index.protocol import Neighbours, SearchIndex
from ..problems import ProblemError, at, not_found
from ..query_items import Item, embed_items
from ..schemas.common import PredictRequest
from ..service import EmbeddedItem, Service
from .search_queries import check_k, check_target, cone_of, neighbour_body, wrong_vectors

Told = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Search:
    """How the objects of a group are searched for, and whether the predictor was calibrated so."""

    predictor: NeighbourPredictor
    k: int
    target: str | None
    is_calibrated: bool


def neighbours_of_one(service: Service, asked: PredictRequest) -> tuple[Told, SearchIndex]:
    """What is predicted of the one object that is asked about, and by which index. Raises ProblemError."""
    index, predictors = _searchable(service, asked)
    query = service.query(asked, index)
    item = EmbeddedItem(query.vector[0], query.object_id, query.modalities)
    (told,) = _predicted(service, asked, index, predictors, [item])
    if told is None:
        detail = _no_labels(asked)
        raise ProblemError("no-labels", detail, [at("/property", detail)])
    return told, index


def neighbours_of_many(
    service: Service, asked: PredictRequest, items: Sequence[Item]
) -> tuple[list[Told | ProblemError], SearchIndex]:
    """What is predicted of each item, or why nothing is, and by which index; those alike in one search."""
    index, predictors = _searchable(service, asked)
    manifest = index.manifest
    service.check_space(manifest.space)
    results: list[Any] = [
        _with_direction(number, item)
        for number, item in enumerate(embed_items(service, items, manifest.space, manifest.dimension))
    ]
    usable = [number for number, result in enumerate(results) if isinstance(result, EmbeddedItem)]
    told = _predicted(service, asked, index, predictors, [results[number] for number in usable])
    for number, found in zip(usable, told, strict=True):
        where, detail = f"/input/{number}", _no_labels(asked)
        results[number] = (
            ProblemError("no-labels", f"{where}: {detail}", [at(where, detail)]) if found is None else found
        )
    return results, index


def _searchable(service: Service, asked: PredictRequest) -> tuple[SearchIndex, Mapping[str, NeighbourPredictor]]:
    index, predictors = service.searchable()
    if asked.property not in index.manifest.labels:
        raise not_found("property", asked.property, index.manifest.labels)
    if asked.k is not None:
        check_k(service, asked.k)
    check_target(index, asked.target_modality)
    return index, predictors


def _predicted(
    service: Service,
    asked: PredictRequest,
    index: SearchIndex,
    predictors: Mapping[str, NeighbourPredictor],
    items: Sequence[EmbeddedItem],
) -> list[Told | None]:
    """What is predicted of each item; None where no neighbour has a label."""
    groups: dict[NeighbourPredictor, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(predictor_for(predictors, asked.property, item.modalities), []).append(number)
    told: list[Told | None] = [None] * len(items)
    for predictor, numbers in groups.items():
        group = [items[number] for number in numbers]
        for number, one in zip(numbers, _of_group(service, asked, index, predictor, group), strict=True):
            told[number] = one
    return told


def _of_group(
    service: Service,
    asked: PredictRequest,
    index: SearchIndex,
    predictor: NeighbourPredictor,
    items: Sequence[EmbeddedItem],
) -> list[Told | None]:
    search = _search(asked, predictor)
    check_k(service, search.k)
    check_target(index, search.target)
    with service.metrics.timed("search"), wrong_vectors():
        found, labels = labelled_neighbours(
            index,
            np.stack([item.vector for item in items]),
            asked.property,
            search.k,
            target_modality=search.target,
            gallery=search.predictor.gallery,
            exclude=asked.exclude,
            exclude_each=[item.object_id or "" for item in items] if asked.exclude_self else None,
            cone=cone_of(asked),
            exact=asked.exact,
        )
    known = np.flatnonzero(~np.isnan(labels).all(1))
    told: list[Told | None] = [None] * len(items)
    if len(known):
        predicted = search.predictor.predict(found.similarity[known], labels[known])
        for row, query in enumerate(known.tolist()):
            object_id = {"object_id": items[query].object_id}
            told[query] = object_id | _told(index, search, predicted, row, found, labels, query)
    return told


def _search(asked: PredictRequest, predictor: NeighbourPredictor) -> _Search:
    """As the predictor was calibrated, but for what is asked otherwise: then its intervals mean nothing."""
    target = asked.target_modality or predictor.target_modality
    k = predictor.k if asked.k is None else asked.k
    same_way = k == predictor.k and target == predictor.target_modality and asked.cone is None
    if predictor.num_calibration > 0 and same_way:
        return _Search(predictor, k, target, True)
    # Rows of one modality are no means of all.
    gallery = "rows" if target is not None else predictor.gallery
    return _Search(NeighbourPredictor(asked.property, k, predictor.temperature, gallery=gallery), k, target, False)


def _told(
    index: SearchIndex,
    search: _Search,
    predicted: NeighbourPrediction,
    row: int,
    found: Neighbours,
    labels: Float64[np.ndarray, "Q K"],
    query: int,
) -> Told:
    bounds = zip(predicted.levels, predicted.lower[row], predicted.upper[row], strict=True)
    return {
        "value": float(predicted.value[row]),
        "intervals": [{"level": level, "lower": float(low), "upper": float(high)} for level, low, high in bounds],
        "calibrated": search.is_calibrated,
        "k": search.k,
        "gallery": search.predictor.gallery,
        "neighbours": [
            neighbour_body(index, found, place, False, query)
            | {"label": float(labels[query, place]), "weight": float(predicted.weights[row, place])}
            for place in np.flatnonzero(found.row[query] >= 0).tolist()
        ],
        "novelty": None if predicted.novelty is None else float(predicted.novelty[row]),
        "is_outside": None if predicted.is_outside is None else bool(predicted.is_outside[row]),
    }


def _with_direction(number: int, item: EmbeddedItem | ProblemError) -> EmbeddedItem | ProblemError:
    if isinstance(item, ProblemError) or item.vector.any():
        return item
    where, detail = f"/input/{number}", "a vector of zeros has no direction to search in"
    return ProblemError("invalid-request", f"{where}: {detail}", [at(where, detail)])


def _no_labels(asked: PredictRequest) -> str:
    return f"no object that may be a neighbour has a label of {asked.property!r}"
