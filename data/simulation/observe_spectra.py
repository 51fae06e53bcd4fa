"""What a spectrograph records of simulated objects: the light in its fibre, blurred, with noise and bad pixels."""

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..instruments import Spectrograph
from ..modalities import Modality
from ..observations import SpectrumObservation
from .light_profiles import flux_within
from .neighbour_pool import SERSIC_INDICES, light_within
from .object_random import generators
from .observe_images import DEPTH_SCATTER
from .scene import Neighbours
from .sky_objects import SkyObjects
from .spectrograph_response import noise_curves, response_matrix, sky_parts

MEAN_MOON = 0.3
"""Mean moonlight over the dark sky's continuum at 4500 A, exponentially distributed; the card's depth includes it."""
LINE_SCATTER = 0.3
"""Scatter of the variance of the sky's lines from exposure to exposure (natural logarithm)."""
FIBER_SEEING = 1.0
"""FWHM of the PSF on the fibres, arcsec: the convention of the Legacy Surveys' fibre fluxes."""


def observe_spectra(
    objects: SkyObjects, modality: Modality, neighbours: Neighbours | None = None
) -> SpectrumObservation:
    """Spectra through the fibre on the card's own wavelengths, with noise of sky and source and some bad pixels.

    What light of neighbours falls into the fibre is in the spectrum. The sky of each object has its own transparency,
    moonlight and strength of lines, which the noise follows.
    """
    flux = noiseless_spectra(objects, modality, neighbours)
    card = modality.card
    assert isinstance(card, Spectrograph)
    _, per_flux = noise_curves(card)
    continuum, lines, moonlight = sky_parts(card)
    noise = np.empty(flux.shape, np.float32)
    mask = np.ones(flux.shape, bool)
    quality, moon, glow = np.empty((3, len(objects), 1))
    for row, rng in enumerate(generators(f"{modality.name} noise", objects.seed, objects.row)):
        rng.standard_normal(out=noise[row], dtype=np.float32)
        quality[row] = 10 ** (-0.8 * DEPTH_SCATTER * rng.standard_normal())
        moon[row] = rng.exponential(MEAN_MOON)
        glow[row] = np.exp(LINE_SCATTER * rng.standard_normal() - LINE_SCATTER**2 / 2)
        _spoil_wavelengths(rng, mask[row])
    sky = continuum * (1 + moon * moonlight) / (1 + MEAN_MOON * moonlight) + lines * glow
    variance = quality * (sky + per_flux * flux.clip(0))
    deviation = np.sqrt(variance).astype(np.float32)
    return SpectrumObservation(
        modality,
        objects.object_id,
        flux=np.where(mask, flux + noise * deviation, 300 * deviation),
        wavelength=card.wavelength(),
        inverse_variance=np.where(mask, 1 / variance, 0.0),
        mask=mask,
        ra=objects.ra,
        dec=objects.dec,
    )


def noiseless_spectra(
    objects: SkyObjects, modality: Modality, neighbours: Neighbours | None = None
) -> Float[np.ndarray, "B L"]:
    """The spectra of `observe_spectra` before noise and bad pixels, 1e-17 erg/s/cm2/A."""
    card = modality.card
    if not isinstance(card, Spectrograph):
        raise ValueError(f"expected a modality of kind spectrum, found {modality.name}")
    inside = torch.from_numpy(np.float32(fiber_fractions(objects, card))).to(objects.spectra.device)
    through_fiber = torch.einsum("bpl,bp->bl", objects.spectra, inside)
    if neighbours is not None:
        through_fiber += light_within(neighbours, card.fiber_diameter / 2, FIBER_SEEING, objects.spectra.device)
    return np.ascontiguousarray((response_matrix(card) @ np.ascontiguousarray(through_fiber.cpu().numpy().T)).T)


def fiber_fractions(objects: SkyObjects, card: Spectrograph) -> Float[np.ndarray, "B P"]:
    """Share of each component's light that enters the spectrograph's fibre."""
    return flux_within(card.fiber_diameter / 2, objects.radius, objects.axis_ratio, FIBER_SEEING, SERSIC_INDICES)


def _spoil_wavelengths(rng: np.random.Generator, mask: Bool[np.ndarray, " L"]) -> None:
    """Clear `mask` at three cosmic rays of a few pixels and, in one spectrum of twenty, at a stretch of bad columns."""
    for start in rng.integers(len(mask), size=rng.poisson(3)):
        mask[start : start + rng.integers(1, 5)] = False
    if rng.uniform() < 0.05:
        start = rng.integers(len(mask))
        mask[start : start + rng.integers(50, 150)] = False
