"""Columns and surveys of the Multimodal Universe, and its redshift flags: what its versions share.

The Multimodal Universe (arXiv 2412.02527) packs surveys into HDF5 tiles (version 1) and HATS catalogues (1.5) of the
same columns. Its conventions are read off its build scripts (github.com/MultimodalUniverse/MultimodalUniverse, and
UniverseTBD/mmu-hdf-to-hats for 1.5), and undone here once for both versions:

- Ids are integers, bytes with blanks in front (SDSS), or, in 1.5, the text `b'...'` of such bytes.
- `ra` and `dec` are columns of every file, though the features declared for version 1 leave them out, and declare
  those of Gaia as 32-bit floats. The HEALPix pixel in a Gaia source_id is no better place: it is 51 arcsec wide.
- A redshift flag stored as an integer is the survey's bit mask, 0 where all is well. Stored as a boolean it may mean
  either: version 1's loading script, and the later 1.5 converter, invert DESI's ZWARN (True = no problem); the earlier
  converter does not, and nobody inverts SDSS's ZWARNING (True = a problem).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from ..observations import Observation, ObservationError
from .survey_rows import Rows, naming

FlagMeaning = Literal["warning", "good"]
"""What True means in a redshift flag stored as a boolean."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """Where a column lies: the name of a dataset of version 1, and the path (`struct.field`) in a table of 1.5."""

    hdf5: str
    parquet: str
    is_required: bool = True


@dataclass(frozen=True)
class Survey:
    """One survey of the Multimodal Universe: its columns, and how rows become observations."""

    name: str
    id_column: Column
    columns: Mapping[str, Column]
    observe: Callable[[Rows, FlagMeaning | None], list[Observation]]
    flag_true_means: FlagMeaning | None = None
    """What all converters agree True to mean in the redshift flag, if they do."""

    def observations(self, rows: Rows, flag_true_means: FlagMeaning | None = None) -> Iterator[Observation]:
        """The observations of these rows; `flag_true_means` counts where converters disagree.

        Raises ObservationError that names the file.
        """
        with naming(rows.path):
            found = self.observe(rows, self.flag_true_means or flag_true_means)
        yield from found


def is_good(rows: Rows, flag_name: str, true_means: FlagMeaning | None) -> Bool[np.ndarray, " B"]:
    """Where a redshift flag reports no problem. Raises ObservationError if a boolean's meaning is open."""
    flag = rows.columns[flag_name]
    if flag.dtype.kind in "iu":
        return flag == 0
    if flag.dtype.kind != "b":
        raise ObservationError(f"{rows.path}: flag {flag_name} must hold integers or booleans, found {flag.dtype}")
    if true_means is None:
        raise ObservationError(
            f"{rows.path}: flag {flag_name} is a boolean, and converters disagree on what True means; state it as "
            f"`flag_true_means: warning` or `good`. Here {flag.mean():.0%} of {len(flag)} are True"
        )
    good = flag == (true_means == "good")
    if good.mean() < 0.5:
        _log.warning(
            "%s: by flag %s, with True = %s, %.0f %% of %d redshifts are bad; is that meaning right?",
            rows.path,
            flag_name,
            true_means,
            100 * (1 - good.mean()),
            len(flag),
        )
    return good
