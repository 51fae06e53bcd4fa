"""Codes by what they encode: which codebook a token belongs to, and whether a source or the sky alone lies under it."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...data.observations import ImageObservation, SpectrumObservation
from ...tokenizers.token_grid import TokenGrid
from .codebook import CodeCounts

PLACES = ("source", "sky")


class CodebookUse:
    """Counts the codes of each codebook of a tokenizer, apart for tokens on sources and on sky."""

    def __init__(self, tokenizer: Any, tokens: TokenGrid):
        self.tokenizer = tokenizer
        self.counts = {
            (name, place): CodeCounts(size)
            for name, (_, size, _) in codebooks(tokenizer, tokens).items()
            for place in PLACES
        }

    def add(
        self, tokens: TokenGrid, observation: ImageObservation | SpectrumObservation, is_source: Bool[Tensor, "B *n"]
    ) -> None:
        """Count the tokens of a batch; `is_source` says which pixels show a source."""
        on_source = tokens_on(tokens, observation, is_source)
        for name, (first, _, belongs) in codebooks(self.tokenizer, tokens).items():
            for place, chosen in (("source", on_source), ("sky", ~on_source)):
                self.counts[name, place].add(tokens.codes[belongs & chosen] - first)

    def summary(self) -> dict[str, dict[str, dict[str, int | float]]]:
        """By codebook, then by place and for `all` tokens: `CodeCounts.summary`."""
        found: dict[str, dict[str, dict[str, int | float]]] = {}
        for (name, place), counts in self.counts.items():
            found.setdefault(name, {})[place] = counts.summary()
        for name, of_places in found.items():
            together = CodeCounts(len(self.counts[name, PLACES[0]].counts))
            together.counts = sum(self.counts[name, place].counts for place in PLACES)
            of_places["all"] = together.summary()
        return found

    def histograms(self) -> dict[str, dict[str, list[int]]]:
        """By codebook and place: how often each code that occurs does, the most frequent first."""
        found: dict[str, dict[str, list[int]]] = {}
        for (name, place), counts in self.counts.items():
            found.setdefault(name, {})[place] = sorted(counts.counts[counts.counts > 0].tolist(), reverse=True)
        return found


def codebooks(tokenizer: Any, tokens: TokenGrid) -> dict[str, tuple[int, int, Bool[Tensor, "B N"]]]:
    """The codebooks of a tokenizer: for each its first code, its number of codes, and which tokens are of it.

    A tokenizer with a learned quantiser keeps the codes of patches below `quantizer.vocabulary_size` and those of
    brightness or amplitude above.
    """
    total = tokenizer.vocabulary_size(tokens.modality)
    if not hasattr(tokenizer, "quantizer"):
        return {"value": (0, total, tokens.mask)}
    learned = tokenizer.quantizer.vocabulary_size
    below = tokens.codes < learned
    found = {"patch": (0, learned, tokens.mask & below)}
    if total > learned:
        found["brightness"] = (learned, total - learned, tokens.mask & ~below)
    return found


def tokens_on(
    tokens: TokenGrid, observation: ImageObservation | SpectrumObservation, is_source: Bool[Tensor, "B *n"]
) -> Bool[Tensor, "B N"]:
    """Whether any source pixel lies nearest to a token's place; False for tokens that lie nowhere in particular."""
    if isinstance(observation, SpectrumObservation):
        logarithm = observation.wavelength.clamp(min=1.0).log().float()
        return _touched(tokens.positions[..., 2], logarithm, is_source)
    shown = is_source.any(1)
    scale = observation.card.pixel_scale
    y, x = (
        (torch.arange(size) - observation.center[:, axis, None]) * scale for axis, size in enumerate(shown.shape[1:])
    )
    found = torch.zeros_like(tokens.mask)
    for row in range(len(tokens)):
        place = tokens.positions[row]
        lies = tokens.mask[row] & (place[:, 2] == 0)
        if lies.any():
            rows, row_of = place[lies, 1].unique(return_inverse=True)
            columns, column_of = place[lies, 0].unique(return_inverse=True)
            cells = torch.zeros(len(rows), len(columns), dtype=torch.long)
            at = _nearest(rows, y[row])[:, None] * len(columns) + _nearest(columns, x[row])
            cells.view(-1).scatter_add_(0, at.flatten(), shown[row].flatten().long())
            found[row, lies] = cells[row_of, column_of] > 0
    return found


def _touched(places: torch.Tensor, pixels: torch.Tensor, is_source: Bool[Tensor, "B L"]) -> Bool[Tensor, "B N"]:
    """Whether a source pixel is nearest to a token's place along one axis; places of 0 are nowhere."""
    found = torch.zeros(places.shape, dtype=torch.bool)
    for row in range(len(places)):
        lies = places[row] != 0
        if lies.any():
            known, index_of = places[row, lies].unique(return_inverse=True)
            counts = torch.zeros(len(known), dtype=torch.long)
            counts.scatter_add_(0, _nearest(known, pixels[row]), is_source[row].long())
            found[row, lies] = counts[index_of] > 0
    return found


def _nearest(places: torch.Tensor, wanted: torch.Tensor) -> Int[Tensor, " n"]:
    """Index of the nearest of ascending places."""
    middles = (places[1:] + places[:-1]) / 2
    return torch.searchsorted(middles, wanted.contiguous())
