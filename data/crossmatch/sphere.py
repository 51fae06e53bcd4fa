"""Positions as unit vectors: separations and motions that hold at the poles and across right ascension zero.

Angles in degrees, ICRS; separations in arcsec. A chord between unit vectors is good to 2e-10 arcsec (against 80-bit
haversines), which is what the rounding of a right ascension near 360 is worth: nothing is lost by it, however close two
places are.
"""

import numpy as np
from jaxtyping import Float64

ARCSEC_PER_RADIAN = 180 * 3600 / np.pi
MAS_PER_RADIAN = 1000 * ARCSEC_PER_RADIAN


def unit_vectors(ra: Float64[np.ndarray, " N"], dec: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, "N 3"]:
    """Directions to positions in degrees."""
    ra, dec = np.radians(ra), np.radians(dec)
    vectors = np.empty((len(ra), 3))
    horizontal = np.cos(dec)
    np.multiply(horizontal, np.cos(ra), out=vectors[:, 0])
    np.multiply(horizontal, np.sin(ra), out=vectors[:, 1])
    np.sin(dec, out=vectors[:, 2])
    return vectors


def sky_positions(
    vectors: Float64[np.ndarray, "N 3"],
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Right ascension in [0, 360) and declination, degrees, of directions of any length."""
    x, y, z = vectors.T
    ra = np.degrees(np.arctan2(y, x)) % 360
    ra[ra == 360] = 0.0  # what the remainder of a tiny negative angle rounds to
    return ra, np.degrees(np.arctan2(z, np.hypot(x, y)))


def separations(one: Float64[np.ndarray, "N 3"], other: Float64[np.ndarray, "N 3"]) -> Float64[np.ndarray, " N"]:
    """Angles between unit vectors, row by row, in arcsec: 2 arcsin(chord / 2)."""
    difference = one - other
    x, y, z = difference.T
    chord = np.sqrt(x * x + y * y + z * z)
    return 2 * ARCSEC_PER_RADIAN * np.arcsin(np.minimum(chord / 2, 1.0))


def chord_of(radius: float) -> float:
    """Chord of the unit sphere under an angle in arcsec."""
    return float(2 * np.sin(radius / ARCSEC_PER_RADIAN / 2))


def moved(
    ra: Float64[np.ndarray, " N"],
    dec: Float64[np.ndarray, " N"],
    pm_ra: Float64[np.ndarray, " N"],
    pm_dec: Float64[np.ndarray, " N"],
    years: float | Float64[np.ndarray, " N"],
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Where objects are `years` later: straight, uniform motion in space, without radial velocity or parallax.

    `pm_ra` (times cos(dec)) and `pm_dec` in mas/yr, in the east and north that `ra` and `dec` define, at a pole too.
    The direction turns along u + t (pm_ra east + pm_dec north): ESA 1997, The Hipparcos and Tycho Catalogues, vol. 1,
    eq. 1.5.5 with radial motion zero. An object that does not move keeps its position to the bit.
    """
    sin_ra, cos_ra = np.sin(np.radians(ra)), np.cos(np.radians(ra))
    sin_dec, cos_dec = np.sin(np.radians(dec)), np.cos(np.radians(dec))
    east = np.stack([-sin_ra, cos_ra, np.zeros_like(ra)], 1)
    north = np.stack([-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec], 1)
    east_shift, north_shift = pm_ra * years / MAS_PER_RADIAN, pm_dec * years / MAS_PER_RADIAN
    later = unit_vectors(ra, dec) + east_shift[:, None] * east + north_shift[:, None] * north
    new_ra, new_dec = sky_positions(later)
    rests = (east_shift == 0) & (north_shift == 0)
    return np.where(rests, ra, new_ra), np.where(rests, dec, new_dec)
