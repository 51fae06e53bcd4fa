"""`armillary tokenize`: a dataset of observations becomes a store of tokens, shard by shard, and can be resumed."""

from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from ..data.dataset import ObservationDataset
from ..data.token_store import shard_path, write_token_shard
from ..settings import Settings
from ..tokenizers.token_grid import Tokenizer
from .loop import console
from .tokenizers import load_tokenizers, tokenizer_hash


class TokenizeSettings(Settings):
    """Settings of `armillary tokenize`."""

    data: str
    """Dataset folder."""
    tokenizers: str
    """Folder with the tokenizers, by kind."""
    tokens: str
    """Token store to write."""
    modalities: tuple[str, ...] = ()
    """Modalities to tokenize; by default all for whose kind there is a tokenizer."""
    shard_size: int = 2000
    """Objects of one shard."""
    batch_size: int = 100


def tokenize(settings: TokenizeSettings) -> int:
    """Tokenize a dataset; shards that stand already are left alone. Returns the number of shards written."""
    dataset = ObservationDataset(settings.data)
    tokenizers = load_tokenizers(settings.tokenizers)
    known = [m for m in dataset.modalities if m.kind in tokenizers]
    chosen = [m for m in known if not settings.modalities or m.name in settings.modalities]
    unknown = sorted(set(settings.modalities) - {m.name for m in chosen})
    if unknown:
        raise ValueError(f"no data or no tokenizer for {unknown}; there are both for {[m.name for m in known]}")
    work = []
    for modality in chosen:
        ids = dataset.object_ids(modality.name)
        for index in range(0, -(-len(ids) // settings.shard_size)):
            if not shard_path(settings.tokens, modality, index).exists():
                work.append((modality, index, ids[index * settings.shard_size : (index + 1) * settings.shard_size]))
    for modality, index, ids in track(work, description="tokenize", console=console):
        arrays = _encode(dataset, tokenizers[modality.kind], modality.name, ids, settings.batch_size)
        found = tokenizer_hash(tokenizers[modality.kind])
        write_token_shard(Path(settings.tokens), modality, index, ids, arrays, found)
    return len(work)


def _encode(
    dataset: ObservationDataset, tokenizer: Tokenizer, name: str, ids: list[str], batch_size: int
) -> dict[str, np.ndarray]:
    grids, sky = [], []
    for start in range(0, len(ids), batch_size):
        observation = dataset.read(name, ids[start : start + batch_size])
        grids.append(tokenizer.encode(observation))
        sky.append(torch.stack([observation.ra, observation.dec], 1).numpy())
    sizes = {grid.num_tokens for grid in grids}
    if len(sizes) > 1:
        raise ValueError(f"{dataset.folder}: {name} gives {sorted(sizes)} tokens; one shard needs images of one size")
    fields = ("codes", "mask", "positions", "instrument")
    arrays = {field: torch.cat([getattr(grid, field) for grid in grids]).numpy() for field in fields}
    return {**arrays, "sky": np.concatenate(sky)}
