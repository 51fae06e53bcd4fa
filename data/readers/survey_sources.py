"""The survey formats that `armillary data import` knows, by name.

A source says which files a path holds, each a piece that an importer reads, commits and never reads again, and how one
piece is read as a stream of observations. A new format is one entry of `SOURCES`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...settings import Settings, SettingsError
from ..observations import Observation
from .catalogues import ScalarTableSettings, scalar_table_batches, sdss_galaxy_batches
from .fits_files import fits_paths
from .fits_sources import (
    DesiSettings,
    ExposureSettings,
    PlateSettings,
    read_desi_coadd,
    read_desi_spectra,
    read_manga_piece,
    read_plate,
)
from .hugging_face_columns import HuggingFaceSettings
from .image_cutouts import ImageCutoutSettings, field_folders, image_cutout_batches
from .multimodal_universe_hats import (
    MultimodalUniverseHatsSettings,
    catalogue_files,
    read_multimodal_universe_hats,
)
from .multimodal_universe_v1 import read_multimodal_universe_tile, tile_files
from .sdss import read_sdss_object
from .table_files import table_paths


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


def _fits(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda path: fits_paths(path, pattern)


def _read_table(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    if not isinstance(settings, ScalarTableSettings):
        raise TypeError(f"expected ScalarTableSettings, found {type(settings).__name__}")
    yield from scalar_table_batches(piece, settings)


def _read_cutouts(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    if not isinstance(settings, ImageCutoutSettings):
        raise TypeError(f"expected ImageCutoutSettings, found {type(settings).__name__}")
    yield from image_cutout_batches(piece, settings)


def _hugging_face_files(path: Path) -> list[Path]:
    from .hugging_face import hugging_face_files  # `datasets` takes a second to import

    return hugging_face_files(path)


def _read_hugging_face(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    from .hugging_face import read_hugging_face

    if not isinstance(settings, HuggingFaceSettings):
        raise SettingsError("hugging-face: needs settings that say which column holds what (see HuggingFaceSettings)")
    return read_hugging_face(piece, settings)


SOURCES: Mapping[str, Source] = {
    "desi-coadd": Source(
        "DESI coadds (coadd-*.fits) with the redrock file beside each: spectra, redshifts",
        _fits("*coadd-*"),
        read_desi_coadd,
        DesiSettings,
    ),
    "desi-spectra": Source(
        "DESI uncoadded spectra (spectra-*.fits) with the redrock file beside each: spectra, redshifts",
        _fits("*spectra-*"),
        read_desi_spectra,
        ExposureSettings,
    ),
    "sdss-spec": Source(
        "SDSS spec files, one object each: spectra, redshifts",
        _fits("*spec-*"),
        lambda piece, settings: iter(read_sdss_object(piece)),
    ),
    "boss-plate": Source(
        "SDSS and BOSS plates (spPlate-*.fits) with the spZbest file of each: spectra, redshifts",
        _fits("*spPlate-*"),
        read_plate,
        PlateSettings,
    ),
    "manga": Source(
        "MaNGA datacubes (manga-*-LOGCUBE.fits.gz), spectra of spaxels; named alone, a file of rows, with redshifts",
        _fits("*-LOGCUBE*"),
        read_manga_piece,
    ),
    "sdss-galaxies": Source(
        "a table as kcorrect's sample: SDSS and 2MASS magnitudes, redshifts",
        _fits("*"),
        lambda piece, settings: sdss_galaxy_batches(piece),
    ),
    "scalar-table": Source(
        "columns of FITS, Parquet, CSV or ECSV tables as scalars; settings say which",
        table_paths,
        _read_table,
        ScalarTableSettings,
    ),
    "image-cutouts": Source(
        "cutouts from FITS images, a folder for each field, at listed or detected objects; settings say which",
        field_folders,
        _read_cutouts,
        ImageCutoutSettings,
    ),
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
    "hugging-face": Source(
        "Any Hugging Face dataset, a local folder or hf://datasets/<owner>/<name>, by a mapping of its columns",
        _hugging_face_files,
        _read_hugging_face,
        HuggingFaceSettings,
    ),
}
"""All sources, by the name that the command line takes."""
