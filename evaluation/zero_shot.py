"""Zero-shot prediction by exact search: the value of an object from its most similar labelled objects.

k and the temperature are chosen, and intervals calibrated, on validation objects, as in
`models/neighbour_prediction.py`. Encoder vectors share a constant offset, which is taken off before cosines are taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..models.neighbour_prediction import (
    CANDIDATE_COUNTS,
    CANDIDATE_TEMPERATURES,
    NeighbourPredictor,
    choose_neighbours,
    safest,
)
from .scores import LEVELS

NUM_NEIGHBOURS = max(CANDIDATE_COUNTS)
BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Gallery:
    """Labelled objects among which neighbours are sought: unit vectors, and the offset that was taken off them."""

    vectors: Float[np.ndarray, "A D"]
    labels: Float[np.ndarray, " A"]
    offset: Float[np.ndarray, " D"]

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "A D"], labels: Float[np.ndarray, " A"], space: str) -> "Gallery":
        """A gallery of the objects that have a label."""
        known = np.isfinite(labels)
        offset = vectors[known].mean(0) if space == "encoder" else np.zeros(vectors.shape[1], vectors.dtype)
        return cls(unit(vectors[known] - offset), labels[known], offset)

    def search(
        self, queries: Float[np.ndarray, "Q D"], offset: Float[np.ndarray, " D"] | None = None
    ) -> tuple[Float[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """Cosine and label of the nearest, the nearest first. `offset` is the queries', by default the gallery's."""
        centred = unit(queries - (self.offset if offset is None else offset))
        similarity, rows = nearest(centred, self.vectors, NUM_NEIGHBOURS)
        return similarity, self.labels[rows]


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A gallery and how to predict from it."""

    gallery: Gallery
    predictor: NeighbourPredictor

    @classmethod
    def fit(
        cls,
        gallery: Gallery,
        validation: Float[np.ndarray, "V D"],
        truth: Float[np.ndarray, " V"],
        label: str,
    ) -> "ZeroShot":
        """Choose k and temperature on validation objects. Raises NeighbourPredictionError if they are too few."""
        similarity, labels = gallery.search(validation)
        return cls(gallery, choose_neighbours(label, similarity, labels, truth, levels=LEVELS))

    def predict(
        self, queries: Float[np.ndarray, "Q D"], offset: Float[np.ndarray, " D"] | None = None
    ) -> tuple[Float[np.ndarray, " Q"], dict[float, tuple[np.ndarray, np.ndarray]]]:
        """Values, and central intervals by level."""
        found = self.predictor.predict(*self.gallery.search(queries, offset))
        bounds = {
            level: (found.lower[:, place], found.upper[:, place]) for place, level in enumerate(self.predictor.levels)
        }
        return found.value, bounds


def values_for_all_settings(
    similarity: Float[np.ndarray, "Q K"], labels: Float[np.ndarray, "Q K"]
) -> Mapping[tuple[int, float], Float[np.ndarray, " Q"]]:
    """Zero-shot values for every candidate of k and temperature at once; neighbours stand nearest first.

    The same values as `predict_from_neighbours` gives, by sums that grow neighbour by neighbour.
    """
    return {setting: value for setting, (value, _) in _all_settings(similarity, labels).items()}


def best_setting(
    similarity: Float[np.ndarray, "Q K"], labels: Float[np.ndarray, "Q K"], truth: Float[np.ndarray, " Q"]
) -> tuple[int, float]:
    """The candidate of k and temperature that `choose_neighbours` would take."""
    tried = _all_settings(similarity, labels)
    errors = np.stack([np.square(value - truth) for value, _ in tried.values()])
    return list(tried)[safest(errors, [breadth for _, breadth in tried.values()])]


def _all_settings(
    similarity: Float[np.ndarray, "Q K"], labels: Float[np.ndarray, "Q K"]
) -> dict[tuple[int, float], tuple[Float[np.ndarray, " Q"], float]]:
    """By k and temperature: values, and how many neighbours count in effect."""
    found = {}
    gap = similarity.astype(np.float64) - similarity[:, :1]
    for k in sorted({min(count, labels.shape[1]) for count in CANDIDATE_COUNTS}):
        for temperature in CANDIDATE_TEMPERATURES:
            weight = np.exp(gap[:, :k] / temperature)
            weight /= weight.sum(1, keepdims=True)
            breadth = float((1 / np.square(weight).sum(1)).mean())
            found[(k, temperature)] = (weight * labels[:, :k]).sum(1), breadth
    return found


def unit(vectors: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B D"]:
    """Vectors of length one; zero stays zero."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def nearest(
    queries: Float[np.ndarray, "Q D"], gallery: Float[np.ndarray, "A D"], count: int
) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """The `count` largest dot products of each query, the largest first, and their rows: exact, block by block."""
    targets = torch.from_numpy(np.ascontiguousarray(gallery)).T
    count = min(count, len(gallery))
    values, rows = [], []
    for start in range(0, len(queries), BLOCK):
        found = (torch.from_numpy(np.ascontiguousarray(queries[start : start + BLOCK])) @ targets).topk(count, 1)
        values.append(found.values.numpy())
        rows.append(found.indices.numpy())
    return np.concatenate(values), np.concatenate(rows)
