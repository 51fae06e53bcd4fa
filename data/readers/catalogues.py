"""Numbers from catalogues: SDSS and 2MASS photometry with redshifts, and tables of any survey.

Each column becomes a ScalarObservation over the same objects; what is missing has mask=False. Numbers keep their
photometric system: nothing is moved between Vega, SDSS and AB.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from ...settings import Settings
from ..modalities import Modality, modality
from ..observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ObservationError, ScalarObservation
from ..stacking import stack
from .fits_files import naming_file, open_fits, parse_unit
from .table_files import ROWS_PER_BATCH, ColumnNames, column_units, numbers, object_ids, table_batches

SDSS_BANDS = ("u", "g", "r", "i", "z")
TWOMASS_BANDS = ("j", "h", "k")

_MAGNITUDES_PER_RELATIVE_ERROR = 2.5 / math.log(10)


def read_sdss_galaxies(path: str | Path) -> list[ScalarObservation]:
    """Read galaxies with SDSS and 2MASS photometry and a redshift; `sdss_galaxy_batches`, one for each modality."""
    return _joined(sdss_galaxy_batches(path))


def sdss_galaxy_batches(path: str | Path, *, rows_per_batch: int = ROWS_PER_BATCH) -> Iterator[ScalarObservation]:
    """Stream galaxies with SDSS and 2MASS photometry and a spectroscopic redshift: nine numbers of each object.

    Of at most `rows_per_batch` objects at a time, in this order: `scalar/redshift`; `scalar/sdss_u` ...
    `scalar/sdss_z`; `scalar/twomass_j`, `_h`, `_k`. The columns are those of kcorrect's test sample: RA, DEC, MODELFLUX
    and its IVAR (nanomaggies, 5 bands), EXTINCTION (mag), Z, and J_M_EXT, J_MSIG_EXT, ... (Vega mag). The object id is
    `sdss-<row>`.

    SDSS magnitudes are 22.5 - 2.5 log10(MODELFLUX) - EXTINCTION, on the SDSS system, which is AB within 0.04 mag (the
    offsets -0.04 in u and +0.02 in z of the AB system are not applied). A flux or ivar that is not positive is missing.
    So is a 2MASS magnitude without a positive error: 372 rows have H_MSIG_EXT = 0, and their H is 0.5 mag too faint.
    Raises ObservationError.
    """
    twomass_names = [f"{band.upper()}_{what}" for band in TWOMASS_BANDS for what in ("M_EXT", "MSIG_EXT")]
    flux_names = ["MODELFLUX", "MODELFLUX_IVAR", "EXTINCTION"]
    names = ["RA", "DEC", "Z", *flux_names, *twomass_names]
    units = ["deg", "deg", None, "nmgy", None, "mag", *["mag"] * len(twomass_names)]
    with open_fits(path) as file:
        count = file.num_rows(1)
        for start in range(0, count, rows_per_batch):
            part = (start, min(count, start + rows_per_batch))
            columns = dict(zip(names, file.columns(1, names, units, part), strict=True))
            for name in flux_names:
                if columns[name].shape != (part[1] - start, len(SDSS_BANDS)):
                    raise file.error(
                        f"column {name} must hold {len(SDSS_BANDS)} bands, found shape {list(columns[name].shape)}"
                    )
            with naming_file(path):
                observed = list(_sdss_numbers(columns, [f"sdss-{row}" for row in range(*part)]))
            yield from observed


def _sdss_numbers(columns: Mapping[str, np.ndarray], object_id: list[str]) -> Iterator[ScalarObservation]:
    def observe(name: str, values: np.ndarray, error: np.ndarray | None, valid: np.ndarray) -> ScalarObservation:
        quantity = modality(name).quantity
        valid = valid & (values >= quantity.minimum) & (values <= quantity.maximum)
        error = None if error is None else np.where(valid, error, np.nan)
        position = {"ra": columns["RA"], "dec": columns["DEC"]}
        return ScalarObservation(modality(name), object_id, values, valid, error, **position)

    yield observe("scalar/redshift", columns["Z"], None, np.isfinite(columns["Z"]))
    for place, band in enumerate(SDSS_BANDS):
        magnitude, error, valid = magnitudes(columns["MODELFLUX"][:, place], columns["MODELFLUX_IVAR"][:, place])
        yield observe(f"scalar/sdss_{band}", magnitude - columns["EXTINCTION"][:, place], error, valid)
    for band in TWOMASS_BANDS:
        magnitude, error = columns[f"{band.upper()}_M_EXT"], columns[f"{band.upper()}_MSIG_EXT"]
        valid = np.isfinite(magnitude) & np.isfinite(error) & (error > 0)
        yield observe(f"scalar/twomass_{band}", magnitude, error, valid)


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


class ScalarTableSettings(Settings):
    """Which columns of a table are which numbers."""

    columns: dict[str, str]
    """Modality name -> column of its values, in the modality's unit."""
    object_id: ColumnNames
    """Column of whole numbers or text that names each object; or several, joined by hyphens."""
    ra: str | None = None
    """Columns of the position, degrees, ICRS."""
    dec: str | None = None
    errors: dict[str, str] = Field(default_factory=dict)
    """Modality name -> column of the standard deviations of its values."""
    missing_values: tuple[float, ...] = ()
    """Numbers that stand for a missing value, such as -999."""
    extension: str | int = 1
    """Of a FITS file: which holds the table."""


def read_scalar_table(
    path: str | Path,
    columns: Mapping[str, str],
    *,
    object_id: str | Sequence[str],
    ra: str | None = None,
    dec: str | None = None,
    errors: Mapping[str, str] | None = None,
    missing_values: Sequence[float | int] = (),
    extension: str | int = 1,
) -> list[ScalarObservation]:
    """Read columns of a table, one ScalarObservation for each entry of `columns`; `scalar_table_batches` says how."""
    settings = ScalarTableSettings(
        columns=dict(columns),
        object_id=(object_id,) if isinstance(object_id, str) else tuple(object_id),
        ra=ra,
        dec=dec,
        errors=dict(errors or {}),
        missing_values=tuple(missing_values),
        extension=extension,
    )
    return _joined(scalar_table_batches(path, settings))


def scalar_table_batches(
    path: str | Path, settings: ScalarTableSettings, *, rows_per_batch: int = ROWS_PER_BATCH
) -> Iterator[ScalarObservation]:
    """Stream columns of a FITS, Parquet, CSV or ECSV table: of at most `rows_per_batch` objects, each modality in turn.

    A value that is null, NaN or one of `missing_values` has mask=False. Raises ObservationError on missing files and
    columns, columns that do not hold numbers, units that the table states and that are others, values outside the
    modality's range, objects without a name or half a position, and names that come twice in a batch; LookupError on an
    unknown modality.
    """
    path = Path(path)
    modalities = {name: modality(name) for name in settings.columns}
    if not set(settings.errors) <= set(settings.columns):
        raise ObservationError(
            f"{path}: errors are given for {sorted(settings.errors)}, values for {sorted(settings.columns)}"
        )
    positions = {axis: name for axis, name in (("ra", settings.ra), ("dec", settings.dec)) if name is not None}
    names = [*settings.object_id, *settings.columns.values(), *settings.errors.values(), *positions.values()]
    batches = table_batches(path, names, extension=settings.extension, rows_per_batch=rows_per_batch)
    first_row = 0
    for columns in batches:
        if not first_row:
            _check_units(path, settings, modalities, positions)
        identity = object_ids(path, columns, settings.object_id, first_row)
        first_row += len(identity)
        position = {axis: numbers(path, columns, name) for axis, name in positions.items()}
        _check_positions(path, identity, position)
        for name, column in settings.columns.items():
            values, error = (
                None if source is None else _measured(path, columns, source, settings.missing_values)
                for source in (column, settings.errors.get(name))
            )
            assert values is not None
            with naming_file(f"{path}, column {column}"):
                observation = ScalarObservation(
                    modalities[name], identity, values, np.isfinite(values), error, **position
                )
            yield observation
    if not first_row:
        raise ObservationError(f"{path}: expected at least one object, found a table without rows")


def _measured(path: Path, columns: Mapping[str, np.ma.MaskedArray], name: str, missing: Sequence[float]) -> np.ndarray:
    values = numbers(path, columns, name)
    return np.where(np.isin(values, missing), np.nan, values)


def _check_positions(path: Path, identity: Sequence[str], position: Mapping[str, np.ndarray]) -> None:
    """Refuse objects of which one coordinate alone is known."""
    if len(position) == 2:
        halves = np.flatnonzero(np.isnan(position["ra"]) != np.isnan(position["dec"]))
        if len(halves):
            row = int(halves[0])
            raise ObservationError(
                f"{path}: object {identity[row]}: ra and dec must both be known or both be missing, found "
                f"({position['ra'][row]}, {position['dec'][row]})"
            )


def _check_units(
    path: Path, settings: ScalarTableSettings, modalities: Mapping[str, Modality], positions: Mapping[str, str]
) -> None:
    """Compare the units that the table states with what it is to hold."""
    stated = {name.upper(): unit for name, unit in column_units(path, settings.extension).items()}
    expected = dict.fromkeys(positions.values(), "deg")
    expected.update({column: modalities[name].unit for name, column in settings.columns.items()})
    expected.update({column: modalities[name].unit for name, column in settings.errors.items()})
    for column, unit in expected.items():
        found = stated.get(column.upper())
        if found is not None and not _is_same_unit(found, unit):
            raise ObservationError(f"{path}: column {column} must be in {unit}, found the unit {found!r}")


def _is_same_unit(found: str, expected: str) -> bool:
    if expected.startswith("log10"):
        return "log" in found.lower() or "dex" in found.lower()
    if expected.endswith("mag"):
        system = expected.removesuffix("mag").strip()
        return found in ("mag", f"mag({system})", f"{system} mag", f"{system}mag")
    try:
        return bool(np.isclose(parse_unit(found).to(parse_unit("" if expected == "dimensionless" else expected)), 1))
    except (ValueError, TypeError):
        return False


def _joined(observations: Iterable[ScalarObservation]) -> list[ScalarObservation]:
    """One observation for each modality, in the order in which they come first."""
    found: dict[str, list[ScalarObservation]] = defaultdict(list)
    for observation in observations:
        found[observation.modality.name].append(observation)
    return [stack(parts) for parts in found.values()]
