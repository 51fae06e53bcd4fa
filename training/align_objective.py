"""The objective of alignment: rows of views drawn, encoded and pooled, and the contrastive loss of each pair of views.

Batches of thousands fit on one device by gradient caching (Gao et al. 2021, arXiv 2101.06983): vectors of all objects
are made `micro_batch` objects at a time without keeping what their gradient needs, the loss is taken over all of them,
and on the way back each part is computed once more. Non-reentrant checkpoints are just that, and their gradients meet
before DDP sees them, so that a step has one exchange of vectors and one of gradients whatever the number of parts.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.modalities import Modality
from ..data.prefetch import prefetched
from ..data.token_loader import TokenLoader, TokenSamples
from ..models.alignment import AlignmentHead
from ..models.alignment_losses import info_nce, sigmoid_loss
from ..models.foundation import FoundationModel
from ..models.hashed_numbers import hashed_uniform
from ..models.token_batch import TokenBatch
from ..models.width_transfer import WeightScaling
from .align_validation import SCORE, Validation
from .align_views import TURN, Pair, draw_rows, draw_tokens, draw_vectors, present_rows
from .encoded_views import EncodedRow, read_rows
from .loop import Batch
from .token_sources import to_device, token_batch

AlignBatch = tuple[int, TokenSamples, dict[str, TokenBatch]]
"""Number of the step, samples of a loader, and their tokens by view, where the encoder is to see them."""
Side = tuple[Float[Tensor, "B A"], Bool[Tensor, " B"]]
"""Vectors of a draw of a view, and which objects have it."""


class AlignObjective(nn.Module):
    """Contrastive loss of pairs of views. `rows`: by view, the modalities of each row.

    `encoded` are the frozen encoder's vectors, which are then drawn in place of tokens, and `turned` those of the rows
    of images in other ways that they may lie, one of which a step sees. `validation` scores the head; the loop then
    keeps the best one.
    """

    def __init__(
        self,
        model: FoundationModel,
        loader: TokenLoader,
        rows: Mapping[str, Mapping[str, Sequence[Modality]]],
        pairs: Sequence[Pair],
        *,
        num_tokens: int,
        seed: int,
        micro_batch: int | None = None,
        encoder_learning_rate: float = 1.0,
        encoded: Mapping[str, EncodedRow] | None = None,
        turned: Sequence[Mapping[str, EncodedRow]] = (),
        validation: Validation | None = None,
        validate_every: int = 0,
    ):
        super().__init__()
        assert model.head is not None
        self.head: AlignmentHead = model.head
        # Not a part of this module: the pretrained transformer is neither trained nor saved with the state of the run.
        self._model = [model]
        model.transformer.eval().requires_grad_(False)
        self.loader = loader
        self.fingerprint = loader.fingerprint
        self.rows, self.pairs = rows, pairs
        self.num_tokens, self.seed, self.micro_batch = num_tokens, seed, micro_batch
        self.encoder_learning_rate = encoder_learning_rate
        self.encoded, self.turned = encoded, turned
        self.validation, self.validate_every = validation, validate_every if validation is not None else 0
        self.sides = sorted({side for pair in pairs for side in (pair.first, pair.second)})
        self._place = {name: column for column, name in enumerate(m.name for m in loader.modalities)}
        self._layouts = {view: self._layout(view) for view in rows}

    def _layout(self, view: str) -> tuple[list[int], Int[Tensor, " S"], Int[Tensor, " S"] | None]:
        """Columns of the loader that make a view; the row of each; the survey of each, where the view is of scalars."""
        owners = [(m, row) for row, of_row in enumerate(self.rows[view].values()) for m in of_row]
        columns = [self._place[modality.name] for modality, _ in owners]
        surveys = None
        if all(modality.kind == "scalar" for modality, _ in owners):
            names = sorted({modality.card.name for modality, _ in owners})
            surveys = torch.tensor([names.index(modality.card.name) for modality, _ in owners])
        return columns, torch.tensor([row for _, row in owners]), surveys

    def weight_scalings(self) -> dict[str, WeightScaling]:
        """Of what is trained of the encoder, as in pretraining, with a learning rate of its own."""
        transformer, scalings = self._model[0].transformer, {}
        if self.head.settings.encoder == "last_blocks":
            for name, scaling in self.head.last_blocks.weight_scalings(transformer).items():
                scalings[f"head.last_blocks.{name}"] = scaling
        elif self.head.settings.encoder == "scratch":
            for view, encoder in self.head.own_encoders().items():
                for name, scaling in encoder.weight_scalings().items():
                    scalings[f"head.encoders.{view}.{name}"] = scaling
        rate = self.encoder_learning_rate
        return {
            name: replace(s, learning_rate=rate * s.learning_rate, muon=None if s.muon is None else rate * s.muon)
            for name, s in scalings.items()
        }

    def batches(self, first_step: int) -> Generator[AlignBatch, None, None]:
        """Number, samples and tokens of each step; a thread packs tokens ahead."""
        self.loader.cursor = first_step * self.loader.batch_size
        vocabularies = self._model[0].transformer.vocabulary_index

        def packed() -> Iterator[AlignBatch]:
            with contextlib.closing(iter(self.loader)) as stream:
                for step, samples in enumerate(stream, first_step):
                    tokens = {}
                    for view, (columns, _, _) in self._layouts.items() if self.encoded is None else ():
                        of_view = token_batch(samples, columns, vocabularies, self.num_tokens)
                        tokens[view] = of_view.pinned() if self.loader.pin_memory else of_view
                    yield step, samples, tokens

        with contextlib.closing(prefetched(packed, 1)) as stream:
            yield from stream

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted sum of the losses of the pairs, the weighted number of objects that have them, and metrics: how
        often the partner is the nearest of this process's objects, and the scale."""
        step, samples, tokens = batch.content
        sides: dict[tuple[str, int], Side] = {}
        for view in self.rows:
            made = self._from_tokens if self.encoded is None else self._from_vectors
            sides |= made(view, step, samples, tokens)
        scale = self.head.scale()
        losses, counts, metrics = [], [], {"scale": torch.stack([scale.detach(), torch.ones_like(scale)])}
        for pair in self.pairs:
            (first, has_first), (second, has_second) = sides[pair.first], sides[pair.second]
            valid = has_first & has_second
            losses.append(pair.weight * self._loss(first, second, scale, valid))
            counts.append(pair.weight * valid.sum().float())
            metrics[f"recall@1/{pair.name}"] = self._recall(first, second, valid)
        return torch.stack(losses).sum(), torch.stack(counts).sum(), metrics

    def validate(self, fabric: Fabric) -> tuple[float, dict[str, float]]:
        """The score of the head as it stands, ties of recall broken by the rank, and the metrics it is made of."""
        assert self.validation is not None
        self.head.eval()
        found = self.validation.measure(fabric)
        self.head.train()
        return found[SCORE] - 1e-6 * found["validation/median_rank"], found

    def _loss(self, first: Tensor, second: Tensor, scale: Tensor, valid: Tensor) -> Float[Tensor, ""]:
        if self.head.bias is None:
            return info_nce(first, second, scale, valid)
        return sigmoid_loss(first, second, scale, self.head.bias, valid)

    @staticmethod
    @torch.no_grad()
    def _recall(first: Tensor, second: Tensor, valid: Tensor) -> Float[Tensor, " 2"]:
        nearest = (first @ second.T).masked_fill(~valid, -2.0).argmax(1)
        hits = (nearest == torch.arange(len(first), device=first.device)) & valid
        return torch.stack([hits.sum(), valid.sum()]).float()

    def _draws(self, view: str) -> list[int]:
        """The numbers of a view's draws."""
        return [number for name, number in self.sides if name == view]

    def _number(self, step: int, view: str, number: int) -> int:
        """Of a draw, among all draws of a run."""
        return 2 * (len(self.rows) * step + list(self.rows).index(view)) + number

    def _from_tokens(
        self, view: str, step: int, samples: TokenSamples, tokens: dict[str, TokenBatch]
    ) -> dict[tuple[str, int], Side]:
        """Sides of a view by drawing tokens, which the encoder sees."""
        model = self._model[0]
        device = model.device
        _, row_of_slot, surveys = self._layouts[view]
        row_of_slot = to_device(row_of_slot, device)
        surveys = None if surveys is None else to_device(surveys, device)
        of_view, keys = tokens[view].to(device), to_device(samples.keys, device)
        present = present_rows(of_view, row_of_slot, len(self.rows[view]))
        rows, has = draw_rows(present, keys, self.seed, self._number(step, view, 0))
        sides = {}
        for number in self._draws(view):
            draw = self._number(step, view, number)
            drawn = draw_tokens(of_view, rows[:, number], row_of_slot, surveys, keys, self.seed, draw, self.num_tokens)
            sides[view, number] = self._in_parts(self._pool_tokens(view, drawn), len(drawn)), has[:, number]
        return sides

    def _pool_tokens(self, view: str, drawn: TokenBatch) -> Callable[[slice], Tensor]:
        transformer = self._model[0].transformer
        if self.head.settings.encoder != "frozen":
            return lambda part: self.head(view, self.head.encode(view, transformer, drawn.rows(part)), drawn.mask[part])
        # What is frozen need not be computed a second time.
        size = self.micro_batch or len(drawn)
        with torch.no_grad():
            parts = [drawn.rows(slice(start, start + size)) for start in range(0, len(drawn), size)]
            encoded = torch.cat([transformer.encode(part) for part in parts])
        return lambda part: self.head(view, encoded[part], drawn.mask[part])

    def _from_vectors(
        self, view: str, step: int, samples: TokenSamples, tokens: dict[str, TokenBatch]
    ) -> dict[tuple[str, int], Side]:
        """Sides of a view by drawing among the encoder's vectors."""
        assert self.encoded is not None
        device = self._model[0].device
        names = list(self.rows[view])
        ways = [self.encoded, *self.turned] if any(set(names) & way.keys() for way in self.turned) else [self.encoded]
        encoded = [way.get(name, self.encoded[name]) for way in ways for name in names]
        objects = samples.objects.numpy()
        present = torch.from_numpy(np.stack([row.lengths(objects) > 0 for row in encoded[: len(names)]], 1))
        rows, has = draw_rows(present, samples.keys, self.seed, self._number(step, view, 0))
        sides = {}
        for number in self._draws(view):
            draw = self._number(step, view, number)
            way = (hashed_uniform(samples.keys, 1, self.seed, draw, TURN)[:, 0] * len(ways)).long()
            vectors, mask = read_rows(encoded, (way * len(names) + rows[:, number]).numpy(), objects)
            vectors, mask, keys = (to_device(t, device) for t in (vectors, mask, samples.keys))
            drawn, valid = draw_vectors(vectors.float(), mask, keys, self.seed, draw, self.num_tokens)
            pooled = self._in_parts(self._pool_vectors(view, drawn, valid), len(drawn))
            sides[view, number] = pooled, to_device(has[:, number], device)
        return sides

    def _pool_vectors(self, view: str, vectors: Tensor, mask: Tensor) -> Callable[[slice], Tensor]:
        return lambda part: self.head(view, vectors[part], mask[part])

    def _in_parts(self, pool: Callable[[slice], Tensor], num_objects: int) -> Float[Tensor, "B A"]:
        """Pooled vectors of all objects, `micro_batch` at a time; each part is computed again for its gradient."""
        if self.micro_batch is None or self.micro_batch >= num_objects:
            return pool(slice(0, num_objects))
        starts = range(0, num_objects, self.micro_batch)
        parts = [slice(start, min(start + self.micro_batch, num_objects)) for start in starts]
        return torch.cat([checkpoint(pool, part, use_reentrant=False) for part in parts])
