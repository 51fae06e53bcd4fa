"""`armillary tokenize`: a dataset of observations becomes a store of tokens, shard by shard.

One process does all of it, or the tasks of a Slurm array each do a part; they agree on the shards by computing the same
plan, and never wait for each other. Killed at any point, the same command goes on with the shards that are missing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from rich.progress import Progress

from ..data.dataset import ObservationDataset
from ..data.modalities import Modality
from ..data.observations import NUM_TURNS, ImageObservation
from ..data.token_manifest import finish_store, missing_shards, read_manifest
from ..data.token_plan import PlannedShard, plan_shards
from ..data.token_shards import (
    OBJECTS,
    TokenStoreError,
    check_shard,
    open_object_shard,
    open_token_shard,
    shard_path,
    write_object_shard,
    write_token_shard,
)
from ..data.token_store import TokenStore
from ..data.turned_tokens import turned_folder
from ..settings import Settings
from ..tokenizers.token_grid import Tokenizer
from .array_parts import choose_device, choose_part
from .metrics_log import console
from .tokenizers import load_tokenizers, tokenizer_hash

_NO_TOKENS = {"codes": np.empty((0, 0), np.int16), "mask": np.empty((0, 0), bool)}


class TokenizeSettings(Settings):
    """Settings of `armillary tokenize`."""

    data: str
    """Dataset folder."""
    tokenizers: str
    """Folder with the tokenizers, by kind."""
    tokens: str
    """Token store to write, or to add to."""
    modalities: tuple[str, ...] = ()
    """Modalities to tokenize; by default all for whose kind there is a tokenizer."""
    turns: int = Field(default=1, ge=1, le=NUM_TURNS)
    """In how many ways images are tokenized: as they are, and turned by 90, 180 and 270 degrees, and the same mirrored;
    each way but the first to a store of its own below `tokens` (`data/turned_tokens.py`)."""
    shard_size: PositiveInt = 16_384
    """Objects of one shard. A process that is killed loses one shard of one modality at most."""
    batch_size: PositiveInt = 100
    device: str = "cpu"
    """Where the tokenizers run: cpu, cuda, cuda:1, ..."""
    num_parts: PositiveInt | None = None
    """Into how many parts the work is divided; by default the number of tasks of the Slurm array, or one."""
    part: NonNegativeInt | None = None
    """Which part this process does, from 0; by default the number of its task in the Slurm array."""


def tokenize(settings: TokenizeSettings) -> int:
    """Tokenize this process's part of a dataset; shards that stand are left alone. Returns the number written.

    Raises ValueError for modalities without data or tokenizer, and TokenStoreError if shards that stand do not fit.
    """
    part, num_parts = choose_part(settings, os.environ)
    dataset = ObservationDataset(settings.data)
    tokenizers = load_tokenizers(settings.tokenizers)
    known = [m for m in dataset.modalities if m.kind in tokenizers]
    chosen = [m for m in known if not settings.modalities or m.name in settings.modalities]
    unknown = sorted(set(settings.modalities) - {m.name for m in chosen})
    if unknown:
        raise ValueError(f"no data or no tokenizer for {unknown}; there are both for {[m.name for m in known]}")
    num_written = _tokenize(settings, dataset, tokenizers, chosen, 0, part, num_parts)
    images = [m for m in chosen if m.kind == "image"]
    for turn in range(1, settings.turns):
        if images or read_manifest(turned_folder(settings.tokens, turn)) is not None:
            num_written += _tokenize(settings, dataset, tokenizers, images, turn, part, num_parts)
    return num_written


def _tokenize(
    settings: TokenizeSettings,
    dataset: ObservationDataset,
    tokenizers: Mapping[str, Tokenizer],
    chosen: Sequence[Modality],
    turn: int,
    part: int,
    num_parts: int,
) -> int:
    """Write the missing shards of one store, of images turned so; returns their number."""
    store = turned_folder(settings.tokens, turn) if turn else Path(settings.tokens)
    upright, before = (
        None if read_manifest(folder) is None else TokenStore(folder, verify=False)
        for folder in (Path(settings.tokens), store)
    )
    plan = plan_shards(dataset, upright, settings.shard_size, part, num_parts)
    num_written = 0
    title = f"tokenize, turned {turn}" if turn else "tokenize"
    with Progress(console=console) as progress:
        total = sum(len(shard.members[m.name][0]) for shard in plan.shards for m in chosen)
        task = progress.add_task(title, total=total)
        work = _Work(settings, store, dataset, tokenizers, turn, before, lambda count: progress.advance(task, count))
        for shard in plan.shards:
            objects = work.register(shard, plan.num_shards)
            for modality in chosen:
                num_written += work.tokenize(shard, modality, objects)
            num_written += work.fill(shard, objects)
    counts = {m.name: dataset.num_objects(m.name) for m in dataset.modalities}
    if not finish_store(store, str(Path(settings.data).resolve()), counts):
        waiting = ", ".join(f"{len(shards)} of {name}" for name, shards in missing_shards(store).items())
        note = f"{title}: part {part} of {num_parts} is done; shards still to come: {waiting}"
        console.print(note, soft_wrap=True)
    return num_written


class _Work:
    """What a process does for a shard: register its objects, tokenize one modality of them, say what is absent."""

    def __init__(
        self,
        settings: TokenizeSettings,
        store: Path,
        dataset: ObservationDataset,
        tokenizers: Mapping[str, Tokenizer],
        turn: int,
        before: TokenStore | None,
        advance: Callable[[int], None],
    ):
        self.settings, self.store, self.turn = settings, store, turn
        self.dataset = dataset
        self.hashes = {kind: tokenizer_hash(tokenizer) for kind, tokenizer in tokenizers.items()}
        device = choose_device(settings.device, os.environ)
        self.tokenizers = {kind: tokenizer.to(device) for kind, tokenizer in tokenizers.items()}
        self.before = before
        self.advance = advance
        self.num_tokens = {} if before is None else {m.name: before.num_tokens(m.name) for m in before.modalities}

    def register(self, shard: PlannedShard, num_shards: int) -> str:
        """Register the shard's objects if they are new; returns their hash."""
        if shard.object_id is not None and shard.sky is not None:
            return write_object_shard(self.store, shard.index, num_shards, shard.object_id, shard.sky)
        upright = shard_path(self.settings.tokens, OBJECTS, shard.index)
        found = check_shard(upright, checksums=False)
        if self.turn:
            of_upright = open_object_shard(upright)
            ids = of_upright.object_id.to_pylist()
            write_object_shard(self.store, shard.index, found["num_shards"], ids, of_upright.sky)
        return str(found["objects"])

    def tokenize(self, shard: PlannedShard, modality: Modality, objects: str) -> bool:
        """Write the tokens of the shard's objects in one modality; returns whether they did not stand."""
        if self._stands(shard, modality, objects):
            self.advance(len(shard.members[modality.name][0]))
            return False
        arrays = self._encode(shard, modality)
        found = arrays["codes"].shape[1]
        if len(arrays["codes"]) and found != self.num_tokens.setdefault(modality.name, found):
            raise self._several_sizes(modality.name, [self.num_tokens[modality.name], found])
        names = {"tokenizer_hash": self.hashes[modality.kind], "objects": objects}
        return write_token_shard(self.store, modality, shard.index, shard.rows(modality.name), arrays, **names)

    def fill(self, shard: PlannedShard, objects: str) -> int:
        """Say that new objects have no tokens of modalities that the store has and the dataset has not."""
        if self.before is None:
            return 0
        num_written = 0
        for modality in self.before.modalities:
            if modality.name not in shard.members:
                names = {"tokenizer_hash": self.before.tokenizer_hashes[modality.name], "objects": objects}
                nobody = np.full(shard.num_objects, -1)
                num_written += write_token_shard(self.store, modality, shard.index, nobody, _NO_TOKENS, **names)
        return num_written

    def _stands(self, shard: PlannedShard, modality: Modality, objects: str) -> bool:
        """Whether the tokens of a shard stand. Raises TokenStoreError if they are not those that would be made now."""
        folder = shard_path(self.store, modality.name, shard.index)
        if not folder.exists():
            return False
        found, expected = check_shard(folder, checksums=False), self.hashes[modality.kind]
        if found["tokenizer_hash"] != expected:
            raise TokenStoreError(
                f"{folder}: its tokens were made by tokenizer {found['tokenizer_hash']}, expected {expected}. Tokenize "
                "to another store."
            )
        if found["objects"] != objects:
            raise TokenStoreError(f"{folder}: its tokens are of other objects than those registered under its number")
        places = shard.members[modality.name][0]
        has = open_token_shard(folder).rows >= 0 if found["num_rows"] else np.zeros(shard.num_objects, bool)
        if not has[places].all():
            ids = open_object_shard(shard_path(self.store, OBJECTS, shard.index)).object_id
            raise TokenStoreError(
                f"{folder}: object {ids[int(places[~has[places]][0])]} has {modality.name} now, and had none when the "
                "shard was written. Shards are never rewritten: tokenize to another store."
            )
        return True

    def _encode(self, shard: PlannedShard, modality: Modality) -> dict[str, np.ndarray]:
        """Tokens of the shard's objects that have the modality, in the order of their places."""
        places, rows = shard.members[modality.name]
        if not len(rows):
            return _NO_TOKENS
        # Read along the disk, at least a row group at a time: a part of one costs as much as all of it.
        files = self.dataset.files(modality.name)
        num_read = max(self.settings.batch_size, *(max(file.row_group_sizes) for file in files))
        grids = []
        for start in range(0, len(rows), num_read):
            observation = self.dataset.read(modality.name, rows[start : start + num_read])
            for first in range(0, len(observation), self.settings.batch_size):
                batch = observation.select(slice(first, first + self.settings.batch_size))
                if self.turn:
                    assert isinstance(batch, ImageObservation)
                    batch = batch.turned(self.turn)
                grids.append(self.tokenizers[modality.kind].encode(batch))
                self.advance(len(batch))
        sizes = {grid.num_tokens for grid in grids}
        if len(sizes) > 1:
            raise self._several_sizes(modality.name, sorted(sizes))
        order = torch.from_numpy(np.argsort(places))
        fields = ("codes", "mask", "positions", "instrument")
        return {field: torch.cat([getattr(grid, field) for grid in grids])[order].numpy() for field in fields}

    def _several_sizes(self, name: str, counts: list[int]) -> ValueError:
        return ValueError(
            f"{self.dataset.folder}: {name} gives {counts} tokens; a store needs images of one size. Crop them to one."
        )
