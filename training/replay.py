"""A step that was not taken, once more: whose loss and which weights' gradients are not finite, in which precision.

`armillary pretrain CONFIG --replay <run>/bad-steps/step-.../process-0` reads what `loop.py` kept there.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..data.token_loader import common_modalities
from ..models.foundation import new_transformer
from ..models.token_batch import TokenBatch
from ..tokenizers.pretrained import PretrainedError, read_tensors
from .loop import choose_precision
from .mask_sampler import draw_masks
from .pretrain import PretrainSettings
from .pretrain_objective import STORED
from .token_sources import open_sources
from .tokenizers import load_tokenizers

WORST = 5
"""Objects that are named."""


def replay(settings: PretrainSettings, folder: str | Path) -> list[str]:
    """Repeat the step that is kept in `folder`; returns lines that say what was found.

    Runs on the CPU, without a compiler, in float32 and in the precision of the settings. Raises PretrainedError if the
    folder does not hold a step and weights of such a model.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "objects.json").read_text(encoding="utf-8"))
        weights = load_file(folder.parent / "process-0" / "weights.safetensors")
    except OSError as error:
        raise PretrainedError(f"{folder}: expected a step that was kept when a run stopped, found: {error}") from None
    kept = read_tensors(folder / "batch.safetensors")
    tokens = TokenBatch(**{name: kept[name] for name in STORED}, valid_first=True)
    tokenizers = load_tokenizers(settings.tokenizers)
    stores = [source.store for source in open_sources(settings.tokens, tokenizers, ())]
    transformer = new_transformer(settings.size, tokenizers, common_modalities(stores), settings.base_size).train()
    transformer.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in weights.items()})
    step, ids = description["step"], description["object_ids"]
    budgets = settings.num_inputs, settings.num_targets
    inputs, targets = draw_masks(tokens, kept["keys"], settings.loop.seed, step, *budgets, settings.masks)
    lines = [f"step {step}, {len(ids)} objects of {description['store']}"]
    for precision in dict.fromkeys(("32-true", choose_precision(settings.loop.precision))):
        transformer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            total, losses, _ = transformer.weighted_losses(inputs, targets, targets.mask.float())
        total.backward()
        of_objects = losses.sum(1) / targets.mask.sum(1).clamp(min=1)
        worst = torch.where(of_objects.isfinite(), of_objects, torch.inf).argsort(descending=True)[:WORST].tolist()
        named = ", ".join(f"{ids[row]} {of_objects[row]:.3f}" for row in worst)
        lines.append(f"{precision}: loss {total / targets.mask.sum():.4f} nats; greatest: {named}")
        broken = [n for n, w in transformer.named_parameters() if w.grad is not None and not w.grad.isfinite().all()]
        lines.append(f"{precision}: gradients that are not finite: {', '.join(broken) or 'none'}")
    return lines
