"""Shards of a token store: the files of one shard, written whole or not at all, and opened with their checks.

A shard of objects says who they are: `object_id.arrow`, `key.npy` [n] (63 bits that name the object for all time) and
`sky.npy` [n, 2] (ra, dec in degrees). A shard of tokens belongs to the shard of objects of the same number:

    rows.npy        [n] int32: the row of each object in the other arrays, -1 where it lacks the modality
    codes.npy       [r, N] int16: codes of the r objects that have it, -1 where a token is masked
    positions.npy   [r, N, P], or [1, N, P] where all objects share them
    instrument.npy  [r, F], or [1, F]

`shard.json` describes either, with the size and SHA-256 of each file. Where r is 0 there are no arrays.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float64, Int16, Int32, Int64, Integer

from .modalities import Modality
from .parquet_files import sync_folder

FORMAT_VERSION = 2
OBJECTS = "objects"
"""Where the shards of objects lie; those of tokens lie in `<kind>/<survey>`."""
MAX_CODE = int(np.iinfo(np.int16).max)

_DESCRIPTION = "shard.json"


class TokenStoreError(ValueError):
    """A token store is incomplete or damaged; the message names the shard, what was expected and what was found."""


@dataclass(frozen=True, eq=False)
class ObjectShard:
    """Who and where the n objects of a shard are; memory-mapped."""

    folder: Path
    key: Int64[np.ndarray, " n"]
    sky: Float64[np.ndarray, "n 2"]

    @cached_property
    def object_id(self) -> Any:
        """Arrow array of strings. Raises TokenStoreError if the file is not what it should be."""
        path = self.folder / "object_id.arrow"
        try:
            found = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["object_id"].combine_chunks()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise TokenStoreError(f"{path}: expected an Arrow file of object ids; {error}") from None
        if len(found) != len(self.key):
            raise TokenStoreError(f"{path}: expected {len(self.key)} objects, found {len(found)}")
        return found


@dataclass(frozen=True, eq=False)
class TokenShard:
    """Tokens of one modality for the r of a shard's n objects that have it; memory-mapped, as the files hold them."""

    rows: Int32[np.ndarray, " n"]
    codes: Int16[np.ndarray, "r N"]
    positions: Float[np.ndarray, "s N P"]
    instrument: Float[np.ndarray, "t F"]


def shard_path(store: str | Path, name: str, index: int) -> Path:
    """Folder of one shard of a modality, or of OBJECTS."""
    return Path(store).joinpath(*name.split("/")) / f"shard-{index:05d}"


def shard_indices(store: str | Path, name: str) -> list[int]:
    """Numbers of the shards of a modality, or of OBJECTS, that stand."""
    found = Path(store).joinpath(*name.split("/")).glob("shard-*")
    return sorted(int(path.name.removeprefix("shard-")) for path in found if path.name[6:].isdigit())


def object_key(object_id: str) -> int:
    """An integer that names an object for all time: 63 bits of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(object_id.encode()).digest()[:8], "big") >> 1


def object_keys(object_id: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The `object_key` of each."""
    return np.fromiter((object_key(name) for name in object_id), dtype=np.int64, count=len(object_id))


def write_object_shard(
    store: str | Path, index: int, num_shards: int, object_id: Sequence[str], sky: Float64[np.ndarray, "n 2"]
) -> str:
    """Register objects as shard number `index` of `num_shards`; returns the hash by which shards of tokens name them.

    Several processes may do so at once. Raises TokenStoreError if the shard stands with other objects.
    """
    final = shard_path(store, OBJECTS, index)
    keys = object_keys(object_id)
    digest = hashlib.sha256(keys.tobytes() + sky.tobytes()).hexdigest()
    content = {"num_objects": len(keys), "num_shards": num_shards, "objects": digest}

    def fill(folder: Path) -> None:
        table = pa.table({"object_id": pa.array(object_id, pa.string())})
        with pa.OSFile(str(folder / "object_id.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        np.save(folder / "key.npy", keys, allow_pickle=False)
        np.save(folder / "sky.npy", sky, allow_pickle=False)

    if not _write_folder(final, content, fill):
        found = read_description(final)
        if {name: found.get(name) for name in content} != content:
            raise TokenStoreError(
                f"{final}: expected {len(keys)} objects as one of {num_shards} shards, found others: "
                f"{found.get('num_objects')} as one of {found.get('num_shards')}. Did the dataset or shard_size change "
                "since the store was begun? Then begin another one."
            )
    return digest


def write_token_shard(
    store: str | Path,
    modality: Modality,
    index: int,
    rows: Integer[np.ndarray, " n"],
    arrays: dict[str, np.ndarray],
    *,
    tokenizer_hash: str,
    objects: str,
) -> bool:
    """Write the tokens of shard number `index`; returns whether this process did, for another may have been first.

    `rows`: the row of each of the shard's objects in `arrays` (`codes`, `mask`, `positions` and `instrument`, as a
    `TokenGrid` has them), -1 where it lacks the modality. `objects` is the hash of the shard of objects. Raises
    TokenStoreError if codes do not fit int16.
    """
    final = shard_path(store, modality.name, index)
    codes = arrays["codes"]
    if codes.size and (codes.min() < 0 or codes.max() > MAX_CODE):
        raise TokenStoreError(f"{final}: codes must lie in [0, {MAX_CODE}], found [{codes.min()}, {codes.max()}]")
    content = {
        **modality.record(),
        "tokenizer_hash": tokenizer_hash,
        "objects": objects,
        "num_objects": len(rows),
        "num_rows": len(codes),
        "num_tokens": codes.shape[1] if len(codes) else None,
    }

    def fill(folder: Path) -> None:
        if not len(codes):
            return
        masked = np.where(arrays["mask"], codes, -1)
        stored: dict[str, np.ndarray] = {"rows": rows.astype(np.int32), "codes": masked.astype(np.int16)}
        for name in ("positions", "instrument"):
            array = arrays[name]
            stored[name] = array[:1] if bool((array == array[:1]).all()) else array
        for name, array in stored.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    return _write_folder(final, content, fill)


def read_description(folder: Path) -> dict[str, Any]:
    """What `shard.json` says. Raises TokenStoreError if it is missing, damaged or of another format."""
    try:
        content = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        version = content["format"]
        if version == FORMAT_VERSION and not isinstance(content["files"], dict):
            raise TypeError("files is no table")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TokenStoreError(f"{folder}: expected a whole shard, found {error!r}") from None
    if version != FORMAT_VERSION:
        raise TokenStoreError(
            f"{folder}: expected format {FORMAT_VERSION}, found {version}. Written by another version of Armillary? "
            "Tokenize to a new store."
        )
    return dict(content)


def num_bytes(folder: Path) -> int:
    """Size of a shard's files on disk, its description included; 0 if there is no such folder."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except FileNotFoundError:
        return 0


def check_shard(folder: Path, checksums: bool) -> dict[str, Any]:
    """Compare a shard's files with its description, by size or byte by byte; returns the description.

    Raises TokenStoreError that names the file.
    """
    content = read_description(folder)
    for name, expected in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise TokenStoreError(f"{path}: expected {expected['bytes']} bytes, found no file")
        found = path.stat().st_size
        if found != expected["bytes"]:
            raise TokenStoreError(f"{path}: expected {expected['bytes']} bytes, found {found}. Half written?")
        if checksums and _sha256(path) != expected["sha256"]:
            raise TokenStoreError(f"{path}: the content does not match its checksum in {_DESCRIPTION}")
    return content


def open_object_shard(folder: Path) -> ObjectShard:
    """Map a shard of objects. Raises TokenStoreError if a file is missing, cut off or not what it should be."""
    count = check_shard(folder, checksums=False)["num_objects"]
    key = _map(folder / "key.npy", np.int64, (count,))
    return ObjectShard(folder, key, _map(folder / "sky.npy", np.float64, (count, 2)))


def open_token_shard(folder: Path) -> TokenShard:
    """Map a shard of tokens, which must not be empty (`num_rows`). Raises TokenStoreError as `open_object_shard`."""
    content = check_shard(folder, checksums=False)
    count, num_rows, num_tokens = (content[name] for name in ("num_objects", "num_rows", "num_tokens"))
    positions = _map(folder / "positions.npy", np.float32, (None, num_tokens, None))
    instrument = _map(folder / "instrument.npy", np.float32, (None, None))
    for name, array in (("positions", positions), ("instrument", instrument)):
        if len(array) not in (1, num_rows):
            raise TokenStoreError(f"{folder / name}.npy: expected 1 or {num_rows} rows, found {len(array)}")
    codes = _map(folder / "codes.npy", np.int16, (num_rows, num_tokens))
    return TokenShard(open_rows(folder, count), codes, positions, instrument)


def open_rows(folder: Path, num_objects: int) -> Int32[np.ndarray, " n"]:
    """Map `rows.npy` of a shard of tokens alone. Raises TokenStoreError as `open_token_shard`."""
    return _map(folder / "rows.npy", np.int32, (num_objects,))


def _map(path: Path, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TokenStoreError(f"{path}: expected an array; {error}") from None
    fits = len(mapped.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, mapped.shape, strict=True)
    )
    if mapped.dtype != dtype or not fits:
        raise TokenStoreError(
            f"{path}: expected {np.dtype(dtype).name} of shape {shape}, found {mapped.dtype.name} of {mapped.shape}"
        )
    return np.asarray(mapped)  # a plain view: every slice of a memmap costs as much as a small copy


def _write_folder(final: Path, content: dict[str, Any], fill: Callable[[Path], None]) -> bool:
    """Write a shard beside its place and rename it into it; returns False, and leaves it, if one stands there."""
    if final.exists():
        return False
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        fill(temporary)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(temporary.iterdir())
        }
        text = json.dumps({"format": FORMAT_VERSION, **content, "files": files})
        (temporary / _DESCRIPTION).write_text(text, encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.chmod(0o755)
        temporary.rename(final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and final.is_dir():  # another process was faster
            return False
        raise
    sync_folder(final.parent)
    for leftover in final.parent.glob(f".{final.name}-*"):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
