"""The record that a dataset of the simulated sky carries, and the ids by which its objects are known as simulated."""

import json
from pathlib import Path

from ..observations import ObservationError

RECORD = "simulation.json"
"""In the dataset folder: the settings, and whether the dataset is whole."""


def id_prefix(seed: int) -> str:
    """How the ids of all objects of the sky with this seed begin; the row follows."""
    return f"sim-{seed}-"


def simulated_prefix(folder: str | Path) -> str | None:
    """How the ids of the simulated objects of a dataset begin; None if it has no record of a simulated sky.

    A dataset may hold real objects beside them. Raises ObservationError on a damaged record.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        return id_prefix(int(json.loads(path.read_text(encoding="utf-8"))["settings"]["seed"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ObservationError(f"{path}: expected the record of a simulated sky; {error!r}") from None
