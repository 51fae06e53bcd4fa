"""The objective of pretraining: masks, the forward pass and the loss of a batch, as one function of fixed shapes.

All batches of a source have the same modalities and budgets (`SourceLayout`), so that a compiler makes one graph of
the model and its loss, and another of the mask sampler, which has no gradient and takes any number of tokens.
"""

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.modalities import Modality
from ..data.prefetch import prefetched
from ..data.token_loader import TokenLoader, TokenSamples, TokenSource
from ..models.masked_transformer import MaskedTransformer
from ..models.token_batch import TokenBatch
from ..models.width_transfer import WeightScaling
from .flops import token_flops
from .loop import MODEL_FLOPS, TOKENS, Batch
from .mask_sampler import Scheme, draw_masks
from .token_sources import batch_shape, to_device, token_batch

STORED = ("codes", "mask", "positions", "slots", "slot_vocabularies", "instruments", "places")
"""Fields of a TokenBatch that are kept for replay."""
UNIGRAM_OBJECTS = 8192
"""Objects of each modality by which the frequencies of its codes are estimated."""


PretrainBatch = tuple[int, TokenSamples, TokenBatch]
"""Number of the step, samples of a loader, and their tokens packed."""


@dataclass(frozen=True, eq=False)
class SourceLayout:
    """What all batches of a source have in common: S modalities of `columns` of the loader, and budgets.

    `most`: how many targets of each of the model's vocabularies an object can have. `weights` of the modalities in the
    loss; `num_codes` of their vocabularies; `unigram`: logarithm of the frequency of each code in each modality.
    """

    modalities: tuple[Modality, ...]
    columns: tuple[int, ...]
    num_inputs: int
    num_targets: int
    most: tuple[int, ...]
    weights: Float[Tensor, " S"]
    num_codes: Float[Tensor, " S"]
    unigram: Float[Tensor, "S V"]


def source_layout(
    source: TokenSource,
    modalities: Sequence[Modality],
    columns: Sequence[int],
    transformer: MaskedTransformer,
    budgets: tuple[int, int],
    weights: dict[str, float],
    device: torch.device,
) -> SourceLayout:
    """The layout of a source whose objects have the `columns` of a loader's modalities."""
    own = tuple(modalities[column] for column in columns)
    vocabularies = transformer.config.vocabularies
    of_vocabulary = dict.fromkeys(vocabularies, 0)
    for modality in own:
        of_vocabulary[modality.vocabulary] += source.store.num_tokens(modality.name)
    num_codes = [vocabularies[modality.vocabulary] for modality in own]
    unigram = torch.zeros(len(own), max(num_codes))
    for slot, (modality, size) in enumerate(zip(own, num_codes, strict=True)):
        unigram[slot, :size] = code_frequencies(source, modality.name, size).log()
    return SourceLayout(
        own,
        tuple(columns),
        *budgets,
        tuple(min(count, budgets[1]) for count in of_vocabulary.values()),
        torch.tensor([weights.get(modality.name, 1.0) for modality in own], device=device),
        torch.tensor(num_codes, dtype=torch.float32, device=device),
        unigram.to(device),
    )


def code_frequencies(source: TokenSource, name: str, num_codes: int) -> Float[Tensor, " V"]:
    """How frequent each code of a modality is among some of the store's objects, evenly spaced; never zero.

    (A half is added to each count: Krichevsky & Trofimov 1981, doi 10.1109/TIT.1981.1056331.)
    """
    store = source.store
    every = max(1, store.num_rows(name) // UNIGRAM_OBJECTS)
    counts = np.full(num_codes, 0.5)
    for index in range(len(store.starts) - 1):
        shard = store.token_shard(name, index)
        if shard is not None:
            codes = np.asarray(shard.codes[::every])
            counts += np.bincount(codes[codes >= 0], minlength=num_codes)
    return torch.from_numpy(counts / counts.sum()).float()


class PretrainObjective(nn.Module):
    """Loss of the masked transformer over the samples of a loader whose batches are each of one source.

    `num_inputs` and `num_targets` are budgets, `weights` those of modalities in the loss, one where not named. With
    `compiled`, each layout becomes one graph of `torch.compile`. Raises ValueError for weights of unknown modalities.
    """

    def __init__(
        self,
        transformer: MaskedTransformer,
        loader: TokenLoader,
        num_inputs: int,
        num_targets: int,
        masks: Scheme = "even",
        weights: dict[str, float] | None = None,
        seed: int = 0,
        compiled: bool = False,
    ):
        super().__init__()
        self.transformer = transformer
        self.loader = loader
        self.budgets = num_inputs, num_targets
        self.masks = masks
        self.weights = weights or {}
        self.seed = seed
        self.fingerprint = loader.fingerprint
        self.flops = token_flops(transformer)
        names = [modality.name for modality in loader.modalities]
        unknown = sorted(set(self.weights) - set(names))
        if unknown:
            raise ValueError(f"modality_weights names {unknown}; the tokens are of {names}")
        self.shapes = [batch_shape(source, names) for source in loader.sources]
        """Modalities of each source, by place, and the most tokens of an object."""
        self._layouts: dict[int, SourceLayout] = {}
        self._draw: Any = self.draw
        self._losses: Any = self.losses
        if compiled:
            limit = 8 * len(loader.sources)
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
            # DDP would have the graph cut into its buckets, which cannot be done around the loss's own gradient.
            torch._dynamo.config.optimize_ddp = False
            self._draw = torch.compile(self.draw, fullgraph=True, dynamic=False)
            self._losses = torch.compile(self.losses, fullgraph=True, dynamic=False)

    def weight_scalings(self) -> dict[str, WeightScaling]:
        """Those of the transformer, by the names that its weights have here."""
        return {f"transformer.{name}": scaling for name, scaling in self.transformer.weight_scalings().items()}

    def batches(self, first_step: int) -> Generator[PretrainBatch, None, None]:
        """Number, samples and tokens of each step; a thread packs tokens ahead."""
        self.loader.cursor = first_step * self.loader.batch_size
        vocabularies = self.transformer.vocabulary_index

        def packed() -> Iterator[PretrainBatch]:
            with contextlib.closing(iter(self.loader)) as stream:
                for step, samples in enumerate(stream, first_step):
                    columns, most = self.shapes[int(samples.sources[0])]
                    tokens = token_batch(samples, columns, vocabularies, min(most, max(self.budgets)))
                    yield step, samples, tokens.pinned() if self.loader.pin_memory else tokens

        with contextlib.closing(prefetched(packed, 1)) as stream:
            yield from stream

    def split(self, content: PretrainBatch, count: int) -> list[PretrainBatch]:
        """A batch as `count` batches of as many objects. Raises ValueError if they cannot be divided so."""
        step, samples, tokens = content
        share, left = divmod(len(samples), count)
        if left:
            raise ValueError(f"loop.accumulate {count} does not divide the {len(samples)} objects of a process's batch")
        rows = [slice(first, first + share) for first in range(0, len(samples), share)]
        return [(step, samples.rows(part), tokens.rows(part)) for part in rows]

    def keep(self, content: PretrainBatch, folder: Path) -> str:
        """Store a batch in `folder`, for `armillary pretrain --replay`; returns whose tokens it holds."""
        step, samples, tokens = content
        source = self.loader.sources[int(samples.sources[0])]
        ids = source.store.object_ids(samples.objects.numpy())
        tensors = {name: getattr(tokens, name).contiguous() for name in STORED}
        save_file({**tensors, "keys": samples.keys}, folder / "batch.safetensors")
        description = {"step": step, "store": str(source.store.folder), "object_ids": ids}
        (folder / "objects.json").write_text(json.dumps(description), encoding="utf-8")
        return f" ({len(ids)} objects: {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"

    def layout(self, samples: TokenSamples) -> SourceLayout:
        """The layout of the source these samples are of."""
        number = int(samples.sources[0])
        if number not in self._layouts:
            columns, most = self.shapes[number]
            self._layouts[number] = source_layout(
                self.loader.sources[number],
                self.loader.modalities,
                columns,
                self.transformer,
                (min(self.budgets[0], most), min(self.budgets[1], most)),
                self.weights,
                self.transformer.device,
            )
        return self._layouts[number]

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted sum of the token losses, number of valid targets, and metrics: nats and gain over the unigram
        frequencies by modality, tokens and floating-point operations."""
        step, samples, tokens = batch.content
        layout, device = self.layout(samples), self.transformer.device
        keys = to_device(torch.cat([samples.keys, torch.tensor([step])]), device)
        inputs, targets = self._draw(layout, tokens.to(device), keys)
        total, count, sums = self._losses(layout, inputs, targets)
        names = [name for m in layout.modalities for name in (f"nats/{m.name}", f"gain/{m.name}")]
        return total, count, dict(zip([*names, "fill", TOKENS, MODEL_FLOPS], sums.unbind(0), strict=True))

    def draw(
        self, layout: SourceLayout, tokens: TokenBatch, keys_and_step: Int[Tensor, " K"]
    ) -> tuple[TokenBatch, TokenBatch]:
        """Inputs and targets of a step."""
        keys, step = keys_and_step[:-1], keys_and_step[-1]
        return draw_masks(tokens, keys, self.seed, step, layout.num_inputs, layout.num_targets, self.masks)

    def losses(
        self, layout: SourceLayout, inputs: TokenBatch, targets: TokenBatch
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "M 2"]]:
        """Weighted sum of the losses, number of targets, and sums and counts of metrics."""
        weights = layout.weights[targets.slots] * targets.mask
        total, losses, _ = self.transformer.weighted_losses(inputs, targets, weights, layout.most)
        count = targets.mask.sum().float()
        with torch.no_grad():
            gains = -layout.unigram[targets.slots, targets.codes] - losses
            slots = torch.arange(len(layout.columns), device=losses.device)
            here = ((targets.slots[..., None] == slots) & (weights != 0)[..., None]).float()
            nats, gain = ((values[..., None] * here).sum((0, 1)) for values in (losses, gains))
            number = here.sum((0, 1))
            num_tokens = inputs.mask.sum() + targets.mask.sum()
            flops = self.flops.of_training(inputs.mask, targets.mask, layout.num_codes[targets.slots])
            fill = num_tokens / (inputs.mask.numel() + targets.mask.numel())
            of_all = torch.stack([fill, num_tokens.float(), flops])
            of_slots = torch.stack([nats, number, gain, number], 1).unflatten(1, (2, 2)).flatten(0, 1)
            sums = torch.cat([of_slots, torch.stack([of_all, torch.ones_like(of_all)], 1)])
        return total, count, sums
