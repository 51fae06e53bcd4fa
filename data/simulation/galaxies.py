"""A population of simulated galaxies: latent properties with shared causes, from which every modality follows.

Real galaxies of the SDSS give luminosity and mix of templates together; each is put at a new redshift within the volume
in which a survey to `magnitude_limit` would see it (Schmidt 1968, ApJ 151, 393), so the result is a sample like DESI's
bright galaxies. The mix gives stellar mass and star formation; these give sizes, bulge, dust and line widths; one
inclination shapes the image, reddens the disc and widens the lines. Luminosities do not evolve.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ..filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, photometry_weights
from .cosmology import comoving_distance, kiloparsec_per_arcsec, redshift_at
from .galaxy_spectra import component_flux, observed_wavelength, templates

COMPONENTS = ("bulge", "disc")
SERSIC_INDICES = (4.0, 1.0)
"""Sersic index of each of COMPONENTS."""

MIN_REDSHIFT = 0.01
MAX_REDSHIFT = 0.8
SOURCE_MAGNITUDE_LIMIT = 17.77
"""r magnitude to which the SDSS galaxies are complete (Strauss et al. 2002, AJ 124, 1810)."""
LEAST_SPECIFIC_RATE = 1e-13
"""Per year; added to all, since a mix without H alpha still has a logarithm."""
BLOCK = 512
"""Candidates are drawn in blocks of this many, so that a larger draw begins with the objects of a smaller one."""


@dataclass(frozen=True, eq=False)
class Galaxies:
    """B simulated galaxies. Sizes are half-light radii along the major axis; P runs over COMPONENTS."""

    seed: int
    row: Int[np.ndarray, " B"]
    """Place in the draw of this seed; with the seed it decides all noise of the object."""
    ra: Float[np.ndarray, " B"]
    """Degrees, ICRS, as is dec."""
    dec: Float[np.ndarray, " B"]
    redshift: Float[np.ndarray, " B"]
    mass_formed: Float[np.ndarray, "B P T"]
    """Solar masses ever formed, for each template."""
    log_stellar_mass: Float[np.ndarray, " B"]
    """log10 of the solar masses in stars and remnants today."""
    log_specific_star_formation_rate: Float[np.ndarray, " B"]
    """log10 per year: the rate that the H alpha line tells, over the stellar mass."""
    attenuation: Float[np.ndarray, "B P"]
    """A_V in magnitudes, in addition to the dust of the templates."""
    bulge_fraction: Float[np.ndarray, " B"]
    """Share of the bulge in the observed DECam r flux."""
    r_magnitude: Float[np.ndarray, " B"]
    """True total DECam r magnitude, AB."""
    radius: Float[np.ndarray, "B P"]
    """Arcsec."""
    axis_ratio: Float[np.ndarray, "B P"]
    inclination: Float[np.ndarray, " B"]
    """Of the disc, degrees; 0 is face-on."""
    position_angle: Float[np.ndarray, " B"]
    """Of the major axis, degrees in [0, 180), from north (up) through east (left)."""
    line_dispersion: Float[np.ndarray, " B"]
    """Velocity dispersion of the emission lines, km/s."""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def object_id(self) -> tuple[str, ...]:
        """`sim-<seed>-<row>`."""
        return tuple(f"sim-{self.seed}-{row}" for row in self.row.tolist())

    def select(self, rows: slice | Sequence[int] | np.ndarray) -> "Galaxies":
        """The galaxies of these rows, in this order."""
        index = np.arange(len(self))[rows]
        return dataclasses.replace(
            self, **{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self) if f.name != "seed"}
        )


def draw_galaxies(num_objects: int, seed: int, magnitude_limit: float = 19.8) -> Galaxies:
    """Draw `num_objects` galaxies brighter than `magnitude_limit` in DECam r (AB).

    The same seed and limit give the same objects, and a larger draw begins with the objects of a smaller one. Raises
    ValueError if `num_objects` is not positive or the limit not in [14, 22].
    """
    if num_objects < 1:
        raise ValueError(f"num_objects must be positive, found {num_objects}")
    if not 14 <= magnitude_limit <= 22:
        raise ValueError(f"magnitude_limit must lie in [14, 22], found {magnitude_limit}")
    blocks: list[Galaxies] = []
    while sum(map(len, blocks)) < num_objects:
        candidates = _draw_block(seed, len(blocks), magnitude_limit)
        blocks.append(candidates.select(np.flatnonzero(candidates.r_magnitude < magnitude_limit)))
    joined = {
        f.name: np.concatenate([getattr(block, f.name) for block in blocks])[:num_objects]
        for f in dataclasses.fields(Galaxies)
        if f.name != "seed"
    }
    return Galaxies(seed, **(joined | {"row": np.arange(num_objects)}))


def component_spectra(galaxies: Galaxies) -> Float[Tensor, "B P L"]:
    """Noiseless spectra of all the light of each component on `observed_wavelength()`, 1e-17 erg/s/cm2/A."""
    return component_flux(galaxies.mass_formed, galaxies.attenuation, galaxies.redshift, galaxies.line_dispersion)


def _draw_block(seed: int, block: int, magnitude_limit: float) -> Galaxies:
    rng = np.random.default_rng([_GALAXIES_STREAM, seed, block])
    mass, redshift = _draw_mixes(rng, magnitude_limit)
    shape = templates()
    stellar_mass = mass @ shape.mass_remaining
    specific_rate = mass @ shape.star_formation_rate / stellar_mass + LEAST_SPECIFIC_RATE
    log_mass, log_rate = np.log10(stellar_mass), np.log10(specific_rate)
    quiescence = 1 / (1 + np.exp((log_rate + 11.0) / 0.25))

    index, axis_ratio, size_residual = _draw_shapes(rng, quiescence)
    bulge_share = np.clip((index - 0.8) / 3.6 + 0.1 * rng.standard_normal(BLOCK), 0.0, 0.95)
    components = _split(mass, bulge_share)
    bulge_mass = components[:, 0] @ shape.mass_remaining

    scale = kiloparsec_per_arcsec(redshift)[:, None]
    radius = _radius_kiloparsec(stellar_mass, bulge_mass, redshift) * 10 ** size_residual[:, None] / scale
    thickness = np.clip(0.2 + 0.03 * rng.standard_normal(BLOCK), 0.1, 0.3)
    cosine = np.sqrt(np.clip((axis_ratio**2 - thickness**2) / (1 - thickness**2), 0, 1))
    disc_ratio = np.sqrt(cosine**2 * (1 - thickness**2) + thickness**2)
    bulge_ratio = 1 - rng.uniform(0.2, 0.6, BLOCK) * (1 - axis_ratio)

    face_on = 0.1 * (stellar_mass / 1e10) ** 0.25 * (1 - 0.8 * quiescence) * np.exp(0.4 * rng.standard_normal(BLOCK))
    disc_attenuation = np.minimum(face_on / np.maximum(cosine, 0.15) ** 0.7, 2.5)
    attenuation = np.stack([np.zeros(BLOCK), disc_attenuation], 1)

    rotation = 150 * (stellar_mass / 1e10) ** 0.25  # Tully & Fisher: v^4 grows with mass
    line_dispersion = np.clip(np.hypot(30.0, 0.5 * rotation * np.sqrt(1 - cosine**2)), 30, 300)

    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    flux = component_flux(components, attenuation, redshift, line_dispersion).numpy() @ weights
    return Galaxies(
        seed=seed,
        row=np.arange(BLOCK),
        ra=rng.uniform(0, 360, BLOCK),
        dec=np.degrees(np.arcsin(rng.uniform(-1, 1, BLOCK))),
        redshift=redshift,
        mass_formed=components,
        log_stellar_mass=log_mass,
        log_specific_star_formation_rate=log_rate,
        attenuation=attenuation,
        bulge_fraction=flux[:, 0] / flux.sum(1),
        r_magnitude=flux_to_magnitude(flux.sum(1)),
        radius=np.maximum(radius, 0.05),
        axis_ratio=np.stack([bulge_ratio, disc_ratio], 1),
        inclination=np.degrees(np.arccos(cosine)),
        position_angle=rng.uniform(0, 180, BLOCK),
        line_dispersion=line_dispersion,
    )


_GALAXIES_STREAM = 0x67616C  # keeps these draws apart from the noise's, whose seeds begin with a hash of a modality


def _draw_mixes(rng: np.random.Generator, magnitude_limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Masses formed [BLOCK, T] and redshifts [BLOCK] of candidates.

    A galaxy's density is 1 over the volume in which the SDSS saw it; times the volume in which we look for it, that is
    its weight. We look half a magnitude deeper than asked, since scatter may brighten a galaxy.
    """
    mass, distance = _mixes(), _volume_limits(magnitude_limit + 0.5)
    nearest = comoving_distance(np.array([MIN_REDSHIFT]))
    weight = (distance**3 - nearest**3) / (_volume_limits(SOURCE_MAGNITUDE_LIMIT) ** 3 - nearest**3)
    chosen = rng.choice(len(mass), BLOCK, p=weight / weight.sum())
    uniform = rng.uniform(size=BLOCK)
    redshift = redshift_at(np.cbrt(nearest**3 + uniform * (distance[chosen] ** 3 - nearest**3)))
    # Scatter of the mix and of the luminosity, so that no two galaxies are the same.
    scatter = np.exp(0.15 * rng.standard_normal((BLOCK, mass.shape[1])) + 0.1 * rng.standard_normal((BLOCK, 1)))
    return mass[chosen] * scatter, redshift


@functools.cache
def _mixes() -> Float[np.ndarray, "N T"]:
    with np.load(TABLES_FOLDER / "galaxy_mixes.npz", allow_pickle=False) as table:
        return np.asarray(table["mass_formed"], np.float64)


@functools.cache
def _volume_limits(magnitude_limit: float) -> Float[np.ndarray, " N"]:
    """Comoving distance (Mpc) at which each real galaxy reaches `magnitude_limit` in DECam r."""
    mass = _mixes()
    redshifts = np.geomspace(MIN_REDSHIFT, MAX_REDSHIFT, 100)
    num_templates = mass.shape[1]
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    unit = np.tile(np.eye(num_templates), (len(redshifts), 1))[:, None]
    zeros = np.zeros((len(unit), 1))
    spectra = component_flux(unit, zeros, redshifts.repeat(num_templates), zeros[:, 0] + 100)[:, 0]
    flux = mass @ (spectra.numpy() @ weights).reshape(-1, num_templates).T
    limit = 10 ** (0.4 * (22.5 - magnitude_limit))
    # Flux falls with redshift; interpolate its logarithm, and keep the limit a little beyond the nearest redshift.
    limits = [np.interp(-np.log(limit), -np.log(row), np.log(redshifts)) for row in flux]
    distance = comoving_distance(np.exp(np.array(limits)))
    return np.maximum(distance, 1.05 * comoving_distance(np.array([MIN_REDSHIFT])))


def _draw_shapes(rng: np.random.Generator, quiescence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sersic index, axis ratio and residual size (dex), each galaxy's from one galaxy of 3D-HST of its kind."""
    index, axis_ratio, residual = _shapes()
    concentrated = index > 2.0
    is_spheroid = rng.uniform(size=BLOCK) < 0.15 + 0.75 * quiescence
    rows = np.where(
        is_spheroid,
        rng.choice(np.flatnonzero(concentrated), BLOCK),
        rng.choice(np.flatnonzero(~concentrated), BLOCK),
    )
    return index[rows], axis_ratio[rows], residual[rows]


@functools.cache
def _shapes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(TABLES_FOLDER / "galaxy_shapes.npz", allow_pickle=False) as table:
        index, radius, axis_ratio, redshift, magnitude = (
            np.asarray(table[name], np.float64)
            for name in ("sersic_index", "radius", "axis_ratio", "redshift", "magnitude")
        )
    # The residual of the size from a plane in magnitude and redshift, fitted to either kind, is its scatter.
    residual = np.empty(len(radius))
    for kind in (index > 2.0, index <= 2.0):
        plane = np.column_stack([np.ones(kind.sum()), magnitude[kind], np.log10(redshift[kind])])
        log_radius = np.log10(radius[kind])
        residual[kind] = log_radius - plane @ np.linalg.lstsq(plane, log_radius, rcond=None)[0]
    return index, axis_ratio, np.clip(residual, -0.4, 0.4)


def _split(mass: Float[np.ndarray, "B T"], bulge_share: Float[np.ndarray, " B"]) -> Float[np.ndarray, "B P T"]:
    """Share each template's mass between bulge and disc: the redder a template, the higher the bulge's odds."""
    odds = (bulge_share / (1 - bulge_share))[:, None] * np.exp(0.5 - 1.5 * templates().blueness)
    share = odds / (1 + odds)
    return np.stack([mass * share, mass * (1 - share)], 1)


def _radius_kiloparsec(
    stellar_mass: np.ndarray, bulge_mass: np.ndarray, redshift: np.ndarray
) -> Float[np.ndarray, "B P"]:
    """Half-light radii (kpc): late types for the disc, early types for the bulge.

    Slopes and evolution are those of van der Wel et al. 2014 (ApJ 788, 28), the sizes today those of the SDSS (Shen et
    al. 2003, MNRAS 343, 978), rounded. Early types flatten below 2e10 solar masses; a bulge is no larger than its disc.
    """
    disc = 6.0 * (1 + redshift) ** -0.75 * (stellar_mass / 5e10) ** 0.22
    mass, today = np.maximum(bulge_mass, 1e7), 4.5 * (1 + redshift) ** -1.48
    steep = today * (mass / 5e10) ** 0.75
    flat = today * 0.4**0.75 * (mass / 2e10) ** 0.2
    bulge = np.where(bulge_mass > 2e10, steep, flat)
    return np.stack([np.minimum(bulge, np.where(bulge_mass > 0.6 * stellar_mass, np.inf, disc)), disc], 1)
