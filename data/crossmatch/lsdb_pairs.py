"""All pairs of objects within a radius, by LSDB on Dask: the engine for catalogues beyond one machine's time.

Ids first: row number, right ascension and declination of each object go to disk as HATS catalogues, cut into the same
HEALPix pixels on both sides, and LSDB matches them pixel by pixel, on this machine's threads or on a cluster. The right
catalogue has a margin cache, objects within the radius of each pixel's border, so that no pair is lost there. Heavy
columns never pass through Dask: who needs them reads the rows that matched (`joint_dataset.py`), and they are written
with zstd level 1, where LSDB's own writer would take level 15.
"""

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hpgeom import neighbors
from jaxtyping import Float64, Int64
from lsdb.core.crossmatch.abstract_crossmatch_algorithm import AbstractCrossmatchAlgorithm
from lsdb.core.crossmatch.crossmatch_args import CrossmatchArgs

from ..observations import ObservationError
from ..sky_partition import ORDER, Pixel, healpix_index, partition, pixel_of
from .close_pairs import close_pairs

PARTITION_ROWS = 500_000
"""Objects of both catalogues in one pixel, which is one task of Dask."""

_RESOLUTION_AT_ORDER_0 = np.degrees(np.sqrt(np.pi / 3)) * 3600
"""Square root of a base pixel's area, arcsec."""
_NARROWEST = 0.5
"""Pixels of one order that do not touch are further apart than this times their resolution (the least seen: 0.69)."""
_ROWS_AT_ONCE = 500_000
"""When margins are sought: eight neighbours of each are held."""
_INDEX_COLUMN = "_healpix_29"
_SCHEMA = pa.schema([(_INDEX_COLUMN, pa.int64()), ("row", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64())])


class PairsWithin(AbstractCrossmatchAlgorithm):  # type: ignore[misc]
    """What LSDB does in one pixel: the pairs of `close_pairs`. The workers of a cluster need Armillary installed."""

    def __init__(self, radius: float, best_only: bool):
        super().__init__()
        self.radius = radius
        self.best_only = best_only

    def perform_crossmatch(self, crossmatch_args: CrossmatchArgs) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
        """Rows of the pixel's left frame, and of its right frame with margin, of all pairs within the radius."""
        frames = (crossmatch_args.left_df, crossmatch_args.right_df)
        ra, dec = ([frame[name].to_numpy(dtype=np.float64) for frame in frames] for name in ("ra", "dec"))
        left, right, _ = close_pairs(ra[0], dec[0], ra[1], dec[1], self.radius, best_only=self.best_only)
        return left, right, pd.DataFrame(index=np.arange(len(left)))


def close_pairs_by_lsdb(
    left_ra: Float64[np.ndarray, " L"],
    left_dec: Float64[np.ndarray, " L"],
    right_ra: Float64[np.ndarray, " R"],
    right_dec: Float64[np.ndarray, " R"],
    radius: float,
    *,
    best_only: bool = False,
    scheduler: str | None = None,
    work_folder: str | Path | None = None,
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Rows of the left and the right of all pairs within `radius`, arcsec, as `close_pairs` finds them.

    The catalogues lie in a temporary folder within `work_folder`, which the workers of the cluster at `scheduler` must
    see; by default in the system's. Raises ObservationError if the scheduler cannot be reached, or they do not see it.
    """
    if not len(left_ra) or not len(right_ra):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if work_folder is not None:
        work_folder = Path(work_folder).resolve()
        work_folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".crossmatch-", dir=work_folder))
    try:
        if not _write_catalogues(folder, (left_ra, left_dec), (right_ra, right_dec), radius):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        with _dask(scheduler, folder):
            left = lsdb.open_catalog(folder / "left")
            right = lsdb.open_catalog(folder / "right", margin_cache=folder / "margin")
            matched = left.crossmatch(
                right,
                algorithm=PairsWithin(radius, best_only),
                suffixes=("_left", "_right"),
                suffix_method="all_columns",
            )
            frame = matched[["row_left", "row_right"]].compute(
                progress_bar=len(left_ra) + len(right_ra) > 2 * PARTITION_ROWS
            )
        return frame["row_left"].to_numpy(dtype=np.int64), frame["row_right"].to_numpy(dtype=np.int64)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _dask(scheduler: str | None, folder: Path) -> Iterator[None]:
    """Dask on this machine's threads, or on the cluster at an address, whose workers must see the folder."""
    if scheduler is None:
        with dask.config.set(scheduler="threads"):
            yield
        return
    try:
        client = distributed.Client(scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise ObservationError(f"no Dask scheduler answers at {scheduler} ({error})") from None
    with client:
        blind = [worker for worker, sees in client.run(os.path.isdir, str(folder)).items() if not sees]
        if blind:
            raise ObservationError(
                f"{folder}: the worker {blind[0]} of {scheduler} does not see it; choose a work folder on a file "
                "system that all workers share"
            )
        yield


_Position = tuple[np.ndarray, np.ndarray]


def _write_catalogues(folder: Path, left: _Position, right: _Position, radius: float) -> bool:
    """Write `left`, `right` and the `margin` of right; returns whether any right object can have a match."""
    left_table, left_index = _table(*left)
    right_table, right_index = _table(*right)
    deepest = _margin_order(radius)
    pixels = {
        Pixel(min(pixel.order, deepest), pixel.number >> 2 * max(0, pixel.order - deepest))
        for pixel in partition(np.sort(np.concatenate([left_index, right_index])), PARTITION_ROWS)
    }
    ordered = sorted(pixels, key=lambda pixel: pixel.first)
    whole = {pixel: rows for pixel, rows in _rows_in(left_index, ordered).items() if len(rows)}
    # Where there is no left object there is no pair.
    inside = _rows_in(right_index, list(whole))
    margin = _margins(right_index, list(whole), deepest)
    inside = {pixel: rows for pixel, rows in inside.items() if len(rows) or pixel in margin}
    _write_catalogue(folder / "left", left_table, whole)
    _write_catalogue(folder / "right", right_table, inside)
    _write_catalogue(folder / "margin", right_table, margin, margin_of="right", radius=radius)
    return bool(inside)


def _table(ra: np.ndarray, dec: np.ndarray) -> tuple[Any, Int64[np.ndarray, " N"]]:
    """Row numbers and positions along the sky, and the index by which they are sorted."""
    index = healpix_index(ra, dec)
    order = np.argsort(index, kind="stable")
    columns = [index[order], order, ra[order], dec[order]]
    return pa.table([pa.array(column) for column in columns], schema=_SCHEMA), index[order]


def _rows_in(index: Int64[np.ndarray, " N"], pixels: list[Pixel]) -> dict[Pixel, np.ndarray]:
    """The rows of each pixel, by the sorted index."""
    edges = np.searchsorted(index, [[pixel.first, pixel.stop] for pixel in pixels])
    return {pixel: np.arange(start, stop) for pixel, (start, stop) in zip(pixels, edges, strict=True)}


def _margin_order(radius: float) -> int:
    """The highest order at which a pixel and the eight around it hold all that is within `radius` of the pixel."""
    return min(ORDER, int(np.log2(_RESOLUTION_AT_ORDER_0 * _NARROWEST / radius)))


def _margins(index: Int64[np.ndarray, " N"], pixels: list[Pixel], order: int) -> dict[Pixel, Int64[np.ndarray, " M"]]:
    """For each pixel, the rows outside it that may be within the radius of it; `order` is that of `_margin_order`.

    A row belongs to the margins of the pixels that hold one of the eight neighbours of its small pixel.
    """
    first = np.array([pixel.first for pixel in pixels])
    stop = np.array([pixel.stop for pixel in pixels])
    found = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, len(index), _ROWS_AT_ONCE):
        part = index[start : start + _ROWS_AT_ONCE]
        own = _pixel_holding(part, first, stop)
        for neighbour in neighbors(2**order, pixel_of(part, order), nest=True).T:
            holder = _pixel_holding(np.where(neighbour < 0, -1, neighbour << 2 * (ORDER - order)), first, stop)
            rows = np.flatnonzero((holder >= 0) & (holder != own))
            found.append(np.stack([holder[rows], rows + start], 1))
    holder, rows = np.unique(np.concatenate(found), axis=0).T
    edges = np.searchsorted(holder, np.arange(len(pixels) + 1))
    return {
        pixel: rows[start:end] for pixel, start, end in zip(pixels, edges[:-1], edges[1:], strict=True) if start < end
    }


def _pixel_holding(
    index: Int64[np.ndarray, " N"], first: Int64[np.ndarray, " P"], stop: Int64[np.ndarray, " P"]
) -> Int64[np.ndarray, " N"]:
    """Place of the pixel that holds each index, -1 where none does."""
    place = np.searchsorted(first, index, side="right") - 1
    return np.where((place >= 0) & (index < stop[place]), place, -1)


def _write_catalogue(
    folder: Path, table: Any, rows: dict[Pixel, np.ndarray], *, margin_of: str | None = None, radius: float = 0.0
) -> None:
    """A HATS catalogue of these rows of `table` in each pixel."""
    dataset = folder / "dataset"
    dataset.mkdir(parents=True)
    for pixel, chosen in rows.items():
        path = dataset / pixel.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table.take(pa.array(chosen)), path, compression="zstd", compression_level=1, use_dictionary=False
        )
    pq.write_metadata(_SCHEMA, dataset / "_common_metadata")
    properties: dict[str, object] = {
        "obs_collection": folder.name,
        "dataproduct_type": "object" if margin_of is None else "margin",
        "hats_nrows": sum(map(len, rows.values())),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": _INDEX_COLUMN,
        "hats_col_healpix_order": ORDER,
        "hats_npix_suffix": ".parquet",
    }
    if margin_of is not None:
        properties |= {"hats_primary_table_url": margin_of, "hats_margin_threshold": radius}
    lines = "".join(f"{name}={value}\n" for name, value in properties.items())
    (folder / "hats.properties").write_text(lines, encoding="utf-8")
    with (folder / "partition_info.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("Norder", "Npix"), *((pixel.order, pixel.number) for pixel in rows)])
