"""What the client's methods return: frozen dataclasses, and sequences of them that become astropy tables.

Positions are in degrees, ICRS; values are in the unit that their answer names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, overload

import numpy as np
from jaxtyping import Float64

from ...data.modalities import Modality
from ...models.embeddings import Embeddings
from .errors import ApiError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Neighbour:
    """One neighbour; `similarity` is the cosine, positions are degrees, ICRS. `weight` and `label` with predictions."""

    object_id: str
    modality: str
    similarity: float
    ra: float | None
    dec: float | None
    labels: dict[str, float] | None = None
    label: float | None = None
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class Neighbours(Sequence[Neighbour]):
    """The neighbours of one query, best first: a sequence of `Neighbour`, whose columns are arrays too.

    It equals any list or tuple of the same neighbours.
    """

    items: tuple[Neighbour, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the search was made with: ids of model and index, space, metric."""
    next_cursor: str | None = None
    """For the neighbours after these, by the same search; None where there are no more."""

    @overload
    def __getitem__(self, place: int) -> Neighbour: ...
    @overload
    def __getitem__(self, place: slice) -> "Neighbours": ...
    def __getitem__(self, place: int | slice) -> "Neighbour | Neighbours":
        if isinstance(place, slice):
            return Neighbours(self.items[place], self.provenance)
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)

    def __eq__(self, other: object) -> bool:
        return self.items == tuple(other) if isinstance(other, Neighbours | tuple | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # labels are a dict

    @property
    def object_id(self) -> tuple[str, ...]:
        """Ids, best first."""
        return tuple(item.object_id for item in self.items)

    @property
    def similarity(self) -> Float64[np.ndarray, " K"]:
        """Cosines, falling."""
        return np.array([item.similarity for item in self.items], np.float64)

    def labels(self, name: str) -> Float64[np.ndarray, " K"]:
        """The known scalar `name` of each neighbour, NaN where it is not known; ask with `with_labels=True`.

        Raises ValueError if the neighbours came without labels.
        """
        if any(item.labels is None for item in self.items):
            raise ValueError("these neighbours came without labels: ask with with_labels=True")
        return np.array([(item.labels or {}).get(name, np.nan) for item in self.items], np.float64)

    def table(self) -> Any:
        """An astropy QTable, a row for each neighbour: ids, similarity, ra and dec in degrees (NaN where unknown).

        Its labels have a column each; `label` and `weight` come with predictions, provenance is in `meta`.
        """
        import astropy.units as u
        from astropy.table import QTable

        columns: dict[str, Any] = {
            "object_id": np.array(self.object_id, str),
            "modality": np.array([item.modality for item in self.items], str),
            "similarity": self.similarity,
        }
        for name in ("ra", "dec"):
            columns[name] = _numbers([getattr(item, name) for item in self.items]) * u.deg
        for name in ("label", "weight"):
            if any(getattr(item, name) is not None for item in self.items):
                columns[name] = _numbers([getattr(item, name) for item in self.items])
        for name in sorted({name for item in self.items for name in item.labels or {}}):
            columns[name] = _numbers([(item.labels or {}).get(name) for item in self.items])
        return QTable(columns, meta=dict(self.provenance))


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the truth with probability `level`; None where too few objects are known to tell."""

    level: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Distribution:
    """A probability for each bin [V]; `low` and `high` bound the bins, in the property's unit."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    probability: tuple[float, ...]


@dataclass(frozen=True)
class Prediction:
    """A predicted value; `calibrated` tells whether the intervals were calibrated on held-out objects.

    With method `neighbours` it shows these; with method `model`, the distribution whose median the value is; with
    `probe`, where the value is a class, `classes` has the probabilities. `is_outside` says that the object is unlike
    those known, by `novelty`, the share of them that lie as far out; None where that cannot be told.
    """

    property: str
    value: Any
    unit: str | None
    intervals: tuple[Interval, ...]
    calibrated: bool
    neighbours: Neighbours
    provenance: dict[str, Any]
    method: str = "neighbours"
    distribution: Distribution | None = None
    classes: dict[str, Any] | None = None
    novelty: float | None = None
    is_outside: bool | None = None
    gallery: str | None = None
    """By what neighbours were found: `rows`, their most similar vector, or `objects`, the mean of their vectors."""

    def interval(self, level: float) -> Interval:
        """The interval of this level. Raises LookupError that names the levels there are."""
        for interval in self.intervals:
            if abs(interval.level - level) < 1e-9:
                return interval
        raise LookupError(f"no interval of level {level}; there are {[i.level for i in self.intervals]}")

    def table(self) -> Any:
        """An astropy QTable of one row: value and bounds, NaN where unknown; the unit, where astropy has it."""
        from astropy.table import QTable

        unit = _astropy_unit(self.unit)
        columns: dict[str, Any] = {"property": [self.property], "value": [self.value]}
        if not isinstance(self.value, str):
            columns["value"] = _numbers([self.value]) * unit
        for interval in self.intervals:
            name = f"{100 * interval.level:g}"
            columns[f"lower_{name}"] = _numbers([interval.lower]) * unit
            columns[f"upper_{name}"] = _numbers([interval.upper]) * unit
        columns |= {"calibrated": [self.calibrated], "novelty": _numbers([self.novelty])}
        return QTable(columns, meta=dict(self.provenance) | {"unit": self.unit, "method": self.method})


@dataclass(frozen=True)
class ObjectRecord:
    """What the index knows of an object: position, modalities, scalars, and addresses of archives."""

    object_id: str
    ra: float | None
    dec: float | None
    modalities: tuple[str, ...]
    labels: dict[str, float]
    links: dict[str, str]
    provenance: dict[str, Any]

    @classmethod
    def of(cls, answer: dict[str, Any]) -> "ObjectRecord":
        """From the server's answer; fields that a newer server adds are left out."""
        known = known_fields(cls, answer)
        return cls(**known | {"modalities": tuple(answer["modalities"])})


@dataclass(frozen=True)
class FailedObject:
    """An object of a longer task that has no result: its place among all, its id, and why."""

    index: int
    object_id: str
    error: Exception
    """ApiError of the server, or ObservationError where the measurement was not usable before it was sent."""


@dataclass(frozen=True)
class EmbeddedSet(Sequence[tuple[str, np.ndarray]]):
    """The collected embeddings of many objects, and those that have none.

    A sequence of (object_id, vector [D]); `embeddings` is all of it at once, None if no object was usable.
    """

    embeddings: Embeddings | None
    errors: tuple[FailedObject, ...] = ()

    @overload
    def __getitem__(self, place: int) -> tuple[str, np.ndarray]: ...
    @overload
    def __getitem__(self, place: slice) -> "Sequence[tuple[str, np.ndarray]]": ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        if self.embeddings is None or not -len(self) <= place < len(self):
            raise IndexError(f"no object {place}; there are {len(self)}")
        return self.embeddings.object_id[place], self.embeddings.vectors[place].numpy()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return (self[row] for row in range(len(self)))

    def __len__(self) -> int:
        return 0 if self.embeddings is None else len(self.embeddings)

    def require_all(self) -> Embeddings:
        """The embeddings. Raises the first of the errors if there is any, ApiError if there was no object at all."""
        if self.errors:
            raise self.errors[0].error
        if self.embeddings is None:
            raise ApiError(None, {"title": "Nothing to embed", "detail": "expected at least one object, found none"})
        return self.embeddings


def neighbours_of(answer: dict[str, Any]) -> Neighbours:
    """The neighbours of a search's or a prediction's answer."""
    items = tuple(Neighbour(**known_fields(Neighbour, item)) for item in answer["neighbours"])
    return Neighbours(items, answer["provenance"], answer.get("next_cursor"))


def prediction_of(answer: dict[str, Any]) -> Prediction:
    """The prediction of an answer of /v1/predict, or of a probe."""
    given = answer.get("distribution")
    distribution = None
    if given is not None:
        distribution = Distribution(*(tuple(given[name]) for name in ("low", "high", "probability")))
    return Prediction(
        **known_fields(Prediction, answer)
        | {
            "intervals": tuple(Interval(**known_fields(Interval, interval)) for interval in answer["intervals"]),
            "neighbours": neighbours_of(answer),
            "distribution": distribution,
        }
    )


def scalar_prediction(modality: Modality, object_id: Sequence[str], found: Sequence[Prediction]) -> Any:
    """Predictions of method `model`, one for each object, as the ScalarPrediction of the local model.

    Raises ApiError if one came without its distribution.
    """
    import torch

    from ...models.foundation import ScalarPrediction

    distributions = [prediction.distribution for prediction in found if prediction.distribution is not None]
    if len(distributions) != len(object_id):
        raise ApiError(None, {"title": "No distribution", "detail": f"of {modality.name}: is the server older?"})
    first = distributions[0]
    return ScalarPrediction(
        modality,
        tuple(object_id),
        torch.tensor([d.probability for d in distributions], dtype=torch.float64),
        torch.tensor(first.low, dtype=torch.float64),
        torch.tensor(first.high, dtype=torch.float64),
    )


def known_fields(of: type[Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The entries of an answer that the dataclass has: a newer server may send more."""
    names = {f.name for f in fields(of)}
    return {name: value for name, value in answer.items() if name in names}


def _numbers(values: Sequence[float | int | None]) -> Float64[np.ndarray, " K"]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _astropy_unit(name: str | None) -> Any:
    import astropy.units as u

    try:
        return u.dimensionless_unscaled if name in (None, "dimensionless") else u.Unit(name)
    except ValueError:
        # "log10 solar masses", "Vega mag": the name is kept in the table's meta.
        return u.dimensionless_unscaled
