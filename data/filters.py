"""Filter curves, and AB photometry of spectra through them.

A curve is the total response of telescope, filter, detector and atmosphere to one photon. The magnitude of a spectrum
through it is the photon-counting mean of the flux relative to that of a source of 3631 Jy (Fukugita et al. 1996, AJ
111, 1748, eq. 7). For a fixed grid of wavelengths that is one row of weights, so that photometry is a matrix product.
The curves of real filters are in `tables/filters.npz`; a name `synthetic-WAVELENGTH-WIDTH` is the curve of a filter
that nobody made.
"""

import difflib
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

TABLES_FOLDER = Path(__file__).resolve().parent / "tables"

AB_REFERENCE = 3631e-23
"""f_nu of a source of AB magnitude zero, erg / s / cm2 / Hz."""
SPEED_OF_LIGHT = 2.99792458e18
"""Angstrom per second."""
FLUX_UNIT = 1e-17
"""Unit of spectra, erg / s / cm2 / angstrom."""
FLANK = 0.04
"""Width over which a synthetic filter opens or closes, over its wavelength: from 10 to 90 % in 2 % of the wavelength.
The interference filters of BASS r, HSC i and z and DECam i need 1.4 to 2.8 %."""
_NUM_POINTS = 401
"""Of a synthetic curve."""
_SYNTHETIC = re.compile(r"synthetic-([1-9]\d*)-([1-9]\d*)")


@dataclass(frozen=True, eq=False)
class FilterCurve:
    """One transmission curve: response (any scale) to a photon of each wavelength (angstrom), zero beyond the ends."""

    name: str
    wavelength: Float[np.ndarray, " L"]
    response: Float[np.ndarray, " L"]

    @property
    def effective_wavelength(self) -> float:
        """Mean wavelength (angstrom) of the photons from a source of constant f_nu."""
        photons = self.response / self.wavelength
        return float(_integral(self.wavelength, photons * self.wavelength) / _integral(self.wavelength, photons))

    @property
    def effective_width(self) -> float:
        """Width (angstrom) of the rectangle of the curve's height and area."""
        return float(_integral(self.wavelength, self.response) / self.response.max())


@functools.cache
def filter_curve(name: str) -> FilterCurve:
    """The curve called `name`: a shipped one, as `decam2014-g`, or a `synthetic_curve`, as `synthetic-6200-1400`.

    Raises LookupError that names the nearest known one, or says what a synthetic one's numbers must be.
    """
    if name.startswith("synthetic"):
        numbers = _SYNTHETIC.fullmatch(name)
        if numbers is None or int(numbers[2]) > int(numbers[1]):
            raise LookupError(
                f"no filter curve {name!r}; expected synthetic-WAVELENGTH-WIDTH in whole angstrom, the width at most "
                f"the wavelength"
            )
        return synthetic_curve(int(numbers[1]), int(numbers[2]))
    with np.load(TABLES_FOLDER / "filters.npz", allow_pickle=False) as table:
        names = filter_names()
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise LookupError(f"no filter curve {name!r}; the nearest known is {nearest[0]!r}, all: {names}")
        wavelength, response = np.asarray(table[name], np.float64)
        return FilterCurve(name, wavelength, response)


def synthetic_curve(wavelength: int, width: int) -> FilterCurve:
    """The curve of an ideal interference filter: a box with smooth flanks of this effective wavelength and width.

    In angstrom; the width must not exceed the wavelength. A box from a to b has the effective wavelength
    (b - a) / ln(b / a), which solved for a gives its place. Flanks are those of the box after convolution with a raised
    cosine; FLANK makes them, but never takes the top.
    """
    low = width / math.expm1(width / wavelength)
    flank = min(FLANK * wavelength, width / 2)
    grid = np.linspace(low - flank / 2, low + width + flank / 2, _NUM_POINTS)
    share = np.minimum((grid - grid[0]) / flank, (grid[-1] - grid) / flank).clip(0, 1)
    return FilterCurve(f"synthetic-{wavelength}-{width}", grid, share - np.sin(2 * np.pi * share) / (2 * np.pi))


@functools.cache
def filter_names() -> list[str]:
    """Names of all shipped curves."""
    with np.load(TABLES_FOLDER / "filters.npz", allow_pickle=False) as table:
        return sorted(table.files)


def ab_flux(wavelength: Float[np.ndarray, " L"], magnitude: float = 0.0) -> Float[np.ndarray, " L"]:
    """f_lambda (1e-17 erg/s/cm2/A) of a source whose AB magnitude is `magnitude` at every wavelength (angstrom)."""
    return AB_REFERENCE * SPEED_OF_LIGHT / wavelength**2 * 10 ** (-0.4 * magnitude) / FLUX_UNIT


def photometry_weights(
    curves: Sequence[FilterCurve], wavelength: Float[np.ndarray, " L"], *, min_coverage: float = 0.999
) -> Float[np.ndarray, "C L"]:
    """Weights [C, L] whose product with a spectrum (1e-17 erg/s/cm2/A) is its flux in nanomaggies through each curve.

    The spectrum is taken as linear between its wavelengths (angstrom, increasing). Raises ValueError if less than
    `min_coverage` of a curve lies within them; what lies outside is left out of the mean, so that a source of constant
    f_nu has the right flux all the same.
    """
    return np.stack([_weights_of_one(curve, np.asarray(wavelength, np.float64), min_coverage) for curve in curves])


def magnitude_to_flux(magnitude: np.ndarray) -> np.ndarray:
    """Nanomaggies of an AB magnitude."""
    return 10 ** (0.4 * (22.5 - magnitude))


def flux_to_magnitude(flux: np.ndarray) -> np.ndarray:
    """AB magnitude of nanomaggies; the flux must be positive."""
    return 22.5 - 2.5 * np.log10(flux)


def _weights_of_one(curve: FilterCurve, wavelength: np.ndarray, min_coverage: float) -> np.ndarray:
    low, high = wavelength[0], wavelength[-1]
    inside = (curve.wavelength >= low) & (curve.wavelength <= high)
    # Integrate on the union of both grids: exact for a curve and a spectrum that are linear between their points.
    grid = np.unique(np.concatenate([wavelength, curve.wavelength[inside]]))
    response = np.interp(grid, curve.wavelength, curve.response, left=0.0, right=0.0)
    covered = _integral(grid, response) / _integral(curve.wavelength, curve.response)
    if covered < min_coverage:
        raise ValueError(
            f"filter {curve.name} needs wavelengths {curve.wavelength[0]:.0f} to {curve.wavelength[-1]:.0f} A, the "
            f"spectrum has {low:.0f} to {high:.0f} A, which is {covered:.1%} of the curve (at least {min_coverage:.1%})"
        )
    photons = response * grid * _trapezoid_weights(grid)
    reference = (photons * ab_flux(grid)).sum()
    left = np.clip(np.searchsorted(wavelength, grid, side="right") - 1, 0, len(wavelength) - 2)
    share = (grid - wavelength[left]) / (wavelength[left + 1] - wavelength[left])
    weights = np.bincount(left, photons * (1 - share), len(wavelength))
    weights += np.bincount(left + 1, photons * share, len(wavelength))
    return weights / reference * 1e9


def _trapezoid_weights(grid: np.ndarray) -> np.ndarray:
    steps = np.diff(grid)
    return (np.append(steps, 0.0) + np.append(0.0, steps)) / 2


def _integral(grid: np.ndarray, values: np.ndarray) -> float:
    return float((values * _trapezoid_weights(grid)).sum())
