"""The survey formats that `armillary data import` knows, by name.

A source says which files a path holds, each a piece that an importer reads, commits and never reads again, and how one
piece is read as a stream of observations. A new format is one entry of `SOURCES`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...settings import Settings
from ..observations import Observation


@dataclass(frozen=True)
class Source:
    """One survey format."""

    description: str
    files: Callable[[Path], list[Path]]
    """The pieces below a path, sorted. Raises ObservationError if there is none."""
    read: Callable[[Path, Settings | None], Iterator[Observation]]
    """The observations of one piece, a bounded number of objects at a time. Raises ObservationError."""
    settings: type[Settings] | None = None
    """What `read` must be told besides the piece: a model that YAML fills; none where the format says it all."""


SOURCES: Mapping[str, Source] = {}
"""All sources, by the name that the command line takes."""
