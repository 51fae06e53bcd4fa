"""Bodies of `POST /v1/generate`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .common import ArrayField, Body, DistributionBody, EncodedArray, IntervalBody, ObservationsField, Provenance

MAX_SAMPLES = 64
MAX_SEED = 2**31 - 1


class GenerateRequest(Body):
    """What another modality of an object may look like, given what was observed of it."""

    observations: ObservationsField
    """Of one object. Those of the target itself are not used."""
    target: str
    """A modality that the model was trained on: see /v1/models."""
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    """Of images, spectra and coefficients; of a scalar the whole distribution comes."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Equal seeds give equal samples."""
    order: Literal["random", "maskgit"] = "maskgit"
    """`random` is true to the model's own distribution, `maskgit` draws likely samples more often."""
    num_stages: Annotated[int, Field(ge=1, le=64)] = 8
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    image_size: Annotated[int | None, Field(ge=8)] = None
    """Pixels to a side; needed where the target is an image."""
    wavelength: ArrayField = None
    """Angstrom, increasing: where spectra are wanted; by default the instrument's own grid."""


class SampleInterval(BaseModel):
    """Bounds that hold another sample with probability `level`, pixel by pixel; of the signal, without noise."""

    level: float
    lower: EncodedArray
    upper: EncodedArray


class GenerateAnswer(BaseModel):
    """Samples, or of a scalar its distribution (`value` is the median, `intervals` are central, not calibrated).

    `samples` has shape [samples, bands, height, width] (image), [samples, wavelengths] or [samples, coefficients], in
    the unit of the modality, `mask` and `mean` the same without the first axis. `wavelength` is in angstrom.
    """

    model_config = ConfigDict(protected_namespaces=())

    target: str
    kind: Literal["image", "spectrum", "coefficients", "scalar"]
    unit: str
    num_samples: int
    seed: int
    samples: EncodedArray | None = None
    mask: EncodedArray | None = None
    mean: EncodedArray | None = None
    interval: SampleInterval | None = None
    bands: list[str] | None = None
    wavelength: EncodedArray | None = None
    value: float | None = None
    intervals: list[IntervalBody] = []
    distribution: DistributionBody | None = None
    provenance: Provenance
