"""Settings of `armillary tokenizer-report`."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from ...settings import Settings


class TokenBudget(Settings):
    """One point of the token economy: tokenizers that were trained like the reported ones, with other settings."""

    label: str
    tokenizers: str
    """Folder with tokenizers, by kind; kinds that it lacks have no point."""


class HeldOutInstrument(Settings):
    """An instrument that the reported tokenizers never saw, and a control that did."""

    modality: str
    """Of the dataset."""
    tokenizers: str
    """Folder of tokenizers that never saw it."""
    control: str
    """Folder of tokenizers that were trained on it too, and otherwise alike."""
    mistaken_for: str | None = None
    """Of a spectrograph: the modality whose numbers are told instead. By default that of the dataset, or else of all,
    whose range differs most."""


class TokenizerReportSettings(Settings):
    """Settings of `armillary tokenizer-report`."""

    data: str
    """Dataset folder. Where it is simulated, reconstructions are compared with the noise-free truth as well."""
    tokenizers: str
    """Folder with the tokenizers, by kind."""
    report: str
    """Folder to write: report.json, report.md, images/*.png."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no tokenizer saw; only these are measured. By default, all."""
    modalities: tuple[str, ...] = ()
    """Modalities to measure; by default all for whose kind there is a tokenizer."""
    num_objects: PositiveInt = 2000
    """Objects measured of each modality, at most."""
    batch_size: PositiveInt = 32
    device: str = "cpu"
    """Where the tokenizers run."""
    source_sigma: PositiveFloat = 3.0
    """A pixel shows a source if its light without noise exceeds this many standard deviations of its noise."""
    bright_magnitude: float = 18.0
    """AB magnitude that parts bright sources from faint ones."""
    label_counts: tuple[PositiveInt, ...] = (100, 300)
    """Numbers of training labels of the redshift probes, besides all that there are."""
    baseline_objects: Annotated[int, Field(ge=0)] = 300
    """Objects that are not measured, from which principal components are computed as a baseline; 0 leaves it out."""
    baseline_data: str | None = None
    """Dataset of these objects; by default those of `data` that are not held out."""
    economy: tuple[TokenBudget, ...] = ()
    """Tokenizers of other budgets, for the curve of quality against tokens."""
    held_out_instruments: tuple[HeldOutInstrument, ...] = ()
    real_files: bool = True
    """Whether to reconstruct the real observations that ship with Armillary."""
    docs: str | None = None
    """A Markdown page to make as well, or to renew between its markers; pictures go to images/tokenizers beside it."""
