"""Scenes: what lies beside an object, by chance or as a close companion, and how much of its light gets mixed in.

Neighbours are objects of a pool that stands for the sky to some faint limit. They fall on the sky at random, with the
density of the pool, and are numbered by their distance from the object: so a wider view of an object shows the same
neighbours and some more, and every camera and fibre sees the same ones. Only the close ones
cluster.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .light_profiles import flux_within
from .render_images import Sources

CLOSE_SEPARATIONS = (0.5, 3.5)
"""Arcsec, of close companions; the density of pairs falls as separation^-0.8, as galaxies cluster (Davis &
Peebles 1983, ApJ 267, 465)."""
CLOSE_CONTRAST = (-1.0, 2.5)
"""Magnitudes by which a close companion is fainter than its object."""
_CLUSTERING = 0.8


@dataclass(frozen=True, eq=False)
class Pool:
    """M objects that may lie beside others, each with P components."""

    sersic_indices: tuple[float, ...]
    """Of the components, as `Sources` has them."""
    magnitude: Float[np.ndarray, " M"]
    """In the band in which close companions are chosen, AB."""
    density: Float[np.ndarray, " M"]
    """How many objects each stands for on a square arcsecond of the sky."""
    radius: Float[np.ndarray, "M P"]
    """Half-light radius along the major axis, arcsec."""
    axis_ratio: Float[np.ndarray, "M P"]
    position_angle: Float[np.ndarray, " M"]
    """Degrees from north through east; each neighbour is turned at random besides."""
    is_companion: Bool[np.ndarray, " M"]
    """Whether it may be a close companion: galaxies may, stars lie there by chance alone."""

    def __len__(self) -> int:
        return len(self.magnitude)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of B objects: K places for neighbours each, of which some are taken."""

    row: Int[np.ndarray, "B K"]
    """Which object of the pool it is."""
    is_present: Bool[np.ndarray, "B K"]
    offset: Float[np.ndarray, "B K 2"]
    """Place on the sky (north, east), arcsec from the object."""
    turn: Float[np.ndarray, "B K"]
    """Degrees by which it is turned."""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def number(self) -> Int[np.ndarray, " B"]:
        """How many neighbours each object has."""
        return self.is_present.sum(1)

    @property
    def distance(self) -> Float[np.ndarray, "B K"]:
        """Arcsec from the object."""
        return np.hypot(self.offset[..., 0], self.offset[..., 1])

    def select(self, rows: slice | np.ndarray) -> "Neighbours":
        """The neighbours of these objects."""
        return Neighbours(self.row[rows], self.is_present[rows], self.offset[rows], self.turn[rows])


def num_uniforms(pool: Pool, field_radius: float) -> int:
    """How many random numbers `draw_neighbours` needs for each object: enough but for one object in a million."""
    mean = math.pi * field_radius**2 * float(pool.density.sum())
    return _NUM_CLOSE + _NUM_EACH * math.ceil(mean + 6 * math.sqrt(mean) + 4)


def draw_neighbours(
    uniform: Float[np.ndarray, "B U"],
    pool: Pool,
    magnitude: Float[np.ndarray, " B"],
    field_radius: float,
    *,
    close_probability: float = 0.05,
) -> Neighbours:
    """Neighbours of B objects within `field_radius` arcsec: a function of each object's row of `uniform` and magnitude.

    `uniform` holds `num_uniforms` random numbers in [0, 1) for each object, those for a smaller field at the beginning.
    Besides the neighbours that chance puts there, an object has a close companion with `close_probability`: of
    CLOSE_SEPARATIONS, and from the pool the one next in magnitude to a drawn one. Raises ValueError if `uniform` is too
    narrow.
    """
    needed = num_uniforms(pool, field_radius)
    if uniform.shape[1] < needed:
        raise ValueError(
            f"uniform must hold {needed} numbers for each object, found {uniform.shape[1]}: the field of "
            f"{field_radius} arcsec has {math.pi * field_radius**2 * pool.density.sum():.1f} neighbours on average"
        )
    close, chance = uniform[:, :_NUM_CLOSE], uniform[:, _NUM_CLOSE:needed].reshape(len(uniform), -1, _NUM_EACH)
    # The areas of circles through one neighbour after the other grow by exponential steps.
    total = pool.density.sum()
    area = np.cumsum(-np.log1p(-chance[..., 0]), 1) / total
    distance = np.sqrt(area / math.pi)
    cumulative = np.cumsum(pool.density) / total
    row = np.searchsorted(cumulative, chance[..., 1], side="right").clip(max=len(pool) - 1)

    low, high = (separation ** (2 - _CLUSTERING) for separation in CLOSE_SEPARATIONS)
    near = (low + close[:, 1] * (high - low)) ** (1 / (2 - _CLUSTERING))
    wanted = magnitude + CLOSE_CONTRAST[0] + close[:, 2] * (CLOSE_CONTRAST[1] - CLOSE_CONTRAST[0])
    has_close = (close[:, 0] < close_probability) & np.isfinite(wanted)
    companion = _next_in_magnitude(pool, np.where(has_close, wanted, 0.0))

    distance = np.concatenate([near[:, None], distance], 1)
    angle = 2 * math.pi * np.concatenate([close[:, [3]], chance[..., 2]], 1)
    return Neighbours(
        row=np.concatenate([companion[:, None], row], 1),
        is_present=np.concatenate([has_close[:, None], area < math.pi * field_radius**2], 1),
        offset=distance[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1),
        turn=360 * np.concatenate([close[:, [4]], chance[..., 3]], 1),
    )


def neighbour_sources(neighbours: Neighbours, pool: Pool, flux: Float[Tensor, "M P C"]) -> Sources:
    """The neighbours as sources beside their objects; `flux` is that of the pool, and decides the device."""
    places = int(np.flatnonzero(neighbours.is_present.any(0)).max(initial=-1)) + 1
    row, is_present = neighbours.row[:, :places], neighbours.is_present[:, :places]

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(flux)

    index = torch.from_numpy(row).to(flux.device)
    num_components = flux.shape[1]
    shape = (len(neighbours), places, num_components)
    light = flux[index] * on_device(is_present)[..., None, None]
    angle = (pool.position_angle[row] + neighbours.turn[:, :places]) % 360
    return Sources(
        pool.sersic_indices * places,
        light.flatten(1, 2),
        on_device(pool.radius[row]).flatten(1),
        on_device(pool.axis_ratio[row]).flatten(1),
        on_device(angle)[..., None].expand(shape).flatten(1),
        on_device(neighbours.offset[:, :places])[:, :, None].expand(*shape, 2).flatten(1, 2),
    )


def share_within(neighbours: Neighbours, pool: Pool, aperture: float, psf_fwhm: float) -> Float[np.ndarray, "B K P"]:
    """Share of each neighbour's components that falls within `aperture` arcsec of the object: of a fibre, say.

    Seen through a PSF of `psf_fwhm` arcsec. Zero where there is none, and for those so far away that it must be tiny.
    """
    share = np.zeros((*neighbours.row.shape, len(pool.sersic_indices)))
    reach = aperture + 4 * psf_fwhm + 4 * pool.radius.max(1)[neighbours.row]
    objects, places = np.nonzero(neighbours.is_present & (neighbours.distance < reach))
    row = neighbours.row[objects, places]
    north, east = neighbours.offset[objects, places].T
    angle = np.radians(pool.position_angle[row] + neighbours.turn[objects, places])
    offset = np.stack([north * np.cos(angle) + east * np.sin(angle), east * np.cos(angle) - north * np.sin(angle)], 1)
    share[objects, places] = flux_within(
        aperture, pool.radius[row], pool.axis_ratio[row], psf_fwhm, pool.sersic_indices, offset
    )
    return share


def blended_fraction(
    share: Float[np.ndarray, "B K P"],
    neighbours: Neighbours,
    pool_flux: Float[np.ndarray, "M P C"],
    own_flux: Float[np.ndarray, "B C"],
) -> Float[np.ndarray, "B C"]:
    """How much of the light within an aperture is the neighbours': their `share_within` it, and the object's own flux.

    From 0 to 1 in each band; 0 where there is no light at all.
    """
    foreign = np.einsum("bkp,bkpc->bc", share, pool_flux[neighbours.row] * neighbours.is_present[..., None, None])
    total = foreign + own_flux
    return np.divide(foreign, total, out=np.zeros_like(total), where=total > 0)


_NUM_CLOSE = 5
_NUM_EACH = 4


def _next_in_magnitude(pool: Pool, wanted: Float[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    order = np.argsort(np.where(pool.is_companion, pool.magnitude, np.inf), kind="stable")[: pool.is_companion.sum()]
    ranked = pool.magnitude[order]
    above = np.searchsorted(ranked, wanted).clip(1, len(order) - 1)
    return order[np.where(wanted - ranked[above - 1] < ranked[above] - wanted, above - 1, above)]
