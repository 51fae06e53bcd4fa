"""Codes by what they encode: which codebook a token belongs to, and whether a source or the sky alone lies under it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...data.observations import ImageObservation, SpectrumObservation
from ...tokenizers.image import ImageTokenizer
from ...tokenizers.spectrum import SpectrumTokenizer
from ...tokenizers.token_grid import DETAIL, LOG_WAVELENGTH, TokenGrid
from .codebook import CodeCounts

PLACES = ("source", "sky")


@dataclass(frozen=True, eq=False)
class Codebook:
    """The tokens that `belong` to one codebook of `size` codes, and their codes in it; elsewhere these mean nothing."""

    codes: Int[Tensor, "B N"]
    size: int
    belong: Bool[Tensor, "B N"]


def codebooks(tokenizer: Any, tokens: TokenGrid) -> dict[str, Codebook]:
    """The codebooks of a tokenizer by name, the learned one first.

    A vocabulary holds several, one behind the other: an image's codes are those of details, of patches' brightness, of
    the object's brightness and of point sources; a spectrum's those of windows, which say a shape and how much is
    missing, of the spectrum's amplitude and noise, and of lines. Of an unknown tokenizer all codes are one book.
    """
    if isinstance(tokenizer, ImageTokenizer | SpectrumTokenizer):
        sizes = tokenizer.codebook_sizes()
    else:
        sizes = {"code": int(tokenizer.vocabulary_size(tokens.modality))}
    found, first = {}, 0
    for name, size in sizes.items():
        belong = tokens.mask & (tokens.codes >= first) & (tokens.codes < first + size)
        found[name] = Codebook(tokens.codes - first, size, belong)
        first += size
    if isinstance(tokenizer, SpectrumTokenizer):
        windows, shapes = found.pop("window"), tokenizer.num_learned_codes
        shape = {"shape": Codebook(windows.codes % shapes, shapes, windows.belong)}
        missing = {"missing share": Codebook(windows.codes // shapes, windows.size // shapes, windows.belong)}
        found = shape | missing | found
    return found


class CodebookUse:
    """Counts the codes of each codebook, apart for tokens on sources and on sky; of the learned one each detail too."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], CodeCounts] = {}
        self.details: dict[int, CodeCounts] = {}

    def add(
        self,
        tokenizer: Any,
        tokens: TokenGrid,
        observation: ImageObservation | SpectrumObservation,
        is_source: Bool[Tensor, "B *n"],
    ) -> None:
        """Count the tokens of a batch; `is_source` says which pixels show a source."""
        on_source = tokens_on(tokens, observation, is_source)
        books = codebooks(tokenizer, tokens)
        for name, book in books.items():
            for place, chosen in (("source", on_source), ("sky", ~on_source)):
                counts = self.counts.setdefault((name, place), CodeCounts(book.size))
                counts.add(book.codes[book.belong & chosen])
        learned = next(iter(books.values()))
        detail = tokens.positions[..., DETAIL].long()
        for number in detail[learned.belong].unique().tolist():
            counts = self.details.setdefault(number, CodeCounts(learned.size))
            counts.add(learned.codes[learned.belong & on_source & (detail == number)])

    def summary(self) -> dict[str, dict[str, dict[str, int | float]]]:
        """By codebook, then by place and for `all` tokens: `CodeCounts.summary`."""
        found: dict[str, dict[str, dict[str, int | float]]] = {}
        for name in dict.fromkeys(name for name, _ in self.counts):
            parts = {place: self.counts[name, place] for place in PLACES}
            together = CodeCounts(len(parts["source"].counts))
            for part in parts.values():
                together.counts += part.counts
            found[name] = {place: part.summary() for place, part in (parts | {"all": together}).items()}
        return found

    def of_details(self) -> dict[int, dict[str, int | float]]:
        """The summary of the learned codebook on sources for each detail; empty if its tokens have but one."""
        return {n: self.details[n].summary() for n in sorted(self.details)} if len(self.details) > 1 else {}

    def histograms(self) -> dict[str, list[int]]:
        """Of the learned codebook by place: how often each code that occurs does, the most frequent first."""
        learned = next(iter(self.counts), ("", ""))[0]
        return {
            place: sorted(counts.counts[counts.counts > 0].tolist(), reverse=True)
            for (name, place), counts in self.counts.items()
            if name == learned
        }


def tokens_on(
    tokens: TokenGrid, observation: ImageObservation | SpectrumObservation, is_source: Bool[Tensor, "B *n"]
) -> Bool[Tensor, "B N"]:
    """Whether any source pixel lies nearest to a token's place; False for tokens that lie nowhere in particular."""
    if isinstance(observation, SpectrumObservation):
        logarithm = observation.wavelength.clamp(min=1.0).log().float()
        return _touched(tokens.positions[..., LOG_WAVELENGTH], logarithm, is_source)
    shown = is_source.any(1)
    scale = observation.card.pixel_scale
    y, x = (
        (torch.arange(size) - observation.center[:, axis, None]) * scale for axis, size in enumerate(shown.shape[1:])
    )
    found = torch.zeros_like(tokens.mask)
    for row in range(len(tokens)):
        place = tokens.positions[row]
        lies = tokens.mask[row] & (place[:, LOG_WAVELENGTH] == 0) & (place[:, DETAIL] >= 0)
        if lies.any():
            rows, row_of = place[lies, 1].unique(return_inverse=True)
            columns, column_of = place[lies, 0].unique(return_inverse=True)
            cells = torch.zeros(len(rows), len(columns), dtype=torch.long)
            at = _nearest(rows, y[row])[:, None] * len(columns) + _nearest(columns, x[row])
            cells.view(-1).scatter_add_(0, at.flatten(), shown[row].flatten().long())
            found[row, lies] = cells[row_of, column_of] > 0
    return found


def _touched(places: Tensor, pixels: Tensor, is_source: Bool[Tensor, "B L"]) -> Bool[Tensor, "B N"]:
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


def _nearest(places: Tensor, wanted: Tensor) -> Int[Tensor, " n"]:
    """Index of the nearest of ascending places."""
    middles = (places[1:] + places[:-1]) / 2
    return torch.searchsorted(middles, wanted.contiguous())
