"""Whatever people hold in their hands becomes an observation: arrays, astropy's objects, files, numbers.

`observe` makes one observation and takes what must be said of it (bands, units, wavelengths); `as_observations` is the
edge of the local model and of the client, which take the same. Nothing is guessed: what a value does not say and is
needed must be given. Models import this file on machines without astropy: it is imported where an object of it came.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from .modalities import Modality
from .modalities import modality as declared_modality
from .observations import (
    ArrayLike,
    CoefficientsObservation,
    ImageObservation,
    Observation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)

FITS_SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")
_OF_KIND = {
    "image": ("bands", "psf_fwhm", "depth", "center", "zero_point", "inverse_variance", "mask", "unit"),
    "spectrum": ("wavelength", "resolving_power", "in_air", "inverse_variance", "mask", "unit"),
    "coefficients": ("error", "mask"),
    "scalar": ("error", "mask", "unit"),
}


@runtime_checkable
class TableLike(Protocol):
    """A table of astropy."""

    colnames: Any


Measurements = Observation | Sequence[Observation] | Mapping[str, Any] | TableLike
"""What models and clients take: observations; values by the name of their modality; or a table of scalars."""


def observe(
    value: Any,
    modality: str | Modality,
    *,
    object_id: str | Sequence[Any] | None = None,
    bands: str | Sequence[str] | None = None,
    wavelength: Any = None,
    inverse_variance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    error: Any = None,
    unit: Any = None,
    zero_point: float | int | None = None,
    in_air: bool | None = None,
    resolving_power: ArrayLike | None = None,
    psf_fwhm: ArrayLike | None = None,
    depth: ArrayLike | None = None,
    center: ArrayLike | None = None,
    ra: Any = None,
    dec: Any = None,
) -> Observation:
    """One modality of one or several objects, from nearly anything.

    `value`: numpy, torch or lists (image [C, H, W] or [H, W] of one band; spectrum [L] with `wavelength` and
    `inverse_variance`, or [3, L] = flux, inverse variance, wavelength; coefficients [K]; a number), each with a leading
    axis for several objects; CCDData or NDData, or one of them for each band, by name; a Spectrum; a Quantity or a
    column; the path of a .npy or .fits file; an observation.

    Where the value has no unit, `unit` says it, and else it is in the modality's; an image in counts needs
    `zero_point`, the AB magnitude of one count. `mask` is True = valid; masks of astropy's objects are read as theirs
    are meant (True = bad). `in_air=True` converts wavelengths in air to vacuum. Without `object_id`, objects are
    called by their number: "0", "1". Positions are degrees, ICRS; an image with celestial coordinates gives its own.

    Raises ObservationError where something is missing, does not fit the modality, or cannot be converted; LookupError
    for an unknown modality; OSError for a file that cannot be opened.
    """
    wanted = declared_modality(modality) if isinstance(modality, str) else modality
    options = {
        "bands": list(bands) if isinstance(bands, str) else bands,
        "wavelength": wavelength,
        "inverse_variance": inverse_variance,
        "mask": mask,
        "error": error,
        "unit": unit,
        "zero_point": zero_point,
        "in_air": in_air,
        "resolving_power": resolving_power,
        "psf_fwhm": psf_fwhm,
        "depth": depth,
        "center": center,
    }
    options = {name: given for name, given in options.items() if given is not None}
    for name in options:
        if name not in _OF_KIND[wanted.kind]:
            raise ObservationError(f"{wanted.name} has no {name}; it takes {list(_OF_KIND[wanted.kind])}")
    who = {"object_id": object_id, "ra": ra, "dec": dec}
    if isinstance(value, str | Path):
        value, options = _from_file(Path(value), wanted, options)
    if isinstance(value, Observation):
        return _as_it_is(value, wanted, options, who)
    if wanted.kind == "image":
        return _image(value, wanted, options, who)
    if wanted.kind == "spectrum":
        return _spectrum(value, wanted, options, who)
    if wanted.kind == "scalar" and (_is_of_astropy(value) or "unit" in options):
        from .astropy_tables import from_column

        return from_column(value, wanted, **options, **who)
    return plain_observation(value, wanted, options, who)


def as_observations(given: Any, modalities: Sequence[Modality] = (), first_number: int = 0) -> list[Observation]:
    """Whatever models and clients take as a list of observations; see `Measurements`.

    Modalities are looked up among `modalities` (a model's own), then among the declared ones. Objects without an id
    are called by their number, from `first_number`. Raises as `observe` does.
    """
    if isinstance(given, Observation):
        return [given]
    if isinstance(given, TableLike):
        from .astropy_tables import from_table

        return list(from_table(given, first_number=first_number))
    if isinstance(given, Mapping):
        own = {known.name: known for known in modalities}
        found = [observe(value, own.get(name) or name) for name, value in given.items()]
        if first_number == 0:
            return found
        named = [isinstance(value, Observation) for value in given.values()]
        return [
            o if kept else o.renamed([str(first_number + n) for n in range(len(o))])
            for o, kept in zip(found, named, strict=True)
        ]
    if isinstance(given, Sequence) and not isinstance(given, str):
        for number, one in enumerate(given):
            if not isinstance(one, Observation):
                raise ObservationError(
                    f"expected observations, found {type(one).__name__} at place {number}; "
                    "make one with armillary.observe(value, modality), or pass {modality: value}"
                )
        return list(given)
    raise ObservationError(
        "expected an observation, a list of them, {modality: value} or a table of scalars, found "
        f"{type(given).__name__}; make an observation with armillary.observe(value, modality)"
    )


def plain_observation(
    value: Any, modality: Modality, options: Mapping[str, Any], who: Mapping[str, Any]
) -> Observation:
    """An observation of numbers in the modality's unit [..., *axes], with or without a leading axis of objects."""
    values = numbers_of(value, modality)
    axes = {"image": 3, "spectrum": 1, "coefficients": 1, "scalar": 0}[modality.kind]
    fields = {name: numbers_of(given, modality) if _is_array(given) else given for name, given in options.items()}
    if modality.kind == "image":
        if "bands" not in fields:
            known = [band.name for band in modality.card.bands]  # type: ignore[union-attr]
            raise ObservationError(f"{modality.name}: expected bands, such as {known[:3]}; the camera has {known}")
        if values.ndim == 2 and len(fields["bands"]) == 1:
            values = values[None]
            fields |= {n: fields[n][None] for n in ("mask", "inverse_variance") if n in fields and fields[n].ndim == 2}
    if values.ndim == axes:
        values = values[None]
        for name in fields:
            if name not in ("bands",) and not (name == "wavelength" and fields[name].ndim == 1):
                fields[name] = np.asarray(fields[name])[None]
    made_of: Any = {
        "image": ImageObservation,
        "spectrum": SpectrumObservation,
        "coefficients": CoefficientsObservation,
        "scalar": ScalarObservation,
    }[modality.kind]
    count = len(values) if values.ndim else 1
    return made_of(modality, object_ids(who["object_id"], count, modality), values, **fields, **_position(who))


def object_ids(given: str | Sequence[Any] | None, count: int, modality: Modality) -> list[str]:
    """An id for each of `count` objects: those given, or their numbers. Raises ObservationError on another count."""
    if given is None:
        return [str(number) for number in range(count)]
    ids = [given] if isinstance(given, str | int | np.integer) else list(given)
    if len(ids) != count:
        raise ObservationError(f"{modality.name}: expected an object_id for each of {count} objects, found {len(ids)}")
    return [str(one) for one in ids]


def numbers_of(value: Any, modality: Modality) -> np.ndarray:
    """Numbers as a numpy array of their own type. Raises ObservationError if they are none, or ragged."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{modality.name}: expected an array of numbers; {error}") from None
    if array.dtype.kind not in "fiub":
        raise ObservationError(f"{modality.name}: expected an array of numbers, found {type(value).__name__}")
    return array


def _image(value: Any, modality: Modality, options: dict[str, Any], who: Mapping[str, Any]) -> Observation:
    """An image: astropy's, or one for each band by name, or an array in the modality's unit or in one that is said."""
    if _is_of_astropy(value) or isinstance(value, Mapping):
        from .astropy_observations import from_ccddata

        return from_ccddata(value, modality, **options, **who)
    if options.keys() & {"unit", "zero_point"}:
        from .astropy_observations import from_values

        return from_values(value, modality, **options, **who)
    return plain_observation(value, modality, options, who)


def _spectrum(value: Any, modality: Modality, options: dict[str, Any], who: Mapping[str, Any]) -> Observation:
    """A spectrum: astropy's; arrays with units or in air, which go the same way; or arrays as they are."""
    if hasattr(value, "spectral_axis"):
        from .astropy_observations import from_spectrum

        return from_spectrum(value, modality, **options, **who)
    if "wavelength" not in options and not hasattr(value, "unit"):
        values = numbers_of(value, modality)
        if values.ndim not in (2, 3) or values.shape[-2] != 3:
            raise ObservationError(
                f"{modality.name}: expected flux [wavelengths] with wavelength and inverse_variance, or [3, "
                f"wavelengths] = flux, inverse variance and wavelength; found shape {list(values.shape)}"
            )
        value = values[..., 0, :]
        options = {**options, "inverse_variance": values[..., 1, :], "wavelength": values[..., 2, :]}
    missing = [name for name in ("wavelength", "inverse_variance") if name not in options]
    if missing:
        raise ObservationError(f"{modality.name}: a spectrum needs {' and '.join(missing)}")
    has_units = any(getattr(given, "unit", None) is not None for given in (value, *options.values()))
    if has_units or options.keys() & {"in_air", "unit"}:
        from .astropy_observations import from_flux

        return from_flux(value, modality, **options, **who)
    return plain_observation(value, modality, options, who)


def _from_file(path: Path, modality: Modality, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a file holds, and what must be said of it: its header may say it, too."""
    if path.name.lower().endswith(FITS_SUFFIXES):
        from .fits_measurements import read_measurement

        return read_measurement(path, modality, options)
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, allow_pickle=False), options
        except ValueError as error:
            raise ObservationError(f"{path}: not a .npy file of numbers: {error}") from None
    raise ObservationError(f"{path}: expected a file .npy or {', '.join(FITS_SUFFIXES)}")


def _as_it_is(
    value: Observation, modality: Modality, options: Mapping[str, Any], who: Mapping[str, Any]
) -> Observation:
    if value.modality.name != modality.name:
        raise ObservationError(f"expected an observation of {modality.name}, found one of {value.modality.name}")
    said = [name for name, given in (*options.items(), *who.items()) if given is not None]
    if said:
        raise ObservationError(f"{modality.name}: an observation says all of itself already; found {said} beside it")
    return value


def _is_of_astropy(value: Any) -> bool:
    """Whether it is an object with a unit or an uncertainty, by what it has: subclasses live elsewhere."""
    return hasattr(value, "uncertainty") or hasattr(value, "unit")


def _is_array(value: Any) -> bool:
    return not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _position(who: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: who[name] for name in ("ra", "dec") if who.get(name) is not None}
    return {name: np.atleast_1d(_degrees(value)) for name, value in given.items()}


def _degrees(value: Any) -> Any:
    return value.to_value("deg") if hasattr(value, "to_value") else np.asarray(value, np.float64)
