"""DESI: coadded spectra, spectra of single exposures, and redshifts.

A coadd file holds each target once; a spectra file holds each exposure of it, to be combined here or kept apart. Both
are read some targets at a time (`desi_arms.py` joins the arms), and redrock's redshifts are joined to them by TARGETID.
The formats are those of the DESI data model (https://desidatamodel.readthedocs.io).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from ..instruments import Spectrograph
from ..modalities import modality
from ..observations import ObservationError, ScalarObservation, SpectrumObservation
from ..stacking import stack
from .desi_arms import ARMS, DesiArms, desi_arms
from .fits_bytes import FitsSource
from .fits_files import FITS_SUFFIXES, FitsFile, naming_file, open_fits
from .joined_redshifts import joined_redshifts

ROWS_PER_BATCH = 64
"""Spectra held at once: about 100 MB while their arms are joined."""

# Bits of FIBERSTATUS (desispec, maskbits.py) that keep an exposure out of DESI's own coadds: BROKENFIBER,
# MISSINGPOSITION, BADPOSITION, BADFIBER, BADTRACE, BADFLAT, BADARC, MANYBADCOL, MANYREJECTED; and, of one arm, BADAMP.
_FATAL_BITS = sum(1 << bit for bit in (2, 8, 9, 16, 17, 18, 19, 20, 21))
_AMPLIFIER_BITS = {"B": 1 << 22, "R": 1 << 23, "Z": 1 << 24}

_log = logging.getLogger(__name__)


def read_desi(
    path: FitsSource, rows: Sequence[int] | None = None, *, empty: Literal["skip", "raise"] = "skip"
) -> SpectrumObservation:
    """Read the spectra of a DESI coadd file, arms joined, as `spectrum/desi`; `desi_batches`, all at once."""
    return stack(list(desi_batches(path, rows, empty=empty)))


def desi_batches(
    path: FitsSource,
    rows: Sequence[int] | None = None,
    *,
    empty: Literal["skip", "raise"] = "skip",
    targets_only: bool = False,
    arms: Sequence[str] = ARMS,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Iterator[SpectrumObservation]:
    """Stream the spectra of a DESI coadd file, arms joined, as `spectrum/desi`, at most `rows_per_batch` at a time.

    `rows` chooses fibres by their row in the file, all by default; `targets_only` leaves out those on blank sky and
    those not assigned (OBJTYPE is not TGT). The file must have the `arms`. The object id is TARGETID. A pixel is valid
    where MASK is 0 and IVAR is positive. The resolving power follows from the width of the resolution matrix where the
    file has one, else from the instrument's card. A fibre without any valid pixel (broken, or never exposed) is no
    observation: it is left out with a warning that names it, or raises ObservationError with `empty="raise"`.

    Raises ObservationError on a missing, truncated or damaged file, missing extensions, wrong shapes and units, and a
    TARGETID that comes twice.
    """
    with open_fits(path) as file:
        target, ra, dec = file.columns("FIBERMAP", ["TARGETID", "TARGET_RA", "TARGET_DEC"], [None, "deg", "deg"])
        chosen = _rows(file, rows, len(target))
        if targets_only:
            chosen = chosen[np.isin(chosen, _target_rows(file))]
        file.check_once(target[chosen], "a coadd has each target once: a file of single exposures is read as such")
        joined = _arms(file, len(target), arms)
        found = False
        for start in range(0, len(chosen), rows_per_batch):
            part = chosen[start : start + rows_per_batch]
            names = [str(name) for name in target[part]]
            owner = np.arange(len(part))
            observation = _observe(joined, names, part, owner, None, ra[part], dec[part], empty, rows_per_batch)
            if observation is not None:
                found = True
                yield observation
        if not found:
            raise file.error(f"no valid pixel in any of {len(chosen)} fibres")


def read_desi_exposures(path: str | Path, *, combine: bool = True) -> SpectrumObservation:
    """Read a DESI file of single exposures as `spectrum/desi`; `desi_exposure_batches`, all at once."""
    return stack(list(desi_exposure_batches(path, combine=combine)))


def desi_exposure_batches(
    path: str | Path,
    *,
    combine: bool = True,
    empty: Literal["skip", "raise"] = "skip",
    targets_only: bool = False,
    arms: Sequence[str] = ARMS,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Iterator[SpectrumObservation]:
    """Stream a DESI file of uncoadded spectra (`spectra-*.fits`) as `spectrum/desi`.

    With `combine`, the exposures of a target become one spectrum of id TARGETID, the mean of the pixels where MASK is 0
    with their inverse variances as weights: DESI's coadd without its rejection of cosmics. A pixel that is good in no
    exposure is masked. Otherwise each exposure is an object of id TARGETID-EXPID. Exposures whose FIBERSTATUS says that
    they cannot be used, as a whole or in one arm, are left out of that. At most `rows_per_batch` exposures and as many
    spectra are held at once. The rest is as in `desi_batches`.
    """
    with open_fits(path) as file:
        names = ["TARGETID", "FIBERSTATUS", "TARGET_RA", "TARGET_DEC"]
        target, status, ra, dec = file.columns("FIBERMAP", names, [None, None, "deg", "deg"])
        rows = _target_rows(file) if targets_only else np.arange(len(target))
        if combine:
            identity = [str(name) for name in target]
            rows = rows[np.argsort(target[rows], kind="stable")]
        else:
            (exposure,) = file.columns("FIBERMAP", ["EXPID"])
            identity = [f"{name}-{number}" for name, number in zip(target, exposure, strict=True)]
            file.check_once(np.array(identity)[rows], "an exposure has each target once")
        joined = _arms(file, len(target), arms)
        found = False
        for part in _whole_targets(rows, target, rows_per_batch) if combine else _parts(rows, rows_per_batch):
            _, first, owner = np.unique(target[part], return_index=True, return_inverse=True)
            if not combine:
                first = owner = np.arange(len(part))
            used = {arm: (status[part] & (_FATAL_BITS | bits)) == 0 for arm, bits in _AMPLIFIER_BITS.items()}
            heads = part[first]
            object_id = [identity[row] for row in heads]
            observation = _observe(joined, object_id, part, owner, used, ra[heads], dec[heads], empty, rows_per_batch)
            if observation is not None:
                found = True
                yield observation
        if not found:
            raise file.error(f"no valid pixel in any of {len(rows)} exposures")


def read_redrock(path: str | Path) -> ScalarObservation:
    """Read the redshifts that redrock fitted to a coadd file, as `scalar/redshift`, with their errors.

    A fit with a warning (ZWARN not 0) or without a positive finite error has mask=False. Raises ObservationError.
    """
    with open_fits(path) as file:
        target, redshift, error, warning = file.columns("REDSHIFTS", ["TARGETID", "Z", "ZERR", "ZWARN"])
        file.check_once(target, "redrock fits each target once")
        ra, dec = np.full(len(target), np.nan), np.full(len(target), np.nan)
        if file.has("FIBERMAP"):
            fibre, ra, dec = file.columns("FIBERMAP", ["TARGETID", "TARGET_RA", "TARGET_DEC"])
            if not np.array_equal(fibre, target):
                raise file.error("TARGETID of FIBERMAP and REDSHIFTS must agree row by row, and they do not")
    valid = (warning == 0) & np.isfinite(redshift) & (error > 0)
    error = np.where(valid, error, np.nan)
    with naming_file(path):
        return ScalarObservation(modality("scalar/redshift"), target.tolist(), redshift, valid, error, ra=ra, dec=dec)


def redrock_file(path: str | Path) -> Path | None:
    """The redrock file beside a coadd or spectra file, if it is there: `redrock-X` for `coadd-X` or `spectra-X`."""
    path = Path(path)
    name = path.name
    for suffix in FITS_SUFFIXES:
        name = name.removesuffix(suffix)
    for prefix in ("coadd", "spectra"):
        if prefix in name:
            for suffix in (".fits", ".fits.gz"):
                beside = path.with_name(name.replace(prefix, "redrock", 1) + suffix)
                if beside.is_file():
                    return beside
    return None


def redshifts_of_targets(spectra: SpectrumObservation, redshifts: ScalarObservation) -> ScalarObservation | None:
    """The redshifts of these spectra, joined by TARGETID; a single exposure (TARGETID-EXPID) has that of its target.

    Ids and positions are those of the spectra. None if no spectrum has a redshift.
    """
    # A TARGETID may be negative, so a hyphen that comes first does not begin an EXPID.
    return joined_redshifts(spectra, redshifts, [re.sub(r"(?<=\d)-\d+$", "", name) for name in spectra.object_id])


def _arms(file: FitsFile, num_rows: int, arms: Sequence[str]) -> DesiArms:
    card = modality("spectrum/desi").card
    assert isinstance(card, Spectrograph)
    return desi_arms(file, card, num_rows, arms)


def _observe(
    arms: DesiArms,
    object_id: list[str],
    rows: Int[np.ndarray, " N"],
    owner: Int[np.ndarray, " N"],
    used: dict[str, Bool[np.ndarray, " N"]] | None,
    ra: np.ndarray,
    dec: np.ndarray,
    empty: str,
    rows_per_read: int,
) -> SpectrumObservation | None:
    """The spectra that these rows add up to, without those that have no valid pixel; None if none has."""
    joined = arms.join(rows, owner, used, rows_per_read=rows_per_read)
    is_seen = joined.mask.any(1)
    kept = np.flatnonzero(is_seen)
    if len(kept) < len(object_id):
        names = [object_id[row] for row in np.flatnonzero(~is_seen)]
        problem = f"{arms.file.path}: no valid pixel in {len(names)} of {len(object_id)} fibres, TARGETID {names}"
        if empty == "raise":
            raise ObservationError(problem)
        _log.warning("%s; left out", problem)
    if not len(kept):
        return None
    with naming_file(arms.file.path):
        return SpectrumObservation(
            modality("spectrum/desi"),
            [object_id[row] for row in kept],
            joined.flux[kept],
            arms.wavelength,
            joined.inverse_variance[kept],
            joined.mask[kept],
            resolving_power=joined.resolving_power[kept],
            ra=ra[kept],
            dec=dec[kept],
        )


def _target_rows(file: FitsFile) -> np.ndarray:
    (kind,) = file.columns("FIBERMAP", ["OBJTYPE"])
    rows = np.flatnonzero(np.char.strip(kind.astype(str)) == "TGT")
    if not len(rows):
        raise file.error(f"no fibre is on a target: OBJTYPE is TGT in none of {len(kind)} rows")
    return rows


def _rows(file: FitsFile, rows: Sequence[int] | None, count: int) -> np.ndarray:
    chosen = np.arange(count) if rows is None else np.asarray(rows, dtype=np.int64)
    if chosen.ndim != 1 or len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= count:
        raise file.error(f"rows must be a list of numbers from 0 to {count - 1}, found {rows}")
    return chosen


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _whole_targets(rows: np.ndarray, target: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Parts of `rows` (sorted by target) of about `size`, of which none divides the exposures of a target."""
    starts = np.flatnonzero(np.diff(target[rows], prepend=target[rows[:1]] - 1)).tolist()
    begin = 0
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        if stop - begin > size and start > begin:
            yield rows[begin:start]
            begin = start
    yield rows[begin:]
