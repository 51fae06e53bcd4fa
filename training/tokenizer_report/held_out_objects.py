"""Which objects of a dataset are measured, and reading them as they lie on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ...data.dataset import ObservationDataset
from ...data.observations import ObservationError
from ...data.token_shards import object_keys

Rows = Int[np.ndarray, " R"]


def read_held_out(path: str | Path | None) -> frozenset[str] | None:
    """The ids in a file, one in a line; None if no file is named. Raises ObservationError if it names none."""
    if path is None:
        return None
    ids = frozenset(Path(path).read_text(encoding="utf-8").split())
    if not ids:
        raise ObservationError(f"{path}: expected ids of held-out objects, one in a line; found none")
    return ids


def choose_rows(
    dataset: ObservationDataset, modality_name: str, held_out: frozenset[str] | None, num_objects: int
) -> Rows:
    """Rows on disk of at most `num_objects` held-out objects of a modality, ascending; None holds out all.

    Where there are more, those with the smallest key are taken, so that all modalities are measured on the same.
    """
    ids = dataset.sky_index(modality_name).object_id
    chosen = np.arange(len(ids))
    if held_out is not None:
        chosen = np.flatnonzero(np.array([name in held_out for name in ids.tolist()], bool))
    return _with_smallest_keys(ids, chosen, num_objects)


def choose_training_rows(
    dataset: ObservationDataset, modality_name: str, held_out: frozenset[str] | None, num_objects: int
) -> Rows:
    """Rows of at most `num_objects` objects that are not held out; none if none are known to be."""
    if held_out is None:
        return np.empty(0, np.int64)
    ids = dataset.sky_index(modality_name).object_id
    chosen = np.flatnonzero(np.array([name not in held_out for name in ids.tolist()], bool))
    return _with_smallest_keys(ids, chosen, num_objects)


def read_rows(dataset: ObservationDataset, modality_name: str, rows: Rows, batch_size: int) -> Iterator[Any]:
    """The observations of ascending rows, at most `batch_size` at a time; holds one row group of each file at most."""
    # A part of a row group costs as much to read as all of it.
    num_read = max(batch_size, *(max(file.row_group_sizes) for file in dataset.files(modality_name)))
    for start in range(0, len(rows), num_read):
        observation = dataset.read(modality_name, rows[start : start + num_read])
        for first in range(0, len(observation), batch_size):
            yield observation.select(slice(first, first + batch_size))


def _with_smallest_keys(ids: np.ndarray, rows: Rows, count: int) -> Int[np.ndarray, " n"]:
    keys = object_keys(ids[rows].tolist())
    return np.sort(rows[np.argsort(keys, kind="stable")[:count]])
