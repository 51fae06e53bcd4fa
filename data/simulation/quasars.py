"""Simulated quasars: a luminosity function, power-law continua with emission lines and a Balmer continuum, a host.

Redshift and luminosity are drawn from the quasar luminosity function of Ross et al. 2013 (ApJ 773, 14), as far as a
survey to the limit sees it. Strengths and widths of the lines are those of the composite spectrum of Vanden Berk et al.
2001 (AJ 122, 549, Table 2), rounded, scattered from object to object, and weaker at high luminosity (Baldwin 1977, ApJ
214, 679). Broad absorption lines are left out.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..filters import filter_curve, magnitude_to_flux, photometry_weights
from .cosmology import comoving_distance, kiloparsec_per_arcsec, luminosity_distance
from .galaxy_evolution import passive_brightening
from .galaxy_shapes import component_radii, mean_radius
from .galaxy_spectra import MAX_GALAXY_REDSHIFT, component_flux, templates
from .intergalactic import LYMAN_ALPHA, LYMAN_LIMIT, forest, transmission
from .object_random import normals, uniforms
from .wavelength_grid import STEP, observed_wavelength, rest_wavelength

REDSHIFTS = (0.1, 4.8)
BRIGHTEST = 15.0
"""r magnitude; there are hardly any brighter ones."""
_ABSOLUTE = (-29.5, -20.0)
"""Absolute magnitudes in i, K-corrected to z = 2, between which quasars are drawn."""

CONTINUUM_SLOPE, SLOPE_SCATTER = -0.25, 0.25
"""Mean and scatter of d ln f_nu / d ln nu above Lyman alpha, before dust. Composites have -0.4 to -0.5 with dust
(Vanden Berk et al. 2001)."""
FAR_ULTRAVIOLET_SLOPE = -1.4
"""The same below Lyman alpha (Telfer et al. 2002, ApJ 565, 773: -1.6 with a scatter of 0.6 below 1200 A)."""
BALMER_CONTINUUM = 0.115
"""Balmer continuum at its edge over the power law there; within what Grandi 1982 (ApJ 255, 25) and others find."""
BALDWIN_SLOPE = -0.15
"""d log equivalent width / d log luminosity of the broad lines (Dietrich et al. 2002, ApJ 581, 912, rounded)."""
REFERENCE_LUMINOSITY = -26.0
"""Absolute magnitude at which the lines have the strengths below."""
EXTINCTION_SCALE = 0.018
"""Mean E(B-V) of the dust of the quasar itself, exponentially distributed, as in the Small Magellanic Cloud (Richards
et al. 2003, AJ 126, 1131; Hopkins et al. 2004, AJ 128, 1112)."""
HOST_MASS = 3e10
"""Solar masses in stars of a typical host, scattered by a factor of two."""


@dataclass(frozen=True)
class _Line:
    wavelength: float
    """Angstrom, in vacuum, where the composite has its peak."""
    equivalent_width: float
    """Angstrom, in the rest frame."""
    sigma: float
    """Angstrom."""
    is_broad: bool = True


LINES = (
    _Line(1033.0, 9.8, 7.8), _Line(1216.2, 70.0, 19.5), _Line(1239.9, 14.0, 10.0), _Line(1305.4, 1.7, 5.4),
    _Line(1336.6, 0.7, 3.9), _Line(1396.8, 8.1, 14.3), _Line(1546.2, 23.8, 14.3), _Line(1637.8, 2.5, 9.0),
    _Line(1664.7, 0.6, 5.3), _Line(1750.0, 0.5, 7.0), _Line(1857.0, 0.4, 5.0), _Line(1906.0, 21.2, 23.6),
    _Line(2076.6, 1.6, 19.0), _Line(2324.7, 2.0, 22.2), _Line(2800.3, 32.3, 35.0), _Line(4102.7, 5.1, 18.6),
    _Line(4346.4, 12.6, 20.3), _Line(4853.1, 46.2, 40.4), _Line(5877.3, 4.9, 23.5), _Line(6564.9, 195.0, 47.4),
    _Line(2422.5, 2.2, 7.9, False), _Line(3345.4, 0.4, 5.5, False), _Line(3426.8, 1.2, 6.3, False),
    _Line(3729.7, 1.6, 3.3, False), _Line(3869.8, 1.4, 5.3, False), _Line(4960.4, 3.5, 3.9, False),
    _Line(5008.2, 13.2, 6.0, False), _Line(6585.6, 2.0, 3.0, False), _Line(6718.9, 1.7, 3.2, False),
    _Line(6733.7, 1.5, 3.2, False),
)  # fmt: skip
"""Ly beta and O VI, Ly alpha, N V, O I, C II, Si IV, C IV, He II, O III], N III], Al III, C III], Fe III, C II], Mg II,
H delta, H gamma, H beta, He I, H alpha; then the narrow [Ne IV], [Ne V] twice, [O II], [Ne III], [O III] twice, [N II],
[S II] twice. Lyman alpha and N V share out their blend."""
IRON = ((2500.0, 26.0, 80.0), (2700.0, 23.0, 50.0), (2965.0, 23.0, 60.0), (3200.0, 23.0, 70.0), (4570.0, 23.0, 60.0),
        (5270.0, 23.0, 75.0))  # fmt: skip
"""Blends of iron lines, and whatever else fills those stretches: wavelength, equivalent width, sigma, angstrom. These,
the slope, the dust and the Balmer continuum were adjusted so that the mean colours at each redshift are those of
Richards et al. 2001 (AJ 121, 2308, Table 3)."""


@dataclass(frozen=True, eq=False)
class Quasars:
    """B simulated quasars. P is the host's bulge and disc; M runs over LINES, I over IRON."""

    redshift: Float[np.ndarray, " B"]
    absolute_magnitude: Float[np.ndarray, " B"]
    """In i, K-corrected to z = 2, AB."""
    r_magnitude: Float[np.ndarray, " B"]
    """Of the nucleus, DECam r, AB."""
    slope: Float[np.ndarray, " B"]
    """d ln f_nu / d ln nu from Lyman alpha to 5000 A."""
    line_strength: Float[np.ndarray, "B M"]
    """Equivalent widths over those of LINES."""
    line_width: Float[np.ndarray, "B M"]
    """Widths over those of LINES."""
    iron_strength: Float[np.ndarray, " B"]
    reddening: Float[np.ndarray, " B"]
    """E(B-V) of the quasar's own dust, magnitudes."""
    host_mass: Float[np.ndarray, "B P T"]
    """Solar masses formed in each template; zero beyond the redshift of the templates."""
    host_radius: Float[np.ndarray, "B P"]
    """Arcsec."""
    host_axis_ratio: Float[np.ndarray, " B"]
    row: Int[np.ndarray, " B"]
    """Of the sky; with the seed it decides the gas on the line of sight."""
    seed: Int[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.redshift)


def draw_quasars(rows: Int[np.ndarray, " B"], seed: int, magnitude_limit: float) -> Quasars:
    """The quasars of these rows of the sky `seed`, whose nuclei are brighter than `magnitude_limit` in DECam r."""
    choice, place, height, bulge_share, axis_ratio = uniforms("quasar", seed, rows, 5)
    scatter = normals("quasar scatter", seed, rows, 7 + len(LINES))
    redshifts, magnitudes, cumulative, apparent = _population(magnitude_limit)
    step_z, step_m = np.diff(redshifts), magnitudes[1] - magnitudes[0]
    cell = np.searchsorted(cumulative, choice * cumulative[-1], side="right")
    i, j = np.divmod(cell, len(magnitudes))
    redshift = redshifts[i] + place * step_z[i]
    offset = (height - 0.5) * step_m
    luminosity = 10 ** (-0.4 * (magnitudes[j] + offset - REFERENCE_LUMINOSITY))

    common, broad_width, iron, host, size = scatter[:5]
    is_broad = np.array([line.is_broad for line in LINES])
    strength = np.exp(0.3 * common[:, None] + 0.25 * scatter[7:].T)
    strength *= np.where(is_broad, luminosity[:, None] ** BALDWIN_SLOPE, np.exp(0.5 * scatter[5])[:, None])
    width = np.where(is_broad, np.exp(0.25 * broad_width)[:, None], 1.0)
    bulge = 0.4 + 0.5 * bulge_share
    mass, radius = _host(redshift, np.exp(0.6 * host), bulge, np.exp(0.3 * size))
    return Quasars(
        redshift=redshift,
        absolute_magnitude=magnitudes[j] + offset,
        r_magnitude=np.minimum(apparent[i, j] + offset, magnitude_limit),
        slope=CONTINUUM_SLOPE + SLOPE_SCATTER * np.clip(scatter[6], -2.5, 2.5),
        line_strength=strength,
        line_width=width,
        iron_strength=np.exp(0.35 * iron),
        reddening=-EXTINCTION_SCALE * np.log1p(-uniforms("quasar dust", seed, rows, 1)[0]),
        host_mass=mass,
        host_radius=radius,
        host_axis_ratio=0.5 + 0.5 * axis_ratio,
        row=rows,
        seed=np.full(len(rows), seed),
    )


def quasar_spectra(quasars: Quasars, device: torch.device | str = "cpu") -> Float[Tensor, "B 3 L"]:
    """Noiseless spectra on `observed_wavelength()`, 1e-17 erg/s/cm2/A: the host's bulge and disc, and the nucleus."""
    nucleus = _nuclei(quasars).to(device)
    flux = nucleus @ _r_weights().to(device)
    nucleus *= (torch.from_numpy(magnitude_to_flux(quasars.r_magnitude)).float().to(device) / flux)[:, None]
    has_host = np.flatnonzero(quasars.redshift < MAX_GALAXY_REDSHIFT)
    spectra = torch.zeros(len(quasars), 3, nucleus.shape[1], device=device)
    spectra[:, 2] = nucleus
    if len(has_host):
        redshift = quasars.redshift[has_host]
        light = quasars.host_mass[has_host] * passive_brightening(redshift)[:, None]
        none = np.zeros(light.shape[:2])
        host = component_flux(light, none, redshift, np.full(len(redshift), 150.0), device)
        spectra[torch.from_numpy(has_host).to(device), :2] = host
    return spectra


def _nuclei(quasars: Quasars) -> Float[Tensor, "B L"]:
    """Spectra of nuclei, to a factor."""
    spectra = np.empty((len(quasars), len(observed_wavelength())), np.float32)
    for row in range(len(quasars)):
        spectra[row] = _nucleus(
            quasars.redshift[row],
            quasars.slope[row],
            quasars.line_strength[row],
            quasars.line_width[row],
            quasars.iron_strength[row],
            quasars.reddening[row],
        )
    share = transmission(quasars.redshift).numpy()
    observed = observed_wavelength()
    for place in np.flatnonzero(LYMAN_ALPHA * (1 + quasars.redshift) > observed[0]):
        low, high = np.searchsorted(observed, np.array([LYMAN_LIMIT, LYMAN_ALPHA]) * (1 + quasars.redshift[place]))
        sky_row = quasars.row[place : place + 1]
        gas = normals("forest", int(quasars.seed[place]), sky_row, len(observed))[:high, 0]
        share[place, low:high] = forest(share[place, low:high].astype(np.float64), gas[low:])
    return torch.from_numpy(spectra * share)


def _nucleus(
    redshift: float,
    slope: float,
    strength: Float[np.ndarray, " M"],
    width: Float[np.ndarray, " M"],
    iron: float,
    dust: float,
) -> Float[np.ndarray, " L"]:
    """f_lambda of one nucleus on `observed_wavelength()`; the power law is one at Lyman alpha, before dust."""
    observed = observed_wavelength()
    grid, balmer, extinction = _rest_curves()
    first = round(np.log(observed[0] / (1 + redshift) / grid[0]) / STEP)
    here = slice(first, first + len(observed))  # smooth curves, to the nearest 15 km/s
    x = np.log(observed / (1216.0 * (1 + redshift)))
    continuum = np.exp(-(2 + slope) * np.maximum(x, 0) - (2 + FAR_ULTRAVIOLET_SLOPE) * np.minimum(x, 0))
    edge = BALMER_CONTINUUM * (3646.0 / 1216.0) ** -(2 + slope)
    spectrum = continuum + balmer[here] * (edge * iron)
    lines = [
        (line.wavelength, line.equivalent_width * s, line.sigma * w)
        for line, s, w in zip(LINES, strength, width, strict=True)
    ]
    blends = [(center, equivalent * iron, sigma) for center, equivalent, sigma in IRON]
    for center, equivalent, sigma in (*lines, *blends):
        ends = np.array([center - 6 * sigma, center + 6 * sigma]) * (1 + redshift)
        low, high = np.searchsorted(observed, ends)
        if low < high:
            offset = (observed[low:high] / (1 + redshift) - center) / sigma
            level = continuum[low:high] * (equivalent / (sigma * np.sqrt(2 * np.pi)))
            spectrum[low:high] += level * np.exp(-0.5 * offset**2)
    return spectrum * np.exp(extinction[here] * (-0.4 * np.log(10) * dust))


@functools.cache
def _rest_curves() -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Rest wavelengths; there the Balmer continuum over its value at the edge, and the extinction for one E(B-V).

    Gas at 15,000 K of an optical depth of one at the edge (Grandi 1982); dust of the Small Magellanic Cloud (Prevot et
    al. 1984, A&A 132, 389: nearly a power law).
    """

    def shape(wavelength: np.ndarray) -> np.ndarray:
        planck = wavelength**-5 / np.expm1(1.4388e8 / (wavelength * 15000))
        return planck * -np.expm1(-((wavelength / 3646) ** 3))

    rest = rest_wavelength(0.0, REDSHIFTS[1] + 0.2)
    # Above the edge the high Balmer lines take over and fall off within a few hundred angstrom.
    above = np.exp(-0.5 * ((rest - 3646) / 120) ** 2)
    balmer = np.where(rest < 3646, shape(np.minimum(rest, 3646)) / shape(np.array([3646.0])), above)
    return rest, balmer, 1.39 * (1e4 / rest) ** 1.2


def _host(
    redshift: Float[np.ndarray, " B"],
    mass_factor: Float[np.ndarray, " B"],
    bulge_share: Float[np.ndarray, " B"],
    size_factor: Float[np.ndarray, " B"],
) -> tuple[Float[np.ndarray, "B P T"], Float[np.ndarray, "B P"]]:
    """A galaxy with an old bulge and a disc of middle age: masses formed in each template, and radii in arcsec."""
    stellar = HOST_MASS * mass_factor
    old, young = 3, 2  # of the five templates: an old population, and a disc with star formation
    mass = np.zeros((len(redshift), 2, len(templates().mass_remaining)))
    mass[:, 0, old] = stellar * bulge_share / templates().mass_remaining[old]
    disc = stellar * (1 - bulge_share)
    mass[:, 1, old] = 0.8 * disc / templates().mass_remaining[old]
    mass[:, 1, young] = 0.2 * disc / templates().mass_remaining[young]
    radius = mean_radius(stellar, redshift, bulge_share > 0.6) * size_factor / kiloparsec_per_arcsec(redshift)
    return mass, np.maximum(component_radii(radius, bulge_share), 0.02)


@functools.cache
def _population(
    magnitude_limit: float,
) -> tuple[Float[np.ndarray, " Z"], Float[np.ndarray, " M"], Float[np.ndarray, " cells"], Float[np.ndarray, "z M"]]:
    """Edges in redshift, absolute magnitudes, cumulative number a square degree, and apparent r of each cell."""
    redshifts = np.linspace(*REDSHIFTS, 189)
    middle = (redshifts[1:] + redshifts[:-1]) / 2
    magnitudes = np.arange(_ABSOLUTE[0], _ABSOLUTE[1], 0.05) + 0.025
    volume = np.diff(comoving_distance(redshifts) ** 3) / 3 * np.radians(1.0) ** 2
    apparent = magnitudes + _r_magnitude_at(middle)[:, None]
    number = _luminosity_function(middle[:, None], magnitudes) * 0.05 * volume[:, None]
    number = np.where((apparent + 0.025 < magnitude_limit) & (apparent > BRIGHTEST), number, 0.0)
    return redshifts, magnitudes, number.ravel().cumsum(), apparent


def _luminosity_function(redshift: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Quasars per comoving Mpc^3 and magnitude: Ross et al. 2013, Table 8: luminosity evolution below z = 2.2, and
    falling density beyond (their fits to Stripe 82)."""
    near = redshift < 2.2
    knee = np.where(near, -22.85 - 2.5 * (1.241 * redshift - 0.249 * redshift**2), -26.57 - 0.809 * (redshift - 2.2))
    density = 10 ** np.where(near, -5.96, -5.93 - 0.689 * (redshift - 2.2))
    bright, faint = np.where(near, -3.37, -3.51), np.where(near, -1.16, -1.29)
    x = 0.4 * (magnitude - knee)
    return density / (10 ** (x * (bright + 1)) + 10 ** (x * (faint + 1)))


@functools.cache
def _mean_magnitudes() -> tuple[Float[np.ndarray, " z"], Float[np.ndarray, " z"]]:
    """Redshifts, and the r magnitude at each of a mean quasar whose absolute magnitude in i at z = 2 is zero."""
    redshifts = np.append(np.linspace(0.09, 4.9, 100), 2.0)
    weights = photometry_weights([filter_curve("decam2014-r"), filter_curve("sdss2010-i")], observed_wavelength())
    ones = np.ones(len(LINES))
    mean = np.stack([_nucleus(z, CONTINUUM_SLOPE, ones, ones, 1.0, EXTINCTION_SCALE) for z in redshifts])
    dilution = luminosity_distance(redshifts) ** 2 * (1 + redshifts)
    flux = (mean * transmission(redshifts).numpy()) @ weights.T / dilution[:, None]
    # At z = 2 the i flux of absolute magnitude zero is that of its distance modulus.
    modulus = 5 * np.log10(luminosity_distance(np.array([2.0]))[0] * 1e5)
    r = modulus - 2.5 * np.log10(flux[:, 0] / flux[-1, 1])
    return redshifts[:-1], r[:-1]


def _r_magnitude_at(redshift: Float[np.ndarray, " z"]) -> Float[np.ndarray, " z"]:
    return np.interp(redshift, *_mean_magnitudes())


@functools.cache
def _r_weights() -> Float[Tensor, " L"]:
    return torch.from_numpy(photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]).float()
