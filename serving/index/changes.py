"""Changes of a saved index: rows are added and removed, and base and changes are made one again.

A change is written as a folder of its own and counts once the manifest names it. Where more rows were added than a
search should compare one by one, the base is built anew, with the cells that it has. One process changes an index at a
time (a lock); a change starts from what is on disk, not from what this process read before.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float16, Int64

from . import files as index_files
from .building import RowSource, build_parts, number_columns, trained_path, write_rows
from .files import Manifest, Part
from .labels import label_table
from .protocol import EmbeddingIndexError
from .rows import ID
from .state import IndexState, LiveRows, read_state, write_counts
from .vectors import BLOCK_ROWS

TAIL_LIMIT = 20_000
"""Added rows above which the base is built anew: each of them is compared in every search."""
MOST_CHANGES = 256
LOAD_TRIES = 5

Change = Callable[[IndexState], Manifest]


def read_latest(folder: Path, *, verify: bool = True, memory_map: bool = True) -> IndexState:
    """The state of an index folder. While another process builds a new base, files may go between two looks."""
    for tries_left in reversed(range(LOAD_TRIES)):
        manifest = index_files.read_manifest(folder)
        try:
            if verify:
                index_files.verify(folder, manifest)
            return read_state(folder, manifest, memory_map=memory_map)
        except (EmbeddingIndexError, OSError, RuntimeError):
            if not tries_left or index_files.read_manifest(folder).version == manifest.version:
                raise
    raise AssertionError("unreachable")


def newer(state: IndexState) -> IndexState | None:
    """The state on disk, if it is another than this one."""
    for tries_left in reversed(range(LOAD_TRIES)):
        manifest = index_files.read_manifest(state.folder)
        if manifest == state.manifest:
            return None
        try:
            return read_state(state.folder, manifest, before=state)
        except (EmbeddingIndexError, OSError, RuntimeError):
            if not tries_left:
                raise
    raise AssertionError("unreachable")


def change(state: IndexState, make: Change) -> IndexState:
    """Make a change, which is on disk when this returns; the state after it."""
    folder = state.folder
    with index_files.locked(folder):
        latest = newer(state) or state
        index_files.sweep(folder, latest.manifest)
        manifest = make(latest)
        if manifest == latest.manifest:
            return latest
        # Read before it counts: a change that cannot be read is none.
        after = read_state(folder, manifest, before=latest)
        index_files.commit(folder, manifest)
        index_files.sweep(folder, manifest)
    return after


def add(
    state: IndexState,
    source: RowSource,
    labels: pa.Table | Mapping[str, Any] | None,
    metadata: pa.Table | Mapping[str, Any] | None,
) -> Manifest:
    """Write rows of a source as a change, or as part of a new base where they are many; the manifest after it."""
    old = state.manifest
    _check_source(old, source)
    rows = source.rows()
    if not rows.num_rows and labels is None:
        return old
    object_id = pc.unique(pc.cast(rows["object_id"], ID))
    known_metadata = _metadata(state, object_id, metadata)
    replaced = _replaced(state, rows)
    new_labels = _labels(state, object_id, labels)
    if len(state.tail) + rows.num_rows > TAIL_LIMIT or len(old.changes) >= MOST_CHANGES:
        joined = _Chain((LiveRows(state, replaced), source))
        return _rebuild(state, joined, new_labels, known_metadata)
    is_new = _is_new(state, object_id)
    counts = dict(old.num_rows_of_modality)
    for entry in pc.value_counts(pc.cast(rows["modality"], pa.string())).to_pylist():
        counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    replaced_names = [state.rows.modality_names[code] for code in state.rows.modality_codes(replaced)]
    for name in replaced_names:
        counts[name] -= 1
    partial, name = _new_folder(state, "change")
    written = write_rows(partial, source, known_metadata, old.metadata)
    write_counts(partial, written)
    pq.write_table(new_labels, partial / index_files.LABELS, compression="zstd")
    np.save(partial / index_files.REMOVED, replaced)
    files = _finish(state.folder, partial, name)
    return replace(
        old,
        num_rows=old.num_rows + rows.num_rows - len(replaced),
        num_objects=old.num_objects + is_new,
        num_rows_of_modality={key: counts[key] for key in sorted(counts) if counts[key]},
        labels=tuple(dict.fromkeys([*old.labels, *new_labels.column_names[1:]])),
        changes=(*old.changes, name),
        version=old.version + 1,
        files={**old.files, **files},
    )


def remove(state: IndexState, object_ids: Sequence[str]) -> Manifest:
    """Write the removal of objects as a change; the manifest after it. Raises LookupError if one is not there."""
    old = state.manifest
    if not object_ids:
        return old
    rows = state.rows.rows_of_any(object_ids)
    found = set(state.rows.object_ids(rows).to_pylist())
    missing = [i for i in object_ids if i not in found]
    if missing:
        raise LookupError(
            f"{len(missing)} of {len(object_ids)} objects to remove are not in the index, the first: {missing[0]!r}"
        )
    if len(old.changes) >= MOST_CHANGES:
        return _rebuild(state, LiveRows(state, rows), None, None)
    counts = dict(old.num_rows_of_modality)
    for code in state.rows.modality_codes(rows):
        counts[state.rows.modality_names[code]] -= 1
    partial, name = _new_folder(state, "change")
    np.save(partial / index_files.REMOVED, np.sort(rows))
    files = _finish(state.folder, partial, name)
    return replace(
        old,
        num_rows=old.num_rows - len(rows),
        num_objects=old.num_objects - len(found),
        num_rows_of_modality={key: count for key, count in counts.items() if count},
        changes=(*old.changes, name),
        version=old.version + 1,
        files={**old.files, **files},
    )


def compact(state: IndexState) -> Manifest:
    """Build a base without changes; the manifest after it."""
    if not state.manifest.changes:
        return state.manifest
    return _rebuild(state, LiveRows(state, np.zeros(0, np.int64)), None, None)


def _rebuild(
    state: IndexState, source: RowSource, labels: pa.Table | None, metadata: Mapping[str, Any] | None
) -> Manifest:
    old = state.manifest
    partial, name = _new_folder(state, "base")
    written = write_rows(partial, source, metadata, old.metadata)
    write_counts(partial, written)
    kept_id = written.rows["object_id"].combine_chunks()
    table = _joined_labels(state.labels.table, labels, kept_id)
    pq.write_table(table, partial / index_files.LABELS, compression="zstd")
    parts = build_parts(partial, written, old.settings, _trained(state))
    files = _finish(state.folder, partial, name)
    beside = {path: digest for path, digest in old.files.items() if "/" not in path}
    return replace(
        old,
        num_rows=written.rows.num_rows,
        num_objects=pc.count_distinct(kept_id).as_py(),
        num_rows_of_modality=written.num_rows_of_modality,
        labels=tuple(table.column_names[1:]),
        parts=parts,
        base=name,
        changes=(),
        version=old.version + 1,
        files={**beside, **files},
    )


@dataclass(frozen=True, eq=False)
class _Chain:
    """The rows of several sources, one after another."""

    sources: tuple[RowSource, ...]

    @property
    def space(self) -> str:
        return self.sources[0].space

    @property
    def model_id(self) -> str:
        return self.sources[0].model_id

    @property
    def dimension(self) -> int:
        return self.sources[0].dimension

    def rows(self) -> pa.Table:
        tables = []
        for source in self.sources:
            table = source.rows()
            for name, kind in (("object_id", ID), ("modality", pa.string())):
                place = table.column_names.index(name)
                table = table.set_column(place, name, pc.cast(table[name], kind))
            tables.append(table)
        joined = pa.concat_tables(tables, promote_options="default")
        names = [n for n in joined.column_names if n not in ("object_id", "modality")]
        numbers = {n: pc.fill_null(joined[n], np.nan) for n in names}
        return pa.table({"object_id": joined["object_id"], "modality": joined["modality"], **numbers})

    def blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[Float16[np.ndarray, "B D"]]:
        for source in self.sources:
            yield from source.blocks(num_rows)


def _new_folder(state: IndexState, kind: str) -> tuple[Path, str]:
    """Where to write, and the name it gets; what an exception leaves there is swept away by the next change."""
    name = f"{kind}-{state.manifest.version + 1}"
    partial = state.folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial, name


def _finish(folder: Path, partial: Path, name: str) -> dict[str, str]:
    """Bring a new folder to disk under its name; the checksums of its files."""
    index_files.to_disk(partial)
    files = {f"{name}/{path.name}": index_files.sha256(path) for path in sorted(partial.iterdir())}
    partial.replace(folder / name)
    return files


def _check_source(manifest: Manifest, source: RowSource) -> None:
    for name in ("model_id", "space", "dimension"):
        expected, found = getattr(manifest, name), getattr(source, name)
        if found != expected:
            raise EmbeddingIndexError(f"the index holds vectors of {name} {expected!r}, those to add are of {found!r}")


def _replaced(state: IndexState, rows: pa.Table) -> Int64[np.ndarray, " G"]:
    """The rows of the index that rows to add take the place of."""
    found = [np.zeros(0, np.int64)]
    modality = pc.cast(rows["modality"], pa.string())
    for name in pc.unique(modality).to_pylist():
        if name in state.rows.modality_names:
            ids = rows["object_id"].filter(pc.equal(modality, name)).to_pylist()
            found.append(state.rows.rows_of_each(ids, name))
    every = np.concatenate(found)
    return np.unique(every[every >= 0])


def _is_new(state: IndexState, object_id: pa.Array) -> int:
    """How many of these objects are not in the index."""
    known = state.rows.object_ids(state.rows.rows_of_any(object_id.to_pylist()))
    return len(object_id) - pc.count_distinct(known).as_py()


def _metadata(
    state: IndexState, object_id: pa.Array, given: pa.Table | Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Metadata of objects to add: what is given, else what is known of an object that is there."""
    names = state.manifest.metadata
    columns = {"object_id": object_id} if given is None else number_columns(given, "metadata")
    unknown = sorted(set(columns) - {"object_id", *names})
    if unknown:
        raise EmbeddingIndexError(f"the index has no metadata {unknown[0]!r}; it has {list(names)}")
    if not names:
        return None
    place = pc.index_in(object_id, value_set=columns["object_id"])
    place = pc.fill_null(place, -1).to_numpy(zero_copy_only=False)
    rows = state.rows.rows_of_any(object_id.to_pylist())
    # Of an object with several rows, any: they agree.
    at = pc.fill_null(pc.index_in(object_id, value_set=state.rows.object_ids(rows)), -1).to_numpy(zero_copy_only=False)
    merged: dict[str, Any] = {"object_id": object_id}
    for name in names:
        old = np.append(state.rows.column(name, rows), np.nan)[at]
        new = np.append(columns[name], np.nan)[place] if name in columns else np.full(len(object_id), np.nan)
        merged[name] = np.where(np.isnan(new), old, new)
    return merged


def _labels(state: IndexState, object_id: pa.Array, given: pa.Table | Mapping[str, Any] | None) -> pa.Table:
    """Labels to write with a change: those given, each row completed by what is known of its object."""
    if given is None:
        return label_table(None, object_id)
    columns = number_columns(given, "labels")
    names = tuple(dict.fromkeys([*state.manifest.labels, *(n for n in columns if n != "object_id")]))
    ids = columns["object_id"].to_pylist()
    rows = state.rows.rows_of_any(ids)
    existing = state.rows.object_ids(rows)
    table = label_table(given, pa.concat_arrays([object_id, existing]))
    at = pc.fill_null(pc.index_in(table["object_id"], value_set=existing), -1)
    row = np.append(rows, -1)[at.to_numpy().astype(np.int64)]
    merged = {"object_id": table["object_id"]}
    for name in names:
        old = state.labels.of_rows(name, row) if name in state.labels.names else np.full(len(ids), np.nan)
        new = columns.get(name, np.full(len(ids), np.nan))
        merged[name] = np.where(np.isnan(new), old, new)
    return pa.table(merged)


def _joined_labels(table: pa.Table, new: pa.Table | None, kept: pa.Array) -> pa.Table:
    """The labels of a new base: of the objects it keeps, the new ones for the old."""
    tables = [table]
    if new is not None and new.num_rows:
        tables = [table.filter(pc.invert(pc.is_in(table["object_id"], value_set=new["object_id"]))), new]
    joined = pa.concat_tables(tables, promote_options="default")
    joined = joined.filter(pc.is_in(joined["object_id"], value_set=kept)).combine_chunks()
    names = joined.column_names[1:]
    return pa.table({"object_id": joined["object_id"], **{n: pc.fill_null(joined[n], np.nan) for n in names}})


def _trained(state: IndexState) -> dict[str, tuple[Part, Path]]:
    folder = state.folder / state.manifest.base
    paths = [trained_path(folder / f"part-{number}.faiss") for number in range(len(state.manifest.parts))]
    pairs = zip(state.manifest.parts, paths, strict=True)
    return {part.modality: (part, path) for part, path in pairs if path.exists()}
