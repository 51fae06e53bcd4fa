"""Cutouts of the objects in fields of the sky: at the positions of a table, or at the sources that a field shows.

A field is a folder that holds one FITS image for each band. It is left on disk, and the pixels of the cutouts are read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float64
from pydantic import Field, model_validator

from ...settings import Settings
from ..observations import ImageObservation, ObservationError
from .fits_files import FITS_SUFFIXES, naming_file
from .images import CUTOUTS_PER_BATCH, cutout_batches, pixels_of, sources_by_tile
from .mosaics import Mosaic, open_mosaic
from .sky_maps import sky_position
from .table_files import ColumnNames, numbers, object_ids, table_batches


class Positions(Settings):
    """A table of objects: where they are on the sky, or in pixels of a field without WCS."""

    path: Path
    object_id: ColumnNames
    """Column of whole numbers or text that names each object; or several, joined by hyphens."""
    ra: str | None = None
    """Columns of the position, degrees, ICRS."""
    dec: str | None = None
    row: str | None = None
    """Columns of the position in pixels, counted from 0 at the center of the first."""
    column: str | None = None
    field: str | None = None
    """Column that names the folder of the field an object belongs to; without it, an object belongs to every field
    that it lies on."""
    extension: str | int = 1

    @model_validator(mode="after")
    def _one_kind_of_position(self) -> "Positions":
        given = [name for name in ("ra", "dec", "row", "column") if getattr(self, name) is not None]
        if given not in (["ra", "dec"], ["row", "column"]):
            raise ValueError(f"give the columns ra and dec, or row and column; found {given}")
        return self


class Detection(Settings):
    """What counts as a source, as `find_sources` has it."""

    threshold: Annotated[float, Field(gt=0)] = 5.0
    """Standard deviations of the sky."""
    min_pixels: Annotated[int, Field(ge=1)] = 5
    max_sources: Annotated[int, Field(ge=1)] | None = None
    """The brightest of each field; none: all."""


class ImageCutoutSettings(Settings):
    """How the fields' files are called and read, and of which objects cutouts are made."""

    modality: str
    bands: Annotated[dict[str, str], Field(min_length=1)]
    """Band -> name of its image in the folder of a field; `*` stands for any text."""
    inverse_variance: dict[str, str] | None = None
    """Likewise of 1 / (unit of the image)^2; none: measured on the sky."""
    size: Annotated[int, Field(ge=1)] = 96
    """Pixels along a side of a cutout."""
    zero_point: float | None = None
    """AB magnitude of one unit of the images; none: as their BUNIT says."""
    psf_fwhm: dict[str, float] | None = None
    """Band -> arcsec; none: the card's."""
    extension: str | int | None = None
    """Which holds the image; none: the first that does."""
    positions: Positions | None = None
    """The objects; none: the sources that `detection` finds."""
    detection: Detection = Detection()


def field_folders(path: Path) -> list[Path]:
    """The folders at and below `path` that hold FITS files, sorted. Raises ObservationError if there is none."""
    if not path.is_dir():
        raise ObservationError(f"{path}: expected a folder of fields, each a folder with one FITS image for each band")
    found = sorted({file.parent for file in path.rglob("*") if file.name.endswith(FITS_SUFFIXES)})
    if not found:
        raise ObservationError(f"{path}: expected FITS images in it or below it, found none")
    return found


def image_cutout_batches(
    folder: Path, settings: ImageCutoutSettings, *, cutouts_per_batch: int = CUTOUTS_PER_BATCH
) -> Iterator[ImageObservation]:
    """Stream the cutouts of one field, at most `cutouts_per_batch` at a time.

    Objects of the table that lie beyond the field, or in another, are passed over. Sources are called
    `<folder>-<number>`, from the brightest. Raises ObservationError as `open_mosaic` does, if a pattern does not match
    one file, and if an object of the table has no position.
    """
    weights = settings.inverse_variance
    with open_mosaic(
        _files(folder, settings.bands),
        settings.modality,
        zero_point=settings.zero_point,
        inverse_variance=None if weights is None else _files(folder, weights),
        psf_fwhm=settings.psf_fwhm,
        extension=settings.extension,
        name=folder.resolve().name,
    ) as mosaic:
        objects = _detected(mosaic, settings) if settings.positions is None else _listed(mosaic, settings.positions)
        for center, names, ra, dec in objects:
            with naming_file(folder):
                yield from cutout_batches(
                    mosaic, center, settings.size, names, ra, dec, cutouts_per_batch=cutouts_per_batch
                )


Objects = tuple[Float64[np.ndarray, "K 2"], list[str], Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]
"""Places in pixels, names, right ascensions and declinations."""


def _detected(mosaic: Mosaic, settings: ImageCutoutSettings) -> Iterator[Objects]:
    wanted = settings.detection
    tiles = list(sources_by_tile(mosaic, wanted.threshold, min_pixels=wanted.min_pixels, margin=settings.size // 2))
    if tiles:
        total = np.concatenate([tile.flux.sum(1) for tile in tiles])
        brightest = np.argsort(-total, kind="stable")[: wanted.max_sources]
        center = np.concatenate([tile.center for tile in tiles])[brightest]
        yield center, [f"{mosaic.name}-{number}" for number in range(len(center))], *sky_position(mosaic.wcs, center)


def _listed(mosaic: Mosaic, positions: Positions) -> Iterator[Objects]:
    axes = {name: getattr(positions, name) for name in ("ra", "dec", "row", "column")}
    axes = {name: column for name, column in axes.items() if column is not None}
    wanted = [*positions.object_id, *axes.values(), *([positions.field] if positions.field is not None else [])]
    first_row = 0
    for table in table_batches(positions.path, wanted, extension=positions.extension):
        names = object_ids(positions.path, table, positions.object_id, first_row)
        first_row += len(names)
        place = {name: numbers(positions.path, table, column) for name, column in axes.items()}
        for name, values in place.items():
            lost = np.flatnonzero(~np.isfinite(values))
            if len(lost):
                raise ObservationError(
                    f"{positions.path}: object {names[lost[0]]}: {name} must be a finite number, found "
                    f"{values[lost[0]]} in column {axes[name]}"
                )
        if "ra" in place:
            ra, dec = place["ra"], place["dec"]
            center = pixels_of(mosaic, ra, dec)
        else:
            center = np.stack([place["row"], place["column"]], axis=1)
            ra, dec = sky_position(mosaic.wcs, center)
        on_field = ((center >= -0.5) & (center < np.array(mosaic.shape) - 0.5)).all(1)
        if positions.field is not None:
            on_field &= np.array([str(field).strip() == mosaic.name for field in table[positions.field].tolist()])
        rows = np.flatnonzero(on_field)
        if len(rows):
            yield center[rows], [names[row] for row in rows], ra[rows], dec[rows]


def _files(folder: Path, patterns: Mapping[str, str]) -> dict[str, Path]:
    """The one file of each band. Raises ObservationError if there are several, or none."""
    found = {}
    for band, pattern in patterns.items():
        paths = sorted(folder.glob(pattern))
        if len(paths) != 1:
            raise ObservationError(
                f"{folder}: expected one file {pattern} for band {band}, found {[path.name for path in paths]}"
            )
        found[band] = paths[0]
    return found
