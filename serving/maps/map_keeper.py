"""The map and the object table of the index that is served: made when first asked for, kept until the index changes."""

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ..index.protocol import SearchIndex
from ..problems import ProblemError, not_found
from .map_points import PROJECTIONS, Components, MapError, has_umap, save_plane, saved_plane, umap_places
from .object_table import ObjectTable

MOST_OBJECTS = 3_000_000
"""Above it no table and no map is made: some 400 bytes of memory go with each object."""
_LOG = logging.getLogger("armillary.map")


@dataclass(eq=False)
class IndexMap:
    """What was made of one content of an index."""

    index_id: str
    table: ObjectTable
    components: Float32[np.ndarray, "B K"] | None = None
    umap: Float32[np.ndarray, "B 2"] | None = None
    failure: str | None = None
    """Why UMAP failed."""
    is_laying_out: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


class MapKeeper:
    """Makes the tables and planes of an index once. `state` is a folder in which planes outlive the server, if any."""

    def __init__(self, state: Path | None) -> None:
        self._state = state
        self._latest: IndexMap | None = None
        self._lock = threading.Lock()

    def map_of(self, index: SearchIndex) -> IndexMap:
        """The map of an index as it is now, with its table. Blocks while that is made.

        Raises ProblemError (404) for an index that is too large for one.
        """
        if index.manifest.num_objects > MOST_OBJECTS:
            raise ProblemError(
                "not-found",
                f"no map of {index.manifest.name!r}: it has {index.manifest.num_objects} objects, and maps and lists "
                f"are made of at most {MOST_OBJECTS}; ask for objects by id, or search with a cone",
            )
        with self._lock:
            index_id = index.manifest.index_id
            if self._latest is None or self._latest.index_id != index_id:
                self._latest = IndexMap(index_id, ObjectTable.read(index))
            return self._latest

    def plane(self, index: SearchIndex, projection: str) -> tuple[IndexMap, Float32[np.ndarray, "B 2"] | None]:
        """The map and the plane of a projection, row for row with its table; None while UMAP is being laid out.

        `pca` blocks while it is made. Raises ProblemError (404) for a projection that there is not.
        """
        if projection not in PROJECTIONS:
            raise not_found("projection", projection, PROJECTIONS)
        made = self.map_of(index)
        with made.lock:
            if made.components is None:
                made.components = Components.fit(index).places(index, made.table)
            if projection == "pca":
                return made, _two(made.components)
            if made.umap is None:
                made.umap = saved_plane(self._state, made.index_id, len(made.table))
            if made.umap is not None:
                return made, made.umap
            if not has_umap():
                raise ProblemError("not-found", "no projection 'umap': umap-learn is not installed on this server")
            if made.failure is not None:
                raise ProblemError("not-found", f"no projection 'umap': {made.failure}")
            if not made.is_laying_out:
                made.is_laying_out = True
                threading.Thread(target=self._lay_out, args=(made,), name="map-umap", daemon=True).start()
            return made, None

    def _lay_out(self, made: IndexMap) -> None:
        assert made.components is not None  # it is made before this starts
        try:
            plane = umap_places(made.components)
            if self._state is not None:
                save_plane(self._state, made.index_id, plane)
            made.umap = plane
        except (MapError, OSError) as error:
            _LOG.error("the map of %s could not be laid out: %s", made.index_id, error)
            made.failure = str(error)
        finally:
            made.is_laying_out = False


def _two(places: Float32[np.ndarray, "B K"]) -> Float32[np.ndarray, "B 2"]:
    """The first two axes; an index of vectors of one number has but one."""
    plane = np.zeros((len(places), 2), np.float32)
    plane[:, : min(2, places.shape[1])] = places[:, :2]
    return plane
