"""Pretraining: predict masked tokens from visible ones, over token stores."""

import contextlib
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.fabric import Fabric
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from ..data.modalities import Modality
from ..data.token_loader import TokenLoader, TokenSamples, TokenSource
from ..data.token_store import TokenStore, as_tensors
from ..models.foundation import FoundationModel, new_transformer
from ..models.masked_transformer import MaskedTransformer
from ..models.token_batch import TokenBatch
from ..models.width_transfer import WeightScaling
from ..settings import Settings, to_yaml
from ..tokenizers.token_grid import TokenGrid, Tokenizer
from .loop import Batch, Finished, LoopSettings, leave, make_fabric, train
from .mask_sampler import Scheme, draw_masks
from .records import describe_versions
from .tokenizers import load_tokenizers, tokenizer_hash


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
    num_inputs: int = 256
    num_targets: int = 128
    masks: Scheme = "even"
    """How inputs and targets are chosen (`training/mask_sampler.py`)."""
    modality_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a modality's tokens in the loss, one where not named."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no step may see."""
    loop: LoopSettings = LoopSettings()


class PretrainObjective(nn.Module):
    """Loss of the masked transformer over the samples of a loader whose batches are each of one source."""

    def __init__(self, transformer: MaskedTransformer, loader: TokenLoader, settings: PretrainSettings):
        super().__init__()
        self.transformer = transformer
        self.loader = loader
        self.settings = settings
        self.fingerprint = loader.fingerprint
        names = [modality.name for modality in loader.modalities]
        unknown = sorted(set(settings.modality_weights) - set(names))
        if unknown:
            raise ValueError(f"modality_weights names {unknown}; the tokens are of {names}")
        self.shapes = [batch_shape(source, names) for source in loader.sources]

    def weight_scalings(self) -> dict[str, WeightScaling]:
        """Those of the transformer, by the names that its weights have here."""
        return {f"transformer.{name}": scaling for name, scaling in self.transformer.weight_scalings().items()}

    def batches(self, first_step: int) -> Generator[tuple[int, TokenSamples], None, None]:
        """Number and samples of each step."""
        self.loader.cursor = first_step * self.loader.batch_size
        with contextlib.closing(iter(self.loader)) as stream:
            yield from enumerate(stream, first_step)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted sum of the token losses, sum of the weights, and nats by modality."""
        step, samples = batch.content
        columns, most = self.shapes[int(samples.sources[0])]
        names = [samples.modalities[column].name for column in columns]
        device, settings = self.transformer.device, self.settings
        tokens = token_batch(samples, columns, self.transformer.vocabulary_index, device)
        keys = samples.keys.to(device, non_blocking=True)
        budgets = min(settings.num_inputs, most), min(settings.num_targets, most)
        inputs, targets = draw_masks(tokens, keys, settings.loop.seed, step, *budgets, settings.masks)
        losses = self.transformer(inputs, targets).token_losses
        slot_weights = torch.tensor([settings.modality_weights.get(name, 1.0) for name in names], device=device)
        weights = slot_weights[targets.slots] * targets.mask
        metrics = {}
        for slot, name in enumerate(names):
            here = (targets.mask & (targets.slots == slot)).float()
            metrics[f"nats/{name}"] = torch.stack([(losses * here).sum(), here.sum()]).detach()
        return (losses * weights).sum(), weights.sum(), metrics


def batch_shape(source: TokenSource, names: Sequence[str]) -> tuple[list[int], int]:
    """Which of the modalities `names` objects of a source have, by place, and the most tokens that one of them has."""
    columns, counts = [], np.zeros(len(source.store), dtype=np.int64)
    for column, name in enumerate(names):
        if name in source.store.tokenizer_hashes:
            has = source.store.has(name) & (True if source.chosen is None else source.chosen)
            counts += has * source.store.num_tokens(name)
            if has.any():
                columns.append(column)
    return columns, int(counts.max())


def split_by_size(source: TokenSource, enough: int) -> list[TokenSource]:
    """A source as several, so that batches need little padding: in each, objects have as many tokens to within a factor
    of two. Objects with `enough` tokens or more need none."""
    counts = np.zeros(len(source.store), dtype=np.int64)
    for modality in source.store.modalities:
        counts += source.store.has(modality.name) * source.store.num_tokens(modality.name)
    sizes = np.ceil(np.log2(np.clip(counts, 1, enough))).astype(np.int64)
    chosen = (counts > 0) & (True if source.chosen is None else source.chosen)
    parts = [chosen & (sizes == size) for size in np.unique(sizes[chosen])]
    shares = [part.sum() / chosen.sum() for part in parts]
    return [
        TokenSource(source.store, part, None if source.weight is None else source.weight * float(share))
        for part, share in zip(parts, shares, strict=True)
    ] or [source]


def token_batch(
    samples: TokenSamples, columns: Sequence[int], vocabularies: Mapping[str, int], device: torch.device
) -> TokenBatch:
    """Samples of a loader as the transformer eats them, on `device`; the modalities in `columns` become the slots.

    What all objects share is moved once.
    """
    codes = torch.cat([samples.codes[column].to(device, non_blocking=True) for column in columns], 1)
    num_tokens = torch.tensor([samples.codes[column].shape[1] for column in columns])
    slots = torch.repeat_interleave(torch.arange(len(columns)), num_tokens).to(device)
    of_slots = [vocabularies[samples.modalities[column].vocabulary] for column in columns]
    return TokenBatch(
        codes=codes.clamp(min=0).long(),
        mask=codes >= 0,
        positions=_moved([samples.positions[column] for column in columns], device),
        slots=slots.expand(len(samples), -1),
        slot_vocabularies=torch.tensor(of_slots, device=device),
        instruments=_moved([samples.instrument[column][:, None] for column in columns], device),
    )


def _moved(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Tensors joined on `device`; if each is the same for all objects, its one row is moved and seen by all."""
    count = len(tensors[0])
    if all(tensor.stride(0) == 0 for tensor in tensors):
        tensors = [tensor[:1] for tensor in tensors]
    joined = torch.cat([tensor.to(device, non_blocking=True) for tensor in tensors], 1)
    return joined.expand(count, *joined.shape[1:])


def open_sources(
    tokens: str | Mapping[str, float], tokenizers: Mapping[str, Tokenizer], held_out: Collection[str]
) -> list[TokenSource]:
    """Token stores to draw from, without the objects `held_out`. Raises ValueError unless the tokenizers made them."""
    sources = []
    for folder, weight in tokens.items() if isinstance(tokens, Mapping) else [(tokens, None)]:
        store = TokenStore(folder)
        check_tokens(store, tokenizers)
        chosen = np.ones(len(store), dtype=bool)
        if held_out:
            found = store.find(sorted(held_out))
            chosen[found[found >= 0]] = False
        sources.append(TokenSource(store, chosen, weight))
    return sources


def make_loader(
    fabric: Fabric, sources: Sequence[TokenSource], settings: LoopSettings, modalities: Sequence[str] | None = None
) -> TokenLoader:
    """The loader of this process, of all modalities or these."""
    return TokenLoader(
        sources,
        settings.batch_size,
        settings.seed,
        modalities=modalities,
        mix="batches",
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
    )


def read_grid(
    store: TokenStore, objects: Int[np.ndarray, " B"], modality: Modality
) -> tuple[TokenGrid, Int[np.ndarray, " R"]]:
    """Tokens of those of `objects` that have the modality, and their places in `objects`."""
    rows = store.read(modality.name, objects)
    return TokenGrid(modality, tuple(store.object_ids(objects[rows.rows])), **as_tensors(rows)), rows.rows


def check_tokens(store: TokenStore, tokenizers: Mapping[str, Tokenizer]) -> None:
    """Raise ValueError unless these tokenizers made the store's tokens."""
    for modality in store.modalities:
        if modality.kind not in tokenizers:
            raise ValueError(f"{store.folder}: no tokenizer for {modality.name}; there are those of {list(tokenizers)}")
        expected, found = tokenizer_hash(tokenizers[modality.kind]), store.tokenizer_hashes[modality.name]
        if expected != found:
            raise ValueError(
                f"{store.folder}: tokens of {modality.name} were made by tokenizer {found}, expected {expected}"
            )


def read_ids(path: str | Path | None) -> set[str]:
    """Object ids of a file, one in a line; none without a file."""
    return set() if path is None else set(Path(path).read_text(encoding="utf-8").split())


def pretrain(settings: PretrainSettings) -> Finished:
    """Run (or go on with) pretraining; the checkpoint is written to `<run>/checkpoint` at the end."""
    tokenizers = load_tokenizers(settings.tokenizers)
    opened = open_sources(settings.tokens, tokenizers, read_ids(settings.held_out))
    enough = settings.num_inputs + settings.num_targets
    sources = [part for source in opened for part in split_by_size(source, enough)]
    fabric = make_fabric(settings.loop)
    loader = make_loader(fabric, sources, settings.loop)
    torch.manual_seed(settings.loop.seed)
    transformer = new_transformer(settings.size, tokenizers, loader.modalities, settings.base_size)
    objective = PretrainObjective(transformer, loader, settings)
    run = Path(settings.run)
    if fabric.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        (run / "settings.yaml").write_text(to_yaml(settings), encoding="utf-8")
    finished = train(fabric, objective, settings.loop, run, title="pretrain")
    if fabric.is_global_zero:
        record = {"pretrain": settings.model_dump(mode="json"), "metrics": finished.metrics, **describe_versions()}
        FoundationModel(tokenizers, transformer, loader.modalities, record=record).save(run / "checkpoint")
    leave(fabric)
    return finished
