"""Whether a FITS file is whole, before anything in it is believed.

astropy reads lazily, may only warn when a file is cut short, and fails in any manner on a damaged header. Here the
sizes that headers state are compared with the file's, and stored checksums with its bytes.
"""

import gzip
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from ..observations import ObservationError
from .fits_bytes import FitsBytes

DAMAGED = (
    fits.VerifyError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NameError,
    ArithmeticError,
)
"""What astropy raises on damaged headers."""

_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 2880
"""Bytes: every part of a FITS file is padded to a multiple of this."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Extent:
    """Where the data of one extension lie in the (decompressed) file, and what they should add up to."""

    start: int
    size: int
    padded_size: int
    checksum: int | None


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The path itself, or that of a temporary file with its content, where it is gzipped."""
    try:
        with path.open("rb") as stream:
            is_gzip = stream.read(2) == _GZIP_MAGIC
    except FileNotFoundError:
        raise ObservationError(f"{path}: no such file") from None
    except OSError as error:
        raise ObservationError(f"{path}: cannot be read ({error.strerror})") from None
    if not is_gzip:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".fits") as content:
        try:
            with gzip.open(path, "rb") as packed:
                shutil.copyfileobj(packed, content, _CHUNK)
            content.flush()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ObservationError(
                f"{path}: expected a whole gzip file; it is cut short or damaged ({error})"
            ) from None
        except OSError as error:
            raise ObservationError(f"{path}: cannot be unpacked to {content.name} ({error.strerror})") from None
        yield Path(content.name)


def open_whole(path: Path | FitsBytes, plain: Path | FitsBytes) -> tuple[Any, list[Extent]]:
    """The extensions (astropy's HDUList) and where they lie, once each is known to end within the file.

    Raises ObservationError that names `path`.
    """
    size = plain.stat().st_size if isinstance(plain, Path) else len(plain.content)
    stored = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # As they are stored: a compressed image is a table, whose bytes are those that are counted and summed.
            stored = fits.open(_opened(plain), memmap=False, disable_image_compression=True)
            extents = [_extent(path, size, hdu, place) for place, hdu in enumerate(stored)]
            has_compressed_images = any(hdu.header.get("ZIMAGE", False) for hdu in stored)
            messages = [str(warning.message) for warning in caught]
            broken = [text for text in messages if "truncated" in text or "Error validating header" in text]
            if broken or size % _BLOCK:
                found = broken[0].splitlines()[0] if broken else f"expected a multiple of {_BLOCK} bytes"
                raise ObservationError(f"{path}: the file is cut short or damaged ({size} bytes): {found}")
            if has_compressed_images:
                stored.close()
                stored = fits.open(_opened(plain), memmap=False)
        except DAMAGED as error:
            if stored is not None:
                stored.close()
            if isinstance(error, ObservationError):
                raise
            raise ObservationError(f"{path}: expected a FITS file of {size} bytes to be whole; {error}") from None
    return stored, extents


def _opened(plain: Path | FitsBytes) -> Any:
    """What astropy opens: it knows streams, and not FitsBytes."""
    return plain.open() if isinstance(plain, FitsBytes) else plain


def _extent(path: Path | FitsBytes, size: int, hdu: Any, place: int) -> Extent:
    """Where an extension's data lie. Raises ObservationError if that is beyond the file's end."""
    info, name = hdu.fileinfo(), f"{hdu.name or place}"
    extent = Extent(info["datLoc"], hdu.size, info["datSpan"], _checksum(hdu.header.get("DATASUM")))
    if extent.start + extent.size > size:
        raise ObservationError(
            f"{path}: the file is cut short: extension {name} ends at byte {extent.start + extent.size}, the file at "
            f"{size}"
        )
    return extent


def _checksum(stated: object) -> int | None:
    """DATASUM as a number: the standard makes it text, and blank text unknown."""
    text = str(stated).strip()
    return int(text) if text.isdigit() else None


def sum_of_words(plain: Path | FitsBytes, extent: Extent) -> int:
    """The 32-bit ones' complement sum of big-endian words (FITS standard 4.0, appendix J), which DATASUM states."""
    total, left = 0, extent.padded_size
    with plain.open("rb") as stream:
        stream.seek(extent.start)
        while left > 0:
            content = stream.read(min(_CHUNK, left))
            if not content:
                break
            total += int(np.frombuffer(content, ">u4").sum(dtype=np.uint64))
            left -= len(content)
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total
