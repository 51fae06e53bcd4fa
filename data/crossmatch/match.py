"""Matching two catalogues by position: which pairs count, and which engine finds them.

An engine finds all pairs within the radius: k-d trees in this process (`close_pairs.py`), or LSDB on Dask
(`lsdb_pairs.py`). What is done with the pairs is here, once, so that both give the same matches: separations, modes,
and ties, which the ids decide.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64

from ..observations import ObservationError
from .close_pairs import close_pairs
from .sky_table import SkyTable, at_common_epoch
from .sphere import separations, unit_vectors

Mode = Literal["one-to-one", "nearest", "all"]
Engine = Literal["auto", "tree", "lsdb"]

MAX_RADIUS = 3600.0
"""Widest radius, arcsec: beyond a degree, pairs are no counterparts."""
LSDB_ROWS = 1_000_000
"""Rows of the longer catalogue above which `auto` takes LSDB, where it is installed."""
_ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True, eq=False)
class Matches:
    """P pairs, by row of the left table, then separation, then id of the right object."""

    left_row: Int64[np.ndarray, " P"]
    right_row: Int64[np.ndarray, " P"]
    separation: Float64[np.ndarray, " P"]
    """Arcsec, at the common epoch."""

    def __len__(self) -> int:
        return len(self.left_row)


def crossmatch(
    left: SkyTable,
    right: SkyTable,
    radius: float,
    *,
    mode: Mode = "one-to-one",
    engine: Engine = "auto",
    epoch: float | None = None,
    scheduler: str | None = None,
    work_folder: str | Path | None = None,
) -> Matches:
    """Pairs of a left and a right object no further apart than `radius` (arcsec, at most 3600), at one epoch.

    `mode` says which: `all` of them; `nearest`, for each left object the right one nearest to it, which several may
    share; `one-to-one`, those in which each is the other's nearest, so that no object comes twice. Of equally near
    objects, the one with the lesser id (as bytes) is the nearer. Proper motions are followed to a common epoch first
    (`at_common_epoch`), and the radius holds there.

    `engine` is `tree` (this process; memory beyond columns and pairs: 24 bytes a row), `lsdb` (Dask: in this process's
    threads, or on the cluster at the `scheduler` address, such as tcp://host:8786, which must see `work_folder`), or
    `auto`: LSDB where it is installed and a catalogue has more than LSDB_ROWS rows, or a scheduler is named. All give
    the same matches. Raises ObservationError on a wrong radius, mode or engine, unknown epochs, or missing LSDB.
    """
    check_arguments(radius, mode, engine)
    left, right = at_common_epoch([left, right], epoch)
    best_only = mode != "all"
    columns = (left.ra, left.dec, right.ra, right.dec)
    if uses_lsdb(engine, max(len(left), len(right)), scheduler):
        from .lsdb_pairs import close_pairs_by_lsdb

        # What lies on the edge is decided here, whatever the last bit is on the machine of a worker.
        reach = radius * (1 + 1e-9) + 1e-9
        left_row, right_row = close_pairs_by_lsdb(
            *columns, reach, best_only=best_only, scheduler=scheduler, work_folder=work_folder
        )
        separation = _separations_of(left, right, left_row, right_row)
        inside = separation <= radius
        left_row, right_row, separation = left_row[inside], right_row[inside], separation[inside]
    else:
        show_progress = len(left) > _ROWS_AT_ONCE
        left_row, right_row, separation = close_pairs(
            *columns, radius, best_only=best_only, show_progress=show_progress
        )
    return _choose(Matches(left_row, right_row, separation), left, right, mode)


def uses_lsdb(engine: Engine, num_rows: int, scheduler: str | None) -> bool:
    """Whether LSDB finds the pairs of catalogues of at most `num_rows`. Raises ObservationError if it is missing."""
    installed = importlib.util.find_spec("lsdb") is not None
    if engine == "tree":
        if scheduler is not None:
            raise ObservationError(f"engine tree runs in this process and cannot use the scheduler {scheduler}")
        return False
    if engine == "lsdb" or scheduler is not None:
        if not installed:
            raise ObservationError("engine lsdb: LSDB is not installed; pip install 'armillary[lsdb]'")
        return True
    return installed and num_rows > LSDB_ROWS


def check_arguments(radius: float, mode: str, engine: str) -> None:
    """Raise ObservationError unless `crossmatch` knows the mode and the engine, and the radius is within bounds."""
    if not 0 < radius <= MAX_RADIUS:
        raise ObservationError(f"radius must lie in (0, {MAX_RADIUS:g}] arcsec, found {radius}")
    for name, value, known in (("mode", mode, get_args(Mode)), ("engine", engine, get_args(Engine))):
        if value not in known:
            raise ObservationError(f"{name} must be one of {', '.join(known)}; found {value!r}")


def _separations_of(
    left: SkyTable, right: SkyTable, left_row: Int64[np.ndarray, " P"], right_row: Int64[np.ndarray, " P"]
) -> Float64[np.ndarray, " P"]:
    found = np.empty(len(left_row))
    for start in range(0, len(found), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        one, other = left_row[part], right_row[part]
        found[part] = separations(
            unit_vectors(left.ra[one], left.dec[one]), unit_vectors(right.ra[other], right.dec[other])
        )
    return found


def _choose(pairs: Matches, left: SkyTable, right: SkyTable, mode: Mode) -> Matches:
    """The pairs of this mode, in order."""
    if mode != "all":
        chosen = is_nearest(pairs.left_row, pairs.separation, pairs.right_row, right.object_id)
        if mode == "one-to-one":
            chosen &= is_nearest(pairs.right_row, pairs.separation, pairs.left_row, left.object_id)
        pairs = _take(pairs, chosen)
    order = np.argsort(pairs.left_row, kind="stable")
    pairs = _take(pairs, order)
    alike = pairs.left_row[1:] == pairs.left_row[:-1]
    if alike.any():
        # Only objects with several partners need more than the order by left row.
        several = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
        part = _take(pairs, several)
        order = np.arange(len(pairs))
        order[several] = several[_order(part.left_row, part.separation, part.right_row, right.object_id)]
        pairs = _take(pairs, order)
    return pairs


def is_nearest(
    key: Int64[np.ndarray, " P"],
    separation: Float64[np.ndarray, " P"],
    partner: Int64[np.ndarray, " P"],
    partner_id: Any,
) -> Bool[np.ndarray, " P"]:
    """Whether each pair is the nearest of its `key`, the lesser id of the partner deciding between equals.

    `partner` are rows of `partner_id`, an Arrow array of strings.
    """
    chosen = np.ones(len(key), dtype=bool)
    if not len(key):
        return chosen
    several = np.flatnonzero(np.bincount(key)[key] > 1)
    order = several[_order(key[several], separation[several], partner[several], partner_id)]
    chosen[order[1:][key[order[1:]] == key[order[:-1]]]] = False
    return chosen


def _order(
    key: Int64[np.ndarray, " P"],
    separation: Float64[np.ndarray, " P"],
    partner: Int64[np.ndarray, " P"],
    partner_id: Any,
) -> Int64[np.ndarray, " P"]:
    """The order by key, then separation, then id of the partner. Ids are compared only where they decide."""
    order = np.lexsort((separation, key))
    equal = (key[order[1:]] == key[order[:-1]]) & (separation[order[1:]] == separation[order[:-1]])
    if not equal.any():
        return order
    tied = order[np.append(equal, False) | np.append(False, equal)]
    rows, place = np.unique(partner[tied], return_inverse=True)
    rank_of_row = np.empty(len(rows), dtype=np.int64)
    by_id = pc.sort_indices(partner_id.take(pa.array(rows)).cast(pa.large_binary())).to_numpy()
    rank_of_row[by_id] = np.arange(len(rows))
    rank = np.zeros(len(key), dtype=np.int64)
    rank[tied] = rank_of_row[place]
    return np.lexsort((rank, separation, key))


def _take(pairs: Matches, rows: np.ndarray) -> Matches:
    return Matches(pairs.left_row[rows], pairs.right_row[rows], pairs.separation[rows])
