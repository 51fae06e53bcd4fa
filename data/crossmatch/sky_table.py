"""A catalogue's objects as the matcher needs them: ids, positions, and motions where they are known.

Whatever is matched (a dataset, a HATS catalogue, a table) becomes a SkyTable first, which is where positions are
checked; `at_common_epoch` brings several to one date before they are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from ..observations import ArrayLike, ObservationError
from .sphere import moved


@dataclass(frozen=True, eq=False, init=False)
class SkyTable:
    """N objects on the sky, under the name of their survey.

    `ra` in [0, 360) and `dec` in [-90, 90] are degrees (ICRS) at `epoch` (Julian years: one, or one for each object).
    Proper motions are mas/yr, `pm_ra` times cos(dec); where either is NaN, the object is taken to rest. Raises
    ObservationError, which names the catalogue and the object, on missing coordinates, coordinates out of range,
    missing ids and ids that come twice, and on two objects at exactly one place unless `allow_duplicates`: they could
    not be told apart by position.
    """

    name: str
    object_id: Any
    """[N] Arrow array of strings."""
    ra: Float64[np.ndarray, " N"]
    dec: Float64[np.ndarray, " N"]
    pm_ra: Float64[np.ndarray, " N"] | None
    pm_dec: Float64[np.ndarray, " N"] | None
    epoch: float | Float64[np.ndarray, " N"] | None

    def __init__(
        self,
        name: str,
        object_id: Any,
        ra: ArrayLike,
        dec: ArrayLike,
        pm_ra: ArrayLike | None = None,
        pm_dec: ArrayLike | None = None,
        epoch: float | ArrayLike | None = None,
        *,
        allow_duplicates: bool = False,
    ) -> None:
        self._set(name=name, object_id=_identifiers(name, object_id))
        for column, given, low, high in (("ra", ra, 0.0, 360.0), ("dec", dec, -90.0, 90.0)):
            values = self._numbers(column, given)
            self._check(np.isnan(values), f"{column} is missing", "objects without a position cannot be matched")
            outside = ~((values >= low) & (values <= high)) | ((column == "ra") & (values == high))
            interval = "[0, 360)" if column == "ra" else "[-90, 90]"
            self._check(outside, f"{column} must lie in {interval} degrees", values=values)
            self._set(**{column: values})
        self._set_motion(pm_ra, pm_dec)
        self._set_epoch(epoch)
        self._refuse_equal_ids()
        if not allow_duplicates:
            self._refuse_equal_places()

    def __len__(self) -> int:
        return len(self.ra)

    @property
    def has_motion(self) -> bool:
        """Whether proper motions were given."""
        return self.pm_ra is not None

    def at_epoch(self, epoch: float) -> "SkyTable":
        """The table with every object moved to `epoch`; without proper motions, itself.

        Raises ObservationError if objects move, but from an epoch that is not known.
        """
        if self.pm_ra is None or self.pm_dec is None:
            return self
        if self.epoch is None:
            raise ObservationError(f"{self.name}: has proper motions, but no epoch from which to move positions")
        ra, dec = moved(self.ra, self.dec, self.pm_ra, self.pm_dec, epoch - self.epoch)
        return replace_columns(self, ra=ra, dec=dec, epoch=epoch)

    def rows(self, rows: Int64[np.ndarray, " R"]) -> "SkyTable":
        """The objects of these rows, in this order, unchecked: no row may come twice."""
        columns: dict[str, Any] = {"object_id": self.object_id.take(pa.array(rows))}
        for name in ("ra", "dec", "pm_ra", "pm_dec", "epoch"):
            value = getattr(self, name)
            columns[name] = value[rows] if isinstance(value, np.ndarray) else value
        return replace_columns(self, **columns)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _numbers(self, column: str, given: Any) -> Float64[np.ndarray, " N"]:
        values: np.ndarray = np.ma.filled(np.ma.masked_array(given, dtype=np.float64), np.nan)
        if values.shape != (len(self.object_id),):
            raise ObservationError(
                f"{self.name}: {column} must hold one number for each of {len(self.object_id)} objects, found shape "
                f"{list(values.shape)}"
            )
        return values

    def _set_motion(self, pm_ra: Any, pm_dec: Any) -> None:
        if (pm_ra is None) != (pm_dec is None):
            raise ObservationError(f"{self.name}: expected both pm_ra and pm_dec, or neither")
        self._set(pm_ra=None, pm_dec=None)
        if pm_ra is None:
            return
        motion = {"pm_ra": self._numbers("pm_ra", pm_ra), "pm_dec": self._numbers("pm_dec", pm_dec)}
        missing = np.isnan(motion["pm_ra"]) | np.isnan(motion["pm_dec"])
        for column, values in motion.items():
            self._check(np.isinf(values), f"{column} must be finite", values=values)
            self._set(**{column: np.where(missing, 0.0, values)})

    def _set_epoch(self, epoch: Any) -> None:
        if epoch is None or np.ndim(epoch) == 0:
            self._set(epoch=None if epoch is None else float(epoch))
            if self.epoch is not None and not 1500 < self.epoch < 2500:
                raise ObservationError(f"{self.name}: epoch must be in Julian years, such as 2016.0; found {epoch}")
            return
        values = self._numbers("epoch", epoch)
        self._check(~((values > 1500) & (values < 2500)), "epoch must be in Julian years", values=values)
        self._set(epoch=values)

    def _check(
        self,
        wrong: np.ndarray,
        rule: str,
        reason: str | None = None,
        values: Float64[np.ndarray, " N"] | None = None,
    ) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            found = f"; found {values[row]}" if values is not None else ""
            more = f" ({int(wrong.sum())} objects in all)" if wrong.sum() > 1 else ""
            why = f": {reason}" if reason else ""
            raise ObservationError(f"{self.name}, object {self.object_id[row]}: {rule}{found}{more}{why}")

    def _refuse_equal_ids(self) -> None:
        if _are_distinct_integers(self.object_id) or pc.count_distinct(self.object_id).as_py() == len(self):
            return
        counts = pc.value_counts(self.object_id)
        doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        first = min(doubled.to_pylist())
        raise ObservationError(
            f"{self.name}: object {first} comes twice ({len(doubled)} such ids in all); name a column of unique "
            f"ids, or take row numbers as ids (--set {self.name}.object_id=null)"
        )

    def _refuse_equal_places(self) -> None:
        """Equal places are equal bits, but for the sign of zero, and any right ascension at a pole."""
        ra = np.where(np.abs(self.dec) == 90, 0.0, self.ra + 0.0).view(np.uint64)
        dec = (self.dec + 0.0).view(np.uint64)
        # Rows that share a 64-bit mix of both; only those need be compared.
        mixed = (ra * np.uint64(0x9E3779B97F4A7C15)) ^ (dec * np.uint64(0xC2B2AE3D27D4EB4F))
        ordered = np.sort(mixed)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(repeated):
            return
        suspects = np.flatnonzero(np.isin(mixed, repeated))
        order = suspects[np.lexsort((suspects, dec[suspects], ra[suspects]))]
        equal = (ra[order[1:]] == ra[order[:-1]]) & (dec[order[1:]] == dec[order[:-1]])
        if equal.any():
            place = int(np.argmax(equal))
            one, other = (int(row) for row in order[place : place + 2])
            raise ObservationError(
                f"{self.name}: objects {self.object_id[one]} and {self.object_id[other]} are at exactly one place "
                f"({self.ra[one]}, {self.dec[one]}); {int(equal.sum())} such pairs in all. Allow duplicates where that "
                "is meant"
            )


def replace_columns(table: SkyTable, **columns: Any) -> SkyTable:
    """The table with these columns changed, not checked again."""
    new = object.__new__(SkyTable)
    for name in ("name", "object_id", "ra", "dec", "pm_ra", "pm_dec", "epoch"):
        object.__setattr__(new, name, columns.get(name, getattr(table, name)))
    return new


def at_common_epoch(tables: Sequence[SkyTable], epoch: float | None = None) -> list[SkyTable]:
    """All tables as they were at one time: at `epoch`, or at one that they give.

    A table without proper motions stays where it is, so the time is, without `epoch`, that of the first such table
    whose epoch is known, or, if all objects can be moved, that of the first table. Where none has proper motions,
    nothing moves and no epoch is needed. Raises ObservationError if an epoch that is needed is not known.
    """
    if not any(table.has_motion for table in tables):
        return list(tables)
    if epoch is None:
        at_rest = [table for table in tables if not table.has_motion]
        known = [table for table in at_rest or tables if table.epoch is not None]
        if not known:
            names = ", ".join(table.name for table in at_rest or tables)
            raise ObservationError(f"{names}: no epoch is known to which proper motions could be followed; pass epoch")
        reference = known[0]
        if isinstance(reference.epoch, np.ndarray):
            raise ObservationError(f"{reference.name}: each object has an epoch of its own; pass one epoch for all")
        epoch = reference.epoch
    assert epoch is not None
    return [table.at_epoch(epoch) for table in tables]


def _are_distinct_integers(object_id: Any) -> bool:
    """Whether ids are whole numbers, each another: as numbers, millions are compared in a tenth of the time."""
    try:
        ordered = np.sort(object_id.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        return False
    return bool((ordered[1:] != ordered[:-1]).all())


def _identifiers(name: str, given: Any) -> Any:
    """Arrow strings; numbers become their decimal digits."""
    if isinstance(given, pa.ChunkedArray):
        given = given.combine_chunks()
    try:
        if isinstance(given, np.ndarray) and not given.dtype.isnative:
            given = given.astype(given.dtype.newbyteorder("="))
        array = given if isinstance(given, pa.Array) else pa.array(given)
        if pa.types.is_floating(array.type):
            raise ObservationError(f"{name}: object ids must be strings or whole numbers, found {array.type}")
        array = array.cast(pa.large_string())
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, ObservationError):
            raise
        raise ObservationError(f"{name}: object ids must be strings or whole numbers ({error})") from None
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise ObservationError(f"{name}: the object id of row {row} is missing")
    return array
