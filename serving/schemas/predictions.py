"""Bodies of predictions for several objects in one request."""

from typing import Any, Literal

from pydantic import BaseModel

from .common import Body, ClassesBody, IntervalBody, Provenance, WeightedNeighbour


class VectorItem(Body):
    """A vector of the space that is asked in: numbers, or base64 of float32."""

    vector: list[float] | str


class BinsBody(BaseModel):
    """The bins of a distribution; `low` and `high` bound them, in the property's unit."""

    low: list[float]
    high: list[float]


class PredictionDatum(BaseModel):
    """What is predicted of one entry; `value` is null and `error` says why where the entry was not usable.

    The other fields are those of PredictAnswer; `probability`, with method `model`, has one number for each of `bins`.
    """

    index: int
    object_id: str | None = None
    value: float | str | None = None
    intervals: list[IntervalBody] = []
    calibrated: bool | None = None
    k: int | None = None
    gallery: Literal["rows", "objects"] | None = None
    neighbours: list[WeightedNeighbour] = []
    probability: list[float] | None = None
    classes: ClassesBody | None = None
    novelty: float | None = None
    is_outside: bool | None = None
    error: dict[str, Any] | None = None


class PredictionList(BaseModel):
    """The answer to several objects, in their order; `bins` is of method `model`, and the same for all."""

    object: Literal["list"] = "list"
    method: Literal["neighbours", "model", "probe"]
    property: str
    unit: str | None
    bins: BinsBody | None = None
    data: list[PredictionDatum]
    provenance: Provenance
