"""Scores of retrieval: where in a gallery the other view of the same object stands, and how like it the first ones are.

Every query has one match, the gallery's row of the same number. Similarities come in blocks, so that a gallery of ten
thousand needs no matrix of all pairs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from .scores import bootstrap, bootstrap_means, interval_of

COUNTS = (1, 10, 100)
GAIN_DEPTH = 10
"""Places that the graded nDCG looks at."""
TOLERANCE = 0.1
"""Distance in labels, in standard deviations of the gallery, at which the gain of an object has fallen to 0.61."""
BLOCK = 1024


def ranks_of_matches(
    queries: Float[np.ndarray, "B D"], gallery: Float[np.ndarray, "B D"], block: int = BLOCK
) -> Int[np.ndarray, " B"]:
    """Rank of each query's match by dot product, from 1. Ties count against the match: equal vectors find nothing."""
    found = []
    for start, similarity in _blocks(queries, gallery, block):
        own = similarity.diagonal(start)[:, None]
        found.append((similarity >= own).sum(1).numpy())
    return np.concatenate(found)


def first_of_gallery(
    queries: Float[np.ndarray, "B D"], gallery: Float[np.ndarray, "G D"], count: int, block: int = BLOCK
) -> Int[np.ndarray, "B K"]:
    """Rows of the `count` most similar of the gallery, the best first."""
    return np.concatenate(
        [s.topk(min(count, s.shape[1]), 1).indices.numpy() for _, s in _blocks(queries, gallery, block)]
    )


def score_ranks(rank: Int[np.ndarray, " B"], gallery: int, num_bootstrap: int) -> dict[str, Any]:
    """Recall at 1, 10 and 100, median rank and nDCG with identity as relevance, beside what chance gives.

    One object is relevant, so nDCG is the mean of 1 / log2(1 + rank) (Jarvelin & Kekalainen 2002, doi
    10.1145/582415.582418). Chance finds the match at each rank alike.
    """
    answer: dict[str, Any] = {"num_queries": len(rank), "gallery": gallery}
    for count in COUNTS:
        hits = (rank <= count).astype(np.float64)
        chance = min(1.0, count / gallery)
        interval = interval_of(bootstrap_means([hits], num_bootstrap)[0])
        answer[f"recall_at_{count}"] = float(hits.mean())
        answer[f"recall_at_{count}_interval"] = interval
        answer[f"chance_at_{count}"] = chance
        answer[f"over_chance_at_{count}"] = float(hits.mean()) / chance
    gain = 1 / np.log2(1 + rank.astype(np.float64))
    answer["median_rank"] = float(np.median(rank))
    answer["median_rank_interval"] = interval_of(
        bootstrap(lambda rows: np.median(rows, -1), (rank.astype(np.float64),), num_bootstrap)
    )
    answer["ndcg_identity"] = float(gain.mean())
    answer["ndcg_identity_interval"] = interval_of(bootstrap_means([gain], num_bootstrap)[0])
    answer["ndcg_identity_chance"] = float((1 / np.log2(1 + np.arange(1, gallery + 1))).mean())
    return answer


class GradedRelevance:
    """How relevant each object of a gallery is to each other, by its labels [B, L].

    The gain is exp(-d2 / 2 / TOLERANCE**2), where d2 is the mean over labels of the squared difference in standard
    deviations of the label; 1 for the object itself. Objects that lack a label are no queries, and gain nothing.
    """

    def __init__(self, labels: Float[np.ndarray, "B L"]):
        self.is_known = np.isfinite(labels).all(1)
        spread = labels[self.is_known].std(0) if self.is_known.any() else np.ones(labels.shape[1])
        scaled = np.where(self.is_known[:, None], labels, 0.0) / np.where(spread > 0, spread, 1.0)
        self._scaled = torch.from_numpy(scaled / np.sqrt(labels.shape[1]))
        self._known = torch.from_numpy(self.is_known)
        self.ideal, self.mean_gain = self._ideal()

    def gains(self, queries: Sequence[int] | Int[np.ndarray, " Q"], rows: Int[np.ndarray, "Q K"]) -> np.ndarray:
        """Gain of the objects in `rows` for each query [Q, K]."""
        difference = self._scaled[torch.as_tensor(rows)] - self._scaled[torch.as_tensor(queries)][:, None]
        gain = torch.exp(-difference.square().sum(-1) / 2 / TOLERANCE**2)
        return (gain * self._known[torch.as_tensor(rows)]).numpy()

    def ndcg(self, found: Int[np.ndarray, "B K"]) -> Float[np.ndarray, " Q"]:
        """nDCG at K of each query with labels: gains discounted by log2(1 + place), over those of the best order."""
        queries = np.flatnonzero(self.is_known)
        depth = min(GAIN_DEPTH, found.shape[1])
        gain = self.gains(queries, found[queries, :depth])
        return (gain * _discounts(depth)).sum(1) / self.ideal[queries]

    def chance(self) -> float:
        """Expected nDCG of a random order."""
        queries = np.flatnonzero(self.is_known)
        depth = min(GAIN_DEPTH, len(self.is_known))
        return float((self.mean_gain[queries] * _discounts(depth).sum() / self.ideal[queries]).mean())

    def _ideal(self) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
        ideal, mean = [], []
        depth = min(GAIN_DEPTH, len(self._scaled))
        square = self._scaled.square().sum(1)
        for start in range(0, len(self._scaled), BLOCK):
            part = self._scaled[start : start + BLOCK]
            distance = (square[None] + part.square().sum(1, keepdim=True) - 2 * part @ self._scaled.T).clamp(min=0)
            gain = torch.exp(-distance / 2 / TOLERANCE**2) * self._known
            ideal.append((gain.topk(depth, 1).values.numpy() * _discounts(depth)).sum(1))
            mean.append(gain.mean(1).numpy())
        return np.concatenate(ideal), np.concatenate(mean)


def _discounts(depth: int) -> Float[np.ndarray, " K"]:
    return 1 / np.log2(1 + np.arange(1, depth + 1))


def _blocks(queries: np.ndarray, gallery: np.ndarray, block: int) -> Iterator[tuple[int, torch.Tensor]]:
    targets = torch.from_numpy(np.ascontiguousarray(gallery)).T
    for start in range(0, len(queries), block):
        yield start, torch.from_numpy(np.ascontiguousarray(queries[start : start + block])) @ targets
