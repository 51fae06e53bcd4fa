"""What may lie beside an object of the simulated sky: galaxies that stand for all those to 24th magnitude.

One pool serves all skies. It is drawn in two layers, so that the rare bright galaxies, among which close companions of
bright objects are chosen, are many enough; each galaxy stands for its layer's share of the density on the sky.
"""

import dataclasses
import functools

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..filters import filter_curve, photometry_weights
from .galaxies import MAGNITUDE_LIMITS, Galaxies, draw_galaxies, galaxies_per_square_degree, galaxy_spectra
from .light_profiles import POINT
from .object_random import uniforms
from .scene import Neighbours, Pool, draw_neighbours, num_uniforms, share_within
from .wavelength_grid import observed_wavelength

SERSIC_INDICES = (4.0, 1.0, POINT)
"""Of bulge, disc and point, the components of all objects."""
FAINT_LIMIT = MAGNITUDE_LIMITS[1]
"""DECam r, AB."""
BRIGHT_LIMIT = 20.5
LAYER_SIZES = {"bright": 256, "faint": 768}
LEAST_SHARE = 1e-3
"""Neighbours of which less than this enters a fibre are left out of it."""
_SEED = 0x706F6F6C
_BATCH = 128
ARCSEC_PER_DEGREE = 3600.0


@functools.cache
def neighbour_pool() -> tuple[Pool, Galaxies]:
    """The pool, and the galaxies that make it, in the same order."""
    bright = draw_galaxies(np.arange(LAYER_SIZES["bright"]), _SEED, BRIGHT_LIMIT)
    many = draw_galaxies(np.arange(2 * LAYER_SIZES["faint"]), _SEED + 1, FAINT_LIMIT)
    faint = many.select(np.flatnonzero(many.r_magnitude > BRIGHT_LIMIT)[: LAYER_SIZES["faint"]])
    both = {f.name: (getattr(bright, f.name), getattr(faint, f.name)) for f in dataclasses.fields(Galaxies)}
    galaxies = Galaxies(**{name: np.concatenate(parts) for name, parts in both.items()})
    to_bright, to_faint = (galaxies_per_square_degree(limit) for limit in (BRIGHT_LIMIT, FAINT_LIMIT))
    density = np.repeat([to_bright / len(bright), (to_faint - to_bright) / len(faint)], [len(bright), len(faint)])
    pool = Pool(
        SERSIC_INDICES,
        magnitude=galaxies.r_magnitude,
        density=density / ARCSEC_PER_DEGREE**2,
        radius=np.pad(galaxies.radius, ((0, 0), (0, 1))),
        axis_ratio=np.pad(galaxies.axis_ratio, ((0, 0), (0, 1)), constant_values=1.0),
        position_angle=np.zeros(len(galaxies)),
    )
    return pool, galaxies


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
    pool, _ = neighbour_pool()
    uniform = uniforms("neighbours", seed, rows, num_uniforms(pool, field_radius)).T
    return draw_neighbours(uniform, pool, magnitude, field_radius, close_probability=close_probability)


@functools.cache
def pool_flux(curves: tuple[str, ...]) -> Float[Tensor, "M P C"]:
    """Flux of each component of the pool's galaxies through each filter curve, nanomaggies."""
    _, galaxies = neighbour_pool()
    weights = torch.from_numpy(photometry_weights([filter_curve(c) for c in curves], observed_wavelength())).float()
    parts = [galaxies.select(slice(start, start + _BATCH)) for start in range(0, len(galaxies), _BATCH)]
    flux = torch.cat([galaxy_spectra(part) @ weights.T for part in parts])
    return torch.nn.functional.pad(flux, (0, 0, 0, 1))


def light_within(
    neighbours: Neighbours, aperture: float, psf_fwhm: float, device: torch.device | str = "cpu"
) -> Float[Tensor, "B L"]:
    """What neighbours add to the spectrum of the light within `aperture` arcsec of each object, 1e-17 erg/s/cm2/A.

    On `observed_wavelength()`, seen through a PSF of `psf_fwhm` arcsec.
    """
    pool, galaxies = neighbour_pool()
    share = share_within(neighbours, pool, aperture, psf_fwhm)[..., :2]
    objects, places = np.nonzero(share.max(-1) > LEAST_SHARE)
    light = torch.zeros(len(neighbours), len(observed_wavelength()), device=device)
    spectra = galaxy_spectra(galaxies.select(neighbours.row[objects, places]), device)
    inside = torch.from_numpy(share[objects, places]).to(spectra)
    return light.index_add_(0, torch.from_numpy(objects).to(device), torch.einsum("npl,np->nl", spectra, inside))
