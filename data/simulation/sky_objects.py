"""The objects of a simulated sky, of all classes: what every instrument needs to know of them.

A row of a sky is an object, and a function of the sky's seed and the row alone: its class, its place, its properties
and its noiseless spectra, split into the components that look different in an image.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import hpgeom
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..sky_partition import ORDER, Pixel
from .cosmology import SPEED_OF_LIGHT_KM_S
from .galaxies import draw_galaxies, galaxy_spectra
from .object_random import uniforms
from .quasars import draw_quasars, quasar_spectra
from .record import id_prefix
from .stars import draw_stars, star_spectra
from .wavelength_grid import observed_wavelength

Rows = Int[np.ndarray, " b"]
Degrees = Float[np.ndarray, " b"]

CLASSES = ("galaxy", "star", "quasar")
COMPONENTS = ("bulge", "disc", "point")
TRUTHS = (
    "redshift",
    "log_stellar_mass",
    "log_specific_star_formation_rate",
    "bulge_fraction",
    "inclination",
    "parallax",
    "pm_ra",
    "pm_dec",
    "radial_velocity",
)
"""What is known of an object beyond its light, in the units of `Galaxies`, `Stars` and `Quasars`; NaN where an object
of its class has no such thing. The redshift of a star is its radial velocity over that of light."""


@dataclass(frozen=True, eq=False)
class SkyObjects:
    """B objects. P runs over COMPONENTS, L over `observed_wavelength()`; lengths on the sky are half-light radii."""

    seed: int
    row: Int[np.ndarray, " B"]
    ra: Float[np.ndarray, " B"]
    """Degrees, ICRS, as is dec."""
    dec: Float[np.ndarray, " B"]
    object_class: Int[np.ndarray, " B"]
    """Index into CLASSES."""
    radius: Float[np.ndarray, "B P"]
    """Along the major axis, arcsec; zero for a point."""
    axis_ratio: Float[np.ndarray, "B P"]
    position_angle: Float[np.ndarray, " B"]
    """Of the major axis, degrees in [0, 180), from north (up) through east (left)."""
    spectra: Float[Tensor, "B P L"]
    """Of all the light of each component, 1e-17 erg/s/cm2/A."""
    truth: dict[str, Float[np.ndarray, " B"]]
    """For each of TRUTHS."""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def object_id(self) -> tuple[str, ...]:
        """`sim-<seed>-<row>`."""
        prefix = id_prefix(self.seed)
        return tuple(f"{prefix}{row}" for row in self.row.tolist())

    def select(self, rows: slice | Sequence[int] | np.ndarray) -> "SkyObjects":
        """The objects of these rows, in this order."""
        index = np.arange(len(self))[rows]
        chosen = {
            f.name: getattr(self, f.name)[index]
            for f in dataclasses.fields(self)
            if f.name not in ("seed", "spectra", "truth")
        }
        return dataclasses.replace(
            self,
            **chosen,
            spectra=self.spectra[torch.from_numpy(index).to(self.spectra.device)],
            truth={name: values[index] for name, values in self.truth.items()},
        )


@dataclass(frozen=True)
class Population:
    """What decides which object a row is."""

    seed: int
    magnitude_limit: float
    """Faintest galaxy, star and nucleus of a quasar, DECam r, AB."""
    star_fraction: float
    quasar_fraction: float
    shard_size: int
    """Objects of consecutive rows that lie in one HEALPix pixel."""
    healpix_order: int
    """Of that pixel."""

    @property
    def num_rows(self) -> int:
        """How many objects the whole sky holds."""
        return self.shard_size * 12 * 4**self.healpix_order

    def pixel(self, shard: int) -> Pixel:
        """The pixel of the objects of rows [shard, shard + 1) * shard_size; pixels of nearby shards lie far apart."""
        count = 12 * 4**self.healpix_order
        first = int(np.random.default_rng([_STREAM, self.seed]).integers(count))
        return Pixel(self.healpix_order, (first + shard * _stride(count)) % count)


def draw_objects(population: Population, rows: Int[np.ndarray, " B"], device: torch.device | str = "cpu") -> SkyObjects:
    """The objects of these rows, in this order; spectra are computed and stay on `device`.

    Raises ValueError if a row is negative or beyond `population.num_rows`.
    """
    if len(rows) and not 0 <= rows.min() <= rows.max() < population.num_rows:
        raise ValueError(f"rows must lie in [0, {population.num_rows}), found {rows.min()} to {rows.max()}")
    ra, dec = positions(population, rows)
    choice, angle = uniforms("class and orientation", population.seed, rows, 2)
    edges = np.cumsum([1 - population.star_fraction - population.quasar_fraction, population.star_fraction])
    object_class = np.searchsorted(edges, choice, side="right")
    radius, axis_ratio = np.zeros((len(rows), 3)), np.ones((len(rows), 3))
    spectra = torch.zeros(len(rows), 3, len(observed_wavelength()), device=device)
    truth = {name: np.full(len(rows), np.nan) for name in TRUTHS}
    for index, draw in enumerate((_galaxies, _stars, _quasars)):
        chosen = np.flatnonzero(object_class == index)
        if len(chosen):
            part = draw(population, rows[chosen], ra[chosen], dec[chosen], device)
            radius[chosen], axis_ratio[chosen] = part.radius, part.axis_ratio
            spectra[torch.from_numpy(chosen).to(device)] = part.spectra
            for name, values in part.truth.items():
                truth[name][chosen] = values
    return SkyObjects(
        seed=population.seed,
        row=rows,
        ra=ra,
        dec=dec,
        object_class=object_class,
        radius=radius,
        axis_ratio=axis_ratio,
        position_angle=180 * angle,
        spectra=spectra,
        truth=truth,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The objects of one class."""

    radius: Float[np.ndarray, "b P"]
    axis_ratio: Float[np.ndarray, "b P"]
    spectra: Float[Tensor, "b P L"]
    truth: dict[str, Float[np.ndarray, " b"]]


def _galaxies(population: Population, rows: Rows, ra: Degrees, dec: Degrees, device: torch.device | str) -> _Part:
    galaxies = draw_galaxies(rows, population.seed, population.magnitude_limit)
    known = ("redshift", "log_stellar_mass", "log_specific_star_formation_rate", "bulge_fraction", "inclination")
    return _Part(
        radius=np.pad(galaxies.radius, ((0, 0), (0, 1))),
        axis_ratio=np.pad(galaxies.axis_ratio, ((0, 0), (0, 1)), constant_values=1.0),
        spectra=pad(galaxy_spectra(galaxies, device), (0, 0, 0, 1)),
        truth={name: getattr(galaxies, name) for name in known},
    )


def _stars(population: Population, rows: Rows, ra: Degrees, dec: Degrees, device: torch.device | str) -> _Part:
    stars = draw_stars(rows, population.seed, ra, dec, population.magnitude_limit)
    known = ("parallax", "pm_ra", "pm_dec", "radial_velocity")
    truth = {name: getattr(stars, name) for name in known}
    return _Part(
        radius=np.zeros((len(rows), 3)),
        axis_ratio=np.ones((len(rows), 3)),
        spectra=pad(star_spectra(stars, device)[:, None], (0, 0, 2, 0)),
        truth=truth | {"redshift": stars.radial_velocity / SPEED_OF_LIGHT_KM_S},
    )


def _quasars(population: Population, rows: Rows, ra: Degrees, dec: Degrees, device: torch.device | str) -> _Part:
    quasars = draw_quasars(rows, population.seed, population.magnitude_limit)
    flattened = np.stack([np.ones(len(rows)), quasars.host_axis_ratio, np.ones(len(rows))], 1)
    return _Part(
        radius=np.pad(quasars.host_radius, ((0, 0), (0, 1))),
        axis_ratio=flattened,
        spectra=quasar_spectra(quasars, device),
        truth={"redshift": quasars.redshift},
    )


def positions(
    population: Population, rows: Int[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Right ascension and declination (degrees) of the objects: uniform within the pixel of their shard."""
    (place,) = uniforms("position", population.seed, rows, 1)
    shards, inverse = np.unique(rows // population.shard_size, return_inverse=True)
    first = np.array([population.pixel(int(shard)).first for shard in shards], np.int64)
    width = 4 ** (ORDER - population.healpix_order)
    index = first[inverse] + np.minimum((place * width).astype(np.int64), width - 1)
    ra, dec = hpgeom.pixel_to_angle(2**ORDER, index, nest=True)
    return ra % 360, dec


_STREAM = zlib.crc32(b"shards")


@functools.cache
def _stride(count: int) -> int:
    """A whole number near the golden section of `count` and coprime to it: its multiples spread over all pixels."""
    stride = round(count * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride
