"""Pretraining: predict masked tokens from visible ones, over token stores."""

from pathlib import Path
from typing import Literal

import torch
from lightning.fabric import Fabric
from pydantic import Field, PositiveFloat, PositiveInt

from ..data.staging import stage_tokens
from ..data.token_loader import TokenLoader
from ..models.foundation import FoundationModel, new_transformer
from ..models.masked_transformer import MaskedTransformer
from ..settings import Settings
from .loop import Finished, LoopSettings, leave, make_fabric, train
from .mask_sampler import Scheme
from .pretrain_objective import PretrainObjective
from .records import describe_versions
from .run_record import keep_settings
from .sharding import whole
from .token_sources import make_loader, open_sources, read_ids, split_by_size
from .tokenizers import load_tokenizers


class PretrainSettings(Settings):
    """Settings of `armillary pretrain`."""

    tokens: str | dict[str, PositiveFloat]
    """Token store; or several, each with its weight: its share of the samples, relative to the others."""
    tokenizers: str
    """Folder with the tokenizers that made it, by kind."""
    run: str
    """Run folder."""
    size: Literal["nano", "tiny", "base", "large", "xl"] = "nano"
    base_size: Literal["nano", "tiny", "base", "large", "xl"] | None = None
    """Size at which the learning rate was found, by default `size` (`models/width_transfer.py`)."""
    num_inputs: PositiveInt = 256
    num_targets: PositiveInt = 128
    masks: Scheme = "even"
    """How inputs and targets are chosen (`training/mask_sampler.py`)."""
    modality_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a modality's tokens in the loss, one where not named."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the step as one graph: pays on GPUs, and on CPUs in runs of an hour or more; auto: on GPUs."""
    checkpoint_activations: bool = False
    """Keep no activations within blocks, and work them out again: less memory, a third more time."""
    stage_tokens: str | None = None
    """A folder on a disk of each node, to which tokens are copied before they are read (`data/staging.py`); it may hold
    environment variables: $TMPDIR/tokens."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no step may see."""
    loop: LoopSettings = LoopSettings()


def make_objective(
    transformer: MaskedTransformer, loader: TokenLoader, settings: PretrainSettings, fabric: Fabric
) -> PretrainObjective:
    """The objective as the settings say."""
    if settings.checkpoint_activations:
        transformer.gradient_checkpointing = True
    is_sharded = settings.loop.strategy == "fsdp"
    if is_sharded and settings.compile == "always":
        raise ValueError("compile: always makes one graph of a step, which loop.strategy: fsdp cuts; expected auto")
    on_gpu = fabric.device.type == "cuda" and not is_sharded
    wanted = {"always": True, "never": False, "auto": on_gpu}[settings.compile]
    return PretrainObjective(
        transformer,
        loader,
        settings.num_inputs,
        settings.num_targets,
        settings.masks,
        settings.modality_weights,
        settings.loop.seed,
        compiled=wanted,
    )


def pretrain(settings: PretrainSettings) -> Finished:
    """Run (or go on with) pretraining; the checkpoint is written to `<run>/checkpoint` at the end."""
    tokenizers = load_tokenizers(settings.tokenizers)
    opened = open_sources(stage_tokens(settings.tokens, settings.stage_tokens), tokenizers, read_ids(settings.held_out))
    enough = settings.num_inputs + settings.num_targets
    sources = [part for source in opened for part in split_by_size(source, enough)]
    fabric = make_fabric(settings.loop, can_divide=True)
    loader = make_loader(fabric, sources, settings.loop)
    torch.manual_seed(settings.loop.seed)
    transformer = new_transformer(settings.size, tokenizers, loader.modalities, settings.base_size)
    objective = make_objective(transformer, loader, settings, fabric)
    run = Path(settings.run)
    keep_settings(run, settings, fabric.global_rank)
    finished = train(fabric, objective, settings.loop, run, title="pretrain")
    if settings.loop.strategy == "fsdp":
        weights = {name: whole(tensor).cpu() for name, tensor in transformer.state_dict().items()}
        transformer = new_transformer(settings.size, tokenizers, loader.modalities, settings.base_size)
        transformer.load_state_dict(weights)
    if fabric.is_global_zero:
        record = {"pretrain": settings.model_dump(mode="json"), "metrics": finished.metrics, **describe_versions()}
        FoundationModel(tokenizers, transformer, loader.modalities, record=record).save(run / "checkpoint")
    leave(fabric)
    return finished
