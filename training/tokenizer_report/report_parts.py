"""Parts of a report that were measured already: one JSON file each, so that an interrupted report goes on.

A part is named by what it is, and holds a fingerprint of all that it depends on: other tokenizers, objects, settings or
another version of the code have it measured anew.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...data.dataset import ObservationDataset
from ...data.parquet_files import replacing

SHOWS = ("page.py", "markdown_cells.py", "charts.py", "example_pictures.py")
"""Files of this folder that show what was measured, and have no part in it."""


class ReportParts:
    """The folder of parts. `depends_on` is what all of them depend on, as plain data."""

    def __init__(self, folder: Path, depends_on: Any = None):
        self.folder = folder
        self.depends_on = depends_on
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, depends_on: Any, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part called `name`: as it stands, or measured now and written. `depends_on` is plain data."""
        fingerprint = fingerprint_of([self.depends_on, depends_on])
        path = self.folder / f"{name.replace('/', '-')}.json"
        try:
            standing = json.loads(path.read_text(encoding="utf-8"))
            if standing["fingerprint"] == fingerprint:
                return dict(standing["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is damaged: it is made now
        result: dict[str, Any] = plain(measure())
        write_json(path, {"fingerprint": fingerprint, "result": result})
        return result


def write_json(path: Path, content: Any) -> None:
    """Write plain data, whole or not at all."""
    with replacing(path) as stream:
        stream.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def plain(value: Any) -> Any:
    """The value with every number that is not finite, which JSON has no word for, as None; keys as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint_of(content: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def hash_of_code() -> str:
    """A hash of the code that a measurement runs through: that of the tokenizers, and what measures them."""
    here = Path(__file__).resolve().parent
    files = [*here.parent.parent.joinpath("tokenizers").glob("*.py"), *here.glob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.name not in SHOWS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def state_of(dataset: ObservationDataset, modality_name: str) -> list[tuple[str, int, int]]:
    """What tells one state of a modality's files from another: path, size and time of change, in nanoseconds."""
    found = []
    for file in dataset.files(modality_name):
        status = file.path.stat()
        found.append((str(file.path.resolve()), status.st_size, status.st_mtime_ns))
    return found
