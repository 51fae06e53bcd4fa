"""Sections of an evaluation that were measured already: one JSON file each, so that an interrupted evaluation goes on.

A section holds a fingerprint of all that it depends on, and is measured anew where that has changed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..training.tokenizer_report.report_parts import fingerprint_of, plain, write_json

FORMAT = 1
"""Rises when the code measures something else than before under the same name."""


class Sections:
    """The folder of sections."""

    def __init__(self, folder: Path, depends_on: Any):
        self.folder = folder
        self.depends_on = depends_on
        self.seconds: dict[str, list[float]] = {}
        """How long each section took when it was measured, by the clock and of processors."""
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, depends_on: Any, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The section called `name`: as it stands, or measured now and written. `depends_on` is plain data."""
        fingerprint = fingerprint_of([FORMAT, self.depends_on, depends_on])
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
