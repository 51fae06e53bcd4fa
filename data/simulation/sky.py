"""The simulated sky: what each instrument would measure of a drawn galaxy.

One spectrum of each galaxy gives the flux in every band, the light in every fibre and every catalogue magnitude, so all
modalities agree on the object. Noise, seeing, depth and bad pixels of an object depend on the seed, the modality and
the object alone, so batches of any size and order give the same sky, up to rounding.
"""

import functools
import zlib
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ...settings import Settings
from ..filters import filter_curve, flux_to_magnitude, magnitude_to_flux, photometry_weights
from ..instruments import ImagingInstrument, Spectrograph
from ..modalities import Modality, modality
from ..observations import ImageObservation, Observation, ScalarObservation, SpectrumObservation
from .galaxies import SERSIC_INDICES, Galaxies, component_spectra, draw_galaxies
from .galaxy_spectra import observed_wavelength
from .render_images import flux_within, render_galaxies
from .spectrograph_response import noise_curves, response_matrix

SEEING_SCATTER = 0.10
"""Relative scatter of an object's PSF FWHM around the card's, common to all bands; half as much again for each band."""
DEPTH_SCATTER = 0.10
"""Scatter of an object's depth around the card's, magnitudes."""
FIBER_SEEING = 1.0
"""FWHM of the PSF on the fibres, arcsec: the convention of the Legacy Surveys' fibre fluxes."""

SKY_BRIGHTNESS = ((4800, 22.0), (6400, 21.0), (7700, 20.2), (9000, 19.0), (9800, 18.2))
"""Dark sky, (angstrom, AB magnitude per square arcsec), typical of Cerro Tololo and Maunakea, rounded."""

CATALOGUE_FILTERS = {"legacysurvey_photometry": "decam2014", "sdss_photometry": "sdss2010"}
CATALOGUE_DEPTHS = {
    "legacysurvey_photometry": {"g": 24.7, "r": 24.2, "z": 23.3},
    "sdss_photometry": {"u": 22.2, "g": 23.2, "r": 22.7, "i": 22.2, "z": 20.7},
}
"""5-sigma point-source depths, AB."""
CATALOGUE_FLOOR = {"legacysurvey_photometry": 0.01, "sdss_photometry": 0.02}
"""Smallest error, magnitudes."""

_LATENTS = {
    "redshift": "redshift",
    "stellar_mass": "log_stellar_mass",
    "specific_star_formation_rate": "log_specific_star_formation_rate",
}
DEFAULT_MODALITIES = (
    "image/legacysurvey",
    "image/hsc",
    "spectrum/desi",
    "spectrum/sdss",
    *(f"scalar/{name}" for name in _LATENTS),
    *(f"scalar/legacysurvey_{band}" for band in "grz"),
    *(f"scalar/sdss_{band}" for band in "ugriz"),
)
DEFAULT_IMAGE_SIZES = {"image/legacysurvey": 48, "image/hsc": 64}


class SkySettings(Settings):
    """How much sky to simulate, and through which modalities."""

    num_objects: Annotated[int, Field(gt=0)] = 3000
    seed: Annotated[int, Field(ge=0)] = 0
    magnitude_limit: Annotated[float, Field(ge=14, le=22)] = 19.8
    """Faintest DECam r magnitude, AB."""
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_MODALITIES
    image_sizes: dict[str, Annotated[int, Field(ge=8, le=1024)]] = Field(
        default_factory=lambda: dict(DEFAULT_IMAGE_SIZES)
    )
    """Pixels along each side of the images of a modality."""

    @field_validator("modalities")
    @classmethod
    def _are_simulated(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                _check_simulated(modality(name))
            except LookupError as error:
                raise ValueError(error.args[0]) from None
        if len(set(names)) < len(names):
            raise ValueError(f"modalities must differ, found {list(names)}")
        return names

    @model_validator(mode="after")
    def _images_have_sizes(self) -> "SkySettings":
        missing = [n for n in self.modalities if modality(n).kind == "image" and n not in self.image_sizes]
        if missing:
            raise ValueError(f"image_sizes must name every image modality; it lacks {missing}")
        return self


def simulate_sky(settings: SkySettings, batch_size: int = 256, first_batch: int = 0) -> Iterator[list[Observation]]:
    """Batches of at most `batch_size` objects: for each, one observation of every modality of `settings`, in order.

    `first_batch` leaves out those before it; the others are the same as without.
    """
    galaxies = draw_galaxies(settings.num_objects, settings.seed, settings.magnitude_limit)
    for start in range(first_batch * batch_size, len(galaxies), batch_size):
        batch = galaxies.select(slice(start, start + batch_size))
        spectra = component_spectra(batch)
        observations: list[Observation] = []
        for name in settings.modalities:
            declared = modality(name)
            if declared.kind == "image":
                size = settings.image_sizes[name]
                observations.append(observe_images(batch, declared, size, settings.seed, spectra))
            elif declared.kind == "spectrum":
                observations.append(observe_spectra(batch, declared, settings.seed, spectra))
            else:
                observations.append(observe_scalars(batch, declared, settings.seed, spectra))
        yield observations


def observe_images(
    galaxies: Galaxies, modality: Modality, size: int, seed: int, spectra: Float[Tensor, "B P S"] | None = None
) -> ImageObservation:
    """Images of `size` x `size` pixels in all bands of the camera, with noise, cosmic rays and dead columns.

    `spectra` [B, P, S] are those of `component_spectra`, if already at hand. Each object has its own `psf_fwhm` and
    `depth`. Raises ValueError if a band of the card has no filter curve.
    """
    clean = noiseless_images(galaxies, modality, size, seed, spectra)
    card = clean.card
    sky = clean.noise()[..., None, None] ** 2
    wavelengths, brightness = np.array(SKY_BRIGHTNESS).T
    sky_flux = magnitude_to_flux(np.interp([band.wavelength for band in card.bands], wavelengths, brightness))
    sky_flux *= card.pixel_scale**2
    # The source's own photons: as many sky photons make as much variance.
    variance = sky * (1 + clean.flux.clamp(min=0) / torch.from_numpy(sky_flux).float()[:, None, None])
    noise = np.empty(clean.flux.shape, np.float32)
    mask = np.ones(clean.flux.shape, bool)
    for row, rng in enumerate(_generators(galaxies, modality, seed, "noise")):
        rng.standard_normal(out=noise[row], dtype=np.float32)
        _spoil_pixels(rng, mask[row])
    deviation = torch.sqrt(variance)
    valid = torch.from_numpy(mask)
    flux = clean.flux + torch.from_numpy(noise) * deviation
    flux = torch.where(valid, flux, 300 * deviation)
    return _image(galaxies, modality, clean.psf_fwhm, clean.depth, flux, 1 / variance, valid)


def noiseless_images(
    galaxies: Galaxies, modality: Modality, size: int, seed: int, spectra: Float[Tensor, "B P S"] | None = None
) -> ImageObservation:
    """The images of `observe_images` before noise and bad pixels, with the same PSF and depth."""
    card = modality.card
    if not isinstance(card, ImagingInstrument):
        raise ValueError(f"expected a modality of kind image, found {modality.name}")
    curves = tuple(band.filter_curve or "" for band in card.bands)
    if "" in curves:
        raise ValueError(f"{modality.name}: band {card.bands[curves.index('')].name} has no filter_curve in its card")
    flux = _photometry(galaxies, curves, spectra)
    fwhm = np.tile([band.psf_fwhm for band in card.bands], (len(galaxies), 1))
    depth = np.tile([band.depth for band in card.bands], (len(galaxies), 1))
    for row, rng in enumerate(_generators(galaxies, modality, seed, "conditions")):
        common, *own = rng.standard_normal(1 + len(card.bands))
        fwhm[row] *= np.exp(SEEING_SCATTER * np.clip(common + 0.5 * np.array(own), -2, 3))
        depth[row] += DEPTH_SCATTER * rng.standard_normal(len(card.bands))
    psf_fwhm = torch.from_numpy(fwhm).float()
    radius, axis_ratio, position_angle = (
        torch.from_numpy(a).float() for a in (galaxies.radius, galaxies.axis_ratio, galaxies.position_angle)
    )
    images = [
        render_galaxies(
            flux[rows],
            radius[rows],
            axis_ratio[rows],
            position_angle[rows],
            psf_fwhm[rows],
            sersic_indices=SERSIC_INDICES,
            size=size,
            pixel_scale=card.pixel_scale,
        )
        for rows in (slice(start, start + 32) for start in range(0, len(galaxies), 32))
    ]
    return _image(galaxies, modality, psf_fwhm, torch.from_numpy(depth).float(), torch.cat(images))


def observe_spectra(
    galaxies: Galaxies, modality: Modality, seed: int, spectra: Float[Tensor, "B P S"] | None = None
) -> SpectrumObservation:
    """Spectra through the fibre on the card's own wavelengths, with noise of sky and source and some bad pixels."""
    card = modality.card
    if not isinstance(card, Spectrograph):
        raise ValueError(f"expected a modality of kind spectrum, found {modality.name}")
    flux = noiseless_spectra(galaxies, modality, spectra)
    sky, per_flux = noise_curves(card)
    noise = np.empty(flux.shape, np.float32)
    mask = np.ones(flux.shape, bool)
    quality = np.empty((len(galaxies), 1))
    for row, rng in enumerate(_generators(galaxies, modality, seed, "noise")):
        rng.standard_normal(out=noise[row], dtype=np.float32)
        quality[row] = 10 ** (-0.8 * DEPTH_SCATTER * rng.standard_normal())
        _spoil_wavelengths(rng, mask[row])
    variance = quality * (sky + per_flux * flux.clip(0))
    deviation = np.sqrt(variance).astype(np.float32)
    return SpectrumObservation(
        modality,
        galaxies.object_id,
        flux=np.where(mask, flux + noise * deviation, 300 * deviation),
        wavelength=card.wavelength(),
        inverse_variance=np.where(mask, 1 / variance, 0.0),
        mask=mask,
        ra=galaxies.ra,
        dec=galaxies.dec,
    )


def noiseless_spectra(
    galaxies: Galaxies, modality: Modality, spectra: Float[Tensor, "B P S"] | None = None
) -> Float[np.ndarray, "B L"]:
    """The spectra of `observe_spectra` before noise and bad pixels, 1e-17 erg/s/cm2/A."""
    card = modality.card
    assert isinstance(card, Spectrograph)
    spectra = component_spectra(galaxies) if spectra is None else spectra
    inside = np.float32(fiber_fractions(galaxies, card))
    through_fiber = torch.einsum("bpl,bp->bl", spectra, torch.from_numpy(inside)).numpy()
    return np.ascontiguousarray((response_matrix(card) @ np.ascontiguousarray(through_fiber.T)).T)


def fiber_fractions(galaxies: Galaxies, card: Spectrograph) -> Float[np.ndarray, "B P"]:
    """Share of each component's light that enters the spectrograph's fibre."""
    return flux_within(card.fiber_diameter / 2, galaxies.radius, galaxies.axis_ratio, FIBER_SEEING, SERSIC_INDICES)


def observe_scalars(
    galaxies: Galaxies, modality: Modality, seed: int, spectra: Float[Tensor, "B P S"] | None = None
) -> ScalarObservation:
    """One catalogue number of each galaxy: true for redshift, mass and star formation, measured for magnitudes.

    Magnitudes scatter by their `error`; one whose flux came out below two sigma is masked. Raises LookupError for a
    quantity that is not simulated.
    """
    _check_simulated(modality)
    quantity = modality.quantity
    identity: dict[str, Any] = {"ra": galaxies.ra, "dec": galaxies.dec}
    if modality.card.name == "galaxy_properties":
        values = np.asarray(getattr(galaxies, _LATENTS[quantity.name]))
        return ScalarObservation(modality, galaxies.object_id, values, error=np.zeros(len(galaxies)), **identity)
    catalogue = modality.card.name
    curve = f"{CATALOGUE_FILTERS[catalogue]}-{quantity.name}"
    flux = _photometry(galaxies, (curve,), spectra).sum(1)[:, 0].double().numpy()
    shares = np.stack([galaxies.bulge_fraction, 1 - galaxies.bulge_fraction], 1)
    extent = (galaxies.radius * np.sqrt(galaxies.axis_ratio) * shares).sum(1)
    sky_error = magnitude_to_flux(np.array([CATALOGUE_DEPTHS[catalogue][quantity.name]])) / 5
    error = np.hypot(sky_error * np.sqrt(1 + extent**2), CATALOGUE_FLOOR[catalogue] / 1.0857 * flux)
    noise = np.array([rng.standard_normal() for rng in _generators(galaxies, modality, seed, "noise")])
    measured = flux + error * noise
    is_detected = measured > 2 * error
    magnitude = flux_to_magnitude(np.where(is_detected, measured, 1.0))
    is_detected &= (magnitude >= quantity.minimum) & (magnitude <= quantity.maximum)
    magnitude_error = np.where(is_detected, 1.0857 * error / np.where(is_detected, measured, 1.0), np.nan)
    return ScalarObservation(modality, galaxies.object_id, magnitude, is_detected, magnitude_error, **identity)


def _check_simulated(declared: Modality) -> None:
    if declared.kind == "scalar" and declared.card.name not in {"galaxy_properties", *CATALOGUE_FILTERS}:
        raise LookupError(f"{declared.name} is not simulated; these scalars are: {list(DEFAULT_MODALITIES[4:])}")


def _image(
    galaxies: Galaxies,
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
        galaxies.object_id,
        flux,
        [band.name for band in modality.card.bands],
        inverse_variance,
        mask,
        psf_fwhm=psf_fwhm,
        depth=depth,
        ra=galaxies.ra,
        dec=galaxies.dec,
    )


def _photometry(
    galaxies: Galaxies, curves: tuple[str, ...], spectra: Float[Tensor, "B P S"] | None
) -> Float[Tensor, "B P C"]:
    """True flux of each component, nanomaggies."""
    return (component_spectra(galaxies) if spectra is None else spectra) @ _weights(curves).T


@functools.cache
def _weights(curves: tuple[str, ...]) -> Float[Tensor, "C L"]:
    return torch.from_numpy(photometry_weights([filter_curve(c) for c in curves], observed_wavelength())).float()


def _generators(galaxies: Galaxies, modality: Modality, seed: int, what: str) -> Iterator[np.random.Generator]:
    """One generator for each object, which nothing but seed, modality, object and `what` decides."""
    stream = zlib.crc32(f"{modality.name} {what}".encode())
    for row in galaxies.row.tolist():
        yield np.random.default_rng([stream, seed, galaxies.seed, row])


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


def _spoil_wavelengths(rng: np.random.Generator, mask: Bool[np.ndarray, " L"]) -> None:
    """Clear `mask` at three cosmic rays of a few pixels and, in one spectrum of twenty, at a stretch of bad columns."""
    for start in rng.integers(len(mask), size=rng.poisson(3)):
        mask[start : start + rng.integers(1, 5)] = False
    if rng.uniform() < 0.05:
        start = rng.integers(len(mask))
        mask[start : start + rng.integers(50, 150)] = False
