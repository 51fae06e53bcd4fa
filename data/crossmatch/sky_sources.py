"""Where a catalogue's positions come from: a dataset of Armillary, a HATS catalogue, or a table in a file.

Only ids, positions and proper motions are read here, never the heavy columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import create_model

from ...settings import Settings, SettingsError, load_settings
from ..dataset import ObservationDataset, catalogues
from ..hats_catalogue import DATASET_FOLDER, PROPERTIES, read_properties
from ..observations import ObservationError
from ..readers.table_files import numbers, table_batches
from .sky_table import SkyTable

COLLECTION = "collection.properties"
GAIA_MOTION = ("scalar/gaia_pm_ra", "scalar/gaia_pm_dec")
"""Modalities that hold proper motions, mas/yr, as instrument card gaia_catalogue declares them."""
GAIA_EPOCH = 2016.0
"""Julian year of positions in Gaia DR3 (Gaia Collaboration, Vallenari et al. 2023, arXiv 2208.00211)."""


@dataclass(frozen=True)
class SkySource:
    """A catalogue to be matched, and how its objects are called there.

    `path` is the folder of a dataset or of a HATS catalogue, or a table (.fits, .parquet, .csv, .ecsv). `name` of the
    survey is by default that of the folder or file. The column names are for tables and plain HATS catalogues;
    `object_id=None` means that the row number is the id. `epoch` is the Julian year of the positions.
    `allow_duplicates` lets two objects be at exactly one place.
    """

    path: str | Path
    name: str = ""
    object_id: str | None = "object_id"
    ra: str = "ra"
    dec: str = "dec"
    pm_ra: str | None = None
    pm_dec: str | None = None
    epoch: float | None = None
    allow_duplicates: bool = False

    @property
    def survey(self) -> str:
        """The name, given or taken from the path."""
        return self.name or Path(self.path).name.split(".")[0]

    @property
    def is_dataset(self) -> bool:
        """Whether it is a dataset of Armillary, with modalities to be joined."""
        return Path(self.path).is_dir() and bool(catalogues(Path(self.path)))


def parse_sources(words: Sequence[str], settings: Sequence[str] = ()) -> list[SkySource]:
    """Sources as a command line names them: `PATH` or `NAME=PATH`, and `NAME.KEY=VALUE` for their other fields.

    Raises SettingsError on a setting of no source, an unknown key, or a value of the wrong type.
    """
    sources = []
    for word in words:
        name, named, path = word.partition("=")
        sources.append(SkySource(path, name) if named and "/" not in name else SkySource(word))
    given: dict[str, list[str]] = {source.survey: [] for source in sources}
    for setting in settings:
        name, _, override = setting.partition(".")
        if name not in given:
            raise SettingsError(f"{setting}: expected NAME.KEY=VALUE, and NAME to be one of {list(given)}")
        given[name].append(override)
    columns: dict[str, Any] = {field.name: (field.type, field.default) for field in fields(SkySource)[2:]}
    model: Any = create_model("SkySourceSettings", __base__=Settings, **columns)
    return [replace(source, **load_settings(model, None, given[source.survey]).model_dump()) for source in sources]


def read_sky_table(source: SkySource | str | Path) -> SkyTable:
    """Ids, positions and, where known, proper motions of a source's objects.

    A dataset of Gaia's modalities alone brings its proper motions and epoch; any other, with GAIA_MOTION, does if
    `epoch` says of when its positions are. Raises ObservationError if the source or a column is missing, if an object
    of a dataset has different positions in two modalities, and as SkyTable does.
    """
    if not isinstance(source, SkySource):
        source = SkySource(source)
    path = Path(source.path)
    if source.is_dataset:
        return _from_dataset(source)
    if (path / PROPERTIES).is_file() or (path / COLLECTION).is_file():
        return _from_hats(source)
    if path.is_dir():
        raise ObservationError(
            f"{path}: expected a dataset <kind>/<survey>, a HATS catalogue or a table, found neither"
        )
    return _from_table(source)


def _from_dataset(source: SkySource) -> SkyTable:
    dataset = ObservationDataset(source.path)
    names = [modality.name for modality in dataset.modalities]
    parts = [file.read_identity().select(["object_id", "ra", "dec"]) for name in names for file in dataset.files(name)]
    table = pa.concat_tables(parts).group_by("object_id", use_threads=False)
    table = table.aggregate([(column, what) for column in ("ra", "dec") for what in ("min", "max")])
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "object_id"}
    differs = (columns["ra_min"] != columns["ra_max"]) | (columns["dec_min"] != columns["dec_max"])
    differs &= ~np.isnan(columns["ra_min"] + columns["dec_min"])
    if differs.any():
        row = int(np.argmax(differs))
        one, other = ((columns[f"ra_{what}"][row], columns[f"dec_{what}"][row]) for what in ("min", "max"))
        raise ObservationError(
            f"{source.path}, object {table['object_id'][row]}: expected one position in all modalities, found "
            f"coordinates between {one} and {other}"
        )
    object_id = table["object_id"].combine_chunks().cast(pa.large_string())
    ra, dec = columns["ra_min"], columns["dec_min"]
    is_gaia = all(name.split("/")[1].startswith("gaia_") for name in names)
    epoch = source.epoch if source.epoch is not None or not is_gaia else GAIA_EPOCH
    motion: dict[str, Any] = {}
    if set(GAIA_MOTION) <= set(names) and epoch is not None:
        motion = {
            column: _values(dataset, name, object_id)
            for column, name in zip(("pm_ra", "pm_dec"), GAIA_MOTION, strict=True)
        }
    return SkyTable(source.survey, object_id, ra, dec, **motion, epoch=epoch, allow_duplicates=source.allow_duplicates)


def _values(dataset: ObservationDataset, name: str, object_id: Any) -> np.ndarray:
    """A scalar modality for these objects, NaN where it is missing."""
    found = np.full(len(object_id), np.nan)
    for file in dataset.files(name):
        table = file.read_table(np.arange(file.num_rows))
        rows = pc.index_in(table["object_id"].cast(pa.large_string()), object_id).to_numpy()
        mask = table["mask"].to_numpy()
        found[rows[mask]] = table["values"].to_numpy()[mask]
    return found


def _from_hats(source: SkySource) -> SkyTable:
    path = Path(source.path)
    if (path / COLLECTION).is_file():
        path = path / read_properties(path, COLLECTION)["hats_primary_table_url"]
    properties = read_properties(path)
    columns = {name: properties.get(f"hats_col_{name}") or getattr(source, name) for name in ("ra", "dec")}
    source = SkySource(**{**source.__dict__, **columns, "name": source.survey})
    names = _wanted(source)
    parts = []
    for file in sorted((path / DATASET_FOLDER).glob("Norder=*/**/*.parquet")):
        try:
            with pq.ParquetFile(file) as opened:
                missing = [name for name in names if name not in opened.schema_arrow.names]
                if missing:
                    raise ObservationError(f"{file}: columns {missing} are missing; found {opened.schema_arrow.names}")
                parts.append(opened.read(names))
        except (pa.ArrowException, OSError) as error:
            raise ObservationError(f"{file}: expected a whole Parquet file; {error}") from None
    if not parts:
        raise ObservationError(f"{path}: expected files {DATASET_FOLDER}/Norder=K/Dir=D/Npix=N.parquet, found none")
    table = pa.concat_tables(parts)
    return _table(source, {name: table[name].combine_chunks() for name in names})


def _from_table(source: SkySource) -> SkyTable:
    path = Path(source.path)
    parts = []
    for batch in table_batches(path, _wanted(source)):
        part = {name: pa.array(numbers(path, batch, name)) for name in _wanted(source) if name != source.object_id}
        if source.object_id is not None:
            part[source.object_id] = _text(batch[source.object_id])
        parts.append(pa.table(part))
    if not parts:
        raise ObservationError(f"{path}: expected at least one row, found none")
    table = pa.concat_tables(parts)
    return _table(source, {name: table[name].combine_chunks() for name in table.column_names})


def _text(column: np.ma.MaskedArray) -> Any:
    """Ids as Arrow has them, without the blanks that fill up strings in FITS."""
    array = np.ma.getdata(column)
    found = pa.array(array.astype(str) if array.dtype.kind == "S" else array, mask=np.ma.getmaskarray(column))
    if not pa.types.is_integer(found.type):
        found = pc.utf8_trim_whitespace(found.cast(pa.large_string()))
    return found


def _wanted(source: SkySource) -> list[str]:
    names = (source.object_id, source.ra, source.dec, source.pm_ra, source.pm_dec)
    return list(dict.fromkeys(name for name in names if name is not None))


def _table(source: SkySource, columns: dict[str, Any]) -> SkyTable:
    """A SkyTable of Arrow columns; a number that is null is NaN there."""
    given = {name: getattr(source, name) for name in ("ra", "dec", "pm_ra", "pm_dec")}
    arrays: dict[str, Any] = {
        name: None if column is None else columns[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
        for name, column in given.items()
    }
    object_id = np.arange(len(columns[source.ra])) if source.object_id is None else columns[source.object_id]
    return SkyTable(source.survey, object_id, **arrays, epoch=source.epoch, allow_duplicates=source.allow_duplicates)
