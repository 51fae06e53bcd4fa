"""The masked encoder-decoder over tokens of all modalities (after 4M, Mizrahi et al. 2023, arXiv 2312.06647).

The encoder sees a budget of an object's tokens; the decoder predicts others from their position, modality and
instrument alone. It is a `transformers` model: config, `from_pretrained`, `save_pretrained`, `push_to_hub` and the
Auto classes work, in safetensors only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..data.instruments import INSTRUMENT_FEATURES
from ..tokenizers.blocks import Block, NumbersEmbedding, PositionEmbedding, RMSNorm, attendable
from .code_table import CodeTable
from .token_batch import TokenBatch

SIZES = {
    #        encoder blocks, decoder blocks, width, heads
    "nano": (4, 4, 128, 4),
    "tiny": (6, 6, 384, 6),
    "base": (12, 12, 768, 12),
    "large": (24, 24, 1024, 16),
    "xl": (24, 24, 2048, 32),
}
"""Base, Large and XL are AION-1's (Parker et al. 2025, arXiv 2510.17960, table of models)."""


class MaskedTransformerConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a masked transformer, and its vocabularies: name -> number of codes, in the table's order."""

    model_type = "armillary"

    def __init__(
        self,
        encoder_blocks: int = 4,
        decoder_blocks: int = 4,
        width: int = 128,
        num_heads: int = 4,
        vocabularies: Mapping[str, int] | None = None,
        code_feature_sizes: Mapping[str, int] | None = None,
        **others: Any,
    ):
        self.encoder_blocks = encoder_blocks
        self.decoder_blocks = decoder_blocks
        self.width = width
        self.num_heads = num_heads
        # Sorted, for JSON sorts them too, and the order is that of the table's rows.
        self.vocabularies = dict(sorted((vocabularies or {}).items()))
        self.code_feature_sizes = dict(sorted((code_feature_sizes or {}).items()))
        super().__init__(**others)

    @classmethod
    def of_size(cls, size: str, code_features: Mapping[str, Tensor]) -> "MaskedTransformerConfig":
        """The config of a named size, for vocabularies with these code features. Raises ValueError if unknown."""
        if size not in SIZES:
            raise ValueError(f"no model size {size!r}; known: {list(SIZES)}")
        encoder_blocks, decoder_blocks, width, num_heads = SIZES[size]
        return cls(
            encoder_blocks,
            decoder_blocks,
            width,
            num_heads,
            vocabularies={name: len(features) for name, features in code_features.items()},
            code_feature_sizes={name: features.shape[1] for name, features in code_features.items()},
        )


@dataclass
class MaskedTransformerOutput(ModelOutput):  # type: ignore[misc]
    """`loss`: weighted mean over valid targets; `token_losses` [B, T], nats, zero at padding; `encoded` [B, N, D]."""

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
        width, heads = config.width, config.num_heads
        self.codes = CodeTable(config.vocabularies, config.code_feature_sizes, width)
        self.position = PositionEmbedding(width)
        self.vocabulary = nn.Embedding(len(config.vocabularies), width)
        self.instrument = NumbersEmbedding(len(INSTRUMENT_FEATURES), width)
        self.encoder = nn.ModuleList(Block(width, heads) for _ in range(config.encoder_blocks))
        self.encoder_norm = RMSNorm(width)
        self.query = nn.Parameter(torch.zeros(width))
        self.decoder = nn.ModuleList(Block(width, heads) for _ in range(config.decoder_blocks))
        self.decoder_norm = RMSNorm(width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, CodeTable):
            module.reset_parameters()
        elif isinstance(module, MaskedTransformer):
            nn.init.normal_(module.query, std=0.5)
        elif isinstance(module, Block):
            module.reset_outputs()

    @property
    def vocabulary_index(self) -> dict[str, int]:
        """Index of each vocabulary by name."""
        return {name: index for index, name in enumerate(self.config.vocabularies)}

    def encode(self, inputs: TokenBatch) -> Float[Tensor, "B N D"]:
        """Vectors of the input tokens. Positions enter once, before the first block, and are not added again."""
        vocabularies = inputs.slot_vocabularies[inputs.slots]
        x = self.codes.embed(inputs.codes, vocabularies) + self._places(inputs)
        mask = attendable(inputs.mask)
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x)

    def decode(
        self, encoded: Float[Tensor, "B N D"], input_mask: Bool[Tensor, "B N"], targets: TokenBatch
    ) -> Float[Tensor, "B T D"]:
        """Vectors of the target tokens, from their place, vocabulary and instrument alone: their codes are not seen.

        Targets attend to the encoder's vectors and not to each other: what is predicted of a token does not depend on
        which others are asked for.
        """
        x = self.query + self._places(targets)
        mask = attendable(input_mask)
        for block in self.decoder:
            x = block(x, mask, encoded)
        return self.decoder_norm(x)

    def forward(
        self, inputs: TokenBatch, targets: TokenBatch, slot_weights: Float[Tensor, " S"] | None = None
    ) -> MaskedTransformerOutput:
        """Predict `targets` from `inputs`. The loss is the mean over valid target tokens, weighted by their slot.

        A token counts the same whatever the size of its vocabulary and the modalities beside it.
        """
        encoded = self.encode(inputs)
        hidden = self.decode(encoded, inputs.mask, targets)
        token_losses = self.codes.cross_entropy(
            hidden, targets.codes, targets.slot_vocabularies[targets.slots], targets.mask
        )
        weights = targets.mask.float()
        if slot_weights is not None:
            weights = weights * slot_weights[targets.slots]
        loss = (token_losses * weights).sum() / weights.sum().clamp(min=1e-6)
        return MaskedTransformerOutput(loss=loss, token_losses=token_losses, encoded=encoded)

    def predict(self, inputs: TokenBatch, targets: TokenBatch, vocabulary: str) -> Float[Tensor, "B T V"]:
        """Probabilities of each code of `vocabulary` for the targets, which must all belong to it."""
        hidden = self.decode(self.encode(inputs), inputs.mask, targets)
        return self.codes.logits(hidden, self.vocabulary_index[vocabulary]).float().softmax(-1)

    def _places(self, tokens: TokenBatch) -> Float[Tensor, "B N D"]:
        of_slot = self.vocabulary(tokens.slot_vocabularies) + self.instrument(tokens.instruments)
        slots = tokens.slots[..., None].expand(-1, -1, of_slot.shape[-1])
        return self.position(tokens.positions) + of_slot.gather(1, slots)


AutoConfig.register(MaskedTransformerConfig.model_type, MaskedTransformerConfig)
AutoModel.register(MaskedTransformerConfig, MaskedTransformer)
