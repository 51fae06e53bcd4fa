"""Where the objects of an index lie on a plane: what the explorer's map shows.

Every modality's vectors are first taken relative to their own mean, for spaces of several modalities have a gap between
these, which would otherwise be all that a map shows. `pca` is the plane of the two leading principal components, made
in two walks over the rows. `umap` (McInnes et al. 2018, arXiv 1802.03426), where `umap-learn` is installed, lays out at
most 20,000 objects by 32 components, in a process of its own, and puts every other one between its nearest of them.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int64

from ..index.protocol import RowBlock, SearchIndex
from ..index.rows import ID
from .object_table import ObjectTable

PROJECTIONS = ("pca", "umap")
NUM_COMPONENTS = 32
MOST_FITTED = 20_000
"""Objects that UMAP lays out itself."""
NUM_ANCHORS = 5
"""Of those, how many tell where another object lies."""
PLACED_AT_ONCE = 2048
SEED = 0


class MapError(RuntimeError):
    """A map cannot be made; the message says why."""


@dataclass(frozen=True, eq=False)
class Components:
    """The leading principal components of the rows, each modality about its own mean."""

    mean: dict[str, np.ndarray]
    """[D] by modality."""
    axes: Float32[np.ndarray, "D K"]

    @classmethod
    def fit(cls, index: SearchIndex, num_components: int = NUM_COMPONENTS) -> "Components":
        """One walk over the rows of an index; holds a matrix of its dimension squared."""
        width = index.manifest.dimension
        products = np.zeros((width, width))
        sums: dict[str, np.ndarray] = {}
        counts: dict[str, int] = {}
        for block in index.row_blocks():
            products += block.vectors.T @ block.vectors
            for name, vectors in _by_modality(block):
                sums[name] = sums.get(name, np.zeros(width)) + vectors.sum(0, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(vectors)
        mean = {name: total / counts[name] for name, total in sums.items()}
        for name, centre in mean.items():
            products -= counts[name] * np.outer(centre, centre)
        axes = np.linalg.eigh(products)[1][:, ::-1][:, : min(num_components, width)]
        # An axis has no direction of its own: its largest number is positive, on every machine.
        largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)
        return cls(mean, (axes * np.sign(largest)).astype(np.float32))

    def places(self, index: SearchIndex, table: ObjectTable) -> Float32[np.ndarray, "B K"]:
        """The objects of a table along the axes: of each, the mean over its rows. A second walk."""
        total = np.zeros((len(table), self.axes.shape[1]), np.float32)
        count = np.zeros(len(table), np.int64)
        offset = {name: (centre @ self.axes).astype(np.float32) for name, centre in self.mean.items()}
        zero = np.zeros(self.axes.shape[1], np.float32)
        for block in index.row_blocks():
            number = table.numbers_of(pa.array(block.object_id, ID))
            along = block.vectors @ self.axes
            along -= np.stack([offset.get(name, zero) for name in block.modality])
            known = number >= 0
            np.add.at(total, number[known], along[known])
            np.add.at(count, number[known], 1)
        total /= np.maximum(count, 1)[:, None]
        return total


def _by_modality(block: RowBlock) -> Iterator[tuple[str, np.ndarray]]:
    for name in np.unique(block.modality.astype(str)).tolist():
        yield name, block.vectors[block.modality == name]


def has_umap() -> bool:
    """Whether `umap-learn` is installed."""
    return importlib.util.find_spec("umap") is not None


def umap_places(places: Float32[np.ndarray, "B K"]) -> Float32[np.ndarray, "B 2"]:
    """The plane of UMAP. Takes minutes, in a process of its own. Raises MapError if that fails."""
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(places))[:MOST_FITTED])
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "components.npy", Path(folder) / "plane.npy"
        np.save(given, places[chosen])
        # Its compiled loops hold Python's lock for seconds: in this process no request would be answered meanwhile.
        done = subprocess.run(
            [sys.executable, "-m", "armillary.serving.maps.umap_layout", str(given), str(made)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not made.exists():
            raise MapError(f"umap-learn failed: {done.stderr.strip()[-500:] or f'exit status {done.returncode}'}")
        plane = np.load(made, allow_pickle=False)
    if len(chosen) == len(places):
        return plane
    return between_anchors(places, chosen, plane)


def between_anchors(
    places: Float32[np.ndarray, "B K"], chosen: Int64[np.ndarray, " A"], plane: Float32[np.ndarray, "A 2"]
) -> Float32[np.ndarray, "B 2"]:
    """Each object at the mean of its nearest anchors on the plane, the nearer the heavier; anchors where they are."""
    found = np.empty((len(places), 2), np.float32)
    anchors = torch.from_numpy(places[chosen])
    for start in range(0, len(places), PLACED_AT_ONCE):
        block = torch.from_numpy(places[start : start + PLACED_AT_ONCE])
        distance, nearest = torch.cdist(block, anchors).topk(min(NUM_ANCHORS, len(chosen)), dim=1, largest=False)
        weight = 1 / distance.clamp(min=1e-9).square()
        weight /= weight.sum(1, keepdim=True)
        found[start : start + PLACED_AT_ONCE] = np.einsum("bk,bkd->bd", weight.numpy(), plane[nearest.numpy()])
    found[chosen] = plane
    return found


def saved_plane(folder: Path | None, index_id: str, num_objects: int) -> Float32[np.ndarray, "B 2"] | None:
    """A plane that was laid out before and kept in a folder; None if there is none that fits."""
    if folder is None or not (path := _path(folder, index_id)).exists():
        return None
    try:
        plane: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return plane if plane.dtype == np.float32 and plane.shape == (num_objects, 2) else None


def save_plane(folder: Path, index_id: str, plane: Float32[np.ndarray, "B 2"]) -> None:
    """Keep a plane in a folder, for the next start."""
    path = _path(folder, index_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, plane)
    partial.replace(path)


def _path(folder: Path, index_id: str) -> Path:
    # The name of an index may hold anything; its hash is a name for a file.
    return folder / "maps" / f"umap-{hashlib.sha256(index_id.encode()).hexdigest()[:16]}.npy"
