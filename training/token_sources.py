"""Where training's tokens come from: stores that these tokenizers made, a loader, and batches on the device."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from lightning.fabric import Fabric
from torch import Tensor

from ..data.modalities import Modality
from ..data.token_loader import TokenLoader, TokenSamples, TokenSource
from ..data.token_store import TokenStore, as_tensors
from ..models.token_batch import TokenBatch
from ..tokenizers.token_grid import TokenGrid, Tokenizer
from .loop import LoopSettings
from .tokenizers import tokenizer_hash

LEAST_TOKENS = 64
"""Of an object, with padding: batches of few tokens then have one shape."""


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
    samples: TokenSamples,
    columns: Sequence[int],
    vocabularies: Mapping[str, int],
    least: int = LEAST_TOKENS,
) -> TokenBatch:
    """Samples of a loader as the transformer eats them; the modalities in `columns` become the slots.

    An object has a small part of the tokens there is room for in a store: the valid ones come first, and the rest is
    left out, down to a power of two or `least` tokens, so that there are few shapes. All work is numpy's: an operation
    of torch in a thread beside the step may start a second team of OpenMP's threads, which wait by spinning.
    """
    stored = [samples.codes[column] for column in columns]
    edges = np.cumsum([0, *(codes.shape[1] for codes in stored)])
    codes = np.concatenate([codes.numpy() for codes in stored], 1)
    rows, places = np.nonzero(codes >= 0)
    counts = np.bincount(rows, minlength=len(codes))
    size = min(codes.shape[1], max(least, 1 << (int(counts.max(initial=1)) - 1).bit_length()))
    mask = np.arange(size) < counts[:, None]
    positions = np.empty((len(rows), samples.positions[columns[0]].shape[-1]), np.float32)
    owners = np.searchsorted(edges, places, side="right") - 1
    for slot, column in enumerate(columns):
        here, of_slot = owners == slot, samples.positions[column]
        if of_slot.stride(0) == 0:  # shared by all objects
            positions[here] = of_slot[0].numpy()[places[here] - edges[slot]]
        else:
            positions[here] = of_slot.numpy()[rows[here], places[here] - edges[slot]]

    def packed(values: np.ndarray) -> Tensor:
        found = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
        found[mask] = values
        return torch.from_numpy(found)

    of_slots = np.array([vocabularies[samples.modalities[column].vocabulary] for column in columns])
    return TokenBatch(
        codes=packed(codes[rows, places].astype(np.int64)),
        mask=torch.from_numpy(mask),
        positions=packed(positions),
        slots=packed(owners),
        slot_vocabularies=torch.from_numpy(of_slots),
        instruments=torch.from_numpy(np.stack([samples.instrument[column].numpy() for column in columns], 1)),
        valid_first=True,
        places=packed(places),
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a GPU copies it out of pinned memory, beside its other work."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
