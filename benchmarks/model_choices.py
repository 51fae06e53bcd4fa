"""What the masked transformer owes to each of its choices: held-out nats of nano models that differ in one of them.

- `ours`: one table of codes for input and output, with what codes have in common (`models/code_table.py`); targets
  attend to the inputs alone; masks `even`.
- `no factors`: codes have nothing in common. `two tables`: input and output have their own.
- `targets see their modality`, `targets see all`: a layer of self-attention among the targets in each decoder block.
- `masks aion`, `masks dirichlet`: drawn so in training.

All are trained for the same steps, from the same seed, on the tokens of a demo's training objects (`--demo`; simulated
and real, by trained tokenizers), or on made-up ones. Held-out objects are scored by three tasks: `mixed` (masks as in
training of `ours`, drawn anew), redshift from an image alone, spectrum from an image alone. Targets of the last two are
asked for alone, as users ask.

    python benchmarks/model_choices.py [--quick] [--demo runs/demo] [--steps 300] [--seeds 2] [--only NAME ...]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from references.made_up_store import made_up_store

from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.models.code_table import CodeTable
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.models.token_batch import TokenBatch
from armillary.tokenizers.blocks import RMSNorm, attendable
from armillary.training.loop import (
    Batch,
    LoopSettings,
    _scale_gradients,
    choose_precision,
    learning_rate,
    make_optimizer,
)
from armillary.training.mask_sampler import draw_masks
from armillary.training.pretrain_objective import PretrainObjective
from armillary.training.token_sources import open_sources, read_ids, split_by_size, token_batch
from armillary.training.tokenizers import load_tokenizers

BUDGETS = (96, 32)
IMAGE, SPECTRUM, REDSHIFT = "image/legacysurvey", "spectrum/desi", "scalar/redshift"


class TwoTables(MaskedTransformer):
    """Another table at the output."""

    def __init__(self, config: MaskedTransformerConfig):
        super().__init__(config)
        self.output_codes = CodeTable(config.vocabularies, config.code_feature_sizes, config.width)

    def weighted_losses(self, inputs: TokenBatch, targets: TokenBatch, weights: Tensor, most: Any = None) -> Any:
        """With the vectors of the other table."""
        encoded = self.encode(inputs)
        hidden = self.decode(encoded, inputs.mask, targets)
        vocabularies = targets.slot_vocabularies[targets.slots]
        return *self.output_codes.cross_entropy(hidden, targets.codes, vocabularies, weights, most), encoded


class Among(nn.Module):
    """Self-attention among targets, under a mask [B, 1, T, T]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = RMSNorm(width)
        self.to_all = nn.Linear(width, 3 * width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.to_output.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Add what the others say."""
        parts = self.to_all(self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).float()
        query, key = F.rms_norm(parts[0], parts.shape[-1:]), F.rms_norm(parts[1], parts.shape[-1:])
        mixed = F.scaled_dot_product_attention(query, key, parts[2], attn_mask=mask)
        return x + self.to_output(mixed.transpose(1, 2).flatten(2))


class SelfAttending(MaskedTransformer):
    """Targets see each other's places: those of their own modality, or all."""

    within_modality = True

    def __init__(self, config: MaskedTransformerConfig):
        super().__init__(config)
        self.among = nn.ModuleList(Among(config.width, config.num_heads) for _ in range(config.decoder_blocks))

    def decode(self, encoded: Tensor, input_mask: Tensor, targets: TokenBatch, valid_first: bool = False) -> Tensor:
        """The same, with a layer among the targets in each block."""
        x, mask = self.query + self._places(targets), attendable(input_mask)
        seen = attendable(targets.mask)[:, None, None]
        if self.within_modality:
            itself = torch.eye(targets.slots.shape[1], dtype=torch.bool)
            seen = (seen & (targets.slots[:, None, :, None] == targets.slots[:, None, None])) | itself
        for among, block in zip(self.among, self.decoder, strict=True):
            x = block(among(x, seen), mask, encoded)
        return self.decoder_norm(x)


class AllAttending(SelfAttending):
    """Targets see all others."""

    within_modality = False


VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "no factors": {"factors": False},
    "two tables": {"model": TwoTables},
    "targets see their modality": {"model": SelfAttending},
    "targets see all": {"model": AllAttending},
    "masks aion": {"masks": "aion"},
    "masks dirichlet": {"masks": "dirichlet"},
}


def train_variant(
    sources: list[TokenSource],
    features: dict[str, Tensor],
    steps: int,
    seed: int,
    model: type[MaskedTransformer] = MaskedTransformer,
    masks: Any = "even",
    factors: bool = True,
) -> MaskedTransformer:
    """A nano model of one variant, trained."""
    torch.manual_seed(seed)
    transformer = model(MaskedTransformerConfig.of_size("nano", features)).train()
    shown = features if factors else {name: torch.zeros_like(values) for name, values in features.items()}
    transformer.codes.set_features(shown)
    if isinstance(transformer, TwoTables):
        transformer.output_codes.load_state_dict(transformer.codes.state_dict())
    if not factors:
        nn.init.normal_(transformer.codes.rows, std=0.5 / transformer.config.width**0.5)
    loader = TokenLoader(sources, 64, seed, mix="batches")
    objective = PretrainObjective(transformer, loader, *BUDGETS, masks=masks, seed=seed)
    settings = LoopSettings(steps=steps, learning_rate=2e-3, warmup_steps=50)
    optimizer = make_optimizer(objective, settings)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto") == "bf16-mixed")
    for step, content in enumerate(objective.batches(0)):
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step) * group["scale"]
        with autocast:
            loss, count, _ = objective(Batch(content))
        loss.backward()
        _scale_gradients(list(objective.parameters()), 1 / count, settings.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return transformer.eval()


@torch.no_grad()
def held_out_nats(transformer: MaskedTransformer, source: TokenSource, num_batches: int) -> dict[str, float]:
    """Mean nats of held-out objects in each task."""
    loader = TokenLoader([source], 64, 1, mix="batches")
    names = [modality.name for modality in loader.modalities]
    sums: dict[str, list[Tensor]] = {"mixed": [], "redshift from image": [], "spectrum from image": []}
    for number, samples in zip(range(num_batches), loader, strict=False):
        tokens = token_batch(samples, range(len(names)), transformer.vocabulary_index, 256)
        inputs, targets = draw_masks(tokens, samples.keys, 99, number, *BUDGETS)
        sums["mixed"].append(transformer(inputs, targets).token_losses[targets.mask])
        of_image = tokens.mask & (tokens.slots == names.index(IMAGE))
        has_image = of_image.any(1)
        order = torch.where(of_image, torch.arange(of_image.shape[1]), 10**6).argsort(1)[:, : BUDGETS[0]]
        image = tokens.take(order, of_image.gather(1, order))
        for task, name in (("redshift from image", REDSHIFT), ("spectrum from image", SPECTRUM)):
            asked = tokens.mask & (tokens.slots == names.index(name)) & has_image[:, None]
            places = asked.int().argsort(dim=1, descending=True, stable=True)[:, : BUDGETS[1]]
            wanted = tokens.take(places, asked.gather(1, places))
            if wanted.mask.any():
                sums[task].append(transformer(image, wanted).token_losses[wanted.mask])
    return {task: torch.cat(values).mean().item() for task, values in sums.items()}


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of two variants on made-up tokens")
    parser.add_argument("--demo", type=Path, help="folder of a demo, with its tokens and tokenizers")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    options = parser.parse_args()
    steps, seeds, names = options.steps, options.seeds, options.only
    if options.quick:
        steps, seeds, names = 8, 1, ["ours", "no factors"]
    with tempfile.TemporaryDirectory() as temporary:
        train, held_out, features = _tokens(options.demo, Path(temporary))
        found: dict[str, Any] = {}
        for name in names:
            began, nats = time.process_time(), []
            for seed in range(seeds):
                model = train_variant(train, features, steps, seed, **VARIANTS[name])
                nats.append(held_out_nats(model, held_out, 2 if options.quick else 16))
            found[name] = {
                "cpu_seconds_per_step": round((time.process_time() - began) / steps / seeds, 3),
                **{task: [round(of_seed[task], 4) for of_seed in nats] for task in nats[0]},
            }
            print(name, found[name], flush=True)
    print(json.dumps({"steps": steps, "seeds": seeds, "tokens": "demo" if options.demo else "made up", **found}))


def _tokens(demo: Path | None, temporary: Path) -> tuple[list[TokenSource], TokenSource, dict[str, Tensor]]:
    """Sources to train on, one of held-out objects, and the features of codes."""
    if demo is None:
        store, features = made_up_store(temporary / "store", 2000, 0, quick=True)
        is_held_out = np.arange(len(store)) % 10 == 0
        return [TokenSource(store, ~is_held_out)], TokenSource(store, is_held_out), features
    tokenizers = load_tokenizers(demo / "tokenizers")
    held = read_ids(demo / "parts" / "held-out.txt")
    sources = open_sources(str(demo / "tokens"), tokenizers, held)
    store, chosen = sources[0].store, sources[0].chosen
    assert chosen is not None
    features = {m.vocabulary: tokenizers[m.kind].code_features(m) for m in store.modalities}
    is_simulated = np.array([name.startswith("sim-") for name in store.object_ids()])
    return split_by_size(sources[0], sum(BUDGETS)), TokenSource(store, ~chosen & is_simulated), features


if __name__ == "__main__":
    main()
