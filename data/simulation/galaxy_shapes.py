"""Sizes, concentrations and axis ratios of simulated galaxies: each from a real galaxy of 3D-HST that is like it.

Like it means: of near stellar mass, redshift and specific star-formation rate. What is taken over is the Sersic index,
the axis ratio, and how far the real galaxy's size lies from the mean relation of size with mass and redshift; index and
size are then made into a bulge and a disc with the same half-light radius.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from scipy.special import gammainc, gammaincinv

from ..filters import TABLES_FOLDER
from .cosmology import kiloparsec_per_arcsec
from .galaxy_evolution import STAR_FORMATION_PEAK, STAR_FORMATION_POWER

NUM_NEIGHBOURS = 24
"""Of the real galaxies most like a simulated one, how many its shape is drawn from."""
SCALES = (0.25, 0.12, 0.25)
"""What counts as equally far: dex of mass, ln(1 + z), and quiescence."""
RATIO_SCATTER, SIZE_SCATTER = 0.05, 0.05
"""Of the axis ratio, and of the radius in dex, about the real galaxy's, so that no two shapes are the same."""
CONCENTRATED_INDEX = 2.0
"""Sersic index that parts early from late types."""
QUIESCENT_RATE = -11.0
"""log10 of the specific star-formation rate (per year) today, on whose either side a galaxy counts as dead or alive."""


def quiescence(
    log_specific_rate: Float[np.ndarray, " B"], redshift: Float[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
    """From 0 (star-forming for its time) to 1 (dead): how far the rate lies below the main sequence at its redshift."""
    growth = STAR_FORMATION_POWER * np.log10(1 + np.minimum(redshift, STAR_FORMATION_PEAK))
    return 1 / (1 + np.exp(np.clip((log_specific_rate - QUIESCENT_RATE - growth) / 0.25, -50, 50)))


def mean_radius(
    stellar_mass: Float[np.ndarray, " B"], redshift: Float[np.ndarray, " B"], is_early: Bool[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
    """Half-light radius along the major axis, kpc: van der Wel et al. 2014 (ApJ 788, 28), their abstract and Table 2.

    Early types flatten below 2e10 solar masses (their Fig. 8).
    """
    mass = stellar_mass / 5e10
    late = 8.9 * (1 + redshift) ** -0.75 * mass**0.22
    steep, flat = mass**0.75, 0.4**0.75 * (mass / 0.4) ** 0.2
    early = 5.6 * (1 + redshift) ** -1.48 * np.where(mass > 0.4, steep, flat)
    return np.where(is_early, early, late)


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes of B galaxies."""

    sersic_index: Float[np.ndarray, " B"]
    axis_ratio: Float[np.ndarray, " B"]
    radius: Float[np.ndarray, " B"]
    """Half-light radius along the major axis, kpc."""


def draw_shapes(
    uniform: Float[np.ndarray, " B"],
    normal: Float[np.ndarray, "2 B"],
    log_stellar_mass: Float[np.ndarray, " B"],
    redshift: Float[np.ndarray, " B"],
    log_specific_rate: Float[np.ndarray, " B"],
) -> Shapes:
    """For each galaxy the shape of one of its NUM_NEIGHBOURS likes, chosen by `uniform` in [0, 1), a little changed.

    `normal` are two standard normal numbers for each.
    """
    known, tree, residual = _real_shapes()
    dead = quiescence(log_specific_rate, redshift)
    _, neighbours = tree.query(_place(log_stellar_mass, redshift, dead), NUM_NEIGHBOURS)
    chosen = neighbours[np.arange(len(redshift)), (uniform * NUM_NEIGHBOURS).astype(np.int64)]
    index = known.sersic_index[chosen]
    radius = mean_radius(10**log_stellar_mass, redshift, index > CONCENTRATED_INDEX) * 10 ** residual[chosen]
    ratio = known.axis_ratio[chosen] + RATIO_SCATTER * normal[0]
    ratio = np.clip(np.where(ratio > 1, 2 - ratio, ratio), 0.1, 1.0)
    return Shapes(index, ratio, radius * 10 ** (SIZE_SCATTER * normal[1]))


def component_radii(radius: Float[np.ndarray, " B"], bulge_share: Float[np.ndarray, " B"]) -> Float[np.ndarray, "B P"]:
    """Half-light radii of bulge (index 4) and disc (index 1) that together have half their light within `radius`.

    The bulge is a fifth of the disc where it holds little of the light, and as large where it holds nearly all.
    """
    ratio = 0.2 + 0.8 * bulge_share**2
    low, high = np.full(len(radius), 0.2), np.full(len(radius), 6.0)  # of the disc, over the whole
    for _ in range(20):
        middle = (low + high) / 2
        within = bulge_share * sersic_growth(1 / (middle * ratio), 4.0) + (1 - bulge_share) * sersic_growth(
            1 / middle, 1.0
        )
        low, high = np.where(within > 0.5, middle, low), np.where(within > 0.5, high, middle)
    disc = radius * (low + high) / 2
    return np.stack([ratio * disc, disc], 1)


def sersic_growth(radius: Float[np.ndarray, "*B"], index: float) -> Float[np.ndarray, "*B"]:
    """Share of the light of a Sersic profile without end within `radius`, in half-light radii."""
    return gammainc(2 * index, gammaincinv(2 * index, 0.5) * radius ** (1 / index))


def _place(log_mass: np.ndarray, redshift: np.ndarray, dead: np.ndarray) -> Float[np.ndarray, "B 3"]:
    return np.column_stack([log_mass, np.log1p(redshift), dead]) / np.array(SCALES)


@functools.cache
def _real_shapes() -> tuple[Shapes, cKDTree, Float[np.ndarray, " N"]]:
    """The galaxies of 3D-HST, a tree of their places, and the logarithm of their radius over the mean relation."""
    with np.load(TABLES_FOLDER / "galaxy_shapes.npz", allow_pickle=False) as table:
        column = {name: np.asarray(table[name], np.float64) for name in table.files}
    redshift, log_mass = column["redshift"], column["log_stellar_mass"]
    radius = column["radius"] * kiloparsec_per_arcsec(redshift)
    mean = mean_radius(10**log_mass, redshift, column["sersic_index"] > CONCENTRATED_INDEX)
    tree = cKDTree(_place(log_mass, redshift, quiescence(column["log_specific_star_formation_rate"], redshift)))
    shapes = Shapes(column["sersic_index"], column["axis_ratio"], radius)
    return shapes, tree, np.clip(np.log10(radius / mean), -0.6, 0.5)
