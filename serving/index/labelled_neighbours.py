"""The neighbours that a prediction rests on: labelled objects, each once, and which predictor a query calls for.

A route and the calibration of a predictor must see the same neighbours, or the intervals mean nothing; both ask here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import numpy as np
from jaxtyping import Float, Float64

from ...models.neighbour_prediction import Gallery, NeighbourPredictor
from .cone import Cone
from .protocol import EmbeddingIndexError, Neighbours, ObjectSearch, SearchIndex


def predictor_key(property_name: str, query_modality: str | None = None) -> str:
    """The name under which predictors are kept: `scalar/redshift from image/hsc`.

    Without a modality: `scalar/redshift`, a predictor for queries of any kind.
    """
    return property_name if query_modality is None else f"{property_name} from {query_modality}"


def predictor_for(
    predictors: Mapping[str, NeighbourPredictor], property_name: str, modalities: Sequence[str]
) -> NeighbourPredictor:
    """The predictor for a query whose vector came from these modalities, or one that is not calibrated.

    Intervals that were calibrated on images say nothing of spectra, nor of both together.
    """
    keys = [predictor_key(property_name, modalities[0])] if len(modalities) == 1 else []
    for key in (*keys, property_name):
        if key in predictors:
            return predictors[key]
    return NeighbourPredictor(property_name)


def labelled_neighbours(
    index: SearchIndex,
    vectors: Float[np.ndarray, "Q D"],
    property_name: str,
    k: int,
    *,
    target_modality: str | None = None,
    gallery: Gallery = "rows",
    exclude: Iterable[str] = (),
    exclude_each: Sequence[str] | None = None,
    cone: Cone | None = None,
    exact: bool = False,
) -> tuple[Neighbours, Float64[np.ndarray, "Q K"]]:
    """The k nearest objects that have the label, each by its most similar row or by its mean, and their labels.

    Raises as `SearchIndex.search` does, and EmbeddingIndexError for means where an index has none, or of one modality.
    """
    if gallery == "objects":
        if target_modality is not None or not isinstance(index, ObjectSearch):
            raise EmbeddingIndexError(f"no means of {target_modality or type(index).__name__} to find objects by")
        nearest = index.search_objects(
            vectors, k, has_label=property_name, exclude=exclude, exclude_each=exclude_each, cone=cone
        )
        return nearest, index.label_of_rows(property_name, nearest.row)
    rows_per_object = 1 if target_modality is not None else len(index.modalities)
    found = index.search(
        vectors,
        k * rows_per_object,
        target_modality=target_modality,
        exclude=exclude,
        exclude_each=exclude_each,
        cone=cone,
        has_label=property_name,
        exact=exact,
    )
    nearest = _distinct_objects(found, k)
    return nearest, index.label_of_rows(property_name, nearest.row)


def _distinct_objects(found: Neighbours, k: int) -> Neighbours:
    """Of each query, the first k objects: one counts once, though several of its modalities may be near."""
    places = []
    for row, names in zip(found.row, found.object_id.astype(str), strict=True):
        _, first = np.unique(names, return_index=True)
        places.append(np.sort(first[row[first] >= 0])[:k])
    width = max((len(chosen) for chosen in places), default=0)
    # Queries with fewer objects are filled up with a place that holds none.
    table = np.full((len(places), width), found.row.shape[1])
    for number, chosen in enumerate(places):
        table[number, : len(chosen)] = chosen
    nothing = {"row": -1, "similarity": -np.inf, "object_id": "", "modality": "", "ra": np.nan, "dec": np.nan}
    chosen_fields = {}
    for f in fields(Neighbours):
        values = getattr(found, f.name)
        padded = np.concatenate([values, np.full((len(values), 1), nothing[f.name], values.dtype)], axis=1)
        chosen_fields[f.name] = np.take_along_axis(padded, table, axis=1)
    return Neighbours(**chosen_fields)
