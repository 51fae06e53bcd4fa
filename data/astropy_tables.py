"""Tables, columns and quantities of astropy as scalars: units converted, what is masked or NaN is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from jaxtyping import Float64

from .astropy_units import scalar_values
from .modalities import MODALITIES, Modality
from .modalities import modality as declared_modality
from .observations import ArrayLike, ObservationError, ScalarObservation
from .observe import numbers_of, object_ids


def from_table(
    table: Any,
    columns: Mapping[str, str] | None = None,
    *,
    errors: Mapping[str, str] | None = None,
    object_id: str | None = None,
    ra: str | None = None,
    dec: str | None = None,
    first_number: int = 0,
) -> tuple[ScalarObservation, ...]:
    """The scalars of a Table or QTable, an observation for each modality, an object for each row.

    `columns` and `errors` say which column holds the values, and the standard deviations, of each modality; by default,
    columns that are called like a modality (`scalar/redshift`). Units are converted to the modality's; a column without
    one is in it. What is masked or NaN is missing. `object_id`, `ra` and `dec` name columns, by default those of these
    names where there are any; rows without an id are called by their number. Raises ObservationError.
    """
    scalars = [known.name for known in MODALITIES if known.kind == "scalar"]
    chosen = {name: name for name in table.colnames if name in scalars} if columns is None else dict(columns)
    if not chosen:
        raise ObservationError(f"expected columns named like scalars, such as {scalars[:3]}; found {table.colnames}")
    named = {"object_id": object_id, "ra": ra, "dec": dec}
    for column in (*chosen.values(), *(errors or {}).values(), *(name for name in named.values() if name)):
        if column not in table.colnames:
            raise ObservationError(f"the table has no column {column!r}; its columns are {table.colnames}")
    who = {name: column or (name if name in table.colnames else None) for name, column in named.items()}
    numbers = range(first_number, first_number + len(table))
    ids = list(numbers) if who["object_id"] is None else _texts(table[who["object_id"]])
    position = {name: _position(table[who[name]], name) for name in ("ra", "dec") if who[name] is not None}
    found = []
    for name, column in chosen.items():
        error = (errors or {}).get(name)
        error_column = None if error is None else table[error]
        made = from_column(
            table[column], declared_modality(name), error=error_column, object_id=[str(i) for i in ids], **position
        )
        found.append(made)
    return tuple(found)


def from_column(
    column: Any,
    modality: Modality,
    *,
    error: Any = None,
    mask: ArrayLike | None = None,
    unit: Any = None,
    object_id: str | Sequence[Any] | None = None,
    ra: Any = None,
    dec: Any = None,
) -> ScalarObservation:
    """A Quantity, or a column of a table, as a scalar of each of its objects; see `from_table`."""
    values, valid, own_unit = _column(column, modality)
    errors = None
    if error is not None:
        errors, has_error, error_unit = _column(error, modality)
        errors = np.where(has_error, errors, np.nan)
        if error_unit is not None and own_unit is not None and error_unit != own_unit:
            errors = u.Quantity(errors, error_unit).to_value(own_unit)
    values, errors = scalar_values(values, errors, own_unit if own_unit is not None else unit, modality)
    valid &= np.isfinite(values)
    if mask is not None:
        valid &= numbers_of(mask, modality).astype(bool)
    ids = object_ids(object_id, len(values), modality)
    position = {name: np.atleast_1d(_degrees(given)) for name, given in (("ra", ra), ("dec", dec)) if given is not None}
    return ScalarObservation(modality, ids, np.where(valid, values, np.nan), valid, errors, **position)


def _column(column: Any, modality: Modality) -> tuple[Float64[np.ndarray, " B"], np.ndarray, Any]:
    """Numbers of a column or quantity, which are valid, and the unit."""
    unit = getattr(column, "unit", None)
    bad = np.asarray(getattr(column, "mask", False), bool)
    plain = getattr(column, "unmasked", column)
    values = np.atleast_1d(numbers_of(np.asarray(getattr(plain, "value", plain)), modality).astype(np.float64))
    if values.ndim != 1:
        raise ObservationError(f"{modality.name}: expected one number for each object, found shape {values.shape}")
    return values, ~np.broadcast_to(bad, values.shape) & ~np.isnan(values), unit


def _position(column: Any, name: str) -> np.ndarray:
    unit = getattr(column, "unit", None)
    values = np.asarray(getattr(column, "value", column), np.float64)
    if unit is not None:
        values = u.Quantity(values, unit).to_value(u.deg)
    values = np.where(np.asarray(getattr(column, "mask", False), bool), np.nan, values)
    return values % 360 if name == "ra" else values


def _degrees(given: Any) -> Any:
    return given.to_value(u.deg) if hasattr(given, "to_value") else np.asarray(given, np.float64)


def _texts(column: Any) -> list[str]:
    return [one.decode() if isinstance(one, bytes) else str(one) for one in column]
