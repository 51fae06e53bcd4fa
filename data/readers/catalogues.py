"""Numbers from catalogues: SDSS and 2MASS photometry with redshifts, and tables of any survey.

Each column becomes a ScalarObservation over the same objects; what is missing has mask=False. Numbers keep their
photometric system: nothing is moved between Vega, SDSS and AB.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table

from ..modalities import Modality, modality
from ..observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ObservationError, ScalarObservation
from .fits_files import open_fits

SDSS_BANDS = ("u", "g", "r", "i", "z")
TWOMASS_BANDS = ("j", "h", "k")

_MAGNITUDES_PER_RELATIVE_ERROR = 2.5 / math.log(10)


def read_sdss_galaxies(path: str | Path) -> list[ScalarObservation]:
    """Read galaxies with SDSS and 2MASS photometry and a spectroscopic redshift: nine observations of one object list.

    In this order: `scalar/redshift`; `scalar/sdss_u` ... `scalar/sdss_z`; `scalar/twomass_j`, `_h`, `_k`. The columns
    are those of kcorrect's test sample: RA, DEC, MODELFLUX and its IVAR (nanomaggies, 5 bands), EXTINCTION (mag), Z,
    and J_M_EXT, J_MSIG_EXT, ... (Vega mag). The object id is `sdss-<row>`.

    SDSS magnitudes are 22.5 - 2.5 log10(MODELFLUX) - EXTINCTION, on the SDSS system, which is AB within 0.04 mag (the
    offsets -0.04 in u and +0.02 in z of the AB system are not applied). A flux or ivar that is not positive is missing.
    So is a 2MASS magnitude without a positive error: 372 rows have H_MSIG_EXT = 0, and their H is 0.5 mag too faint.
    Raises ObservationError.
    """
    with open_fits(path) as file:
        flux_names = ["MODELFLUX", "MODELFLUX_IVAR", "EXTINCTION"]
        ra, dec, redshift = file.columns(1, ["RA", "DEC", "Z"], ["deg", "deg", None])
        flux, ivar, extinction = file.columns(1, flux_names, ["nmgy", None, "mag"])
        names = [f"{band.upper()}_{what}" for band in TWOMASS_BANDS for what in ("M_EXT", "MSIG_EXT")]
        twomass = file.columns(1, names, ["mag"] * len(names))
        for name, column in zip(flux_names, (flux, ivar, extinction), strict=True):
            if column.shape != (len(ra), len(SDSS_BANDS)):
                raise file.error(f"column {name} must hold {len(SDSS_BANDS)} bands, found shape {list(column.shape)}")
    object_id = [f"sdss-{row}" for row in range(len(ra))]

    def observe(name: str, values: np.ndarray, error: np.ndarray | None, valid: np.ndarray) -> ScalarObservation:
        quantity = modality(name).quantity
        valid = valid & (values >= quantity.minimum) & (values <= quantity.maximum)
        error = None if error is None else np.where(valid, error, np.nan)
        return ScalarObservation(modality(name), object_id, values, valid, error, ra=ra, dec=dec)

    found = [observe("scalar/redshift", redshift, None, np.isfinite(redshift))]
    for place, band in enumerate(SDSS_BANDS):
        magnitude, error, valid = magnitudes(flux[:, place], ivar[:, place])
        found.append(observe(f"scalar/sdss_{band}", magnitude - extinction[:, place], error, valid))
    for place, band in enumerate(TWOMASS_BANDS):
        magnitude, error = twomass[2 * place], twomass[2 * place + 1]
        valid = np.isfinite(magnitude) & np.isfinite(error) & (error > 0)
        found.append(observe(f"scalar/twomass_{band}", magnitude, error, valid))
    return found


def magnitudes(flux: np.ndarray, inverse_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AB magnitude, its standard deviation and validity, from flux in nanomaggies and its inverse variance.

    m = 22.5 - 2.5 log10(f) and, to first order, sigma_m = 2.5 / ln(10) sigma_f / f. Invalid, and NaN, where flux or
    inverse variance is not positive or not finite.
    """
    flux, inverse_variance = flux.astype(np.float64), inverse_variance.astype(np.float64)
    valid = (flux > 0) & (inverse_variance > 0) & np.isfinite(flux) & np.isfinite(inverse_variance)
    safe_flux = np.where(valid, flux, 1.0)
    safe_ivar = np.where(valid, inverse_variance, 1.0)
    magnitude = UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * np.log10(safe_flux)
    error = _MAGNITUDES_PER_RELATIVE_ERROR / (safe_flux * np.sqrt(safe_ivar))
    return np.where(valid, magnitude, np.nan), np.where(valid, error, np.nan), valid


def read_scalar_table(
    path: str | Path,
    columns: Mapping[str, str],
    *,
    object_id: str,
    ra: str | None = None,
    dec: str | None = None,
    errors: Mapping[str, str] | None = None,
    missing_values: Sequence[float | int] = (),
    extension: str | int = 1,
) -> list[ScalarObservation]:
    """Read columns of a FITS, Parquet, CSV or ECSV table, one ScalarObservation for each entry of `columns`.

    `columns` maps modality name to column name, `errors` likewise to columns of standard deviations; `object_id`, `ra`
    and `dec` (degrees, ICRS) name columns too. Values must be in the modality's unit. A value that is null, NaN or one
    of `missing_values` (such as -999) has mask=False. Raises ObservationError on missing files and columns, columns
    that do not hold numbers, and values outside the modality's range; LookupError on an unknown modality.
    """
    path, errors = Path(path), dict(errors or {})
    modalities = {name: modality(name) for name in columns}
    if not set(errors) <= set(columns):
        raise ObservationError(f"{path}: errors are given for {sorted(errors)}, values for {sorted(columns)}")
    wanted = [object_id, *columns.values(), *errors.values(), *(name for name in (ra, dec) if name is not None)]
    table = _read_columns(path, list(dict.fromkeys(wanted)), extension)

    def numbers(name: str, declared: Modality | None = None) -> np.ndarray:
        column = table[name]
        if column.dtype.kind not in "iuf" or column.ndim != 1:
            raise ObservationError(
                f"{path}: column {name} must hold one number for each object, found {column.dtype} {column.shape[1:]}"
            )
        values = np.ma.masked_array(column, dtype=np.float64).filled(np.nan)
        return values if declared is None else np.where(np.isin(values, missing_values), np.nan, values)

    identity = [str(i) for i in table[object_id].tolist()]
    position = {name: None if column is None else numbers(column) for name, column in (("ra", ra), ("dec", dec))}
    found = []
    for name, column in columns.items():
        values = numbers(column, modalities[name])
        error = numbers(errors[name], modalities[name]) if name in errors else None
        try:
            found.append(ScalarObservation(modalities[name], identity, values, np.isfinite(values), error, **position))
        except ObservationError as problem:
            raise ObservationError(f"{path}, column {column}: {problem}") from None
    return found


def _read_columns(path: Path, names: list[str], extension: str | int) -> dict[str, np.ma.MaskedArray]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if ".fits" in suffixes or ".fit" in suffixes:
        with open_fits(path) as file:
            arrays: list[Any] = file.columns(extension, names)
        return {name: np.ma.masked_array(array) for name, array in zip(names, arrays, strict=True)}
    if not path.is_file():
        raise ObservationError(f"{path}: no such file")
    try:
        if suffixes[-1:] == [".parquet"]:
            known = pq.read_schema(path).names
            _check_columns(path, names, known)
            table = pq.read_table(path, columns=names)
            return {name: _masked(table[name].combine_chunks()) for name in names}
        if suffixes[-1:] in ([".csv"], [".ecsv"]):
            ascii_table = Table.read(path, format="ascii.csv" if suffixes[-1] == ".csv" else "ascii.ecsv")
            _check_columns(path, names, ascii_table.colnames)
            return {name: np.ma.masked_array(ascii_table[name]) for name in names}
    except (pa.ArrowException, OSError) as error:
        raise ObservationError(f"{path}: cannot be read as {suffixes[-1]} ({error})") from None
    raise ObservationError(f"{path}: expected a table in .fits, .fits.gz, .parquet, .csv or .ecsv")


def _check_columns(path: Path, names: list[str], known: list[str]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise ObservationError(f"{path}: columns {missing} are missing; found {known}")


def _masked(column: Any) -> np.ma.MaskedArray:
    missing = column.is_null().to_numpy(zero_copy_only=False)
    return np.ma.masked_array(column.to_numpy(zero_copy_only=False), missing)
