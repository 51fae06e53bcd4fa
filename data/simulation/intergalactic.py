"""What the gas between a distant source and us lets through below Lyman alpha, on average over lines of sight.

The analytic model of Inoue et al. 2014 (MNRAS 442, 1805): optical depths of the Lyman series and the Lyman continuum,
of the Lyman-alpha forest and of damped systems, eqs. 20 to 29, with the coefficients of their Table 2. It is the mean
over lines of sight, which galaxies get. Quasars get a forest of lines with that mean: the optical depth is the
exponential of a random field (Coles & Jones 1991, MNRAS 248, 1), blurred as warm gas blurs lines.
"""

import functools

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ..filters import TABLES_FOLDER
from .wavelength_grid import observed_wavelength

LYMAN_ALPHA = 1215.67
LYMAN_LIMIT = 911.8
"""Angstrom, as in the paper."""
MAX_REDSHIFT = 6.0
FOREST_SCATTER = 2.0
"""Standard deviation of the logarithm of the forest's optical depth: gives fluxes the scatter of 0.25 to 0.3 that real
ones have at z = 2.5 and this resolution (McDonald et al. 2000, ApJ 543, 1)."""
FOREST_WIDTH = 1.2
"""Pixels of 30 km/s over which the forest is blurred, a standard deviation."""


def transmission(redshift: Float[np.ndarray, " B"]) -> Float[Tensor, "B L"]:
    """Share of the light of sources at `redshift` that arrives, on `observed_wavelength()`.

    Raises ValueError if a redshift lies outside [0, MAX_REDSHIFT].
    """
    outside = ~((redshift >= 0) & (redshift <= MAX_REDSHIFT))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(f"redshift must lie in [0, {MAX_REDSHIFT}]; row {row} has {redshift[row]}")
    observed = observed_wavelength()
    series, limit = np.searchsorted(observed, np.array([LYMAN_ALPHA, LYMAN_LIMIT]) * (1 + redshift.max(initial=0.0)))
    depth = np.zeros((len(redshift), len(observed)), np.float32)
    depth[:, :series] = _series_depth(redshift, int(series))
    depth[:, :limit] += _continuum_depth(redshift, observed[:limit])
    return torch.exp(-torch.from_numpy(depth))


def forest(mean: Float[np.ndarray, " F"], normal: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """Lines of sight whose transmission has this `mean`, over many of them; `normal` are standard normal numbers.

    Pixels are those of `observed_wavelength()`, one after the other.
    """
    field = gaussian_filter1d(normal, FOREST_WIDTH, mode="wrap")
    field /= np.sqrt((gaussian_filter1d(np.eye(1, 41, 20)[0], FOREST_WIDTH) ** 2).sum())
    depths, means = _forest_means()
    depth = np.exp(np.interp(-mean, -means, np.log(depths)))
    return np.exp(-depth * np.exp(FOREST_SCATTER * field))


@functools.cache
def _forest_means() -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Median optical depths of the forest, and the mean transmission of each."""
    depths = np.geomspace(1e-5, 1e4, 400)
    field = np.linspace(-7, 7, 1401)
    weight = np.exp(-(field**2) / 2)
    means = np.exp(-depths[:, None] * np.exp(FOREST_SCATTER * field)) @ (weight / weight.sum())
    return depths, means


def _series_depth(redshift: np.ndarray, reach: int) -> Float[np.ndarray, "B reach"]:
    """Optical depth of the Lyman series: a line absorbs at wavelengths below its own at the source."""
    lines, cumulative = _lyman_series()
    rest = observed_wavelength()[:reach] / (1 + redshift[:, None])
    num_absorbing = len(lines) - np.searchsorted(lines[::-1], rest, side="right")
    return cumulative[num_absorbing, np.arange(reach)]


@functools.cache
def _lyman_series() -> tuple[Float[np.ndarray, " J"], Float[np.ndarray, "J+1 L"]]:
    """Wavelengths of the lines, falling, and on the observed grid the summed optical depth of the first j of them."""
    with np.load(TABLES_FOLDER / "intergalactic.npz", allow_pickle=False) as table:
        lines, forest, damped = (np.asarray(table[name], np.float64) for name in ("wavelength", "forest", "damped"))
    ratio = observed_wavelength() / lines[:, None]  # 1 + z of the gas
    depth = _power_laws(ratio, forest, (2.2, 5.7), (1.2, 3.7, 5.5)) + _power_laws(ratio, damped, (3.0,), (2.0, 3.0))
    return lines, np.concatenate([np.zeros((1, depth.shape[1])), depth.cumsum(0)])


def _power_laws(
    ratio: np.ndarray, coefficients: np.ndarray, breaks: tuple[float, ...], powers: tuple[float, ...]
) -> np.ndarray:
    """Each line's coefficient and power of `ratio` in the piece between `breaks` where it lies."""
    piece = np.digitize(ratio, breaks)
    return coefficients[np.arange(len(ratio))[:, None], piece] * ratio ** np.array(powers)[piece]


def _continuum_depth(redshift: np.ndarray, observed: np.ndarray) -> Float[np.ndarray, "B reach"]:
    """Optical depth of the Lyman continuum below the source's Lyman limit, zero above it."""
    ratio = observed / LYMAN_LIMIT
    source = 1 + redshift[:, None]
    is_below = ratio < source
    ratio = np.minimum(ratio, source)
    # The closed forms of the paper for the forest are ratio^2.1 times the difference of one continuous function.
    forest = ratio**2.1 * (_forest_integral(source) - _forest_integral(ratio))
    near = 0.2113 * source**2 - 0.07661 * source**2.3 * ratio**-0.3 - 0.1347 * ratio**2
    far = 0.04696 * source**3 - 0.01779 * source**3.3 * ratio**-0.3
    far = far + np.where(ratio < 3.0, 0.6340 - 0.1347 * ratio**2 - 0.2905 * ratio**-0.3, -0.02916 * ratio**3)
    damped = np.where(source < 3.0, near, far)
    return np.where(is_below, np.maximum(forest, 0) + np.maximum(damped, 0), 0.0)


def _forest_integral(x: np.ndarray) -> np.ndarray:
    low = -0.3248 * np.minimum(x, 2.2) ** -0.9
    middle = 2.545e-2 * (np.clip(x, 2.2, 5.7) ** 1.6 - 2.2**1.6)
    high = 5.221e-4 * (np.maximum(x, 5.7) ** 3.4 - 5.7**3.4)
    return low + middle + high
