"""The grid of all noiseless spectra: even in the logarithm of wavelength, so that a redshift is a shift.

Templates lie on a longer grid of the same step. Wavelengths are in vacuum, in angstrom.
"""

import functools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

STEP = 1e-4
"""Spacing of the grid in ln(wavelength): 30 km/s."""
OBSERVED_RANGE = (2950.0, 11300.0)
"""Angstrom: from SDSS u to HSC y."""


@functools.cache
def observed_wavelength() -> Float[np.ndarray, " L"]:
    """The grid [L] of observed wavelengths, angstrom."""
    low, high = np.log(OBSERVED_RANGE)
    return np.exp(low + STEP * np.arange(round((high - low) / STEP)))


@functools.cache
def rest_wavelength(min_redshift: float, max_redshift: float) -> Float[np.ndarray, " R"]:
    """The grid [R] of the wavelengths that are observed of sources in this range of redshifts, angstrom."""
    observed = observed_wavelength()
    below, above = (int(np.ceil(np.log1p(z) / STEP)) + 1 for z in (max_redshift, -min_redshift))
    return observed[0] * np.exp(STEP * np.arange(-below, len(observed) + max(above, 1)))


def shift_to_observed(
    rest: Float[Tensor, "B P R"], rest_grid: Float[np.ndarray, " R"], redshift: Float[np.ndarray, " B"]
) -> Float[Tensor, "B P L"]:
    """`rest`, on a `rest_wavelength` grid, at the observed wavelengths of sources at `redshift`; linear in between.

    Values are moved, not dimmed: flux densities are still to be divided by 1 + redshift.
    """
    observed = observed_wavelength()
    start = np.log(observed[0] / rest_grid[0] / (1 + redshift)) / STEP
    first = torch.from_numpy(np.floor(start).astype(np.int64)).to(rest.device)
    share = torch.from_numpy(start - np.floor(start)).float().to(rest.device)[:, None, None]
    rows = torch.arange(len(first), device=rest.device)
    windows = rest.unfold(-1, len(observed) + 1, 1)[rows, :, first]
    return torch.lerp(windows[..., :-1], windows[..., 1:], share)
