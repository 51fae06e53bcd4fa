"""How well an approximate index finds what callers ask for: of a few searches the exact answer is found afterwards.

`recall.py` measured the index when it was built, by queries of its own. What people ask may be harder, under filters
that nobody tried. Here one query of each sampled search is compared, in the background: one at a time, with long rests,
and none while objects wait for the model.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import Field

from ...settings import Settings
from ..middleware.metrics import ServerMetrics
from .protocol import Neighbours, SearchIndex

LOG = logging.getLogger("armillary.recall")
NICENESS = 10
REST = 20
"""How many times as long as a comparison took the next one waits at least: of a large index it reads all vectors."""

ExactSearch = Callable[[Float[np.ndarray, "1 D"]], Neighbours]


class SearchSettings(Settings):
    """How searches are watched."""

    recall_sample: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of searches whose exact answer is found too, afterwards, for /metrics; 0 for none."""


class RecallSample:
    """Compares a share of approximate searches with exact ones; see the module. `is_busy`: now is not the time."""

    def __init__(self, share: float, metrics: ServerMetrics, is_busy: Callable[[], bool]) -> None:
        self.share = share
        self._metrics = metrics
        self._is_busy = is_busy
        self._turn = threading.Lock()
        """Held while one search is compared."""
        self._next = 0.0
        """The earliest time of the next one, seconds of the monotonic clock."""

    def consider(
        self,
        index: SearchIndex,
        queries: Float[np.ndarray, "Q D"],
        k: int,
        found: Neighbours,
        exact_search: ExactSearch,
    ) -> None:
        """Compare the `k` nearest of one of these queries, perhaps, but not now.

        `exact_search` asks as the caller did, but exactly; like `found`, it may bring more than `k`.
        """
        # An index of flat parts alone compares every vector anyway.
        if index.manifest.index_type == "flat" or not len(queries) or random.random() >= self.share:
            return
        if self._is_busy() or time.monotonic() < self._next or not self._turn.acquire(blocking=False):
            return
        place = random.randrange(len(queries))
        thread = threading.Thread(
            target=self._compare,
            args=(queries[place : place + 1].copy(), k, _names(found, place, k), exact_search),
            name="armillary-recall",
            daemon=True,
        )
        thread.start()

    def _compare(
        self, query: Float[np.ndarray, "1 D"], k: int, found: set[tuple[str, str]], exact_search: ExactSearch
    ) -> None:
        began = time.monotonic()
        try:
            with contextlib.suppress(OSError, AttributeError):
                # On Linux a thread has a niceness of its own.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            expected = _names(exact_search(query), 0, k)
            hits = Counter(modality for _, modality in expected & found)
            for modality, count in Counter(modality for _, modality in expected).items():
                self._metrics.neighbours_expected.labels(modality).inc(count)
                self._metrics.neighbours_found.labels(modality).inc(hits[modality])
        except Exception:
            # The index may be changed or closed meanwhile; whoever searched has an answer.
            LOG.exception("a search could not be compared with the exact one")
        finally:
            now = time.monotonic()
            self._next = now + REST * (now - began)
            self._turn.release()


def _names(found: Neighbours, place: int, k: int) -> set[tuple[str, str]]:
    """Objects and modalities of a query's nearest: unlike numbers of rows, they outlast a change of the index."""
    return {
        (str(object_id), str(modality))
        for row, object_id, modality in zip(
            found.row[place, :k], found.object_id[place, :k], found.modality[place, :k], strict=True
        )
        if row >= 0
    }
