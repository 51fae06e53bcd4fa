"""Simulated stars: drawn along the line of sight from a model of the Galaxy, with real spectra of their colour.

The absolute magnitude gives the colour by the relation of main-sequence or giant stars; the two kinds of real stars on
either side of that colour (MaStar, `data/tables/star_templates.npz`) are mixed, tilted a little, and moved to the
star's radial velocity. Lines are no narrower than MaStar's resolving power of 1,850.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, magnitude_to_flux, photometry_weights
from .cosmology import SPEED_OF_LIGHT_KM_S
from .galactic_model import KINDS, draw_stars_along, galactic_coordinates, motions
from .object_random import normals, uniforms
from .wavelength_grid import observed_wavelength, rest_wavelength, shift_to_observed

BRIGHTEST = 15.0
"""r magnitude of the brightest stars that are drawn, or a magnitude above the limit if that is brighter."""
COLOR_SCATTER, TILT_SCATTER = 0.03, 0.03
"""Of g - i about the relation, magnitudes, and of the spectrum's slope, d ln f / d ln wavelength."""
MAX_SPEED = 900.0
"""km/s; faster ones are slowed to this."""


@dataclass(frozen=True, eq=False)
class Stars:
    """B simulated stars."""

    kind: Int[np.ndarray, " B"]
    """Index into `galactic_model.KINDS`."""
    r_magnitude: Float[np.ndarray, " B"]
    """DECam r, AB."""
    color: Float[np.ndarray, " B"]
    """g - i that the spectrum is chosen by, SDSS, AB."""
    tilt: Float[np.ndarray, " B"]
    """Power of wavelength that the spectrum is multiplied by."""
    parallax: Float[np.ndarray, " B"]
    """mas."""
    pm_ra: Float[np.ndarray, " B"]
    """Proper motion in right ascension times cos dec, mas a year, as is pm_dec."""
    pm_dec: Float[np.ndarray, " B"]
    radial_velocity: Float[np.ndarray, " B"]
    """km/s, away from the Sun."""

    def __len__(self) -> int:
        return len(self.kind)


def draw_stars(
    rows: Int[np.ndarray, " B"],
    seed: int,
    ra: Float[np.ndarray, " B"],
    dec: Float[np.ndarray, " B"],
    magnitude_limit: float,
) -> Stars:
    """The stars of these rows of the sky `seed`, at these places (degrees, ICRS), brighter than the limit in r."""
    choice, *jitter = uniforms("star", seed, rows, 3)
    scatter = normals("star scatter", seed, rows, 5)
    drawn = draw_stars_along(
        choice,
        np.array(jitter).reshape(2, -1),
        *galactic_coordinates(ra, dec),
        (min(BRIGHTEST, magnitude_limit - 1), magnitude_limit),
    )
    pm_ra, pm_dec, velocity = motions(drawn, scatter[:3], ra, dec)
    color = np.empty(len(rows))
    for index, kind in enumerate(KINDS):
        chosen = drawn.kind == index
        color[chosen] = _color(drawn.absolute_magnitude[chosen], kind.sequence, kind.metallicity)
    return Stars(
        kind=drawn.kind,
        r_magnitude=drawn.r_magnitude,
        color=color + COLOR_SCATTER * scatter[3],
        tilt=TILT_SCATTER * scatter[4],
        parallax=1e3 / drawn.distance,
        pm_ra=pm_ra,
        pm_dec=pm_dec,
        radial_velocity=np.clip(velocity, -MAX_SPEED, MAX_SPEED),
    )


def star_spectra(stars: Stars, device: torch.device | str = "cpu") -> Float[Tensor, "B L"]:
    """Noiseless spectra on `observed_wavelength()`, 1e-17 erg/s/cm2/A."""
    known = _templates()
    weights = np.zeros((len(stars), known.flux.shape[0]))
    for index, kind in enumerate(KINDS):
        rows = np.flatnonzero(stars.kind == index)
        members, colors = known.sequences[kind.sequence]
        place = np.interp(stars.color[rows], colors, np.arange(len(colors)))
        left = np.minimum(place.astype(np.int64), max(len(colors) - 2, 0))
        right = np.minimum(left + 1, len(colors) - 1)
        weights[rows, members[left]] += 1 - (place - left)
        weights[rows, members[right]] += place - left
    grid = known.wavelength
    mixed = torch.from_numpy(weights).float().to(device) @ known.flux.to(device)
    slope = torch.from_numpy(np.log(grid / 6400)).float().to(device)
    mixed *= torch.exp(torch.from_numpy(stars.tilt).float().to(device)[:, None] * slope)
    spectra = shift_to_observed(mixed[:, None], grid, stars.radial_velocity / SPEED_OF_LIGHT_KM_S)[:, 0]
    flux = spectra @ _r_weights().to(device)
    return spectra * (torch.from_numpy(magnitude_to_flux(stars.r_magnitude)).float().to(device) / flux)[:, None]


def _color(absolute: Float[np.ndarray, " B"], sequence: str, metallicity: float) -> Float[np.ndarray, " B"]:
    """g - i at an absolute r magnitude.

    Dwarfs: Ivezic et al. 2008 (ApJ 684, 287), eqs. A2, A3 and A7. Giants: a straight line through the giant branches of
    old clusters, rounded.
    """
    if sequence == "white_dwarf":
        return np.full(len(absolute), -0.48)
    if sequence == "giant":
        return 0.75 + 0.15 * (3.5 - absolute) + 0.25 * (metallicity + 1.5) * (3.5 - absolute) / 3
    colors = np.linspace(-0.4, 3.8, 200)
    x = np.maximum(colors, 0.2)
    magnitude = -5.06 + 14.32 * x - 12.97 * x**2 + 6.127 * x**3 - 1.267 * x**4 + 0.0967 * x**5
    magnitude += 4.50 - 1.11 * metallicity - 0.18 * metallicity**2
    magnitude += 4.0 * (colors - x)  # bluer than the relation reaches: A stars are brighter by two magnitudes
    return np.interp(absolute, np.maximum.accumulate(magnitude), colors)


@dataclass(frozen=True, eq=False)
class _Templates:
    wavelength: Float[np.ndarray, " R"]
    flux: Float[Tensor, "S R"]
    """Each scaled to one nanomaggy in DECam r."""
    sequences: dict[str, tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]]
    """For each sequence the rows of its spectra, from blue to red, and their g - i."""


@functools.cache
def _templates() -> _Templates:
    with np.load(TABLES_FOLDER / "star_templates.npz", allow_pickle=False) as table:
        wavelength, flux = (np.asarray(table[name], np.float64) for name in ("wavelength", "flux"))
        sequences = {kind.sequence: np.asarray(table[kind.sequence]) for kind in KINDS}
    speed = MAX_SPEED / SPEED_OF_LIGHT_KM_S
    grid = rest_wavelength(-speed, speed)
    fine = CubicSpline(np.log(wavelength), flux, axis=1)(np.log(grid)).clip(0)
    weights = photometry_weights([filter_curve(f"sdss2010-{band}") for band in "gi"], grid)
    g, i = flux_to_magnitude(weights @ fine.T)
    fine /= (photometry_weights([filter_curve("decam2014-r")], grid) @ fine.T).T
    colors = g - i
    return _Templates(
        wavelength=grid,
        flux=torch.from_numpy(fine).float(),
        sequences={name: (rows, colors[rows]) for name, rows in sequences.items()},
    )


@functools.cache
def _r_weights() -> Float[Tensor, " L"]:
    return torch.from_numpy(photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]).float()
