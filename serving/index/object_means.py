"""Labelled objects by the mean of their vectors, each at unit length: the gallery `objects` of zero-shot predictions.

Of a labelled object more is known than of the one that is asked about, and what several surveys agree on says more of
it than the one vector that happens to lie near (docs/evaluation.md). Unlabelled objects have no part in predictions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from .labels import Labels
from .rows import IndexRows
from .vectors import BLOCK_ROWS, NearestSoFar


@dataclass(frozen=True, eq=False)
class ObjectMeans:
    """A objects, in the order of the table of labels."""

    units: Float32[np.ndarray, "A D"]
    """Their means, at unit length."""
    row: Int64[np.ndarray, " A"]
    """A row of each object; -1 where it has none, or where its vectors cancel."""
    has: Bool[np.ndarray, "A M"]
    """Which modalities the mean is of."""
    modality_names: tuple[str, ...]

    def search(
        self, queries: Float32[np.ndarray, "Q D"], is_wanted: Bool[np.ndarray, " A"], k: int
    ) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
        """The `k` most similar of the wanted objects for each unit query, by their places; -1 where there are fewer."""
        best = NearestSoFar(len(queries), k)
        for start in range(0, len(self.units), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            similarity = queries @ self.units[block].T
            similarity[:, ~is_wanted[block]] = -np.inf
            best.update(similarity, np.arange(start, start + similarity.shape[1]))
        return best.similarity, np.where(np.isneginf(best.similarity), -1, best.row)

    def modalities(self, place: Int64[np.ndarray, "Q K"]) -> np.ndarray:
        """The modalities of these objects [Q, K], each joined by `+`; empty for place -1."""
        told = np.full(place.shape, "", object)
        is_there = place >= 0
        if is_there.any():
            kinds, kind = np.unique(self.has[place[is_there]], axis=0, return_inverse=True)
            names = ["+".join(np.array(self.modality_names)[row]) for row in kinds]
            told[is_there] = np.array(names, object)[kind.reshape(-1)]
        return told


def object_means(
    rows: IndexRows,
    labels: Labels,
    unit_vectors: Callable[[Int64[np.ndarray, " B"]], Float32[np.ndarray, "B D"]],
    dimension: int,
) -> ObjectMeans:
    """The means of all labelled objects, from their rows that are alive. In memory are a block and the sums."""
    num_objects = labels.table.num_rows
    total = np.zeros((num_objects, dimension), np.float32)
    first = np.full(num_objects, -1, np.int64)
    has = np.zeros((num_objects, len(rows.modality_names)), bool)
    for number, name in enumerate(rows.modality_names):
        labelled = rows.rows_with(name)
        labelled = labelled[labels.place[labelled] >= 0]
        for start in range(0, len(labelled), BLOCK_ROWS):
            row = labelled[start : start + BLOCK_ROWS]
            # Of one modality an object has one row, so that no place comes twice.
            place = labels.place[row]
            total[place] += unit_vectors(row)
            first[place] = np.where(first[place] < 0, row, first[place])
            has[place, number] = True
    length = np.linalg.norm(total, axis=1)
    first[length < 1e-3] = -1
    total /= np.maximum(length, 1e-3)[:, None]
    return ObjectMeans(total, first, has, tuple(rows.modality_names))
