"""Training the tokenizers: reconstruct the observations of a dataset."""

import contextlib
import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.dataset import ObservationDataset
from ..data.observation_loader import ObservationLoader
from ..data.observations import Observation
from ..models.foundation import TOKENIZER_TYPES
from ..settings import Settings, to_yaml
from ..tokenizers.coefficients import CoefficientsTokenizerSettings
from ..tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from ..tokenizers.scalar import ScalarTokenizerSettings
from ..tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings
from ..tokenizers.token_grid import Tokenizer
from .fitted_tokenizers import fit_coefficients, fit_scalars
from .loop import Batch, Finished, LoopSettings, leave, make_fabric, train


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
    image: ImageTokenizerSettings = ImageTokenizerSettings()
    spectrum: SpectrumTokenizerSettings = SpectrumTokenizerSettings()
    coefficients: CoefficientsTokenizerSettings = CoefficientsTokenizerSettings()
    scalar: ScalarTokenizerSettings = ScalarTokenizerSettings()
    loop: LoopSettings = LoopSettings()


class TokenizerObjective(nn.Module):
    """Reconstruction loss of a tokenizer; each step takes its objects from one modality, in turn."""

    def __init__(self, tokenizer: ImageTokenizer | SpectrumTokenizer, loader: ObservationLoader):
        super().__init__()
        self.tokenizer = tokenizer
        self.loader = loader
        self.fingerprint = loader.fingerprint

    def batches(self, first_step: int) -> Generator[Observation, None, None]:
        """The objects of each step, of one modality."""
        self.loader.cursor = first_step
        with contextlib.closing(iter(self.loader)) as stream:
            yield from stream

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Loss times the number of objects, that number, and the loss by modality."""
        observation: Any = batch.content
        loss = self.tokenizer.loss(observation)
        count = torch.tensor(float(len(observation)), device=loss.device)
        metrics = {f"loss/{observation.modality.name}": torch.stack([loss.detach() * count, count])}
        return loss * count, count, metrics


def train_tokenizer(settings: TrainTokenizerSettings) -> Finished:
    """Train (or go on training) a tokenizer, and write it to `<run>/tokenizer`."""
    dataset = ObservationDataset(settings.data)
    names = settings.modalities or tuple(m.name for m in dataset.modalities if m.kind == settings.kind)
    if not names:
        raise ValueError(f"{settings.data}: no modality of kind {settings.kind}; it has {dataset.modalities}")
    held_out = set() if settings.held_out is None else set(Path(settings.held_out).read_text("utf-8").split())
    run = Path(settings.run)
    if settings.kind == "scalar":
        _write_settings(run, settings)
        fitted = fit_scalars(settings.scalar, dataset, names, held_out)
        fitted.save_pretrained(run / "tokenizer")
        return Finished(0, {"quantities": float(len(fitted.settings.modalities))})
    if settings.kind == "coefficients":
        _write_settings(run, settings)
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
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    torch.manual_seed(settings.loop.seed)
    tokenizer: ImageTokenizer | SpectrumTokenizer
    tokenizer = ImageTokenizer(settings.image) if settings.kind == "image" else SpectrumTokenizer(settings.spectrum)
    if fabric.is_global_zero:
        _write_settings(run, settings)
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


def _write_settings(run: Path, settings: Settings) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "settings.yaml").write_text(to_yaml(settings), encoding="utf-8")
