"""Where the Galaxy has which stars: a simple model of its discs and halo, from which the stars of a line of sight come.

Numbers of stars of each kind and absolute magnitude near the Sun, times how their density falls with place (Juric et
al. 2008, ApJ 673, 864), times the volume at each distance, are how many are seen at each apparent magnitude. There is
no extinction: magnitudes are as if corrected for it.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

SUN_RADIUS, SUN_HEIGHT = 8000.0, 25.0
"""Of the Sun from the Galactic centre and from the plane, parsec (Juric et al. 2008)."""
SUN_VELOCITY = (11.1, 12.24, 7.25)
"""Against the local standard of rest, km/s: towards the centre, along the rotation, to the north pole (Schonrich et al.
2010, MNRAS 403, 1829)."""
KILOMETRES_PER_SECOND = 4.74047
"""Of one arcsec a year at one parsec."""

LUMINOSITY_FUNCTION = (
    (1.0, 0.3), (2.0, 0.8), (3.0, 1.6), (4.0, 2.7), (5.0, 3.3), (6.0, 3.3), (7.0, 3.3), (8.0, 4.3), (9.0, 6.5),
    (10.0, 9.0), (11.0, 9.5), (12.0, 7.5), (13.0, 5.0), (14.0, 4.0), (14.5, 3.5),
)  # fmt: skip
"""Absolute r magnitude, and dwarfs of the thin disc in 1000 cubic parsec for each magnitude: Jahreiss & Wielen 1997
(ESA SP-402, 675) to M_r = 7, Bochanski et al. 2010 (AJ 139, 2679) beyond, joined and rounded."""
TURN_OFF = 4.0
"""Absolute r magnitude of the brightest dwarfs of an old population."""


@dataclass(frozen=True)
class Kind:
    """One population of stars."""

    name: str
    sequence: str
    """Which sequence of spectra it is seen as."""
    metallicity: float
    """[Fe/H]."""
    magnitudes: tuple[float, float]
    """Absolute r magnitudes of its brightest and faintest."""
    dispersion: tuple[float, float, float]
    """Of velocities, km/s: towards the centre, along the rotation, to the north pole."""
    lag: float
    """Of its rotation behind the local standard of rest, km/s."""


KINDS = (
    Kind("thin disc", "dwarf", -0.1, (1.0, 14.5), (35.0, 20.0, 16.0), 15.0),
    Kind("thick disc", "dwarf", -0.6, (TURN_OFF, 14.5), (67.0, 38.0, 35.0), 46.0),
    Kind("halo", "metal_poor", -1.5, (TURN_OFF, 12.0), (160.0, 90.0, 90.0), 220.0),
    Kind("thick disc giants", "giant", -0.6, (-0.5, 3.5), (67.0, 38.0, 35.0), 46.0),
    Kind("halo giants", "giant", -1.5, (-1.0, 3.5), (160.0, 90.0, 90.0), 220.0),
    Kind("white dwarfs", "white_dwarf", 0.0, (10.5, 12.0), (45.0, 28.0, 22.0), 25.0),
)
"""Velocities: Bensby et al. 2003 (A&A 410, 527) for the discs, Chiba & Beers 2000 (AJ 119, 2843) for the halo."""
THICK_SHARE, HALO_SHARE = 0.12, 0.0051
"""Of the thin disc's density at the Sun."""
WHITE_DWARFS = 0.5
"""Hot white dwarfs in 1000 cubic parsec for each magnitude (Harris et al. 2006, AJ 131, 571, at these magnitudes)."""
_STEP = 0.25


@dataclass(frozen=True, eq=False)
class StarDraws:
    """B stars."""

    kind: Int[np.ndarray, " B"]
    """Index into KINDS."""
    r_magnitude: Float[np.ndarray, " B"]
    absolute_magnitude: Float[np.ndarray, " B"]

    @property
    def distance(self) -> Float[np.ndarray, " B"]:
        """Parsec."""
        return 10 ** ((self.r_magnitude - self.absolute_magnitude + 5) / 5)


def draw_stars_along(
    choice: Float[np.ndarray, " B"],
    jitter: Float[np.ndarray, "2 B"],
    longitude: Float[np.ndarray, " B"],
    latitude: Float[np.ndarray, " B"],
    magnitudes: tuple[float, float],
) -> StarDraws:
    """One star in each direction (Galactic, degrees) with an apparent r magnitude between the two.

    `choice` and `jitter` are random numbers in [0, 1).
    """
    kinds, absolute, _ = _local_densities()
    edges, number = _numbers(longitude, latitude, magnitudes)
    cumulative = number.reshape(len(choice), -1).cumsum(1)
    cell = (cumulative < (choice * cumulative[:, -1])[:, None]).sum(1)
    star, apparent = np.divmod(cell, len(edges) - 1)
    return StarDraws(
        kind=kinds[star],
        r_magnitude=edges[apparent] + jitter[0] * (edges[1] - edges[0]),
        absolute_magnitude=absolute[star] + (jitter[1] - 0.5) * _STEP,
    )


def stars_per_square_degree(
    longitude: Float[np.ndarray, " B"], latitude: Float[np.ndarray, " B"], magnitudes: tuple[float, float]
) -> Float[np.ndarray, " B"]:
    """How many stars between two apparent r magnitudes there are in each direction (Galactic, degrees)."""
    return _numbers(longitude, latitude, magnitudes)[1].sum((1, 2)) * np.radians(1.0) ** 2


def galactic_coordinates(
    ra: Float[np.ndarray, " B"], dec: Float[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Galactic longitude and latitude, degrees, of ICRS positions in degrees."""
    x, y, z = GALACTIC_AXES @ _direction(np.radians(ra), np.radians(dec))
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(np.clip(z, -1, 1)))


def motions(
    stars: StarDraws, normal: Float[np.ndarray, "3 B"], ra: Float[np.ndarray, " B"], dec: Float[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Proper motion in right ascension (times cos dec) and declination, mas a year, and radial velocity, km/s.

    `normal` are three standard normal numbers for each star; ra and dec are in degrees (ICRS). The rotation of the
    Galaxy is taken as that of the Sun's place, everywhere: good to a kiloparsec or two.
    """
    dispersion = np.array([kind.dispersion for kind in KINDS], np.float64)[stars.kind].T
    lag = np.array([kind.lag for kind in KINDS], np.float64)[stars.kind]
    velocity = dispersion * normal - np.array(SUN_VELOCITY)[:, None]
    velocity[1] -= lag
    equatorial = GALACTIC_AXES.T @ velocity
    alpha, delta = np.radians(ra), np.radians(dec)
    radial = _direction(alpha, delta)
    east = np.stack([-np.sin(alpha), np.cos(alpha), np.zeros(len(alpha))])
    north = np.stack([-np.sin(delta) * np.cos(alpha), -np.sin(delta) * np.sin(alpha), np.cos(delta)])
    scale = 1e3 / (KILOMETRES_PER_SECOND * stars.distance)
    return (east * equatorial).sum(0) * scale, (north * equatorial).sum(0) * scale, (radial * equatorial).sum(0)


GALACTIC_AXES = np.array(
    [
        [-0.0548755604162154, -0.8734370902348850, -0.4838350155487132],
        [0.4941094278755837, -0.4448296299600112, 0.7469822444972189],
        [-0.8676661490190047, -0.1980763734312015, 0.4559837761750669],
    ]
)
"""Turns ICRS into Galactic directions (ESA 1997, The Hipparcos Catalogue, vol. 1, eq. 1.5.11)."""


def _direction(longitude: np.ndarray, latitude: np.ndarray) -> Float[np.ndarray, "3 B"]:
    return np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])


@functools.cache
def _local_densities() -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Cells of (kind, absolute magnitude): the kind, the magnitude, and stars in 1000 pc^3 at the Sun."""
    known, density = np.array(LUMINOSITY_FUNCTION).T
    kinds, magnitudes, local = [], [], []
    for index, kind in enumerate(KINDS):
        low, high = kind.magnitudes
        absolute = np.arange(low + _STEP / 2, high, _STEP)
        share = THICK_SHARE if "thick" in kind.name else HALO_SHARE if "halo" in kind.name else 1.0
        if kind.sequence == "giant":
            # A giant branch thins out upwards as old clusters do: a factor of two for each magnitude.
            number = 0.15 * np.interp(TURN_OFF, known, density) * 10 ** (0.32 * (absolute - 3.5))
        elif kind.sequence == "white_dwarf":
            number = np.full(len(absolute), WHITE_DWARFS)
        else:
            number = np.interp(absolute, known, density)
        kinds.append(np.full(len(absolute), index))
        magnitudes.append(absolute)
        local.append(number * share * _STEP)
    return np.concatenate(kinds), np.concatenate(magnitudes), np.concatenate(local)


def _numbers(
    longitude: Float[np.ndarray, " B"], latitude: Float[np.ndarray, " B"], magnitudes: tuple[float, float]
) -> tuple[Float[np.ndarray, " edges"], Float[np.ndarray, "B M r"]]:
    """Edges of cells in apparent magnitude, and stars of each local cell within them on a steradian."""
    kinds, absolute, local = _local_densities()
    count = max(1, round((magnitudes[1] - magnitudes[0]) / _STEP))
    edges = np.linspace(*magnitudes, count + 1)
    distance = 10 ** (((edges[1:] + edges[:-1]) / 2 - absolute[:, None] + 5) / 5)  # [M, r] parsec
    shape = _densities(distance, longitude, latitude)  # [population, B, M, r]
    population = np.array([("thin" in k.name or "white" in k.name, "thick" in k.name, "halo" in k.name) for k in KINDS])
    volume = distance**3 * (np.log(10) / 5) * (edges[1] - edges[0])  # of a steradian, d^2 dd = d^3 ln(10) / 5 dm
    density = local[:, None] / 1000 * volume
    return edges, np.einsum("mp,pbmr->bmr", population[kinds].astype(float), shape) * density


def _densities(
    distance: Float[np.ndarray, "M r"], longitude: Float[np.ndarray, " B"], latitude: Float[np.ndarray, " B"]
) -> Float[np.ndarray, "3 B M r"]:
    """Density of thin disc, thick disc and halo over that at the Sun, at these distances (parsec) in each direction."""
    x, y, z = _direction(np.radians(longitude), np.radians(latitude))[..., None, None] * distance
    radius, height = np.hypot(SUN_RADIUS - x, y), z + SUN_HEIGHT
    thin = np.exp(-(radius - SUN_RADIUS) / 2600 - (np.abs(height) - SUN_HEIGHT) / 300)
    thick = np.exp(-(radius - SUN_RADIUS) / 3600 - (np.abs(height) - SUN_HEIGHT) / 900)
    halo = (SUN_RADIUS / np.sqrt(radius**2 + (height / 0.64) ** 2 + 500.0**2)) ** 2.77
    return np.stack([thin, thick, halo])
