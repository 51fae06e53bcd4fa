"""Training the tokenizers: reconstruct the observations of a dataset."""

import contextlib
import hashlib
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.fabric import Fabric
from pydantic import Field, PositiveInt
from rich.progress import Progress
from torch import Tensor, nn

from ..data.dataset import ObservationDataset
from ..data.observation_loader import ObservationLoader
from ..data.observations import ImageObservation, Observation
from ..models.foundation import TOKENIZER_TYPES
from ..settings import Settings
from ..tokenizers.coefficients import CoefficientsTokenizerSettings
from ..tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from ..tokenizers.scalar import ScalarTokenizerSettings
from ..tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings
from ..tokenizers.token_grid import Reconstruction, Tokenizer
from .fitted_tokenizers import fit_coefficients, fit_scalars
from .loop import Batch, Finished, LoopSettings, leave, make_fabric, train
from .metrics_log import console
from .run_record import keep_settings

PRIOR_FOLDER = "prior"
"""In the run folder of an image tokenizer, `rounds-0003`: the tokenizer after so many rounds of learning its prior."""
MEMORY = 0.99
"""Share of the codes' counts that a step keeps: codes are dead that no recent token used."""


class PriorSettings(Settings):
    """How the image tokenizer learns what patches of the sky look like, before it is trained."""

    rounds: PositiveInt = 10
    batches: PositiveInt = 64
    """Batches of each round, over all modalities in turn."""
    patches: PositiveInt = 64
    """Most patches of a batch, of one process."""


class TrainTokenizerSettings(Settings):
    """Settings of `armillary train-tokenizer`. The sizes of the wanted `kind` are used."""

    kind: Literal["image", "spectrum", "coefficients", "scalar"]
    data: str
    """Dataset folder."""
    run: str
    """Run folder; the tokenizer is written to `<run>/tokenizer`."""
    modalities: tuple[str, ...] = ()
    """Modalities of the dataset to learn from; by default all of the kind."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no step may see."""
    balance: float = Field(default=0.5, ge=0, le=1)
    """How much of the steps a modality with many objects gets: equal shares at 0, all objects equally often at 1."""
    image: ImageTokenizerSettings = ImageTokenizerSettings()
    spectrum: SpectrumTokenizerSettings = SpectrumTokenizerSettings()
    coefficients: CoefficientsTokenizerSettings = CoefficientsTokenizerSettings()
    scalar: ScalarTokenizerSettings = ScalarTokenizerSettings()
    prior: PriorSettings = PriorSettings()
    loop: LoopSettings = LoopSettings()


class TokenizerObjective(nn.Module):
    """Reconstruction loss of a tokenizer; each step takes its objects from one modality."""

    def __init__(self, tokenizer: ImageTokenizer | SpectrumTokenizer, loader: ObservationLoader):
        super().__init__()
        self.tokenizer = tokenizer
        self.loader = loader
        self.fingerprint = loader.fingerprint
        self._code_counts: Tensor | None = None

    def batches(self, first_step: int) -> Generator[Observation, None, None]:
        """The objects of each step, of one modality."""
        self.loader.cursor = first_step
        with contextlib.closing(iter(self.loader)) as stream:
            yield from stream

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Loss times the number of objects, that number, and what the tokenizer reports, with the use of its codes."""
        observation: Any = batch.content
        made = self.tokenizer.loss(observation)
        count = torch.tensor(float(len(observation)), device=made.loss.device)
        values = {**made.parts, **self._watch_codes(made)}
        metrics = {name: torch.stack([value.detach() * count, count]) for name, value in values.items()}
        return made.loss * count, count, metrics

    def _watch_codes(self, made: Reconstruction) -> dict[str, Tensor]:
        """Share of the codes that recent tokens used, and the perplexity of their frequencies in codes."""
        if self._code_counts is None:
            self._code_counts = torch.zeros(self.tokenizer.num_learned_codes, device=made.codes.device)
        self._code_counts *= MEMORY
        self._code_counts.scatter_add_(0, made.codes.flatten(), made.mask.flatten().float())
        share = self._code_counts / self._code_counts.sum().clamp(min=1e-9)
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        return {"codes_used": (self._code_counts > 0.01).float().mean(), "code_perplexity": entropy.exp()}


def train_tokenizer(settings: TrainTokenizerSettings) -> Finished:
    """Train (or go on training) a tokenizer, and write it to `<run>/tokenizer`."""
    dataset = ObservationDataset(settings.data)
    names = settings.modalities or tuple(m.name for m in dataset.modalities if m.kind == settings.kind)
    if not names:
        raise ValueError(f"{settings.data}: no modality of kind {settings.kind}; it has {dataset.modalities}")
    held_out = set() if settings.held_out is None else set(Path(settings.held_out).read_text("utf-8").split())
    run = Path(settings.run)
    if settings.kind == "scalar":
        keep_settings(run, settings)
        fitted = fit_scalars(settings.scalar, dataset, names, held_out)
        fitted.save_pretrained(run / "tokenizer")
        return Finished(0, {"quantities": float(len(fitted.settings.modalities))})
    if settings.kind == "coefficients":
        keep_settings(run, settings)
        made = fit_coefficients(settings.coefficients, dataset, names, held_out)
        made.save_pretrained(run / "tokenizer")
        return Finished(0, {"tokens": float(1 + len(made.settings.levels))})
    fabric = make_fabric(settings.loop)
    loader = ObservationLoader(
        dataset,
        names,
        settings.loop.batch_size,
        settings.loop.seed,
        held_out=held_out,
        balance=settings.balance,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    torch.manual_seed(settings.loop.seed)
    tokenizer: ImageTokenizer | SpectrumTokenizer
    tokenizer = ImageTokenizer(settings.image) if settings.kind == "image" else SpectrumTokenizer(settings.spectrum)
    keep_settings(run, settings, fabric.global_rank)
    if isinstance(tokenizer, ImageTokenizer):
        tokenizer = _learn_prior(fabric, tokenizer, loader, settings.prior, run)
        torch.manual_seed(settings.loop.seed)
    objective = TokenizerObjective(tokenizer, loader)
    finished = train(fabric, objective, settings.loop, run, title=f"{settings.kind} tokenizer")
    if fabric.is_global_zero:
        tokenizer.save_pretrained(run / "tokenizer")
    leave(fabric)
    return finished


def load_tokenizers(folder: str | Path) -> dict[str, Tokenizer]:
    """The tokenizers in `folder`, by kind. Raises ValueError if there is none."""
    found: dict[str, Tokenizer] = {}
    for kind, tokenizer_type in TOKENIZER_TYPES.items():
        for place in (Path(folder) / kind / "tokenizer", Path(folder) / kind):
            if (place / "config.json").is_file():
                found[kind] = tokenizer_type.from_pretrained(place)
                break
    if not found:
        raise ValueError(f"{folder}: expected tokenizers in folders named {list(TOKENIZER_TYPES)}, found none")
    return found


def tokenizer_hash(tokenizer: Any) -> str:
    """A short hash of a tokenizer's settings and weights: two that agree make the same tokens."""
    digest = hashlib.sha256(tokenizer.settings.model_dump_json().encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _learn_prior(
    fabric: Fabric, tokenizer: ImageTokenizer, loader: ObservationLoader, settings: PriorSettings, run: Path
) -> ImageTokenizer:
    """The tokenizer with its prior learned; rounds that were done before are not done again."""
    saved = sorted((run / PRIOR_FOLDER).glob("rounds-*"))
    done = 0
    if saved:
        done = int(saved[-1].name.removeprefix("rounds-"))
        tokenizer = ImageTokenizer.from_pretrained(saved[-1]).train()
    tokenizer = tokenizer.to(fabric.device)
    total = tokenizer.num_prior_rounds(settings.rounds)
    if done == total:
        return tokenizer
    loader.cursor = done * settings.batches

    def add_up(sums: Tensor) -> None:
        if fabric.world_size > 1:
            dist.all_reduce(sums)

    with (
        Progress(console=console, disable=not fabric.is_global_zero) as progress,
        contextlib.closing(iter(loader)) as stream,
    ):
        task = progress.add_task("image prior", total=total, completed=done)
        images = cast(Iterator[ImageObservation], stream)
        rounds = tokenizer.learn_prior(images, settings.rounds, settings.batches, settings.patches, add_up, done)
        for number in rounds:
            if fabric.is_global_zero:
                tokenizer.save_pretrained(run / PRIOR_FOLDER / f"rounds-{number:04d}")
                shutil.rmtree(run / PRIOR_FOLDER / f"rounds-{number - 1:04d}", ignore_errors=True)
            progress.update(task, completed=number)
    fabric.barrier()
    return tokenizer
