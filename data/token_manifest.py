"""The manifest of a token store: what is complete, so that a reader need not look into every shard.

Shards are written by any number of processes that know nothing of each other. Whichever finds, after its last shard,
that none is missing writes `manifest.json`: the objects and tokens of each shard, tokenizer hashes, and the datasets
they came from. It is renamed into place, and can be made again from the shards at any time.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from .parquet_files import sync_folder
from .token_shards import (
    FORMAT_VERSION,
    OBJECTS,
    TokenStoreError,
    check_shard,
    num_bytes,
    open_object_shard,
    read_description,
    shard_indices,
    shard_path,
)

MANIFEST = "manifest.json"


def read_manifest(store: Path) -> dict[str, Any] | None:
    """The manifest of a store; None if it has none. Raises TokenStoreError if it is damaged or of another format."""
    path = store / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TokenStoreError(
            f"{path}: expected the manifest of a token store, found {error!r}. Remove it and tokenize again: shards "
            "that stand are kept."
        ) from None
    if version != FORMAT_VERSION:
        raise TokenStoreError(f"{path}: expected format {FORMAT_VERSION}, found {version}")
    return dict(content)


def missing_shards(store: str | Path) -> dict[str, list[int]]:
    """Numbers of the shards that are missing, of OBJECTS and of each modality that has any; empty if none is.

    A modality of which no shard stands is not begun, and not missing. Raises TokenStoreError for another format.
    """
    known = shard_indices(store, OBJECTS)
    if not known:
        return {OBJECTS: [0]}
    num_shards = max(read_description(shard_path(store, OBJECTS, index))["num_shards"] for index in known)
    missing = {name: sorted(set(range(num_shards)) - set(shard_indices(store, name))) for name in _begun(store)}
    missing = {OBJECTS: sorted(set(range(num_shards)) - set(known)), **missing}
    return {name: shards for name, shards in missing.items() if shards}


def describe_unfinished(store: Path) -> str:
    """Why a store without a manifest cannot be opened."""
    if not shard_indices(store, OBJECTS):
        begun = _begun(store)
        if begun:
            old = shard_path(store, begun[0], shard_indices(store, begun[0])[0])
            read_description(old)  # says so if it is of another format
            return f"{store}: expected shards of objects beside those of tokens, found none"
        return f"{store}: expected a token store, found no shards"
    missing = missing_shards(store)
    if missing:
        parts = [f"{name} lacks shard{'s' * (len(which) > 1)} {_ranges(which)}" for name, which in missing.items()]
        return f"{store}: not finished: {'; '.join(parts)}. Tokenize again: shards that stand are kept."
    return f"{store}: all shards stand, but there is no {MANIFEST}. Tokenize again: it is made from them."


def finish_store(store: str | Path, source: str, num_objects: Mapping[str, int]) -> bool:
    """Write the manifest if no shard is missing; returns whether that is so.

    `source` is the dataset that was tokenized, with its number of objects by modality. Raises TokenStoreError if shards
    do not belong together.
    """
    store = Path(store)
    if missing_shards(store):
        return False
    sources = [entry for entry in (read_manifest(store) or {}).get("sources", []) if entry["dataset"] != source]
    sources.append({"dataset": source, "num_objects": dict(num_objects)})
    manifest: dict[str, Any] | None = None
    # Another process may finish another modality at the same time: the last one to write sees both.
    while (found := {"format": FORMAT_VERSION, **_scan(store), "sources": sources}) != manifest:
        manifest = found
        _replace(store / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return True


def manifest_entries(manifest: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and entry of OBJECTS and of each modality."""
    return [(OBJECTS, manifest["objects"]), *((entry["modality"], entry) for entry in manifest["modalities"])]


def check_sizes(store: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the sizes of all shards with the manifest. Raises TokenStoreError that names the first that differs."""
    for name, entry in manifest_entries(manifest):
        for index, expected in enumerate(entry["bytes"]):
            folder = shard_path(store, name, index)
            found = num_bytes(folder)
            if found != expected:
                check_shard(folder, checksums=False)
                raise TokenStoreError(f"{folder}: expected {expected} bytes in all, found {found}")


def verify_store(store: str | Path, console: Console | None = None) -> int:
    """Read every byte of a store and compare it with the checksums; returns the number of shards.

    Shows progress on `console`. Raises TokenStoreError that lists every shard that is damaged.
    """
    store = Path(store)
    manifest = read_manifest(store)
    if manifest is None:
        raise TokenStoreError(describe_unfinished(store))
    shards = [(name, index) for name, entry in manifest_entries(manifest) for index in range(len(entry["bytes"]))]
    damaged = []
    for name, index in track(shards, description="verify", console=console, disable=console is None):
        try:
            check_shard(shard_path(store, name, index), checksums=True)
        except TokenStoreError as error:
            damaged.append(str(error))
    if damaged:
        raise TokenStoreError(f"{store}: {len(damaged)} of {len(shards)} shards are damaged\n  " + "\n  ".join(damaged))
    return len(shards)


def _scan(store: Path) -> dict[str, Any]:
    """What the manifest says of objects and modalities, from the shards themselves."""
    shards = [read_description(shard_path(store, OBJECTS, index)) for index in shard_indices(store, OBJECTS)]
    _check_ids(store, [shard["num_objects"] for shard in shards])
    objects = {
        "num_objects": [shard["num_objects"] for shard in shards],
        "bytes": [num_bytes(shard_path(store, OBJECTS, index)) for index in range(len(shards))],
        "digests": [shard["objects"] for shard in shards],
    }
    complete = [name for name in _begun(store) if len(shard_indices(store, name)) == len(shards)]
    return {
        "total_objects": sum(objects["num_objects"]),
        "objects": objects,
        "modalities": [_scan_modality(store, name, objects["digests"]) for name in complete],
    }


def _scan_modality(store: Path, name: str, digests: Sequence[str]) -> dict[str, Any]:
    folders = [shard_path(store, name, index) for index in range(len(digests))]
    shards = [read_description(folder) for folder in folders]
    first = next((shard for shard in shards if shard["num_rows"]), shards[0])
    for folder, shard, digest in zip(folders, shards, digests, strict=True):
        if shard["objects"] != digest:
            raise TokenStoreError(f"{folder}: its tokens are of other objects than those registered under its number")
        if shard["tokenizer_hash"] != first["tokenizer_hash"]:
            raise TokenStoreError(
                f"{folder}: its tokens were made by tokenizer {shard['tokenizer_hash']}, those of other shards by "
                f"{first['tokenizer_hash']}"
            )
        if shard["num_rows"] and shard["num_tokens"] != first["num_tokens"]:
            raise TokenStoreError(
                f"{folder}: expected {first['num_tokens']} tokens of {name} for each object, as in other shards, found "
                f"{shard['num_tokens']}. Images of several sizes? Crop them to one."
            )
    return {
        **{key: first[key] for key in ("modality", "quantity", "card", "tokenizer_hash", "num_tokens")},
        "total_rows": sum(shard["num_rows"] for shard in shards),
        "num_rows": [shard["num_rows"] for shard in shards],
        "bytes": [num_bytes(folder) for folder in folders],
    }


def _check_ids(store: Path, counts: Sequence[int]) -> None:
    """Raise TokenStoreError if an object is registered twice."""
    keys = np.concatenate([open_object_shard(shard_path(store, OBJECTS, i)).key for i in range(len(counts))])
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    starts = np.cumsum([0, *counts])
    for place in equal:
        found = []
        for row in (order[place], order[place + 1]):
            index = int(np.searchsorted(starts, row, side="right")) - 1
            folder = shard_path(store, OBJECTS, index)
            found.append((open_object_shard(folder).object_id[int(row - starts[index])].as_py(), folder))
        if found[0][0] == found[1][0]:
            raise TokenStoreError(f"{found[1][1]}: object {found[1][0]} is registered already, in {found[0][1].name}")


def _begun(store: str | Path) -> list[str]:
    """Modalities of which a shard stands, by name.

    Hidden folders are not looked into: other writers rename theirs at any time.
    """
    kinds = [path.name for path in Path(store).glob("[!.]*") if path.is_dir() and path.name != OBJECTS]
    names = sorted(f"{kind}/{path.name}" for kind in kinds for path in (Path(store) / kind).glob("[!.]*"))
    return [name for name in names if shard_indices(store, name)]


def _replace(path: Path, text: str) -> None:
    """Write a file under a name of its own, on whatever machine, and rename it into place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order as text, runs shortened: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
