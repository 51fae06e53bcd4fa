"""The Multimodal Universe, version 1.5: HATS catalogues of Parquet files, as `hats-import` wrote them from version 1.

A collection is a folder `collection.properties`, `<catalogue>/{hats.properties, partition_info.csv, dataset/Norder=K/
Dir=D/Npix=N.parquet}`, and a margin `<catalogue>_10arcs/` that repeats objects near the borders of pixels and is never
read. Images, spectra and coefficients are structs of nested lists. Layout, names and types are those of the published
catalogue cards (mmu_legacysurvey_dr10_south_21, mmu_hsc_pdr3_dud_22.5, mmu_sdss_sdss, mmu_desi_edr_sv3, mmu_gaia_gaia;
huggingface.co/UniverseTBD and huggingface.co/hugging-science) and of the converter's code; no file of the release
itself was at hand.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...settings import Settings
from ..observations import Observation, ObservationError
from .multimodal_universe_columns import FlagMeaning, Survey
from .multimodal_universe_surveys import SURVEYS
from .nested_columns import column_at, dense, names_at, numbers, padded, selection, texts
from .survey_rows import Rows, identify

CHUNK_BYTES = 32 * 2**20
"""Uncompressed size of the rows that are read at once."""

_PADDING: Mapping[str, float | bool] = {"flux": 0.0, "ivar": 0.0, "wavelength": -1.0, "mask": True, "lsf_sigma": 0.0}
"""How version 1 pads spectra, and so how lists of different length are here."""
_CATALOGUE = re.compile(rf"^mmu_({'|'.join(SURVEYS)})_")
_PIXEL = re.compile(r"Npix=(\d+)")
_OBJECTS = ("object", "source")

_log = logging.getLogger(__name__)


class MultimodalUniverseHatsSettings(Settings):
    """What a HATS catalogue of the Multimodal Universe does not say itself."""

    survey: Literal["legacysurvey", "hsc", "sdss", "desi", "gaia"] | None = None
    """By default what the catalogue's name says: `mmu_<survey>_...`."""
    flag_true_means: FlagMeaning | None = None
    """What True in DESI's ZWARN means, on which the converter's versions disagree; SDSS needs none."""


def catalogue_files(path: str | Path) -> list[Path]:
    """The Parquet files of a collection, a catalogue, or the one file, in the order of HEALPix order and pixel.

    Raises ObservationError if there is none, or if the folder is a margin or another table without objects of its own.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if (path / "collection.properties").is_file():
        properties = _properties(path / "collection.properties")
        if "hats_primary_table_url" not in properties:
            raise ObservationError(f"{path / 'collection.properties'}: hats_primary_table_url is missing")
        path = path / properties["hats_primary_table_url"]
    if not (path / "hats.properties").is_file():
        raise ObservationError(f"{path}: expected collection.properties or hats.properties of a HATS catalogue")
    properties = _properties(path / "hats.properties")
    kind = properties.get("dataproduct_type", "object")
    if kind not in _OBJECTS:
        raise ObservationError(f"{path}: expected a HATS catalogue of objects, found one of kind {kind!r}")
    found = [
        file
        for pixel in (path / "dataset").glob("Norder=*/Dir=*/Npix=*")
        for file in ([pixel] if pixel.is_file() else sorted(pixel.rglob("*.parquet")))
        if not file.name.startswith(".")
    ]
    if not found:
        raise ObservationError(f"{path}: expected files dataset/Norder=*/Dir=*/Npix=*.parquet, found none")
    _report_absent_pixels(path, found)
    return sorted(found, key=lambda file: (*_pixel(file), file.name))


def read_multimodal_universe_hats(
    path: str | Path, settings: MultimodalUniverseHatsSettings | None = None
) -> Iterator[Observation]:
    """All observations of one Parquet file of a HATS catalogue, a bounded number of objects at a time.

    The survey and the names of the columns ra and dec are those of the catalogue's hats.properties, where the file lies
    in one. Positions are the table's own columns, never those inside `astrometry`, which are 32-bit. Raises
    ObservationError, with the file's name, on a file that is missing, truncated or damaged, on missing columns, lists
    of wrong length, ids that come twice and positions that are not finite, and on a boolean redshift flag whose meaning
    nobody stated.
    """
    path = Path(path)
    settings = settings or MultimodalUniverseHatsSettings()
    properties = _properties_above(path)
    survey = SURVEYS[settings.survey or _survey_name(path, properties)]
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        known = _names(path, file)
        missing = [c.parquet for c in survey.columns.values() if c.is_required and c.parquet not in known]
        if missing:
            raise ObservationError(f"{path}: columns {missing} of {survey.name} are missing; found {sorted(known)}")
        everything = _everything(path, file, survey, properties, known)
        everything.warn_of_rounding()
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
        names = [selection(file.schema_arrow, c.parquet) for c in survey.columns.values() if c.parquet in known]
        start = 0
        for batch in file.iter_batches(batch_size=max(1, int(CHUNK_BYTES // max(1.0, row_bytes))), columns=names):
            stop = start + len(batch)
            columns = _columns(batch, survey, everything.part(start, stop, {}), known)
            yield from survey.observations(everything.part(start, stop, columns), settings.flag_true_means)
            start = stop
    except (pa.ArrowException, OSError) as error:
        raise ObservationError(f"{path}: cannot be read as Parquet, cut short or damaged ({error})") from None


def _names(path: Path, file: pq.ParquetFile) -> set[str]:
    try:
        return set(names_at(file.schema_arrow))
    except ValueError as error:
        raise ObservationError(f"{path}: {error}") from None


def _everything(
    path: Path, file: pq.ParquetFile, survey: Survey, properties: Mapping[str, str], known: set[str]
) -> Rows:
    """All objects of the file, without their columns."""
    names = [survey.id_column.parquet, properties.get("hats_col_ra", "ra"), properties.get("hats_col_dec", "dec")]
    missing = [name for name in names if name not in known]
    if missing:
        raise ObservationError(f"{path}: columns {missing} are missing; found {sorted(known)}")
    table = file.read(columns=names)

    def error(row: int, problem: str) -> ObservationError:
        return ObservationError(f"{path}, row {row}: {problem}")

    ids, *position = (column_at(table, name) for name in names)
    ra, dec = (numbers(array, error, name) for array, name in zip(position, names[1:], strict=True))
    return identify(path, ids.to_pylist(), ra, dec)


def _columns(batch: pa.RecordBatch, survey: Survey, rows: Rows, known: set[str]) -> dict[str, np.ndarray]:
    """The survey's columns as arrays, spectra of different length padded as version 1 pads them."""
    found: dict[str, np.ndarray] = {}
    spectra: dict[str, pa.Array] = {}
    for ours, column in survey.columns.items():
        if column.parquet not in known:
            continue
        array = column_at(batch, column.parquet)
        num_axes = _depth(array.type)
        if column.parquet.startswith("spectrum."):
            spectra[ours] = array
        elif ours == "band":
            found[ours] = texts(array, rows.error, column.parquet)
        elif num_axes:
            found[ours] = dense(array, num_axes, rows.error, column.parquet)
        else:
            found[ours] = numbers(array, rows.error, column.parquet)
    if spectra:
        names = [survey.columns[ours].parquet for ours in spectra]
        fills = [_PADDING[ours] for ours in spectra]
        arrays, _ = padded(list(spectra.values()), fills, rows.error, names)
        found |= dict(zip(spectra, arrays, strict=True))
    return found


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return depth


def _pixel(file: Path) -> tuple[int, int]:
    """HEALPix order and pixel, from the names of the folders above a file."""
    order = next(int(part.removeprefix("Norder=")) for part in file.parts if part.startswith("Norder="))
    pixel = next(int(match[1]) for part in reversed(file.parts) if (match := _PIXEL.match(part)))
    return order, pixel


def _report_absent_pixels(path: Path, found: list[Path]) -> None:
    """Log how much of the catalogue is here, where not all: a partial download is allowed, but not in silence."""
    table = path / "partition_info.csv"
    if not table.is_file():
        return
    header, *lines = table.read_text(encoding="utf-8").split()
    names = header.split(",")
    if not {"Norder", "Npix"} <= set(names):
        raise ObservationError(f"{table}: expected columns Norder and Npix, found {names}")
    listed = {tuple(int(line.split(",")[names.index(name)]) for name in ("Norder", "Npix")) for line in lines}
    absent = listed - {_pixel(file) for file in found}
    if absent:
        _log.warning("%s: %d of its %d pixels are not here", path, len(absent), len(listed))


def _properties(path: Path) -> dict[str, str]:
    """A file of lines `key=value`, comments after `#`. Raises ObservationError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ObservationError(f"{path}: cannot be read ({error})") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def _properties_above(path: Path) -> dict[str, str]:
    """The hats.properties of the catalogue in which a file lies; empty outside of one."""
    for folder in path.parents:
        if (folder / "hats.properties").is_file():
            return _properties(folder / "hats.properties")
    return {}


def _survey_name(path: Path, properties: Mapping[str, str]) -> str:
    name = properties.get("obs_collection", "")
    match = _CATALOGUE.match(name)
    if match is None:
        raise ObservationError(
            f"{path}: the catalogue's name, {name!r}, tells no survey (mmu_<survey>_...); state `survey`, one of "
            f"{list(SURVEYS)}"
        )
    return match[1]
