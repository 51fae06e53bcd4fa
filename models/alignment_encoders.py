"""The part of the encoder that alignment trains, if any; it is kept with the head, beside the pretrained model.

So the pretrained encoder and its decoder stay a pair: predictions of masked tokens and vectors of the space `encoder`
are the same before and after alignment.
"""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from ..tokenizers.blocks import Block, RMSNorm
from .masked_transformer import MaskedTransformer, MaskedTransformerConfig
from .token_batch import TokenBatch
from .width_transfer import WeightScaling

EncoderChoice = Literal["frozen", "last_blocks", "scratch"]
SIZES = (
    "encoder_blocks",
    "width",
    "num_heads",
    "vocabularies",
    "code_feature_sizes",
    "code_number_sizes",
    "base_width",
    "base_encoder_blocks",
)
"""What a config says of an encoder."""


class LastBlocks(nn.Module):
    """A copy of the last blocks of a pretrained encoder, for all views, and of the norm after them."""

    def __init__(self, width: int, num_heads: int, num_blocks: int, branch: float):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, branch) for _ in range(num_blocks))
        self.norm = RMSNorm(width)

    def start_from(self, transformer: MaskedTransformer) -> None:
        """Take over the weights of the pretrained blocks."""
        for own, pretrained in zip(self.blocks, transformer.encoder[-len(self.blocks) :], strict=True):
            own.load_state_dict(pretrained.state_dict())
        self.norm.load_state_dict(transformer.encoder_norm.state_dict())

    def encode(self, transformer: MaskedTransformer, tokens: TokenBatch) -> Float[Tensor, "B N D"]:
        """Vectors of tokens: the pretrained blocks below, then these."""
        below = list(transformer.encoder)[: -len(self.blocks)]
        return transformer.encode(tokens, stack=[*below, *self.blocks, self.norm])

    def weight_scalings(self, transformer: MaskedTransformer) -> dict[str, WeightScaling]:
        """Those of the weights they are copies of, by the names that these have here."""
        of_all = transformer.weight_scalings()
        skipped = len(transformer.encoder) - len(self.blocks)
        scalings = {"norm.weight": of_all["encoder_norm.weight"]}
        for index, block in enumerate(self.blocks):
            for name, _ in block.named_parameters():
                scalings[f"blocks.{index}.{name}"] = of_all[f"encoder.{skipped + index}.{name}"]
        return scalings


def encoder_sizes(transformer: MaskedTransformer) -> dict[str, Any]:
    """What `new_encoder` needs to know of a transformer, as plain data."""
    return {name: getattr(transformer.config, name) for name in SIZES}


def new_encoder(sizes: dict[str, Any]) -> MaskedTransformer:
    """An untrained encoder: a masked transformer that has no decoder."""
    encoder = MaskedTransformer(MaskedTransformerConfig(decoder_blocks=1, **sizes))
    encoder.decoder = nn.ModuleList()
    for unused in (encoder.query, encoder.decoder_norm.weight):
        unused.requires_grad_(False)
    return encoder
