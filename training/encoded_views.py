"""The frozen encoder's vectors of whole objects, made once and kept on disk: no step runs the encoder again.

`<folder>/<row>.npy` holds the vectors [V, D] of all valid tokens of a row of a view, float16, object after object. It
is memory-mapped, so that all processes of a node share what the system caches of it. Objects are encoded in a fixed
order and grouping, so that a run that goes on reads the bits that it read before.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from lightning.fabric import Fabric
from rich.progress import track
from torch import Tensor

from ..data.modalities import Modality
from ..data.token_store import TokenStore
from ..models.foundation import FoundationModel
from ..models.token_batch import TokenBatch
from .metrics_log import console
from .token_sources import read_grid

GROUP = 64
"""Objects that are encoded together."""
FORMAT = 1
COUNTED = 1000
"""Objects by which the size is estimated."""


class EncodedRow:
    """Vectors of one row, for all objects of a store; an object without it has none."""

    def __init__(self, path: Path, starts: Int64[np.ndarray, " edges"]):
        self.starts = starts
        self.vectors = np.load(path, mmap_mode="r", allow_pickle=False)

    def lengths(self, objects: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """How many vectors each of these objects has."""
        return self.starts[objects + 1] - self.starts[objects]


def read_rows(
    encoded: Sequence[EncodedRow], rows: Int64[np.ndarray, " B"], objects: Int64[np.ndarray, " B"]
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """Vectors of one of several rows for each object, by the row's place; padded to the most that one of them has."""
    lengths = np.stack([row.lengths(objects) for row in encoded])[rows, np.arange(len(rows))]
    size = max(1, int(lengths.max(initial=1)))
    found = np.zeros((len(objects), size, encoded[0].vectors.shape[1]), np.float16)
    for place, (number, row, length) in enumerate(zip(objects.tolist(), rows.tolist(), lengths.tolist(), strict=True)):
        first = int(encoded[row].starts[number])
        found[place, :length] = encoded[row].vectors[first : first + length]
    return torch.from_numpy(found), torch.from_numpy(np.arange(size) < lengths[:, None])


def encoded_bytes(store: TokenStore, objects: Int64[np.ndarray, " B"], names: Sequence[str], width: int) -> int:
    """About how many bytes the vectors of these objects take in these modalities, by some of them, evenly spaced."""
    some = objects[:: max(1, len(objects) // COUNTED)]
    num_tokens = sum(int(store.read(name, some).mask.sum()) for name in names)
    return int(num_tokens / len(some) * len(objects)) * width * 2


def encode_rows(
    fabric: Fabric,
    model: FoundationModel,
    store: TokenStore,
    objects: Int64[np.ndarray, " B"],
    rows: Mapping[str, Sequence[Modality]],
    folder: Path,
) -> dict[str, EncodedRow]:
    """The encoder's vectors of `objects` in each row, from `folder`, or made there; all processes do a part.

    What another run left there is replaced.
    """
    wanted = {
        "format": FORMAT,
        "model": model.model_id,
        "precision": _precision(fabric),
        "store": store.digest,
        "objects": hashlib.sha256(np.ascontiguousarray(objects).tobytes()).hexdigest()[:16],
        "rows": {name: [m.name for m in modalities] for name, modalities in rows.items()},
        "made_by": [store.tokenizer_hashes[m.name] for modalities in rows.values() for m in modalities],
    }
    is_whole = fabric.broadcast(_description(folder) == wanted if fabric.is_global_zero else False)
    if not is_whole:
        if fabric.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        fabric.barrier()
        for name, modalities in rows.items():
            _encode_row(fabric, model, store, objects, name, modalities, folder)
        fabric.barrier()
        if fabric.is_global_zero:
            partial = folder / "rows.json.partial"
            partial.write_text(json.dumps(wanted), encoding="utf-8")
            partial.replace(folder / "rows.json")
        fabric.barrier()
    return {
        name: EncodedRow(_path(folder, name), np.load(_path(folder, name, "-starts"), allow_pickle=False))
        for name in rows
    }


def _encode_row(
    fabric: Fabric,
    model: FoundationModel,
    store: TokenStore,
    objects: Int64[np.ndarray, " B"],
    name: str,
    modalities: Sequence[Modality],
    folder: Path,
) -> None:
    counts = np.zeros(len(store), np.int64)
    for modality in modalities:
        rows = store.read(modality.name, objects)
        counts[objects[rows.rows]] += rows.mask.sum(1)
    starts = np.cumsum([0, *counts.tolist()], dtype=np.int64)
    path = _path(folder, name)
    if fabric.is_global_zero:
        np.save(_path(folder, name, "-starts"), starts, allow_pickle=False)
        shape = (int(starts[-1]), model.transformer.config.width)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
    fabric.barrier()
    vectors = np.load(path, mmap_mode="r+", allow_pickle=False)
    known = objects[counts[objects] > 0]
    groups = [known[first : first + GROUP] for first in range(0, len(known), GROUP)]
    mine = groups[fabric.global_rank :: fabric.world_size]
    for group in track(mine, description=f"encode {name}", console=console, disable=not fabric.is_global_zero):
        batch = _batch(model, store, group, modalities)
        with torch.no_grad(), fabric.autocast():
            encoded = model.transformer.encode(batch.to(model.device))
        valid = encoded[batch.mask.to(encoded.device)].half().cpu().numpy()
        edges = np.cumsum(counts[group])[:-1]
        for number, part in zip(group.tolist(), np.split(valid, edges), strict=True):
            vectors[starts[number] : starts[number + 1]] = part
    vectors.flush()


def _batch(
    model: FoundationModel, store: TokenStore, objects: Int64[np.ndarray, " B"], modalities: Sequence[Modality]
) -> TokenBatch:
    """Tokens of these objects, in their order, without padding."""
    grids = [
        read_grid(store, objects, modality)[0] for modality in modalities if store.has(modality.name)[objects].any()
    ]
    ids = store.object_ids(objects)
    batch, found = model.join(grids)
    place = {object_id: row for row, object_id in enumerate(found)}
    return batch.rows(torch.tensor([place[i] for i in ids])).packed()


def _precision(fabric: Fabric) -> str:
    with fabric.autocast():
        device = fabric.device.type
        is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return str(torch.get_autocast_dtype(device) if is_on else torch.float32)


def _path(folder: Path, name: str, ending: str = "") -> Path:
    return folder / f"{name.replace('/', '-')}{ending}.npy"


def _description(folder: Path) -> object:
    try:
        return json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
