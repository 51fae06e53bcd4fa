"""The masked encoder-decoder over tokens of all modalities (after 4M, Mizrahi et al. 2023, arXiv 2312.06647).

The encoder sees a budget of an object's tokens; the decoder predicts others from their position, modality and
instrument alone. It is a `transformers` model: config, `from_pretrained`, `save_pretrained`, `push_to_hub` and the
Auto classes work, in safetensors only.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..data.instruments import INSTRUMENT_FEATURES
from ..tokenizers.blocks import (
    Block,
    NumbersEmbedding,
    PositionEmbedding,
    RMSNorm,
    attendable,
    autocast_once,
    make_runs,
)
from ..tokenizers.packed_rows import PackedRows, can_pack, packed_pairs
from .code_table import CodeTable
from .token_batch import TokenBatch
from .width_transfer import Role, WeightScaling, weight_scaling

SIZES = {
    #        encoder blocks, decoder blocks, width, heads
    "nano": (4, 4, 128, 4),
    "tiny": (6, 6, 384, 6),
    "base": (12, 12, 768, 12),
    "large": (24, 24, 1024, 16),
    "xl": (24, 24, 2048, 32),
}
"""Base, Large and XL are AION-1's (Parker et al. 2025, arXiv 2510.17960, table of models)."""


ROLES: dict[str, Role] = {
    "codes.rows": "row",
    "codes.factors": "table",
    "codes.readings": "table",
    "position.project.weight": "input",
    "instrument.layers.0.weight": "input",
    "vocabulary.weight": "embedding",
    "query": "embedding",
}
"""Of the weights outside of the blocks; the others' follow from their names."""


class MaskedTransformerConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a masked transformer, and its vocabularies: name -> number of codes, in the table's order.

    `code_number_sizes`: how many numbers are read of the codes of each (`CodeTable.read_vectors`).

    `base_width`, `base_encoder_blocks` and `base_decoder_blocks` are the sizes at which learning rates were found
    (`width_transfer.py`), by default the model's own.
    """

    model_type = "armillary"

    def __init__(
        self,
        encoder_blocks: int = 4,
        decoder_blocks: int = 4,
        width: int = 128,
        num_heads: int = 4,
        vocabularies: Mapping[str, int] | None = None,
        code_feature_sizes: Mapping[str, int] | None = None,
        code_number_sizes: Mapping[str, int] | None = None,
        base_width: int | None = None,
        base_encoder_blocks: int | None = None,
        base_decoder_blocks: int | None = None,
        **others: Any,
    ):
        self.encoder_blocks = encoder_blocks
        self.decoder_blocks = decoder_blocks
        self.width = width
        self.num_heads = num_heads
        self.base_width = base_width or width
        self.base_encoder_blocks = base_encoder_blocks or encoder_blocks
        self.base_decoder_blocks = base_decoder_blocks or decoder_blocks
        # Sorted, for JSON sorts them too, and the order is that of the table's rows.
        self.vocabularies = dict(sorted((vocabularies or {}).items()))
        self.code_feature_sizes = dict(sorted((code_feature_sizes or {}).items()))
        self.code_number_sizes = dict(sorted((code_number_sizes or {}).items()))
        super().__init__(**others)

    @classmethod
    def of_size(
        cls,
        size: str,
        code_features: Mapping[str, Tensor],
        base_size: str | None = None,
        code_numbers: Mapping[str, Tensor] | None = None,
    ) -> "MaskedTransformerConfig":
        """The config of a named size, for vocabularies with these code features and numbers.

        `base_size` is the size at which its learning rate was found. Raises ValueError for an unknown size.
        """
        for name in (size, base_size or size):
            if name not in SIZES:
                raise ValueError(f"no model size {name!r}; known: {list(SIZES)}")
        encoder_blocks, decoder_blocks, width, num_heads = SIZES[size]
        base_encoder_blocks, base_decoder_blocks, base_width, _ = SIZES[base_size or size]
        return cls(
            encoder_blocks,
            decoder_blocks,
            width,
            num_heads,
            vocabularies={name: len(features) for name, features in code_features.items()},
            code_feature_sizes={name: features.shape[1] for name, features in code_features.items()},
            code_number_sizes={name: numbers.shape[1] for name, numbers in (code_numbers or {}).items()},
            base_width=base_width,
            base_encoder_blocks=base_encoder_blocks,
            base_decoder_blocks=base_decoder_blocks,
        )

    def at_base_size(self) -> "MaskedTransformerConfig":
        """The config of the model of base size, with heads as wide as these."""
        return MaskedTransformerConfig(
            self.base_encoder_blocks,
            self.base_decoder_blocks,
            self.base_width,
            max(1, self.num_heads * self.base_width // self.width),
            vocabularies=self.vocabularies,
            code_feature_sizes=self.code_feature_sizes,
            code_number_sizes=self.code_number_sizes,
        )


@dataclass
class MaskedTransformerOutput(ModelOutput):  # type: ignore[misc]
    """`loss`; `token_losses` [B, T], nats, zero at padding, without gradient; `encoded` [B, N, D]."""

    loss: Tensor | None = None
    token_losses: Tensor | None = None
    encoded: Tensor | None = None


class MaskedTransformer(PreTrainedModel):  # type: ignore[misc]
    """Masked encoder-decoder; see the module's description."""

    config_class = MaskedTransformerConfig
    main_input_name = "inputs"
    _supports_sdpa = True

    def __init__(self, config: MaskedTransformerConfig):
        super().__init__(config)
        self.gradient_checkpointing = False
        width, heads = config.width, config.num_heads
        # The multipliers of `width_transfer.py`, for the table and for the branches of both stacks.
        output_scale = math.sqrt(config.base_width / width)
        of_encoder = config.base_encoder_blocks / config.encoder_blocks
        of_decoder = config.base_decoder_blocks / config.decoder_blocks
        self.codes = CodeTable(
            config.vocabularies, config.code_feature_sizes, width, output_scale, config.code_number_sizes
        )
        self.position = PositionEmbedding(width)
        self.vocabulary = nn.Embedding(len(config.vocabularies), width)
        self.instrument = NumbersEmbedding(len(INSTRUMENT_FEATURES), width)
        self.encoder = nn.ModuleList(Block(width, heads, of_encoder) for _ in range(config.encoder_blocks))
        self.encoder_norm = RMSNorm(width)
        self.query = nn.Parameter(torch.zeros(width))
        self.decoder = nn.ModuleList(Block(width, heads, of_decoder) for _ in range(config.decoder_blocks))
        self.decoder_norm = RMSNorm(width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The whole model comes after its parts; transformers would not draw again what a part has drawn.
        if isinstance(module, CodeTable):
            module.reset_starts()
        elif isinstance(module, MaskedTransformer):
            scalings = module.weight_scalings()
            for name, weight in module.named_parameters():
                if role_of(name) == "gain":
                    nn.init.ones_(weight)
                else:
                    nn.init.normal_(weight, std=scalings[name].std)

    def weight_scalings(self) -> dict[str, WeightScaling]:
        """How each weight is drawn and trained, by name (`width_transfer.py`)."""
        config = self.config
        with torch.device("meta"):
            base = self if config.width == config.base_width else MaskedTransformer(config.at_base_size())
        shapes = {_of_first_block(name): weight.shape for name, weight in base.named_parameters()}
        depths = {
            "encoder": config.encoder_blocks / config.base_encoder_blocks,
            "decoder": config.decoder_blocks / config.base_decoder_blocks,
        }
        return {
            name: weight_scaling(
                name, weight.shape, role_of(name), shapes[_of_first_block(name)], depths.get(name.split(".")[0])
            )
            for name, weight in self.named_parameters()
        }

    @property
    def vocabulary_index(self) -> dict[str, int]:
        """Index of each vocabulary by name."""
        return {name: index for index, name in enumerate(self.config.vocabularies)}

    def encode(
        self,
        inputs: TokenBatch,
        vectors: Float[Tensor, "V D"] | None = None,
        stack: Sequence[nn.Module] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Vectors of the input tokens. Positions enter once, before the first block, and are not added again.

        `vectors` are those of all codes, where they are at hand; `stack` are other blocks, and the norm after them, in
        place of the encoder's.
        """
        if can_pack(inputs.mask):
            rows = PackedRows(inputs.mask)
            pairs = packed_pairs(rows, rows, self.config.num_heads)
            return rows.spread(self._encode(inputs.in_one_row(rows.places), vectors, None, pairs, stack))
        mask = attendable(inputs.mask)
        return self._encode(inputs, vectors, mask, make_runs(mask) if inputs.valid_first else None, stack)

    def _encode(
        self,
        inputs: TokenBatch,
        vectors: Tensor | None,
        mask: Tensor | None,
        runs: Any,
        stack: Sequence[nn.Module] | None,
    ) -> Tensor:
        vocabularies = inputs.slot_vocabularies[inputs.slots]
        x = self.codes.embed(inputs.codes, vocabularies, vectors) + self._places(inputs)
        *blocks, norm = (*self.encoder, self.encoder_norm) if stack is None else stack
        for block in blocks:
            x = self._through(block, x, mask, None, runs)
        return norm(x)

    def decode(
        self,
        encoded: Float[Tensor, "B N D"],
        input_mask: Bool[Tensor, "B N"],
        targets: TokenBatch,
        valid_first: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Vectors of the target tokens, from their place, vocabulary and instrument alone: their codes are not seen.

        Targets attend to the encoder's vectors and not to each other: what is predicted of a token does not depend on
        which others are asked for. `valid_first`: the inputs' padding comes last.
        """
        if can_pack(input_mask):
            given = PackedRows(input_mask)
            asked = PackedRows(targets.mask, given.order)
            pairs = packed_pairs(asked, given, self.config.num_heads)
            return asked.spread(self._decode(given.pack(encoded), targets.in_one_row(asked.places), None, pairs))
        mask = attendable(input_mask)
        return self._decode(encoded, targets, mask, make_runs(mask, targets.codes.shape[1]) if valid_first else None)

    def _decode(self, encoded: Tensor, targets: TokenBatch, mask: Tensor | None, runs: Any) -> Tensor:
        x = self.query + self._places(targets)
        encoded = autocast_once(encoded)
        for block in self.decoder:
            x = self._through(block, x, mask, encoded, runs)
        return self.decoder_norm(x)

    def _through(self, block: nn.Module, *arguments: Any) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def forward(
        self, inputs: TokenBatch, targets: TokenBatch, slot_weights: Float[Tensor, " S"] | None = None
    ) -> MaskedTransformerOutput:
        """Predict `targets` from `inputs`. The loss is the sum over valid targets, weighted by their slot, over their
        number, which does not depend on the weights.

        A token counts the same whatever the size of its vocabulary and the modalities beside it.
        """
        weights = targets.mask.float()
        if slot_weights is not None:
            weights = weights * slot_weights[targets.slots]
        total, token_losses, encoded = self.weighted_losses(inputs, targets, weights)
        loss = total / targets.mask.sum().clamp(min=1)
        return MaskedTransformerOutput(loss=loss, token_losses=token_losses, encoded=encoded)

    def weighted_losses(
        self,
        inputs: TokenBatch,
        targets: TokenBatch,
        weights: Float[Tensor, "B T"],
        most: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B T"], Float[Tensor, "B N D"]]:
        """Weighted sum of the target tokens' losses, each loss (no gradient), and the encoder's vectors.

        Tokens of weight zero are left out. `most`: how many targets of each vocabulary an object may have, by default
        all of them.
        """
        vectors = self.codes.all_vectors()
        encoded = self.encode(inputs, vectors)
        hidden = self.decode(encoded, inputs.mask, targets, inputs.valid_first)
        vocabularies = targets.slot_vocabularies[targets.slots]
        total, losses = self.codes.cross_entropy(hidden, targets.codes, vocabularies, weights, most, vectors)
        return total, losses, encoded

    def predict(self, inputs: TokenBatch, targets: TokenBatch, vocabulary: str) -> Float[Tensor, "B T V"]:
        """Probabilities of each code of `vocabulary` for the targets, which must all belong to it."""
        hidden = self.decode(self.encode(inputs), inputs.mask, targets, inputs.valid_first)
        return self.codes.logits(hidden, self.vocabulary_index[vocabulary]).float().softmax(-1)

    def _places(self, tokens: TokenBatch) -> Float[Tensor, "B N D"]:
        of_slot = self.vocabulary(tokens.slot_vocabularies) + self.instrument(tokens.instruments)
        slots = tokens.slots[..., None].expand(-1, -1, of_slot.shape[-1])
        return self.position(tokens.positions) + of_slot.gather(1, slots)


def role_of(name: str) -> Role:
    """The role of a weight of the masked transformer, by its name."""
    if name in ROLES:
        return ROLES[name]
    if name.endswith(".bias"):
        return "bias"
    if name.endswith("norm.weight"):
        return "gain"
    return "branch" if name.endswith(("to_output.weight", "down.weight")) else "hidden"


def _of_first_block(name: str) -> str:
    return re.sub(r"^(encoder|decoder)\.\d+\.", r"\1.0.", name)


AutoConfig.register(MaskedTransformerConfig.model_type, MaskedTransformerConfig)
AutoModel.register(MaskedTransformerConfig, MaskedTransformer)
