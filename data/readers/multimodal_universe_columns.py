"""Rows of the Multimodal Universe, whatever file they come from: identities, positions, flags, bands.

The Multimodal Universe (arXiv 2412.02527) packs surveys into HDF5 tiles (version 1) and HATS catalogues (1.5) of the
same columns. Its conventions are read off its build scripts (github.com/MultimodalUniverse/MultimodalUniverse, and
UniverseTBD/mmu-hdf-to-hats for 1.5), and undone here once for both versions:

- Ids are integers, bytes with blanks in front (SDSS), or, in 1.5, the text `b'...'` of such bytes.
- `ra` and `dec` are columns of every file, though the features declared for version 1 leave them out, and declare
  those of Gaia as 32-bit floats.
- A redshift flag stored as an integer is the survey's bit mask, 0 where all is well. Stored as a boolean it may mean
  either: version 1's loading script, and the later 1.5 converter, invert DESI's ZWARN (True = no problem); the earlier
  converter does not, and nobody inverts SDSS's ZWARNING (True = a problem).
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

from ..observations import Observation, ObservationError

FlagMeaning = Literal["warning", "good"]
"""What True means in a redshift flag stored as a boolean."""

MILLIARCSEC_PER_DEGREE = 3.6e6

_BYTES_AS_TEXT = re.compile(r"""^b(['"])(.*)\1$""")
_FEWEST_ROWS_TO_TELL = 8
"""In so many 64-bit coordinates, no chance makes all of them 32-bit numbers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """Where a column lies: the name of a dataset of version 1, and the path (`struct.field`) in a table of 1.5."""

    hdf5: str
    parquet: str
    is_required: bool = True


@dataclass(frozen=True)
class Rows:
    """Some objects of one file, with the columns their survey declares, arrays whose first axis is the object."""

    path: Path
    object_id: Sequence[str]
    ra: Float64[np.ndarray, " B"]
    dec: Float64[np.ndarray, " B"]
    columns: Mapping[str, np.ndarray]
    position_rounding: Float64[np.ndarray, "B 2"]
    """Standard deviation that the file's own rounding of ra and dec adds, degrees; 0 where they are 64-bit."""
    true_means: FlagMeaning | None = None

    def __len__(self) -> int:
        return len(self.object_id)

    def part(
        self, start: int, stop: int, columns: Mapping[str, np.ndarray], true_means: FlagMeaning | None = None
    ) -> "Rows":
        """The objects from `start` to `stop` with their columns."""
        inside = slice(start, stop)
        place = self.object_id[inside], self.ra[inside], self.dec[inside]
        return Rows(self.path, *place, columns, self.position_rounding[inside], true_means)

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

    def is_good(self, name: str) -> Bool[np.ndarray, " B"]:
        """Where the redshift flag `name` reports no problem. Raises ObservationError if a boolean's meaning is open."""
        flag = self.columns[name]
        if flag.dtype.kind in "iu":
            return flag == 0
        if flag.dtype.kind != "b":
            raise ObservationError(f"{self.path}: flag {name} must hold integers or booleans, found {flag.dtype}")
        if self.true_means is None:
            raise ObservationError(
                f"{self.path}: flag {name} is a boolean, and converters disagree on what True means; state it as "
                f"`flag_true_means: warning` or `good`. Here {flag.mean():.0%} of {len(flag)} are True"
            )
        good = flag == (self.true_means == "good")
        if good.mean() < 0.5:
            _log.warning(
                "%s: by flag %s, with True = %s, %.0f %% of %d redshifts are bad; is that meaning right?",
                self.path,
                name,
                self.true_means,
                100 * (1 - good.mean()),
                len(flag),
            )
        return good


@dataclass(frozen=True)
class Survey:
    """One survey of the Multimodal Universe: its columns, and how rows become observations."""

    name: str
    id_column: Column
    columns: Mapping[str, Column]
    observe: Callable[[Rows], list[Observation]]
    flag_true_means: FlagMeaning | None = None
    """What all converters agree True to mean in the redshift flag, if they do."""

    def observations(self, rows: Rows) -> Iterator[Observation]:
        """The observations of these rows. Raises ObservationError that names the file."""
        with naming(rows.path):
            found = self.observe(rows)
        yield from found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of an ObservationError raised inside, if it is not there yet."""
    try:
        yield
    except ObservationError as error:
        if str(error).startswith(str(path)):
            raise
        raise ObservationError(f"{path}: {error}") from None


def identify(path: Path, object_id: np.ndarray | Sequence[Any], ra: np.ndarray, dec: np.ndarray) -> Rows:
    """All objects of a file, without columns yet (`Rows.part` adds them).

    Positions become 64-bit. Coordinates that the file stores as 32-bit floats, or that are all 32-bit numbers in 64-bit
    columns, are good to half a step only (0.055 arcsec in ra beyond 256 degrees), which is logged, and kept in
    `position_rounding`. Better ones would have to come from another file: the HEALPix pixel in a Gaia source_id is 51
    arcsec wide.

    Raises ObservationError on an id that is empty or comes twice, and, with the object's name, where a coordinate is
    not finite or no place on the sky.
    """
    names = _as_text(object_id, path)
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
    if rounding.any():
        half_step = rounding.max() * math.sqrt(12) / 2 * 3600
        _log.warning("%s: positions are 32-bit floats, good to %.3f arcsec only", path, half_step)
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
