"""What is gathered of a tokenizer of images or spectra while the objects of one modality stream by.

Sums and a few numbers for each object are kept, never pixels, so that any number of objects may be measured.
"""

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data.observations import ImageObservation, SpectrumObservation
from ...tokenizers.token_grid import TokenGrid
from .codes_of_sources import CodebookUse, codebooks
from .photometry import object_flux, object_magnitude
from .pixel_scores import PixelSums, object_chi2, object_psnr, sum_pixels
from .principal_components import PrincipalComponents
from .rank_area import RankArea
from .redshift_probe import image_features, spectrum_features, token_features
from .simulated_truth import SimulatedTruth
from .source_pixels import signal_to_noise

Pixels = ImageObservation | SpectrumObservation

SIGNAL_TO_NOISE_EDGES = (-math.inf, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)


@dataclass(frozen=True, eq=False)
class Compared:
    """A batch, what was made of its tokens, and the truth where it is known; pixels `seen` are valid in both."""

    observation: Pixels
    tokens: TokenGrid
    made: Float[Tensor, "B *pixels"]
    true: Float[Tensor, "B *pixels"] | None
    seen: Bool[Tensor, "B *pixels"]
    signal_to_noise: Float[Tensor, "B *pixels"]
    source: Bool[Tensor, "B *pixels"]


@dataclass
class PixelMeasures:
    """The gatherer; `sums` are by (reference, what is compared with it, which pixels, ...)."""

    tokenizer: Any
    truth: SimulatedTruth | None
    source_sigma: float
    components: PrincipalComponents | None = None
    sums: dict[tuple[str, ...], PixelSums] = field(default_factory=dict)
    objects: dict[str, list[np.ndarray]] = field(default_factory=dict)
    features: dict[str, list[np.ndarray]] = field(default_factory=dict)
    object_id: list[str] = field(default_factory=list)
    validity: RankArea = field(default_factory=RankArea)
    codes: CodebookUse = field(default_factory=CodebookUse)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By `encode` and `decode`: seconds for each object, batch after batch."""
    bands: tuple[str, ...] = ()

    def add(self, observation: Pixels) -> None:
        """Encode and decode a batch, and keep what the scores need."""
        compared = self._compare(observation)
        self.object_id += observation.object_id
        if isinstance(observation, ImageObservation):
            self.bands = tuple(observation.bands)
        self._add_pixels(compared)
        self._add_objects(compared)
        self._add_tokens(compared)
        self._add_features(compared)

    def _compare(self, observation: Pixels) -> Compared:
        start = time.perf_counter()
        tokens = self.tokenizer.encode(observation)
        middle = time.perf_counter()
        made = self.tokenizer.decode(tokens, observation)
        stop = time.perf_counter()
        for name, seconds in (("encode", middle - start), ("decode", stop - middle)):
            self.seconds.setdefault(name, []).append(seconds / len(observation))
        true = None if self.truth is None else self.truth.pixels(observation)
        ratio = signal_to_noise(observation, true)
        seen = observation.mask & made.mask
        return Compared(observation, tokens, made.flux, true, seen, ratio, seen & (ratio > self.source_sigma))

    def _add_pixels(self, of: Compared) -> None:
        observed, ivar = of.observation.flux, of.observation.inverse_variance
        others = {"tokens": of.made, "zero": torch.zeros_like(of.made)}
        if self.components is not None and self.components.fits(of.observation):
            others["components"] = self.components.reconstruct(of.observation)
        references = {"observed": observed}
        if of.true is not None:
            references["true"] = of.true
            self._add_sums(("observed", "true"), observed, of.true, ivar, of.seen, of.source)
            self._add_sums(("true", "observed"), of.true, observed, ivar, of.seen, of.source)
        for against, reference in references.items():
            for name, other in others.items():
                self._add_sums((against, name), reference, other, ivar, of.seen, of.source)
            bins = itertools.pairwise(SIGNAL_TO_NOISE_EDGES)
            for number, (low, high) in enumerate(bins):
                chosen = of.seen & (of.signal_to_noise >= low) & (of.signal_to_noise < high)
                self._sum((against, "tokens", "bin", str(number)), sum_pixels(reference, of.made, ivar, chosen))
            for column, band in enumerate(self.bands):
                names = (against, "tokens", "band", band)
                parts = [t[:, column] for t in (reference, of.made, ivar, of.seen, of.source)]
                self._add_sums(names, *parts)

    def _add_sums(
        self,
        names: tuple[str, ...],
        reference: Float[Tensor, "B *pixels"],
        other: Float[Tensor, "B *pixels"],
        ivar: Float[Tensor, "B *pixels"],
        seen: Bool[Tensor, "B *pixels"],
        source: Bool[Tensor, "B *pixels"],
    ) -> None:
        for place, chosen in (("all", seen), ("source", source)):
            self._sum((*names, place), sum_pixels(reference, other, ivar, chosen))

    def _sum(self, key: tuple[str, ...], sums: PixelSums) -> None:
        self.sums[key] = self.sums.get(key, PixelSums()) + sums

    def _add_objects(self, of: Compared) -> None:
        observed, ivar = of.observation.flux, of.observation.inverse_variance
        reference = observed if of.true is None else of.true
        kept = {"psnr": object_psnr(reference, of.made, of.seen)}
        for place, chosen in (("all", of.seen), ("source", of.source)):
            kept[f"chi2 {place}"], kept[f"pixels {place}"] = object_chi2(observed, of.made, ivar, chosen)
            kept[f"error {place}"], _ = object_chi2(reference, of.made, ivar, chosen)
        kept["flux made"] = object_flux(of.observation, of.made, of.seen)
        kept["flux reference"] = object_flux(of.observation, reference, of.seen)
        kept["magnitude"] = object_magnitude(of.observation, reference, of.seen)
        kept["valid"] = of.observation.mask.flatten(1).sum(1)
        kept["tokens"] = of.tokens.mask.sum(1)
        kept["bits"] = bits(self.tokenizer, of.tokens)
        for name, values in kept.items():
            self.objects.setdefault(name, []).append(values.double().numpy())

    def _add_tokens(self, of: Compared) -> None:
        self.codes.add(self.tokenizer, of.tokens, of.observation, of.source)
        if hasattr(self.tokenizer, "validity"):
            probability = self.tokenizer.validity(of.tokens, of.observation)
            exists = torch.ones_like(of.observation.mask)
            if isinstance(of.observation, SpectrumObservation):
                exists = of.observation.wavelength > 0  # what is not is padding, and no pixel
            self.validity.add(probability[exists].float().cpu(), of.observation.mask[exists])

    def _add_features(self, of: Compared) -> None:
        versions = {"original": of.observation.flux, "reconstruction": of.made}
        if of.true is not None:
            versions["original without noise"] = of.true
        for name, flux in versions.items():
            if isinstance(of.observation, ImageObservation):
                values = image_features(flux, of.seen, of.observation)
            else:
                values = spectrum_features(flux, of.seen, of.observation)
            self.features.setdefault(name, []).append(values)
        codes = self.tokenizer.code_features(of.tokens.modality).cpu()
        self.features.setdefault("tokens", []).append(token_features(of.tokens, codes))


def bits(tokenizer: Any, tokens: TokenGrid) -> Float[Tensor, " B"]:
    """Bits of each object's tokens at the full size of their codebooks."""
    parts = [book.belong.sum(1) * math.log2(book.size) for book in codebooks(tokenizer, tokens).values()]
    return torch.stack(parts).sum(0)
