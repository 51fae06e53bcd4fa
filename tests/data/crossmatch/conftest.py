"""Catalogues that lie where matching goes wrong, and a reference that compares every pair."""

import numpy as np
import pytest

from armillary.data.crossmatch.sky_table import SkyTable
from armillary.data.crossmatch.sphere import separations, unit_vectors

ARCSEC = 1 / 3600
PIXEL_BORDERS = [(0.0, 0.0), (45.0, 0.0), (90.0, 0.0), (45.0, 41.810314895778596), (0.0, 41.810314895778596)]
"""Corners of HEALPix base pixels: eight or six pixels meet around each."""


def hard_places(random, count):
    """Positions at the poles, across right ascension zero, on borders of pixels, and anywhere."""
    quarter = count // 4
    ra, dec = random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    polar = slice(0, quarter)
    dec[polar] = random.choice([-1, 1], quarter) * (90 - 20 * ARCSEC * np.sqrt(random.uniform(0, 1, quarter)))
    wrap = slice(quarter, 2 * quarter)
    dec[wrap] = random.uniform(-20, 20, quarter) * ARCSEC
    ra[wrap] = random.uniform(-20, 20, quarter) * ARCSEC % 360
    border = slice(2 * quarter, 3 * quarter)
    corner = np.array(PIXEL_BORDERS)[random.integers(0, len(PIXEL_BORDERS), quarter)]
    ra[border] = (corner[:, 0] + random.uniform(-15, 15, quarter) * ARCSEC) % 360
    dec[border] = corner[:, 1] + random.uniform(-15, 15, quarter) * ARCSEC
    return ra, dec


def perturbed(random, ra, dec, sigma):
    """Positions with Gaussian errors of `sigma` arcsec on each axis, at the poles too."""
    vectors = unit_vectors(ra, dec)
    shift = random.normal(0, sigma / 3600 * np.pi / 180, vectors.shape)
    x, y, z = (vectors + shift).T
    return np.degrees(np.arctan2(y, x)) % 360 % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))


@pytest.fixture
def hard_catalogues():
    """Two catalogues of 1,200 and 1,000 objects, many of which have several partners within 5 arcsec, some at ties."""
    random = np.random.default_rng(5)
    ra, dec = hard_places(random, 1200)
    left = SkyTable("left", [f"l{i}" for i in random.permutation(1200)], ra, dec)
    chosen = random.choice(1200, 900, replace=False)
    right_ra, right_dec = perturbed(random, ra[chosen], dec[chosen], 1.0)
    # Ties: fifty objects of the right, each twice at one place.
    right_ra = np.concatenate([right_ra, right_ra[:50], random.uniform(0, 360, 50)])
    right_dec = np.concatenate([right_dec, right_dec[:50], random.uniform(-90, 90, 50)])
    ids = [f"r{i}" for i in random.permutation(1000)]
    return left, SkyTable("right", ids, right_ra, right_dec, allow_duplicates=True)


def reference_pairs(left, right, radius, mode):
    """What crossmatch is to find: (left id, right id) -> separation, by comparing every pair with every other."""
    one, other = unit_vectors(left.ra, left.dec), unit_vectors(right.ra, right.dec)
    left_ids, right_ids = left.object_id.to_pylist(), right.object_id.to_pylist()
    found = {}
    for i in range(len(left)):
        distance = separations(np.broadcast_to(one[i], other.shape), other)
        for j in np.flatnonzero(distance <= radius):
            found[left_ids[i], right_ids[j]] = float(distance[j])
    if mode == "all":
        return found
    best_right, best_left = {}, {}
    for (i, j), distance in found.items():
        best_right[i] = min(best_right.get(i, (np.inf, "")), (distance, j))
        best_left[j] = min(best_left.get(j, (np.inf, "")), (distance, i))
    pairs = {(i, j): d for i, (d, j) in best_right.items()}
    if mode == "one-to-one":
        pairs = {(i, j): d for (i, j), d in pairs.items() if best_left[j][1] == i}
    return pairs


def pairs_of(matches, left, right):
    """Matches as (left id, right id) -> separation."""
    left_ids, right_ids = left.object_id.to_pylist(), right.object_id.to_pylist()
    rows = zip(matches.left_row.tolist(), matches.right_row.tolist(), matches.separation.tolist(), strict=True)
    return {(left_ids[i], right_ids[j]): distance for i, j, distance in rows}
