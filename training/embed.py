"""`armillary embed`: a store of tokens becomes shards of embeddings, one row for each object and modality.

Scalars that are a view of the aligned space together (photometry) make one row, under the name of the view.

One process does all of it, or the processes of a Slurm job, such as one for each GPU, each do a part of the shards.
Killed at any point, the same command goes on with the shards that are missing.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from rich.progress import track

from ..data.modalities import Modality
from ..data.token_store import TokenStore
from ..models.alignment_views import embedded_rows, view_of
from ..models.embeddings import write_embedding_shard
from ..models.foundation import FoundationModel
from ..settings import Settings
from .array_parts import choose_device, choose_part
from .metrics_log import console
from .token_sources import check_tokens, read_grid


class EmbedSettings(Settings):
    """Settings of `armillary embed`."""

    checkpoint: str
    tokens: str
    """Token store."""
    embeddings: str
    """Folder of shards to write."""
    space: Literal["aligned", "encoder"] = "aligned"
    modalities: tuple[str, ...] = ()
    """Modalities to embed; by default all that the space has a view of."""
    shard_size: int = 2000
    """Objects of one shard."""
    device: str = "cpu"
    num_parts: PositiveInt | None = None
    """Into how many parts the shards are divided; by default the number of tasks of the Slurm array, or one."""
    part: NonNegativeInt | None = None
    """Which part this process does, from 0; by default the number of its task in the Slurm array."""


def embed(settings: EmbedSettings) -> int:
    """Embed this process's part of the shards; those that stand already are left alone. Returns the number written.

    An object whose value of a modality is missing has no row of it.

    Raises ValueError if the tokens are not the model's.
    """
    part, num_parts = choose_part(settings, os.environ)
    store = TokenStore(settings.tokens)
    model = FoundationModel.load(settings.checkpoint, choose_device(settings.device, os.environ))
    check_tokens(store, model.tokenizers)
    work = []
    for name, modalities in _chosen(settings, store, model).items():
        objects = np.flatnonzero(np.any([store.has(modality.name) for modality in modalities], 0))
        for index in range(0, -(-len(objects) // settings.shard_size)):
            path = Path(settings.embeddings) / f"{name.replace('/', '-')}-{index:05d}.parquet"
            shard = objects[index * settings.shard_size : (index + 1) * settings.shard_size]
            work.append((path, name, modalities, shard))
    # Dealt out before one looks which stand: tasks that start late must divide the same list.
    mine = [shard for shard in work[part::num_parts] if not shard[0].exists()]
    num_written = 0
    for path, name, modalities, objects in track(mine, description="embed", console=console):
        grids, is_known = [], np.zeros(len(objects), dtype=bool)
        for modality in modalities:
            grid, rows = read_grid(store, objects, modality)
            known = grid.mask.any(1)
            is_known[rows[known.numpy()]] = True
            if known.any():
                grids.append(grid.select(torch.nonzero(known)[:, 0]))
        if not grids:
            continue
        ids = store.object_ids(objects[is_known])
        embeddings = model.embed_grids(grids, settings.space, object_id=ids)
        sky = store.sky(objects[is_known])
        write_embedding_shard(
            path,
            embeddings.object_id,
            name,
            embeddings.vectors,
            model_id=model.model_id,
            space=settings.space,
            ra=sky[:, 0],
            dec=sky[:, 1],
        )
        num_written += 1
    return num_written


def _chosen(settings: EmbedSettings, store: TokenStore, model: FoundationModel) -> dict[str, list[Modality]]:
    """What becomes rows of the shards: their name, and the modalities of each."""
    names = [modality.name for modality in store.modalities]
    unknown = sorted(set(settings.modalities) - set(names))
    if unknown:
        raise ValueError(f"{store.folder}: no tokens of {unknown}; it holds {names}")
    chosen = [m for m in store.modalities if not settings.modalities or m.name in settings.modalities]
    if settings.space != "aligned" or model.head is None:
        return {modality.name: [modality] for modality in chosen}
    views = model.head.settings.views
    strange = [m.name for m in chosen if settings.modalities and view_of(views, m) is None]
    if strange:
        raise ValueError(f"modalities: the aligned space has no view of {strange}; its views are {dict(views)}")
    return embedded_rows(views, chosen)
