"""Alignment: a contrastive head on the frozen encoder brings views of the same object together."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.fabric import Fabric
from pydantic import Field
from torch import Tensor, nn

from ..data.staging import stage_tokens
from ..data.token_loader import TokenLoader, TokenSamples, TokenSource
from ..models.alignment import AlignmentHead, AlignmentHeadSettings, info_nce
from ..models.foundation import FoundationModel
from ..models.hashed_numbers import hashed_uniform
from ..models.token_batch import TokenBatch
from ..settings import Settings
from .loop import Batch, Finished, LoopSettings, leave, make_fabric, train
from .mask_sampler import places_of, smallest
from .records import describe_versions
from .run_record import keep_settings
from .token_sources import make_loader, open_sources, read_ids, token_batch


class AlignSettings(Settings):
    """Settings of `armillary align`."""

    checkpoint: str
    """Checkpoint of a pretrained model."""
    tokens: str
    run: str
    """Run folder; the aligned checkpoint is written to `<run>/checkpoint`."""
    views: tuple[str, str] = ("image", "spectrum")
    """The two kinds of view that are brought together."""
    aligned_width: int = 64
    num_blocks: int = 1
    num_tokens: int = Field(default=64, ge=1)
    """Tokens of a view that a step sees, drawn anew each time: an object never looks the same twice."""
    stage_tokens: str | None = None
    """A folder on a disk of each node, to which tokens are copied before they are read (`data/staging.py`); it may hold
    environment variables: $TMPDIR/tokens."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no step may see."""
    loop: LoopSettings = LoopSettings()


class AlignObjective(nn.Module):
    """InfoNCE between two views of each object; each step takes one survey of each view, and some of its tokens."""

    def __init__(self, model: FoundationModel, head: AlignmentHead, loader: TokenLoader, settings: AlignSettings):
        super().__init__()
        self.head = head
        self.loader = loader
        self.settings = settings
        self.fingerprint = loader.fingerprint
        # In a list, so that the frozen transformer is neither trained nor saved with the state of the run.
        self._frozen = [model.transformer.eval().requires_grad_(False)]

    def batches(self, first_step: int) -> Generator[tuple[int, TokenSamples], None, None]:
        """Number and samples of each step."""
        self.loader.cursor = first_step * self.loader.batch_size
        with contextlib.closing(iter(self.loader)) as stream:
            yield from enumerate(stream, first_step)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Summed InfoNCE, the number of pairs, and how often the partner is the nearest of this process's batch."""
        step, samples = batch.content
        device, vocabularies = self._frozen[0].device, self._frozen[0].vocabulary_index
        keys, seed = samples.keys.to(device, non_blocking=True), self.settings.loop.seed
        vectors = []
        for index, view in enumerate(self.settings.views):
            columns = [i for i, modality in enumerate(samples.modalities) if modality.kind == view]
            tokens = token_batch(samples, columns, vocabularies, self.settings.num_tokens).to(device)
            drawn = draw_view(tokens, keys, seed, 2 * step + index, self.settings.num_tokens)
            with torch.no_grad():
                encoded = self._frozen[0].encode(drawn)
            vectors.append(self.head(view, encoded, drawn.mask))
        first, second = vectors
        count = torch.tensor(float(len(first)), device=device)
        nearest = (first @ second.T).argmax(1) == torch.arange(len(first), device=device)
        metrics = {
            "recall@1": torch.stack([nearest.sum(), count]),
            "scale": torch.stack([self.head.scale(), count / count]),
        }
        loss = info_nce(first, second, self.head.scale())
        return loss, count, {name: value.detach() for name, value in metrics.items()}


def draw_view(tokens: TokenBatch, keys: Int[Tensor, " B"], seed: int, step: int, num_tokens: int) -> TokenBatch:
    """`num_tokens` tokens of one survey of each object, both drawn at random."""
    num_slots = len(tokens.slot_vocabularies)
    slots = torch.arange(num_slots, device=tokens.codes.device)
    present = ((tokens.slots[:, None] == slots[:, None]) & tokens.mask[:, None]).any(2)
    chance = torch.where(present, hashed_uniform(keys, num_slots, seed, step, stream=5), 2.0)
    seen = tokens.mask & (tokens.slots == chance.argmin(1, keepdim=True))
    order = torch.where(seen, hashed_uniform(keys, places_of(tokens), seed, step, stream=6), torch.inf)
    return tokens.take(*smallest(order, num_tokens), valid_first=True)


def pair_loader(fabric: Fabric, source: TokenSource, settings: AlignSettings) -> TokenLoader:
    """The loader of objects with both views, in the modalities of the views that any of them has.

    Raises ValueError if there are not two of them.
    """
    store, chosen = source.store, source.chosen
    assert chosen is not None  # open_sources always says
    of_views = [[m.name for m in store.modalities if m.kind == view] for view in settings.views]
    for names in of_views:
        chosen = chosen & np.any([np.zeros(len(store), dtype=bool), *(store.has(name) for name in names)], 0)
    if chosen.sum() < 2:
        raise ValueError(f"{store.folder}: expected objects with views of {settings.views}, found {chosen.sum()}")
    names = [name for of_view in of_views for name in of_view if store.has(name)[chosen].any()]
    return make_loader(fabric, [TokenSource(store, chosen)], settings.loop, names)


def align(settings: AlignSettings) -> Finished:
    """Run (or go on with) alignment; the checkpoint with the head is written to `<run>/checkpoint`."""
    model = FoundationModel.load(settings.checkpoint)
    sources = open_sources(
        stage_tokens(settings.tokens, settings.stage_tokens), model.tokenizers, read_ids(settings.held_out)
    )
    fabric = make_fabric(settings.loop)
    loader = pair_loader(fabric, sources[0], settings)
    torch.manual_seed(settings.loop.seed)
    head = AlignmentHead(
        AlignmentHeadSettings(
            input_width=model.transformer.config.width,
            aligned_width=settings.aligned_width,
            num_heads=model.transformer.config.num_heads,
            num_blocks=settings.num_blocks,
            views=settings.views,
        )
    )
    model.transformer.to(fabric.device)
    objective = AlignObjective(model, head, loader, settings)
    run = Path(settings.run)
    keep_settings(run, settings, fabric.global_rank)
    finished = train(fabric, objective, settings.loop, run, title="align")
    if fabric.is_global_zero:
        record: dict[str, Any] = {"align": settings.model_dump(mode="json"), "align_metrics": finished.metrics}
        model.head, model.record = head, {**model.record, **record, **describe_versions()}
        model.save(run / "checkpoint")
    leave(fabric)
    return finished
