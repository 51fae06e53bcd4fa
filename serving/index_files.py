"""The index on disk: a folder of vectors, rows, labels and a manifest with the checksum of each.

manifest.json     model, space, metric, counts, and the SHA-256 of the files
vectors.faiss     unit vectors, in FAISS's format
rows.parquet      object_id, modality, ra, dec of each vector
labels.parquet    object_id and numbers
predictors.json   calibrated predictors, where the index was built with validation objects
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..models.neighbour_prediction import NeighbourPredictor, read_predictors, write_predictors

FORMAT_VERSION = 1
PREDICTORS = "predictors.json"
_VECTORS, _ROWS, _LABELS, _MANIFEST = "vectors.faiss", "rows.parquet", "labels.parquet", "manifest.json"


class EmbeddingIndexError(ValueError):
    """An index cannot be built, read or searched so; the message says what was expected, what came, and where."""


@dataclass(frozen=True)
class Manifest:
    """What an index is. `files` maps each file to its SHA-256; empty until the index is saved."""

    name: str
    model_id: str
    space: str
    metric: str
    dimension: int
    num_rows: int
    num_objects: int
    num_rows_of_modality: dict[str, int]
    labels: tuple[str, ...]
    index_type: str
    reason: str
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def index_id(self) -> str:
        """Short hash: equal ids mean equal vectors, rows, labels and predictors. `unsaved` before the first save."""
        if not self.files:
            return f"{self.name}-unsaved"
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"


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


def write(
    folder: str | Path,
    vectors: Any,
    rows: pa.Table,
    labels: pa.Table,
    manifest: Manifest,
    predictors: Mapping[str, NeighbourPredictor] | None = None,
) -> Manifest:
    """Write all files beside `folder`, then rename; returns the manifest with checksums."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EmbeddingIndexError(f"{folder}: there is something already; an index is saved into a new folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        import_faiss().write_index(vectors, str(partial / _VECTORS))
        pq.write_table(rows, partial / _ROWS, compression="zstd")
        pq.write_table(labels, partial / _LABELS, compression="zstd")
        if predictors:
            write_predictors(partial / PREDICTORS, predictors)
        written = sorted(path.name for path in partial.iterdir())
        manifest = replace(manifest, files={name: _sha256(partial / name) for name in written})
        (partial / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            _to_disk(path)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def read(folder: str | Path) -> tuple[Any, pa.Table, pa.Table, Manifest]:
    """Verify and read all files: vectors, rows, labels, manifest."""
    folder = Path(folder)
    manifest = _read_manifest(folder / _MANIFEST)
    for name in sorted({_VECTORS, _ROWS, _LABELS} | ({PREDICTORS} & manifest.files.keys())):
        expected = manifest.files.get(name)
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise EmbeddingIndexError(f"{folder / name}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise EmbeddingIndexError(
                f"{folder / name}: its SHA-256 is {found}, but the manifest says {expected}; the file is damaged or "
                "was changed"
            )
    vectors = import_faiss().read_index(str(folder / _VECTORS))
    rows = pq.read_table(folder / _ROWS)
    for name, count in (("vectors", vectors.ntotal), ("rows", rows.num_rows)):
        if count != manifest.num_rows:
            raise EmbeddingIndexError(f"{folder}: the manifest counts {manifest.num_rows} rows, {name} hold {count}")
    return vectors, rows, pq.read_table(folder / _LABELS), manifest


def predictors_of(folder: str | Path, manifest: Manifest) -> dict[str, NeighbourPredictor]:
    """The predictors that were saved with an index that `read` has verified; none where there are none."""
    return read_predictors(Path(folder) / PREDICTORS) if PREDICTORS in manifest.files else {}


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EmbeddingIndexError(f"{path}: cannot be read ({error.strerror}); is this an index?") from None
    except ValueError as error:
        raise EmbeddingIndexError(f"{path}: not valid JSON ({error})") from None
    known = {f.name for f in fields(Manifest)}
    if not isinstance(content, dict) or set(content) != known:
        raise EmbeddingIndexError(f"{path}: expected the keys {sorted(known)}, found {sorted(content)}")
    if content["format_version"] != FORMAT_VERSION:
        raise EmbeddingIndexError(
            f"{path}: format_version is {content['format_version']}; this Armillary reads {FORMAT_VERSION}"
        )
    return Manifest(**{**content, "labels": tuple(content["labels"])})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
