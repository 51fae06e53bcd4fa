"""Writing a dataset: observations of any modality, in any order, become HEALPix files of bounded size.

What comes is staged as runs, each sorted along the sky; finishing merges the runs of each modality, file by file, as an
external merge sort does, so that memory holds one file and 16 bytes for each object. Input comes in pieces (a survey's
file, say): a piece is in the dataset whole or not at all, and a resumed import asks which it may pass over.
"""

import contextlib
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt64
from rich.console import Console
from rich.progress import track

from .hats_catalogue import DATASET_FOLDER, UNPLACED_FOLDER, catalogue_files, write_catalogue_metadata
from .modalities import Modality
from .observation_tables import INDEX_COLUMN, Layout, encode, first_double, layout_of, merge_layouts
from .observations import Observation, ObservationError
from .parquet_files import ObservationFile, replacing, sync_folder, write_table
from .sky_partition import UNPLACED, Pixel, healpix_index, partition

FILE_BYTES = 256 * 2**20
"""Uncompressed size above which a pixel's file is split into four."""
PIECES = "pieces.json"
"""In each catalogue: the named pieces it was made from."""
_STAGING = ".staging"


def write_dataset(folder: str | Path, observations: Iterable[Observation], *, allow_unplaced: bool = False) -> None:
    """Write observations, of any modalities and in any order, as a dataset, or add them to one.

    Raises ObservationError as DatasetWriter does.
    """
    with DatasetWriter(folder, allow_unplaced=allow_unplaced) as writer, writer.piece(None):
        for observation in observations:
            writer.write(observation)


def write_partition(folder: str | Path, observation: Observation, order: int, pixel: int) -> Path:
    """Write the file of one HEALPix pixel directly; returns its path. `finish_catalogues` must follow the last.

    Raises ObservationError if the file exists, an object lies outside the pixel, or an id comes twice.
    """
    place = Pixel(order, pixel)
    path = catalogue_folder(folder, observation.modality) / DATASET_FOLDER / place.path
    index = healpix_index(observation.ra.numpy(), observation.dec.numpy())
    outside = np.flatnonzero((index < place.first) | (index >= place.stop))
    if len(outside):
        row = int(outside[0])
        raise ObservationError(
            f"{path}: object {observation.object_id[row]} at ({observation.ra[row]}, {observation.dec[row]}) lies "
            f"outside the file's pixel"
        )
    doubled = first_double(observation.object_id)
    if doubled is not None:
        raise ObservationError(f"{path}: object {doubled} comes twice in {observation.modality.name}")
    write_table(encode(observation, layout_of(observation)), path)
    return path


def finish_catalogues(folder: str | Path) -> None:
    """Write the HATS metadata of every modality whose files were written by `write_partition`."""
    for catalogue in sorted({path.parent for path in Path(folder).glob(f"*/*/{DATASET_FOLDER}")}):
        write_catalogue_metadata(catalogue)


def catalogue_folder(folder: str | Path, modality: Modality) -> Path:
    """Where the files of `modality` lie in the dataset `folder`."""
    return Path(folder).joinpath(*modality.name.split("/"))


class DoubledObjectError(ObservationError):
    """An object comes twice in one modality; `piece` has the names of the piece that brought it again, if any."""

    def __init__(self, message: str, piece: Sequence[str]):
        super().__init__(message)
        self.piece = tuple(piece)


class DatasetWriter:
    """Collects observations into a dataset folder; as a context manager, it finishes the dataset on a clean exit.

    Objects without a position (NaN) are refused, or kept apart if `allow_unplaced`. Raises ObservationError, which
    names the object, on those, and on an id that comes twice in a modality; the dataset is then as it was before.
    """

    def __init__(self, folder: str | Path, *, allow_unplaced: bool = False, file_bytes: int = FILE_BYTES):
        self.folder = Path(folder)
        self.allow_unplaced = allow_unplaced
        self.file_bytes = file_bytes
        self._staging = self.folder / _STAGING
        self._open: Path | None = None
        self._staging.mkdir(parents=True, exist_ok=True)
        # Pieces that were being written by a process that died, and those that had no name, cannot be told from new
        # ones; the others stay.
        for leftover in self._staging.iterdir():
            if leftover.name.startswith(".") or not (leftover / PIECES).is_file():
                shutil.rmtree(leftover)
        for catalogue in self.folder.glob("*/.*.new"):
            _recover(catalogue)
        self._pieces = {name for path in self.folder.glob(f"*/*/{PIECES}") for name in _read_pieces(path.parent)}
        self._pieces.update(name for piece in self._staging.iterdir() for name in _read_pieces(piece))

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.leave()

    def has_piece(self, name: str) -> bool:
        """Whether the piece called `name` is complete: staged by this or an earlier process, or in the dataset."""
        return name in self._pieces

    @contextlib.contextmanager
    def piece(self, name: str | Sequence[str] | None) -> Iterator[None]:
        """What is written within belongs to one piece, and counts once the block ends without error.

        Small inputs may share a piece, which then has several names.
        """
        if self._open is not None:
            raise RuntimeError("a piece is open already")
        names = [name] if isinstance(name, str) else list(name or ())
        final = self._staging / (_slug(names) if names else f"unnamed-{len(list(self._staging.iterdir()))}")
        self._open = final.with_name(f".{final.name}")
        shutil.rmtree(self._open, ignore_errors=True)
        self._open.mkdir()
        try:
            yield
            if names:
                (self._open / PIECES).write_text(json.dumps(names), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            self._open.rename(final)
            sync_folder(self._staging)
            self._pieces.update(names)
        finally:
            shutil.rmtree(self._open, ignore_errors=True)
            self._open = None

    def write(self, observation: Observation) -> None:
        """Add observations. Raises ObservationError if one has no position, or an id comes twice."""
        name = observation.modality.name
        if self._open is None:
            with self.piece(None):
                self.write(observation)
            return
        if not len(observation):
            return
        unplaced = (observation.ra.isnan() | observation.dec.isnan()).nonzero()
        if len(unplaced) and not self.allow_unplaced:
            row = int(unplaced[0, 0])
            raise ObservationError(
                f"{name}, object {observation.object_id[row]}: ra and dec must be known to join a dataset, found "
                f"({observation.ra[row]}, {observation.dec[row]})"
            )
        doubled = first_double(observation.object_id)
        if doubled is not None:
            raise ObservationError(f"{name}: object {doubled} comes twice")
        runs = catalogue_folder(self._open, observation.modality)
        number = len(list(runs.glob("run-*.parquet"))) if runs.is_dir() else 0
        write_table(encode(observation, layout_of(observation)), runs / f"run-{number:06d}.parquet")

    def finish(self) -> None:
        """Merge what is staged into the dataset's files; an interrupted merge goes on from the last whole file.

        Raises DoubledObjectError if an object comes twice in a modality, ObservationError if the cards of a modality
        differ; nothing is changed then.
        """
        runs: dict[str, list[Path]] = defaultdict(list)
        pieces: dict[str, set[str]] = {}
        for piece in sorted(path for path in self._staging.iterdir() if not path.name.startswith(".")):
            names = _read_pieces(piece)
            for modality_folder in sorted(piece.glob("*/*")):
                modality = "/".join(modality_folder.parts[-2:])
                if modality not in pieces:
                    pieces[modality] = set(_read_pieces(self.folder / modality))
                if not (names and names[0] in pieces[modality]):
                    runs[modality] += sorted(modality_folder.glob("run-*.parquet"))
                pieces[modality].update(names)
        changed = [modality for modality in sorted(runs) if runs[modality]]
        if len(changed) > 1:
            # All modalities are looked through before one is changed: a piece is in all of them or in none.
            for modality in changed:
                _open_runs(self.folder / modality, runs[modality])
        for modality in changed:
            _merge(self.folder / modality, runs[modality], sorted(pieces[modality]), self.file_bytes)
        shutil.rmtree(self._staging)

    def leave(self) -> None:
        """Stop without finishing: the pieces that are whole wait for the next writer; without any, no trace is left."""
        with contextlib.suppress(OSError):
            self._staging.rmdir()

    def discard(self, names: Sequence[str]) -> None:
        """Forget the staged piece with these names, as if it had not been written."""
        shutil.rmtree(self._staging / _slug(names), ignore_errors=True)
        self._pieces.difference_update(names)


@dataclass(frozen=True, eq=False)
class _Run:
    """A file to be merged, with what is needed to find its rows: kept in memory, 16 bytes for each."""

    file: ObservationFile
    index: Int64[np.ndarray, " R"]
    """Ascending; UNPLACED first."""
    hashes: UInt64[np.ndarray, " R"]
    """Of the object ids."""


def _merge(catalogue: Path, paths: list[Path], pieces: list[str], file_bytes: int) -> None:
    """Make the catalogue anew from its own files and these runs, beside it, and put it in its place."""
    files, runs, layout = _open_runs(catalogue, paths)
    new = catalogue.with_name(f".{catalogue.name}.new")
    plan = _plan(files, file_bytes)
    if (new / "plan").is_file() and (new / "plan").read_text(encoding="utf-8") != plan:
        shutil.rmtree(new)
    for leftover in new.rglob(".*.tmp"):
        leftover.unlink()
    new.mkdir(parents=True, exist_ok=True)
    (new / "plan").write_text(plan, encoding="utf-8")

    index = np.sort(np.concatenate([run.index for run in runs]))
    placed = index[np.searchsorted(index, 0) :]
    max_rows = max(1, int(file_bytes // _bytes_per_row(files)))
    pixels = partition(placed, max_rows)
    title = f"write {'/'.join(catalogue.parts[-2:])}"
    for pixel in track(pixels, description=title, console=Console(stderr=True), transient=True):
        path = new / DATASET_FOLDER / pixel.path
        if not path.exists():
            write_table(_rows_between(runs, layout, pixel.first, pixel.stop), path)
    for number, part in enumerate(_unplaced_rows(runs, layout, max_rows)):
        path = new / UNPLACED_FOLDER / f"part-{number:05d}.parquet"
        if not path.exists():
            write_table(part, path)
    write_catalogue_metadata(new)
    (new / "plan").unlink()
    with replacing(new / PIECES) as stream:
        stream.write(json.dumps(pieces).encode())
    _swap(new, catalogue)


def _open_runs(catalogue: Path, paths: list[Path]) -> tuple[list[ObservationFile], list[_Run], Layout]:
    """The catalogue's own files and these, opened, and their common layout. Raises as `DatasetWriter.finish` does."""
    _recover(catalogue.with_name(f".{catalogue.name}.new"))
    old = [ObservationFile.open(*found) for found in catalogue_files(catalogue)] if catalogue.is_dir() else []
    files = old + [ObservationFile.open(path) for path in paths]
    runs = [_open_run(file) for file in files if file.num_rows]
    layout = merge_layouts({run.file.path: run.file.layout for run in runs})
    _refuse_doubles(runs)
    return files, runs, layout


def _open_run(file: ObservationFile) -> _Run:
    table = file.read_identity()
    index = table[INDEX_COLUMN].to_numpy()
    names = table["object_id"].to_pylist()
    hashes = np.frombuffer(b"".join(hashlib.blake2b(n.encode(), digest_size=8).digest() for n in names), np.uint64)
    return _Run(file, index, hashes)


def _refuse_doubles(runs: list[_Run]) -> None:
    """Raise DoubledObjectError if an object id comes twice; equal hashes are looked up by name."""
    hashes = np.concatenate([run.hashes for run in runs])
    ordered = np.sort(hashes)
    doubled = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: dict[str, str] = {}
    for run in runs if doubled else []:
        suspects = [row for row, value in enumerate(run.hashes.tolist()) if value in doubled]
        names = run.file.read_identity()["object_id"].take(pa.array(suspects, pa.int64())).to_pylist()
        for name in names:
            if name in seen:
                modality = run.file.layout.modality.name
                raise DoubledObjectError(
                    f"{_origin(run.file.path)}: object {name} of {modality} comes twice; it is also in {seen[name]}",
                    _read_pieces(run.file.path.parents[2]),
                )
            seen[name] = _origin(run.file.path)


def _origin(path: Path) -> str:
    """The piece that a staged run belongs to, as people know it; of another file, its path."""
    names = _read_pieces(path.parents[2])
    return str(path) if not names else names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _rows_between(runs: list[_Run], layout: Layout, first: int, stop: int) -> Any:
    """Arrow table, sorted, of the rows of all runs whose index lies in [first, stop)."""
    parts = []
    for run in runs:
        low, high = np.searchsorted(run.index, [first, stop])
        if low < high:
            parts.append(_rows(run, layout, np.arange(low, high)))
    joined = pa.concat_tables(parts)
    return joined.sort_by([(INDEX_COLUMN, "ascending"), ("object_id", "ascending")])


def _unplaced_rows(runs: list[_Run], layout: Layout, max_rows: int) -> Iterator[Any]:
    for run in runs:
        count = int(np.searchsorted(run.index, UNPLACED, side="right"))
        for start in range(0, count, max_rows):
            yield _rows(run, layout, np.arange(start, min(start + max_rows, count)))


def _rows(run: _Run, layout: Layout, rows: Int64[np.ndarray, " R"]) -> Any:
    """Rows of a run in the layout of the catalogue."""
    if run.file.layout == layout:
        return run.file.read_table(rows).cast(layout.schema()).replace_schema_metadata(layout.metadata())
    return encode(run.file.read_rows(rows), layout)


def _bytes_per_row(files: list[ObservationFile]) -> float:
    """Uncompressed size of a row, from the footers of the runs."""
    size, rows = 0, 0
    for file in files[-32:]:
        footer = pq.read_metadata(file.path)
        size += sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
        rows += file.num_rows
    return max(1.0, size / max(1, rows))


def _plan(files: list[ObservationFile], file_bytes: int) -> str:
    """What the merge is made from: it goes on where it stood only if this is unchanged."""
    content = [(str(file.path), file.num_rows, file.path.stat().st_size) for file in files]
    return hashlib.sha256(json.dumps([content, file_bytes]).encode()).hexdigest()


def _swap(new: Path, catalogue: Path) -> None:
    old = catalogue.with_name(f".{catalogue.name}.old")
    if catalogue.is_dir():
        catalogue.rename(old)
    new.rename(catalogue)
    sync_folder(catalogue.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(new: Path) -> None:
    """Bring the swap of a process that died to its end: a catalogue that was complete takes its place."""
    catalogue = new.with_name(new.name.removeprefix(".").removesuffix(".new"))
    old = new.with_name(f".{catalogue.name}.old")
    if old.is_dir() and not catalogue.is_dir():
        if (new / PIECES).is_file():
            new.rename(catalogue)
        else:
            old.rename(catalogue)
    if catalogue.is_dir():
        shutil.rmtree(old, ignore_errors=True)


def _read_pieces(folder: Path) -> list[str]:
    """Names of the pieces that a catalogue was made from, or that a staged folder holds."""
    path = folder / PIECES
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _slug(names: Sequence[str]) -> str:
    """A folder's name for a piece."""
    readable = "".join(character if character.isalnum() else "-" for character in Path(names[0]).name)[:40]
    return f"{readable}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}"
