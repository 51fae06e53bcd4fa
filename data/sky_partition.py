"""HEALPix: the sky as nested pixels, by which datasets are cut into files and objects are kept in order.

A position's index at order 29 (0.4 milliarcsec) holds its pixel at every lower order as leading bits, so that sorting
by it sorts by pixel at all orders, and a pixel is a range of it (Gorski et al. 2005, ApJ 622, 759, nested scheme). The
geometry is hpgeom's. Files are named as HATS names them (https://hats.readthedocs.io).
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Float64, Int64

ORDER = 29
"""HEALPix order of the index, the highest that fits 64 bits."""
MAX_PARTITION_ORDER = 12
"""Highest order of a file's pixel: 0.9 arcmin, below which objects at one place would be split without end."""
UNPLACED = -1
"""Index of an object without a position."""

_DIRECTORY_SIZE = 10_000
_PATH = re.compile(r"Norder=(\d+)/Dir=(\d+)/Npix=(\d+)\.parquet")


@dataclass(frozen=True, order=True)
class Pixel:
    """One HEALPix pixel: its number in the nested scheme at an order."""

    order: int
    number: int

    @property
    def first(self) -> int:
        """The least index within the pixel."""
        return self.number << 2 * (ORDER - self.order)

    @property
    def stop(self) -> int:
        """One more than the greatest index within the pixel."""
        return (self.number + 1) << 2 * (ORDER - self.order)

    @property
    def path(self) -> PurePosixPath:
        """Where HATS keeps the file of the pixel: `Norder=K/Dir=D/Npix=N.parquet`."""
        directory = self.number // _DIRECTORY_SIZE * _DIRECTORY_SIZE
        return PurePosixPath(f"Norder={self.order}/Dir={directory}/Npix={self.number}.parquet")

    @classmethod
    def from_path(cls, path: PurePosixPath | str) -> "Pixel | None":
        """The pixel whose `path` this is, or None."""
        match = _PATH.fullmatch(str(path))
        pixel = None if match is None else cls(int(match[1]), int(match[3]))
        return pixel if pixel is not None and str(pixel.path) == str(path) else None


def healpix_index(ra: Float64[np.ndarray, " B"], dec: Float64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
    """Nested index at order 29 of positions in degrees (ICRS); UNPLACED where a coordinate is NaN."""
    index = np.full(len(ra), UNPLACED, dtype=np.int64)
    known = np.flatnonzero(~(np.isnan(ra) | np.isnan(dec)))
    if len(known):
        import hpgeom  # here, for training reads tokens without it

        index[known] = hpgeom.angle_to_pixel(2**ORDER, ra[known], dec[known], nest=True)
    return index


def pixel_of(index: Int64[np.ndarray, " B"], order: int) -> Int64[np.ndarray, " B"]:
    """Number of the pixel at `order` that holds each index."""
    return index >> 2 * (ORDER - order)


def partition(index: Int64[np.ndarray, " B"], max_rows: int) -> list[Pixel]:
    """The largest pixels that hold at most `max_rows` of the sorted indices each and all of them together.

    A pixel of MAX_PARTITION_ORDER is not split further. Pixels come in the order of the index.
    """
    found: list[Pixel] = []
    waiting = [Pixel(0, number) for number in reversed(range(12))]
    while waiting:
        pixel = waiting.pop()
        start, stop = np.searchsorted(index, [pixel.first, pixel.stop])
        if start == stop:
            continue
        if stop - start <= max_rows or pixel.order == MAX_PARTITION_ORDER:
            found.append(pixel)
        else:
            waiting += [Pixel(pixel.order + 1, 4 * pixel.number + child) for child in reversed(range(4))]
    return found


def overlapping(pixels: Sequence[Pixel]) -> tuple[Pixel, Pixel] | None:
    """Two of the pixels that share sky, or None."""
    ordered = sorted(pixels, key=lambda pixel: (pixel.first, pixel.order))
    for one, other in itertools.pairwise(ordered):
        if other.first < one.stop:
            return one, other
    return None
