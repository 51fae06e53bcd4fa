"""The Multimodal Universe, version 1: HDF5 tiles by HEALPix pixel, `<survey>/<subset>/healpix=<n>/<file>.hdf5`.

Each dataset of a file is a column, its first axis the object. A file is read some rows at a time: a tile of the Legacy
Surveys holds tens of gigabytes of images. Written to the build scripts of the source (see
`multimodal_universe_surveys`); no file of the release itself was at hand.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..observations import Observation, ObservationError
from .multimodal_universe_columns import Column
from .multimodal_universe_surveys import SURVEYS
from .survey_rows import identify

CHUNK_BYTES = 32 * 2**20
"""Decompressed size of the rows that are read at once."""

_RA, _DEC = ("ra", "RA"), ("dec", "DEC")
_SAME_PLACE = 1e-4
"""Degrees by which ra and RA of one file may differ: 32-bit floats do, by less."""
_TILE = re.compile(r"healpix=(\d+)")


def tile_files(path: str | Path) -> list[Path]:
    """The HDF5 tiles below a folder (or the one file), in the order of subset and HEALPix pixel.

    Raises ObservationError if there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = [file for file in path.rglob("*.hdf5") if _TILE.fullmatch(file.parent.name)]
    if not found:
        raise ObservationError(f"{path}: expected HDF5 tiles <subset>/healpix=<n>/*.hdf5, found none")
    return sorted(found, key=lambda file: (file.parent.parent, int(file.parent.name.split("=")[1]), file.name))


def read_multimodal_universe_tile(path: str | Path, survey_name: str) -> Iterator[Observation]:
    """All observations of one tile of a survey in `SURVEYS`, a bounded number of objects at a time.

    Each group of objects yields its image, spectrum or coefficients first, then its scalars. Raises ObservationError,
    with the file's name, on a file that is missing, truncated or damaged, on missing columns or columns of other
    length, on ids that come twice, and on positions that are missing, not finite or contradict each other; LookupError
    on an unknown survey.
    """
    path = Path(path)
    if survey_name not in SURVEYS:
        raise LookupError(f"no survey {survey_name!r} of the Multimodal Universe; known are {sorted(SURVEYS)}")
    survey = SURVEYS[survey_name]
    with _open(path) as file:
        (id_name,) = _known(file, path, {"object_id": survey.id_column}).values()
        ids = file[id_name]
        if ids.ndim != 1:
            raise ObservationError(f"{path}: {id_name} must hold one id for each object, found shape {list(ids.shape)}")
        datasets = {ours: file[name] for ours, name in _known(file, path, survey.columns).items()}
        for ours, dataset in datasets.items():
            if dataset.ndim == 0 or len(dataset) != len(ids):
                raise ObservationError(
                    f"{path}: {survey.columns[ours].hdf5} must hold {len(ids)} objects as {id_name} does, found shape "
                    f"{list(dataset.shape)}"
                )
        ra, dec = _coordinate(file, path, _RA), _coordinate(file, path, _DEC)
        everything = identify(path, ids[()], ra, dec)
        everything.warn_of_rounding()
        step = _rows_at_once(list(datasets.values()))
        for start in range(0, len(ids), step):
            stop = min(start + step, len(ids))
            columns = {ours: dataset[start:stop] for ours, dataset in datasets.items()}
            yield from survey.observations(everything.part(start, stop, columns))


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise ObservationError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # h5py's ways to say cut short or damaged
        raise ObservationError(f"{path}: cannot be read as HDF5, cut short or damaged ({error})") from None


def _known(file: h5py.File, path: Path, columns: Any) -> dict[str, str]:
    """Names in the file of the wanted columns that it has. Raises ObservationError that lists the required ones."""
    found, missing = {}, []
    for ours, column in columns.items():
        assert isinstance(column, Column)
        if isinstance(file.get(column.hdf5), h5py.Dataset):
            found[ours] = column.hdf5
        elif column.is_required:
            missing.append(column.hdf5)
    if missing:
        raise ObservationError(f"{path}: columns {missing} are missing{_renamed(file, missing)}; found {sorted(file)}")
    return found


def _renamed(file: h5py.File, missing: list[str]) -> str:
    """A hint where a join of tables has put two columns of one name side by side."""
    for name in missing:
        if f"{name}_1" in file and f"{name}_2" in file:
            return f" ({name}_1 and {name}_2 are there: a join has renamed columns of one name)"
    return ""


def _coordinate(file: h5py.File, path: Path, names: tuple[str, str]) -> np.ndarray:
    """ra or dec, which no version 1 file may lack; where it is written twice, both must say the same."""
    found = {name: file[name][()] for name in names if isinstance(file.get(name), h5py.Dataset)}
    if not found:
        raise ObservationError(
            f"{path}: column {names[0]} is missing{_renamed(file, list(names))}; objects need a place"
        )
    first, *others = found.values()
    for other in others:
        if other.shape != first.shape or not np.allclose(first, other, rtol=0, atol=_SAME_PLACE, equal_nan=True):
            raise ObservationError(f"{path}: columns {list(found)} contradict each other: a join has mixed two tables")
    return max(found.values(), key=lambda values: values.dtype.itemsize)


def _rows_at_once(datasets: list[h5py.Dataset]) -> int:
    """How many rows make `CHUNK_BYTES`, in whole chunks of the file where one fits, so that none is unpacked twice."""
    row_bytes = sum(dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])) for dataset in datasets)
    rows = max(1, CHUNK_BYTES // max(1, row_bytes))
    chunks = [dataset.chunks[0] for dataset in datasets if dataset.chunks is not None and dataset.ndim > 1]
    largest = max(chunks, default=1)
    return rows // largest * largest if rows >= largest else rows
