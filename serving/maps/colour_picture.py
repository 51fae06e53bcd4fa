"""A picture for eyes of an image in any bands: the arcsinh stretch of Lupton et al. (2004, PASP 116, 133).

The bands' mean is stretched, linear in the noise and logarithmic in what is bright, and each colour keeps its share of
it, so that a bright core keeps its colour where a stretch of each band would make it white.
"""

import io
import math

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ...data.observations import ImageObservation

COLOUR_SLOPE = 1.5
"""Bands are weighed by wavelength to this power, negative: a galaxy of ordinary colour then looks neutral."""
SOFTENING = 2.0
"""Standard deviations of the sky at which the stretch turns from linear to logarithmic."""
FAINTEST_WHITE = 60.0
"""Standard deviations of the sky that are white where nothing is brighter: an empty field stays dark."""
SKY_LEVEL = 0.04
"""Brightness of the sky, of 1, so that noise is seen on both sides of it."""
SHOWN_WAVELENGTHS = (9100.0, 6300.0, 4800.0)
"""Angstrom that are shown as red, green and blue, where an image has bands near each of them."""


def colour_picture(image: ImageObservation) -> UInt8[np.ndarray, "H W 3"]:
    """The one object of `image` in red, green and blue, the first row on top: rows of an image count from below.

    Bands are told from the card: the reddest is red, the bluest blue. Masked pixels are dark.
    """
    (red, green, blue), noise = _weighted_bands(image)
    brightness = (red + green + blue) / 3
    soft = SOFTENING * max(noise, 1e-12)
    white = max(float(np.quantile(brightness, 0.9985)), FAINTEST_WHITE * noise, 2 * soft)
    stretched = np.arcsinh(brightness / soft) / math.asinh(white / soft)
    share = stretched / np.where(np.abs(brightness) > 1e-3 * soft, brightness, np.inf)
    # Where there is only noise, its colours are not the object's: they fade into grey.
    trust = np.clip(np.abs(brightness) / (3 * max(noise, 1e-12)), 0, 1)
    colours = np.stack([trust * band * share + (1 - trust) * stretched for band in (red, green, blue)], -1)
    colours = SKY_LEVEL + (1 - SKY_LEVEL) * colours
    # A colour that is out of range is dimmed as a whole, and so keeps its hue.
    colours /= np.maximum(colours.max(-1, keepdims=True), 1)
    picture = (np.clip(colours, 0, 1) * 255).round().astype(np.uint8)
    valid = image.mask[0].any(0).numpy()
    return np.ascontiguousarray(np.where(valid[..., None], picture, 0)[::-1])


def jpeg(picture: UInt8[np.ndarray, "H W 3"], size: int | None = None) -> bytes:
    """The picture as JPEG; `size` scales its longer side to so many pixels, smoothly."""
    shown = Image.fromarray(picture)
    if size is not None:
        scale = size / max(shown.size)
        shown = shown.resize(
            (max(1, round(shown.width * scale)), max(1, round(shown.height * scale))), Image.Resampling.BICUBIC
        )
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _weighted_bands(image: ImageObservation) -> tuple[Float64[np.ndarray, "3 H W"], float]:
    """What is shown as red, green and blue, and the noise of their mean."""
    wavelength = np.array([image.card.band(name).wavelength for name in image.bands])
    weight = (wavelength / np.mean(SHOWN_WAVELENGTHS)) ** -COLOUR_SLOPE
    mixing = _mixing(wavelength)
    noise = image.noise()[0].double().numpy() * weight
    flux = image.flux[0].double().numpy() * weight[:, None, None]
    valid = image.mask[0].numpy()
    # A pixel that one band lacks has the grey of the others, not a colour of its own.
    flux = np.where(valid, flux, (flux * valid).sum(0) / np.maximum(valid.sum(0), 1))
    return np.einsum("sc,chw->shw", mixing, flux), float(np.sqrt(((mixing.mean(0) * noise) ** 2).sum()))


def _mixing(wavelength: Float64[np.ndarray, " C"]) -> Float64[np.ndarray, "3 C"]:
    """How much of each band is in red, green and blue."""
    order = np.argsort(-wavelength)
    count = len(order)
    chosen = [int(np.abs(wavelength - shown).argmin()) for shown in SHOWN_WAVELENGTHS]
    if len(set(chosen)) < 3:
        chosen = [int(order[0]), int(order[(count - 1) // 2]), int(order[-1])]
    mixing = np.eye(count)[chosen]
    if count == 2:
        mixing[1] = 0.5
    return mixing
