"""Bodies of the routes of probes: what is fitted, what a probe's card says, and what is asked of it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from .common import (
    ArrayField,
    Body,
    ClassesBody,
    IntervalBody,
    ItemField,
    ObservationsField,
    Provenance,
)

Value = int | float | str


class ProbeExample(Body):
    """One labelled object: an object of the index, or its observations."""

    value: Value
    """A number in `unit`, or the name of a class."""
    object_id: str | None = None
    observations: ObservationsField | None = None


class ProbeRequest(Body):
    """A probe to fit: to labelled `examples`, or to `vectors` [B, D] with `values` [B]."""

    label: Annotated[str, Field(min_length=1, max_length=200)]
    """What is told, such as `scalar/redshift`."""
    task: Literal["regression", "classification"] | None = None
    """Without it: classification where values are names, else regression."""
    unit: Annotated[str | None, Field(max_length=100)] = None
    """Of the values; by default that of the modality whose name the label is."""
    kind: Literal["linear", "kernel", "attentive"] = "linear"
    """`kernel`: a smooth function, where the label bends. `attentive`: of token vectors [B, N, D] alone."""
    modality: str | None = None
    """Which vector of each object of the index, or what `vectors` came from (`image/hsc+spectrum/desi`)."""
    space: Literal["aligned", "encoder"] | None = None
    """Of `vectors` and of observations. By default the index's, or `aligned` where the model has it."""
    examples: Annotated[list[ProbeExample] | None, Field(min_length=1)] = None
    vectors: ArrayField = None
    values: list[Value] | None = None
    note: Annotated[str, Field(max_length=2000)] = ""
    """Kept with the probe, for people."""


class CoverageBody(BaseModel):
    """How often intervals (or sets of classes) held the truth for objects that a fit on the others had not seen."""

    level: float
    share: float
    num_objects: int
    width: float | None
    """Median width of the intervals in the label's unit, or mean number of classes in the sets; null if infinite."""


class ProbeCard(BaseModel):
    """What is known of a probe. `scores` are of objects left out of the fit: one by one, or in folds."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    label: str
    task: Literal["regression", "classification"]
    kind: str
    unit: str | None
    created: str | None
    note: str
    num_labels: int | None
    classes: list[str] | None
    scores: dict[str, float]
    coverage: list[CoverageBody]
    fitted_on: str
    """`objects`, `observations`, `vectors`, `upload`, or `start` for a probe that the server was started with."""
    model_id: str | None
    index_id: str | None
    space: str | None
    modalities: list[str]
    is_usable: bool
    """False if it belongs to another model than the one served."""
    links: dict[str, str]


class ProbeList(BaseModel):
    """Probes, the oldest first."""

    probes: list[ProbeCard]


class ProbePredictRequest(Body):
    """Of one object exactly one of `vector`, `object_id` and `observations`; of several, `input` or a list of ids."""

    input: Annotated[list[Any] | None, WithJsonSchema(ItemField.__metadata__[0].json_schema)] = None
    """Each entry: a measurement, `{observations}`, `{object_id}` or `{vector}`. A bad one fails alone."""
    vector: list[float] | str | None = None
    """Numbers, or base64 of float32; in the probe's space."""
    object_id: str | list[str] | None = None
    modality: str | None = None
    """With `object_id`: which of its vectors."""
    observations: ObservationsField | None = None


class ProbeDatum(BaseModel):
    """What the probe says of one entry; `value` is null and `error` says why where the entry was not usable."""

    index: int
    object_id: str | None = None
    value: float | str | None = None
    intervals: list[IntervalBody] = []
    classes: ClassesBody | None = None
    calibrated: bool | None = None
    novelty: float | None = None
    is_outside: bool | None = None
    error: dict[str, Any] | None = None


class ProbePredictions(BaseModel):
    """The answer to several objects, in their order."""

    object: Literal["list"] = "list"
    property: str
    unit: str | None
    data: list[ProbeDatum]
    provenance: Provenance


PROBE_BODIES: tuple[type[BaseModel], ...] = (ProbeRequest, ProbePredictRequest)
"""Read by hand, for their size; see `routes/documentation.py`."""
