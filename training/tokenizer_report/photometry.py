"""Flux and magnitude of the object of an image or a spectrum, measured alike on any version of its pixels."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data.instruments import LIGHT_SPEED
from ...data.observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ImageObservation, SpectrumObservation

APERTURE = 3.0
"""Radius within which the flux of an image's object is summed, arcsec."""
FLUX_WINDOW = (5500.0, 7000.0)
"""Wavelengths over which a spectrum's mean flux gives its magnitude, angstrom: about the r band."""
REFERENCE_WAVELENGTH = 6400.0
"""The band nearest to it gives the magnitude of an image's object, angstrom."""


def object_flux(
    observation: ImageObservation | SpectrumObservation,
    flux: Float[Tensor, "B *pixels"],
    seen: Bool[Tensor, "B *pixels"],
) -> Float[Tensor, "B C"]:
    """Flux of each object, float64: in each band within APERTURE, nanomaggies; or, C = 1, of the whole spectrum.

    The latter in 1e-17 erg/s/cm2. Pixels that are not seen add nothing, in whatever version of the pixels.
    """
    light = torch.where(seen, flux, 0.0).double()
    if isinstance(observation, ImageObservation):
        return (light * (distance_from_object(observation) <= APERTURE)[:, None]).sum((2, 3))
    # Width of each pixel; that of padding, whose wavelength is zero, is multiplied by no flux.
    width = torch.gradient(observation.wavelength, dim=1)[0].abs()
    return (light * width).sum(1, keepdim=True)


def object_magnitude(
    observation: ImageObservation | SpectrumObservation,
    flux: Float[Tensor, "B *pixels"],
    seen: Bool[Tensor, "B *pixels"],
) -> Float[Tensor, " B"]:
    """AB magnitude of each object, float64: of the band nearest REFERENCE_WAVELENGTH, or of the flux in FLUX_WINDOW.

    A spectrum that has no pixel in the window is taken as a whole. NaN for an object without positive flux.
    """
    if isinstance(observation, ImageObservation):
        wavelengths = torch.tensor([observation.card.band(band).wavelength for band in observation.bands])
        reference = int((wavelengths - REFERENCE_WAVELENGTH).abs().argmin())
        return magnitudes(object_flux(observation, flux, seen)[:, reference])
    inside = seen & (observation.wavelength >= FLUX_WINDOW[0]) & (observation.wavelength <= FLUX_WINDOW[1])
    chosen = torch.where(inside.any(1, keepdim=True), inside, seen).double()
    number = chosen.sum(1).clamp(min=1)
    density = (chosen * flux).sum(1) / number * 1e-17
    wavelength = (chosen * observation.wavelength).sum(1) / number
    return _log_flux(density * wavelength.square() / LIGHT_SPEED) - 48.6


def magnitudes(flux: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """AB magnitudes of fluxes in nanomaggies; NaN where the flux is not positive."""
    return _log_flux(flux) + UNITS_OF_FLUX_AT_ZERO_MAGNITUDE


def distance_from_object(images: ImageObservation) -> Float[Tensor, "B H W"]:
    """Distance of each pixel from the object, arcsec."""
    y, x = (torch.arange(size) - images.center[:, axis, None] for axis, size in enumerate(images.flux.shape[2:]))
    return torch.hypot(y[:, :, None], x[:, None, :]) * images.card.pixel_scale


def _log_flux(flux: Tensor) -> Tensor:
    return -2.5 * torch.where(flux > 0, flux, torch.nan).log10()
