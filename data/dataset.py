"""A dataset of observations on disk, opened for reading: one HATS catalogue for each modality (docs/data.md).

`<dataset>/<kind>/<survey>/dataset/Norder=K/Dir=D/Npix=N.parquet` holds the objects of one HEALPix pixel, sorted along
the sky; `unplaced/part-*.parquet` those without a position. `dataset_writer.py` writes them.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from .hats_catalogue import UNPLACED_FOLDER, catalogue_files
from .modalities import Modality
from .observation_tables import INDEX_COLUMN, merge_layouts
from .observations import Observation, ObservationError, ScalarObservation
from .parquet_files import ObservationFile
from .stacking import stack


@dataclass(frozen=True, eq=False)
class SkyIndex:
    """Who the rows of a modality are and where, in the order of rows on disk."""

    object_id: np.ndarray
    """[B] of str."""
    ra: Float64[np.ndarray, " B"]
    """Degrees, ICRS; NaN without a position."""
    dec: Float64[np.ndarray, " B"]
    healpix: Int64[np.ndarray, " B"]
    """Nested index at order 29, -1 without a position."""


class ObservationDataset:
    """A dataset folder, opened for reading.

    Opening reads the footers alone. Raises ObservationError if the folder holds no catalogue, or one with files that
    are missing, truncated, of another format or version, or of another modality.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ObservationError(f"{self.folder}: no such dataset folder")
        self._files: dict[str, list[ObservationFile]] = {}
        for catalogue in catalogues(self.folder):
            files = open_catalogue(catalogue)
            self._files["/".join(catalogue.relative_to(self.folder).parts)] = files
        if not self._files:
            raise ObservationError(f"{self.folder}: expected HATS catalogues <kind>/<survey>, found none")
        self._rows: dict[str, dict[str, int]] = {}
        self._sky: dict[str, SkyIndex] = {}

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """All modalities of the dataset, by name, as their stored cards declare them."""
        return tuple(self._files[name][0].layout.modality for name in sorted(self._files))

    def files(self, modality_name: str) -> tuple[ObservationFile, ...]:
        """The files of a modality, in the order of rows on disk."""
        return tuple(self._of(modality_name))

    def num_objects(self, modality_name: str) -> int:
        """How many objects have this modality."""
        return sum(file.num_rows for file in self._of(modality_name))

    def object_ids(self, modality_name: str) -> list[str]:
        """Ids of the objects with this modality, in the order of rows on disk. Raises ObservationError on a double."""
        return list(self._index(modality_name))

    def holds(self, modality_name: str, object_id: str) -> bool:
        """Whether the object has this modality; False too if the dataset has no such modality."""
        return modality_name in self._files and object_id in self._index(modality_name)

    def sky_index(self, modality_name: str) -> SkyIndex:
        """Ids and positions of the objects with this modality, in the order of rows on disk."""
        if modality_name not in self._sky:
            tables = [file.read_identity() for file in self._of(modality_name)]
            columns = {
                name: np.concatenate([table[name].to_numpy() for table in tables])
                for name in ("object_id", "ra", "dec", INDEX_COLUMN)
            }
            self._sky[modality_name] = SkyIndex(
                columns["object_id"].astype(object), columns["ra"], columns["dec"], columns[INDEX_COLUMN]
            )
        return self._sky[modality_name]

    def read(
        self, modality_name: str, objects: Sequence[str] | slice | Int64[np.ndarray, " R"] | None = None
    ) -> Observation:
        """The observations of these objects, in this order: ids, rows on disk (an array or a slice), or all of them.

        Reads only the row groups that hold them. Raises ObservationError on an unknown id, and on damaged files.
        """
        files = self._of(modality_name)
        if objects is None or isinstance(objects, slice):
            rows = np.arange(self.num_objects(modality_name))[objects or slice(None)]
        elif isinstance(objects, np.ndarray) and objects.dtype.kind in "iu":
            rows = objects
            outside = rows[(rows < 0) | (rows >= self.num_objects(modality_name))]
            if len(outside):
                count = self.num_objects(modality_name)
                raise ObservationError(f"{self.folder}: {modality_name} has {count} rows, and no row {outside[0]}")
        else:
            index = self._index(modality_name)
            unknown = [name for name in objects if name not in index]
            if unknown:
                raise ObservationError(f"{self.folder}: {modality_name} has no object {unknown[0]!r}")
            rows = np.array([index[name] for name in objects], dtype=np.int64)
        if not len(rows):
            raise ObservationError(f"{self.folder}: no row of {modality_name} was asked for")
        starts = np.cumsum([0, *(file.num_rows for file in files)])
        wanted = np.unique(rows)
        found = []
        for number in np.unique(np.searchsorted(starts, wanted, side="right") - 1):
            local = wanted[(wanted >= starts[number]) & (wanted < starts[number + 1])] - starts[number]
            found.append(files[number].read_rows(local))
        joined = found[0] if len(found) == 1 else stack(found)
        return joined if np.array_equal(wanted, rows) else joined.select(np.searchsorted(wanted, rows).tolist())

    def batches(self, modality_name: str, batch_size: int) -> Iterator[Observation]:
        """All observations in the order of rows on disk, `batch_size` at a time, the rest at the end.

        Holds one batch and one row group at once. Raises ObservationError on damaged files.
        """
        if batch_size < 1:
            raise ObservationError(f"batch_size must be at least 1, found {batch_size}")
        waiting: list[Observation] = []
        count = 0
        for part in (part for file in self._of(modality_name) for part in file.stream()):
            waiting.append(part)
            count += len(part)
            if count < batch_size:
                continue
            joined = waiting[0] if len(waiting) == 1 else stack(waiting)
            for start in range(0, count - count % batch_size, batch_size):
                yield joined.select(slice(start, start + batch_size))
            count %= batch_size
            waiting = [joined.select(slice(len(joined) - count, None))] if count else []
        if waiting:
            yield stack(waiting)

    def positions(self) -> dict[str, tuple[float, float]]:
        """Position (ra, dec) in degrees of every object of any modality; NaN where none is known."""
        found: dict[str, tuple[float, float]] = {}
        for name in sorted(self._files):
            sky = self.sky_index(name)
            for object_id, ra, dec in zip(sky.object_id.tolist(), sky.ra.tolist(), sky.dec.tolist(), strict=True):
                if object_id not in found or np.isnan(found[object_id][0]):
                    found[object_id] = (ra, dec)
        return found

    def scalars(self, names: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """Measured numbers by modality name and object id, of these scalar modalities, by default of all.

        Missing values are left out. Raises ObservationError if a name is no scalar modality of the dataset.
        """
        if names is None:
            names = [modality.name for modality in self.modalities if modality.kind == "scalar"]
        found = {}
        for name in names:
            observation = self.read(name)
            if not isinstance(observation, ScalarObservation):
                raise ObservationError(f"{self.folder}: expected a scalar modality, found {name}")
            pairs = zip(observation.object_id, observation.values.tolist(), observation.mask.tolist(), strict=True)
            found[name] = {object_id: value for object_id, value, is_valid in pairs if is_valid}
        return found

    def _of(self, modality_name: str) -> list[ObservationFile]:
        if modality_name not in self._files:
            raise ObservationError(f"{self.folder}: no modality {modality_name!r}; it holds {sorted(self._files)}")
        return self._files[modality_name]

    def _index(self, modality_name: str) -> dict[str, int]:
        """Row on disk of each object."""
        if modality_name not in self._rows:
            index: dict[str, int] = {}
            for row, name in enumerate(self.sky_index(modality_name).object_id.tolist()):
                if name in index:
                    paths = [self._path_of_row(modality_name, place) for place in (row, index[name])]
                    raise ObservationError(
                        f"{paths[0]}: object {name} of {modality_name} comes twice; it is also in {paths[1]}"
                    )
                index[name] = row
            self._rows[modality_name] = index
        return self._rows[modality_name]

    def _path_of_row(self, modality_name: str, row: int) -> Path:
        files = self._of(modality_name)
        stops = np.cumsum([file.num_rows for file in files]).tolist()
        return files[bisect.bisect_right(stops, row)].path


def catalogues(folder: Path) -> list[Path]:
    """The catalogue folders `<kind>/<survey>` of a dataset, by name."""
    found = {path.parent for name in ("dataset", UNPLACED_FOLDER) for path in folder.glob(f"*/*/{name}")}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def open_catalogue(catalogue: Path) -> list[ObservationFile]:
    """The files of one catalogue, in the order of their pixels, unplaced ones last; `catalogue` is `<kind>/<survey>`.

    Raises ObservationError as ObservationDataset does.
    """
    files = [ObservationFile.open(path, pixel) for path, pixel in catalogue_files(catalogue)]
    name = "/".join(catalogue.parts[-2:])
    for file in files:
        if file.layout.modality.name != name:
            raise ObservationError(f"{file.path}: expected a file of {name}, found one of {file.layout.modality.name}")
    merge_layouts({file.path: file.layout for file in files})
    return files
