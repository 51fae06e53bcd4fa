"""What a camera records of simulated objects, with PSF and depth of each object and band, noise and bad pixels.

A galaxy's disc has its structure in every camera, and neighbours lie where they lie.
"""

import functools

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..filters import filter_curve, magnitude_to_flux, photometry_weights
from ..instruments import ImagingInstrument
from ..modalities import Modality
from ..observations import ImageObservation
from .neighbour_pool import SERSIC_INDICES, neighbour_pool, pool_flux
from .object_random import generators, uniforms
from .real_background import NUM_UNIFORMS as NUM_PATCH_UNIFORMS
from .real_background import REAL_BANDS, REAL_MODALITY, cut_sky, hsc_sky
from .render_images import Knots, Sources, render_images
from .scene import Neighbours, neighbour_sources
from .sky_objects import COMPONENTS, SkyObjects
from .structure import NUM_UNIFORMS, draw_structure, with_structure
from .wavelength_grid import observed_wavelength

SEEING_SCATTER = 0.10
"""Relative scatter of an object's PSF FWHM around the card's, common to all bands; half as much again for each band."""
DEPTH_SCATTER = 0.10
"""Scatter of an object's depth around the card's, magnitudes."""
SKY_BRIGHTNESS = ((4800, 22.0), (6400, 21.0), (7700, 20.2), (9000, 19.0), (9800, 18.2))
"""Dark sky, (angstrom, AB magnitude per square arcsec), typical of Cerro Tololo and Maunakea, rounded."""


def observe_images(
    objects: SkyObjects,
    modality: Modality,
    size: int,
    neighbours: Neighbours | None = None,
    *,
    real_background: bool = False,
) -> ImageObservation:
    """Images of `size` x `size` pixels in all bands of the camera, with noise and bad pixels.

    Each object has its own `psf_fwhm` and `depth`. With `real_background`, noise is that of real sky where there is any
    (the bands of `real_background.REAL_BANDS`). Raises ValueError if a band of the card has no filter curve.
    """
    clean = noiseless_images(objects, modality, size, neighbours)
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
    if real_background and modality.name == REAL_MODALITY:
        chosen = uniforms(f"{modality.name} sky", objects.seed, objects.row, NUM_PATCH_UNIFORMS).T
        noise[:, [clean.bands.index(band) for band in REAL_BANDS]] = cut_sky(hsc_sky(), chosen, size)
    deviation = torch.sqrt(variance)
    valid = torch.from_numpy(mask)
    flux = clean.flux + torch.from_numpy(noise) * deviation
    flux = torch.where(valid, flux, 300 * deviation)
    return _image(objects, modality, clean.psf_fwhm, clean.depth, flux, 1 / variance, valid)


def noiseless_images(
    objects: SkyObjects, modality: Modality, size: int, neighbours: Neighbours | None = None
) -> ImageObservation:
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
    sources, knots = _object_sources(objects, flux, card)
    if neighbours is not None:
        sources = sources.join(neighbour_sources(neighbours, neighbour_pool(), pool_flux(curves).to(flux)))
    images = render_images(sources, psf_fwhm.to(flux), size=size, pixel_scale=card.pixel_scale, knots=knots)
    return _image(objects, modality, psf_fwhm, torch.from_numpy(depth).float(), images.cpu())


def band_flux(objects: SkyObjects, curves: tuple[str, ...]) -> Float[Tensor, "B P C"]:
    """True flux of each component through each filter curve, nanomaggies, on the device of the spectra."""
    return objects.spectra @ _weights(curves).T.to(objects.spectra.device)


def _object_sources(
    objects: SkyObjects, flux: Float[Tensor, "B P C"], card: ImagingInstrument
) -> tuple[Sources, Knots]:
    """The objects as sources in the middle of their images, and the knots in their discs."""
    radius, axis_ratio, angle = (
        torch.from_numpy(a).to(flux) for a in (objects.radius, objects.axis_ratio, objects.position_angle)
    )
    middle = flux.new_zeros(*radius.shape, 2)
    sources = Sources(SERSIC_INDICES, flux, radius, axis_ratio, angle[:, None].expand(radius.shape), middle)
    uniform = uniforms("structure", objects.seed, objects.row, NUM_UNIFORMS).T
    structure = draw_structure(uniform, **{name: objects.truth[name] for name in _SHAPING})
    redshift = np.nan_to_num(objects.truth["redshift"])
    rest_wavelength = np.array([band.wavelength for band in card.bands]) / (1 + redshift[:, None])
    return with_structure(sources, COMPONENTS.index("disc"), structure, rest_wavelength)


_SHAPING = ("log_stellar_mass", "log_specific_star_formation_rate", "redshift", "bulge_fraction", "inclination")
"""Truths that decide the structure of a disc."""


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
