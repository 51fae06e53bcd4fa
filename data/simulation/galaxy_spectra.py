"""Noiseless spectra of simulated galaxies: a mix of templates, reddened, with emission lines, moved to a redshift.

Five templates (Blanton & Roweis 2007, arXiv astro-ph/0606170) carry the stars and their absorption lines, at 257 km/s
per pixel; their emission lines are kept apart, because they are narrower than that, and are drawn with each galaxy's
own width. Everything lies on grids that are even in the logarithm of wavelength, so a redshift is a shift. Wavelengths
are in vacuum. Light below Lyman alpha is dimmed by the gas between the galaxy and us.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..filters import FLUX_UNIT, TABLES_FOLDER
from .cosmology import SPEED_OF_LIGHT_KM_S, luminosity_distance
from .intergalactic import LYMAN_ALPHA, transmission
from .wavelength_grid import OBSERVED_RANGE, STEP, observed_wavelength, rest_wavelength, shift_to_observed

MAX_GALAXY_REDSHIFT = 3.0

_LINE_REACH = 51
"""Pixels on either side to which a line is drawn: five sigma of 300 km/s."""

EMISSION_LINES: tuple[float, ...] = (
    1906.68, 1908.73, 2326.1, 2796.35, 2803.53,
    3727.09, 3729.88, 3869.86, 3968.59, 4102.89, 4341.68, 4862.68, 4960.30, 5008.24, 5877.25, 6302.05, 6365.54, 6549.85,
    6564.61, 6585.27, 6718.29, 6732.67, 7137.77, 9071.1, 9533.2, 10052.6, 10833.3, 10941.1,
)  # fmt: skip
"""Vacuum wavelengths (angstrom): C III] twice, C II], Mg II twice, [O II] twice, [Ne III] twice, H delta, H gamma, H
beta, [O III] twice, He I, [O I] twice, [N II], H alpha, [N II], [S II] twice, [Ar III], [S III] twice, Pa delta, He I,
Pa gamma. Lyman alpha is not among them: how much of it escapes a galaxy does not follow from its stars."""

H_ALPHA = 6564.61
CENTIMETRES_PER_PARSEC = 3.0857e18
CALZETTI_RANGE = (1200.0, 22000.0)
"""Angstrom."""


@dataclass(frozen=True, eq=False)
class Templates:
    """The templates, for one solar mass of stars ever formed, seen from 10 pc."""

    wavelength: Float[np.ndarray, " R"]
    """Rest frame, angstrom, on the fine grid."""
    flux: Float[Tensor, "T R"]
    """Without lines, 1e-17 erg/s/cm2/A."""
    line_flux: Float[Tensor, "T M"]
    """Of EMISSION_LINES, 1e-17 erg/s/cm2."""
    blueness: Float[np.ndarray, " T"]
    """Logarithm of the mean flux in 3900-5300 A over that in 5600-6800 A."""
    mass_remaining: Float[np.ndarray, " T"]
    """Solar masses in stars and remnants today."""
    star_formation_rate: Float[np.ndarray, " T"]
    """Solar masses per year, from the H alpha luminosity as it leaves the template's dust: log SFR = log L - 41.27
    (Kennicutt & Evans 2012, ARA&A 50, 531)."""


@functools.cache
def templates() -> Templates:
    """The shipped templates, resampled by cubic splines to the fine grid, shifted by a whole number of its steps."""
    with np.load(TABLES_FOLDER / "galaxy_templates.npz", allow_pickle=False) as table:
        content = {name: np.asarray(table[name], np.float64) for name in table.files}
    wavelength = rest_wavelength(0.0, MAX_GALAXY_REDSHIFT)
    area = 4 * np.pi * (10 * CENTIMETRES_PER_PARSEC) ** 2
    spline = CubicSpline(np.log(content["wavelength"]), content["flux"], axis=1)
    return Templates(
        wavelength=wavelength,
        flux=torch.from_numpy(spline(np.log(wavelength)).clip(0) / FLUX_UNIT).float(),
        line_flux=torch.from_numpy(content["line_flux"] / FLUX_UNIT).float(),
        blueness=np.log(_mean_flux(content, 3900.0, 5300.0) / _mean_flux(content, 5600.0, 6800.0)),
        mass_remaining=content["mass_remaining"],
        star_formation_rate=10**-41.27 * area * content["line_flux"][:, EMISSION_LINES.index(H_ALPHA)],
    )


def calzetti_curve(wavelength: Float[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    """Attenuation at each rest wavelength (angstrom) over that at 5500 A: Calzetti et al. 2000 (ApJ 533, 682), eq. 4.

    Below 1200 A, where the paper has no data, the curve goes on as a straight line in wavelength with the slope that it
    has there, as is common use; Reddy et al. 2016 (ApJ 828, 107) find it lower, by a fifth at 950 A.
    """
    wavelength = np.asarray(wavelength, np.float64)
    low = CALZETTI_RANGE[0]
    (slope,) = np.diff(_calzetti(np.array([low, low + 1])))
    return _calzetti(np.maximum(wavelength, low)) + slope * (np.minimum(wavelength, low) - low)


def _calzetti(wavelength: np.ndarray) -> np.ndarray:
    inverse_micron = 1e4 / wavelength
    blue = 2.659 * (-2.156 + 1.509 * inverse_micron - 0.198 * inverse_micron**2 + 0.011 * inverse_micron**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 * inverse_micron) + 4.05
    return np.where(inverse_micron > 1 / 0.63, blue, red) / 4.05


def component_flux(
    mass_formed: Float[np.ndarray, "B P T"],
    attenuation: Float[np.ndarray, "B P"],
    redshift: Float[np.ndarray, " B"],
    line_dispersion: Float[np.ndarray, " B"],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "B P L"]:
    """Spectra of P components of B galaxies on `observed_wavelength()`, 1e-17 erg/s/cm2/A, computed on `device`.

    `mass_formed` in solar masses for each template, `attenuation` A_V in magnitudes, `line_dispersion` in km/s. Raises
    ValueError if a redshift lies outside (0, MAX_GALAXY_REDSHIFT].
    """
    outside = ~((redshift > 0) & (redshift <= MAX_GALAXY_REDSHIFT))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(f"redshift must lie in (0, {MAX_GALAXY_REDSHIFT}]; row {row} has {redshift[row]}")
    shape = templates()
    dilution = (1e-5 / luminosity_distance(redshift)) ** 2  # 1e-5 Mpc is 10 pc
    mass = _float(mass_formed * dilution[:, None, None], device)
    reddening = _float(attenuation, device)[..., None] * (-0.4 * np.log(10))

    rest = mass @ shape.flux.to(device)
    rest *= torch.exp(reddening * _float(calzetti_curve(shape.wavelength), device))
    spectra = shift_to_observed(rest, shape.wavelength, redshift) / _float(1 + redshift, device)[:, None, None]
    lines = mass @ shape.line_flux.to(device)
    lines *= torch.exp(reddening * _float(calzetti_curve(np.array(EMISSION_LINES)), device))
    _add_lines(spectra, lines, redshift, line_dispersion)
    is_distant = np.flatnonzero(LYMAN_ALPHA * (1 + redshift) > OBSERVED_RANGE[0])
    if len(is_distant):
        spectra[torch.from_numpy(is_distant).to(device)] *= transmission(redshift[is_distant]).to(device)[:, None]
    return spectra


def _add_lines(
    spectra: Float[Tensor, "B P L"],
    line_flux: Float[Tensor, "B P M"],
    redshift: Float[np.ndarray, " B"],
    line_dispersion: Float[np.ndarray, " B"],
) -> None:
    """Add Gaussian lines of `line_flux` (1e-17 erg/s/cm2), integrated over each pixel, to `spectra` in place."""
    wavelength = observed_wavelength()
    center = np.log(np.array(EMISSION_LINES) * (1 + redshift[:, None]) / wavelength[0]) / STEP
    width = line_dispersion / SPEED_OF_LIGHT_KM_S / STEP
    reach = max(_LINE_REACH, int(np.ceil(5 * width.max(initial=0.0))) + 1)
    pixel = np.rint(center).astype(np.int64)[..., None] + np.arange(-reach, reach + 1)
    edges = (np.arange(-reach, reach + 2) - 0.5 + np.rint(center)[..., None] - center[..., None]) / width[:, None, None]
    profile = torch.special.ndtr(_float(edges, spectra.device)).diff(dim=-1)
    inside = (pixel >= 0) & (pixel < len(wavelength))
    pixel = pixel.clip(0, len(wavelength) - 1)
    density = profile * _float(inside / (wavelength[pixel] * STEP), spectra.device)
    places = torch.from_numpy(pixel).to(spectra.device).flatten(1)
    for component in range(spectra.shape[1]):
        values = density * line_flux[:, component, :, None]
        spectra[:, component].scatter_add_(1, places, values.flatten(1))


def _mean_flux(content: dict[str, np.ndarray], low: float, high: float) -> np.ndarray:
    return content["flux"][:, (content["wavelength"] > low) & (content["wavelength"] < high)].mean(1)


def _float(array: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.asarray(array)).float().to(device)
