"""Which objects train, choose and test, by region of the sky: no test object has a training object beside it.

Whole HEALPix pixels go to one part, by a hash of the pixel, so that an object's part stays when data are added. Near
the border of two regions the parts still touch: an object that trains (or chooses) within `margin` of one that must not
be known is left out of all parts. Objects without a position go by a hash of their id.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.spatial import cKDTree

from .crossmatch.sphere import chord_of, unit_vectors
from .parquet_files import replacing
from .sky_partition import UNPLACED, healpix_index, pixel_of
from .token_shards import object_key

PARTS = ("train", "validation", "test")
HELD_OUT = "held-out"
"""File of all objects that no step may see: validation, test, and those of the margin."""
MARGIN = "margin"
"""Part of the objects that are left out, for they lie too near to those of another part."""
_HASH_RANGE = 2.0**63


def split_sky(
    object_id: Sequence[str],
    ra: Float64[np.ndarray, " B"],
    dec: Float64[np.ndarray, " B"],
    *,
    order: int = 5,
    test: float = 0.1,
    validation: float = 0.1,
    margin: float = 60.0,
    seed: int = 0,
) -> np.ndarray:
    """The part of each object: `train`, `validation`, `test` or `margin`.

    `order` is that of the HEALPix pixels (5: 1.8 degrees); `test` and `validation` are the shares of the pixels that
    go there; `margin` in arcsec; `seed` gives another division. `ra` and `dec` in degrees, NaN where not known. Raises
    ValueError on shares that leave nothing to train, and on an order or a margin that is none.
    """
    if not (test >= 0 and validation >= 0 and test + validation < 1):
        raise ValueError(f"test and validation are shares whose sum is below 1; found {test} and {validation}")
    if not 0 <= order <= 12:
        raise ValueError(f"order must lie in [0, 12], found {order}")
    if not margin >= 0:
        raise ValueError(f"margin must be an angle in arcsec, at least 0; found {margin}")
    index = healpix_index(ra, dec)
    placed = index != UNPLACED
    pixel, group = np.unique(pixel_of(index[placed], order), return_inverse=True)
    of_pixel = _parts([f"healpix {order} {number} {seed}" for number in pixel.tolist()], test, validation)
    part = np.empty(len(object_id), dtype="<U10")
    part[placed] = of_pixel[group]
    part[~placed] = _parts(
        [f"object {object_id[i]} {seed}" for i in np.flatnonzero(~placed).tolist()], test, validation
    )
    if margin > 0:
        # Test objects all stay; those that choose give way to them, and those that train to both.
        for giving, kept in (("validation", ("test",)), ("train", ("test", "validation"))):
            rows, others = (np.flatnonzero(placed & np.isin(part, names)) for names in ((giving,), kept))
            if len(rows) and len(others):
                nearest, _ = cKDTree(unit_vectors(ra[others], dec[others])).query(unit_vectors(ra[rows], dec[rows]))
                part[rows[nearest <= chord_of(margin)]] = MARGIN
    return part


def write_parts(folder: str | Path, object_id: Sequence[str], part: Sequence[str]) -> dict[str, list[str]]:
    """Write the ids of each part to `<folder>/<part>.txt`, one in a line, and those not trained on to `held-out.txt`.

    Returns the ids by part, sorted.
    """
    found: dict[str, list[str]] = {name: [] for name in PARTS}
    for name, of in sorted(zip(object_id, part, strict=True)):
        found.setdefault(of, []).append(name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held_out = sorted(i for name, ids in found.items() if name != "train" for i in ids)
    for name, ids in {**found, HELD_OUT: held_out}.items():
        with replacing(folder / f"{name}.txt") as file:
            file.write("".join(f"{i}\n" for i in ids).encode())
    return found


def read_parts(folder: str | Path) -> dict[str, str]:
    """The part of each object, of `train.txt`, `validation.txt` and `test.txt` in a folder.

    Raises ValueError where an object stands in two of them, and FileNotFoundError.
    """
    found: dict[str, str] = {}
    for part in PARTS:
        path = Path(folder) / f"{part}.txt"
        for object_id in path.read_text(encoding="utf-8").split():
            if found.setdefault(object_id, part) != part:
                raise ValueError(f"{path}: object {object_id!r} is also in {found[object_id]}.txt; parts must differ")
    return found


def split_positions(
    positions: Mapping[str, tuple[float, float]],
    *,
    order: int = 5,
    test: float = 0.1,
    validation: float = 0.1,
    margin: float = 60.0,
    seed: int = 0,
) -> dict[str, str]:
    """The part of each object of `positions` (id to ra and dec, in degrees); see `split_sky`."""
    sky = np.array(list(positions.values()), np.float64).reshape(-1, 2)
    ids = list(positions)
    part = split_sky(ids, sky[:, 0], sky[:, 1], order=order, test=test, validation=validation, margin=margin, seed=seed)
    return dict(zip(ids, part.tolist(), strict=True))


def _parts(names: Sequence[str], test: float, validation: float) -> np.ndarray:
    """By a hash of each name: the first share tests, the next chooses, the rest trains."""
    chance = np.array([object_key(name) / _HASH_RANGE for name in names])
    return np.where(chance < test, "test", np.where(chance < test + validation, "validation", "train"))
