"""UMAP in a process of its own: `python -m armillary.serving.maps.umap_layout COMPONENTS.npy PLANE.npy`."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float32

NUM_NEIGHBOURS = 15
MINIMUM_DISTANCE = 0.05
SEED = 0


def lay_out(places: Float32[np.ndarray, "B K"]) -> Float32[np.ndarray, "B 2"]:
    """The plane of UMAP, the same for the same places. Raises ImportError without `umap-learn`."""
    umap = importlib.import_module("umap")
    if len(places) <= 4:
        return np.ascontiguousarray(places[:, :2])
    made = umap.UMAP(
        n_neighbors=min(NUM_NEIGHBOURS, len(places) - 1), min_dist=MINIMUM_DISTANCE, random_state=SEED, n_jobs=1
    ).fit_transform(places)
    return np.ascontiguousarray(made, np.float32)


def main(components: str, plane: str) -> None:
    """Read components [B, K] from a file and write the plane [B, 2] to another, which appears whole."""
    os.nice(10)  # those who search go first
    made = lay_out(np.load(components, allow_pickle=False))
    partial = Path(plane).with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, made)
    partial.replace(plane)


if __name__ == "__main__":
    main(*sys.argv[1:3])
