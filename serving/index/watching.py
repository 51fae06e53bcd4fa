"""A watch over the index's place, for replicas: none of them is told of a new index, each looks by itself.

So all search the same one a few seconds after it is there, a replica that has just replaced another too.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ..problems import ProblemError
from .files import read_manifest
from .place import is_milvus
from .protocol import EmbeddingIndexError

LOG = logging.getLogger("armillary.index")
WATCH_SECONDS = 5.0


class IndexWatcher:
    """Looks whether the index at `place` has changed since the watcher was made; make it before the index is opened.

    Raises EmbeddingIndexError if there is no index.
    """

    def __init__(self, place: str | Path) -> None:
        self._has_changed = _changes_of(place)
        self._is_behind = False
        self._said = ""

    def start(self, reload: Callable[[], object]) -> None:
        """Look every WATCH_SECONDS, in a thread of its own, for as long as the process lives; see `look`."""
        threading.Thread(target=self._run, args=(reload,), name="armillary-index-watch", daemon=True).start()

    def look(self, reload: Callable[[], object]) -> None:
        """Call `reload` if the index has changed. One that fails is called again the next time, and logged once."""
        try:
            self._is_behind = self._has_changed() or self._is_behind
            if not self._is_behind:
                return
            reload()
            self._is_behind, self._said = False, ""
            LOG.info("the index has changed; the new one is searched now")
        except (EmbeddingIndexError, OSError, ProblemError) as error:
            if str(error) != self._said:
                LOG.error("a changed index cannot be opened, the old one is searched on: %s", error)
            self._said = str(error)

    def _run(self, reload: Callable[[], object]) -> None:
        pause = threading.Event()
        while True:
            pause.wait(WATCH_SECONDS)
            self.look(reload)


def _changes_of(place: str | Path) -> Callable[[], bool]:
    """Tells whether an index has changed since it was asked before."""
    if is_milvus(place):
        from ..milvus.milvus_index import MilvusIndex

        # One of its own: that which is searched must not change before it was compared with the model.
        return MilvusIndex.open(place).refresh
    seen = read_manifest(place)

    def has_changed() -> bool:
        nonlocal seen
        before, seen = seen, read_manifest(place)
        return seen != before

    return has_changed
