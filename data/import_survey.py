"""`armillary data import`: a survey's files into a dataset, file by file; an interrupted import goes on.

The files of a named source (`readers/survey_sources.py`) are read as streams of observations into a DatasetWriter. A
file is a piece of the dataset, whole or not there at all; files too small to be worth a piece share one. What has been
imported is passed over when the same command runs again, so that a killed import goes on with the next file.
"""

import contextlib
import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..settings import Settings, load_settings
from .dataset_writer import DatasetWriter, DoubledObjectError
from .observations import Observation, ObservationError
from .readers.survey_sources import SOURCES, Source
from .stacking import stack

RUN_BYTES = 64 * 2**20
"""Observations are gathered to about this size before they are written."""
SMALL_FILE_BYTES = 4 * 2**20
"""Files up to this size share a piece, and are held in memory until it is written."""
FILES_PER_PIECE = 256


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    source: str
    output: Path
    num_files: int
    """Files imported by this call; folders, where a folder is the unit."""
    num_resumed: int
    """Files that an earlier call had imported."""
    num_objects: Mapping[str, int]
    """Objects imported by this call, by modality."""
    skipped: Mapping[Path, str]
    """Files that could not be read, and why."""

    def report(self) -> str:
        """The summary in words, a line for each modality and for each file that was skipped."""
        resumed = f", {self.num_resumed} were there already" if self.num_resumed else ""
        lines = [f"{self.output}: {_files(self.num_files)} of {self.source} imported{resumed}"]
        lines += [f"  {name}: {count} objects" for name, count in sorted(self.num_objects.items())]
        if self.skipped:
            lines.append(f"{_files(len(self.skipped))} could not be read, and nothing of them is in the dataset:")
            lines += [f"  {problem}" for problem in self.skipped.values()]
        return "\n".join(lines)


def import_survey(
    source: str,
    paths: Sequence[str | Path],
    output: str | Path,
    settings: Settings | None = None,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    allow_unplaced: bool = False,
) -> ImportSummary:
    """Import the files at and below `paths`, in the format called `source`, into the dataset folder `output`.

    `settings` is what the source must be told (`source_settings`). A file that cannot be read, or holds what a dataset
    cannot, ends the import with an ObservationError that names it; what was imported before stays, and the same call
    goes on from there. With `on_error="skip"` such files are left out, whole, and named in the summary. Objects without
    a position are errors unless `allow_unplaced`. Raises LookupError for an unknown source, SettingsError for settings
    that are missing or another source's, and ObservationError if an object comes twice.
    """
    known = find_source(source)
    settings = _checked_settings(source, known, settings)
    files = list(dict.fromkeys(file for path in paths for file in known.files(Path(path))))
    if not files:
        raise ObservationError(f"{source}: expected at least one file to import, found none in {list(paths)}")
    names = {file: _piece_name(source, file, settings) for file in files}
    writer = DatasetWriter(output, allow_unplaced=allow_unplaced)
    waiting = [file for file in files if not writer.has_piece(names[file])]
    run = _Import(writer, known, settings, names, allow_unplaced, on_error)
    try:
        with _progress() as progress:
            task = progress.add_task(f"import {source}", total=len(files), completed=len(files) - len(waiting))
            for group in _groups(waiting):
                run.add(group)
                progress.advance(task, len(group))
        if len(run.skipped) == len(files):
            raise ObservationError(f"{source}: no file could be read; the first: {next(iter(run.skipped.values()))}")
        run.finish()
    except BaseException:
        writer.leave()
        raise
    num_objects: dict[str, int] = defaultdict(int)
    for counts in run.num_objects.values():
        for name, count in counts.items():
            num_objects[name] += count
    num_resumed = len(files) - len(waiting)
    num_files = len(waiting) - len(run.skipped)
    return ImportSummary(source, Path(output), num_files, num_resumed, dict(num_objects), run.skipped)


def find_source(name: str) -> Source:
    """The source called `name`. Raises LookupError that names the nearest known one."""
    if name not in SOURCES:
        nearest = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)
        raise LookupError(f"no source {name!r}; the nearest known is {nearest[0]!r}, all: {sorted(SOURCES)}")
    return SOURCES[name]


def source_settings(name: str, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings | None:
    """The settings of a source from a YAML file and `key=value` words; None if it has none.

    Raises SettingsError on unknown or missing keys, and LookupError for an unknown source.
    """
    source = find_source(name)
    if source.settings is None:
        if path is not None or overrides:
            raise LookupError(f"source {name} has no settings, found {path or ' '.join(overrides)}")
        return None
    return load_settings(source.settings, path, overrides)


class _Import:
    """One import under way: what it has written, and what it had to leave out."""

    def __init__(
        self,
        writer: DatasetWriter,
        source: Source,
        settings: Settings | None,
        names: Mapping[Path, str],
        allow_unplaced: bool,
        on_error: Literal["stop", "skip"],
    ):
        self.writer = writer
        self.source = source
        self.settings = settings
        self.names = names
        self.allow_unplaced = allow_unplaced
        self.on_error = on_error
        self.num_objects: dict[tuple[str, ...], dict[str, int]] = {}
        """By piece and modality."""
        self.skipped: dict[Path, str] = {}

    def add(self, files: Sequence[Path]) -> None:
        """Import these files as one piece."""
        if len(files) == 1:
            self._add_file(files[0])
        else:
            self._add_small_files(files)

    def finish(self) -> None:
        """Finish the dataset. Of files that have an object in common, the later one is left out, as `on_error` says."""
        while True:
            try:
                return self.writer.finish()
            except DoubledObjectError as problem:
                files = [file for file, name in self.names.items() if name in problem.piece]
                if not files:
                    raise
                self.writer.discard(problem.piece)
                self.num_objects.pop(problem.piece, None)
                if len(files) == 1:
                    with self._skipping(files[0]):
                        raise
                else:
                    # Which of the files it is, shows once each is a piece of its own.
                    for file in files:
                        self._add_file(file)

    def _add_file(self, file: Path) -> None:
        name = self.names[file]
        counts: dict[str, int] = defaultdict(int)
        with self._skipping(file):
            with self.writer.piece(name):
                gathered = _Gathered(self.writer)
                for observation in self._read(file):
                    gathered.add(observation)
                    counts[observation.modality.name] += len(observation)
                gathered.write()
            self.num_objects[(name,)] = counts

    def _add_small_files(self, files: Sequence[Path]) -> None:
        """Read each file before any is written, so that one that fails takes no other with it."""
        gathered, kept = _Gathered(self.writer), []
        counts: dict[str, int] = defaultdict(int)
        owner: dict[tuple[str, str], Path] = {}
        for file in files:
            with self._skipping(file):
                content = list(self._read(file))
                _claim(owner, content, file)
                gathered.hold(content)
                kept.append(self.names[file])
                for observation in content:
                    counts[observation.modality.name] += len(observation)
        if kept:
            with self.writer.piece(kept):
                gathered.write()
            self.num_objects[tuple(kept)] = counts

    def _read(self, file: Path) -> Iterator[Observation]:
        for observation in self.source.read(file, self.settings):
            unknown = (observation.ra.isnan() | observation.dec.isnan()).nonzero()
            if len(unknown) and not self.allow_unplaced:
                row = int(unknown[0, 0])
                raise ObservationError(
                    f"{observation.modality.name}, object {observation.object_id[row]}: ra and dec must be known to "
                    f"join a dataset, found ({observation.ra[row]}, {observation.dec[row]})"
                )
            yield observation

    @contextlib.contextmanager
    def _skipping(self, file: Path) -> Iterator[None]:
        """An ObservationError within gets the file's name; it is then raised, or noted, as the import was told."""
        try:
            yield
        except ObservationError as problem:
            text = str(problem) if str(file) in str(problem) else f"{file}: {problem}"
            if self.on_error == "stop":
                raise ObservationError(text) from problem
            self.skipped[file] = text


class _Gathered:
    """Observations on their way to the writer, joined by modality into runs of a size worth a file."""

    def __init__(self, writer: DatasetWriter):
        self.writer = writer
        self.waiting: dict[str, list[Observation]] = defaultdict(list)
        self.size = 0

    def add(self, observation: Observation) -> None:
        """Take an observation; write all that waits once it is large."""
        self.hold([observation])
        if self.size >= RUN_BYTES:
            self.write()

    def hold(self, observations: Sequence[Observation]) -> None:
        """Take observations, whatever their size."""
        for observation in observations:
            self.waiting[observation.modality.name].append(observation)
            self.size += _num_bytes(observation)

    def write(self) -> None:
        """Hand all that waits to the writer."""
        for observations in self.waiting.values():
            self.writer.write(stack(observations))
        self.waiting.clear()
        self.size = 0


def _claim(owner: dict[tuple[str, str], Path], content: Sequence[Observation], file: Path) -> None:
    """Note whose the objects are. Raises ObservationError if one comes twice, here or in a file that was before."""
    claimed: dict[tuple[str, str], Path] = {}
    for observation in content:
        for name in observation.object_id:
            key = (observation.modality.name, name)
            other = claimed.get(key, owner.get(key))
            if other is not None:
                raise ObservationError(
                    f"{file}: object {name} of {observation.modality.name} comes twice; it is also in {other}"
                )
            claimed[key] = file
    owner.update(claimed)


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The files in order, neighbours that are small together."""
    group: list[Path] = []
    size = 0
    for file in files:
        this = file.stat().st_size if file.is_file() else SMALL_FILE_BYTES + 1
        is_small = this <= SMALL_FILE_BYTES
        if group and (not is_small or size + this > RUN_BYTES or len(group) == FILES_PER_PIECE):
            yield group
            group, size = [], 0
        if is_small:
            group.append(file)
            size += this
        else:
            yield [file]
    if group:
        yield group


def _piece_name(source: str, file: Path, settings: Settings | None) -> str:
    """What a piece is called: other settings make another piece of the same file."""
    if settings is None:
        return f"{source} {file.resolve()}"
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]
    return f"{source} {digest} {file.resolve()}"


def _checked_settings(name: str, source: Source, settings: Settings | None) -> Settings | None:
    """The settings that this source reads; its defaults, if none were given."""
    if settings is None:
        return source_settings(name)
    if source.settings is None or not isinstance(settings, source.settings):
        expected = "no settings" if source.settings is None else source.settings.__name__
        raise LookupError(f"source {name} takes {expected}, found {type(settings).__name__}")
    return settings


def _num_bytes(observation: Observation) -> int:
    values = (getattr(observation, field.name) for field in fields(observation))
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
