"""The vectors of an object's tokens, before they are pooled into one: what attentive probes are fitted on."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from .embeddings import TOKEN_SPACE, Embeddings, EmbeddingsError

__all__ = ["TOKEN_SPACE", "TokenEmbeddings", "layers_of", "modalities_of"]


def layers_of(space: str | None) -> tuple[int, ...]:
    """The layers that the name of a space tells, `encoder tokens 0+4`; none for the encoder's last vectors."""
    words = (space or "").removeprefix(TOKEN_SPACE).split(" of ")[0].strip()
    return tuple(int(word) for word in words.split("+")) if words else ()


def modalities_of(space: str | None) -> tuple[str, ...]:
    """The modalities whose tokens stand side by side in a space, in order; none in other spaces."""
    _, _, columns = (space or "").partition(" of ")
    return tuple(column.split("*")[0] for column in columns.split("+")) if columns else ()


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """Vectors [B, N, D] of the tokens of B objects, float32, and which of them are valid [B, N].

    `space` says which of the encoder's vectors they are. `modalities` names, for each object, those its tokens came
    from; `columns`, the modality of each of the N places. Raises EmbeddingsError where the fields disagree in length,
    or an object has no valid token.
    """

    object_id: tuple[str, ...]
    vectors: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]
    model_id: str
    modalities: tuple[tuple[str, ...], ...]
    space: str = TOKEN_SPACE
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vectors", "mask", "modalities"):
            if len(getattr(self, name)) != len(self.object_id):
                count = len(getattr(self, name))
                raise EmbeddingsError(
                    f"{name} must hold one row for each of {len(self.object_id)} objects, not {count}"
                )
        empty = ~self.mask.any(1)
        if empty.any():
            raise EmbeddingsError(f"object {self.object_id[int(empty.nonzero()[0, 0])]}: no valid token")

    def __len__(self) -> int:
        return len(self.object_id)

    def rows(self, places: Sequence[int]) -> "TokenEmbeddings":
        """Some of the objects, by their places."""
        chosen = list(places)
        object_id = tuple(self.object_id[place] for place in chosen)
        modalities = tuple(self.modalities[place] for place in chosen)
        return TokenEmbeddings(
            object_id, self.vectors[chosen], self.mask[chosen], self.model_id, modalities, self.space, self.columns
        )

    def side_by_side(self) -> Embeddings:
        """All vectors of each object as one, zero where a token is missing: for objects that are seen in the same way,
        as by the same magnitudes. The space of the result names the modalities. Raises EmbeddingsError if it is not
        known whose the tokens are."""
        if len(self.columns) != self.mask.shape[1]:
            raise EmbeddingsError(
                f"columns must name the modality of each of {self.mask.shape[1]} tokens, found {len(self.columns)}"
            )
        counts = [(name, len(list(group))) for name, group in itertools.groupby(self.columns)]
        names = "+".join(name if count == 1 else f"{name}*{count}" for name, count in counts)
        vectors = (self.vectors * self.mask[..., None]).flatten(1)
        return Embeddings(self.object_id, vectors, f"{self.space} of {names}", self.model_id, self.modalities)

    def pooled(self) -> Embeddings:
        """The mean of each object's valid vectors: its embedding in the space `encoder`."""
        weights = self.mask[..., None].float()
        mean = (self.vectors * weights).sum(1) / weights.sum(1)
        return Embeddings(self.object_id, mean, "encoder", self.model_id, self.modalities)
