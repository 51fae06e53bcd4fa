"""Settings of the demo: small sizes, so that the whole house runs in minutes on two cores."""

from ..data.simulation.sky import SkySettings
from ..models.alignment_views import Views, parse_views
from ..settings import Settings
from ..tokenizers.image import ImageTokenizerSettings
from ..tokenizers.scalar import ScalarTokenizerSettings
from ..tokenizers.spectrum import SpectrumTokenizerSettings
from ..training.loop import LoopSettings
from ..training.tokenizers import PriorSettings


class SplitSettings(Settings):
    """What trains, chooses and tests, by region of the sky (`data/sky_split.py`)."""

    order: int
    """HEALPix order of the regions."""
    test: float
    validation: float
    """Shares of the regions."""
    seed: int


class TokenizersSettings(Settings):
    """The three tokenizers, and how long the two that learn by gradient do."""

    image: ImageTokenizerSettings
    image_prior: PriorSettings
    image_loop: LoopSettings
    spectrum: SpectrumTokenizerSettings
    spectrum_loop: LoopSettings
    scalar: ScalarTokenizerSettings


class PretrainStageSettings(Settings):
    """Pretraining of the demo."""

    size: str
    num_inputs: int
    num_targets: int
    modality_weights: dict[str, float]
    loop: LoopSettings


class AlignStageSettings(Settings):
    """Alignment of the demo."""

    views: Views = parse_views(["image", "spectrum"])
    across_surveys: float = 0.5
    turns: int = 1
    validate_every: int = 50
    aligned_width: int
    num_blocks: int
    num_tokens: int
    loop: LoopSettings


class GenerationStageSettings(Settings):
    """Spectra that the demo generates from images."""

    num_objects: int
    num_samples: int
    num_stages: int


class DemoSettings(Settings):
    """All of the demo; `configs/demo.yaml`."""

    sky: SkySettings
    split: SplitSettings
    tokenizers: TokenizersSettings
    pretrain: PretrainStageSettings
    align: AlignStageSettings
    generation: GenerationStageSettings
    supervised_steps: int
    """Steps of the supervised network that the zero-shot redshifts are compared with."""
