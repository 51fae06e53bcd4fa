"""What a spectrograph does to a spectrum: blur and pixels as one sparse matrix, and the noise of sky and source.

The line-spread function is a Gaussian of the card's resolving power. The noise against wavelength follows the inverse
variance of real DESI spectra (sky continuum, OH lines, throughput), scaled so that the card's depth is met.
"""

import functools

import numpy as np
from jaxtyping import Float
from scipy.ndimage import median_filter
from scipy.sparse import csr_array
from scipy.special import ndtr

from ..filters import TABLES_FOLDER, ab_flux
from ..instruments import Spectrograph
from ..observations import FWHM_PER_SIGMA
from .wavelength_grid import STEP, observed_wavelength

SKY_BRIGHTNESS = 21.0
"""AB magnitude per square arcsec of the sky's continuum between its lines: Hanuschik 2003 (A&A 407, 1157), rounded."""
_REACH = 6.0
"""Sigmas to which the line-spread function is followed."""


@functools.cache
def response_matrix(card: Spectrograph) -> csr_array:
    """Matrix [L, fine] that turns flux on `observed_wavelength()` into flux on the card's own pixels.

    Each row is the Gaussian line-spread function, averaged over the pixel and integrated over each fine pixel; it adds
    to one. Raises ValueError if the card reaches beyond the simulated range.
    """
    fine, wavelength = observed_wavelength(), card.wavelength()
    if wavelength[0] * 0.99 < fine[0] or wavelength[-1] * 1.01 > fine[-1]:
        raise ValueError(
            f"{card.name} reaches from {wavelength[0]:.0f} to {wavelength[-1]:.0f} A; spectra are simulated from "
            f"{fine[0]:.0f} to {fine[-1]:.0f} A"
        )
    width = np.gradient(wavelength)
    sigma = wavelength / card.resolving_power_at(wavelength) / FWHM_PER_SIGMA
    reach = int(np.ceil(((_REACH * sigma + width) / (wavelength * STEP)).max()))
    nearest = np.rint(np.log(wavelength / fine[0]) / STEP).astype(np.int64)
    columns = nearest[:, None] + np.arange(-reach, reach + 1)
    edges = fine[0] * np.exp(STEP * (np.append(columns, columns[:, -1:] + 1, axis=1) - 0.5))
    below = _share_below(edges - wavelength[:, None], sigma[:, None], width[:, None])
    weights = np.diff(below, axis=1)
    weights /= weights.sum(1, keepdims=True)
    rows = np.arange(len(wavelength)).repeat(columns.shape[1])
    shape = (len(wavelength), len(fine))
    return csr_array((weights.ravel().astype(np.float32), (rows, columns.ravel())), shape=shape)


@functools.cache
def noise_curves(card: Spectrograph) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """Variance of each pixel from the sky, (1e-17 erg/s/cm2/A)^2, and the variance that each unit of flux adds.

    The median ratio of noise per angstrom to the flux of a source of the card's depth is one.
    """
    wavelength = card.wavelength()
    with np.load(TABLES_FOLDER / "sky_noise.npz", allow_pickle=False) as table:
        relative = np.interp(wavelength, table["wavelength"], np.float64(table["noise"]))
    scale = np.median(relative / ab_flux(wavelength, card.depth))
    variance = (relative / scale) ** 2 / np.gradient(wavelength)
    sky_flux = ab_flux(wavelength, SKY_BRIGHTNESS) * np.pi / 4 * card.fiber_diameter**2
    # Photons of the source are as noisy as those of the sky's continuum, not as those of its lines.
    return variance, median_filter(variance, 151, mode="nearest") / sky_flux


@functools.cache
def sky_parts(card: Spectrograph) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """The sky's variance of `noise_curves` in two: continuum and lines; and how moonlight adds to the continuum.

    Moonlight is as bright as the dark sky at 4500 A and falls with wavelength as scattered sunlight does, by the sky
    model of Krisciunas & Schaefer 1991 (PASP 103, 1033) and its colours, rounded.
    """
    variance, _ = noise_curves(card)
    continuum = np.minimum(median_filter(variance, 151, mode="nearest"), variance)
    return continuum, variance - continuum, (card.wavelength() / 4500) ** -2.5


def _share_below(offset: np.ndarray, sigma: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Cumulative distribution of a Gaussian convolved with a box, closed form."""

    def integral(x: np.ndarray) -> np.ndarray:
        return x * ndtr(x / sigma) + sigma * np.exp(-0.5 * (x / sigma) ** 2) / np.sqrt(2 * np.pi)

    return (integral(offset + width / 2) - integral(offset - width / 2)) / width
