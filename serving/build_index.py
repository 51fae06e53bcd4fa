"""`armillary index`: shards of embeddings become an index with labels and calibrated predictors.

Held-out objects are in the index, for they can be looked for, but have no label there: no prediction rests on them.
Validation objects are a part of them. Their labels choose and calibrate the predictors, and are not kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import ObservationDataset
from ..models.embeddings import read_embedding_shards
from ..models.neighbour_prediction import (
    CANDIDATE_COUNTS,
    NeighbourPredictionError,
    NeighbourPredictor,
    choose_neighbours,
)
from .index import EmbeddingIndex, EmbeddingIndexError
from .index_files import Manifest
from .labelled_neighbours import labelled_neighbours, predictor_key

Labels = Mapping[str, Mapping[str, float]]
"""Measured numbers by scalar modality and object id."""

CALIBRATED_PROPERTIES = ("scalar/redshift",)


def build_index(
    embeddings: Path,
    index: Path,
    data: Path | None = None,
    held_out: Path | None = None,
    calibrate: tuple[str, ...] = CALIBRATED_PROPERTIES,
    *,
    validation: Path | None = None,
    query_modalities: tuple[str, ...] = (),
    target_modality: str | None = None,
) -> Manifest:
    """Build an index from a folder of embedding shards, and save it as the new folder `index`.

    `data` is the dataset whose scalars become labels, of every object that is not in the file `held_out` (object ids,
    one in a line). With `validation`, a file of held-out objects, the properties of `calibrate` get a predictor for
    each of `query_modalities`: the kind of vector that is asked with. By default these are the image modalities of the
    index, and those with too few validation objects are passed over; one that is named must succeed. Neighbours are
    sought among the rows of `target_modality`, by default of all. Raises EmbeddingIndexError, NeighbourPredictionError.
    """
    hidden, validating = _read_ids(held_out), _read_ids(validation)
    _check_ids(hidden, validating, held_out, validation, data)
    numbers: Labels = {} if data is None else ObservationDataset(data).scalars()
    table = read_embedding_shards(embeddings)
    known = set(table.object_id)
    if hidden and hidden.isdisjoint(known.union(*numbers.values())):
        raise EmbeddingIndexError(
            f"{held_out}: none of its {len(hidden)} objects has an embedding or a label; expected object ids, one in "
            f"a line, such as {min(known)!r}"
        )
    built = EmbeddingIndex.build(table, _label_columns(numbers, known - hidden))
    predictors: dict[str, NeighbourPredictor] = {}
    if validating:
        for name in calibrate:
            if name not in built.manifest.labels:
                raise EmbeddingIndexError(f"{data}: no labels of {name!r} to calibrate; it has {sorted(numbers)}")
            truth = {i: value for i, value in numbers[name].items() if i in validating}
            predictors |= _calibrated(built, name, truth, query_modalities, target_modality)
    return built.save(index, predictors)


def _calibrated(
    index: EmbeddingIndex,
    property_name: str,
    truth: Mapping[str, float],
    query_modalities: Sequence[str],
    target_modality: str | None,
) -> dict[str, NeighbourPredictor]:
    chosen = query_modalities or [name for name in index.modalities if name.startswith("image/")]
    unknown = sorted(set(chosen) - set(index.modalities))
    if unknown or not chosen:
        wanted = f"query modality {unknown[0]!r}" if unknown else "image modality to ask with"
        raise EmbeddingIndexError(f"no {wanted} in the embeddings; they have {list(index.modalities)}")
    found: dict[str, NeighbourPredictor] = {}
    failures: list[str] = []
    for name in chosen:
        try:
            found[predictor_key(property_name, name)] = calibrate_predictor(
                index, property_name, truth, name, target_modality
            )
        except NeighbourPredictionError as error:
            if query_modalities:
                raise
            failures.append(str(error))
    if not found:
        raise NeighbourPredictionError("; ".join(failures))
    return found


def calibrate_predictor(
    index: EmbeddingIndex,
    property_name: str,
    truth: Mapping[str, float],
    query_modality: str,
    target_modality: str | None = None,
) -> NeighbourPredictor:
    """Choose and calibrate a predictor on the objects of `truth`, asked by their vectors of `query_modality`.

    Raises NeighbourPredictionError where too few of them have such a vector, EmbeddingIndexError if the index holds a
    label of one: it would be its own nearest neighbour.
    """
    has_vector = {str(i) for i in index.object_id[index.modality == query_modality]}
    ids = sorted(has_vector & truth.keys())
    labelled = [i for i in ids if property_name in index.labels_of(i)]
    if labelled:
        raise EmbeddingIndexError(f"validation object {labelled[0]!r} has its label {property_name!r} in the index")
    if not ids:
        raise NeighbourPredictionError(
            f"{property_name}: no validation object has the value and an embedding of {query_modality}"
        )
    vectors = np.stack([index.vector(i, query_modality) for i in ids])
    neighbours, labels = labelled_neighbours(
        index, vectors, property_name, max(CANDIDATE_COUNTS), target_modality=target_modality
    )
    try:
        return choose_neighbours(
            property_name,
            neighbours.similarity,
            labels,
            np.array([truth[i] for i in ids], np.float64),
            target_modality=target_modality,
            model_id=index.model_id,
        )
    except NeighbourPredictionError as error:
        raise NeighbourPredictionError(f"queries of {query_modality}: {error}") from None


def _label_columns(numbers: Labels, objects: set[str]) -> dict[str, Any] | None:
    """The numbers of these objects as columns, NaN where one has no value; None if there is nothing to tell."""
    ids = sorted(objects.intersection(set().union(*numbers.values())))
    columns = {name: np.array([values.get(i, np.nan) for i in ids]) for name, values in numbers.items()}
    return {"object_id": ids, **columns} if ids else None


def _read_ids(path: Path | None) -> set[str]:
    ids = set() if path is None else set(path.read_text(encoding="utf-8").split())
    if path is not None and not ids:
        raise EmbeddingIndexError(f"{path}: expected object ids, one in a line, found none")
    return ids


def _check_ids(
    hidden: set[str], validating: set[str], held_out: Path | None, validation: Path | None, data: Path | None
) -> None:
    if validating and data is None:
        raise EmbeddingIndexError(f"{validation}: calibration needs the dataset that holds the labels")
    shown = sorted(validating - hidden)
    if shown:
        raise EmbeddingIndexError(
            f"{validation}: {len(shown)} of {len(validating)} validation objects are not held out, the first: "
            f"{shown[0]!r}; their labels would be in the index. Add them to {held_out or 'a file of held-out objects'}"
        )
