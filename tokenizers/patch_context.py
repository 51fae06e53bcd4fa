"""What is known of a patch before its details: the colours of its object, and how bright the patches about it are.

An object's colours, and the slope of the light from patch to patch, say much of what a patch holds. The prior expects
it (`patch_prior.py`), so details need not say it again; and where noise hides the details, light is not taken for that
of the average patch, which would bias fluxes and flatten slopes. All from tokens, so that decoding knows it too.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..data.instruments import ImagingInstrument
from ..data.observations import FWHM_PER_SIGMA, pixel_noise
from .brightness import WEIGHT_SIGMA
from .light_basis import LightBasis
from .patch_prior import BRIGHTNESS_FLOOR

COLOUR_SPREAD = 0.8
"""Standard deviation of the first order of an object's spectrum over its typical one; of order m, over m^(3/4)."""
TYPICAL_SIZE = 1.0
"""Standard deviation of the light of an object without a PSF, arcsec; others get slightly wrong colours."""
RELATIVE_ERROR = 0.03
"""Of the brightness in a band: its token has steps, and objects are of other sizes."""
LARGEST = 3.0
"""Of a colour, and of the difference of two patches in asinh of their brightness."""
NUM_SLOPES = 13
"""Eight neighbours, two bends, three products of slopes."""


def num_context(basis: LightBasis) -> int:
    """F: a constant, the colours, the slopes."""
    return basis.num_orders + NUM_SLOPES


def object_colours(
    basis: LightBasis,
    card: ImagingInstrument,
    brightness: Float[Tensor, "B C"],
    measured: Bool[Tensor, "B C"],
) -> Float64[Tensor, "B M"]:
    """One, and the orders from the first of each object's spectrum, over order zero; zero where nothing was measured.

    From the `brightness` in the bands of the card, nanomaggies per square arcsec, by least squares under a prior
    (COLOUR_SPREAD), with the card's typical noise. Bands out of the basis's range do not count.
    """
    bands = _readable(basis, card)
    if not bands:
        return torch.eye(1, basis.num_orders, dtype=torch.float64).repeat(len(brightness), 1)
    spectral = basis.spectral(card, tuple(card.bands[number].name for number in bands))
    typical = spectral[:, 0]
    lost = _light_lost(card, bands)
    values = brightness[:, bands].double().cpu() * lost
    known = measured[:, bands].cpu()
    # The mean under a Gaussian weight of width s pixels has the noise of that over 4 pi s^2 of them.
    noise = lost * _pixel_noise(card, bands) * card.pixel_scale / (2 * math.sqrt(math.pi) * WEIGHT_SIGMA)
    weight = known / noise.square()
    amplitude = (weight * typical * values).sum(1) / (weight * typical**2).sum(1).clamp(min=1e-30)
    amplitude = amplitude.clamp(min=BRIGHTNESS_FLOOR)[:, None]
    weight = known / (noise.square() + (RELATIVE_ERROR * amplitude * typical).square())
    orders = torch.arange(basis.num_orders, dtype=torch.float64)
    spread = torch.where(orders > 0, COLOUR_SPREAD * orders.clamp(min=1) ** -0.75, 1.0)
    # In units of the amplitude.
    precision = (spectral.T * weight[:, None]) @ spectral * amplitude[..., None] ** 2
    precision = precision + torch.diag(spread**-2)
    residual = values - amplitude * typical
    found = torch.linalg.solve(precision, (weight * residual) @ spectral * amplitude)
    colours = found / (1 + found[:, :1]).clamp(min=0.2)
    colours[:, 0] = 1.0
    return colours.clamp(-LARGEST, LARGEST)


def brightness_softening(basis: LightBasis, card: ImagingInstrument, pixels: int) -> float:
    """The noise of a patch by the card's depth, nanomaggies per square arcsec; fainter patches hardly differ."""
    bands = _readable(basis, card)
    if not bands:
        return BRIGHTNESS_FLOOR
    typical = basis.spectral(card, tuple(card.bands[number].name for number in bands))[:, 0]
    noise = _pixel_noise(card, bands) / pixels
    return math.hypot(BRIGHTNESS_FLOOR, (typical / noise).square().sum().item() ** -0.5)


def patch_slopes(
    level: Float[Tensor, "B P"], mask: Bool[Tensor, "B P"], columns: int, softening: float
) -> Float64[Tensor, "B P N"]:
    """How the light of patches, `columns` of them in a row, goes on to their neighbours; N is NUM_SLOPES.

    The differences of asinh(brightness / softening) from the eight neighbours, row by row, zero where one has no valid
    pixel; the squares of the two bends; and the three products of the two slopes.
    """
    height, valid = (t.unflatten(1, (-1, columns)) for t in (torch.asinh(level.double() / softening), mask))
    around, exists = F.pad(height, (1, 1, 1, 1)), F.pad(valid, (1, 1, 1, 1))
    differences = []
    for y, x in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
        place = (slice(None), slice(y, y + height.shape[1]), slice(x, x + columns))
        difference = (around[place] - height).clamp(-LARGEST, LARGEST)
        differences.append(torch.where(exists[place] & valid, difference, 0.0))
    above, left, right, below = (differences[number] for number in (1, 3, 4, 6))
    down, across = (below - above) / 2, (right - left) / 2
    squares = [((above + below) / 2) ** 2, ((left + right) / 2) ** 2, down**2, across**2, down * across]
    return torch.stack([*differences, *squares], -1).flatten(1, 2)


def _readable(basis: LightBasis, card: ImagingInstrument) -> list[int]:
    """The bands of a camera within the basis's range."""
    low, high = basis.range
    return [number for number, band in enumerate(card.bands) if low <= band.wavelength <= high]


def _numbers(card: ImagingInstrument, bands: list[int], name: str) -> Float64[Tensor, " C"]:
    return torch.tensor([getattr(card.bands[number], name) for number in bands], dtype=torch.float64)


def _pixel_noise(card: ImagingInstrument, bands: list[int]) -> Float64[Tensor, " C"]:
    """Standard deviation of a pixel in each of the bands, nanomaggies per square arcsec."""
    noise = pixel_noise(_numbers(card, bands, "depth"), _numbers(card, bands, "psf_fwhm"), card.pixel_scale)
    return noise / card.pixel_scale**2


def _light_lost(card: ImagingInstrument, bands: list[int]) -> Float64[Tensor, " C"]:
    """Times how much more brightness each of the bands would have under the Gaussian weight without its PSF.

    The mean of a Gaussian of variance v under a Gaussian weight of variance w is as 1 / (v + w).
    """
    sigma = _numbers(card, bands, "psf_fwhm") / FWHM_PER_SIGMA
    return 1 + sigma.square() / (WEIGHT_SIGMA**2 + TYPICAL_SIZE**2)
