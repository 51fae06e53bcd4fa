"""Vectors of the objects from each subset of modalities, made once from stored tokens and kept as embedding shards.

Two spaces: `encoder`, the mean of the encoder's vectors over valid tokens, of any subset; and `aligned`, of images,
spectra and whatever else the alignment head has a view of. One pass of the encoder gives both where the head was
trained on the frozen encoder. Of an image alone the vector may be the mean over some of the ways in which it may lie.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ..data.modalities import Modality
from ..data.observations import ObservationError
from ..data.token_store import TokenStore
from ..models.alignment_views import view_of
from ..models.embeddings import EmbeddingsError, read_embedding_shards, write_embedding_shard
from ..models.foundation import FoundationModel
from ..models.token_embeddings import TokenEmbeddings
from ..tokenizers.token_grid import TokenGrid
from ..training.token_sources import read_grid
from .objects import Subset, modality_slug
from .zero_shot import unit

SHARD = 2048
"""Objects of one shard: what an interrupted evaluation may have to embed again."""


class VectorStore:
    """Embeddings of objects by subset and space, from `given` folders of shards, from `folder`, or made now."""

    def __init__(
        self,
        model: FoundationModel,
        tokens: TokenStore,
        folder: Path,
        given: Sequence[str] = (),
        batch_size: int = 128,
        turned: Sequence[TokenStore] = (),
    ):
        self.model = model
        self.stores = [tokens, *turned]
        self.tokens = tokens
        self.folder = folder
        self.batch_size = batch_size
        self.advance: Callable[[str, int, int], None] = lambda title, done, total: None
        """Told the title, objects done and objects in all, as embedding goes on."""
        self._given = [_read_given(path, model.model_id) for path in given]
        self._kept: dict[tuple[str, ...], Float[np.ndarray, "B D"]] = {}

    def spaces(self, subset: Subset) -> tuple[str, ...]:
        """The spaces in which the subset has vectors."""
        return ("encoder", "aligned") if all(self._view(name) for name in subset.modalities) else ("encoder",)

    def get(self, subset: Subset, space: str, ids: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """Vectors of these objects, in this order. Raises ObservationError if one of them has no tokens."""
        digest = hashlib.sha256("\n".join([self.model.model_id, *ids]).encode()).hexdigest()[:12]
        key = (subset.name, space, digest)
        if key not in self._kept:
            if space == "aligned" and len(self._by_view(subset)) > 1:
                # As `FoundationModel.embed` has it: the normalised sum over an object's views.
                self._kept[key] = unit(np.sum([self.get(part, space, ids) for part in self._by_view(subset)], axis=0))
            else:
                ways = [self._stored(subset, space, ids, digest, way) for way in self._ways(subset)]
                mean = np.mean(ways, axis=0)
                self._kept[key] = unit(mean) if space == "aligned" and len(ways) > 1 else mean
        return self._kept[key]

    def together(self, subsets: Sequence[Subset], space: str, ids: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """Vectors of these objects by all of the subsets: the mean of their unit vectors, or that of one as it is."""
        if len(subsets) == 1:
            return self.get(subsets[0], space, ids)
        return np.mean([unit(self.get(subset, space, ids)) for subset in subsets], axis=0)

    def grids(self, subset: Subset, ids: Sequence[str], way: int = 0) -> list[TokenGrid]:
        """Tokens of these objects, of images turned in this way. Raises ObservationError if one has none."""
        rows = self.tokens.find(ids)
        if (rows < 0).any():
            missing = ids[int((rows < 0).argmax())]
            raise ObservationError(f"{self.tokens.folder}: object {missing} has no tokens")
        stored = {m.name: m for m in self.tokens.modalities}
        for name in subset.modalities:
            if name not in stored:
                raise ValueError(f"{self.tokens.folder}: no tokens of {name}; it holds {sorted(stored)}")
        grids = [read_grid(self.stores[way], rows, stored[name])[0] for name in subset.modalities]
        return [grid for grid in grids if len(grid.object_id)]

    def token_vectors(self, subset: Subset, ids: Sequence[str]) -> TokenEmbeddings:
        """The encoder's vectors of each token of these objects, for probes of tokens; they are not kept."""
        return self.model.embed_token_grids(self.grids(subset, ids), (), self.batch_size, ids)

    def _ways(self, subset: Subset) -> list[int]:
        """In which ways an image that stands alone was tokenized; all else is seen in the first."""
        name = subset.modalities[0]
        if len(subset.modalities) > 1 or self._modality(name).kind != "image":
            return [0]
        return [way for way, store in enumerate(self.stores) if name in store.tokenizer_hashes]

    def _view(self, name: str) -> str | None:
        if self.model.head is None:
            return None
        return view_of(self.model.head.settings.views, self._modality(name))

    def _modality(self, name: str) -> Modality:
        for modality in self.tokens.modalities:
            if modality.name == name:
                return modality
        raise ValueError(f"{self.tokens.folder}: no tokens of {name}")

    def _by_view(self, subset: Subset) -> list[Subset]:
        views: dict[str | None, list[str]] = {}
        for name in subset.modalities:
            views.setdefault(self._view(name), []).append(name)
        if len(views) == 1:
            return [subset]
        return [Subset("+".join(names), tuple(names)) for names in views.values()]

    def _stored(
        self, subset: Subset, space: str, ids: Sequence[str], digest: str, way: int
    ) -> Float[np.ndarray, "B D"]:
        given = None if way else self._from_given(subset, space, ids)
        if given is not None:
            return given
        found = []
        for number, start in enumerate(range(0, len(ids), SHARD)):
            part = ids[start : start + SHARD]
            paths = {s: self._path(subset, s, digest, number, way) for s in self.spaces(subset)}
            if not _stands(paths[space], part):
                self._write(subset, part, paths, space, way)
            found.append(read_embedding_shards(paths[space]).vectors.astype(np.float32))
            self.advance(subset.name, min(start + SHARD, len(ids)), len(ids))
        return np.concatenate(found)

    def _from_given(self, subset: Subset, space: str, ids: Sequence[str]) -> Float[np.ndarray, "B D"] | None:
        for given_space, modality, vectors in self._given:
            of_subset = modality.get("+".join(subset.modalities))
            if given_space == space and of_subset is not None and all(i in of_subset for i in ids):
                return vectors[[of_subset[i] for i in ids]].astype(np.float32)
        return None

    def _path(self, subset: Subset, space: str, digest: str, number: int, way: int) -> Path:
        turned = f"-turned-{way}" if way else ""
        return self.folder / f"{space}-{modality_slug(subset.name)}{turned}-{digest}-{number:05d}.parquet"

    def _write(self, subset: Subset, ids: Sequence[str], paths: dict[str, Path], wanted: str, way: int) -> None:
        vectors = self._embed(subset, ids, wanted, way)
        # The wanted one last: where it stands, the other does.
        for space in sorted(vectors, key=lambda space: space == wanted):
            if space != wanted and not way and self._from_given(subset, space, ids) is not None:
                continue
            write_embedding_shard(
                paths[space],
                ids,
                "+".join(subset.modalities),
                vectors[space],
                model_id=self.model.model_id,
                space=space,
            )

    @torch.no_grad()
    def _embed(self, subset: Subset, ids: Sequence[str], wanted: str, way: int) -> dict[str, Float[np.ndarray, "B D"]]:
        """Vectors in the wanted space; and in the other, where that costs nothing."""
        model, grids = self.model, self.grids(subset, ids, way)
        head = model.head
        batch, rows = model.join(grids)
        if list(rows) != list(ids):
            order = {object_id: row for row, object_id in enumerate(rows)}
            missing = [i for i in ids if i not in order]
            if missing:
                raise ObservationError(f"{self.tokens.folder}: object {missing[0]} has no tokens of {subset.name}")
            batch = batch.rows(torch.tensor([order[i] for i in ids]))
        counts = batch.mask.sum(1)
        if not counts.all():
            raise ObservationError(f"object {ids[int(counts.argmin())]}: every value of {subset.name} is missing")
        is_free = "aligned" in self.spaces(subset) and head is not None and head.settings.encoder == "frozen"
        if wanted == "aligned" and not is_free:
            found = model.embed_grids(grids, "aligned", self.batch_size)
            order = {object_id: row for row, object_id in enumerate(found.object_id)}
            return {"aligned": found.numpy()[[order[i] for i in ids]]}
        single = is_free and len(self._by_view(subset)) == 1
        model.transformer.eval()
        # Objects with as many tokens together: little of a batch is padding.
        order_by_size = counts.argsort()
        parts: dict[str, list[torch.Tensor]] = {"encoder": [], **({"aligned": []} if single else {})}
        for chosen in order_by_size.split(self.batch_size):
            part = batch.rows(chosen).to(model.device).packed()
            encoded = model.transformer.encode(part)
            weights = part.mask[..., None].float()
            parts["encoder"].append(((encoded * weights).sum(1) / weights.sum(1)).float().cpu())
            if single and head is not None:
                view = self._view(subset.modalities[0])
                assert view is not None
                parts["aligned"].append(nn.functional.normalize(head(view, encoded, part.mask), dim=-1).float().cpu())
        back = order_by_size.argsort()
        return {space: torch.cat(vectors)[back].numpy() for space, vectors in parts.items()}


def _stands(path: Path, ids: Sequence[str]) -> bool:
    if not path.is_file():
        return False
    try:
        return list(read_embedding_shards(path).object_id) == list(ids)
    except EmbeddingsError:
        return False  # damaged: it is made again


def _read_given(path: str, model_id: str) -> tuple[str, dict[str, dict[str, int]], np.ndarray]:
    """Space, rows by modality and object, and vectors of given shards. Raises EmbeddingsError if of another model."""
    table = read_embedding_shards(path)
    if table.model_id != model_id:
        raise EmbeddingsError(f"{path}: embeddings of model {table.model_id}, expected those of {model_id}")
    rows: dict[str, dict[str, int]] = {}
    for row, (object_id, modality) in enumerate(zip(table.object_id, table.modality, strict=True)):
        rows.setdefault(modality, {})[object_id] = row
    return table.space, rows, table.vectors
