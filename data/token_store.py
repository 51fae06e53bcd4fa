"""Tokens on disk: stored once as int16, memory-mapped, read as whole batches.

`<store>/<kind>/<survey>/shard-00000/` holds one shard of one modality: `codes.npy` [B, N] int16, `mask.npy` [B, N],
`positions.npy` [B, N, P] (or [1, N, P] where all objects share them), `instrument.npy` likewise, `sky.npy` [B, 2] (ra
and dec in degrees), and `shard.json` with ids, modality and the tokenizer's hash. Each modality stands alone, so that
adding one rewrites nothing. Which objects exist, and which modalities each has, follows from the ids.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int

from .modalities import Modality

FORMAT_VERSION = 1
_ARRAYS = ("codes", "mask", "positions", "instrument", "sky")
_SHAREABLE = ("positions", "instrument")


class TokenStoreError(ValueError):
    """A token store is incomplete or damaged; the message names the shard, what was expected and what was found."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Tokens of one modality for some rows of a batch: numpy arrays as `TokenGrid` has them, and their rows."""

    modality: Modality
    rows: Int[np.ndarray, " R"]
    codes: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    instrument: np.ndarray
    sky: np.ndarray


def shard_path(store: str | Path, modality: Modality, index: int) -> Path:
    """Folder of one shard."""
    return Path(store).joinpath(*modality.name.split("/")) / f"shard-{index:05d}"


def write_token_shard(
    store: str | Path,
    modality: Modality,
    index: int,
    object_id: Sequence[str],
    arrays: dict[str, np.ndarray],
    tokenizer_hash: str,
) -> Path:
    """Write one shard of `object_id`: the arrays of a `TokenGrid`, and `sky`; it appears whole or not at all.

    Raises TokenStoreError if it exists already or codes do not fit int16.
    """
    final = shard_path(store, modality, index)
    if final.exists():
        raise TokenStoreError(f"{final}: exists already, and shards are never overwritten")
    codes = arrays["codes"]
    if codes.size and (codes.min() < 0 or codes.max() > np.iinfo(np.int16).max):
        raise TokenStoreError(f"{final}: codes must lie in [0, 32767], found [{codes.min()}, {codes.max()}]")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        checksums = {}
        for name in _ARRAYS:
            array = arrays[name].astype(np.int16) if name == "codes" else arrays[name]
            shared = name in _SHAREABLE and bool((array == array[:1]).all())
            path = temporary / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array[:1] if shared else array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            checksums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        content = {
            "format": FORMAT_VERSION,
            **modality.record(),
            "tokenizer_hash": tokenizer_hash,
            "object_id": list(object_id),
            "sha256": checksums,
        }
        (temporary / "shard.json").write_text(json.dumps(content), encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


class TokenStore:
    """A token store opened for reading: its objects, its modalities, and batches of tokens.

    Objects are all ids of any modality, sorted, so that their order does not depend on how shards were written. Raises
    TokenStoreError for a missing or damaged shard, or shards of one modality made by different tokenizers.
    """

    def __init__(self, folder: str | Path, verify: bool = True):
        self.folder = Path(folder)
        shards = [folder / "shard.json" for folder in sorted(self.folder.glob("*/*/shard-*"))]
        if not shards:
            raise TokenStoreError(f"{self.folder}: expected token shards <kind>/<survey>/shard-*, found none")
        self._modalities: dict[str, Modality] = {}
        self.tokenizer_hashes: dict[str, str] = {}
        self._arrays: dict[str, list[dict[str, np.ndarray]]] = {}
        places: dict[str, dict[str, tuple[int, int]]] = {}
        for path in shards:
            self._open(path, places, verify)
        self.modalities = tuple(self._modalities.values())
        self.object_id = tuple(sorted({i for ids in places.values() for i in ids}))
        absent = (-1, -1)
        self._places = {
            name: np.array([ids.get(i, absent) for i in self.object_id], dtype=np.int64) for name, ids in places.items()
        }

    def __len__(self) -> int:
        return len(self.object_id)

    def has(self, name: str) -> np.ndarray:
        """Whether each object has this modality [objects]."""
        return self._places[name][:, 0] >= 0

    def sky(self) -> Float64[np.ndarray, "objects 2"]:
        """Ra and dec of each object, degrees; NaN where no modality knows them."""
        found = np.full((len(self), 2), np.nan)
        for modality in self.modalities:
            rows = self.read(modality.name, np.arange(len(self)))
            found[rows.rows] = np.where(np.isnan(rows.sky), found[rows.rows], rows.sky)
        return found

    def read(self, name: str, objects: Int[np.ndarray, " B"]) -> TokenRows:
        """Tokens of one modality for those of `objects` (indices into `object_id`) that have it."""
        places = self._places[name][objects]
        rows = np.flatnonzero(places[:, 0] >= 0)
        parts: dict[str, list[np.ndarray]] = {array: [] for array in _ARRAYS}
        order = []
        for shard in np.unique(places[rows, 0]):
            here = rows[places[rows, 0] == shard]
            order.append(here)
            for array in _ARRAYS:
                stored = self._arrays[name][shard][array]
                shared = len(stored) == 1 and array in _SHAREABLE
                chosen = np.repeat(stored, len(here), 0) if shared else stored[places[here, 1]]
                parts[array].append(chosen)
        first = self._arrays[name][0]
        joined = {
            array: np.concatenate(chunks) if chunks else np.array(first[array][:0]) for array, chunks in parts.items()
        }
        return TokenRows(self._modalities[name], np.concatenate(order) if order else rows, **joined)

    def num_tokens(self, name: str) -> int:
        """Tokens of one object in this modality, padding included."""
        return self._arrays[name][0]["codes"].shape[1]

    def _open(self, path: Path, places: dict[str, dict[str, tuple[int, int]]], verify: bool) -> None:
        folder = path.parent
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            modality = Modality.from_record(content, str(path))
            checksums, ids = content["sha256"], content["object_id"]
            if content["format"] != FORMAT_VERSION:
                raise TokenStoreError(f"{path}: expected format {FORMAT_VERSION}, found {content['format']}")
            arrays = {}
            for name in _ARRAYS:
                file = folder / f"{name}.npy"
                if verify and hashlib.sha256(file.read_bytes()).hexdigest() != checksums[name]:
                    raise TokenStoreError(f"{file}: the content does not match the checksum in shard.json")
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise TokenStoreError(f"{folder}: expected a whole token shard, found {error!r}") from None
        if arrays["codes"].shape[0] != len(ids):
            raise TokenStoreError(f"{folder}: expected codes of {len(ids)} objects, found {arrays['codes'].shape[0]}")
        known = self.tokenizer_hashes.setdefault(modality.name, content["tokenizer_hash"])
        if known != content["tokenizer_hash"]:
            raise TokenStoreError(
                f"{folder}: its tokens were made by tokenizer {content['tokenizer_hash']}, those before it by {known}"
            )
        self._modalities[modality.name] = modality
        of_modality = self._arrays.setdefault(modality.name, [])
        if of_modality and arrays["codes"].shape[1] != of_modality[0]["codes"].shape[1]:
            expected, found = of_modality[0]["codes"].shape[1], arrays["codes"].shape[1]
            raise TokenStoreError(
                f"{folder}: expected {expected} tokens of {modality.name} for each object, as in the shards before it, "
                f"found {found}. Images of several sizes? Crop them to one."
            )
        rows = places.setdefault(modality.name, {})
        for row, object_id in enumerate(ids):
            if object_id in rows:
                raise TokenStoreError(f"{folder}: object {object_id} stands in two shards of {modality.name}")
            rows[object_id] = (len(of_modality), row)
        of_modality.append(arrays)


def as_tensors(rows: TokenRows) -> dict[str, torch.Tensor]:
    """The arrays of `rows` as tensors of the types the models use."""
    return {
        "codes": torch.from_numpy(rows.codes.astype(np.int64)),
        "mask": torch.from_numpy(np.array(rows.mask)),
        "positions": torch.from_numpy(np.array(rows.positions)),
        "instrument": torch.from_numpy(np.array(rows.instrument)),
    }
