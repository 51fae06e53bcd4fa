"""Bodies of the HTTP API: what /openapi.json documents and requests are checked by.

Arrays are not described to pydantic number by number (that is 40 times slower than reading them): such a field takes
base64, `{data, shape, dtype}` or nested lists, and `formats/bodies.py` makes an array of it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from ...models.conformal import LEVELS

_ARRAY_SCHEMA = {
    "anyOf": [
        {"type": "string", "contentEncoding": "base64", "description": "C order, little-endian; fast"},
        {"$ref": "#/components/schemas/EncodedArray"},
        {"type": "array", "items": {}, "description": "nested lists of numbers; 40 to 100 times slower than base64"},
        {"type": "number"},
    ]
}
_ITEM_SCHEMA = {
    "anyOf": [
        {"$ref": "#/components/schemas/ObjectItem"},
        {"$ref": "#/components/schemas/TypedObject"},
        {"$ref": "#/components/schemas/StoredItem"},
    ]
}
ArrayField = Annotated[Any, WithJsonSchema(_ARRAY_SCHEMA)]
ItemField = Annotated[Any, WithJsonSchema({"anyOf": [_ITEM_SCHEMA, {"type": "array", "items": _ITEM_SCHEMA}]})]
PredictedField = Annotated[
    Any,
    WithJsonSchema({"type": "array", "items": {"anyOf": [_ITEM_SCHEMA, {"$ref": "#/components/schemas/VectorItem"}]}}),
]
ObservationsField = Annotated[
    list[Any], WithJsonSchema({"type": "array", "items": {"$ref": "#/components/schemas/TypedObject"}})
]
_EXAMPLE_SCHEMA = {"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/ExampleBody"}]}
ExamplesField = Annotated[list[Any], WithJsonSchema({"type": "array", "items": _EXAMPLE_SCHEMA})]
Degrees = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """Base of all bodies of requests: an unknown field is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class EncodedArray(Body):
    """An array: base64 of its bytes in C order, with shape and type."""

    data: str
    shape: list[Annotated[int, Field(ge=0)]]
    dtype: str = "float32"


class TypedObject(Body):
    """One measurement of one object. Image: `data` [bands, height, width] in nanomaggies per pixel, and `bands`.

    Spectrum: `data` [wavelengths] in 1e-17 erg/s/cm2/A, `wavelength` in angstrom (vacuum) and `inverse_variance`.
    Scalar: `data`, one number in the unit of its modality.
    """

    modality: str
    data: ArrayField
    shape: list[Annotated[int, Field(ge=0)]] | None = None
    """Needed where `data` is base64."""
    dtype: str = "float32"
    """Of base64 data: float16, float32, float64, int or uint of 8 to 64 bits, bool; little-endian."""
    unit: str | None = None
    """Where given, it must be the modality's unit: see /v1/modalities."""
    bands: list[str] | None = None
    wavelength: ArrayField = None
    inverse_variance: ArrayField = None
    """Images: without it, noise follows from the survey's depth."""
    mask: ArrayField = None
    """True = valid."""
    resolving_power: ArrayField = None
    psf_fwhm: ArrayField = None
    """Arcsec, one for each band."""
    depth: ArrayField = None
    """AB magnitude, 5 sigma, one for each band."""
    center: ArrayField = None
    """The object's row and column in pixels; without it, the middle."""
    error: ArrayField = None
    """Standard deviation of a scalar, or of each coefficient; NaN where unknown."""
    object_id: str | None = None
    ra: Degrees | None = None
    dec: Degrees | None = None


class ObjectItem(Body):
    """One object with any subset of modalities, each at most once."""

    observations: ObservationsField
    object_id: str | None = None
    ra: Degrees | None = None
    dec: Degrees | None = None


class StoredItem(Body):
    """An object of the index: the vector of one `modality`, or the normalised mean over those it has."""

    object_id: str
    modality: str | None = None


class EmbeddingRequest(Body):
    """A superset of OpenAI's request; each entry of `input` is one object."""

    input: ItemField
    model: str | None = None
    """The model's id, or `armillary` for whatever is served."""
    space: Literal["aligned", "encoder"] = "aligned"
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: float32, little-endian."""
    dimensions: int | None = None
    """Where given, it must be the size of the space: vectors are not shortened."""
    user: str | None = None
    """Ignored; OpenAI's clients may send it."""


class ConeBody(Body):
    """A circle on the sky, degrees, ICRS."""

    ra: Annotated[float, Field(ge=0, lt=360)]
    dec: Annotated[float, Field(ge=-90, le=90)]
    radius_deg: Annotated[float, Field(gt=0, le=180)]


class ExampleBody(Body):
    """An object, by exactly one of `vector`, `object_id` and `observations`."""

    vector: list[float] | str | None = None
    """Numbers, or base64 of float32."""
    object_id: str | None = None
    modality: str | None = None
    """With `object_id`: which of its vectors; without it, the normalised mean over those it has."""
    observations: ObservationsField | None = None


class QueryBody(ExampleBody):
    """What is looked for: exactly one of `vector`, `object_id` and `observations`."""

    target_modality: str | None = None
    """Only neighbours of this modality: `spectrum/desi` finds spectra for an image."""
    cone: ConeBody | None = None
    exclude: list[str] = []
    """Objects that are not wanted."""
    exclude_self: bool = True
    """Leave out the object that is asked about."""
    exact: bool = False
    """Compare every vector of a large index too."""


class SearchRequest(QueryBody):
    """The k nearest neighbours of a query, or what is like some examples and unlike others."""

    positive: ExamplesField | None = None
    """In place of `vector`, `object_id` and `observations`: what is looked for is like these."""
    negative: ExamplesField = []
    """With `positive`: and unlike these."""
    negative_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The query is mean(positive) - negative_weight * mean(negative), means of unit vectors (Rocchio 1971)."""
    cursor: str | None = None
    """`next_cursor` of an answer to the same request: the k neighbours after those. Empty: the first page."""
    k: Annotated[int, Field(ge=1)] = 10
    survey: str | None = None
    """Only neighbours seen by this survey, the part of a modality's name after the slash: `desi`."""
    where: dict[str, tuple[Degrees | None, Degrees | None]] = {}
    """Inclusive ranges of the index's metadata, null for an open end: `{"scalar/legacysurvey_r": [17, 19.5]}`."""
    include: list[Literal["labels"]] = []
    """`labels`: the known scalars of each neighbour."""


class PredictRequest(QueryBody):
    """The value of a property, from the labels of the nearest neighbours, by the model, or by a probe."""

    property: str
    """A label of the index, with method `model` a scalar that the model knows, such as `scalar/redshift`, with method
    `probe` the label of a probe that is served."""
    method: Literal["neighbours", "model", "probe"] = "neighbours"
    k: Annotated[int, Field(ge=1)] | None = None
    """Without it, as many as the calibrated predictor takes; with it, the intervals are not calibrated."""
    input: PredictedField = None
    """Several objects, in place of `vector`, `object_id` and `observations`: each entry is a measurement,
    `{observations}`, `{object_id}` or `{vector}`. A bad one fails alone."""


class Provenance(BaseModel):
    """What an answer was made with."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    index_id: str | None = None
    space: str | None = None
    metric: str | None = None


class EmbeddingDatum(BaseModel):
    """The vector of one entry of `input`; `embedding` is null and `error` says why where the entry was not usable."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None
    object_id: str | None = None
    modalities: list[str] = []
    error: dict[str, Any] | None = None


class EmbeddingAnswer(BaseModel):
    """OpenAI's answer and more. `usage` counts measurements as tokens."""

    object: Literal["list"] = "list"
    data: list[EmbeddingDatum]
    model: str
    usage: dict[str, int]
    provenance: Provenance


class NeighbourBody(BaseModel):
    """One neighbour; `similarity` is the cosine. Positions in degrees, ICRS, null where unknown."""

    object_id: str
    modality: str
    similarity: float
    ra: float | None
    dec: float | None
    labels: dict[str, float] | None = None


class SearchAnswer(BaseModel):
    """Neighbours, best first; equal ones by object id, then modality. `next_cursor` is null where no more are found."""

    neighbours: list[NeighbourBody]
    next_cursor: str | None = None
    provenance: Provenance


class BatchSearchAnswer(BaseModel):
    """For each vector or object of a body its neighbours, best first; none for an object that was not usable."""

    results: list[list[NeighbourBody]]
    errors: list[dict[str, Any]] = []
    """Problem documents of the objects that were not usable, with the place of each, `query`."""
    provenance: Provenance


class IntervalBody(BaseModel):
    """Bounds that hold the truth with probability `level`; null where too few objects are known to tell."""

    level: Annotated[float, Field(examples=list(LEVELS))]
    lower: float | None
    upper: float | None


class WeightedNeighbour(NeighbourBody):
    """A neighbour with its label and its share in the value."""

    label: float
    weight: float


class DistributionBody(BaseModel):
    """A probability for each bin; `low` and `high` bound the bins, in the property's unit."""

    low: list[float]
    high: list[float]
    probability: list[float]


class ClassSetBody(BaseModel):
    """Classes among which the true one is with probability `level`."""

    level: float
    classes: list[str]


class ClassesBody(BaseModel):
    """Calibrated probability of each class, and sets of classes."""

    probabilities: dict[str, float]
    sets: list[ClassSetBody]


class PredictAnswer(BaseModel):
    """A predicted value. `calibrated` tells whether the intervals were calibrated on held-out objects.

    `novelty` is the share of the objects known that lie as far out as this one, and `is_outside` whether it is so small
    (at most 1 %) that the value should not be relied on; null where that cannot be told. `k` is null and `neighbours`
    is empty with methods other than `neighbours`; `distribution` is of method `model`, `classes` of probes whose value
    is a class. `gallery` says by what neighbours were found: `rows`, the most similar vector of each object, or
    `objects`, the mean of its vectors, whose modalities are then joined by `+`.
    """

    method: Literal["neighbours", "model", "probe"]
    property: str
    value: float | str
    unit: str | None
    intervals: list[IntervalBody]
    calibrated: bool
    k: int | None
    gallery: Literal["rows", "objects"] | None = None
    neighbours: list[WeightedNeighbour]
    distribution: DistributionBody | None = None
    classes: ClassesBody | None = None
    novelty: float | None = None
    is_outside: bool | None = None
    provenance: Provenance


class ObjectAnswer(BaseModel):
    """What the index knows of an object."""

    object_id: str
    ra: float | None
    dec: float | None
    modalities: list[str]
    labels: dict[str, float]
    is_simulated: bool | None
    """By the record of a simulated sky in the server's dataset; null without one."""
    links: dict[str, str]
    """None for a simulated object: archives have another sky."""
    provenance: Provenance


class ErrorEntry(BaseModel):
    """One thing that is wrong, by JSON pointer into the body."""

    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """An error by RFC 9457, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[ErrorEntry] = []
    request_id: str | None = None


REQUEST_BODIES: tuple[type[BaseModel], ...] = (
    EncodedArray,
    TypedObject,
    ObjectItem,
    StoredItem,
    EmbeddingRequest,
    ExampleBody,
    SearchRequest,
    PredictRequest,
)
"""Read by hand, for their size; `app.py` adds their schemas to /openapi.json."""
