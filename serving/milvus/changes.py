"""Changes of an index on Milvus: rows are added, replaced and removed while others search.

The record says `changing` before the first row is written, and counts again after the last. Who is killed between has
changed some rows and acknowledged none; the next who opens the index counts anew.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..index.protocol import EmbeddingIndexError
from .engine import MilvusEngine
from .manifest import CHANGING, READY, MilvusManifest
from .rows import POSITION, decode_number, encode_number, make_row, number_fields, row_id
from .search import stored_vectors
from .source import MilvusSource, ObjectNumbers, RowBlock

OBJECTS_AT_ONCE = 1000


def add(
    engine: MilvusEngine, manifest: MilvusManifest, source: MilvusSource, labels: ObjectNumbers, metadata: ObjectNumbers
) -> MilvusManifest:
    """Write rows; those of an (object, modality) that is there are replaced; numbers that are not given are kept."""
    for name in ("model_id", "space", "dimension"):
        expected, found = getattr(manifest, name), getattr(source, name)
        if found != expected:
            raise EmbeddingIndexError(f"the index holds vectors of {name} {expected!r}, those to add are of {found!r}")
    for what, given, known in (("labels", labels, manifest.labels), ("metadata", metadata, manifest.metadata)):
        unknown = sorted(set(given.columns) - set(known))
        if unknown:
            raise EmbeddingIndexError(
                f"the index has no {what} {unknown[0]!r}; it has {list(known)}, and columns are fixed when it is built"
            )
    plan = source.plan()
    strangers = labels.unknown(plan.object_hash)
    elsewhere = _known(engine, manifest, strangers)
    strangers = [i for i in strangers if i not in elsewhere]
    if strangers:
        raise EmbeddingIndexError(f"{len(strangers)} labelled objects have no embedding; the first: {strangers[0]!r}")
    if not len(plan.row_id) and not len(labels):
        return manifest
    names = sorted({*manifest.num_rows_of_modality, *plan.num_rows_of_modality})
    counts = {name: manifest.num_rows_of_modality.get(name, 0) for name in names}
    changing = replace(manifest, num_rows_of_modality=dict(counts), state=CHANGING)
    changing.write(engine)
    writer = _Writer(engine, changing, labels, metadata)
    num_new_objects = 0
    for block in source.blocks(OBJECTS_AT_ONCE):
        new_rows, new_objects = writer.write(block)
        for modality in new_rows:
            counts[modality] += 1
        num_new_objects += new_objects
    for start in range(0, len(elsewhere), OBJECTS_AT_ONCE):
        writer.relabel(elsewhere[start : start + OBJECTS_AT_ONCE])
    engine.to_disk(manifest.collection)
    told = hashlib.sha256(f"{manifest.content} add {plan.fingerprint} {labels.told} {metadata.told}".encode())
    return _changed(engine, changing, counts, manifest.num_objects + num_new_objects, told.hexdigest())


def remove(engine: MilvusEngine, manifest: MilvusManifest, object_ids: Sequence[str]) -> MilvusManifest:
    """Remove all rows of these objects. Raises LookupError, and removes none, if one is not there."""
    if not object_ids:
        return manifest
    rows = rows_of(engine, manifest, object_ids, ["modality"])
    found = {row["object_id"] for row in rows}
    missing = [i for i in object_ids if i not in found]
    if missing:
        raise LookupError(
            f"{len(missing)} of {len(object_ids)} objects to remove are not in the index, the first: {missing[0]!r}"
        )
    changing = replace(manifest, state=CHANGING)
    changing.write(engine)
    counts = dict(manifest.num_rows_of_modality)
    for start in range(0, len(rows), 4000):
        engine.delete(manifest.collection, [row["id"] for row in rows[start : start + 4000]])
    for row in rows:
        counts[row["modality"]] -= 1
    engine.to_disk(manifest.collection)
    told = hashlib.sha256(f"{manifest.content} remove {sorted(found)}".encode())
    return _changed(engine, changing, counts, manifest.num_objects - len(found), told.hexdigest())


def rows_of(
    engine: MilvusEngine, manifest: MilvusManifest, object_ids: Sequence[str], columns: Sequence[str]
) -> list[Any]:
    """All rows of these objects, by their ids, in any order."""
    ids = [row_id(name, modality) for name in object_ids for modality in manifest.num_rows_of_modality]
    wanted = set(object_ids)
    rows = engine.rows_by_id(manifest.collection, ids, ["object_id", *columns])
    for row in rows:
        if row["object_id"] not in wanted:
            raise EmbeddingIndexError(
                f"object {row['object_id']!r} of the index has the hash of one that was asked for"
            )
    return rows


def counted_anew(engine: MilvusEngine, manifest: MilvusManifest) -> MilvusManifest:
    """The manifest with counts of what is there, after a change that did not end."""
    counts: dict[str, int] = {}
    objects = np.zeros(0, np.int64)
    for block in engine.every_row(manifest.collection, "", ["object_id", "modality"]):
        for row in block:
            counts[row["modality"]] = counts.get(row["modality"], 0) + 1
        objects = np.union1d(objects, np.array([row_id(row["object_id"], "") for row in block], np.int64))
    return replace(
        manifest,
        num_rows=sum(counts.values()),
        num_objects=len(objects),
        num_rows_of_modality=dict(sorted(counts.items())),
        content=hashlib.sha256(f"{manifest.content} interrupted".encode()).hexdigest(),
    )


class _Writer:
    """Writes rows with the numbers of their objects: those given, else those known."""

    def __init__(
        self, engine: MilvusEngine, manifest: MilvusManifest, labels: ObjectNumbers, metadata: ObjectNumbers
    ) -> None:
        self.engine, self.manifest = engine, manifest
        self.given = (("label", labels), ("metadata", metadata))
        self.fields = number_fields(manifest.labels, manifest.metadata)
        self.columns = ["modality", *POSITION, *self.fields.values()]

    def write(self, block: RowBlock) -> tuple[list[str], int]:
        """Write a block of rows; the modalities of those that are new, and how many objects are."""
        known = self._known_rows(list(dict.fromkeys(block.object_id)))
        pairs = list(zip(block.object_id, block.modality, strict=True))
        ids = [row_id(*pair) for pair in pairs]
        rows = []
        for place, (object_id, modality) in enumerate(pairs):
            numbers, _ = self._numbers(object_id, known.get(object_id, {}))
            ra, dec = float(block.ra[place]), float(block.dec[place])
            rows.append(make_row(object_id, modality, ra, dec, numbers, block.vectors[place]))
        rows += self._stale(known, set(ids))
        self.engine.upsert(self.manifest.collection, rows)
        there = {int(i) for mine in known.values() for i in mine}
        new_objects = {name for name in block.object_id if name not in known}
        return [modality for i, (_, modality) in zip(ids, pairs, strict=True) if i not in there], len(new_objects)

    def relabel(self, object_ids: Sequence[str]) -> None:
        """Write the rows of these objects again, with the numbers that were given."""
        self.engine.upsert(self.manifest.collection, self._stale(self._known_rows(object_ids), set()))

    def _known_rows(self, object_ids: Sequence[str]) -> dict[str, dict[int, Any]]:
        known: dict[str, dict[int, Any]] = {}
        for row in rows_of(self.engine, self.manifest, object_ids, self.columns):
            known.setdefault(row["object_id"], {})[int(row["id"])] = row
        return known

    def _numbers(self, object_id: str, known: Mapping[int, Any]) -> tuple[dict[str, float], bool]:
        """The numbers of an object by field, and whether they differ from those of a row that is there."""
        rows = list(known.values())
        numbers = {
            field: next((v for v in (decode_number(row[field]) for row in rows) if not math.isnan(v)), math.nan)
            for field in self.fields.values()
        }
        for kind, given in self.given:
            for name, value in (given.of(object_id) or {}).items():
                if not math.isnan(value):
                    numbers[self.fields[f"{kind}:{name}"]] = value
        differ = any(row[field] != encode_number(value) for row in rows for field, value in numbers.items())
        return numbers, differ

    def _stale(self, known: Mapping[str, Mapping[int, Any]], written: set[int]) -> list[dict[str, Any]]:
        """Rows of known objects, other than those `written`, whose numbers are not those of their object any more."""
        stale: list[tuple[Any, dict[str, float]]] = []
        for object_id, rows in known.items():
            numbers, differ = self._numbers(object_id, rows)
            if differ:
                stale += [(row, numbers) for i, row in rows.items() if i not in written]
        vectors = stored_vectors(self.engine, self.manifest, [int(row["id"]) for row, _ in stale])
        return [
            make_row(
                row["object_id"],
                row["modality"],
                decode_number(row["ra"]),
                decode_number(row["dec"]),
                numbers,
                vectors[int(row["id"])],
            )
            for row, numbers in stale
        ]


def _known(engine: MilvusEngine, manifest: MilvusManifest, object_ids: Iterable[str]) -> list[str]:
    """Those of the objects that are in the index."""
    ids = list(object_ids)
    there = {row["object_id"] for row in rows_of(engine, manifest, ids, [])} if ids else set()
    return [i for i in ids if i in there]


def _changed(
    engine: MilvusEngine, manifest: MilvusManifest, counts: Mapping[str, int], num_objects: int, content: str
) -> MilvusManifest:
    after = replace(
        manifest,
        num_rows=sum(counts.values()),
        num_objects=num_objects,
        num_rows_of_modality={name: counts[name] for name in sorted(counts) if counts[name]},
        content=content,
        state=READY,
    )
    after.write(engine)
    return after
