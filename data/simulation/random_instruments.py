"""Random cameras and spectrographs: instruments that nobody built, within the ranges of those that survey the sky.

A tokenizer that has seen the sky through very many of them must read the numbers of a card instead of its name, and so
carries over to an instrument that it never saw. An instrument is a function of a seed and its number. The curves of
SDSS, BASS and MzLS are left to those by which tokenizers are judged.
"""

import functools
import math
import zlib

import numpy as np

from ..filters import FilterCurve, filter_curve
from ..instruments import Band, ImagingInstrument, Spectrograph
from ..modalities import Modality
from .observe_images import SKY_BRIGHTNESS
from .wavelength_grid import OBSERVED_RANGE

MAX_BANDS = 6
BAND_WAVELENGTHS = (3500.0, 10000.0)
"""Effective wavelengths of bands, angstrom."""
BAND_WIDTHS = (300.0, 3000.0)
"""Angstrom."""
PIXEL_SCALES = (0.1, 0.5)
"""Arcsec; the logarithm is uniform."""
PSF_FWHMS = (0.5, 1.8)
"""Arcsec; the logarithm is uniform."""
LEAST_SAMPLING = 1.8
"""Pixels in the FWHM of a PSF, at least."""
IMAGE_DEPTHS = (20.0, 27.0)
"""AB magnitude: from below the z band of the SDSS to a deep layer of HSC."""
REAL_CURVES = (
    *(f"decam2014-{band}" for band in "griz"),
    *(f"hsc2017-{band}" for band in "grizy"),
    "gaiadr3-BP",
    "gaiadr3-RP",
)
"""Curves of real filters that bands have besides synthetic ones."""
FIELD = 13.0
"""Arcsec along each side of an image, where IMAGE_SIZES allows it."""
IMAGE_SIZES = (24, 96)

SPECTRUM_RANGE = (3300.0, 10400.0)
"""Angstrom."""
RESOLVING_POWERS = (600.0, 6000.0)
LEAST_PIXELS, MOST_PIXELS = 1.7, 4.0
"""In the narrowest resolution element of a spectrograph."""
MAX_LENGTH = 8192
"""Pixels of a spectrum: a fine spectrograph sees a part of the range, as what its detectors hold."""
FIBER_DIAMETERS = (1.0, 3.5)
"""Arcsec; LAMOST's have 3.3."""
SPECTRUM_DEPTHS = (19.5, 24.0)
"""AB magnitude; a spaxel of MaNGA has 23.5."""


@functools.cache
def random_camera(seed: int, number: int) -> Modality:
    """`image/random_<number>`, a camera of 1 to MAX_BANDS bands in the order of wavelength.

    A fifth of the bands have the curve of a real filter, others a synthetic one; bands overlap by half at most. Depth
    follows the brightness of the sky and the width of the band as that of real surveys does, between none (in space)
    and a little more than theirs; seeing follows wavelength.
    """
    rng = _generator("random camera", seed, number)
    curves = _draw_curves(rng, count=int(rng.integers(1, MAX_BANDS + 1)))
    wavelength = np.array([curve.effective_wavelength for curve in curves])
    width = np.array([curve.effective_width for curve in curves])
    pixel_scale = round(_log_uniform(rng, *PIXEL_SCALES), 3)
    least_fwhm = max(PSF_FWHMS[0], LEAST_SAMPLING * pixel_scale)
    fwhm = _log_uniform(rng, least_fwhm, PSF_FWHMS[1]) * (wavelength / 6000) ** -0.2
    fwhm = (fwhm * np.exp(0.07 * rng.standard_normal(len(curves)))).clip(least_fwhm, PSF_FWHMS[1])
    brightness = np.interp(wavelength, *np.array(SKY_BRIGHTNESS).T)
    depth = rng.uniform(21.5, 26.8) + rng.uniform(0, 1.2) * (brightness - 21.5) / 2 + 1.25 * np.log10(width / 1300)
    depth += np.interp(wavelength, *_BLUE_LOSS) + 0.3 * rng.standard_normal(len(curves))
    bands = tuple(
        Band(
            name=f"b{at:.0f}",
            wavelength=round(at),
            width=round(of),
            psf_fwhm=round(seeing, 3),
            depth=round(limit, 2),
            filter_curve=curve.name,
        )
        for curve, at, of, seeing, limit in zip(
            curves, wavelength.tolist(), width.tolist(), fwhm.tolist(), depth.clip(*IMAGE_DEPTHS).tolist(), strict=True
        )
    )
    card = ImagingInstrument(
        kind="image",
        name=f"random_{number:03d}",
        description=f"A camera that nobody built: number {number} of seed {seed}",
        reference=_REFERENCE,
        pixel_scale=pixel_scale,
        bands=bands,
    )
    return Modality(f"image/{card.name}", card)


@functools.cache
def random_spectrograph(seed: int, number: int) -> Modality:
    """`spectrum/random_<number>`, a spectrograph: of ten, seven see most of the optical, the others blue or red alone.

    Linear sampling comes with a resolution element that varies little in angstrom, logarithmic sampling with one that
    varies little in velocity.
    """
    rng = _generator("random spectrograph", seed, number)
    ends = _SPECTRUM_ENDS[rng.choice(len(_SPECTRUM_ENDS), p=_SPECTRUM_SHARES)]
    low, high = (float(rng.uniform(*end)) for end in ends)
    is_linear = bool(rng.uniform() < 0.5)
    middle, typical = math.sqrt(low * high), _log_uniform(rng, *RESOLVING_POWERS)
    power = rng.uniform(0.6, 1.2) if is_linear else rng.uniform(-0.1, 0.6)

    def resolving_power(wavelength: np.ndarray) -> np.ndarray:
        return (typical * (wavelength / middle) ** power).clip(*RESOLVING_POWERS)

    within = np.linspace(low, high, 64)
    element = within / resolving_power(within) if is_linear else 1 / resolving_power(within) / math.log(10)
    step = float(f"{element.min() / rng.uniform(LEAST_PIXELS, MOST_PIXELS):.3g}")
    if rng.uniform() < 0.5:
        high = min(high, _moved(low, (MAX_LENGTH - 1) * step, is_linear))
    else:
        low = max(low, _moved(high, (1 - MAX_LENGTH) * step, is_linear))
    knots = np.linspace(low, high, 4)
    card = Spectrograph(
        kind="spectrum",
        name=f"random_{number:03d}",
        description=f"A spectrograph that nobody built: number {number} of seed {seed}",
        reference=_REFERENCE,
        wavelength_min=round(low, 1),
        wavelength_max=round(high, 1),
        sampling="linear" if is_linear else "log10",
        step=step,
        resolving_power=tuple(
            (round(at, 1), round(power))
            for at, power in zip(knots.tolist(), resolving_power(knots).tolist(), strict=True)
        ),
        fiber_diameter=round(rng.uniform(*FIBER_DIAMETERS), 2),
        depth=round(rng.uniform(*SPECTRUM_DEPTHS), 2),
    )
    return Modality(f"spectrum/{card.name}", card)


def image_size(camera: ImagingInstrument) -> int:
    """Pixels along each side of a random camera's images: FIELD arcsec, an even number within IMAGE_SIZES."""
    low, high = IMAGE_SIZES
    return min(max(2 * round(FIELD / camera.pixel_scale / 2), low), high)


_REFERENCE = "drawn at random (data/simulation/random_instruments.py)"
_BLUE_LOSS = np.array([[3500.0, 4300.0], [-0.8, 0.0]])
"""Wavelength, and magnitudes by which mirrors, detectors and air make bands in the ultraviolet shallower: SDSS u."""
_SPECTRUM_ENDS = (
    ((3300.0, 4000.0), (8500.0, 10400.0)),
    ((3300.0, 4200.0), (5200.0, 7000.0)),
    ((5500.0, 7000.0), (8500.0, 10400.0)),
)
_SPECTRUM_SHARES = (0.7, 0.15, 0.15)


def _generator(purpose: str, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(purpose.encode()), seed, number])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _draw_curves(rng: np.random.Generator, count: int) -> list[FilterCurve]:
    """Up to `count` curves in the order of wavelength, whose centres are half a width apart at least.

    Widths of a camera's synthetic filters are alike, relative to their wavelengths: narrow in one, broad in another.
    """
    typical = 0.18 * math.exp(0.4 * rng.standard_normal())
    chosen: list[FilterCurve] = []
    for _ in range(100 * count):
        curve = _draw_curve(rng, typical)
        is_apart = all(
            abs(curve.effective_wavelength - other.effective_wavelength)
            > 0.5 * max(curve.effective_width, other.effective_width)
            for other in chosen
        )
        is_seen = OBSERVED_RANGE[0] < curve.wavelength[0] and curve.wavelength[-1] < OBSERVED_RANGE[1] - 10
        if is_apart and is_seen:
            chosen.append(curve)
        if len(chosen) == count:
            break
    return sorted(chosen, key=lambda curve: curve.effective_wavelength)


def _draw_curve(rng: np.random.Generator, typical_width: float) -> FilterCurve:
    if rng.uniform() < 0.25:
        return filter_curve(REAL_CURVES[rng.integers(len(REAL_CURVES))])
    wavelength = _log_uniform(rng, *BAND_WAVELENGTHS)
    width = min(max(wavelength * typical_width * math.exp(0.2 * rng.standard_normal()), BAND_WIDTHS[0]), BAND_WIDTHS[1])
    return filter_curve(f"synthetic-{wavelength:.0f}-{width:.0f}")


def _moved(wavelength: float, length: float, is_linear: bool) -> float:
    """`wavelength` moved by a length, in angstrom, or in dex where it is not linear."""
    return wavelength + length if is_linear else wavelength * 10**length
