"""Objects seen by several surveys: groups with at most one member of each, around the position of the first.

The surveys come in an order, best positions first. The objects of the first are the first references; those of each
further survey join the references they belong to, and become references themselves where there is none. Every member
lies within the radius of its group's reference, so that a chain A-B-C in which A and C are too far apart is never one
object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from ..observations import ObservationError
from ..sky_partition import healpix_index
from .match import Engine, Matches, crossmatch, is_nearest
from .sky_table import SkyTable, at_common_epoch, replace_columns

SEPARATOR = ":"
"""Between survey and object id in the id of a group."""


@dataclass(frozen=True, eq=False)
class ObjectGroups:
    """G groups of the objects of S surveys, in the order of the sky (HEALPix, then id)."""

    surveys: tuple[str, ...]
    group_id: Any
    """[G] Arrow array of strings: `<survey>:<object id>` of the reference."""
    ra: Float64[np.ndarray, " G"]
    """Position of the reference: the member of the first survey in order that has one; degrees, at the common epoch."""
    dec: Float64[np.ndarray, " G"]
    member_row: Int64[np.ndarray, "G S"]
    """Row in the table of each survey, -1 where it has no member."""
    separation: Float64[np.ndarray, "G S"]
    """Of each member from the reference, arcsec; NaN where there is none."""

    def __len__(self) -> int:
        return len(self.ra)

    @property
    def num_members(self) -> Int64[np.ndarray, " G"]:
        """In how many surveys each object was found."""
        return (self.member_row >= 0).sum(1)

    def select(self, rows: np.ndarray) -> "ObjectGroups":
        """The groups of these rows or of this mask."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        ids = self.group_id.take(pa.array(rows))
        return ObjectGroups(
            self.surveys, ids, self.ra[rows], self.dec[rows], self.member_row[rows], self.separation[rows]
        )


def group_objects(
    tables: Sequence[SkyTable],
    radius: float,
    *,
    engine: Engine = "auto",
    epoch: float | None = None,
    scheduler: str | None = None,
    work_folder: str | Path | None = None,
) -> ObjectGroups:
    """Which objects of the tables are one and the same; every object is in exactly one group.

    All are brought to one epoch first. Then, table by table, pairs of a reference and an object no further apart than
    `radius` (arcsec) are taken in order of separation, each if both are still free; of equal separations, the lesser id
    of the reference, then of the object, comes first. The groups do not depend on the order of rows. Raises
    ObservationError on fewer than two tables, names that are not unique or hold ":", and as `crossmatch` does.
    """
    names = [table.name for table in tables]
    if len(tables) < 2 or len(set(names)) < len(names) or any(SEPARATOR in name or not name for name in names):
        raise ObservationError(
            f"expected at least two catalogues with names of their own, without {SEPARATOR!r}; found {names}"
        )
    tables = at_common_epoch(tables, epoch)
    references = _references(tables[0], np.arange(len(tables[0])))
    member_row, separation = [np.arange(len(tables[0]))], [np.zeros(len(tables[0]))]
    for table in tables[1:]:
        pairs = crossmatch(
            references, table, radius, mode="all", engine=engine, scheduler=scheduler, work_folder=work_folder
        )
        pairs = free_pairs_by_separation(pairs, references.object_id, table.object_id)
        rows, distances = np.full(len(references), -1), np.full(len(references), np.nan)
        rows[pairs.left_row], distances[pairs.left_row] = pairs.right_row, pairs.separation
        is_new = np.ones(len(table), dtype=bool)
        is_new[pairs.right_row] = False
        new = np.flatnonzero(is_new)
        member_row = [np.append(column, np.full(len(new), -1)) for column in member_row] + [np.append(rows, new)]
        separation = [np.append(column, np.full(len(new), np.nan)) for column in separation]
        separation.append(np.append(distances, np.zeros(len(new))))
        references = _joined(references, _references(table, new))
    groups = ObjectGroups(
        tuple(names),
        references.object_id,
        references.ra,
        references.dec,
        np.stack(member_row, 1),
        np.stack(separation, 1),
    )
    return groups.select(_along_the_sky(groups))


def free_pairs_by_separation(pairs: Matches, left_id: Any, right_id: Any) -> Matches:
    """Of all pairs, those that are left when each is taken, in order of separation, if both objects are still free.

    Of equal separations, the lesser left id, then the lesser right id, comes first. A pair that is nearest both ways
    among those that are left is one that this order takes; so all such are taken at once, until none is left.
    """
    left, right, separation = pairs.left_row, pairs.right_row, pairs.separation
    taken = []
    while len(left):
        both = is_nearest(left, separation, right, right_id) & is_nearest(right, separation, left, left_id)
        taken.append((left[both], right[both], separation[both]))
        free = ~(np.isin(left, left[both]) | np.isin(right, right[both]))
        left, right, separation = left[free], right[free], separation[free]
    if not taken:
        return pairs
    columns = [np.concatenate(column) for column in zip(*taken, strict=True)]
    order = np.argsort(columns[0])
    return Matches(*(column[order] for column in columns))


def _references(table: SkyTable, rows: Int64[np.ndarray, " R"]) -> SkyTable:
    """Objects of a table as references, under the ids of their groups."""
    chosen = table.rows(rows)
    ids = pc.binary_join_element_wise(
        pa.scalar(table.name, pa.large_string()), chosen.object_id, pa.scalar(SEPARATOR, pa.large_string())
    )
    # Positions are at the common epoch by now.
    return replace_columns(chosen, name="references", object_id=ids, pm_ra=None, pm_dec=None, epoch=None)


def _joined(one: SkyTable, other: SkyTable) -> SkyTable:
    return replace_columns(
        one,
        object_id=pa.concat_arrays([one.object_id, other.object_id]),
        ra=np.concatenate([one.ra, other.ra]),
        dec=np.concatenate([one.dec, other.dec]),
    )


def _along_the_sky(groups: ObjectGroups) -> Int64[np.ndarray, " G"]:
    index = healpix_index(groups.ra, groups.dec)
    table = pa.table({"index": index, "id": groups.group_id})
    return pc.sort_indices(table, sort_keys=[("index", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)
