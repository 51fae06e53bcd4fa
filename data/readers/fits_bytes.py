"""A FITS file in memory, where a reader would otherwise take a path: an upload is read in place, never from disk."""

import io
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, eq=False)
class FitsBytes:
    """The content of a FITS file, not gzipped, and what error messages call it."""

    content: bytes
    name: str = "FITS body"

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> io.BytesIO:
        """A stream over the content, which is not copied."""
        return io.BytesIO(self.content)


FitsSource = str | Path | FitsBytes
"""Where a reader of one FITS file may read from."""
