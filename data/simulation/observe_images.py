"""What a camera records of simulated objects, with PSF and depth of each object and band, noise and bad pixels."""

import functools

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..filters import filter_curve, magnitude_to_flux, photometry_weights
from ..instruments import ImagingInstrument
from ..modalities import Modality
from ..observations import ImageObservation
from .object_random import generators
from .render_images import POINT, Sources, render_images
from .sky_objects import SkyObjects
from .wavelength_grid import observed_wavelength

SERSIC_INDICES = (4.0, 1.0, POINT)
"""Of bulge, disc and point."""
SEEING_SCATTER = 0.10
"""Relative scatter of an object's PSF FWHM around the card's, common to all bands; half as much again for each band."""
DEPTH_SCATTER = 0.10
"""Scatter of an object's depth around the card's, magnitudes."""
SKY_BRIGHTNESS = ((4800, 22.0), (6400, 21.0), (7700, 20.2), (9000, 19.0), (9800, 18.2))
"""Dark sky, (angstrom, AB magnitude per square arcsec), typical of Cerro Tololo and Maunakea, rounded."""


def observe_images(objects: SkyObjects, modality: Modality, size: int) -> ImageObservation:
    """Images of `size` x `size` pixels in all bands of the camera, with noise and bad pixels.

    Each object has its own `psf_fwhm` and `depth`. Raises ValueError if a band of the card has no filter curve.
    """
    clean = noiseless_images(objects, modality, size)
    card = clean.card
    sky = clean.noise()[..., None, None] ** 2
    wavelengths, brightness = np.array(SKY_BRIGHTNESS).T
    sky_flux = magnitude_to_flux(np.interp([band.wavelength for band in card.bands], wavelengths, brightness))
    sky_flux *= card.pixel_scale**2
    # The source's own photons: as many sky photons make as much variance.
    variance = sky * (1 + clean.flux.clamp(min=0) / torch.from_numpy(sky_flux).float()[:, None, None])
    noise = np.empty(clean.flux.shape, np.float32)
    mask = np.ones(clean.flux.shape, bool)
    for row, rng in enumerate(generators(f"{modality.name} noise", objects.seed, objects.row)):
        rng.standard_normal(out=noise[row], dtype=np.float32)
        _spoil_pixels(rng, mask[row])
    deviation = torch.sqrt(variance)
    valid = torch.from_numpy(mask)
    flux = clean.flux + torch.from_numpy(noise) * deviation
    flux = torch.where(valid, flux, 300 * deviation)
    return _image(objects, modality, clean.psf_fwhm, clean.depth, flux, 1 / variance, valid)


def noiseless_images(objects: SkyObjects, modality: Modality, size: int) -> ImageObservation:
    """The images of `observe_images` before noise and bad pixels, with the same PSF and depth."""
    card = modality.card
    if not isinstance(card, ImagingInstrument):
        raise ValueError(f"expected a modality of kind image, found {modality.name}")
    curves = tuple(band.filter_curve or "" for band in card.bands)
    if "" in curves:
        raise ValueError(f"{modality.name}: band {card.bands[curves.index('')].name} has no filter_curve in its card")
    flux = band_flux(objects, curves)
    fwhm = np.tile([band.psf_fwhm for band in card.bands], (len(objects), 1))
    depth = np.tile([band.depth for band in card.bands], (len(objects), 1))
    for row, rng in enumerate(generators(f"{modality.name} conditions", objects.seed, objects.row)):
        common, *own = rng.standard_normal(1 + len(card.bands))
        fwhm[row] *= np.exp(SEEING_SCATTER * np.clip(common + 0.5 * np.array(own), -2, 3))
        depth[row] += DEPTH_SCATTER * rng.standard_normal(len(card.bands))
    psf_fwhm = torch.from_numpy(fwhm).float()
    radius, axis_ratio, angle = (
        torch.from_numpy(a).float().to(flux.device)
        for a in (objects.radius, objects.axis_ratio, objects.position_angle)
    )
    sources = Sources(
        sersic_indices=SERSIC_INDICES,
        flux=flux,
        radius=radius,
        axis_ratio=axis_ratio,
        position_angle=angle[:, None].expand(radius.shape),
        offset=torch.zeros(*radius.shape, 2, device=flux.device),
    )
    images = render_images(sources, psf_fwhm.to(flux.device), size=size, pixel_scale=card.pixel_scale)
    return _image(objects, modality, psf_fwhm, torch.from_numpy(depth).float(), images.cpu())


def band_flux(objects: SkyObjects, curves: tuple[str, ...]) -> Float[Tensor, "B P C"]:
    """True flux of each component through each filter curve, nanomaggies, on the device of the spectra."""
    return objects.spectra @ _weights(curves).T.to(objects.spectra.device)


@functools.cache
def _weights(curves: tuple[str, ...]) -> Float[Tensor, "C L"]:
    return torch.from_numpy(photometry_weights([filter_curve(c) for c in curves], observed_wavelength())).float()


def _image(
    objects: SkyObjects,
    modality: Modality,
    psf_fwhm: Float[Tensor, "B C"],
    depth: Float[Tensor, "B C"],
    flux: Float[Tensor, "B C H W"],
    inverse_variance: Float[Tensor, "B C H W"] | None = None,
    mask: Bool[Tensor, "B C H W"] | None = None,
) -> ImageObservation:
    assert isinstance(modality.card, ImagingInstrument)
    return ImageObservation(
        modality,
        objects.object_id,
        flux,
        [band.name for band in modality.card.bands],
        inverse_variance,
        mask,
        psf_fwhm=psf_fwhm,
        depth=depth,
        ra=objects.ra,
        dec=objects.dec,
    )


def _spoil_pixels(rng: np.random.Generator, mask: Bool[np.ndarray, "C H W"]) -> None:
    """Clear `mask` along the tracks of cosmic rays (0.3 an image) and, in one image of fifty, a column."""
    num_bands, height, width = mask.shape
    for band in np.repeat(np.arange(num_bands), rng.poisson(0.3, num_bands)):
        length, angle = rng.integers(2, 12), rng.uniform(0, np.pi)
        steps = np.arange(length)
        rows = (rng.integers(height) + np.rint(steps * np.sin(angle)).astype(int)).clip(0, height - 1)
        columns = (rng.integers(width) + np.rint(steps * np.cos(angle)).astype(int)).clip(0, width - 1)
        mask[band, rows, columns] = False
    for band in np.flatnonzero(rng.uniform(size=num_bands) < 0.02):
        mask[band, :, rng.integers(width)] = False
