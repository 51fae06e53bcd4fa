"""Tokens on disk: objects registered once, and for each modality the tokens of those that have it, by shard.

    <store>/manifest.json                    what is complete: objects, modalities, tokenizer hashes, counts, sources
    <store>/objects/shard-00000/             who the objects of the shard are, shared by all modalities
    <store>/<kind>/<survey>/shard-00000/     tokens of the same objects in one modality

Rows of a batch are aligned by object number, never by comparing ids. A modality that comes later adds its own folders,
and new objects add shards at the end: no file but the manifest is ever written twice. token_shards.py has the files of
a shard, token_plan.py who goes where.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Integer

from .modalities import Modality
from .token_manifest import MANIFEST, check_sizes, describe_unfinished, manifest_entries, read_manifest, verify_store
from .token_shards import (
    OBJECTS,
    ObjectShard,
    TokenShard,
    TokenStoreError,
    object_keys,
    open_object_shard,
    open_rows,
    open_token_shard,
    shard_path,
)

VERIFIED_BYTES = 2**30
"""Stores up to this size are read and checked byte by byte when they are opened, unless told otherwise."""
MAX_OPEN_SHARDS = 2048
"""Shards kept memory-mapped at once: a process may map some 65,000 files."""

_Shard = TypeVar("_Shard", ObjectShard, TokenShard)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Tokens of one modality for some rows of a batch: numpy arrays as `TokenGrid` has them, and their rows."""

    modality: Modality
    rows: Int64[np.ndarray, " R"]
    codes: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    instrument: np.ndarray


class TokenStore:
    """A token store opened for reading: its objects, its modalities, and the tokens of any of them.

    Objects are numbered in the order of their shards. Opening compares the sizes of all files with the manifest, and if
    `verify` (by default, for stores of less than VERIFIED_BYTES) their checksums too. Raises TokenStoreError if the
    store is not finished, and for a missing or damaged shard.
    """

    def __init__(self, folder: str | Path, verify: bool | None = None):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise TokenStoreError(describe_unfinished(self.folder))
        self._entries = dict(manifest_entries(manifest))
        objects = self._entries[OBJECTS]
        self.starts: Int64[np.ndarray, " edges"] = np.cumsum([0, *objects["num_objects"]], dtype=np.int64)
        """Number of the first object of each shard, and of all objects."""
        self.digest = hashlib.sha256(":".join(objects["digests"]).encode()).hexdigest()[:16]
        """Names the objects and their order."""
        self.modalities = tuple(
            Modality.from_record(entry, str(self.folder / MANIFEST)) for entry in manifest["modalities"]
        )
        self.tokenizer_hashes = {m.name: str(self._entries[m.name]["tokenizer_hash"]) for m in self.modalities}
        check_sizes(self.folder, manifest)
        size = sum(sum(entry["bytes"]) for entry in self._entries.values())
        if verify or (verify is None and size <= VERIFIED_BYTES):
            verify_store(self.folder)
        self._open: dict[tuple[str, int], Any] = {}
        self._common: dict[tuple[str, str], np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def num_tokens(self, name: str) -> int:
        """Tokens of one object in this modality, padding included."""
        return int(self._entry(name)["num_tokens"])

    def num_rows(self, name: str) -> int:
        """How many objects have this modality."""
        return sum(self._entry(name)["num_rows"])

    def has(self, name: str) -> Bool[np.ndarray, " objects"]:
        """Whether each object has this modality."""
        found = np.zeros(len(self), dtype=bool)
        for index, num_rows in enumerate(self._entry(name)["num_rows"]):
            start, stop = self.starts[index : index + 2].tolist()
            if num_rows == stop - start:
                found[start:stop] = True
            elif num_rows:
                found[start:stop] = open_rows(shard_path(self.folder, name, index), stop - start) >= 0
        return found

    def object_ids(self, objects: Int64[np.ndarray, " B"] | None = None) -> list[str]:
        """Ids of these objects, by default of all."""
        return list(self._identity(objects, object, (), lambda shard, rows: shard.object_id.take(rows).to_pylist()))

    def keys(self, objects: Int64[np.ndarray, " B"] | None = None) -> Int64[np.ndarray, " B"]:
        """The `object_key` of these objects, by default of all."""
        return self._identity(objects, np.int64, (), lambda shard, rows: shard.key[rows])

    def sky(self, objects: Int64[np.ndarray, " B"] | None = None) -> Float64[np.ndarray, "B 2"]:
        """Ra and dec in degrees of these objects, by default of all; NaN where unknown."""
        return self._identity(objects, np.float64, (2,), lambda shard, rows: shard.sky[rows])

    @cached_property
    def _by_key(self) -> tuple[Int64[np.ndarray, " objects"], Int64[np.ndarray, " objects"]]:
        """All keys in order, and their objects."""
        keys = self.keys()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def find(self, object_id: Sequence[str]) -> Int64[np.ndarray, " B"]:
        """Numbers of the objects with these ids, -1 where the store has none. Keeps 16 bytes for each object."""
        keys, objects = self._by_key
        wanted = object_keys(object_id)
        found = np.full(len(wanted), -1, dtype=np.int64)
        place = np.searchsorted(keys, wanted)
        waiting = np.arange(len(wanted))
        while len(waiting):  # a second round only where two ids share 63 bits of SHA-256
            waiting = waiting[place[waiting] < len(keys)]
            waiting = waiting[keys[place[waiting]] == wanted[waiting]]
            candidates = objects[place[waiting]]
            names = self.object_ids(candidates)
            same = np.array([object_id[i] == name for i, name in zip(waiting, names, strict=True)], dtype=bool)
            found[waiting[same]] = candidates[same]
            waiting = waiting[~same]
            place[waiting] += 1
        return found

    def read(self, name: str, objects: Int64[np.ndarray, " B"]) -> TokenRows:
        """Tokens of one modality for those of `objects` that have it; codes are 0 where the mask is False."""
        rows, parts = [np.empty(0, np.int64)], []
        for index, places, local in self._by_shard(objects):
            shard = self.token_shard(name, index)
            if shard is not None:
                stored = shard.rows[local]
                rows.append(places[stored >= 0])
                parts.append(_read(shard, stored[stored >= 0]))
        if not parts:
            filled = np.flatnonzero(self._entry(name)["num_rows"])
            shard = self.token_shard(name, int(filled[0]))
            assert shard is not None
            parts.append(_read(shard, np.empty(0, np.int64)))
        modality = next(m for m in self.modalities if m.name == name)
        return TokenRows(modality, np.concatenate(rows), *map(np.concatenate, zip(*parts, strict=True)))

    def object_shard(self, index: int) -> ObjectShard:
        """One shard of objects, memory-mapped. Raises TokenStoreError if it is damaged."""
        return self._shard(OBJECTS, index, open_object_shard)

    def token_shard(self, name: str, index: int) -> TokenShard | None:
        """One shard of tokens, memory-mapped, or None if no object of it has them. Raises TokenStoreError on damage."""
        if not self._entry(name)["num_rows"][index]:
            return None
        return self._shard(name, index, lambda folder: self._with_common(name, open_token_shard(folder)))

    def _shard(self, name: str, index: int, open_shard: Callable[[Path], _Shard]) -> _Shard:
        found: _Shard | None = self._open.get((name, index))
        if found is None:
            found = self._open[name, index] = open_shard(shard_path(self.folder, name, index))
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.pop(next(iter(self._open)), None)
        return found

    def _with_common(self, name: str, shard: TokenShard) -> TokenShard:
        """The shard with the very arrays of an earlier one where all objects of both share them."""
        positions, instrument = (
            known if len(array) == 1 and np.array_equal(array, known) else array
            for field, array in (("positions", shard.positions), ("instrument", shard.instrument))
            for known in [self._common.setdefault((name, field), array)]
        )
        return replace(shard, positions=positions, instrument=instrument)

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._entries:
            raise TokenStoreError(f"{self.folder}: no tokens of {name!r}; it holds {[m.name for m in self.modalities]}")
        return self._entries[name]

    def _by_shard(
        self, objects: Int64[np.ndarray, " B"]
    ) -> Iterator[tuple[int, Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]]:
        """Each shard that holds some of `objects`, their places in `objects`, and their rows in the shard."""
        owner = np.searchsorted(self.starts, objects, side="right") - 1
        order = np.argsort(owner, kind="stable")
        edges = np.flatnonzero(np.diff(owner[order])) + 1
        for places in np.split(order, edges):
            if len(places):
                index = int(owner[places[0]])
                yield index, places, objects[places] - self.starts[index]

    def _identity(
        self,
        objects: Int64[np.ndarray, " B"] | None,
        dtype: Any,
        shape: tuple[int, ...],
        read: Callable[[ObjectShard, Any], Any],
    ) -> np.ndarray:
        chosen = np.arange(len(self)) if objects is None else objects
        found = np.empty((len(chosen), *shape), dtype=dtype)
        for index, places, rows in self._by_shard(chosen):
            found[places] = read(self.object_shard(index), rows)
        return found


def _read(shard: TokenShard, rows: Integer[np.ndarray, " R"]) -> tuple[np.ndarray, ...]:
    """Codes, mask, positions and instrument numbers of some rows of a shard."""
    codes = shard.codes[rows]
    others = [
        array[:1].repeat(len(rows), 0) if len(array) == 1 else array[rows]
        for array in (shard.positions, shard.instrument)
    ]
    return np.maximum(codes, 0), codes >= 0, *others


def as_tensors(rows: TokenRows) -> dict[str, torch.Tensor]:
    """The arrays of `rows` as tensors of the types the models use."""
    return {
        "codes": torch.from_numpy(rows.codes.astype(np.int64)),
        "mask": torch.from_numpy(np.array(rows.mask)),
        "positions": torch.from_numpy(np.array(rows.positions)),
        "instrument": torch.from_numpy(np.array(rows.instrument)),
    }
