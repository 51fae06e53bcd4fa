"""The objects of an index as columns, in order of their ids: who they are, where on the sky, what is known of them.

An object's place in this order is its number, by which maps and lists speak of it. Made by one walk over the rows; for
a million objects it holds some tens of megabytes.
"""

import bisect
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64, Int64

from ..index.cone import Cone
from ..index.protocol import SearchIndex
from ..index.rows import ID, order_by_id

MOST_MODALITIES = 24
"""Bits of `modalities` that float32 holds exactly; modalities beyond have none."""
_BLOCK = 65_536
"""Ids that are Python's at once."""
_MARGIN = 1e-8
"""Degrees by which the belt of a cone is made wider, above rounding."""


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """B objects, sorted by id as UTF-8 bytes."""

    object_id: pa.Array
    ra: Float64[np.ndarray, " B"]
    """Degrees, ICRS; NaN where unknown."""
    dec: Float64[np.ndarray, " B"]
    labels: Mapping[str, Float32[np.ndarray, " B"]]
    """NaN where unknown."""
    modality_names: tuple[str, ...]
    modalities: Int64[np.ndarray, " B"]
    """Which modalities an object has: bit i is `modality_names[i]`."""
    by_declination: Int64[np.ndarray, " P"]
    """Numbers of the objects with a position, from south to north."""

    def __len__(self) -> int:
        return len(self.object_id)

    @classmethod
    def read(cls, index: SearchIndex) -> "ObjectTable":
        """All objects of an index."""
        ids, names = [], index.modalities
        bit_of = {name: 1 << number for number, name in enumerate(names[:MOST_MODALITIES])}
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("ra", "dec", "bits", *index.manifest.labels)}
        for block in index.row_blocks():
            ids.append(pa.array(block.object_id, ID))
            columns["ra"].append(block.ra)
            columns["dec"].append(block.dec)
            columns["bits"].append(np.array([bit_of.get(name, 0) for name in block.modality], np.int64))
            for name in index.manifest.labels:
                columns[name].append(block.labels[name].astype(np.float32))
        every = pa.chunked_array(ids, ID).combine_chunks() if ids else pa.array([], ID)
        # A chunked array of one chunk combines to a chunked array in some versions of Arrow.
        every = every.combine_chunks() if isinstance(every, pa.ChunkedArray) else every
        order = order_by_id(every)
        ordered = every.take(pa.array(order))
        is_first = np.ones(len(ordered), bool)
        if len(ordered) > 1:
            is_first[1:] = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
        number = np.cumsum(is_first) - 1
        places = np.flatnonzero(is_first)
        count = len(places)

        def of_objects(name: str, kind: type) -> np.ndarray:
            """The first known value of each object."""
            found: np.ndarray = np.full(count, np.nan, kind)
            values = np.concatenate([*columns[name], np.zeros(0, kind)])[order]
            known = np.isfinite(values)
            found[number[known][::-1]] = values[known][::-1]
            return found

        bits = np.zeros(count, np.int64)
        np.bitwise_or.at(bits, number, np.concatenate([*columns["bits"], np.zeros(0, np.int64)])[order])
        dec = of_objects("dec", np.float64)
        return cls(
            object_id=ordered.take(pa.array(places)),
            ra=of_objects("ra", np.float64),
            dec=dec,
            labels={name: of_objects(name, np.float32) for name in index.manifest.labels},
            modality_names=tuple(names),
            modalities=bits,
            by_declination=np.argsort(dec, kind="stable")[: int(np.isfinite(dec).sum())],
        )

    @functools.cached_property
    def num_labelled(self) -> dict[str, int]:
        """Of how many objects each label is known."""
        return {name: int(np.isfinite(values).sum()) for name, values in self.labels.items()}

    def number_of(self, object_id: str) -> int | None:
        """The place of an object, None if it is not there."""
        place = self._first_from(object_id.encode())
        return place if place < len(self) and self.id_of(place) == object_id else None

    def id_of(self, number: int) -> str:
        """The object with this number."""
        found: str = self.object_id[number].as_py()
        return found

    def numbers_of(self, object_id: pa.Array) -> Int64[np.ndarray, " R"]:
        """The numbers of many objects, -1 for those that are not there."""
        if not len(self) or not len(object_id):
            return np.full(len(object_id), -1, np.int64)
        hashes, number_of_hash = self._by_hash
        place = np.searchsorted(hashes, _hashes(object_id)).clip(max=len(self) - 1)
        number = number_of_hash[place]
        is_it = pc.equal(self.object_id.take(pa.array(number)), object_id).to_numpy(zero_copy_only=False)
        if not is_it.all():
            # Not there, or two ids of one hash: Arrow tells, for which it makes a table of all ids each time.
            rest = object_id.filter(pa.array(~is_it))
            number[~is_it] = pc.fill_null(pc.index_in(rest, value_set=self.object_id), -1).to_numpy()
        return number

    @functools.cached_property
    def _by_hash(self) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """Hashes of the ids, ascending, and the numbers that they belong to."""
        hashes = np.concatenate([_hashes(self.object_id[i : i + _BLOCK]) for i in range(0, len(self), _BLOCK)])
        order = np.argsort(hashes)
        return hashes[order], order

    def beginning_with(self, prefix: str, start: int, limit: int) -> list[int]:
        """Numbers, from `start` on, of at most `limit` objects whose ids begin so."""
        first = max(start, self._first_from(prefix.encode()))
        found = []
        for number in range(first, min(first + limit, len(self))):
            if not self.id_of(number).startswith(prefix):
                break
            found.append(number)
        return found

    def in_cone(self, cone: Cone) -> Int64[np.ndarray, " B"]:
        """Numbers of the objects in a cone, nearest first, and by number where two are as near."""
        dec = self.dec[self.by_declination]
        radius = cone.radius_deg + _MARGIN
        first, last = np.searchsorted(dec, [cone.dec - radius, cone.dec + radius])
        belt = self.by_declination[first:last]
        inside = np.sort(belt[cone.contains(self.ra[belt], self.dec[belt])])
        return inside[np.argsort(self.separation(cone, inside), kind="stable")]

    def separation(self, cone: Cone, number: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """Degrees from the centre of a cone, by the haversine, which is exact for small angles."""
        ra, dec = np.radians(self.ra[number]), np.radians(self.dec[number])
        ra0, dec0 = math.radians(cone.ra), math.radians(cone.dec)
        half = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * math.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
        return np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))

    def _first_from(self, wanted: bytes) -> int:
        return bisect.bisect_left(range(len(self)), wanted, key=lambda number: self.id_of(number).encode())


def _hashes(object_id: pa.Array) -> Int64[np.ndarray, " R"]:
    return np.array([hash(one) for one in object_id.to_pylist()], np.int64)
