"""The vectors of an object's tokens, before they are pooled into one: what attentive probes are fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from .embeddings import Embeddings, EmbeddingsError

TOKEN_SPACE = "encoder tokens"
"""The space of the encoder's last vectors; with `layers`, its name says which: `encoder tokens 0+4`."""


def layers_of(space: str | None) -> tuple[int, ...]:
    """The layers that the name of a space tells; none for the encoder's last vectors."""
    words = (space or "").removeprefix(TOKEN_SPACE).strip()
    return tuple(int(word) for word in words.split("+")) if words else ()


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """Vectors [B, N, D] of the tokens of B objects, float32, and which of them are valid [B, N].

    `space` says which of the encoder's vectors they are. `modalities` names, for each object, those its tokens came
    from. Raises EmbeddingsError where the fields disagree in length, or an object has no valid token.
    """

    object_id: tuple[str, ...]
    vectors: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]
    model_id: str
    modalities: tuple[tuple[str, ...], ...]
    space: str = TOKEN_SPACE

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
            object_id, self.vectors[chosen], self.mask[chosen], self.model_id, modalities, self.space
        )

    def pooled(self) -> Embeddings:
        """The mean of each object's valid vectors: its embedding in the space `encoder`."""
        weights = self.mask[..., None].float()
        mean = (self.vectors * weights).sum(1) / weights.sum(1)
        return Embeddings(self.object_id, mean, "encoder", self.model_id, self.modalities)
