"""How galaxies like those around us looked in the past: more star formation, brighter old stars, fewer dead ones.

The real galaxies of `data/tables/galaxy_mixes.npz` lie at redshifts near 0.1. These three functions of redshift take
them back in time. They are coarse on purpose: each is one published trend, the same for all galaxies of a kind.
"""

import numpy as np
from jaxtyping import Float

STAR_FORMATION_POWER = 2.5
"""Star formation at fixed stellar mass grows as (1 + z) to this: 2.5 to 3 in Lilly et al. 2013 (ApJ 772, 119), Whitaker
et al. 2014 (ApJ 795, 104)."""
STAR_FORMATION_PEAK = 2.0
"""Redshift beyond which it grows no further (Madau & Dickinson 2014, ARA&A 52, 415)."""
PASSIVE_MAGNITUDES = 1.1
"""Magnitudes by which old stars of fixed mass are brighter for each unit of redshift: van Dokkum & van der Marel 2007
(ApJ 655, 30) find 1.4 in B, less in redder light; the same at all wavelengths here."""
PASSIVE_PEAK = 1.5
"""Redshift beyond which old stars brighten no further: before that they were not old."""
QUIESCENT_DENSITY_POWER = -1.7
"""Comoving density of quiescent galaxies goes as (1 + z) to this: one third at z = 1, a seventh at z = 2 (Ilbert et al.
2013, A&A 556, A55; Muzzin et al. 2013, ApJ 777, 18)."""
STAR_FORMING_DENSITY_POWER = -1.5
"""The same for star-forming galaxies beyond redshift 1; before that their density is today's (same sources)."""

IS_OLD = np.array([True, False, False, True, False])
"""Which of the five templates are old stars, whose light fades."""


def star_formation_growth(redshift: Float[np.ndarray, "*B"], quiescence: Float[np.ndarray, "*B"]) -> np.ndarray:
    """Factor [*B, 5] on the mass in each template relative to today: young stars are more numerous, old ones as many.

    `quiescence` runs from 0 (star-forming) to 1 (dead: no growth).
    """
    growth = (1 + np.minimum(redshift, STAR_FORMATION_PEAK)) ** (STAR_FORMATION_POWER * (1 - quiescence))
    return np.where(IS_OLD, 1.0, growth[..., None])


def passive_brightening(redshift: Float[np.ndarray, "*B"]) -> np.ndarray:
    """Factor [*B, 5] on the light of each template's unit of mass relative to today."""
    brightening = 10 ** (0.4 * PASSIVE_MAGNITUDES * np.minimum(redshift, PASSIVE_PEAK))
    return np.where(IS_OLD, brightening[..., None], 1.0)


def relative_density(redshift: Float[np.ndarray, "*B"], quiescence: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """Comoving number density of galaxies of a kind, over today's."""
    star_forming = np.maximum((1 + redshift) / 2, 1.0) ** STAR_FORMING_DENSITY_POWER
    return quiescence * (1 + redshift) ** QUIESCENT_DENSITY_POWER + (1 - quiescence) * star_forming
