"""Structure of discs: bars, spiral arms and clumps of star formation as knots, dust lanes of edge-on discs.

A disc's light has two populations. The old one is the smooth exponential, with a bar and faint arms in it; the young
one is arms and clumps, and bluer. Both are parts of the disc's flux in each band, so photometry does not change. Late
types have more young light; at low mass and at high redshift it lies in clumps rather than arms. The choices of
numbers are ours, rounded, and follow the trends of the literature named at each.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import expit, gammaincinv, logit, ndtri

from .galaxy_shapes import quiescence
from .render_images import Knots, Sources

GROUPS = ("bar", "arms", "clumps")
GROUP_SIZES = (12, 240, 96)
_MAX_ARMS = 8
_NUM_ASSOCIATIONS = 6
NUM_UNIFORMS = 18 + 2 * (_MAX_ARMS + _NUM_ASSOCIATIONS) + 4 * sum(GROUP_SIZES[1:]) + sum(GROUP_SIZES)
"""Random numbers that decide the structure of one disc."""

SCALE_LENGTH = 1 / 1.678
"""Of an exponential disc, in half-light radii."""
REFERENCE_WAVELENGTH = 5500.0
"""Angstrom in the rest frame, at which young light and dust lanes are stated."""
YOUNG_SLOPE = 2.4
"""The odds of young light grow as wavelength to minus this."""
KNOT_HEIGHT = 0.06
"""Scatter of knots about the disc's plane, half-light radii."""
LANE_THICKNESS = 0.35
"""Of a dust lane, in thicknesses of its disc."""
DEEPEST_LANE = 0.85 * LANE_THICKNESS / (1 - LANE_THICKNESS)
"""Light taken by a lane, in fluxes of the smooth disc, that leaves 15 % of its middle: a thinner disc of equal length
and flux is brighter by 1 / LANE_THICKNESS, and what it takes is given back to the disc as a whole."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Of the discs of B galaxies. Lengths are half-light radii; shares of each population run over GROUPS."""

    position: Float[np.ndarray, "B K 2"]
    """Of each knot as seen on the sky: along the disc's major axis, and across."""
    weight: Float[np.ndarray, "B K"]
    """Share of its group's light; each group's sum to 1."""
    sigma: Float[np.ndarray, "B G"]
    """Of the Gaussian knots of each group."""
    old_share: Float[np.ndarray, "B G"]
    """Share of the old population in each group; the rest is smooth."""
    young_share: Float[np.ndarray, "B G"]
    """Share of the young population in each group; they sum to 1."""
    young: Float[np.ndarray, " B"]
    """Share of the young population in the disc's light at REFERENCE_WAVELENGTH."""
    lane: Float[np.ndarray, " B"]
    """Light that the dust lane takes at REFERENCE_WAVELENGTH, in fluxes of the smooth disc; zero without one."""
    lane_offset: Float[np.ndarray, " B"]
    """Of the lane from the major axis on the sky, in half-light radii along the minor axis."""

    def __len__(self) -> int:
        return len(self.young)

    def select(self, rows: slice | np.ndarray) -> "Structure":
        """The structure of these galaxies."""
        return dataclasses.replace(self, **{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


def draw_structure(
    uniform: Float[np.ndarray, "B U"],
    *,
    log_stellar_mass: Float[np.ndarray, " B"],
    log_specific_star_formation_rate: Float[np.ndarray, " B"],
    redshift: Float[np.ndarray, " B"],
    bulge_fraction: Float[np.ndarray, " B"],
    inclination: Float[np.ndarray, " B"],
) -> Structure:
    """The structure of B galaxies: each is a function of its row of `uniform` and its properties alone.

    `uniform` holds NUM_UNIFORMS random numbers in [0, 1) for each. Mass in solar masses, rate per year, inclination in
    degrees; where one of them is NaN, as for a star, there is no structure. Raises ValueError if `uniform` has another
    width.
    """
    if uniform.shape[1] != NUM_UNIFORMS:
        raise ValueError(f"uniform must hold {NUM_UNIFORMS} numbers for each galaxy, found {uniform.shape[1]}")
    draws = _Draws(uniform)
    properties = (log_stellar_mass, log_specific_star_formation_rate, redshift, bulge_fraction, inclination)
    has_disc = np.isfinite(np.stack(properties)).all(0)
    log_stellar_mass, rate, redshift, bulge_fraction, inclination = (np.where(has_disc, p, 0.0) for p in properties)
    is_forming = np.where(has_disc, 1 - quiescence(rate, redshift), 0.0)
    activity = np.clip(rate + 10.0, -1.0, 1.0)
    # Low-mass galaxies have no arms; at z > 1 about half of the star-forming are clumpy (Guo et al. 2015, ApJ 800, 39).
    irregular = expit((9.3 - log_stellar_mass) / 0.25) + 0.6 * expit((redshift - 1.2) / 0.2)
    is_irregular = draws.one() < irregular

    young = np.clip(0.3 + 0.15 * activity + 0.08 * draws.normal() + 0.1 * is_irregular, 0.05, 0.65) * is_forming
    in_clumps = 0.3 + 0.15 * activity + 0.2 * np.minimum(redshift, 1.5) + 0.3 * is_irregular + 0.1 * draws.normal()
    in_clumps = np.clip(in_clumps, 0.1, 0.85)

    has_bar = (draws.one() < 0.29) & ~is_irregular & has_disc  # Masters et al. 2011, MNRAS 411, 2026
    bar_length = draws.between(0.35, 0.75)
    bar_angle = draws.between(0.0, math.pi)
    bar_share = np.where(has_bar, draws.between(0.1, 0.28), 0.0)

    arms = _draw_arms(draws, np.where(has_bar, bar_length, 0.0), bar_angle, bulge_fraction)
    old_arms = np.where(is_irregular, 0.15, draws.between(0.1, 0.3)) * is_forming
    bar = _bar_knots(bar_length, bar_angle)
    centers = _draw_associations(draws)
    arm_knots = _young_knots(draws, arms, is_irregular, centers, GROUP_SIZES[1], loose=0.06, is_clump=False)
    clump_knots = _young_knots(draws, arms, is_irregular, centers, GROUP_SIZES[2], loose=0.12, is_clump=True)
    plane, weight = (np.concatenate(parts, 1) for parts in zip(bar, arm_knots, clump_knots, strict=True))
    tilt = np.radians(inclination)[:, None]
    height = KNOT_HEIGHT * ndtri(draws.many(sum(GROUP_SIZES)))
    across = plane[..., 1] * np.cos(tilt) + height * np.sin(tilt)

    clump_size = np.where(is_irregular, 0.08, 0.035) * np.exp(0.3 * draws.normal())
    sigma = np.stack([0.28 * bar_length, np.where(is_irregular, 0.2, 0.085), clump_size], 1)
    none = np.zeros(len(young))
    thin = np.clip((inclination - 77) / 6, 0, 1) * is_forming * ~is_irregular
    return Structure(
        position=np.stack([plane[..., 0], across], -1),
        weight=weight,
        sigma=sigma,
        old_share=np.stack([bar_share, old_arms * (1 - bar_share), none], 1),
        young_share=np.stack([none, 1 - in_clumps, in_clumps], 1),
        young=young * (1 - 0.7 * thin),  # hidden behind the lane
        lane=thin * draws.between(0.1, 0.45),
        lane_offset=draws.between(-0.4, 0.4) * np.cos(np.radians(inclination)),
    )


def group_shares(
    structure: Structure, rest_wavelength: Float[np.ndarray, "B C"]
) -> tuple[Float[np.ndarray, "B C"], Float[np.ndarray, "B G C"], Float[np.ndarray, "B C"]]:
    """Shares of the disc's flux at each rest wavelength (angstrom): smooth, in each group, and taken by the dust lane.

    Smooth and groups sum to 1. What the lane takes is given back to the smooth disc.
    """
    ratio = np.clip(rest_wavelength, 1500, 15000) / REFERENCE_WAVELENGTH
    young = expit(logit(structure.young)[:, None] - YOUNG_SLOPE * np.log(ratio))[:, None]
    groups = young * structure.young_share[..., None] + (1 - young) * structure.old_share[..., None]
    smooth = 1 - groups.sum(1)
    return smooth, groups, smooth * np.minimum(structure.lane[:, None] / ratio, DEEPEST_LANE)


def with_structure(
    sources: Sources, column: int, structure: Structure, rest_wavelength: Float[np.ndarray, "B C"]
) -> tuple[Sources, Knots]:
    """The sources with the structure of their discs (`column`): part of its flux in knots, and dust lanes.

    The flux of each image in each band remains what it was. One column is added, for the lanes.
    """
    flux = sources.flux[:, column]
    smooth, groups, lane = (torch.from_numpy(a).to(flux) for a in group_shares(structure, rest_wavelength))
    changed = sources.flux.clone()
    changed[:, column] = flux * (smooth + lane)
    angle = torch.deg2rad(sources.position_angle[:, column])
    # The minor axis points right of north by a quarter turn; the lane lies off the middle of an inclined disc.
    shift = sources.radius[:, column] * torch.from_numpy(structure.lane_offset).to(flux)
    across = torch.stack([torch.sin(angle), -torch.cos(angle)], -1) * shift[:, None]
    lanes = Sources(
        (sources.sersic_indices[column],),
        -(flux * lane)[:, None],
        sources.radius[:, column : column + 1],
        LANE_THICKNESS * sources.axis_ratio[:, column : column + 1],
        sources.position_angle[:, column : column + 1],
        sources.offset[:, column : column + 1] + across[:, None],
    )
    knots = Knots(
        column,
        GROUP_SIZES,
        torch.from_numpy(structure.position).to(flux),
        torch.from_numpy(structure.weight).to(flux),
        torch.from_numpy(structure.sigma).to(flux),
        flux[:, None] * groups,
    )
    return dataclasses.replace(sources, flux=changed).join(lanes), knots


class _Draws:
    """Hands out the columns of a table of uniform numbers, one after the other."""

    def __init__(self, uniform: Float[np.ndarray, "B U"]) -> None:
        self._uniform = uniform.clip(1e-7, 1 - 1e-7)
        self._next = 0

    def many(self, count: int) -> Float[np.ndarray, "B count"]:
        self._next += count
        return self._uniform[:, self._next - count : self._next]

    def one(self) -> Float[np.ndarray, " B"]:
        return self.many(1)[:, 0]

    def between(self, low: float, high: float) -> Float[np.ndarray, " B"]:
        return low + (high - low) * self.one()

    def normal(self) -> Float[np.ndarray, " B"]:
        return ndtri(self.one())


@dataclass(frozen=True, eq=False)
class _Arms:
    """Logarithmic spirals: angle = start_angle + sense * ln(radius / start) / tan(pitch), for A arms (or pieces)."""

    num: Float[np.ndarray, " B"]
    start: Float[np.ndarray, "B A"]
    end: Float[np.ndarray, "B A"]
    start_angle: Float[np.ndarray, "B A"]
    strength: Float[np.ndarray, "B A"]
    slope: Float[np.ndarray, " B"]
    """Radians for each e-folding of radius: the sense of winding over tan(pitch)."""


def _draw_arms(
    draws: _Draws,
    bar_length: Float[np.ndarray, " B"],
    bar_angle: Float[np.ndarray, " B"],
    bulge_fraction: Float[np.ndarray, " B"],
) -> _Arms:
    kind = draws.one()
    is_flocculent = kind > 0.75
    # Two arms in half, three to five in a quarter, eight short pieces in the others: two are the commonest number, but
    # no majority (Hart et al. 2016, MNRAS 461, 3663).
    num = np.where(kind < 0.5, 2.0, np.where(is_flocculent, _MAX_ARMS, np.floor(draws.between(3.0, 6.0))))
    # Tight in early types, open in late ones (Kennicutt 1981, AJ 86, 1847).
    pitch = np.radians(np.clip(24 - 22 * bulge_fraction + 5 * draws.normal(), 8, 38))
    sense = np.where(draws.one() < 0.5, -1.0, 1.0)
    inner = np.where(bar_length > 0, bar_length, draws.between(0.3, 0.6))[:, None]
    phase = np.where(bar_length > 0, bar_angle, 2 * math.pi * draws.one())[:, None]
    jitter, unevenness = draws.many(_MAX_ARMS), draws.many(_MAX_ARMS)
    place = np.arange(_MAX_ARMS) / num[:, None]
    regular = phase + 2 * math.pi * (place + 0.12 * (jitter - 0.5) * (num > 2)[:, None])
    slope = sense / np.tan(pitch)
    piece_start = 0.35 + 1.6 * unevenness
    piece_end = piece_start * np.exp(1.6 * np.tan(pitch))[:, None]
    short = is_flocculent[:, None]
    return _Arms(
        num=num,
        start=np.where(short, piece_start, inner),
        end=np.where(short, piece_end, 2.6 + 0.8 * (unevenness - 0.5)),
        start_angle=np.where(short, 2 * math.pi * (place + jitter), regular),
        strength=np.where(short, 1.0, 0.6 + 0.8 * unevenness),
        slope=slope,
    )


def _draw_associations(draws: _Draws) -> Float[np.ndarray, "B A 2"]:
    """Places in an exponential disc, all a little to one side, round which the young light of an irregular lies."""
    radius = np.minimum(SCALE_LENGTH * gammaincinv(2.0, draws.many(_NUM_ASSOCIATIONS)), 1.5)
    angle = 2 * math.pi * draws.many(_NUM_ASSOCIATIONS)
    side = 2 * math.pi * draws.one()[:, None]
    return np.stack([radius * np.cos(angle) + 0.2 * np.cos(side), radius * np.sin(angle) + 0.2 * np.sin(side)], -1)


def _young_knots(
    draws: _Draws,
    arms: _Arms,
    is_irregular: Bool[np.ndarray, " B"],
    centers: Float[np.ndarray, "B A 2"],
    count: int,
    *,
    loose: float,
    is_clump: bool,
) -> tuple[Float[np.ndarray, "B K 2"], Float[np.ndarray, "B K"]]:
    """Knots along arms, or round the associations of an irregular galaxy: their places and shares of light.

    Along arms they are evenly spread in radius, as bright as an exponential disc is in an arm that widens; `loose` is
    their scatter in ln radius and angle. Clumps have the luminosity function of H II regions besides, dN / dL ~ L^-2
    (Kennicutt et al. 1989, ApJ 337, 761), over a factor of 100.
    """
    along, sideways, around, brightness = (draws.many(count) for _ in range(4))
    num = arms.num[:, None].astype(int)
    which, rank = np.arange(count) % num, np.arange(count) // num
    share = np.minimum((rank + along) / np.ceil(count / num), 1.0)
    start, end, angle, strength = (
        np.take_along_axis(a, which, 1) for a in (arms.start, arms.end, arms.start_angle, arms.strength)
    )
    radius = start + share * (end - start)
    angle = angle + arms.slope[:, None] * np.log(radius / start) + loose * ndtri(around)
    fading = np.minimum(1, 5 * share) * np.minimum(1, 2 * (1 - share))
    weight = strength * fading * radius * np.exp(-radius / SCALE_LENGTH)
    radius = radius * np.exp(loose * ndtri(sideways))
    position = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)

    nearest = np.take_along_axis(centers, np.arange(count)[None, :, None] % _NUM_ASSOCIATIONS, 1)
    scattered = nearest + 0.4 * np.stack([ndtri(sideways), ndtri(around)], -1)
    position = np.where(is_irregular[:, None, None], scattered, position)
    weight = np.where(is_irregular[:, None], np.exp(-np.hypot(scattered[..., 0], scattered[..., 1])), weight)
    weight = weight * (1 / np.maximum(brightness, 0.01) if is_clump else np.exp(0.45 * ndtri(brightness)))
    return position, weight / weight.sum(1, keepdims=True)


def _bar_knots(
    length: Float[np.ndarray, " B"], angle: Float[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, "B K 2"], Float[np.ndarray, "B K"]]:
    """Knots along a bar of half-length `length`, brighter towards the middle."""
    place = np.linspace(-1, 1, GROUP_SIZES[0])
    along = length[:, None] * place
    position = np.stack([along * np.cos(angle)[:, None], along * np.sin(angle)[:, None]], -1)
    weight = 1 - 0.5 * place**2
    return position, np.tile(weight / weight.sum(), (len(length), 1))
