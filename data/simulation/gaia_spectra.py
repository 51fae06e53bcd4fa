"""Gaia's BP and RP spectra: from the spectrum of a source to the 55 + 55 coefficients of the catalogue, with noise.

GaiaXPy (2.1.5, the code of Gaia's DPAC for users) gives an absolute spectrum as a sum of coefficients times functions
of wavelength: Hermite functions of the pseudo-wavelength, in which the instrument's blur is undone by a matrix, over
the response. This is the way back. The photons that a spectrum gives are projected on the Hermite functions, which are
orthonormal, and the matrix of the blur is applied instead of undone: one product with a fixed matrix. So coefficients
of a spectrum that GaiaXPy can represent are exact; finer detail is dropped by a least-squares fit that weighs all
pseudo-wavelengths alike. Gaia's own come from many noisy transits, each with its own blur, and have small systematic
errors that are not simulated (Carrasco et al. 2021, A&A 652, A86; Montegriffo et al. 2023, A&A 674, A3).
"""

import functools

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..filters import FLUX_UNIT, TABLES_FOLDER
from .wavelength_grid import observed_wavelength

ARMS = ("bp", "rp")
NUM_COEFFICIENTS = 55
"""Of each arm."""
TELESCOPE_AREA = 0.7278
"""Square metres."""
_PLANCK_TIMES_LIGHT = 6.62607004e-34 * 2.99792458e8 * 1e9
"""W s nm."""
_WATT_UNIT = FLUX_UNIT * 1e-7 * 1e4 * 10
"""W / m2 / nm of one unit of our spectra."""

TRANSIT_SECONDS = 4.42
"""Time that a source takes to cross one CCD."""
TRANSITS, TRANSITS_SCATTER = 40.0, 0.25
"""Typical number behind a mean spectrum of data release 3, and its scatter (natural logarithm)."""
BACKGROUND = 15.0
"""Electrons a second in each sample of a window, of sky and scattered light (Gaia Collaboration 2016, A&A 595, A1, and
Riello et al. 2021, A&A 649, A3, rounded)."""
READ_NOISE = 6.0
"""Electrons, of each sample."""
FLOOR = 0.003
"""Relative error of each sample that more light does not take away."""
SAMPLES = np.arange(60.0)
"""Pseudo-wavelengths of the samples of a window."""


@functools.cache
def coefficient_matrix() -> Float[Tensor, "K L"]:
    """Matrix [110, L] from spectra on `observed_wavelength()` (1e-17 erg/s/cm2/A) to coefficients, BP before RP."""
    return torch.from_numpy(np.concatenate([_arm_matrix(arm) for arm in ARMS])).float()


@functools.cache
def sampled_basis(arm: str) -> Float[np.ndarray, "K U"]:
    """The functions [55, 60] of an arm's coefficients in pseudo-wavelength, on SAMPLES: electrons a second."""
    table = _table(arm)
    return table["rotation"] @ _hermite(_scaled(table, SAMPLES))


def coefficient_noise(
    coefficients: Float[np.ndarray, "B K"], normal: Float[np.ndarray, "B U"], transits: Float[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
    """Noise of coefficients [B, 110] and its standard deviation, for as many transits.

    Each sample of either window has the noise of its photons, of background and read-out; `normal` are its 120 standard
    normal numbers. The fit turns it into correlated noise of coefficients.
    """
    noise, error = [], []
    for place, arm in enumerate(ARMS):
        basis = sampled_basis(arm)
        own = coefficients[:, place * NUM_COEFFICIENTS : (place + 1) * NUM_COEFFICIENTS]
        rate = np.maximum(own @ basis, 0)
        exposure = TRANSIT_SECONDS * transits[:, None]
        variance = (rate + BACKGROUND) / exposure + READ_NOISE**2 * transits[:, None] / exposure**2
        deviation = np.sqrt(variance + (FLOOR * rate) ** 2)
        fit = np.linalg.pinv(basis)  # [U, K]
        samples = normal[:, place * len(SAMPLES) : (place + 1) * len(SAMPLES)]
        noise.append((samples * deviation) @ fit)
        error.append(np.sqrt(deviation**2 @ fit**2))
    return np.concatenate(noise, 1), np.concatenate(error, 1)


def _arm_matrix(arm: str) -> Float[np.ndarray, "K L"]:
    table, wavelength = _table(arm), observed_wavelength() / 10  # nm, as the table
    (nodes, pseudo), (grid, values) = table["dispersion"], table["response"]
    place = _scaled(table, CubicSpline(nodes, pseudo)(wavelength))
    response = np.interp(wavelength, grid, values, left=0.0, right=0.0)
    photons = TELESCOPE_AREA * response * wavelength / _PLANCK_TIMES_LIGHT * _WATT_UNIT
    # Dispersion falls or rises; the integral over it runs upwards either way.
    projected = _hermite(place) * photons * np.abs(np.gradient(place))
    return table["projection"] @ projected


def _scaled(table: dict[str, np.ndarray], pseudo: np.ndarray) -> np.ndarray:
    """Pseudo-wavelengths as arguments of the Hermite functions."""
    low, high, normal_low, normal_high = table["ranges"]
    return normal_low + (pseudo - low) * (normal_high - normal_low) / (high - low)


def _hermite(x: Float[np.ndarray, " U"]) -> Float[np.ndarray, "K U"]:
    """The first NUM_COEFFICIENTS Hermite functions, orthonormal over all x."""
    values = np.empty((NUM_COEFFICIENTS, len(x)))
    values[0] = np.pi**-0.25 * np.exp(-(x**2) / 2)
    values[1] = np.sqrt(2) * x * values[0]
    for n in range(2, NUM_COEFFICIENTS):
        values[n] = np.sqrt(2 / n) * x * values[n - 1] - np.sqrt((n - 1) / n) * values[n - 2]
    return values


@functools.cache
def _table(arm: str) -> dict[str, np.ndarray]:
    with np.load(TABLES_FOLDER / "gaia_bp_rp.npz", allow_pickle=False) as table:
        names = ("rotation", "projection", "response", "dispersion", "ranges")
        return {name: np.asarray(table[f"{arm}_{name}"], np.float64) for name in names}
