"""Observations brought together in one batch: images of different sizes and bands, spectra of different lengths."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .observations import ImageObservation, ObservationError, SpectrumObservation


def stack(observations: Sequence[Any]) -> Any:
    """Join observations of one modality into one batch, padding pixels and absent bands with mask=False.

    Images may differ in size and bands, spectra in length. Raises ObservationError if the list is empty or mixed.
    """
    if not observations:
        raise ObservationError("expected at least one observation, found none")
    names = sorted({observation.modality.name for observation in observations})
    if len(names) > 1:
        raise ObservationError(f"expected observations of one modality, found {names}")
    first = observations[0]
    if isinstance(first, ImageObservation):
        observations = _padded_images(observations)
    elif isinstance(first, SpectrumObservation):
        observations = _padded_spectra(observations)
    first = observations[0]
    joined: dict[str, Any] = {"object_id": tuple(i for o in observations for i in o.object_id)}
    for f in fields(first):
        if isinstance(getattr(first, f.name), Tensor):
            joined[f.name] = torch.cat([getattr(o, f.name) for o in observations])
    return first._unchecked(**joined)


def stack_objects(objects: Sequence[Sequence[Any]]) -> list[Any]:
    """The observations of several objects as one batch for each modality; an object is called by its number.

    The callers' ids may repeat or be absent. Objects need not have the same modalities.
    """
    by_modality: dict[str, list[Any]] = {}
    for number, observations in enumerate(objects):
        for observation in observations:
            by_modality.setdefault(observation.modality.name, []).append(observation.renamed((str(number),)))
    return [stack(same) for same in by_modality.values()]


def pad_bands(image: ImageObservation, bands: Sequence[str]) -> ImageObservation:
    """The images in these bands, in this order; one they lack has mask=False and the card's PSF and depth."""
    return _padded_image(image, tuple(bands), *image.flux.shape[2:])


def _padded_images(images: Sequence[ImageObservation]) -> list[ImageObservation]:
    present = {name for image in images for name in image.bands}
    bands = tuple(band.name for band in images[0].card.bands if band.name in present)
    height, width = (max(image.flux.shape[axis] for image in images) for axis in (2, 3))
    return [_padded_image(image, bands, height, width) for image in images]


def _padded_image(image: ImageObservation, bands: tuple[str, ...], height: int, width: int) -> ImageObservation:
    if image.bands == bands and image.flux.shape[2:] == (height, width):
        return image
    new: dict[str, Any] = {"bands": bands}
    for name in ("flux", "inverse_variance", "mask"):
        old = getattr(image, name)
        wide = torch.zeros((len(image), len(bands), height, width), dtype=old.dtype)
        for place, band in enumerate(image.bands):
            wide[:, bands.index(band), : old.shape[2], : old.shape[3]] = old[:, place]
        new[name] = wide
    for name in ("psf_fwhm", "depth"):
        typical = torch.tensor([getattr(image.card.band(b), name) for b in bands]).repeat(len(image), 1)
        for place, band in enumerate(image.bands):
            typical[:, bands.index(band)] = getattr(image, name)[:, place]
        new[name] = typical
    return replace(image, **new)


def _padded_spectra(spectra: Sequence[SpectrumObservation]) -> list[SpectrumObservation]:
    length = max(spectrum.flux.shape[1] for spectrum in spectra)
    padded = []
    for spectrum in spectra:
        missing = length - spectrum.flux.shape[1]
        new: dict[str, Any] = {
            name: F.pad(getattr(spectrum, name), (0, missing), value=fill)
            for name, fill in (("flux", 0), ("inverse_variance", 0), ("mask", False), ("resolving_power", 1))
        }
        new["wavelength"] = F.pad(spectrum.wavelength, (0, missing))
        padded.append(replace(spectrum, **new) if missing else spectrum)
    return padded
