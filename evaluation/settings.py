"""Settings of `armillary evaluate`: which model, which objects, which labels, and how much of a supervised rival."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ..data.observations import NUM_TURNS
from ..settings import Settings

REDSHIFT = "scalar/redshift"
PHOTOMETRY = "photometry"
"""Word of a subset that stands for all modalities in `photometry`."""


class SupervisedSettings(Settings):
    """The supervised network: a ResNet-18 trained from nothing on the same images, labels and validation objects."""

    modality: str = "image/legacysurvey"
    """Whose images it sees; our side of the comparison sees the same ones."""
    labels: tuple[str, ...] = (REDSHIFT,)
    """One network for each."""
    label_counts: tuple[PositiveInt, ...] = (100, 1000)
    """Numbers of labels it is trained on, besides all of them."""
    seeds: PositiveInt = 1
    """Networks for each number of labels."""
    epochs: PositiveFloat = 15.0
    min_steps: PositiveInt = 200
    max_steps: PositiveInt = 3000
    """Steps are `epochs` over the labels, but no fewer than `min_steps` and no more than `max_steps`."""
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    weight_decay: float = 0.05
    stem_stride: Literal[1, 2, 4] = 4
    """By how much the first layer shrinks the image; 4 is the network as published. See `resnet.py`."""
    num_validations: PositiveInt = 12
    """How often the validation objects are looked at in one training; the best state is kept."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """`auto`: bf16 where the processor multiplies it, else float32."""


class EvaluateSettings(Settings):
    """Settings of `armillary evaluate`."""

    checkpoint: str
    data: str
    """Dataset of observations and labels."""
    tokens: str
    """Token store that the checkpoint's tokenizers made of `data`."""
    parts: str
    """Folder of train.txt, validation.txt and test.txt: object ids, one in a line."""
    output: str
    """Folder of the report."""
    embeddings: tuple[str, ...] = ()
    """Folders of embedding shards of this model, which then are not computed again."""
    simulated_prefix: str = "sim-"
    """Ids of simulated objects begin so. Where there are any, all sections but that of real galaxies are of them."""
    num_train: PositiveInt | None = None
    num_validation: PositiveInt | None = None
    num_test: PositiveInt | None = None
    """Most objects of a part, drawn at random; by default all."""

    labels: tuple[str, ...] = (REDSHIFT, "scalar/stellar_mass", "scalar/specific_star_formation_rate")
    photometry: tuple[str, ...] = ("scalar/legacysurvey_g", "scalar/legacysurvey_r", "scalar/legacysurvey_z")
    magnitude: str = "scalar/legacysurvey_r"
    """By which strata of brightness are cut."""
    subsets: tuple[str, ...] = (
        PHOTOMETRY,
        "image/legacysurvey",
        "image/hsc",
        "spectrum/desi",
        "image/legacysurvey+photometry",
        "image/legacysurvey+spectrum/desi",
    )
    """From what labels are predicted: names of modalities joined by +."""
    surveys: tuple[str, ...] | None = None
    """Images and spectra for retrieval and transfer; by default all that each of the simulated objects has."""
    real_photometry: tuple[str, ...] = (
        *(f"scalar/sdss_{band}" for band in "ugriz"),
        *(f"scalar/twomass_{band}" for band in "jhk"),
    )
    """Magnitudes of real galaxies; those that the dataset does not hold are left out."""

    label_counts: tuple[PositiveInt, ...] = (10, 30, 100, 300, 1000, 3000)
    """Numbers of labels of the label-efficiency curves, besides all of them."""
    seeds: PositiveInt = 5
    """Draws of each number of labels."""
    num_strata: PositiveInt = 3
    num_bootstrap: PositiveInt = 1000
    num_distributions: NonNegativeInt = 2000
    """Test objects for which the model's own distribution of a label is asked; 0 asks for none."""
    num_light: PositiveInt = 2000
    """Training objects from which retrieval's baseline learns how brightness here follows from brightness there."""
    supervised: SupervisedSettings | None = Field(default_factory=SupervisedSettings)
    """None trains no network."""

    device: str = "cpu"
    turns: int = Field(default=1, ge=1, le=NUM_TURNS)
    """The vector of an image is the mean over so many of the ways in which it may lie; tokenize with as many."""
    batch_size: PositiveInt = 128
    """Objects that the model encodes at once."""
