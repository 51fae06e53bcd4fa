"""`armillary index`: shards of embeddings become an index with labels and calibrated predictors.

Held-out objects are in the index, for they can be looked for, but have no label there: no prediction rests on them.
Validation objects are a part of them. Their labels choose and calibrate the predictors, and are not kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.dataset import ObservationDataset
from ...models.embeddings import open_shards
from ...models.neighbour_prediction import (
    CANDIDATE_COUNTS,
    Gallery,
    NeighbourPredictionError,
    NeighbourPredictor,
    choose_neighbours,
    safest,
)
from .labelled_neighbours import labelled_neighbours, predictor_key
from .opening import build_for, check_is_new, open_index, save_index
from .protocol import EmbeddingIndexError, IndexManifest, ObjectSearch, SearchIndex

Labels = Mapping[str, Mapping[str, float]]
"""Measured numbers by scalar modality and object id."""

CALIBRATED_PROPERTIES = ("scalar/redshift",)
LARGEST_GALLERY = 250_000
"""Labelled objects up to which they may be found by the mean of their vectors: each is compared in every search."""


def build_index(
    embeddings: Path,
    index: str | Path,
    data: Path | None = None,
    held_out: Path | None = None,
    calibrate: tuple[str, ...] = CALIBRATED_PROPERTIES,
    *,
    validation: Path | None = None,
    query_modalities: tuple[str, ...] = (),
    target_modality: str | None = None,
    metadata: tuple[str, ...] = (),
    index_type: str | None = None,
    max_memory_gb: float | None = None,
) -> IndexManifest:
    """Build an index from a folder of embedding shards, and save it as the new folder, or at the address, `index`.

    `data` is the dataset whose scalars become labels, of every object that is not in the file `held_out` (object ids,
    one in a line). With `validation`, a file of held-out objects, the properties of `calibrate` get a predictor for
    each of `query_modalities`: the kind of vector that is asked with. By default these are the image modalities of the
    index, and those with too few validation objects are passed over; one that is named must succeed. Neighbours are
    sought among the rows of `target_modality`, by default of all, or by the means of their vectors where validation
    objects are predicted as well so. `metadata` names scalars of the dataset by whose
    ranges searches may be filtered; unlike labels they are known of all objects. `index_type` and
    `max_memory_gb` are those of `EmbeddingIndex.build`. Raises EmbeddingIndexError, NeighbourPredictionError.
    """
    check_is_new(index)
    hidden, validating = _read_ids(held_out), _read_ids(validation)
    _check_ids(hidden, validating, held_out, validation, data)
    numbers: Labels = {} if data is None else ObservationDataset(data).scalars()
    shards = open_shards(embeddings)
    known = set(shards.rows()["object_id"].to_pylist())
    if hidden and hidden.isdisjoint(known.union(*numbers.values())):
        raise EmbeddingIndexError(
            f"{held_out}: none of its {len(hidden)} objects has an embedding or a label; expected object ids, one in "
            f"a line, such as {min(known)!r}"
        )
    built = build_for(
        index,
        shards.paths,
        _label_columns({name: values for name, values in numbers.items() if name not in metadata}, known - hidden),
        metadata=_metadata_columns(numbers, metadata, data),
        index_type=index_type,
        max_memory_gb=max_memory_gb,
    )
    predictors: dict[str, NeighbourPredictor] = {}
    if validating:
        for name in calibrate:
            if name not in built.manifest.labels:
                raise EmbeddingIndexError(f"{data}: no labels of {name!r} to calibrate; it has {sorted(numbers)}")
            truth = {i: value for i, value in numbers[name].items() if i in validating}
            predictors |= _calibrated(built, name, truth, query_modalities, target_modality)
    return save_index(built, index, predictors)


def _calibrated(
    index: SearchIndex,
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
    index: SearchIndex,
    property_name: str,
    truth: Mapping[str, float],
    query_modality: str,
    target_modality: str | None = None,
) -> NeighbourPredictor:
    """Choose and calibrate a predictor on the objects of `truth`, asked by their vectors of `query_modality`.

    They choose, too, whether labelled objects are found by single vectors or by the mean of them over all surveys: of
    what they cannot tell apart, the latter (`safest`), as in `evaluation/accuracy.py`.
    Raises NeighbourPredictionError where too few of them have such a vector, EmbeddingIndexError if the index holds a
    label of one: it would be its own nearest neighbour.
    """
    ids = sorted(truth.keys() & set(index.objects_with(query_modality)))
    labelled = [i for i in ids if property_name in index.labels_of(i)]
    if labelled:
        raise EmbeddingIndexError(f"validation object {labelled[0]!r} has its label {property_name!r} in the index")
    if not ids:
        raise NeighbourPredictionError(
            f"{property_name}: no validation object has the value and an embedding of {query_modality}"
        )
    vectors = index.vectors(ids, query_modality)
    known = np.array([truth[i] for i in ids], np.float64)
    tried, errors, breadths = [], [], []
    for gallery, breadth in _galleries(index, target_modality):
        neighbours, labels = labelled_neighbours(
            index, vectors, property_name, max(CANDIDATE_COUNTS), target_modality=target_modality, gallery=gallery
        )
        try:
            predictor = choose_neighbours(
                property_name,
                neighbours.similarity,
                labels,
                known,
                target_modality=target_modality,
                gallery=gallery,
                model_id=index.model_id,
            )
        except NeighbourPredictionError as error:
            raise NeighbourPredictionError(f"queries of {query_modality}: {error}") from None
        tried.append(predictor)
        error_of_each = predictor.predict(neighbours.similarity, labels).value - known
        errors.append(np.square(error_of_each)[np.isfinite(known)])
        breadths.append(breadth)
    return tried[safest(np.stack(errors), breadths)]


def _galleries(index: SearchIndex, target_modality: str | None) -> list[tuple[Gallery, int]]:
    """By what labelled objects may be found, and on how many surveys that rests."""
    found: list[tuple[Gallery, int]] = [("rows", 1)]
    several = target_modality is None and len(index.modalities) > 1
    if several and isinstance(index, ObjectSearch) and index.num_labelled <= LARGEST_GALLERY:
        found.append(("objects", len(index.modalities)))
    return found


def add_to_index(
    index: str | Path, embeddings: Path, data: Path | None = None, held_out: Path | None = None
) -> IndexManifest:
    """Add shards of embeddings to an index, with labels and metadata from a dataset; labels not of held-out objects."""
    loaded, _ = open_index(index)
    shards = open_shards(embeddings)
    numbers: Labels = {} if data is None else ObservationDataset(data).scalars()
    names = loaded.manifest.metadata
    given = set(shards.rows()["object_id"].to_pylist())
    labels = {name: values for name, values in numbers.items() if name not in names}
    loaded.add(
        shards.paths,
        _label_columns(labels, given - _read_ids(held_out)),
        _metadata_columns(numbers, tuple(name for name in names if name in numbers), data),
    )
    return loaded.manifest


def remove_from_index(index: str | Path, object_ids: Path) -> IndexManifest:
    """Remove the objects that a file names, one in a line, from an index."""
    loaded, _ = open_index(index)
    loaded.remove(sorted(_read_ids(object_ids)))
    return loaded.manifest


def _metadata_columns(numbers: Labels, names: Sequence[str], data: Path | None) -> dict[str, Any] | None:
    """These scalars as columns, NaN where one has no value; None if none is asked for."""
    for name in names:
        if name not in numbers:
            raise EmbeddingIndexError(f"{data}: no scalar {name!r} for metadata; it has {sorted(numbers)}")
    ids = sorted(set().union(*(numbers[name] for name in names)))
    columns = {name: np.array([numbers[name].get(i, np.nan) for i in ids]) for name in names}
    return {"object_id": ids, **columns} if ids else None


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
