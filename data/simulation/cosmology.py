"""Distances in a flat universe of matter and a cosmological constant, by interpolation for many objects at once.

Parameters of Planck Collaboration 2020 (arXiv 1807.06209); radiation and neutrino masses are left out, which changes
distances below redshift 2 by less than 0.2 %.
"""

import functools

import numpy as np
from jaxtyping import Float

HUBBLE_CONSTANT = 67.66
"""km / s / Mpc."""
MATTER_DENSITY = 0.3111
SPEED_OF_LIGHT_KM_S = 299792.458
ARCSEC_PER_RADIAN = 206264.806
MAX_REDSHIFT = 10.0


def comoving_distance(redshift: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Line-of-sight comoving distance, Mpc, for redshifts in [0, MAX_REDSHIFT]."""
    return np.interp(redshift, *_distance_table())


def redshift_at(distance: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Redshift at a comoving distance in Mpc: the inverse of `comoving_distance`."""
    redshifts, distances = _distance_table()
    return np.interp(distance, distances, redshifts)


def luminosity_distance(redshift: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Luminosity distance, Mpc."""
    return comoving_distance(redshift) * (1 + redshift)


def kiloparsec_per_arcsec(redshift: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Proper length across the line of sight that one arcsec subtends, kpc."""
    return comoving_distance(redshift) / (1 + redshift) * 1e3 / ARCSEC_PER_RADIAN


@functools.cache
def _distance_table() -> tuple[np.ndarray, np.ndarray]:
    redshifts = np.expm1(np.linspace(0, np.log1p(MAX_REDSHIFT), 20001))
    rate = 1 / np.sqrt(MATTER_DENSITY * (1 + redshifts) ** 3 + 1 - MATTER_DENSITY)
    steps = np.diff(redshifts) * (rate[1:] + rate[:-1]) / 2
    return redshifts, SPEED_OF_LIGHT_KM_S / HUBBLE_CONSTANT * np.append(0.0, np.cumsum(steps))
