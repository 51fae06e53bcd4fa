"""Rows of a survey's table, whatever file they come from: who the objects are, where they lie, what their columns hold.

A reader gives ids and positions as the file has them (`identify`), adds columns some rows at a time (`Rows.part`), and
makes observations of them; errors name file and object.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from ..observations import ObservationError

MILLIARCSEC_PER_DEGREE = 3.6e6

_BYTES_AS_TEXT = re.compile(r"""^b(['"])(.*)\1$""")
_FEWEST_ROWS_TO_TELL = 8
"""In so many 64-bit coordinates, no chance makes all of them 32-bit numbers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Some objects of one file, and their columns: arrays whose first axis is the object."""

    path: Path
    object_id: Sequence[str]
    ra: Float64[np.ndarray, " B"]
    dec: Float64[np.ndarray, " B"]
    columns: Mapping[str, np.ndarray]
    position_rounding: Float64[np.ndarray, "B 2"]
    """Standard deviation that the file's own rounding of ra and dec adds, degrees; 0 where they are 64-bit."""

    def __len__(self) -> int:
        return len(self.object_id)

    def part(self, start: int, stop: int, columns: Mapping[str, np.ndarray]) -> "Rows":
        """The objects from `start` to `stop` with their columns."""
        inside = slice(start, stop)
        place = self.object_id[inside], self.ra[inside], self.dec[inside]
        return Rows(self.path, *place, columns, self.position_rounding[inside])

    def error(self, row: int, problem: str) -> ObservationError:
        """An ObservationError about one object, to be raised."""
        return ObservationError(f"{self.path}, object {self.object_id[row]}: {problem}")

    def numbers(self, name: str) -> Float64[np.ndarray, " B"] | None:
        """A column of one number for each object, or None where the file lacks it. Raises ObservationError."""
        values = self.columns.get(name)
        if values is None:
            return None
        if values.shape != (len(self),) or values.dtype.kind not in "iufb":
            raise ObservationError(
                f"{self.path}: column {name} must hold one number for each object, found {values.dtype} of shape "
                f"{list(values.shape)}"
            )
        return values.astype(np.float64)

    def shaped(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A column that must have this shape. Raises ObservationError."""
        values = self.columns[name]
        if values.shape != shape:
            raise ObservationError(f"{self.path}: {name} must have shape {list(shape)}, found {list(values.shape)}")
        return values

    def with_light(self, valid: np.ndarray, modality_name: str) -> Bool[np.ndarray, " B"]:
        """Which objects have a valid pixel; the others are no observation, and a warning names them."""
        kept = np.asarray(valid.reshape(len(valid), -1).any(1))
        if not kept.all():
            names = self.chosen(~kept)
            _log.warning("%s: no valid pixel in %s of objects %s; left out", self.path, modality_name, names)
        return kept

    def chosen(self, kept: Bool[np.ndarray, " B"]) -> list[str]:
        """Ids of the objects that are kept."""
        return [name for name, is_kept in zip(self.object_id, kept.tolist(), strict=True) if is_kept]

    def warn_of_rounding(self) -> None:
        """Log that the positions are 32-bit, if they are."""
        if self.position_rounding.any():
            half_step = self.position_rounding.max() * math.sqrt(12) / 2 * 3600
            _log.warning("%s: positions are 32-bit floats, good to %.3f arcsec only", self.path, half_step)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of an ObservationError raised inside, if it is not there yet."""
    try:
        yield
    except ObservationError as error:
        if str(error).startswith(str(path)):
            raise
        raise ObservationError(f"{path}: {error}") from None


def identify(path: Path, object_id: np.ndarray | Sequence[Any], ra: np.ndarray | None, dec: np.ndarray | None) -> Rows:
    """The objects of a file, without columns yet (`Rows.part` adds them); ra and dec in degrees, None where unknown.

    Ids are integers, text or bytes; blanks around them are cut off, and the text `b'...'` is taken for the bytes it
    shows. Positions become 64-bit. Coordinates that the file stores as 32-bit floats, or that are all 32-bit numbers in
    64-bit columns, are good to half a step only (0.055 arcsec in ra beyond 256 degrees); `position_rounding` says so.

    Raises ObservationError on an id that is empty or comes twice, and, with the object's name, where a coordinate is
    not finite or no place on the sky.
    """
    names = _as_text(object_id, path)
    if ra is None or dec is None:
        unknown = np.full(len(names), np.nan)
        return Rows(path, names, unknown, unknown, {}, np.zeros((len(names), 2)))
    for name, values, low, high in (("ra", ra, 0, 360), ("dec", dec, -90, 90)):
        if values.shape != (len(names),) or values.dtype.kind not in "fiu":
            raise ObservationError(
                f"{path}: column {name} must hold one number for each of {len(names)} objects, found "
                f"{values.dtype} of shape {list(values.shape)}"
            )
        wrong = ~((values >= low) & (values <= high))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ObservationError(
                f"{path}, object {names[row]}: {name} must lie in [{low}, {high}] degrees, found {values[row]}"
            )
    rounding = np.stack([_rounding(ra), _rounding(dec)], axis=1)
    ra = ra.astype(np.float64)
    return Rows(path, names, np.where(ra == 360, 0.0, ra), dec.astype(np.float64), {}, rounding)


def _as_text(values: np.ndarray | Sequence[Any], path: Path) -> tuple[str, ...]:
    """Ids as text: bytes decoded, `b'...'` undone, blanks around them cut off."""
    found: dict[str, int] = {}
    for row, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
        match = _BYTES_AS_TEXT.match(text.strip())
        text = (match[2] if match else text).strip()
        if value is None or not text:
            raise ObservationError(f"{path}: row {row} has no object id")
        if text in found:
            raise ObservationError(f"{path}: object {text} comes twice, in rows {found[text]} and {row}")
        found[text] = row
    return tuple(found)


def _rounding(values: np.ndarray) -> Float64[np.ndarray, " B"]:
    """Standard deviation of a uniform error of one 32-bit step, degrees; 0 for 64-bit numbers."""
    short = values.astype(np.float32)
    is_short = values.dtype.itemsize <= 4
    if not is_short and len(values) >= _FEWEST_ROWS_TO_TELL:
        is_short = bool((short == values).all() and len(np.unique(values)) > 1)
    step = np.spacing(np.abs(short)).astype(np.float64)
    return step / np.sqrt(12) if is_short else np.zeros(len(values))
