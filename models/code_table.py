"""The one table of code vectors, shared by the encoder's input and the decoder's output.

The vocabularies stand one after the other, each at its offset. A code's vector is its own row plus what it has in
common with others: `features` (the factors of a quantised code, the rank of a bin) through a matrix of its vocabulary.
So neighbouring bins start, and stay, close, and rare codes learn from frequent ones.
"""

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class CodeTable(nn.Module):
    """Vectors of the codes of several vocabularies: name -> number of codes, and name -> number of features.

    `output_scale` multiplies the logits (`width_transfer.py`).
    """

    starts: Tensor
    features: Tensor

    def __init__(
        self, vocabularies: Mapping[str, int], feature_sizes: Mapping[str, int], width: int, output_scale: float = 1.0
    ):
        super().__init__()
        self.names = list(vocabularies)
        self.sizes = list(vocabularies.values())
        self.offsets = [0, *itertools.accumulate(self.sizes)]
        feature_size = max((feature_sizes.get(name, 0) for name in vocabularies), default=0)
        self.rows = nn.Parameter(torch.zeros(self.offsets[-1], width))
        self.factors = nn.Parameter(torch.zeros(len(self.sizes), feature_size, width))
        self.register_buffer("features", torch.zeros(self.offsets[-1], feature_size))
        self.register_buffer("starts", torch.tensor(self.offsets[:-1], dtype=torch.long))
        self.width = width
        self.output_scale = output_scale

    def reset_starts(self) -> None:
        """Fill in where the vocabularies start, after the table was made without memory."""
        with torch.no_grad():
            self.starts.copy_(torch.tensor(self.offsets[:-1], dtype=torch.long))

    def set_features(self, features: Mapping[str, Tensor]) -> None:
        """Store the features [V, S] of each vocabulary, by name."""
        for name, offset, size in zip(self.names, self.offsets, self.sizes, strict=False):
            values = features[name]
            self.features[offset : offset + size, : values.shape[1]] = values

    def vectors(self, vocabulary: int) -> Float[Tensor, "V D"]:
        """Vectors of all codes of one vocabulary."""
        rows = slice(self.offsets[vocabulary], self.offsets[vocabulary + 1])
        return self.rows[rows] + self.features[rows] @ self.factors[vocabulary]

    def embed(self, codes: Int[Tensor, "B N"], vocabularies: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Vectors of codes, scaled to order one."""
        table = torch.cat([self.vectors(index) for index in range(len(self.sizes))])
        return F.embedding(codes + self.starts[vocabularies], table) * math.sqrt(self.width)

    def logits(self, hidden: Float[Tensor, "... D"], vocabulary: int) -> Float[Tensor, "... V"]:
        """Logits over the codes of one vocabulary."""
        return hidden @ (self.vectors(vocabulary) * self.output_scale).to(hidden.dtype).T

    def cross_entropy(
        self,
        hidden: Float[Tensor, "B T D"],
        codes: Int[Tensor, "B T"],
        vocabularies: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """Loss of each valid token in nats, float32, over its own vocabulary; zero at padding.

        Goes through the vocabularies one by one: logits over the whole table never exist.
        """
        # Bound to `hidden`, so that a batch without any valid token still has a gradient, which is zero.
        losses = 0.0 * hidden.float().sum(-1)
        for index in range(len(self.sizes)):
            here = mask & (vocabularies == index)
            if here.any():
                logits = self.logits(hidden[here], index).float()
                losses = losses.masked_scatter(here, F.cross_entropy(logits, codes[here], reduction="none"))
        return losses
