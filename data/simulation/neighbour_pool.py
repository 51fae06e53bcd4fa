"""What may lie beside an object of the simulated sky: galaxies and stars that stand for all those to 24th magnitude.

One pool serves all skies. It is drawn in layers, so that the rare bright galaxies, among which close companions of
bright objects are chosen, are many enough; each member stands for its layer's share of the density on the sky. Stars
are those of a Galactic latitude of 60 degrees, wherever the object lies.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..filters import filter_curve, magnitude_to_flux, photometry_weights
from .galactic_model import GALACTIC_AXES, stars_per_square_degree
from .galaxies import MAGNITUDE_LIMITS, Galaxies, draw_galaxies, galaxies_per_square_degree, galaxy_spectra
from .light_profiles import POINT
from .object_random import uniforms
from .scene import Neighbours, Pool, draw_neighbours, num_uniforms, share_within
from .stars import BRIGHTEST, Stars, draw_stars, star_spectra
from .wavelength_grid import observed_wavelength

SERSIC_INDICES = (4.0, 1.0, POINT)
"""Of bulge, disc and point, the components of all objects."""
FAINT_LIMIT = MAGNITUDE_LIMITS[1]
"""DECam r, AB."""
BRIGHT_LIMIT = 20.5
LAYER_SIZES = {"bright galaxies": 256, "faint galaxies": 768, "stars": 256}
LATITUDE = 60.0
"""Galactic, degrees, typical of surveys that look out of the Galaxy."""
LEAST_FLUX = 1e-3
"""r flux, nanomaggies, that a neighbour must send into a fibre, or else it is left out of it: magnitude 30."""
ARCSEC_PER_DEGREE = 3600.0
_SEED = 0x706F6F6C
_BATCH = 128


@dataclass(frozen=True, eq=False)
class _Members:
    """Of the pool, in its order: galaxies, then stars."""

    galaxies: Galaxies
    stars: Stars

    def spectra(self, rows: Int[np.ndarray, " N"], device: torch.device | str) -> Float[Tensor, "N P L"]:
        """Of each component of these members, 1e-17 erg/s/cm2/A."""
        light = torch.zeros(len(rows), len(SERSIC_INDICES), len(observed_wavelength()), device=device)
        is_star = rows >= len(self.galaxies)
        if not is_star.all():
            found = galaxy_spectra(self.galaxies.select(rows[~is_star]), device)
            light[torch.from_numpy(np.flatnonzero(~is_star)).to(device), :2] = found
        if is_star.any():
            chosen = rows[is_star] - len(self.galaxies)
            stars = Stars(**{f.name: getattr(self.stars, f.name)[chosen] for f in dataclasses.fields(Stars)})
            light[torch.from_numpy(np.flatnonzero(is_star)).to(device), 2] = star_spectra(stars, device)
        return light


@functools.cache
def neighbour_pool() -> Pool:
    """The pool: galaxies of both layers, then stars."""
    return _pool()[0]


def neighbours_of(
    seed: int,
    rows: Int[np.ndarray, " B"],
    magnitude: Float[np.ndarray, " B"],
    field_radius: float,
    close_probability: float = 0.05,
) -> Neighbours:
    """The neighbours, within `field_radius` arcsec, of objects of the sky `seed` with DECam r `magnitude`.

    An object has the same neighbours whatever the field, and whatever other rows are asked for.
    """
    pool = neighbour_pool()
    uniform = uniforms("neighbours", seed, rows, num_uniforms(pool, field_radius)).T
    return draw_neighbours(uniform, pool, magnitude, field_radius, close_probability=close_probability)


@functools.cache
def pool_flux(curves: tuple[str, ...]) -> Float[Tensor, "M P C"]:
    """Flux of each component of the pool's members through each filter curve, nanomaggies."""
    pool, members = _pool()
    weights = torch.from_numpy(photometry_weights([filter_curve(c) for c in curves], observed_wavelength())).float()
    parts = np.array_split(np.arange(len(pool)), -(-len(pool) // _BATCH))
    return torch.cat([members.spectra(rows, "cpu") @ weights.T for rows in parts])


def light_within(
    neighbours: Neighbours, aperture: float, psf_fwhm: float, device: torch.device | str = "cpu"
) -> Float[Tensor, "B L"]:
    """What neighbours add to the spectrum of the light within `aperture` arcsec of each object, 1e-17 erg/s/cm2/A.

    On `observed_wavelength()`, seen through a PSF of `psf_fwhm` arcsec.
    """
    pool, members = _pool()
    share = share_within(neighbours, pool, aperture, psf_fwhm)
    flux = magnitude_to_flux(pool.magnitude)[neighbours.row]
    objects, places = np.nonzero(share.max(-1) * flux > LEAST_FLUX)
    light = torch.zeros(len(neighbours), len(observed_wavelength()), device=device)
    spectra = members.spectra(neighbours.row[objects, places], device)
    inside = torch.from_numpy(share[objects, places]).to(spectra)
    return light.index_add_(0, torch.from_numpy(objects).to(device), torch.einsum("npl,np->nl", spectra, inside))


@functools.cache
def _pool() -> tuple[Pool, _Members]:
    bright = draw_galaxies(np.arange(LAYER_SIZES["bright galaxies"]), _SEED, BRIGHT_LIMIT)
    many = draw_galaxies(np.arange(2 * LAYER_SIZES["faint galaxies"]), _SEED + 1, FAINT_LIMIT)
    faint = many.select(np.flatnonzero(many.r_magnitude > BRIGHT_LIMIT)[: LAYER_SIZES["faint galaxies"]])
    both = {f.name: (getattr(bright, f.name), getattr(faint, f.name)) for f in dataclasses.fields(Galaxies)}
    galaxies = Galaxies(**{name: np.concatenate(parts) for name, parts in both.items()})
    stars, stars_density = _high_latitude_stars(LAYER_SIZES["stars"])
    to_bright, to_faint = (galaxies_per_square_degree(limit) for limit in (BRIGHT_LIMIT, FAINT_LIMIT))
    count = [len(bright), len(faint), len(stars)]
    density = np.repeat(np.array([to_bright, to_faint - to_bright, stars_density]) / count, count)
    points = ((0, len(stars)), (0, 1))
    pool = Pool(
        SERSIC_INDICES,
        magnitude=np.concatenate([galaxies.r_magnitude, stars.r_magnitude]),
        density=density / ARCSEC_PER_DEGREE**2,
        radius=np.pad(galaxies.radius, points),
        axis_ratio=np.pad(galaxies.axis_ratio, points, constant_values=1.0),
        position_angle=np.zeros(sum(count)),
        is_companion=np.arange(sum(count)) < len(galaxies),
    )
    return pool, _Members(galaxies, stars)


def _high_latitude_stars(count: int) -> tuple[Stars, float]:
    """Stars round the circle of LATITUDE, and how many there are on a square degree."""
    longitude, latitude = 360 * np.arange(count) / count, np.full(count, LATITUDE)
    along, up = np.radians(longitude), np.radians(latitude)
    x, y, z = GALACTIC_AXES.T @ np.stack([np.cos(up) * np.cos(along), np.cos(up) * np.sin(along), np.sin(up)])
    ra, dec = np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(z))
    stars = draw_stars(np.arange(count), _SEED, ra, dec, FAINT_LIMIT)
    return stars, float(stars_per_square_degree(longitude, latitude, (BRIGHTEST, FAINT_LIMIT)).mean())
