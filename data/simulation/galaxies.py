"""A population of simulated galaxies: latent properties with shared causes, from which every modality follows.

Real galaxies of the SDSS give luminosity and mix of templates together. Each stands for a number of its kind in every
cubic megaparsec, is taken back in time by `galaxy_evolution`, and is put at a redshift at which a survey to
`magnitude_limit` would see it; how many are seen where decides how often it is drawn. The mix gives stellar
mass and star formation; these give the shape (`galaxy_shapes`), dust and line widths; one inclination shapes the image,
reddens the disc and widens the lines.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, magnitude_to_flux, photometry_weights
from .cosmology import comoving_distance, kiloparsec_per_arcsec, luminosity_distance
from .galaxy_evolution import passive_brightening, relative_density, star_formation_growth
from .galaxy_shapes import component_radii, draw_shapes, quiescence
from .galaxy_spectra import MAX_GALAXY_REDSHIFT, calzetti_curve, component_flux, templates
from .object_random import normals, uniforms
from .wavelength_grid import observed_wavelength

MIN_REDSHIFT = 0.01
MAGNITUDE_LIMITS = (14.0, 24.0)
"""Between these the limit may be chosen, DECam r, AB: few galaxies are brighter, and fainter ones are too far from
those that the tables know."""
LEAST_SPECIFIC_RATE = 1e-13
"""Per year; added to all, since a mix without H alpha still has a logarithm."""
MEAN_TILT = 2.01
"""Mean over random inclinations of what `_tilt` gives: the galaxies of the tables are seen from all sides."""
_MARGIN = 0.4
"""Magnitudes below the limit down to which candidates are tried, since scatter may brighten one."""


@dataclass(frozen=True, eq=False)
class Galaxies:
    """B simulated galaxies. Sizes are half-light radii along the major axis; P is bulge and disc, T the templates."""

    redshift: Float[np.ndarray, " B"]
    mass_formed: Float[np.ndarray, "B P T"]
    """Solar masses ever formed, for each template."""
    log_stellar_mass: Float[np.ndarray, " B"]
    """log10 of the solar masses in stars and remnants."""
    log_specific_star_formation_rate: Float[np.ndarray, " B"]
    """log10 per year: the rate that the H alpha line tells, over the stellar mass."""
    attenuation: Float[np.ndarray, "B P"]
    """A_V in magnitudes beyond the dust of the templates; below zero where there is less, as in a face-on disc."""
    r_magnitude: Float[np.ndarray, " B"]
    """Total DECam r magnitude, AB, by which the galaxy was chosen; that of its spectrum within 0.01."""
    bulge_fraction: Float[np.ndarray, " B"]
    """Share of the bulge in the same flux."""
    sersic_index: Float[np.ndarray, " B"]
    """Of the real galaxy that bulge and disc are to look like together."""
    radius: Float[np.ndarray, "B P"]
    """Arcsec."""
    axis_ratio: Float[np.ndarray, "B P"]
    inclination: Float[np.ndarray, " B"]
    """Of the disc, degrees; 0 is face-on."""
    line_dispersion: Float[np.ndarray, " B"]
    """Velocity dispersion of the emission lines, km/s."""

    def __len__(self) -> int:
        return len(self.redshift)

    def select(self, rows: slice | Sequence[int] | np.ndarray) -> "Galaxies":
        """The galaxies of these rows, in this order."""
        index = np.arange(len(self))[rows]
        return Galaxies(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


def draw_galaxies(rows: Int[np.ndarray, " B"], seed: int, magnitude_limit: float = 19.8) -> Galaxies:
    """The galaxies of these rows of the sky `seed`, all brighter than `magnitude_limit` in DECam r (AB).

    A row is the same galaxy in whatever company it is drawn. Raises ValueError if the limit is not in
    MAGNITUDE_LIMITS.
    """
    low, high = MAGNITUDE_LIMITS
    if not low <= magnitude_limit <= high:
        raise ValueError(f"magnitude_limit must lie in [{low}, {high}], found {magnitude_limit}")
    waiting = np.arange(len(rows))
    attempt = 0
    places: list[np.ndarray] = []
    drawn: list[Galaxies] = []
    while len(waiting) or not drawn:
        candidates = _draw_candidates(f"galaxy {attempt}", seed, rows[waiting], magnitude_limit)
        accepted = candidates.r_magnitude < magnitude_limit
        places.append(waiting[accepted])
        drawn.append(candidates.select(np.flatnonzero(accepted)))
        waiting = waiting[~accepted]
        attempt += 1
    order = np.argsort(np.concatenate(places))
    fields = dataclasses.fields(Galaxies)
    return Galaxies(**{f.name: np.concatenate([getattr(part, f.name) for part in drawn])[order] for f in fields})


def galaxy_spectra(galaxies: Galaxies, device: torch.device | str = "cpu") -> Float[Tensor, "B P L"]:
    """Noiseless spectra of all the light of each component on `observed_wavelength()`, 1e-17 erg/s/cm2/A."""
    light = galaxies.mass_formed * passive_brightening(galaxies.redshift)[:, None]
    return component_flux(light, galaxies.attenuation, galaxies.redshift, galaxies.line_dispersion, device)


def galaxies_per_square_degree(magnitude_limit: float) -> float:
    """How many galaxies brighter than `magnitude_limit` in DECam r (AB) there are on a square degree."""
    return float(_population(magnitude_limit - _MARGIN)[1][-1])


def _draw_candidates(purpose: str, seed: int, rows: Int[np.ndarray, " B"], magnitude_limit: float) -> Galaxies:
    choice, place, shape, bulge_roundness = uniforms(purpose, seed, rows, 4)
    scatter = normals(f"{purpose} scatter", seed, rows, 11)
    mass, redshift = _draw_mixes(choice, place, scatter[:6], magnitude_limit)
    known = templates()
    stellar_mass = mass @ known.mass_remaining
    log_mass = np.log10(stellar_mass)
    log_rate = np.log10(mass @ known.star_formation_rate / stellar_mass + LEAST_SPECIFIC_RATE)
    dead = quiescence(log_rate, redshift)

    shapes = draw_shapes(shape, scatter[9:], log_mass, redshift, log_rate)
    bulge_share = np.clip((shapes.sersic_index - 0.8) / 3.6 + 0.1 * scatter[6], 0.0, 0.95)
    components = _split(mass, bulge_share)
    thickness = np.clip(0.2 + 0.03 * scatter[7], 0.1, 0.3)
    cosine = np.sqrt(np.clip((shapes.axis_ratio**2 - thickness**2) / (1 - thickness**2), 0, 1))
    disc_ratio = np.sqrt(cosine**2 * (1 - thickness**2) + thickness**2)
    bulge_ratio = 1 - (0.2 + 0.4 * bulge_roundness) * (1 - shapes.axis_ratio)

    face_on = 0.1 * (stellar_mass / 1e10) ** 0.25 * (1 - 0.8 * dead) * np.exp(0.4 * scatter[8])
    disc_attenuation = np.clip(face_on * (_tilt(cosine) - MEAN_TILT), -0.5, 2.5)
    attenuation = np.stack([np.zeros(len(rows)), disc_attenuation], 1)
    flux = _selection_flux(components * passive_brightening(redshift)[:, None], attenuation, redshift)
    bulge_fraction = flux[:, 0] / flux.sum(1)

    rotation = 150 * (stellar_mass / 1e10) ** 0.25  # Tully & Fisher: v^4 grows with mass
    scale = kiloparsec_per_arcsec(redshift)
    return Galaxies(
        redshift=redshift,
        mass_formed=components,
        log_stellar_mass=log_mass,
        log_specific_star_formation_rate=log_rate,
        attenuation=attenuation,
        r_magnitude=flux_to_magnitude(flux.sum(1)),
        bulge_fraction=bulge_fraction,
        sersic_index=shapes.sersic_index,
        radius=np.maximum(component_radii(shapes.radius / scale, bulge_fraction), 0.02),
        axis_ratio=np.stack([bulge_ratio, disc_ratio], 1),
        inclination=np.degrees(np.arccos(cosine)),
        line_dispersion=np.clip(np.hypot(30.0, 0.5 * rotation * np.sqrt(1 - cosine**2)), 30, 300),
    )


def _tilt(cosine: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """How much more dust light passes in a disc of this cosine of the inclination than face-on."""
    return np.maximum(cosine, 0.15) ** -0.7


def _draw_mixes(
    choice: np.ndarray, place: np.ndarray, scatter: Float[np.ndarray, "6 B"], magnitude_limit: float
) -> tuple[Float[np.ndarray, "B T"], Float[np.ndarray, " B"]]:
    """Masses formed and redshifts of candidates; `scatter` makes no two galaxies of one mix the same."""
    redshifts, cumulative = _population(magnitude_limit)
    galaxy, cell = np.divmod(np.searchsorted(cumulative, choice * cumulative[-1], side="right"), len(redshifts) - 1)
    redshift = redshifts[cell] + place * (redshifts[cell + 1] - redshifts[cell])
    mass, dead, _ = _real_galaxies()
    mass = mass[galaxy] * star_formation_growth(redshift, dead[galaxy])
    return mass * np.exp(0.15 * scatter[:5] + 0.1 * scatter[5]).T, redshift


@functools.cache
def _real_galaxies() -> tuple[Float[np.ndarray, "N T"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The SDSS galaxies as they would be today: masses formed in each template, quiescence, and number per Mpc^3."""
    with np.load(TABLES_FOLDER / "galaxy_mixes.npz", allow_pickle=False) as table:
        mass, redshift, density = (np.asarray(table[n], np.float64) for n in ("mass_formed", "redshift", "density"))
    mass = mass / passive_brightening(redshift)
    known = templates()
    rate = np.log10(mass @ known.star_formation_rate / (mass @ known.mass_remaining) + LEAST_SPECIFIC_RATE)
    dead = quiescence(rate, redshift)
    return mass / star_formation_growth(redshift, dead), dead, density / relative_density(redshift, dead)


@functools.cache
def _population(magnitude_limit: float) -> tuple[Float[np.ndarray, " Z"], Float[np.ndarray, " cells"]]:
    """Edges of cells in redshift, and the cumulative number over (real galaxy, cell) on each square degree of sky."""
    redshifts = np.geomspace(MIN_REDSHIFT, MAX_GALAXY_REDSHIFT, 241)
    middle = (redshifts[1:] + redshifts[:-1]) / 2
    volume = np.diff(comoving_distance(redshifts) ** 3) / 3 * np.radians(1.0) ** 2
    mass, dead, density = _real_galaxies()
    kinds = np.broadcast_to(dead[:, None], (len(dead), len(middle)))
    at = np.broadcast_to(middle, kinds.shape)
    per_mass = np.exp(np.stack([_log_flux_per_mass(middle, np.zeros(len(middle)), t) for t in range(mass.shape[1])], 1))
    per_mass = per_mass * passive_brightening(middle)
    flux = np.einsum("nt,nzt,zt->nz", mass, star_formation_growth(at, kinds), per_mass)
    number = density[:, None] * relative_density(at, kinds) * volume
    (limit,) = magnitude_to_flux(np.array([magnitude_limit + _MARGIN]))
    return redshifts, np.where(flux > limit, number, 0.0).ravel().cumsum()


def _selection_flux(
    light: Float[np.ndarray, "B P T"], attenuation: Float[np.ndarray, "B P"], redshift: Float[np.ndarray, " B"]
) -> Float[np.ndarray, "B P"]:
    """DECam r flux of each component, nanomaggies, from a table: quick, and good to 0.01 magnitude."""
    flux = []
    for mass, dust in zip(light.transpose(1, 2, 0), attenuation.T, strict=True):
        per_mass = np.exp([_log_flux_per_mass(redshift, dust, template) for template in range(len(mass))])
        flux.append((mass * per_mass).sum(0))
    return np.stack(flux, 1)


def _log_flux_per_mass(
    redshift: Float[np.ndarray, " B"], attenuation: Float[np.ndarray, " B"], template: int
) -> Float[np.ndarray, " B"]:
    """Logarithm of the r flux (nanomaggies) of one solar mass in `template`, bilinear in ln(1 + z) and A_V."""
    x_grid, y_grid, table = _flux_table()
    x, y = np.log1p(redshift), np.clip(attenuation, y_grid[0], y_grid[-1])
    i = np.clip(np.searchsorted(x_grid, x) - 1, 0, len(x_grid) - 2)
    j = np.clip(np.searchsorted(y_grid, y) - 1, 0, len(y_grid) - 2)
    a, b = (x - x_grid[i]) / (x_grid[i + 1] - x_grid[i]), (y - y_grid[j]) / (y_grid[j + 1] - y_grid[j])
    values = table[template]
    near, far = (values[i, k] * (1 - a) + values[i + 1, k] * a for k in (j, j + 1))
    return near * (1 - b) + far * b - 2 * np.log(luminosity_distance(redshift))


@functools.cache
def _flux_table() -> tuple[Float[np.ndarray, " Z"], Float[np.ndarray, " A"], Float[np.ndarray, "T Z A"]]:
    """Grids of ln(1 + z) and A_V, and on them ln of the r flux times the luminosity distance (Mpc) squared."""
    x_grid = np.linspace(np.log1p(0.5 * MIN_REDSHIFT), np.log1p(MAX_GALAXY_REDSHIFT), 241)
    y_grid = np.linspace(-0.5, 2.5, 13)
    redshift = np.expm1(x_grid)
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    # Dust changes little over twenty pixels, which are half a percent in wavelength.
    first, stop = np.flatnonzero(weights)[[0, -1]] // 20 * 20 + [0, 20]
    middle = observed_wavelength()[first:stop].reshape(-1, 20).mean(1)
    curve = np.stack([calzetti_curve(middle / (1 + z)) for z in redshift])
    dust = 10 ** (-0.4 * y_grid[:, None, None] * curve)
    count = templates().flux.shape[0]
    table = np.empty((count, len(x_grid), len(y_grid)))
    zeros, width = np.zeros((len(x_grid), 1)), np.full(len(x_grid), 100.0)
    for template in range(count):
        unit = np.tile(np.eye(count)[template], (len(x_grid), 1, 1))
        light = component_flux(unit, zeros, redshift, width)[:, 0, first:stop].double().numpy() * weights[first:stop]
        binned = light.reshape(len(x_grid), -1, 20).sum(2)
        flux = np.einsum("zl,azl->za", binned, dust) * luminosity_distance(redshift)[:, None] ** 2
        table[template] = np.log(flux)
    return x_grid, y_grid, table


def _split(mass: Float[np.ndarray, "B T"], bulge_share: Float[np.ndarray, " B"]) -> Float[np.ndarray, "B P T"]:
    """Share each template's mass between bulge and disc: the redder a template, the higher the bulge's odds."""
    odds = (bulge_share / (1 - bulge_share))[:, None] * np.exp(0.5 - 1.5 * templates().blueness)
    share = odds / (1 + odds)
    return np.stack([mass * share, mass * (1 - share)], 1)
