"""The contrastive head: attention pooling of encoder vectors into one shared space, and a symmetric InfoNCE.

Each kind of view (image, spectrum) has its own pooling; the vectors of all views have unit length in one space, where
the dot product compares them (CLIP, Radford et al. 2021, arXiv 2103.00020).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import Settings, validate_settings
from ..tokenizers.blocks import Attention, Block, RMSNorm, SwiGLU, attendable
from ..tokenizers.pretrained import load_weights, read_config, save_module

MODEL_TYPE = "armillary-alignment-head"
MAXIMUM_SCALE = 100.0
"""Upper limit of the inverse temperature, as in CLIP: beyond it training is unstable."""


class AlignmentHeadSettings(Settings):
    """Sizes of an alignment head over encoder vectors of `input_width`."""

    input_width: int = 128
    aligned_width: int = 64
    num_heads: int = 4
    num_blocks: int = 1
    """Transformer blocks over the encoder's vectors, before pooling."""
    views: tuple[str, ...] = ("image", "spectrum")


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
        mask = attendable(mask)
        for block in self.blocks:
            vectors = block(vectors, mask)
        query = self.query.expand(len(vectors), 1, -1)
        pooled = self.attention(query, self.norm(vectors), mask)[:, 0]
        return self.project(pooled + self.mlp(self.mlp_norm(pooled)))


class AlignmentHead(nn.Module):
    """Pooling for each kind of view, and the learned temperature."""

    def __init__(self, settings: AlignmentHeadSettings | None = None):
        super().__init__()
        self.settings = settings = settings or AlignmentHeadSettings()
        self.poolings = nn.ModuleDict({view: AttentionPooling(settings) for view in settings.views})
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, view: str, vectors: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B A"]:
        """Unit vectors of a view's objects. Raises KeyError for a view the head has no pooling for."""
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


def info_nce(first: Float[Tensor, "B A"], second: Float[Tensor, "B A"], scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of B pairs of unit vectors, summed over the pairs of this process, halved over directions.

    (van den Oord et al. 2018, arXiv 1807.03748, equation 4.) Negatives are gathered over all processes; each keeps a
    matrix of its own rows against all.
    """
    firsts, seconds, start = _gather(first), _gather(second), _start(len(first))
    labels = start + torch.arange(len(first), device=first.device)
    forward = F.cross_entropy(scale * first @ seconds.T, labels, reduction="sum")
    backward = F.cross_entropy(scale * second @ firsts.T, labels, reduction="sum")
    return (forward + backward) / 2


def _gather(vectors: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return vectors
    from torch.distributed.nn.functional import all_gather

    gathered: Sequence[Tensor] = all_gather(vectors)
    return torch.cat(list(gathered))


def _start(num_rows: int) -> int:
    return dist.get_rank() * num_rows if dist.is_available() and dist.is_initialized() else 0
