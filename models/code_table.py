"""The one table of code vectors, shared by the encoder's input and the decoder's output.

The vocabularies stand one after the other, each at its offset. A code's vector is its own row plus what it has in
common with others: `features` (the factors of a quantised code, the rank of a bin) through a matrix of its vocabulary.
So neighbouring bins start, and stay, close, and rare codes learn from frequent ones. `code_loss.py` has the loss.

A measured number is predicted as a code, as its distribution may have any shape, and read as a number: where `numbers`
holds the value of a code, the encoder's input is linear in it. What the network makes of two magnitudes, such as their
difference, then need not be learned code by code.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .code_loss import code_losses


class CodeTable(nn.Module):
    """Vectors of the codes of several vocabularies: name -> number of codes, of features, and of numbers that are read.

    `output_scale` multiplies the logits (`width_transfer.py`).
    """

    starts: Tensor
    features: Tensor
    numbers: Tensor

    def __init__(
        self,
        vocabularies: Mapping[str, int],
        feature_sizes: Mapping[str, int],
        width: int,
        output_scale: float = 1.0,
        number_sizes: Mapping[str, int] | None = None,
    ):
        super().__init__()
        self.names = list(vocabularies)
        self.sizes = list(vocabularies.values())
        self.offsets = [0, *itertools.accumulate(self.sizes)]
        feature_size = max((feature_sizes.get(name, 0) for name in vocabularies), default=0)
        self.rows = nn.Parameter(torch.zeros(self.offsets[-1], width))
        self.factors = nn.Parameter(torch.zeros(len(self.sizes), feature_size, width))
        self.register_buffer("features", torch.zeros(self.offsets[-1], feature_size))
        number_size = max((number_sizes or {}).values(), default=0)
        # A model from before numbers were read has neither.
        self.readings = nn.Parameter(torch.zeros(len(self.sizes), number_size, width)) if number_size else None
        if number_size:
            self.register_buffer("numbers", torch.zeros(self.offsets[-1], number_size))
        self.register_buffer("starts", torch.tensor(self.offsets[:-1], dtype=torch.long))
        self.width = width
        self.output_scale = output_scale

    def reset_starts(self) -> None:
        """Fill in where the vocabularies start, after the table was made without memory."""
        with torch.no_grad():
            self.starts.copy_(torch.tensor(self.offsets[:-1], dtype=torch.long))

    def set_features(self, features: Mapping[str, Tensor], numbers: Mapping[str, Tensor] | None = None) -> None:
        """Store the features and the numbers, [V, S], of each vocabulary, by name."""
        for name, offset, size in zip(self.names, self.offsets, self.sizes, strict=False):
            values = features[name]
            self.features[offset : offset + size, : values.shape[1]] = values
            if self.readings is not None and numbers is not None:
                self.numbers[offset : offset + size, : numbers[name].shape[1]] = numbers[name]

    def copy_features_of(self, other: "CodeTable") -> None:
        """Take over the features and numbers of a table of the same sizes."""
        self.features.copy_(other.features)
        if self.readings is not None:
            self.numbers.copy_(other.numbers)

    def vectors(self, vocabulary: int) -> Float[Tensor, "V D"]:
        """Vectors of all codes of one vocabulary."""
        rows = slice(self.offsets[vocabulary], self.offsets[vocabulary + 1])
        return self.rows[rows] + self.features[rows] @ self.factors[vocabulary]

    def all_vectors(self) -> Float[Tensor, "V D"]:
        """Vectors of all codes, one vocabulary after the other."""
        return self.rows + self._by_vocabulary(self.features, self.factors)

    def read_vectors(self, vectors: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        """What the encoder reads of all codes, `vectors` being theirs: a number where the code stands for one."""
        if self.readings is None:
            return vectors
        is_number = self.numbers.any(1, keepdim=True)
        return torch.where(is_number, self._by_vocabulary(self.numbers, self.readings), vectors)

    def _by_vocabulary(self, values: Float[Tensor, "V S"], matrices: Float[Tensor, "K S D"]) -> Float[Tensor, "V D"]:
        parts = [
            values[start:stop] @ matrix
            for (start, stop), matrix in zip(itertools.pairwise(self.offsets), matrices, strict=True)
        ]
        return torch.cat(parts)

    def embed(
        self,
        codes: Int[Tensor, "B N"],
        vocabularies: Int[Tensor, "B N"],
        vectors: Float[Tensor, "V D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """What is read of codes, scaled to order one; `vectors` are `all_vectors()`, where they are at hand."""
        table = self.read_vectors(self.all_vectors() if vectors is None else vectors)
        return F.embedding(codes + self.starts[vocabularies], table) * math.sqrt(self.width)

    def logits(self, hidden: Float[Tensor, "... D"], vocabulary: int) -> Float[Tensor, "... V"]:
        """Logits over the codes of one vocabulary."""
        return hidden @ (self.vectors(vocabulary) * self.output_scale).to(hidden.dtype).T

    def cross_entropy(
        self,
        hidden: Float[Tensor, "B T D"],
        codes: Int[Tensor, "B T"],
        vocabularies: Int[Tensor, "B T"],
        weights: Float[Tensor, "B T"],
        most: Sequence[int] | None = None,
        vectors: Float[Tensor, "V D"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B T"]]:
        """Weighted sum of the tokens' losses, and each loss in nats, float32, over its own vocabulary (no gradient).

        Tokens of weight zero have none. `most`: how many tokens of each vocabulary a row may have, by default all;
        `vectors`: `all_vectors()`, where they are at hand.
        """
        vectors = self.all_vectors() if vectors is None else vectors
        caps = [min(count, hidden.shape[1]) for count in most or [hidden.shape[1]] * len(self.sizes)]
        return code_losses(hidden * self.output_scale, vectors, codes, vocabularies, weights, self.offsets, caps)
