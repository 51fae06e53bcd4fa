"""Pretraining: predict masked tokens from visible ones, over a token store."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from ..data.modalities import Modality
from ..data.token_store import TokenStore, as_tensors
from ..models.foundation import FoundationModel, new_transformer
from ..models.masked_transformer import MaskedTransformer
from ..models.token_batch import TokenBatch, join_grids
from ..settings import Settings, to_yaml
from ..tokenizers.token_grid import TokenGrid, Tokenizer
from .example_order import ExampleOrder
from .loop import Batch, Finished, LoopSettings, leave, make_fabric, train
from .mask_sampler import draw_masks
from .records import describe_versions
from .tokenizers import load_tokenizers, tokenizer_hash


class PretrainSettings(Settings):
    """Settings of `armillary pretrain`."""

    tokens: str
    """Token store."""
    tokenizers: str
    """Folder with the tokenizers that made it, by kind."""
    run: str
    """Run folder."""
    size: Literal["nano", "tiny", "base", "large", "xl"] = "nano"
    num_inputs: int = 256
    num_targets: int = 128
    modality_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a modality's tokens in the loss, one where not named."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no step may see."""
    loop: LoopSettings = LoopSettings()


class PretrainObjective(nn.Module):
    """Loss of the masked transformer over the objects of a token store."""

    def __init__(
        self, transformer: MaskedTransformer, store: TokenStore, settings: PretrainSettings, held_out: set[str]
    ):
        super().__init__()
        self.transformer = transformer
        self.store = store
        self.settings = settings
        unknown = sorted(set(settings.modality_weights) - {m.name for m in store.modalities})
        if unknown:
            raise ValueError(f"modality_weights names {unknown}; the store has {[m.name for m in store.modalities]}")
        has = np.stack([store.has(m.name) for m in store.modalities], 1)
        is_seen = has.any(1)
        excluded = store.find(sorted(held_out))
        is_seen[excluded[excluded >= 0]] = False
        if not is_seen.any():
            raise ValueError(f"{store.folder}: every one of its {len(store)} objects is held out")
        patterns, pattern_of = np.unique(has[is_seen], axis=0, return_inverse=True)
        seen = np.flatnonzero(is_seen)
        self.groups = [seen[pattern_of == index] for index in range(len(patterns))]
        self.modalities = [tuple(np.array(store.modalities, dtype=object)[pattern]) for pattern in patterns]
        self.order = ExampleOrder([len(group) for group in self.groups], settings.loop.seed)

    def prepare(self, step: int, rows: Int[np.ndarray, " B"]) -> tuple[TokenBatch, Tensor, Tensor, int, list[str]]:
        """All tokens of the objects of a step, which all have the same modalities; and what their masks need."""
        group = self.order.group(step)
        objects, modalities = self.groups[group][rows], self.modalities[group]
        batch = read_batch(self.store, objects, self.transformer.vocabulary_index, modalities)
        keys = torch.from_numpy(self.store.keys(objects))
        names = [modality.name for modality in modalities]
        weights = torch.tensor([self.settings.modality_weights.get(name, 1.0) for name in names])
        return batch, keys, weights, step, names

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted sum of the token losses, sum of the weights, and nats by modality."""
        tokens, keys, slot_weights, step, names = batch.content
        device = self.transformer.device
        tokens, keys = tokens.to(device), keys.to(device)
        seed = self.settings.loop.seed
        inputs, targets = draw_masks(tokens, keys, seed, step, self.settings.num_inputs, self.settings.num_targets)
        losses = self.transformer(inputs, targets).token_losses
        weights = slot_weights.to(device)[targets.slots] * targets.mask
        metrics = {}
        for slot, name in enumerate(names):
            here = (targets.mask & (targets.slots == slot)).float()
            metrics[f"nats/{name}"] = torch.stack([(losses * here).sum(), here.sum()]).detach()
        return (losses * weights).sum(), weights.sum(), metrics


def read_batch(
    store: TokenStore,
    objects: Int[np.ndarray, " B"],
    vocabularies: Mapping[str, int],
    modalities: tuple[Modality, ...] | None = None,
) -> TokenBatch:
    """All tokens of these objects (numbers in the store), one slot for each of `modalities`, by default all."""
    grids = []
    for modality in modalities or store.modalities:
        grid, rows = read_grid(store, objects, modality)
        # Named by their place in the batch: where one epoch ends and the next begins, an object may stand in it twice.
        grids.append(replace(grid, object_id=tuple(map(str, rows))))
    return join_grids(grids, vocabularies, [str(row) for row in range(len(objects))])[0]


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
    store = TokenStore(settings.tokens)
    tokenizers = load_tokenizers(settings.tokenizers)
    check_tokens(store, tokenizers)
    fabric = make_fabric(settings.loop)
    torch.manual_seed(settings.loop.seed)
    transformer = new_transformer(settings.size, tokenizers, store.modalities)
    objective = PretrainObjective(transformer, store, settings, read_ids(settings.held_out))
    run = Path(settings.run)
    if fabric.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        (run / "settings.yaml").write_text(to_yaml(settings), encoding="utf-8")
    finished = train(fabric, objective, settings.loop, run, title="pretrain")
    if fabric.is_global_zero:
        record = {"pretrain": settings.model_dump(mode="json"), "metrics": finished.metrics, **describe_versions()}
        FoundationModel(tokenizers, transformer, store.modalities, record=record).save(run / "checkpoint")
    leave(fabric)
    return finished
