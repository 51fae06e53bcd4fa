"""Tokens by the content that they were made from: an observation that comes again is not tokenized again.

The engine keeps vectors, each for one model and space (`content_cache.py`). Whoever asks for the other space, for a
prediction or for samples of the same observation needs other work of the transformer, but the same tokens.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch

from ..data.observations import Observation
from ..models.foundation import FoundationModel
from ..tokenizers.token_grid import TokenGrid
from .content_cache import RecentlyUsed, content_key
from .middleware.metrics import ServerMetrics

HASHERS = 4
"""Threads that hash the rows of a batch: a GPU tokenizes no slower than one thread hashes."""
_OF_ROWS = ("codes", "mask", "positions", "instrument")


class TokenCachingModel(FoundationModel):
    """A model that remembers the tokens of each object it has seen, in at most `max_bytes`; all its methods use them.

    What an object's tokens are does not depend on the batch that it came in, so that answers are the same.
    """

    def __init__(self, model: FoundationModel, max_bytes: int, metrics: ServerMetrics) -> None:
        super().__init__(**{field.name: getattr(model, field.name) for field in fields(model)})
        self._grids: RecentlyUsed[TokenGrid] = RecentlyUsed(max_bytes)
        self._lookups = metrics.token_cache
        self._hashers = ThreadPoolExecutor(HASHERS, "armillary-hash")

    def tokenize(self, observation: Observation) -> TokenGrid:
        """As of any model."""
        keys = list(self._hashers.map(self._key, (observation.select([row]) for row in range(len(observation)))))
        found = [self._grids.get(key) for key in keys]
        new = [row for row, grid in enumerate(found) if grid is None]
        self._lookups.labels("hit").inc(len(found) - len(new))
        self._lookups.labels("miss").inc(len(new))
        if new:
            made = super().tokenize(observation if len(new) == len(found) else observation.select(new))
            for place, row in enumerate(new):
                # Rows by number are copies: the batch is not kept.
                found[row] = grid = made.select(torch.tensor([place]))
                self._grids.keep(keys[row], grid, sum(getattr(grid, name).nbytes for name in _OF_ROWS))
            if len(new) == len(found):
                return made
        return _joined([grid for grid in found if grid is not None], observation.object_id)

    def _key(self, observation: Observation) -> bytes:
        return content_key([observation], self.model_id)


def _joined(grids: Sequence[TokenGrid], object_id: Sequence[str]) -> TokenGrid:
    """Tokens of single objects of one modality and shape as one grid, under these ids."""
    tensors: dict[str, Any] = {name: torch.cat([getattr(grid, name) for grid in grids]) for name in _OF_ROWS}
    return replace(grids[0], object_id=tuple(object_id), **tensors)
