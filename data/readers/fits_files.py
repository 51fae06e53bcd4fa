"""FITS files, opened with suspicion.

astropy reads lazily and may only warn when a file is cut short, so sizes are checked against the headers before
anything is read, and stored checksums against the bytes. Arrays come back in native byte order; every failure is an
ObservationError that names the file, what was expected and what was found.
"""

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.io import fits

from ..observations import ObservationError

SPECTRUM_FLUX_UNIT = "1e-17 erg / (s cm2 Angstrom)"
SPECTRUM_IVAR_UNIT = "1e34 (s2 cm4 Angstrom2) / erg2"
_GZIP_MAGIC = b"\x1f\x8b"


class FitsFile:
    """An open, complete FITS file: extensions by name, read into native arrays."""

    def __init__(self, path: Path, hdus: Any):
        self.path = path
        self._hdus = hdus

    def has(self, extension: str | int) -> bool:
        """Whether the file holds this extension."""
        return extension in self._hdus if isinstance(extension, str) else extension < len(self._hdus)

    def header(self, extension: str | int) -> Any:
        """The header of an extension. Raises ObservationError if the extension is missing."""
        return self._hdu(extension).header

    def image(self, extension: str | int, shape: Sequence[int | None] = (), unit: str | None = None) -> np.ndarray:
        """The pixels of an image extension, native byte order.

        `shape` is the shape expected, None where any size will do; `unit` the unit expected of BUNIT, where the file
        states one. Raises ObservationError.
        """
        hdu = self._hdu(extension)
        if not hdu.is_image or hdu.data is None:
            raise self.error(f"extension {extension} must hold an image, found {type(hdu).__name__} without pixels")
        self._verify(hdu, extension)
        data = _native(hdu.data)
        fits_shape = len(data.shape) == len(shape) and all(
            n is None or n == m for n, m in zip(shape, data.shape, strict=True)
        )
        if shape and not fits_shape:
            wanted = ["any" if n is None else n for n in shape]
            raise self.error(f"extension {extension} must have shape {wanted}, found {list(data.shape)}")
        if unit is not None:
            self.check_unit(hdu.header.get("BUNIT"), unit, f"BUNIT of extension {extension}")
        return data

    def columns(
        self, extension: str | int, names: Sequence[str], expected_units: Sequence[str | None] = ()
    ) -> list[np.ndarray]:
        """These columns of a table extension, native byte order; case does not matter. Raises ObservationError.

        `expected_units`, one for each column, are compared with TUNIT where the file states it.
        """
        hdu = self._hdu(extension)
        if hdu.is_image:
            raise self.error(f"extension {extension} must hold a table, found an image")
        self._verify(hdu, extension)
        known = {name.upper() for name in hdu.columns.names}
        missing = [name for name in names if name.upper() not in known]
        if missing:
            raise self.error(f"extension {extension} must have columns {list(names)}, missing: {missing}")
        for name, unit in zip(names, expected_units, strict=bool(expected_units)):
            if unit is not None:
                self.check_unit(hdu.columns[name].unit, unit, f"TUNIT of column {name} in extension {extension}")
        return [_native(hdu.data[name]) for name in names]

    def check_unit(self, found: object, expected: str, where: str) -> None:
        """Compare a unit that the file states, if it states one, with the expected one. Raises ObservationError."""
        if found is None or not str(found).strip():
            return
        try:
            factor = parse_unit(str(found)).to(parse_unit(expected))
        except (ValueError, TypeError, units.UnitConversionError):
            raise self.error(f"{where} must be {expected}, found {found!r}") from None
        if not np.isclose(factor, 1):
            raise self.error(f"{where} must be {expected}, found {found!r}, which is {factor:g} of it")

    def column_names(self, extension: str | int) -> list[str]:
        """Names of the columns of a table extension. Raises ObservationError if it is missing."""
        return [] if self._hdu(extension).is_image else list(self._hdu(extension).columns.names)

    def first_image(self) -> int:
        """Number of the first extension with a two-dimensional image. Raises ObservationError if there is none."""
        for place, hdu in enumerate(self._hdus):
            if hdu.is_image and len(hdu.shape) == 2:
                return place
        raise self.error("expected a two-dimensional image, found none")

    def error(self, problem: str) -> ObservationError:
        """An ObservationError about this file, to be raised."""
        return ObservationError(f"{self.path}: {problem}")

    def _hdu(self, extension: str | int) -> Any:
        if not self.has(extension):
            found = [hdu.name or str(place) for place, hdu in enumerate(self._hdus)]
            raise self.error(f"extension {extension} is missing; found {found}. Was the file cut short?")
        return self._hdus[extension]

    def _verify(self, hdu: Any, extension: str | int) -> None:
        if "DATASUM" in hdu.header and hdu.verify_datasum() == 0:
            raise self.error(
                f"the bytes of extension {extension} do not agree with its DATASUM: the file is damaged, or was edited"
            )


@contextmanager
def open_fits(path: str | Path) -> Iterator[FitsFile]:
    """Open a FITS file, plain or gzipped, after checking that it is whole.

    Raises ObservationError if it is missing, no FITS file, or shorter than its headers say.
    """
    path = Path(path)
    content = _content(path)
    _check_whole(path, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        hdus = fits.open(_source(content))
    with hdus:
        try:
            yield FitsFile(path, hdus)
        except (OSError, EOFError) as error:
            raise ObservationError(f"{path}: cannot be read as FITS ({error})") from error


def _content(path: Path) -> Path | bytes:
    """The path itself, or, where the file is gzipped, its decompressed bytes."""
    try:
        with path.open("rb") as stream:
            if stream.read(2) != _GZIP_MAGIC:
                return path
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise ObservationError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ObservationError(f"{path}: expected a whole gzip file; it is cut short or damaged ({error})") from None
    except OSError as error:
        raise ObservationError(f"{path}: cannot be read ({error.strerror})") from None


def _source(content: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(content) if isinstance(content, bytes) else content


def _check_whole(path: Path, content: Path | bytes) -> None:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with fits.open(_source(content), memmap=False, disable_image_compression=True) as hdus:
                for place in range(len(hdus)):
                    needed = hdus[place].fileinfo()["datLoc"] + hdus[place].size
                    if needed > size:
                        name = hdus[place].name or place
                        raise ObservationError(
                            f"{path}: the file is cut short: extension {name} ends at byte {needed}, the file at {size}"
                        )
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, ObservationError):
                raise
            raise ObservationError(f"{path}: expected a FITS file of {size} bytes to be whole; {error}") from None
    for warning in caught:
        message = str(warning.message)
        if "truncated" in message or "Error validating header" in message:
            raise ObservationError(
                f"{path}: the file is cut short or damaged ({size} bytes): {message.splitlines()[0]}"
            )


def _native(data: Any) -> np.ndarray:
    array = np.asarray(data)
    return array.astype(array.dtype.newbyteorder("="))


def parse_unit(text: str) -> Any:
    """A unit as surveys write it: `1E-17 erg/cm^2/s/Ang` and `10**-17 erg/(s cm2 Angstrom)` are the same."""
    text = re.sub(r"\bAng(strom)?s?\b", "Angstrom", text.strip(), flags=re.IGNORECASE)
    text = re.sub(r"^1[eE]\+?(-?\d+)", r"10**\1", text)
    text = re.sub(r"10\*\*\+", "10**", text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        return units.Unit(text)
