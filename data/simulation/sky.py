"""The simulated sky: what each instrument would measure of objects that are drawn from a population.

One spectrum of each object gives the flux in every band, the light in every fibre and every catalogue magnitude, so all
modalities agree on the object. An object and all noise of its measurements depend on the settings and its row alone:
batches of any rows, in any order, are parts of the same sky (up to rounding), so that it can be written to disk in
parallel or be a source of training examples without a disk. Besides the instruments that all objects are seen through,
there may be random ones, each of which sees a part of the sky.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from ...settings import Settings
from ..filters import flux_to_magnitude
from ..instruments import ImagingInstrument, Spectrograph
from ..modalities import Modality, modality
from ..observations import Observation
from .galaxies import MAGNITUDE_LIMITS
from .neighbour_pool import neighbours_of
from .observe_gaia import QUANTITIES as GAIA_QUANTITIES
from .observe_gaia import observe_gaia_scalars, observe_gaia_spectra
from .observe_images import band_flux, observe_images
from .observe_scalars import LATENTS, is_simulated, observe_scalars
from .observe_spectra import observe_spectra
from .random_instruments import image_size, random_camera, random_spectrograph
from .scene import Neighbours
from .sky_objects import CLASSES, Population, SkyObjects, draw_objects

DEFAULT_MODALITIES = (
    "image/legacysurvey",
    "image/hsc",
    "spectrum/desi",
    "spectrum/sdss",
    *(f"scalar/{name}" for name in LATENTS),
    *(f"scalar/legacysurvey_{band}" for band in "grz"),
    *(f"scalar/sdss_{band}" for band in "ugriz"),
)
FIELD_MARGIN = 3.0
"""Arcsec beyond an image's corners and a fibre's edge in which a neighbour still matters."""
DEFAULT_IMAGE_SIZES = {"image/legacysurvey": 48, "image/hsc": 64}
MAX_RANDOM = 1000
"""Most random instruments of a kind."""
_RANDOM = re.compile(r"(?P<kind>image|spectrum)/random_(?P<number>\d{3})")


class SkySettings(Settings):
    """How much sky to simulate, and through which modalities."""

    num_objects: Annotated[int, Field(gt=0)] = 3000
    seed: Annotated[int, Field(ge=0)] = 0
    magnitude_limit: Annotated[float, Field(ge=MAGNITUDE_LIMITS[0], le=MAGNITUDE_LIMITS[1])] = 19.8
    """Faintest DECam r magnitude, AB: of galaxies, stars, and the nuclei of quasars."""
    star_fraction: Annotated[float, Field(ge=0, le=1)] = 0.06
    quasar_fraction: Annotated[float, Field(ge=0, le=1)] = 0.04
    """Of all objects; the rest are galaxies."""
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_MODALITIES
    image_sizes: dict[str, Annotated[int, Field(ge=8, le=1024)]] = Field(
        default_factory=lambda: dict(DEFAULT_IMAGE_SIZES)
    )
    """Pixels along each side of the images of a modality."""
    random_cameras: Annotated[int, Field(ge=0, le=MAX_RANDOM)] = 0
    """How many cameras are drawn at random, by the seed (`random_instruments.py`). The objects of each shard are seen
    through one of them, in turn: `image/random_000` and so on have a part of the objects each."""
    random_spectrographs: Annotated[int, Field(ge=0, le=MAX_RANDOM)] = 0
    """Likewise: `spectrum/random_000` and so on."""
    shard_size: Annotated[int, Field(gt=0)] = 500
    """Objects of one HEALPix pixel, which is one file of each modality."""
    healpix_order: Annotated[int, Field(ge=0, le=12)] = 5
    """Of that pixel; 5 is 1.8 degrees."""
    neighbours: bool = True
    """Whether galaxies and stars to r = 24 lie beside the objects, in images and fibres; catalogues know of none."""
    close_companions: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of galaxies with a companion within 3.5 arcsec, besides those that chance puts there."""
    real_background: bool = False
    """Whether HSC images have noise of real sky, in the bands of which some is shipped (g, r, i), or white noise."""

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
    def _fits_the_sky(self) -> "SkySettings":
        missing = [n for n in self.modalities if modality(n).kind == "image" and n not in self.image_sizes]
        if missing:
            raise ValueError(f"image_sizes must name every image modality; it lacks {missing}")
        if self.star_fraction + self.quasar_fraction > 1:
            raise ValueError(
                f"star_fraction and quasar_fraction must not exceed 1 together, found {self.star_fraction} and "
                f"{self.quasar_fraction}"
            )
        if self.num_objects > self.population.num_rows:
            raise ValueError(
                f"num_objects must be at most {self.population.num_rows}, shard_size for each pixel of healpix_order"
            )
        return self

    @property
    def population(self) -> Population:
        """What decides which object a row is."""
        return Population(
            seed=self.seed,
            magnitude_limit=self.magnitude_limit,
            star_fraction=self.star_fraction,
            quasar_fraction=self.quasar_fraction,
            shard_size=self.shard_size,
            healpix_order=self.healpix_order,
        )

    def modalities_of(self, shard: int) -> tuple[Modality, ...]:
        """What sees the objects of rows [shard, shard + 1) * shard_size: `modalities`, then random instruments."""
        return tuple(modality(name) for name in self.modalities) + self.random_instruments(shard)

    def random_instruments(self, shard: int) -> tuple[Modality, ...]:
        """The random camera and the random spectrograph of a shard, if there are any."""
        return tuple(
            draw(self.seed, shard % count)
            for draw, count in ((random_camera, self.random_cameras), (random_spectrograph, self.random_spectrographs))
            if count
        )

    def declared(self, modality_name: str) -> Modality:
        """The modality of this name: of the registry, or a random instrument of this sky.

        Raises LookupError that names the nearest known one.
        """
        found = _RANDOM.fullmatch(modality_name)
        if found is not None:
            draw, count = {
                "image": (random_camera, self.random_cameras),
                "spectrum": (random_spectrograph, self.random_spectrographs),
            }[found["kind"]]
            if int(found["number"]) < count:
                return draw(self.seed, int(found["number"]))
        return modality(modality_name)


class SimulatedSky:
    """A source of observations that needs no disk: any rows, in any order, at any time.

    Spectra and noiseless images are computed on `device`; noise is drawn on the CPU, object by object, so that it does
    not depend on the batch, and observations lie on the CPU.
    """

    def __init__(self, settings: SkySettings, device: torch.device | str = "cpu"):
        self.settings = settings
        self.device = torch.device(device)

    def __len__(self) -> int:
        """Number of objects; rows beyond are those of a larger sky of the same settings."""
        return self.settings.num_objects

    def objects(self, rows: Sequence[int] | np.ndarray) -> SkyObjects:
        """The objects of these rows, with all that is true of them. Raises ValueError for rows beyond any sky."""
        return draw_objects(self.settings.population, np.asarray(rows, np.int64), self.device)

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, Observation]:
        """For each modality, by name, the observation of these rows, in their order.

        Random instruments come after the modalities of the settings, by name, each with those of the rows that it sees.
        """
        objects = self.objects(rows)
        found = {name: self.observe(objects, name) for name in self.settings.modalities}
        seen = defaultdict(list)
        for place, shard in enumerate((objects.row // self.settings.shard_size).tolist()):
            for instrument in self.settings.random_instruments(shard):
                seen[instrument.name].append(place)
        return found | {name: self.observe(objects.select(seen[name]), name) for name in sorted(seen)}

    def observe(self, objects: SkyObjects, modality_name: str) -> Observation:
        """What one modality measures of `objects`; a random instrument may look at any of them.

        Raises LookupError if the sky has no such modality.
        """
        declared = self.settings.declared(modality_name)
        if isinstance(declared.card, ImagingInstrument):
            size = self.settings.image_sizes.get(modality_name) or image_size(declared.card)
            neighbours = self.neighbours(objects, size * declared.card.pixel_scale / math.sqrt(2) + FIELD_MARGIN)
            return observe_images(objects, declared, size, neighbours, real_background=self.settings.real_background)
        if isinstance(declared.card, Spectrograph):
            neighbours = self.neighbours(objects, declared.card.fiber_diameter / 2 + FIELD_MARGIN)
            return observe_spectra(objects, declared, neighbours)
        if declared.card.name == "gaia_bp_rp":
            return observe_gaia_spectra(objects, declared)
        if declared.card.name == "gaia_catalogue":
            return observe_gaia_scalars(objects, declared)
        return observe_scalars(objects, declared)

    def neighbours(self, objects: SkyObjects, field_radius: float) -> Neighbours | None:
        """What lies within `field_radius` arcsec of the objects, the same for any radius; None if the sky has none.

        With `scene.share_within`, it tells how much of an image's or a fibre's light is not the object's.
        """
        if not self.settings.neighbours:
            return None
        flux = band_flux(objects, ("decam2014-r",)).sum(1)[:, 0].double().cpu().numpy()
        # Stars have no companions, and quasars are too few to matter.
        magnitude = np.where(
            objects.object_class == CLASSES.index("galaxy"), flux_to_magnitude(flux.clip(1e-9)), np.nan
        )
        return neighbours_of(self.settings.seed, objects.row, magnitude, field_radius, self.settings.close_companions)


def simulate_sky(settings: SkySettings, batch_size: int = 256) -> Iterator[list[Observation]]:
    """Batches of at most `batch_size` objects: for each, one observation of every modality, as `SimulatedSky.batch`."""
    sky = SimulatedSky(settings)
    for start in range(0, len(sky), batch_size):
        rows = np.arange(start, min(start + batch_size, len(sky)))
        yield list(sky.batch(rows).values())


def _check_simulated(declared: Modality) -> None:
    """Raise LookupError if there is nothing that makes observations of a modality."""
    if declared.card.name == "gaia_catalogue":
        is_known = declared.quantity_name in GAIA_QUANTITIES
    elif declared.kind == "scalar":
        is_known = is_simulated(declared)
    else:
        is_known = declared.kind in ("image", "spectrum") or declared.card.name == "gaia_bp_rp"
    if not is_known:
        raise LookupError(f"{declared.name} is not simulated")
