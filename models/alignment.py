"""The contrastive head: attention pooling of encoder vectors into one shared space.

Each view (`alignment_views.py`) has its own pooling; the vectors of all views have unit length in one space, where the
dot product compares them (CLIP, Radford et al. 2021, arXiv 2103.00020). `alignment_losses.py` has what brings them
together, `alignment_encoders.py` the part of the encoder that was trained with the head, if any.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from ..settings import Settings, validate_settings
from ..tokenizers.blocks import Attention, Block, RMSNorm, SwiGLU, attendable
from ..tokenizers.packed_rows import PackedRows, can_pack, packed_pairs
from ..tokenizers.pretrained import load_weights, read_config, save_module
from .alignment_encoders import EncoderChoice, LastBlocks, encoder_sizes, new_encoder
from .alignment_losses import LossName
from .alignment_views import Views, parse_views
from .masked_transformer import MaskedTransformer
from .token_batch import TokenBatch

MODEL_TYPE = "armillary-alignment-head"
MAXIMUM_SCALE = 100.0
"""Upper limit of the inverse temperature, as in CLIP: beyond it training is unstable."""
FIRST_BIAS = -10.0
"""Of the sigmoid loss, as in SigLIP: nearly all pairs are of two objects, and so it begins with saying."""


class AlignmentHeadSettings(Settings):
    """Sizes of an alignment head over encoder vectors of `input_width`."""

    input_width: int = 128
    aligned_width: int = 64
    num_heads: int = 4
    num_blocks: int = 1
    """Transformer blocks over the encoder's vectors, before pooling."""
    views: Views = parse_views(["image", "spectrum"])
    loss: LossName = "infonce"
    """The sigmoid loss learns a bias beside the scale."""
    initial_scale: float = Field(default=10.0, ge=1, le=MAXIMUM_SCALE)
    encoder: EncoderChoice = "frozen"
    """What encodes tokens: the pretrained model, with other last blocks, or an encoder for each view."""
    num_unfrozen_blocks: int = 0
    encoder_branch: float = 1.0
    """What the branches of unfrozen blocks are multiplied by, as in the pretrained model."""
    encoder_sizes: dict[str, Any] | None = None
    """Sizes of encoders from scratch, and their vocabularies."""


class AttentionPooling(nn.Module):
    """One vector from many: blocks over the tokens, then attention from one learned query."""

    def __init__(self, settings: AlignmentHeadSettings):
        super().__init__()
        width = settings.input_width
        self.blocks = nn.ModuleList(Block(width, settings.num_heads) for _ in range(settings.num_blocks))
        self.norm = RMSNorm(width)
        self.query = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.attention = Attention(width, settings.num_heads)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, 2 * width)
        self.project = nn.Linear(width, settings.aligned_width, bias=False)

    def forward(self, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B A"]:
        """Pool the valid vectors of each object; an object without any gives a vector that means nothing."""
        if can_pack(mask):
            # An object without a vector asks its first place, as nobody can attend to nothing.
            rows = PackedRows(mask | (~mask.any(1, keepdim=True) & (torch.arange(mask.shape[1]) == 0)))
            asking = PackedRows(torch.ones_like(mask[:, :1]), rows.order)
            pairs = packed_pairs(rows, rows, self.attention.num_heads)
            asked = packed_pairs(asking, rows, self.attention.num_heads)
            return asking.spread(self._pool(rows.pack(vectors), len(mask), None, pairs, asked))[:, 0]
        mask = attendable(mask)
        return self._pool(vectors, len(mask), mask, None, None)[:, 0]

    def _pool(self, vectors: Tensor, num_objects: int, mask: Tensor | None, pairs: Any, asked: Any) -> Tensor:
        for block in self.blocks:
            vectors = block(vectors, mask, None, pairs)
        # Packed objects stand in one row.
        query = self.query.expand(*((num_objects, 1) if asked is None else (1, num_objects)), -1)
        pooled = self.attention(query, self.norm(vectors), mask, asked)
        return self.project(pooled + self.mlp(self.mlp_norm(pooled)))


class AlignmentHead(nn.Module):
    """Pooling for each view, the learned temperature, and what was trained of the encoder."""

    def __init__(self, settings: AlignmentHeadSettings | None = None):
        super().__init__()
        self.settings = settings = settings or AlignmentHeadSettings()
        self.poolings = nn.ModuleDict({view: AttentionPooling(settings) for view in settings.views})
        self.log_scale = nn.Parameter(torch.tensor(math.log(settings.initial_scale)))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS)) if settings.loss == "sigmoid" else None
        if settings.encoder == "last_blocks":
            self.last_blocks = LastBlocks(
                settings.input_width, settings.num_heads, settings.num_unfrozen_blocks, settings.encoder_branch
            )
        elif settings.encoder == "scratch":
            assert settings.encoder_sizes is not None  # `head_for` says
            self.encoders = nn.ModuleDict({view: new_encoder(settings.encoder_sizes) for view in settings.views})

    def encode(self, view: str, transformer: MaskedTransformer, tokens: TokenBatch) -> Float[Tensor, "B N D"]:
        """The encoder's vectors of tokens of a view."""
        if self.settings.encoder == "last_blocks":
            return self.last_blocks.encode(transformer, tokens)
        return (self.own_encoders()[view] if self.settings.encoder == "scratch" else transformer).encode(tokens)

    def own_encoders(self) -> dict[str, MaskedTransformer]:
        """The encoders from scratch, by view."""
        found = {}
        for view, encoder in self.encoders.items():
            assert isinstance(encoder, MaskedTransformer)
            found[view] = encoder
        return found

    def forward(self, view: str, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B A"]:
        """Unit vectors of a view's objects, by the encoder's vectors. Raises KeyError for a view without a pooling."""
        return F.normalize(self.poolings[view](vectors, mask).float(), dim=-1)

    def scale(self) -> Float[Tensor, ""]:
        """The inverse temperature, clamped to [1, MAXIMUM_SCALE]."""
        return self.log_scale.clamp(0.0, math.log(MAXIMUM_SCALE)).exp()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors to `folder`."""
        save_module(folder, self, {"model_type": MODEL_TYPE, **self.settings.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "AlignmentHead":
        """Load from a folder. Raises PretrainedError."""
        config = read_config(folder, MODEL_TYPE)
        head = cls(validate_settings(AlignmentHeadSettings, config, str(folder)))
        load_weights(folder, head)
        return head.eval()


def head_for(transformer: MaskedTransformer, settings: AlignmentHeadSettings) -> AlignmentHead:
    """An untrained head for a pretrained transformer, which fills in its sizes; unfrozen blocks start as it has them.

    Raises ValueError if there are fewer blocks than should be unfrozen.
    """
    config = transformer.config
    if settings.encoder == "last_blocks" and not 1 <= settings.num_unfrozen_blocks <= config.encoder_blocks:
        raise ValueError(
            f"encoder: last_blocks trains num_unfrozen_blocks, at least 1 and at most the encoder's "
            f"{config.encoder_blocks}; found {settings.num_unfrozen_blocks}"
        )
    fitting = {
        "input_width": config.width,
        "num_heads": config.num_heads,
        "encoder_branch": config.base_encoder_blocks / config.encoder_blocks,
        "encoder_sizes": encoder_sizes(transformer) if settings.encoder == "scratch" else None,
    }
    head = AlignmentHead(settings.model_copy(update=fitting))
    if settings.encoder == "last_blocks":
        head.last_blocks.start_from(transformer)
    elif settings.encoder == "scratch":
        for encoder in head.own_encoders().values():
            encoder.codes.copy_features_of(transformer.codes)
    return head
