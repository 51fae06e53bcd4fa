"""`armillary data validate`: everything docs/data.md promises of a dataset, checked, and what is wrong where.

Unlike opening a dataset, which stops at the first fault, this reads every byte and goes on: one problem for each file
at most of each kind, so that a broken survey gives a list that people can read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from .dataset import catalogues
from .hats_catalogue import DATASET_FOLDER, UNPLACED_FOLDER, pixel_files, read_partitions, read_properties
from .observation_tables import INDEX_COLUMN, merge_layouts
from .observations import ObservationError
from .parquet_files import ObservationFile
from .sky_partition import ORDER, UNPLACED, Pixel, healpix_index, overlapping

POSITION_TOLERANCE = 1e-9
"""Degrees by which the positions of one object in two modalities may differ: rounding, 4 microarcsec."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which file, of which object where it is one object's fault, and what."""

    path: Path
    message: str
    object_id: str | None = None

    def __str__(self) -> str:
        who = "" if self.object_id is None else f"object {self.object_id}: "
        return f"{self.path}: {who}{self.message}"


@dataclass(frozen=True)
class _Place:
    """Where an object was first seen."""

    ra: float
    dec: float
    path: Path


def validate_dataset(folder: str | Path) -> list[Problem]:
    """Check a dataset folder against docs/data.md; returns what is wrong, in the order of modalities and files.

    Holds one row group and the positions of all objects at once. Raises ObservationError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ObservationError(f"{folder}: no such dataset folder")
    problems = list(_leftovers(folder))
    found = catalogues(folder)
    if not found:
        return [*problems, Problem(folder, "expected HATS catalogues <kind>/<survey>, found none")]
    places: dict[str, _Place] = {}
    for catalogue in found:
        problems += _check_catalogue(catalogue, places)
    return problems


def _leftovers(folder: Path) -> Iterator[Problem]:
    """What an unfinished writer leaves."""
    if (folder / ".staging").is_dir():
        yield Problem(folder / ".staging", "writing was not finished; run the command that wrote the dataset again")
    for path in sorted([*folder.glob("*/.*.new"), *folder.glob("*/.*.old"), *folder.rglob(".*.tmp")]):
        if ".staging" not in path.parts:
            yield Problem(path, "left behind by a writer that was stopped; it is no part of the dataset")


def _check_catalogue(catalogue: Path, places: dict[str, _Place]) -> Iterator[Problem]:
    name = "/".join(catalogue.parts[-2:])
    files: list[ObservationFile] = []
    try:
        present: dict[Pixel, Path] = pixel_files(catalogue)
    except ObservationError as error:
        yield Problem(catalogue, str(error))
        return
    candidates: list[tuple[Path, Pixel | None]] = [(path, pixel) for pixel, path in present.items()]
    candidates.sort(key=lambda found: found[1].first if found[1] is not None else 0)
    candidates += [(path, None) for path in sorted((catalogue / UNPLACED_FOLDER).glob("*.parquet"))]
    for path, pixel in candidates:
        try:
            file = ObservationFile.open(path, pixel)
            files.append(file)
        except ObservationError as error:
            yield _problem(path, error)
            continue
        if file.layout.modality.name != name:
            yield Problem(path, f"expected a file of {name}, found one of {file.layout.modality.name}")
    yield from _check_metadata(catalogue, present, files)
    seen: dict[str, Path] = {}
    for file in track(files, description=f"validate {name}", console=Console(stderr=True), transient=True):
        yield from _check_file(file, seen, places)


def _check_metadata(catalogue: Path, present: dict[Pixel, Path], files: list[ObservationFile]) -> Iterator[Problem]:
    """partition_info.csv, hats.properties and the joined footers against the files."""
    try:
        listed = read_partitions(catalogue)
    except ObservationError as error:
        yield Problem(catalogue, str(error).removeprefix(f"{catalogue}: "))
        listed = list(present)
    for pixel in sorted(set(listed) - set(present)):
        yield Problem(catalogue / DATASET_FOLDER / pixel.path, "is listed in partition_info.csv, and missing")
    for pixel in sorted(set(present) - set(listed)):
        yield Problem(present[pixel], "is not listed in partition_info.csv")
    shared = overlapping(list(present))
    if shared is not None:
        yield Problem(present[shared[0]], f"covers the same sky as {present[shared[1]]}")
    if files:
        try:
            merge_layouts({file.path: file.layout for file in files})
        except ObservationError as error:
            yield Problem(catalogue, str(error))
    placed = [file for file in files if file.pixel is not None]
    for file in placed[1:]:
        if file.layout != placed[0].layout:
            yield Problem(file.path, f"its bands, wavelengths or columns differ from those of {placed[0].path}")
    num_rows = sum(file.num_rows for file in placed)
    expected = {
        "hats_nrows": str(num_rows),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": INDEX_COLUMN,
        "hats_col_healpix_order": str(ORDER),
    }
    try:
        stated = read_properties(catalogue)
    except ObservationError as error:
        yield Problem(catalogue, str(error))
        stated = expected
    for key, value in expected.items():
        if stated.get(key) != value:
            yield Problem(catalogue / "hats.properties", f"{key} must be {value}, found {stated.get(key)}")
    joined = catalogue / DATASET_FOLDER / "_metadata"
    if placed:
        try:
            count = pq.read_metadata(joined).num_rows
            if count != num_rows:
                yield Problem(joined, f"expected {num_rows} rows, as the files have, found {count}")
        except (pa.ArrowException, OSError) as error:
            yield Problem(joined, f"expected the footers of all files; {error}")


def _check_file(file: ObservationFile, seen: dict[str, Path], places: dict[str, _Place]) -> Iterator[Problem]:
    try:
        identity = file.read_identity()
    except ObservationError as error:
        yield _problem(file.path, error)
        return
    names = identity["object_id"].to_pylist()
    index, ra, dec = (identity[column].to_numpy() for column in (INDEX_COLUMN, "ra", "dec"))
    yield from _check_positions(file, names, index, ra, dec)
    yield from _first(
        Problem(file.path, f"comes twice; it is also in {seen[name]}", name) for name in _note(names, file.path, seen)
    )
    yield from _first(_moved(file.path, names, ra, dec, places))
    for group in range(len(file.row_group_sizes)):
        try:
            file.read_row_group(group)
        except ObservationError as error:
            yield _problem(file.path, error)
            return


def _check_positions(
    file: ObservationFile, names: list[str], index: np.ndarray, ra: np.ndarray, dec: np.ndarray
) -> Iterator[Problem]:
    unknown = np.isnan(ra) | np.isnan(dec)
    if file.pixel is None:
        for row in np.flatnonzero(~unknown)[:1]:
            yield Problem(
                file.path, f"has a position, ({ra[row]}, {dec[row]}), and lies among the unplaced", names[row]
            )
        for row in np.flatnonzero(index != UNPLACED)[:1]:
            yield Problem(
                file.path, f"{INDEX_COLUMN} must be {UNPLACED} without a position, found {index[row]}", names[row]
            )
        return
    for row in np.flatnonzero(unknown)[:1]:
        yield Problem(file.path, f"ra and dec must be known, found ({ra[row]}, {dec[row]})", names[row])
    outside = ~unknown & ~((ra >= 0) & (ra < 360) & (dec >= -90) & (dec <= 90))
    for row in np.flatnonzero(outside)[:1]:
        where = f"({ra[row]}, {dec[row]})"
        yield Problem(file.path, f"ra must lie in [0, 360) and dec in [-90, 90] degrees, found {where}", names[row])
    good = ~unknown & ~outside
    expected = np.full(len(index), UNPLACED)
    expected[good] = healpix_index(ra[good], dec[good])
    for row in np.flatnonzero(good & (expected != index))[:1]:
        yield Problem(
            file.path, f"{INDEX_COLUMN} must be {expected[row]} by its position, found {index[row]}", names[row]
        )
    for row in np.flatnonzero(good & ((expected < file.pixel.first) | (expected >= file.pixel.stop)))[:1]:
        yield Problem(file.path, f"lies outside the file's pixel, at ({ra[row]}, {dec[row]})", names[row])
    for row in np.flatnonzero(np.diff(index) < 0)[:1]:
        yield Problem(file.path, f"rows must be sorted by {INDEX_COLUMN}; it falls at this row", names[row + 1])


def _note(names: list[str], path: Path, seen: dict[str, Path]) -> Iterator[str]:
    """Names that were seen before; the others are remembered."""
    for name in names:
        if name in seen:
            yield name
        else:
            seen[name] = path


def _moved(
    path: Path, names: list[str], ra: np.ndarray, dec: np.ndarray, places: dict[str, _Place]
) -> Iterator[Problem]:
    """Objects that lie elsewhere than in a modality before."""
    for name, *here in zip(names, ra.tolist(), dec.tolist(), strict=True):
        known = places.setdefault(name, _Place(here[0], here[1], path))
        there = [known.ra, known.dec]
        # NaN where neither is known.
        apart = np.abs(np.subtract(here, there)).max()
        if apart > POSITION_TOLERANCE or np.isnan(here).any() != np.isnan(there).any():
            yield Problem(path, f"lies at {tuple(here)}, and at {tuple(there)} in {known.path}", name)


def _first(problems: Iterator[Problem]) -> Iterator[Problem]:
    """The first, and how many more there are like it."""
    found: Any = list(problems)
    if found:
        more = f" (and {len(found) - 1} objects more)" if len(found) > 1 else ""
        yield Problem(found[0].path, found[0].message + more, found[0].object_id)


def _problem(path: Path, error: ObservationError) -> Problem:
    return Problem(path, str(error).removeprefix(f"{path}: "))
