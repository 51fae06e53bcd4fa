"""Any table of Hugging Face `datasets`, a local folder or on the Hub, streamed.

Which column holds what is a mapping in settings (`hugging_face_columns`). No dataset script runs and nothing is
unpickled: `datasets` 4 and later do neither.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.errors
import numpy as np
import pyarrow as pa

from ..modalities import modality
from ..observations import (
    UNITS_OF_FLUX_AT_ZERO_MAGNITUDE,
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from .hugging_face_columns import (
    CoefficientColumns,
    HuggingFaceSettings,
    ImageColumns,
    ScalarColumn,
    SpectrumColumns,
    WavelengthGrid,
    WithNoise,
)
from .nested_columns import column_at, dense, names_at, numbers, padded
from .survey_rows import Rows, identify, naming

SPECTRUM_FLUX_UNIT = 1e-17
"""Our unit of flux, in erg / s / cm2 / A."""

_HUB = "hf:"
_ERRORS = (
    pa.ArrowException,
    OSError,
    ValueError,
    datasets.exceptions.DatasetsError,
    huggingface_hub.errors.HfHubHTTPError,
)


def hugging_face_files(path: str | Path) -> list[Path]:
    """The one piece of a dataset: a local folder or file, or `hf://datasets/<owner>/<name>`. Raises ObservationError.

    The Hub is asked only when it is read.
    """
    path = Path(path)
    if path.parts[:1] == (_HUB,):
        _hub_id(path)
    elif not path.exists():
        raise ObservationError(f"{path}: no such file or folder (on the Hub: hf://datasets/<owner>/<name>)")
    return [path]


def read_hugging_face(path: str | Path, settings: HuggingFaceSettings) -> Iterator[Observation]:
    """All observations of a dataset, `settings.batch_size` rows at a time.

    `path` is a folder that `datasets` can load, one that `save_to_disk` wrote, a Parquet or Arrow file, or
    `hf://datasets/<owner>/<name>`. Raises ObservationError, with the path and, where there is one, the object, on a
    dataset that cannot be loaded, missing columns, lists of wrong length, nulls, ids that come twice and whatever an
    observation refuses. Without a mask column, values that are not finite are masked; with one they must be masked by
    it. Objects without a valid pixel are left out with a warning that names them. Images must have one size within
    `settings.batch_size` rows.
    """
    path = Path(path)
    seen: set[str] = set()
    for table in _tables(path, settings):
        with naming(path):
            rows = _rows(path, table, settings)
            if not seen:
                rows.warn_of_rounding()
            for row, name in enumerate(rows.object_id):
                if name in seen:
                    raise rows.error(row, "comes twice")
                seen.add(name)
            found: list[Observation] = [
                *(o for image in settings.images for o in _images(table, rows, image)),
                *(o for spectrum in settings.spectra for o in _spectra(table, rows, spectrum)),
                *(_coefficients(table, rows, coefficients) for coefficients in settings.coefficients),
                *(_scalar(table, rows, scalar) for scalar in settings.scalars),
            ]
        yield from found


def _tables(path: Path, settings: HuggingFaceSettings) -> Iterator[pa.Table]:
    """The dataset's columns that are mapped, some rows at a time."""
    wanted = settings.columns()
    try:
        dataset = _load(path, settings)
        known = dataset.column_names
        if known is not None:
            _check_columns(path, {name.split(".")[0] for name in wanted}, known)
            dataset = dataset.select_columns(sorted({name.split(".")[0] for name in wanted}))
        for table in dataset.with_format("arrow").iter(batch_size=settings.batch_size):
            _check_columns(path, wanted, names_at(table.schema))
            yield table
    except ObservationError:
        raise
    except _ERRORS as error:
        raise ObservationError(f"{path}: cannot be read as a dataset; {type(error).__name__}: {error}") from None


def _check_columns(path: Path, wanted: Iterable[str], known: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ObservationError(f"{path}: columns {missing} are missing; found {list(known)}")


def _load(path: Path, settings: HuggingFaceSettings) -> Any:
    if path.parts[:1] == (_HUB,):
        options = {"name": settings.config, "revision": settings.revision}
        return datasets.load_dataset(_hub_id(path), split=settings.split, streaming=True, **options)
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(path))
        if settings.split not in splits:
            raise ObservationError(f"{path}: no split {settings.split!r}; it has {list(splits)}")
        return splits[settings.split]
    if path.is_file():
        kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix)
        if kind is None:
            raise ObservationError(f"{path}: expected a folder, or a file .parquet or .arrow")
        files = {settings.split: [str(path)]}
        return datasets.load_dataset(kind, data_files=files, split=settings.split, streaming=True)
    return datasets.load_dataset(str(path), name=settings.config, split=settings.split, streaming=True)


def _hub_id(path: Path) -> str:
    if len(path.parts) != 4 or path.parts[1] != "datasets":
        raise ObservationError(f"{path}: a dataset on the Hub is hf://datasets/<owner>/<name>")
    return "/".join(path.parts[2:])


def _rows(path: Path, table: pa.Table, settings: HuggingFaceSettings) -> Rows:
    ids = column_at(table, settings.object_id).to_pylist()
    if settings.ra is None or settings.dec is None:
        return identify(path, ids, None, None)

    def error(row: int, problem: str) -> ObservationError:
        return ObservationError(f"{path}, object {ids[row]}: {problem}")

    ra, dec = (numbers(column_at(table, name), error, name) for name in (settings.ra, settings.dec))
    return identify(path, ids, ra, dec)


def _images(table: pa.Table, rows: Rows, columns: ImageColumns) -> list[ImageObservation]:
    if isinstance(columns.flux, tuple):
        flux = np.stack([dense(column_at(table, name), 2, rows.error, name) for name in columns.flux], axis=1)
    else:
        flux = dense(column_at(table, columns.flux), 3, rows.error, columns.flux)
    flux = flux.astype(np.float32)
    unit = np.float32(10 ** (0.4 * (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - columns.zero_point)))

    def pixels(name: str) -> np.ndarray:
        return dense(column_at(table, name), 3, rows.error, name)

    ivar = _inverse_variance(columns, pixels, float(unit))
    mask = _mask(columns, pixels)
    valid = np.isfinite(flux) if mask is None else mask
    if mask is None and ivar is not None:
        valid &= np.isfinite(ivar)
    psf_fwhm = None
    if columns.psf_fwhm is not None:
        psf_fwhm = dense(column_at(table, columns.psf_fwhm), 1, rows.error, columns.psf_fwhm)
    kept = rows.with_light(valid if ivar is None else valid & ~(ivar <= 0), columns.modality)
    if not kept.any():
        return []
    return [
        ImageObservation(
            modality(columns.modality),
            rows.chosen(kept),
            flux[kept] * unit,
            columns.bands,
            None if ivar is None else ivar[kept],
            valid[kept],
            psf_fwhm=None if psf_fwhm is None else psf_fwhm[kept],
            ra=rows.ra[kept],
            dec=rows.dec[kept],
        )
    ]


def _spectra(table: pa.Table, rows: Rows, columns: SpectrumColumns) -> list[SpectrumObservation]:
    names = [name for name in (columns.flux, columns.ivar, columns.error, columns.wavelength) if isinstance(name, str)]
    fills: list[float | bool] = [0.0] * len(names)
    if columns.mask is not None:
        names.append(columns.mask.column)
        fills.append(columns.mask.true_means == "bad")
    arrays, lengths = padded([column_at(table, name) for name in names], fills, rows.error, names)
    found = dict(zip(names, arrays, strict=True))
    flux = found[columns.flux].astype(np.float64)
    is_there = np.arange(flux.shape[1]) < lengths[:, None]
    if isinstance(columns.wavelength, WavelengthGrid):
        wavelength = _grid(columns.wavelength, flux.shape[1])
    else:
        wavelength = found[columns.wavelength].astype(np.float64)
        is_there &= np.isfinite(wavelength) & (wavelength > 0)
        wavelength = np.where(is_there, wavelength, 0.0)
    scale = columns.unit / SPECTRUM_FLUX_UNIT
    ivar = _inverse_variance(columns, found.__getitem__, scale)
    assert ivar is not None  # the settings have seen to it
    mask = _mask(columns, found.__getitem__)
    valid = is_there & (np.isfinite(flux) & np.isfinite(ivar) if mask is None else mask)
    kept = rows.with_light(valid & ~(ivar <= 0), columns.modality)
    if not kept.any():
        return []
    return [
        SpectrumObservation(
            modality(columns.modality),
            rows.chosen(kept),
            (flux[kept] * scale).astype(np.float32),
            wavelength[kept] if wavelength.ndim == 2 else wavelength,
            ivar[kept].astype(np.float32),
            valid[kept],
            ra=rows.ra[kept],
            dec=rows.dec[kept],
        )
    ]


def _grid(grid: WavelengthGrid, length: int) -> np.ndarray:
    place = grid.step * np.arange(length)
    return grid.first + place if grid.sampling == "linear" else grid.first * 10**place


def _inverse_variance(columns: WithNoise, pixels: Callable[[str], np.ndarray], unit: float) -> np.ndarray | None:
    """Inverse variance in our units; an error that is not positive means none."""
    if columns.ivar is not None:
        return pixels(columns.ivar).astype(np.float64) / unit**2
    if columns.error is not None:
        error = pixels(columns.error).astype(np.float64) * unit
        return np.where(error > 0, error, np.inf) ** -2
    return None


def _mask(columns: WithNoise, pixels: Callable[[str], np.ndarray]) -> np.ndarray | None:
    if columns.mask is None:
        return None
    values = pixels(columns.mask.column)
    if values.dtype != np.bool_:
        raise ObservationError(f"mask {columns.mask.column} must hold booleans, found {values.dtype}")
    return values if columns.mask.true_means == "valid" else ~values


def _coefficients(table: pa.Table, rows: Rows, columns: CoefficientColumns) -> CoefficientsObservation:
    def joined(names: str | tuple[str, ...]) -> np.ndarray:
        several = (names,) if isinstance(names, str) else names
        return np.concatenate([dense(column_at(table, name), 1, rows.error, name) for name in several], axis=1)

    values = joined(columns.values)
    error = None if columns.error is None else joined(columns.error)
    mask = np.isfinite(values)
    return CoefficientsObservation(
        modality(columns.modality), rows.object_id, values, mask, error, ra=rows.ra, dec=rows.dec
    )


def _scalar(table: pa.Table, rows: Rows, columns: ScalarColumn) -> ScalarObservation:
    def read(name: str) -> np.ndarray:
        array = column_at(table, name)
        if pa.types.is_integer(array.type):
            array = array.cast(pa.float64())
        return numbers(array, rows.error, name).astype(np.float64)

    values = read(columns.column)
    valid = np.isfinite(values) & ~np.isin(values, columns.missing_values)
    error = None
    if columns.error is not None:
        given = read(columns.error)
        error = np.where(valid & np.isfinite(given) & (given >= 0), given, np.nan)
    return ScalarObservation(modality(columns.modality), rows.object_id, values, valid, error, ra=rows.ra, dec=rows.dec)
