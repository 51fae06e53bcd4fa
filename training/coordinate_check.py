"""The coordinate check: do activations stay of one size as the model grows, over the first steps of training?

The first test of any transfer of learning rates (Yang et al. 2022, arXiv 2203.03466, appendix D.1). Small models of
several widths take a few steps on one made-up batch; with `width_transfer.py` the sizes of what flows through them
hardly depend on the width, without it those after the first step grow with it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.instruments import INSTRUMENT_FEATURES
from ..models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from ..models.token_batch import TokenBatch
from ..tokenizers.token_grid import POSITION_FEATURES
from .loop import LoopSettings, make_optimizer

VOCABULARIES = {"a": 96, "b": 32}
HEAD_WIDTH = 16
PLACES = ("embedded", "encoded", "decoded", "logits")


def made_up_tokens(num_objects: int, num_tokens: int, seed: int) -> TokenBatch:
    """Tokens of two vocabularies, `num_tokens` of each: codes follow from their place and a number of the object."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(num_objects, 2 * num_tokens, generator=generator)
    phase = 3 * torch.rand(num_objects, 1, generator=generator)
    slots = torch.arange(2).repeat_interleave(num_tokens).expand(num_objects, -1)
    sizes = torch.tensor(list(VOCABULARIES.values()))
    codes = ((0.5 + 0.5 * torch.sin(6 * place + phase + slots)) * (sizes[slots] - 1)).round().long()
    positions = torch.zeros(num_objects, 2 * num_tokens, len(POSITION_FEATURES))
    positions[..., 0] = 20 * place
    features = torch.eye(2, len(INSTRUMENT_FEATURES)).expand(num_objects, -1, -1)
    mask = torch.ones(codes.shape, dtype=torch.bool)
    return TokenBatch(codes, mask, positions, slots, torch.arange(2), features)


def small_transformer(width: int, blocks: int, base: tuple[int, int] | None, seed: int) -> MaskedTransformer:
    """A transformer for `made_up_tokens`, `blocks` in each stack; `base` is its base width and blocks, or its own."""
    torch.manual_seed(seed)
    features = {name: torch.cat([_rank(size), torch.ones(size, 1)], 1) for name, size in VOCABULARIES.items()}
    numbers = {"a": torch.zeros(VOCABULARIES["a"], 0), "b": 2 * features["b"] - 1}
    base_width, base_blocks = base or (None, None)
    config = MaskedTransformerConfig(
        blocks,
        blocks,
        width,
        max(1, width // HEAD_WIDTH),
        vocabularies=VOCABULARIES,
        code_feature_sizes={name: values.shape[1] for name, values in features.items()},
        code_number_sizes={name: values.shape[1] for name, values in numbers.items()},
        base_width=base_width,
        base_encoder_blocks=base_blocks,
        base_decoder_blocks=base_blocks,
    )
    transformer = MaskedTransformer(config)
    transformer.codes.set_features(features, numbers)
    return transformer


def coordinate_check(
    widths: Sequence[int],
    steps: int = 5,
    *,
    transfer: bool = True,
    depths: Sequence[int] = (2,),
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Float[Tensor, "W K P"]:
    """Root mean square at PLACES before each of `steps` steps of AdamW, for models of each width and depth.

    Models are ordered by width, then depth (W of them); the first is the base of all with `transfer`. Raises ValueError
    for widths that are no multiples of HEAD_WIDTH.
    """
    wrong = [width for width in widths if width < HEAD_WIDTH or width % HEAD_WIDTH]
    if wrong:
        raise ValueError(f"widths must be multiples of {HEAD_WIDTH}, found {wrong}")
    inputs, targets = split(made_up_tokens(32, 24, seed))
    found = []
    for width in widths:
        for blocks in depths:
            transformer = small_transformer(width, blocks, (widths[0], depths[0]) if transfer else None, seed)
            settings = LoopSettings(learning_rate=learning_rate, weight_decay=0.0)
            optimizer = make_optimizer(transformer, settings)
            rows = []
            for _ in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * group["scale"]
                rows.append(_sizes(transformer, inputs, targets))
                optimizer.zero_grad()
                loss = transformer(inputs, targets).loss
                loss.backward()
                optimizer.step()
            found.append(torch.stack(rows))
    return torch.stack(found)


def draw_coordinate_check(path: str | Path, widths: Sequence[int], steps: int = 5) -> None:
    """Draw the sizes over the width after each step, without and with the transfer, to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(PLACES), 5), layout="constrained")
    axes = figure.subplots(2, len(PLACES), sharex=True, sharey="col")
    for row, transfer in enumerate((False, True)):
        sizes = coordinate_check(widths, steps, transfer=transfer)
        for axis, place, of_place in zip(axes[row], PLACES, sizes.unbind(2), strict=True):
            for step, of_step in enumerate(of_place.unbind(1)):
                axis.plot(list(widths), of_step.tolist(), marker="o", markersize=3, label=f"step {step}")
            axis.set(xscale="log", yscale="log", title=place if row == 0 else None)
            axis.set_xticks(list(widths), [str(width) for width in widths], minor=False)
            axis.minorticks_off()
        axes[row, 0].set_ylabel(f"root mean square,\n{'with' if transfer else 'without'} the transfer")
    axes[0, -1].legend(fontsize="small")
    for axis in axes[1]:
        axis.set_xlabel("width")
    temporary = Path(path).with_suffix(".partial.png")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


@torch.no_grad()
def _sizes(transformer: MaskedTransformer, inputs: TokenBatch, targets: TokenBatch) -> Float[Tensor, " P"]:
    found: list[Tensor] = []
    # Before the last norms, which hide any growth.
    modules = (transformer.encoder[0], transformer.encoder_norm, transformer.decoder_norm)
    handles = [part.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0])) for part in modules]
    decoded = transformer.decode(transformer.encode(inputs), inputs.mask, targets)
    for handle in handles:
        handle.remove()
    every = range(len(VOCABULARIES))
    found.append(torch.cat([transformer.codes.logits(decoded, index).flatten() for index in every]))
    return torch.stack([part.square().mean().sqrt() for part in found])


def split(tokens: TokenBatch) -> tuple[TokenBatch, TokenBatch]:
    """Every third token as inputs, the others as targets."""
    given = torch.arange(tokens.codes.shape[1]) % 3 == 0
    return _chosen(tokens, given), _chosen(tokens, ~given)


def _chosen(tokens: TokenBatch, chosen: Tensor) -> TokenBatch:
    places = chosen.nonzero()[:, 0].expand(len(tokens), -1)
    return tokens.take(places, torch.ones_like(places, dtype=torch.bool))


def _rank(size: int) -> Float[Tensor, "V 4"]:
    place = torch.linspace(0, 3.14159, size)[:, None]
    return torch.cos(place * torch.arange(1, 5))
