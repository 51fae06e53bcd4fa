"""The common contract of the tokenizers: an observation in, integers with their place on the sky or in wavelength out.

    encode(observation) -> TokenGrid            decode(TokenGrid, instrument) -> observation
    save_pretrained(folder)                     from_pretrained(folder or Hub id)

Positions are physical, so that tokens of all instruments share one system: offsets from the object in arcsec, and the
logarithm of wavelength in angstrom.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.modalities import Modality
from ..data.observations import ObservationError

POSITION_FEATURES = ("x_arcsec", "y_arcsec", "log_wavelength", "detail")
"""The detail is 0 for a token that stands alone, and counts those that refine one before them at the same place."""
LOG_WAVELENGTH, DETAIL = (POSITION_FEATURES.index(name) for name in ("log_wavelength", "detail"))


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Tokens of one modality for B objects.

    `codes` lie in [0, vocabulary_size) of the modality's tokenizer where `mask` is True; elsewhere they are 0 and mean
    nothing. `positions` follow POSITION_FEATURES, zero where a feature does not apply. `instrument` holds the
    INSTRUMENT_FEATURES of each object's instrument.
    """

    modality: Modality
    object_id: Sequence[str]
    codes: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]
    positions: Float[Tensor, "B N P"]
    instrument: Float[Tensor, "B F"]

    def __len__(self) -> int:
        return self.codes.shape[0]

    @property
    def num_tokens(self) -> int:
        """N, padding included."""
        return self.codes.shape[1]

    def select(self, rows: Tensor) -> "TokenGrid":
        """The objects of these rows, in this order."""
        return replace(
            self,
            object_id=tuple(self.object_id[i] for i in rows.tolist()),
            codes=self.codes[rows],
            mask=self.mask[rows],
            positions=self.positions[rows],
            instrument=self.instrument[rows],
        )


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a learned tokenizer's `loss` returns: the number to minimise, and what is worth watching.

    `parts` are scalars for the log, by name. `codes` and `mask` are those of the learned quantiser, without gradient,
    on the tokenizer's device: of them the loop sees which codes are dead.
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    codes: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does; each takes observations of its own kind, of any instrument with a card."""

    kind: str

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes."""

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """Numbers that say what codes have in common."""

    def code_numbers(self, modality: Modality) -> Float[Tensor, "V S"]:
        """What the encoder reads of codes that stand for a number: one and the number, of order one, in columns for
        each sort of number; zeros for codes that stand for none."""

    def encode(self, observation: Any) -> TokenGrid:
        """Tokens of an observation, which is not changed; the same observation always gives the same tokens."""

    def decode(self, tokens: TokenGrid, target: Any = None) -> Any:
        """An observation from tokens, as `target` (a modality, or an observation with the wanted grid) measures."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer to a folder, as safetensors and JSON."""

    def to(self, device: Any) -> Any:
        """Move the weights, as torch modules do."""


def check_kind(kind: str, modality: Modality) -> None:
    """Raise ObservationError if a tokenizer of `kind` is given something of another."""
    if modality.kind != kind:
        raise ObservationError(f"{modality.name}: expected a modality of kind {kind}, found {modality.kind}")


def empty_positions(num_objects: int, num_tokens: int) -> Float[Tensor, "B N P"]:
    """Positions of tokens that lie nowhere in particular, such as scalars."""
    return torch.zeros(num_objects, num_tokens, len(POSITION_FEATURES))


def detailed_positions(num_objects: int, num_tokens: int) -> Float[Tensor, "B N P"]:
    """Positions of tokens that lie nowhere in particular, each of which but the first refines those before it."""
    positions = empty_positions(num_objects, num_tokens)
    positions[..., DETAIL] = torch.arange(num_tokens)
    return positions


def check_codes(tokens: TokenGrid, ranges: Sequence[tuple[int, int]]) -> None:
    """Raise ObservationError unless there are these tokens, and the code of each, where valid, lies in [low, high)."""
    name, found = tokens.modality.name, tokens.num_tokens
    if found != len(ranges):
        raise ObservationError(f"{name}: expected {len(ranges)} tokens of each object, found {found}")
    for place, (low, high) in enumerate(ranges):
        codes = tokens.codes[:, place]
        wrong = (tokens.mask[:, place] & ((codes < low) | (codes >= high))).nonzero()[:, 0].tolist()
        if wrong:
            raise ObservationError(
                f"{name}, object {tokens.object_id[wrong[0]]}: expected a code in [{low}, {high}) as token {place}, "
                f"found {codes[wrong[0]].item()}. Was it made by another tokenizer?"
            )
