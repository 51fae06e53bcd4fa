"""How well views of the same object find each other, on whole objects that no step has seen.

By this score alone the state that alignment ends with is chosen: neither the training loss nor the test objects have a
say.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from lightning.fabric import Fabric
from torch import Tensor

from ..data.modalities import Modality
from ..data.token_store import TokenStore
from ..models.foundation import FoundationModel
from .encoded_views import EncodedRow, read_rows
from .token_sources import read_grid

GROUP = 64
"""Objects that are embedded together."""
NEAREST = 10
SCORE = "validation/recall@10"
MEDIAN_RANK = "validation/median_rank"


class Validation:
    """Embeds the rows of all `objects` of a store with the head as it stands, and scores them.

    `rows`: by view, the modalities of each row. `directions` counts pairs of rows of different views, both ways, and
    with `across_surveys` also those of one view. `encoded`: the frozen encoder's vectors, where they are at hand.
    """

    def __init__(
        self,
        model: FoundationModel,
        store: TokenStore,
        objects: Int64[np.ndarray, " B"],
        rows: Mapping[str, Mapping[str, Sequence[Modality]]],
        across_surveys: bool,
        encoded: Mapping[str, EncodedRow] | None = None,
    ):
        self.model, self.store, self.objects = model, store, objects
        self.rows, self.across_surveys, self.encoded = rows, across_surveys, encoded

    @torch.no_grad()
    def measure(self, fabric: Fabric) -> dict[str, float]:
        """Recall and median rank, each a mean over directions, and the recall between each pair of views."""
        vectors, known, views = {}, {}, {}
        for view, rows in self.rows.items():
            for name, modalities in rows.items():
                vectors[name], known[name] = self._embed(fabric, view, name, modalities)
                views[name] = view
        recalls: dict[str, list[float]] = {}
        medians = []
        for query in vectors:
            for target in vectors:
                pair = f"{views[query]}>{views[target]}"
                is_asked = views[query] != views[target] or (self.across_surveys and query != target)
                if is_asked and (known[query] & known[target]).any():
                    ranks = ranks_of_partners(vectors[query], vectors[target], known[query], known[target]).float()
                    recalls.setdefault(pair, []).append((ranks <= NEAREST).float().mean().item())
                    medians.append(ranks.median().item())
        if not medians:
            raise ValueError(f"{self.store.folder}: no validation object has two views of {list(self.rows)}")
        of_all = [recall for of_pair in recalls.values() for recall in of_pair]
        found = {SCORE: float(np.mean(of_all)), MEDIAN_RANK: float(np.mean(medians))}
        return found | {f"{SCORE}/{pair}": float(np.mean(of_pair)) for pair, of_pair in recalls.items()}

    def _embed(
        self, fabric: Fabric, view: str, name: str, modalities: Sequence[Modality]
    ) -> tuple[Float[Tensor, "B A"], Bool[Tensor, " B"]]:
        """Vectors of a row for all objects, and which have it; each process does a part of them."""
        head = self.model.head
        assert head is not None
        width = head.settings.aligned_width
        vectors = torch.zeros(len(self.objects), width + 1, device=fabric.device)
        starts = range(0, len(self.objects), GROUP)
        for start in list(starts)[fabric.global_rank :: fabric.world_size]:
            objects = self.objects[start : start + GROUP]
            if self.encoded is not None:
                encoded, mask = read_rows([self.encoded[name]], np.zeros_like(objects), objects)
                encoded, mask = encoded.to(fabric.device).float(), mask.to(fabric.device)
                found, is_known = head(view, encoded, mask), mask.any(1)
            else:
                found, is_known = self._embed_tokens(objects, modalities)
            here = vectors[start : start + len(objects)]
            here[:, :width] = found.to(here.device) * is_known[:, None].to(here.device)
            here[:, width] = is_known.to(here.device)
        if fabric.world_size > 1:
            vectors = fabric.all_reduce(vectors, reduce_op="sum")
        return vectors[:, :width], vectors[:, width] > 0.5

    def _embed_tokens(
        self, objects: Int64[np.ndarray, " B"], modalities: Sequence[Modality]
    ) -> tuple[Float[Tensor, "B A"], Bool[Tensor, " B"]]:
        found = torch.zeros(len(objects), self.model.embedding_size())
        is_known = torch.zeros(len(objects), dtype=torch.bool)
        place = {object_id: row for row, object_id in enumerate(self.store.object_ids(objects))}
        grids = []
        for modality in modalities:
            grid, _ = read_grid(self.store, objects, modality)
            seen = grid.mask.any(1).nonzero()[:, 0]
            if len(seen):
                grids.append(grid.select(seen))
        if grids:
            embeddings = self.model.embed_grids(grids, batch_size=GROUP)
            rows = torch.tensor([place[object_id] for object_id in embeddings.object_id])
            found[rows], is_known[rows] = embeddings.vectors, True
        return found, is_known


def ranks_of_partners(
    queries: Float[Tensor, "B A"],
    targets: Float[Tensor, "B A"],
    asks: Bool[Tensor, " B"],
    is_target: Bool[Tensor, " B"],
) -> Int[Tensor, " Q"]:
    """The place, from 1, of each object's own target among all targets, for the objects that have both.

    Others as near as the own one count as nearer: a space in which all vectors are one finds nothing.
    """
    both = asks & is_target
    scores = queries[both] @ targets[is_target].T
    place = torch.cumsum(is_target, 0)[both] - 1
    own = scores.gather(1, place[:, None])
    return (~(scores < own)).sum(1)  # NaN finds nothing either
