"""FITS files, opened with suspicion and read in parts.

A file is known to be whole (`fits_integrity.py`) before anything is read. Rows of images and tables are read alone, so
that memory follows the part asked for and not the file. Arrays come back in native byte order; every failure is an
ObservationError that names the file, what was expected and what was found.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from jaxtyping import Int

from ..observations import ObservationError
from .fits_bytes import FitsBytes, FitsSource
from .fits_integrity import DAMAGED, Extent, open_whole, sum_of_words, unpacked

SPECTRUM_FLUX_UNIT = "1e-17 erg / (s cm2 Angstrom)"
SPECTRUM_IVAR_UNIT = "1e34 (s2 cm4 Angstrom2) / erg2"
FITS_SUFFIXES = (".fits", ".fit", ".fits.gz", ".fit.gz", ".fits.fz", ".fz")


class FitsFile:
    """An open, complete FITS file: extensions by name, read into native arrays.

    The checksum of an extension is compared with its bytes before it is first read.
    """

    def __init__(self, path: Path | FitsBytes, plain: Path | FitsBytes, hdus: Any, extents: Sequence[Extent]):
        self.path = path
        self._plain = plain
        self._hdus = hdus
        self._extents = extents
        self._verified: set[int] = set()

    def has(self, extension: str | int) -> bool:
        """Whether the file holds this extension."""
        return extension in self._hdus if isinstance(extension, str) else extension < len(self._hdus)

    def header(self, extension: str | int) -> Any:
        """The header of an extension (astropy's). Raises ObservationError if the extension is missing."""
        return self._hdu(extension).header

    def value(self, extension: str | int, key: str) -> object:
        """What the header of an extension holds under `key`, None if nothing. Raises ObservationError."""
        with self.decoding(extension):
            return self.header(extension).get(key)

    def number(self, extension: str | int, key: str) -> float:
        """The number that the header of an extension holds under `key`. Raises ObservationError."""
        value = self.value(extension, key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(f"the header of extension {extension} must hold a number {key}, found {value!r}")
        return float(value)

    def image_shape(
        self, extension: str | int, expected: Sequence[int | None] = (), unit: str | None = None
    ) -> tuple[int, ...]:
        """The shape of an image extension, its pixels unread.

        `expected` is the shape expected, None where any size will do; `unit` the unit expected of BUNIT, where the
        file states one. Raises ObservationError.
        """
        hdu = self._hdu(extension)
        with self.decoding(extension):
            shape = tuple(hdu.shape) if hdu.is_image else ()
        if not shape:
            raise self.error(f"extension {extension} must hold an image, found {type(hdu).__name__} without pixels")
        fits_shape = len(shape) == len(expected) and all(
            n is None or n == m for n, m in zip(expected, shape, strict=True)
        )
        if expected and not fits_shape:
            wanted = ["any" if n is None else n for n in expected]
            raise self.error(f"extension {extension} must have shape {wanted}, found {list(shape)}")
        if unit is not None:
            self.check_unit(self.value(extension, "BUNIT"), unit, f"BUNIT of extension {extension}")
        return shape

    def image(self, extension: str | int, expected: Sequence[int | None] = (), unit: str | None = None) -> np.ndarray:
        """All pixels of an image extension, checked as `image_shape` does. Raises ObservationError."""
        return self.section(extension, ..., expected, unit)

    def section(
        self, extension: str | int, key: Any, expected: Sequence[int | None] = (), unit: str | None = None
    ) -> np.ndarray:
        """The part `image[key]` of an image extension, and no more of it, is read. `key` is a slice or slices.

        Otherwise as `image`. Raises ObservationError.
        """
        self.image_shape(extension, expected, unit)
        self._verify(extension)
        with self.decoding(extension):
            return _native(self._hdu(extension).section[key])

    def rows(
        self,
        extension: str | int,
        rows: Int[np.ndarray, " N"],
        expected: Sequence[int | None] = (),
        unit: str | None = None,
    ) -> np.ndarray:
        """These rows of an image extension (its first axis), in this order; neighbours are read together."""
        ordered = np.unique(rows)
        ends = np.flatnonzero(np.diff(ordered, append=ordered[-1] + 2) != 1)
        starts = np.append(0, ends[:-1] + 1)
        runs = [
            self.section(extension, slice(int(ordered[start]), int(ordered[end]) + 1), expected, unit)
            for start, end in zip(starts, ends, strict=True)
        ]
        return np.concatenate(runs)[np.searchsorted(ordered, rows)]

    def columns(
        self,
        extension: str | int,
        names: Sequence[str],
        expected_units: Sequence[str | None] = (),
        rows: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """These columns of a table extension, native byte order; case does not matter. Raises ObservationError.

        `expected_units`, one for each column, are compared with TUNIT where the file states it. `rows` (first, one
        past the last) reads no others.
        """
        hdu = self._table(extension)
        with self.decoding(extension):
            known = {name.upper() for name in hdu.columns.names}
        missing = [name for name in names if name.upper() not in known]
        if missing:
            raise self.error(f"extension {extension} must have columns {list(names)}, missing: {missing}")
        for name, unit in zip(names, expected_units, strict=bool(expected_units)):
            if unit is not None:
                self.check_unit(hdu.columns[name].unit, unit, f"TUNIT of column {name} in extension {extension}")
        self._verify(extension)
        with self.decoding(extension):
            table = hdu.data if rows is None else self._table_part(extension, *rows)
            return [_native(table[name]) for name in names]

    def num_rows(self, extension: str | int) -> int:
        """How many rows a table extension has. Raises ObservationError if it is none."""
        self._table(extension)
        return int(self.number(extension, "NAXIS2"))

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
        """Names of the columns of a table extension. Raises ObservationError if it is none."""
        with self.decoding(extension):
            return [name for name in self._table(extension).columns.names if name]

    def column_units(self, extension: str | int) -> dict[str, str]:
        """The units that a table extension states, by column. Raises ObservationError if it is none."""
        with self.decoding(extension):
            return {column.name: str(column.unit) for column in self._table(extension).columns if column.unit}

    def null_value(self, extension: str | int, column: str) -> int | None:
        """The whole number that stands for a missing value (TNULL), if the column has one."""
        with self.decoding(extension):
            value = self._table(extension).columns[column].null
        return int(value) if isinstance(value, (int, np.integer)) else None

    def image_shapes(self) -> dict[int, tuple[int, ...]]:
        """The shape of each extension that holds an image with pixels, by its number. Raises ObservationError."""
        shapes = {}
        for place, hdu in enumerate(self._hdus):
            with self.decoding(place):
                if hdu.is_image and hdu.shape:
                    shapes[place] = tuple(hdu.shape)
        return shapes

    def tables(self) -> list[int]:
        """Numbers of the extensions that hold tables."""
        return [place for place, hdu in enumerate(self._hdus) if not hdu.is_image]

    def first_image(self) -> int:
        """Number of the first extension with a two-dimensional image. Raises ObservationError if there is none."""
        for place, hdu in enumerate(self._hdus):
            with self.decoding(place):
                if hdu.is_image and len(hdu.shape) == 2:
                    return place
        raise self.error("expected a two-dimensional image, found none")

    def check_once(self, names: np.ndarray, rule: str) -> None:
        """Raise ObservationError, with `rule`, if one of the objects' `names`, one for each row, comes twice."""
        found, count = np.unique(names, return_counts=True)
        if (count > 1).any():
            twice = found[count > 1][0]
            rows = np.flatnonzero(names == twice)[:2].tolist()
            raise self.error(f"object {twice} comes twice, in rows {rows}; {rule}")

    @contextmanager
    def decoding(self, extension: str | int) -> Iterator[None]:
        """What astropy raises within, on a header that makes no sense, becomes an ObservationError."""
        try:
            yield
        except DAMAGED as error:
            if isinstance(error, ObservationError):
                raise
            raise self.error(
                f"extension {extension} cannot be decoded: its header is damaged ({type(error).__name__}: {error})"
            ) from error

    def error(self, problem: str) -> ObservationError:
        """An ObservationError about this file, to be raised."""
        return ObservationError(f"{self.path}: {problem}")

    def _hdu(self, extension: str | int) -> Any:
        if not self.has(extension):
            found = [hdu.name or str(place) for place, hdu in enumerate(self._hdus)]
            raise self.error(f"extension {extension} is missing; found {found}. Was the file cut short?")
        return self._hdus[extension]

    def _table(self, extension: str | int) -> Any:
        hdu = self._hdu(extension)
        if hdu.is_image:
            raise self.error(f"extension {extension} must hold a table, found an image")
        return hdu

    def _table_part(self, extension: str | int, first: int, stop: int) -> Any:
        """Rows of a table as a table: the bytes of those rows behind a header that says how many they are."""
        hdu = self._hdu(extension)
        header = hdu.header.copy()
        header["NAXIS2"], header["PCOUNT"] = stop - first, 0
        with self._plain.open("rb") as stream:
            stream.seek(self._extents[self._hdus.index_of(extension)].start + first * header["NAXIS1"])
            content = stream.read((stop - first) * header["NAXIS1"])
        return type(hdu).fromstring(header.tostring().encode("ascii") + content).data

    def _verify(self, extension: str | int) -> None:
        place = self._hdus.index_of(extension)
        extent = self._extents[place]
        if place in self._verified or extent.checksum is None:
            return
        if sum_of_words(self._plain, extent) != extent.checksum:
            raise self.error(
                f"the bytes of extension {extension} do not agree with its DATASUM: the file is damaged, or was edited"
            )
        self._verified.add(place)


@contextmanager
def open_fits(path: FitsSource) -> Iterator[FitsFile]:
    """Open a FITS file, plain or gzipped, or one in memory, after checking that it is whole.

    A gzipped file is first unpacked into a file of the temporary folder (TMPDIR), for gzip cannot be read in parts.
    Raises ObservationError if it is missing, no FITS file, or shorter than its headers say.
    """
    path = path if isinstance(path, FitsBytes) else Path(path)
    with nullcontext(path) if isinstance(path, FitsBytes) else unpacked(path) as plain:
        hdus, extents = open_whole(path, plain)
        with hdus:
            try:
                yield FitsFile(path, plain, hdus, extents)
            except (OSError, EOFError) as error:
                raise ObservationError(f"{path}: cannot be read as FITS ({error})") from error


@contextmanager
def naming_file(path: FitsSource) -> Iterator[None]:
    """Put the file's name before an ObservationError raised within, which knows the object alone."""
    try:
        yield
    except ObservationError as problem:
        raise ObservationError(f"{path}: {problem}") from None


def fits_paths(path: Path, pattern: str) -> list[Path]:
    """The file itself, or the FITS files below a folder whose names match the glob `pattern`, sorted.

    Raises ObservationError if there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise ObservationError(f"{path}: no such file or folder")
        return [path]
    found = sorted(file for file in path.rglob(pattern) if file.name.endswith(FITS_SUFFIXES) and file.is_file())
    if not found:
        raise ObservationError(f"{path}: expected FITS files {pattern} in it, found none")
    return found


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
