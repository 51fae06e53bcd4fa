"""Instrument cards: what took a measurement, in physical numbers.

A card is a YAML file in `configs/instruments/` (or in a checkpoint): the bands, pixel scale, PSF and depth of a camera,
the wavelength range, sampling and resolving power of a spectrograph, or the quantities of a catalogue. The models see
these numbers, never the card's name, so an instrument that was never trained on still has a meaning.
"""

import difflib
import functools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ..settings import CONFIGS_FOLDER, Settings, SettingsError, parse_yaml

CARDS_FOLDER = CONFIGS_FOLDER / "instruments"

LIGHT_SPEED = 2.99792458e18
"""Angstrom per second."""

BAND_FEATURES = ("log_wavelength", "log_width", "log_pixel_scale", "log_psf_fwhm", "depth")
INSTRUMENT_FEATURES = (
    "is_image",
    "is_spectrum",
    "is_scalar",
    "log_wavelength_min",
    "log_wavelength_mean",
    "log_wavelength_max",
    "log_width",
    "log_pixel_scale",
    "log_psf_fwhm",
    "depth",
    "log_resolving_power",
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Band(Settings):
    """One imaging band."""

    name: str
    wavelength: Positive
    """Effective wavelength, angstrom."""
    width: Positive
    """Effective width, angstrom."""
    psf_fwhm: Positive
    """Typical PSF full width at half maximum, arcsec."""
    depth: Annotated[float, Field(gt=0, lt=40)]
    """Typical 5-sigma point-source depth, AB magnitude."""
    zero_point: Annotated[float, Field(gt=0, lt=60)] = 22.5
    """AB magnitude of one flux unit; 22.5 means nanomaggies."""
    filter_curve: str | None = None
    """Name of the transmission curve in `data/tables`; the simulated sky needs it, the models do not."""

    def contains(self, wavelength: float) -> bool:
        """Whether a wavelength (angstrom) lies within the band's width."""
        return abs(wavelength - self.wavelength) <= self.width / 2


class ImagingInstrument(Settings):
    """A camera and its survey: bands on one pixel grid."""

    kind: Literal["image"]
    name: str
    description: str
    reference: str
    pixel_scale: Positive
    """Arcsec per pixel."""
    bands: Annotated[tuple[Band, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _bands_are_unique(self) -> "ImagingInstrument":
        _check_unique([band.name for band in self.bands], "bands")
        return self

    def band(self, name: str) -> Band:
        """The band called `name`. Raises LookupError that lists the card's bands."""
        for band in self.bands:
            if band.name == name:
                return band
        raise LookupError(f"{self.name} has no band {name!r}; its bands are {[band.name for band in self.bands]}")

    def features(self) -> Float32[np.ndarray, " F"]:
        """INSTRUMENT_FEATURES of this camera, scaled to order one: means over its bands."""
        bands = np.stack([band_features(band, self.pixel_scale) for band in self.bands])
        wavelengths = bands[:, 0]
        width, pixel_scale, psf_fwhm, depth = bands[:, 1:].mean(0)
        return _vector(
            1, 0, 0, wavelengths.min(), wavelengths.mean(), wavelengths.max(), width, pixel_scale, psf_fwhm, depth, 0
        )


class Spectrograph(Settings):
    """A spectrograph and its survey."""

    kind: Literal["spectrum"]
    name: str
    description: str
    reference: str
    wavelength_min: Positive
    """First wavelength, angstrom, in vacuum."""
    wavelength_max: Positive
    sampling: Literal["linear", "log10"]
    step: Positive
    """Angstrom for linear sampling, dex for log10 sampling."""
    resolving_power: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)]
    """Knots (wavelength in angstrom, R = wavelength / FWHM), interpolated linearly."""
    fiber_diameter: Positive
    """Arcsec on the sky."""
    depth: Annotated[float, Field(gt=0, lt=40)]
    """AB magnitude at which the typical signal-to-noise ratio per angstrom is one."""

    @model_validator(mode="after")
    def _ranges_increase(self) -> "Spectrograph":
        if self.wavelength_max <= self.wavelength_min:
            raise ValueError(f"wavelength_max {self.wavelength_max} must exceed wavelength_min {self.wavelength_min}")
        knots = [wavelength for wavelength, _ in self.resolving_power]
        if knots != sorted(set(knots)):
            raise ValueError(f"wavelengths of resolving_power must increase strictly, found {knots}")
        return self

    def wavelength(self) -> np.ndarray:
        """The instrument's own grid of wavelengths [L], angstrom, float64."""
        if self.sampling == "linear":
            count = round((self.wavelength_max - self.wavelength_min) / self.step) + 1
            return self.wavelength_min + self.step * np.arange(count)
        count = math.floor(math.log10(self.wavelength_max / self.wavelength_min) / self.step) + 1
        return self.wavelength_min * 10 ** (self.step * np.arange(count))

    def resolving_power_at(self, wavelength: np.ndarray) -> np.ndarray:
        """R at each wavelength (angstrom): linear between the card's knots, constant beyond them."""
        knots, powers = np.array(self.resolving_power).T
        return np.interp(wavelength, knots, powers)

    def noise_at(self, wavelength: np.ndarray) -> np.ndarray:
        """Typical standard deviation of a pixel, 1e-17 erg/s/cm2/A, at each wavelength [L] (angstrom, L >= 2).

        By the meaning of `depth`, a source of that AB magnitude has a signal-to-noise ratio of one per angstrom:
        f_nu = 10^(-0.4 (m + 48.6)) erg/s/cm2/Hz, f_lambda = f_nu c / lambda^2.
        """
        flux = 10 ** (-0.4 * (self.depth + 48.6)) * LIGHT_SPEED / wavelength**2 * 1e17
        return flux / np.sqrt(np.gradient(wavelength))

    def features(self) -> Float32[np.ndarray, " F"]:
        """INSTRUMENT_FEATURES of this spectrograph, scaled to order one."""
        middle = math.sqrt(self.wavelength_min * self.wavelength_max)
        step = self.step if self.sampling == "linear" else middle * self.step * math.log(10)
        resolving_power = float(self.resolving_power_at(np.array([middle]))[0])
        return _vector(
            0,
            1,
            0,
            _scaled_log(self.wavelength_min, *_WAVELENGTH),
            _scaled_log(middle, *_WAVELENGTH),
            _scaled_log(self.wavelength_max, *_WAVELENGTH),
            _scaled_log(step, *_WIDTH),
            0,
            _scaled_log(self.fiber_diameter, *_PSF),
            _scaled_depth(self.depth),
            _scaled_log(resolving_power, *_RESOLVING_POWER),
        )


class Arm(Settings):
    """One arm of a low-resolution spectrograph, whose spectra are kept as coefficients of basis functions."""

    name: str
    num_coefficients: Annotated[int, Field(gt=0)]
    wavelength_min: Positive
    """First wavelength that the arm responds to, angstrom, in vacuum."""
    wavelength_max: Positive
    resolving_power: Positive
    """Typical wavelength / FWHM."""


class CoefficientSpectrograph(Settings):
    """A low-resolution spectrograph whose catalogue gives coefficients of basis functions, arm after arm."""

    kind: Literal["coefficients"]
    name: str
    description: str
    reference: str
    unit: str
    """Unit of every coefficient."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _arms_are_unique(self) -> "CoefficientSpectrograph":
        _check_unique([arm.name for arm in self.arms], "arms")
        return self

    @property
    def num_coefficients(self) -> int:
        """Coefficients of all arms together."""
        return sum(arm.num_coefficients for arm in self.arms)

    def features(self) -> Float32[np.ndarray, " F"]:
        """INSTRUMENT_FEATURES of this spectrograph, scaled to order one; width is that of a resolution element."""
        low = min(arm.wavelength_min for arm in self.arms)
        high = max(arm.wavelength_max for arm in self.arms)
        middle = math.sqrt(low * high)
        power = sum(arm.resolving_power for arm in self.arms) / len(self.arms)
        return _vector(
            0,
            1,
            0,
            _scaled_log(low, *_WAVELENGTH),
            _scaled_log(middle, *_WAVELENGTH),
            _scaled_log(high, *_WAVELENGTH),
            _scaled_log(middle / power, *_WIDTH),
            0,
            0,
            0,
            _scaled_log(power, *_RESOLVING_POWER),
        )


class Quantity(Settings):
    """One number of a catalogue."""

    name: str
    unit: str
    description: str
    minimum: float
    maximum: float
    wavelength: Positive | None = None
    """Effective wavelength, angstrom, where the quantity is a brightness."""
    width: Positive | None = None

    @model_validator(mode="after")
    def _range_increases(self) -> "Quantity":
        if not self.minimum < self.maximum:
            raise ValueError(f"minimum {self.minimum} must lie below maximum {self.maximum}")
        return self

    def features(self) -> Float32[np.ndarray, " F"]:
        """INSTRUMENT_FEATURES of this quantity, scaled to order one; zero where it has no wavelength."""
        wavelength = 0.0 if self.wavelength is None else _scaled_log(self.wavelength, *_WAVELENGTH)
        width = 0.0 if self.width is None else _scaled_log(self.width, *_WIDTH)
        return _vector(0, 0, 1, wavelength, wavelength, wavelength, width, 0, 0, 0, 0)


class Catalogue(Settings):
    """A table of measured numbers."""

    kind: Literal["scalar"]
    name: str
    description: str
    reference: str
    quantities: Annotated[tuple[Quantity, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _quantities_are_unique(self) -> "Catalogue":
        _check_unique([quantity.name for quantity in self.quantities], "quantities")
        return self

    def quantity(self, name: str) -> Quantity:
        """The quantity called `name`. Raises LookupError that lists the card's quantities."""
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise LookupError(f"{self.name} has no quantity {name!r}; it has {[q.name for q in self.quantities]}")


Instrument = ImagingInstrument | Spectrograph | CoefficientSpectrograph | Catalogue
_CARD = TypeAdapter(Annotated[Instrument, Field(discriminator="kind")])


def read_card(path: str | Path) -> Instrument:
    """Read and validate one instrument card. Raises SettingsError that names file and key."""
    path = Path(path)
    try:
        return parse_card(parse_yaml(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None


def parse_card(content: Any, source: str) -> Instrument:
    """Validate a card's content, as YAML or JSON give it. Raises SettingsError that names `source` and key."""
    try:
        return _CARD.validate_python(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}; found {e['input']!r}" for e in error.errors()]
        raise SettingsError(f"{source}: not a valid instrument card\n  " + "\n  ".join(lines)) from None


@functools.cache
def instrument(name: str) -> Instrument:
    """The shipped card called `name`. Raises LookupError that names the nearest known one."""
    path = CARDS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = instrument_names()
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise LookupError(f"no instrument card {name!r}; the nearest known is {nearest[0]!r}, all: {known}")
    card = read_card(path)
    if card.name != name:
        raise SettingsError(f"{path}: the card's name is {card.name!r}, the file's {name!r}; they must agree")
    return card


def instrument_names() -> list[str]:
    """Names of all shipped cards."""
    return sorted(path.stem for path in CARDS_FOLDER.glob("*.yaml"))


def band_features(
    band: Band, pixel_scale: float, psf_fwhm: float | None = None, depth: float | None = None
) -> Float32[np.ndarray, " F"]:
    """BAND_FEATURES of one band, scaled to order one; `psf_fwhm` (arcsec) and `depth` (mag) override the card's."""
    return _vector(
        _scaled_log(band.wavelength, *_WAVELENGTH),
        _scaled_log(band.width, *_WIDTH),
        _scaled_log(pixel_scale, *_PIXEL_SCALE),
        _scaled_log(psf_fwhm or band.psf_fwhm, *_PSF),
        _scaled_depth(depth or band.depth),
    )


# (centre, spread) of each logarithm, so that features are of order one for instruments from the ultraviolet to the
# near infrared. They are fixed numbers, not statistics of a training set: a new instrument never moves an old one.
_WAVELENGTH = (6000.0, 0.5)
_WIDTH = (100.0, 3.0)
_PIXEL_SCALE = (0.2, 0.7)
_PSF = (1.0, 0.5)
_RESOLVING_POWER = (2000.0, 1.5)


def _scaled_log(value: float, centre: float, spread: float) -> float:
    return math.log(value / centre) / spread


def _scaled_depth(depth: float) -> float:
    return (depth - 24.0) / 2.0


def _vector(*numbers: Any) -> Float32[np.ndarray, " F"]:
    return np.array(numbers, dtype=np.float32)


def _check_unique(names: list[str], what: str) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{what} must have different names; found twice: {doubled}")
