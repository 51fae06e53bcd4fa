"""The base of an index is built: from rows that are read twice, once for what they are, once for their vectors.

Vectors go from their source to a file, and from there, a modality at a time, into a search structure: a sample trains
its cells, then all are added block by block. In memory are the structure of one modality, its training sample and a
block; where even the structure is too big, its lists are made in pieces and merged on disk.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16, Float64, Int64

from ...models.embeddings import EmbeddingTable
from . import files as index_files
from .files import BuildSettings, Part, import_faiss
from .index_types import (
    LISTS_SUFFIX,
    allowed_memory,
    bytes_per_row,
    choose_type,
    make_structure,
    num_cells,
    open_structure,
)
from .part import SearchablePart
from .protocol import EmbeddingIndexError
from .recall import make_trials, tune
from .rows import ID, order_by_id
from .vectors import BLOCK_ROWS, StoredVectors, VectorWriter, as_float32

TRAINING_ROWS_PER_CELL = 40
TRAINING_BYTES = 1e9
"""Most that a training sample takes in memory."""
COLLECTED_ROWS = 50_000
"""After a part of more rows, what it left in memory is looked for at once; in a large process that takes a second."""
METRIC = "inner product of unit vectors"
POSITIONS = ("ra", "dec")


@runtime_checkable
class RowSource(Protocol):
    """Where rows come from: `EmbeddingShards`, or what `TableSource` makes of a table."""

    @property
    def space(self) -> str:
        """`encoder` or `aligned`."""

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""

    @property
    def dimension(self) -> int:
        """Their width."""

    def rows(self) -> pa.Table:
        """All rows: `object_id`, `modality`, `ra`, `dec`, and it may be metadata."""

    def blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[Float16[np.ndarray, "B D"]]:
        """Their vectors, in the same order."""


@dataclass(frozen=True, eq=False)
class TableSource:
    """Rows that are in memory."""

    table: EmbeddingTable

    @property
    def space(self) -> str:
        """`encoder` or `aligned`."""
        return self.table.space

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""
        return self.table.model_id

    @property
    def dimension(self) -> int:
        """Their width."""
        return self.table.vectors.shape[1]

    def rows(self) -> pa.Table:
        """All rows: `object_id`, `modality`, `ra`, `dec`."""
        names = ("object_id", "modality")
        columns = {name: pa.array(getattr(self.table, name), pa.string()) for name in names}
        return pa.table({**columns, "ra": self.table.ra, "dec": self.table.dec})

    def blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[Float16[np.ndarray, "B D"]]:
        """Their vectors, in the same order."""
        for start in range(0, len(self.table), num_rows):
            yield self.table.vectors[start : start + num_rows]


@dataclass(frozen=True, eq=False)
class WrittenRows:
    """Rows as they were written: grouped by modality, in the order of their source within one."""

    num_rows_of_modality: dict[str, int]
    rows: pa.Table


def write_rows(
    folder: Path, source: RowSource, metadata: Mapping[str, Any] | pa.Table | None, names: Iterable[str] = ()
) -> WrittenRows:
    """Write vectors and rows of a source into a folder, grouped by modality; `metadata` by object become columns.

    `names` are columns that must be there, NaN where nothing is known. Raises EmbeddingIndexError on a row given twice
    and on vectors without direction.
    """
    rows = source.rows()
    object_id = pc.cast(rows["object_id"], ID).combine_chunks()
    encoded = pc.dictionary_encode(pc.cast(rows["modality"], pa.string())).combine_chunks()
    found_names = encoded.dictionary.to_pylist()
    sorted_names = sorted(found_names)
    code_of = np.array([sorted_names.index(name) for name in found_names], np.int64)
    code = code_of[encoded.indices.to_numpy()] if len(rows) else np.zeros(0, np.int64)
    # The row that each source row becomes.
    order = np.argsort(code, kind="stable")
    place = np.empty(len(code), np.int64)
    place[order] = np.arange(len(code))
    object_id, code = object_id.take(pa.array(order)), code[order]
    by_id = order_by_id(object_id)
    _check_rows_differ(object_id, code, by_id, sorted_names)
    columns: dict[str, Any] = {name: pc.cast(rows[name], pa.float64()).to_numpy()[order] for name in POSITIONS}
    given = {} if metadata is None else number_columns(metadata, "metadata")
    known = {name for name in rows.column_names if name not in ("object_id", "modality", *POSITIONS)}
    for name in dict.fromkeys([*names, *sorted(known), *given]):
        values = rows[name].to_numpy()[order] if name in known else np.full(len(code), np.nan)
        if name in given and name != "object_id":
            values = _aligned(object_id, given["object_id"], given[name], values)
        if name != "object_id":
            columns[name] = values
    table = pa.table({"object_id": object_id, **columns})
    folder.mkdir(exist_ok=True)
    inverse_length = np.empty(len(code), np.float32)
    with VectorWriter(folder / index_files.VECTORS, len(code), source.dimension) as writer:
        start = 0
        for block in source.blocks():
            where = place[start : start + len(block)]
            length = np.linalg.norm(as_float32(block), axis=1)
            wrong = ~(np.isfinite(length) & (length > 0))
            if wrong.any():
                first = int(wrong.argmax())
                row = int(where[first])
                raise EmbeddingIndexError(
                    f"row {start + first} (object {object_id[row]}, {sorted_names[code[row]]}): the vector must be "
                    f"finite and not zero; its length is {length[first]}"
                )
            inverse_length[where] = 1 / length
            writer.write(where, block)
            start += len(block)
    np.save(folder / index_files.INVERSE_LENGTH, inverse_length)
    np.save(folder / index_files.BY_ID, by_id)
    with pa.OSFile(str(folder / index_files.ROWS), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    counts = np.bincount(code, minlength=len(sorted_names)).tolist()
    return WrittenRows(dict(zip(sorted_names, counts, strict=True)), table)


def build_parts(
    folder: Path,
    written: WrittenRows,
    settings: BuildSettings,
    trained: Mapping[str, tuple[Part, Path]] | None = None,
) -> tuple[Part, ...]:
    """Make the search structure of each modality from the vectors in the folder, and measure what it finds.

    `trained` holds parts whose cells may be used again, with their empty structures.
    """
    parts = []
    total = max(1, written.rows.num_rows)
    memory = allowed_memory(settings.max_memory_gb)
    start = 0
    for number, (modality, num_rows) in enumerate(written.num_rows_of_modality.items()):
        rows = range(start, start + num_rows)
        start += num_rows
        reused = (trained or {}).get(modality)
        path = folder / f"part-{number}.faiss"
        parts.append(_build_part(path, modality, rows, written, settings, memory * num_rows / total, reused))
        if num_rows > COLLECTED_ROWS:
            gc.collect()
    return tuple(parts)


def _build_part(
    path: Path,
    modality: str,
    rows: range,
    written: WrittenRows,
    settings: BuildSettings,
    memory: float,
    reused: tuple[Part, Path] | None,
) -> Part:
    vectors = open_vectors(path.parent)
    dimension = vectors.values.shape[1]
    choice = choose_type(
        len(rows), dimension, wanted=settings.index_type, flat_limit=settings.flat_limit, memory=memory
    )
    part = Part(modality, len(rows), choice.index_type, choice.reason)
    is_cells = choice.index_type.startswith("ivf")
    if is_cells:
        cells = num_cells(len(rows))
        if reused is not None and reused[0].index_type == part.index_type and cells < 2 * reused[0].num_cells:
            cells, structure = reused[0].num_cells, import_faiss().read_index(str(reused[1]))
        else:
            structure = make_structure(choice.index_type, dimension, cells)
            _train(structure, vectors, rows, cells)
        part = Part(modality, len(rows), choice.index_type, f"{choice.reason}; {cells} cells", cells)
        import_faiss().write_index(structure, str(trained_path(path)))
    else:
        structure = make_structure(choice.index_type, dimension, 0)
    if choice.on_disk:
        _add_on_disk(structure, vectors, rows, path, memory)
    else:
        for _, block in vectors.unit_blocks(rows.start, rows.stop):
            structure.add(block)
        import_faiss().write_index(structure, str(path))
    if part.index_type == "flat":
        part.recall.update({"exact": True})
        return part
    if choice.on_disk:
        structure = open_structure(path, part.index_type, memory_map=True)
    metadata = {
        name: written.rows[name].to_numpy()[rows.start : rows.stop]
        for name in written.rows.column_names
        if name not in ("object_id", *POSITIONS)
    }
    return tune(
        SearchablePart(part, structure, rows, vectors), make_trials(vectors, rows, metadata), settings.target_recall
    )


def _train(structure: Any, vectors: StoredVectors, rows: range, cells: int) -> None:
    most = min(TRAINING_ROWS_PER_CELL * cells, int(TRAINING_BYTES / (4 * vectors.values.shape[1])), len(rows))
    sample = np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False)) + rows.start
    # FAISS warns where a cell has fewer rows to learn from than 39; a small part may have.
    structure.cp.min_points_per_centroid = 1
    structure.train(vectors.unit(sample))


def _add_on_disk(structure: Any, vectors: StoredVectors, rows: range, path: Path, memory: float) -> None:
    """Add rows in pieces that memory holds, then merge the pieces' lists into one file beside the structure's."""
    from faiss.contrib.ondisk import merge_ondisk

    faiss = import_faiss()
    kind = "ivf_rabitq" if isinstance(structure, faiss.IndexIVFRaBitQ) else "ivf"
    num_rows = max(BLOCK_ROWS, int(memory / 2 / bytes_per_row(kind, structure.d)))
    pieces = []
    for number, start in enumerate(range(rows.start, rows.stop, num_rows)):
        for first, block in vectors.unit_blocks(start, min(start + num_rows, rows.stop)):
            local = first - rows.start
            structure.add_with_ids(block, np.arange(local, local + len(block)))
        piece = path.with_suffix(f".piece-{number}")
        faiss.write_index(structure, str(piece))
        structure.reset()
        pieces.append(piece)
    merge_ondisk(structure, [str(piece) for piece in pieces], str(path.with_suffix(LISTS_SUFFIX)))
    faiss.write_index(structure, str(path))
    for piece in pieces:
        piece.unlink()


def trained_path(path: Path) -> Path:
    """The file of a part's structure before any row was added."""
    return path.with_suffix(".trained")


def open_vectors(folder: Path) -> StoredVectors:
    """The vectors in a folder, memory-mapped."""
    values, inverse_length = (
        # Plain arrays of the map: numpy's own class of maps is slow to index.
        np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
        for name in (index_files.VECTORS, index_files.INVERSE_LENGTH)
    )
    return StoredVectors(values, inverse_length)


def number_columns(given: pa.Table | Mapping[str, Any], what: str) -> dict[str, Any]:
    """`object_id` (Arrow) and columns of float64, NaN = unknown. Raises EmbeddingIndexError."""
    table = given if isinstance(given, pa.Table) else pa.table(dict(given))
    if "object_id" not in table.column_names:
        raise EmbeddingIndexError(f"{what} must have a column object_id; found {table.column_names}")
    object_id = pc.cast(table["object_id"], ID).combine_chunks()
    if pc.count_distinct(object_id).as_py() < len(object_id):
        raise EmbeddingIndexError(f"{what}: an object_id stands in two rows")
    columns = {name: _numbers(table[name], name, what) for name in table.column_names if name != "object_id"}
    return {"object_id": object_id, **columns}


def _numbers(column: pa.ChunkedArray, name: str, what: str) -> Float64[np.ndarray, " R"]:
    try:
        numbers = pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy()
    except pa.ArrowException as error:
        kind = what.removesuffix("s")
        raise EmbeddingIndexError(f"{kind} {name!r} must be a column of numbers; {error}") from None
    return np.where(np.isinf(numbers), np.nan, numbers)


def _aligned(
    object_id: pa.Array, given_id: pa.Array, values: Float64[np.ndarray, " G"], otherwise: Float64[np.ndarray, " R"]
) -> Float64[np.ndarray, " R"]:
    place = pc.fill_null(pc.index_in(object_id, value_set=given_id), -1).to_numpy(zero_copy_only=False)
    return np.where(place < 0, otherwise, values[place]) if len(values) else otherwise


def _check_rows_differ(
    object_id: pa.Array, code: Int64[np.ndarray, " R"], by_id: Int64[np.ndarray, " R"], names: list[str]
) -> None:
    if len(by_id) < 2:
        return
    ordered = object_id.take(pa.array(by_id))
    same_id = pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    twice = np.flatnonzero(same_id & (np.diff(code[by_id]) == 0))
    if len(twice):
        row = int(by_id[twice[0]])
        raise EmbeddingIndexError(
            f"object {object_id[row]} has {names[code[row]]} twice; an index holds one row for each"
        )
