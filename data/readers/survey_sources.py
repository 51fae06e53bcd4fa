"""The survey formats that `armillary data import` knows, by name.

A source says which files a path holds, each a piece that an importer reads, commits and never reads again, and how one
piece is read as a stream of observations. A new format is one entry of `SOURCES`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...settings import Settings
from ..observations import Observation
from .multimodal_universe_hats import (
    MultimodalUniverseHatsSettings,
    catalogue_files,
    read_multimodal_universe_hats,
)
from .multimodal_universe_v1 import read_multimodal_universe_tile, tile_files


@dataclass(frozen=True)
class Source:
    """One survey format."""

    description: str
    files: Callable[[Path], list[Path]]
    """The pieces below a path, sorted. Raises ObservationError if there is none."""
    read: Callable[[Path, Settings | None], Iterator[Observation]]
    """The observations of one piece, a bounded number of objects at a time. Raises ObservationError."""
    settings: type[Settings] | None = None
    """What `read` must be told besides the piece: a model that YAML fills; none where the format says it all."""


def _tiles(survey_name: str, holds: str) -> Source:
    return Source(
        f"Multimodal Universe v1 (HDF5 tiles), {survey_name}: {holds}",
        tile_files,
        lambda piece, settings: read_multimodal_universe_tile(piece, survey_name),
    )


def _read_hats(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    assert settings is None or isinstance(settings, MultimodalUniverseHatsSettings)
    return read_multimodal_universe_hats(piece, settings)


SOURCES: Mapping[str, Source] = {
    "mmu-v1-legacysurvey": _tiles("legacysurvey", "images in g r i z, photometry, shapes"),
    "mmu-v1-hsc": _tiles("hsc", "images in g r i z y, magnitudes"),
    "mmu-v1-sdss": _tiles("sdss", "spectra, redshifts"),
    "mmu-v1-desi": _tiles("desi", "spectra, redshifts, photometry of the Legacy Surveys"),
    "mmu-v1-gaia": _tiles("gaia", "BP/RP coefficients, photometry, astrometry, radial velocities"),
    "mmu-hats": Source(
        "Multimodal Universe v1.5 (HATS catalogues): the same surveys",
        catalogue_files,
        _read_hats,
        MultimodalUniverseHatsSettings,
    ),
}
"""All sources, by the name that the command line takes."""
