"""Does an object lie outside of what a probe was fitted on? A p-value for each object, and a flag.

The distance of a vector from the training vectors is Mahalanobis', under their covariance shrunk towards a multiple of
the identity (Ledoit & Wolf 2004, doi 10.1016/S0047-259X(03)00096-4; the distance as a test of novelty: Lee et al. 2018,
arXiv 1807.03888). The distances of the training vectors themselves, each left out of mean and covariance, tell how far
out is usual: the conformal p-value of a new one (Bates et al. 2023, arXiv 2104.08279) is the share of them that lie at
least as far. Flagged are p-values of at most 1 %, which is one object in a hundred of those like the training ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import cholesky, solve_triangular
from sklearn.covariance import ledoit_wolf_shrinkage

OUTSIDE = 0.01
"""An object is flagged where so small a share of the training objects lies as far out."""
MOST_DISTANCES = 9999
"""Of more training objects, the distances of so many are kept, drawn at random."""
MOST_SHRINKAGE = 0.999


def p_values(known: Float[np.ndarray, " n"], scores: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """The share of objects at least as far out as each score, by sorted scores of n objects; never below 1/(n+1)."""
    as_far = len(known) - np.searchsorted(known, scores, side="left")
    return (1.0 + as_far) / (len(known) + 1.0)


def are_outside(num_known: int, p: Float[np.ndarray, " B"]) -> Bool[np.ndarray, " B"] | None:
    """Flags by p-values that rest on `num_known` objects; None where these are too few for a flag to be possible."""
    return p <= OUTSIDE if (num_known + 1) * OUTSIDE >= 1 else None


@dataclass(frozen=True, eq=False)
class NoveltyModel:
    """Mean, whitening matrix and known distances (sorted) of training vectors."""

    mean: Float[np.ndarray, " D"]
    whitening: Float[np.ndarray, "D D"]
    distances: Float[np.ndarray, " n"]

    @classmethod
    def fit(cls, vectors: Float[np.ndarray, "n D"], seed: int = 0) -> "NoveltyModel":
        """Learn from at least two training vectors. The distance of each is that from the others, in closed form."""
        count, width = vectors.shape
        mean = vectors.mean(0)
        centred = vectors - mean
        # Beyond float32's precision there is nothing to tell: a floor keeps constant features from infinite distances.
        variance = max(float(np.mean(centred**2)), 1e-12 * float(np.mean(vectors**2)), 1e-30)
        shrinkage = float(np.clip(ledoit_wolf_shrinkage(centred, assume_centered=True), 1e-6, MOST_SHRINKAGE))
        covariance = (1 - shrinkage) * count / (count - 1) * (centred.T @ centred / count)
        covariance[np.diag_indices(width)] += shrinkage * variance
        lower = cholesky(covariance, lower=True)
        whitening = solve_triangular(lower, np.eye(width), lower=True)
        squared = np.square(centred @ whitening.T).sum(1)
        # Without object i the mean moves by x / (n - 1) and the covariance loses c x x^T (Sherman & Morrison 1950).
        lost = (1 - shrinkage) * count / (count - 1) ** 2
        left_out = np.sqrt(squared / np.maximum(1 - lost * squared, 1e-9)) * count / (count - 1)
        if count > MOST_DISTANCES:
            left_out = np.random.default_rng(seed).choice(left_out, MOST_DISTANCES, replace=False)
        return cls(mean, whitening.astype(np.float32).astype(np.float64), np.sort(left_out))

    def distance(self, vectors: Float[np.ndarray, "B D"]) -> Float[np.ndarray, " B"]:
        """Mahalanobis distance of each vector."""
        return np.sqrt(np.square((vectors - self.mean) @ self.whitening.T).sum(1))

    def p_values(self, vectors: Float[np.ndarray, "B D"]) -> Float[np.ndarray, " B"]:
        """The share of training objects that lie at least as far out as each vector."""
        return p_values(self.distances, self.distance(vectors))

    def are_outside(self, vectors: Float[np.ndarray, "B D"]) -> Bool[np.ndarray, " B"] | None:
        """Whether each vector lies outside; None where the training objects were too few to tell."""
        return are_outside(len(self.distances), self.p_values(vectors))

    def arrays(self) -> dict[str, np.ndarray]:
        """For a probe's file."""
        return {
            "novelty_mean": self.mean,
            "novelty_whitening": self.whitening.astype(np.float32),
            "novelty_distances": self.distances.astype(np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "NoveltyModel | None":
        """From `arrays` of a probe's file; None where it has none."""
        if "novelty_mean" not in arrays:
            return None
        return cls(*(np.asarray(arrays[f"novelty_{name}"], np.float64) for name in ("mean", "whitening", "distances")))
