"""Tokens of one camera rendered as another would see the same objects, beside what that camera saw.

A target of broader PSF asks for less than the tokens hold; one of sharper PSF for detail that was never seen, and then
the error says how much of it there is. Bands count whose wavelength lies in a band of the camera that was encoded, and
pixels that lie within its image by a PSF at least.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ...data.instruments import ImagingInstrument
from ...data.observations import ImageObservation
from ...tokenizers.token_grid import Tokenizer
from .simulated_truth import SimulatedTruth
from .source_pixels import signal_to_noise


def measure_another_camera(
    tokenizer: Tokenizer,
    batches: Iterable[tuple[ImageObservation, Mapping[str, ImageObservation]]],
    truth: SimulatedTruth | None,
    source_sigma: float,
) -> dict[str, dict[str, Any]]:
    """For each wanted camera the error and bias of its source pixels, against the truth where it is known.

    `batches` are of objects as one camera saw them, and as the others did, by modality. Errors are RMS over RMS flux:
    of tokens of the other camera, of tokens of the wanted one (`own_error`), and of the noise of one observation.
    """
    sums: dict[str, defaultdict[str, float]] = {}
    sharper: dict[str, bool] = {}
    for seen, others in batches:
        tokens = tokenizer.encode(seen)
        for name, wanted in others.items():
            known = bands_within(wanted, seen.card)
            if not known.any():
                continue
            back, own = tokenizer.decode(tokens, wanted), tokenizer.decode(tokenizer.encode(wanted), wanted)
            true = None if truth is None else truth.pixels(wanted)
            flux = wanted.flux if true is None else true
            chosen = wanted.mask & back.mask & (signal_to_noise(wanted, true) > source_sigma) & known[:, None, None]
            chosen = chosen & pixels_within(wanted, seen)
            of_pixels = {
                "error": (back.flux - flux).double().square(),
                "own_error": (own.flux - flux).double().square(),
                "noise": 1 / wanted.inverse_variance.double(),
                "square": flux.double().square(),
                "found": back.flux.double(),
                "flux": flux.double(),
            }
            into = sums.setdefault(name, defaultdict(float))
            for key, values in of_pixels.items():
                into[key] += values[chosen].sum().item()
            into["num_objects"] += len(seen)
            sharper[name] = bool(wanted.psf_fwhm.median() < seen.psf_fwhm.median())
    return {
        name: {
            "num_objects": int(s["num_objects"]),
            "is_sharper": sharper[name],
            **{key: math.sqrt(s[key] / s["square"]) for key in ("error", "own_error", "noise")},
            "bias": s["found"] / s["flux"] - 1,
        }
        for name, s in sums.items()
        if s["square"] > 0
    }


def pixels_within(wanted: ImageObservation, seen: ImageObservation) -> Bool[Tensor, "B 1 H W"]:
    """Which pixels lie within the other image of the same objects, by the PSF FWHM of its own widest band at least."""
    margin = wanted.psf_fwhm.amax(1, keepdim=True)
    inside = []
    for axis, (size, other) in enumerate(zip(wanted.flux.shape[2:], seen.flux.shape[2:], strict=True)):
        place = (torch.arange(size) - wanted.center[:, axis, None]) * wanted.card.pixel_scale
        first = (-0.5 - seen.center[:, axis, None]) * seen.card.pixel_scale + margin
        last = (other - 0.5 - seen.center[:, axis, None]) * seen.card.pixel_scale - margin
        inside.append((place >= first) & (place <= last))
    return (inside[0][:, :, None] & inside[1][:, None])[:, None]


def bands_within(wanted: ImageObservation, card: ImagingInstrument) -> Bool[Tensor, " C"]:
    """Which bands lie, by their effective wavelength, within a band of the camera."""
    wavelengths = [wanted.card.band(name).wavelength for name in wanted.bands]
    return torch.tensor([any(band.contains(wavelength) for band in card.bands) for wavelength in wavelengths])
