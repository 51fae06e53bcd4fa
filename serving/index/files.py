"""The index on disk: a folder that one file, its manifest, makes valid.

manifest.json     what the index is; which folders it consists of; the SHA-256 of every file
predictors.json   calibrated predictors, where the index was built with validation objects
base-V/           what was built: vectors.npy (float16), inverse_length.npy, rows.arrow, by_id.npy, labels.parquet, and
                  part-N.faiss for each modality
change-V/         one addition or removal: the same for its rows, and removed.npy, the rows that it takes out

Folders are written under a hidden name, brought to disk, renamed, and never changed after. A change counts from the
moment its manifest replaces the old one: whoever is killed before has changed nothing, and what lies about then belongs
to no manifest and is swept away by the next writer.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...models.neighbour_prediction import NeighbourPredictor, read_predictors, write_predictors
from .protocol import EmbeddingIndexError

FORMAT_VERSION = 2
PREDICTORS = "predictors.json"
MANIFEST = "manifest.json"
VECTORS, INVERSE_LENGTH, ROWS, BY_ID, LABELS = (
    "vectors.npy",
    "inverse_length.npy",
    "rows.arrow",
    "by_id.npy",
    "labels.parquet",
)
REMOVED = "removed.npy"
_LOCK = ".lock"
_DRAFT_PREFIX = ".armillary-draft-"

__all__ = ["EmbeddingIndexError", "Manifest", "Part", "import_faiss", "predictors_of"]


@dataclass(frozen=True)
class Part:
    """How the rows of one modality in the base are searched.

    `effort` is the number of cells (IVF) or of candidates (HNSW) that are looked at, by the share of rows that pass the
    filters; `candidates` for each wanted neighbour are compared by their stored vectors, none if it is 0. `recall` was
    measured when the part was built (`recall.py`).
    """

    modality: str
    num_rows: int
    index_type: str
    reason: str
    num_cells: int = 0
    effort: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    recall: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildSettings:
    """How a base is built, the next one too; see `EmbeddingIndex.build`."""

    index_type: str | None
    flat_limit: int
    max_memory_gb: float | None
    target_recall: float


@dataclass(frozen=True)
class Manifest:
    """What an index is. `files` maps each file to its SHA-256; empty until the index is saved.

    `version` grows by one with each change. `num_rows`, `num_objects` and `num_rows_of_modality` count what can be
    found now; `parts` tell of the base as it was built.
    """

    name: str
    model_id: str
    space: str
    metric: str
    dimension: int
    num_rows: int
    num_objects: int
    num_rows_of_modality: dict[str, int]
    labels: tuple[str, ...]
    metadata: tuple[str, ...]
    parts: tuple[Part, ...]
    base: str
    settings: BuildSettings
    changes: tuple[str, ...] = ()
    version: int = 0
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @cached_property
    def index_id(self) -> str:
        """Short hash: equal ids mean equal vectors, rows, labels and predictors. `unsaved` before the first save."""
        if not self.files:
            return f"{self.name}-unsaved"
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"

    @property
    def index_type(self) -> str:
        """The type of the part with most rows."""
        return self._largest.index_type

    @property
    def reason(self) -> str:
        """Why the part with most rows is of this type."""
        return self._largest.reason

    @property
    def recall(self) -> dict[str, Any]:
        """The recall of each modality's part, as measured when it was built."""
        return {part.modality: part.recall for part in self.parts}

    @property
    def _largest(self) -> Part:
        nothing = Part("", 0, "flat", "the index was built without rows")
        return max(self.parts, key=lambda part: part.num_rows, default=nothing)


def import_faiss() -> Any:
    """The module `faiss`. Raises ImportError that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "the index needs FAISS: pip install 'armillary[cpu]' (faiss-cpu, 19 MB) or 'armillary[gpu]' (faiss-gpu, "
            f"for machines with an NVIDIA GPU); import faiss failed with: {error}"
        ) from error
    return faiss


def save_new(
    draft: Path, folder: str | Path, manifest: Manifest, predictors: Mapping[str, NeighbourPredictor] | None
) -> Manifest:
    """Make the files of a draft the new folder `folder`, which appears whole or not at all; returns its manifest.

    Files are linked where both lie on one file system, copied elsewhere: they are never changed in either place.
    """
    folder = Path(folder)
    check_is_new(folder)
    with Draft(folder.parent) as hidden:
        partial = hidden / "index"
        partial.mkdir()
        for name in (manifest.base, *manifest.changes):
            shutil.copytree(draft / name, partial / name, copy_function=_link_or_copy)
        if predictors:
            write_predictors(partial / PREDICTORS, predictors)
        written = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): sha256(path) for path in written}
        manifest = replace(manifest, files=files)
        (partial / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
        to_disk(partial)
        partial.replace(folder)
        _sync(folder.parent)
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an index folder. Raises EmbeddingIndexError if there is none, or one of another format."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EmbeddingIndexError(f"{path}: cannot be read ({error.strerror}); is this an index?") from None
    except ValueError as error:
        raise EmbeddingIndexError(f"{path}: not valid JSON ({error})") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version is not None and version != FORMAT_VERSION:
        raise EmbeddingIndexError(
            f"{path}: format_version is {version}; this Armillary reads {FORMAT_VERSION}. Build the index anew from "
            "its embeddings"
        )
    known = {f.name for f in fields(Manifest)}
    if not isinstance(content, dict) or set(content) != known:
        raise EmbeddingIndexError(f"{path}: expected the keys {sorted(known)}, found {sorted(content)}")
    parts = tuple(Part(**part) for part in content["parts"])
    lists = {name: tuple(content[name]) for name in ("labels", "metadata", "changes")}
    settings = BuildSettings(**content["settings"])
    return Manifest(**{**content, **lists, "parts": parts, "settings": settings})


def verify(folder: str | Path, manifest: Manifest) -> None:
    """Read every file once. Raises EmbeddingIndexError if one is missing or differs from its checksum."""
    folder = Path(folder)
    for name, expected in sorted(manifest.files.items()):
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise EmbeddingIndexError(f"{folder / name}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise EmbeddingIndexError(
                f"{folder / name}: its SHA-256 is {found}, but the manifest says {expected}; the file is damaged or "
                "was changed"
            )


def commit(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest: from here on the index is what it says. On return it is on disk."""
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(to_json(manifest), encoding="utf-8")
    _sync(partial)
    partial.replace(folder / MANIFEST)
    _sync(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the right to change an index. Raises EmbeddingIndexError if another process (or thread) holds it."""
    with (folder / _LOCK).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EmbeddingIndexError(
                f"{folder}: another process is changing this index; one may at a time. Try again when it has ended"
            ) from None
        yield


def sweep(folder: Path, manifest: Manifest) -> None:
    """Delete what belongs to no manifest: left by a writer that was killed, or by a base that was replaced."""
    kept = {manifest.base, *manifest.changes}
    for path in folder.iterdir():
        name = path.name.lstrip(".")
        if path.is_dir() and name.startswith(("base-", "change-")) and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


class Draft:
    """A hidden folder to write in, which goes with this object; what a killed process left, the next one deletes."""

    def __init__(self, parent: str | Path | None) -> None:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
            for left in Path(parent).glob(f"{_DRAFT_PREFIX}*"):
                _delete_if_left(left)
        self._made = tempfile.TemporaryDirectory(prefix=_DRAFT_PREFIX, dir=parent)
        self.folder = Path(self._made.name)
        self._lock = (self.folder / _LOCK).open("w", encoding="utf-8")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        self._made.cleanup()


def check_is_new(folder: str | Path) -> None:
    """Raises EmbeddingIndexError if there is something in this folder already."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EmbeddingIndexError(f"{folder}: there is something already; an index is saved into a new folder")


def to_disk(folder: Path) -> None:
    """Wait until all files and folders below, and this one, are on disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def predictors_of(folder: str | Path, manifest: Manifest) -> dict[str, NeighbourPredictor]:
    """The predictors that were saved with an index that was verified; none where there are none."""
    return read_predictors(Path(folder) / PREDICTORS) if PREDICTORS in manifest.files else {}


def to_json(manifest: Manifest) -> str:
    """The content of the manifest's file."""
    return json.dumps(asdict(manifest), indent=2) + "\n"


def _delete_if_left(draft: Path) -> None:
    """Delete a draft whose process has ended: the lock that it held is free."""
    try:
        with (draft / _LOCK).open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(draft, ignore_errors=True)
    except OSError:
        return  # its process lives, or has only begun


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
