"""The tokenizer of low-resolution spectra that a catalogue gives as coefficients, such as Gaia's BP/RP.

The first token keeps the amplitude, in bins of equal width in its logarithm. The shape, over the amplitude, is
projected on principal components with the inverse variances of each object, so that a missing coefficient has no
influence and a noisy one little; the components are quantised, a few in each token, with as many levels each as its
share of chi2 deserves. What the amplitude's bin leaves is quantised like a component. All is fitted, in two passes over
a stream.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..data.instruments import Arm, CoefficientSpectrograph
from ..data.modalities import Modality
from ..data.observations import CoefficientsObservation, ObservationError
from ..settings import Settings, validate_settings
from .level_allocation import allocate_levels, level_positions
from .pretrained import load_weights, read_config, resolve_folder, save_module
from .quantile_sketch import QuantileSketch
from .quantizers import FiniteScalarQuantizer, even_bins, number_features, rank_features
from .spectral_shapes import ShapeMoments, SpectralShapes, is_complete
from .token_grid import TokenGrid, check_codes, check_kind, detailed_positions
from .token_places import TokenPlaces

MODEL_TYPE = "armillary-coefficients-tokenizer"
AMPLITUDE_RANGE = (0.0, 9.0)
"""Limits of log10 of the amplitude, in the unit of the coefficients: for Gaia's electrons / s, from G of 23 to 0.7."""
NOISE_CELL = 0.25
"""Width, in log10 of the amplitude, of the cells for which the typical noise is kept."""
LOOSE_AMPLITUDE = 0.5
"""Standard deviation, relative, granted to a first guess of the amplitude."""
MOST_COSINES = 8
CHUNK = 1024
"""Objects whose systems of equations are solved at once."""


class CoefficientsTokenizerSettings(Settings):
    """Sizes of a coefficients tokenizer; the last three are found by `fit`."""

    num_tokens: Annotated[int, Field(ge=1)] = 7
    """For the shape; the amplitude's token comes before them."""
    num_codes: Annotated[int, Field(ge=2)] = 1024
    """Of each of these tokens, at most."""
    num_amplitudes: Annotated[int, Field(ge=2)] = 512
    num_components: Annotated[int, Field(ge=1)] = 40
    """Principal components that are fitted to a spectrum; those that get no levels are dropped after that."""
    arms: tuple[Arm, ...] = ()
    components: tuple[tuple[int, ...], ...] = ()
    """Of each token: 0 is what the amplitude's bin leaves, 1 the first principal component."""
    levels: tuple[tuple[int, ...], ...] = ()
    """Of each component of each token."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> "CoefficientsTokenizerSettings":
        if self.num_tokens * self.num_codes + self.num_amplitudes > 2**15:
            raise ValueError(
                "tokens are stored as int16: num_tokens times num_codes plus num_amplitudes must not exceed 32768"
            )
        if [len(token) for token in self.components] != [len(token) for token in self.levels]:
            raise ValueError(f"components and levels must agree, found {self.components} and {self.levels}")
        return self


class CoefficientsTokenizer(nn.Module):
    """Coefficients to tokens and back, for the one instrument it was fitted to; see the module's description."""

    kind = "coefficients"
    mean: Tensor
    basis: Tensor
    power: Tensor
    noise: Tensor
    rest: Tensor
    noise_ratio: Tensor
    loss_of_codes: Tensor
    places: Tensor

    def __init__(self, settings: CoefficientsTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or CoefficientsTokenizerSettings()
        num_coefficients = sum(arm.num_coefficients for arm in settings.arms)
        num_columns = 1 + min(settings.num_components, num_coefficients)
        sizes = {
            **dict.fromkeys(("mean", "power", "noise", "rest", "loss_of_codes"), (num_coefficients,)),
            "basis": (num_coefficients, num_columns - 1),
            "noise_ratio": (_num_cells(),),
            "places": (num_columns, settings.num_codes),
        }
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self.quantizers = nn.ModuleList(FiniteScalarQuantizer(levels) for levels in settings.levels)
        self.step = (AMPLITUDE_RANGE[1] - AMPLITUDE_RANGE[0]) / settings.num_amplitudes

    def fit(self, stream: Callable[[], Iterable[CoefficientsObservation]]) -> "CoefficientsTokenizer":
        """A tokenizer for the spectra that `stream()` gives; it is called twice, and never held in memory.

        Learns from objects with every coefficient and error. Raises ObservationError if there are fewer of them than
        coefficients, and if the stream holds several instruments.
        """
        moments, first = None, None
        for observation in stream():
            if moments is None or first is None:
                moments, first = ShapeMoments(observation.card.num_coefficients), observation.modality
            _check_arms(observation.modality, observation.card.arms, _card(first).arms)
            moments.update(observation)
        if moments is None or first is None:
            raise ObservationError("expected coefficients to learn from, found no observation")
        try:
            shapes = moments.shapes(self.settings.num_components)
        except ObservationError as error:
            raise ObservationError(f"{first.name}: {error}") from None
        fitted = CoefficientsTokenizer(
            self.settings.model_copy(update={"arms": _card(first).arms, "components": (), "levels": ()})
        )
        fitted._set_shapes(shapes)
        return fitted._with_levels(stream())

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes: those of the amplitude, then those of each token of the shape.

        Raises ObservationError if never fitted, or fitted to an instrument with other arms, as do all of the following.
        """
        self._check(modality)
        return self._offsets()[-1]

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """Cosines of the rank of the amplitude, and of the level of each component of a token."""
        self._check(modality)
        features = [rank_features(self.settings.num_amplitudes)]
        for quantizer in self._quantizers():
            digits = _digits(quantizer, torch.arange(quantizer.vocabulary_size, device=quantizer.levels.device)).cpu()
            cosines = [rank_features(n, min(n, MOST_COSINES)) for n in quantizer.levels.tolist()]
            features.append(torch.cat([table[digits[:, i]] for i, table in enumerate(cosines)], 1))
        return torch.block_diag(*features)

    def code_numbers(self, modality: Modality) -> Float[Tensor, "V S"]:
        """The amplitude, as its logarithm."""
        numbers = number_features(even_bins(AMPLITUDE_RANGE, self.settings.num_amplitudes) - 4)
        return F.pad(numbers, (0, 0, 0, self.vocabulary_size(modality) - len(numbers)))

    @torch.no_grad()
    def encode(self, observation: CoefficientsObservation) -> TokenGrid:
        """The amplitude's token and those of the shape; all masked for an object without any coefficient.

        An infinite error hides a coefficient as the mask does; an unknown one is taken to be typical. Raises
        ObservationError for an object whose amplitude is beyond AMPLITUDE_RANGE.
        """
        check_kind(self.kind, observation.modality)
        self._check(observation.modality)
        amplitude_codes = self._amplitude_codes(observation)
        latents = self._latents(observation, self._amplitudes(amplitude_codes))
        codes = [amplitude_codes]
        for quantizer, components, offset in zip(
            self._quantizers(), self.settings.components, self._offsets(), strict=False
        ):
            digits = torch.stack([self._level(latents[:, c], c, n) for c, n in self._counts(quantizer, components)], 1)
            codes.append((digits * quantizer.strides).sum(1) + offset)
        mask = _is_measured(observation).any(1)[:, None].expand(-1, len(codes))
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.where(mask, torch.stack(codes, 1).cpu(), 0),
            mask=mask.contiguous(),
            positions=detailed_positions(len(observation), len(codes)),
            instrument=torch.from_numpy(observation.card.features()).repeat(len(observation), 1),
        )

    @torch.no_grad()
    def decode(
        self, tokens: TokenGrid, target: Modality | CoefficientsObservation | None = None
    ) -> CoefficientsObservation:
        """Coefficients from tokens; masked where the amplitude is. A masked token of the shape leaves its mean.

        `error` is how far measured coefficients typically lie from these: noise at that amplitude, and what the codes
        lose. `target`, a modality or observation, must have the arms that the tokenizer was fitted to. Raises
        ObservationError if it has not, or the codes are none of this tokenizer.
        """
        check_kind(self.kind, tokens.modality)
        wanted = tokens.modality if target is None else target if isinstance(target, Modality) else target.modality
        self._check(tokens.modality)
        self._check(wanted)
        check_codes(tokens, list(itertools.pairwise([0, *self._offsets()])))
        device = self.mean.device
        amplitude = self._amplitudes(torch.where(tokens.mask[:, 0], tokens.codes[:, 0], 0).to(device))
        latents = torch.zeros(len(tokens), self.places.shape[0], dtype=torch.float64, device=device)
        for place, (quantizer, components, offset) in enumerate(
            zip(self._quantizers(), self.settings.components, self._offsets(), strict=False), start=1
        ):
            valid = tokens.mask[:, place].to(device)
            digits = _digits(quantizer, torch.where(valid, tokens.codes[:, place].to(device) - offset, 0))
            for axis, component in enumerate(components):
                latents[:, component] = torch.where(valid, self.places[component, digits[:, axis]], 0.0)
        shapes = self.mean + latents @ self._columns(self._bin_spread()).T
        variance = self.noise.square() * self._noise_ratio(amplitude)[:, None] + self.loss_of_codes
        scale = amplitude[:, None]
        valid = tokens.mask[:, :1].expand(-1, len(self.mean))
        values, error = (scale * shapes).cpu(), (scale * variance.sqrt()).cpu()
        return CoefficientsObservation(wanted, tokens.object_id, values, valid, error)

    def token_places(self, target: CoefficientsObservation) -> TokenPlaces:
        """Where coefficients have tokens: all of them, always. Of the target, only the object ids are used."""
        check_kind(self.kind, target.modality)
        self._check(target.modality)
        offsets = torch.tensor([0, *self._offsets()])
        mask = torch.ones(len(target), len(offsets) - 1, dtype=torch.bool)
        grid = TokenGrid(
            modality=target.modality,
            object_id=tuple(target.object_id),
            codes=torch.zeros(mask.shape, dtype=torch.long),
            mask=mask,
            positions=detailed_positions(*mask.shape),
            instrument=torch.from_numpy(target.card.features()).repeat(len(target), 1),
        )
        # The shape is in units of the amplitude.
        return TokenPlaces(grid, mask, offsets[:-1], offsets[1:], torch.zeros(mask.shape[1], dtype=torch.long))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors to `folder`."""
        save_module(folder, self, {"model_type": MODEL_TYPE, **self.settings.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> "CoefficientsTokenizer":
        """Load from a folder or the Hub. Raises PretrainedError."""
        folder = resolve_folder(folder_or_hub_id)
        config = read_config(folder, MODEL_TYPE)
        tokenizer = cls(validate_settings(CoefficientsTokenizerSettings, config, str(folder)))
        load_weights(folder, tokenizer)
        return tokenizer.eval()

    def _set_shapes(self, shapes: SpectralShapes) -> None:
        self.mean.copy_(shapes.mean)
        self.basis.copy_(shapes.components)
        self.power.copy_(shapes.power)
        self.noise.copy_(shapes.noise)
        self.rest.copy_(shapes.rest)
        self.noise_ratio.fill_(1.0)

    def _with_levels(self, observations: Iterable[CoefficientsObservation]) -> "CoefficientsTokenizer":
        """The second pass: the distribution of each component gives the levels, errors the noise at each amplitude."""
        sketches = [QuantileSketch() for _ in range(len(self.places))]
        ratios, counts = np.zeros(_num_cells()), np.zeros(_num_cells())
        for observation in observations:
            observation = observation.select(is_complete(observation).nonzero()[:, 0])
            if not len(observation):
                continue
            amplitude = self._amplitudes(self._amplitude_codes(observation))
            for sketch, latents in zip(sketches, self._latents(observation, amplitude).T, strict=True):
                sketch.update(latents.numpy())
            ratio = (observation.error.double() / amplitude[:, None] / self.noise).square().mean(1).numpy()
            cells = _cells(amplitude).floor().long().clamp(0, len(ratios) - 1).numpy()
            ratios += np.bincount(cells, ratio, len(ratios))
            counts += np.bincount(cells, minlength=len(ratios))
        seen = [sketch.weighted_values() for sketch in sketches]
        # In units of the noise: what each component adds to chi2 if it is left out.
        columns = self._columns(self._bin_spread())
        share = (columns / self.noise[:, None]).square().sum(0)
        variances = [float(np.average(values.astype(np.float64) ** 2, weights=weights)) for values, weights in seen]
        tokens = allocate_levels(
            [float(s) * v for s, v in zip(share, variances, strict=True)],
            self.settings.num_tokens,
            self.settings.num_codes,
        )
        found = {
            "components": tuple(tuple(token) for token in tokens),
            "levels": tuple(tuple(token.values()) for token in tokens),
        }
        fitted = CoefficientsTokenizer(self.settings.model_copy(update=found))
        for name in ("mean", "basis", "power", "noise", "rest"):
            getattr(fitted, name).copy_(getattr(self, name))
        lost = np.array(variances)
        for component, count in ((c, n) for token in tokens for c, n in token.items()):
            values, weights = seen[component]
            places = level_positions(values, weights, count)
            fitted.places[component, :count] = torch.from_numpy(places)
            nearest = places[_nearest(places, values.astype(np.float64))]
            lost[component] = np.average((values - nearest) ** 2, weights=weights)
        fitted.loss_of_codes.copy_(self.rest + columns.square() @ torch.from_numpy(lost))
        filled = counts.nonzero()[0]
        ratio = np.interp(np.arange(len(counts)), filled, np.log(ratios[filled] / counts[filled]))
        fitted.noise_ratio.copy_(torch.from_numpy(np.exp(ratio)))
        return fitted

    def _amplitude_codes(self, observation: CoefficientsObservation) -> Int[Tensor, " B"]:
        """The bin of each amplitude; below the range, the lowest."""
        mask = _is_measured(observation).to(self.mean.device)
        values = observation.values.to(self.mean.device).double()
        expected = (mask * self.power).sum(1)
        guess = ((mask * values).square().sum(1) / expected.clamp(min=1e-12)).sqrt().clamp(min=10 ** AMPLITUDE_RANGE[0])
        # Where coefficients are missing, what is there tells the amplitude by its shape, too.
        correction = self._latents(observation, guess, LOOSE_AMPLITUDE)[:, 0] * LOOSE_AMPLITUDE
        amplitude = guess * (1 + correction).clamp(0.1, 10.0)
        codes = ((amplitude.log10() - AMPLITUDE_RANGE[0]) / self.step).floor().long()
        beyond = (mask.any(1) & (codes >= self.settings.num_amplitudes)).nonzero()[:, 0].tolist()
        if beyond:
            raise ObservationError(
                f"{observation.modality.name}, object {observation.object_id[beyond[0]]}: expected an amplitude (root "
                f"of the sum of squares) up to 1e{AMPLITUDE_RANGE[1]:.0f} {observation.card.unit}, "
                f"found {amplitude[beyond[0]].item():.3g}"
            )
        return codes.clamp(0, self.settings.num_amplitudes - 1)

    def _amplitudes(self, codes: Int[Tensor, " B"]) -> Float64[Tensor, " B"]:
        return 10 ** (AMPLITUDE_RANGE[0] + (codes.double() + 0.5) * self.step)

    def _bin_spread(self) -> float:
        """Standard deviation of amplitudes within a bin, relative."""
        return self.step * math.log(10) / math.sqrt(12)

    def _columns(self, amplitude_spread: float) -> Float64[Tensor, "K R"]:
        """An error of the amplitude of one standard deviation, then the principal components."""
        return torch.cat([self.mean[:, None] * amplitude_spread, self.basis], 1)

    def _latents(
        self,
        observation: CoefficientsObservation,
        amplitude: Float64[Tensor, " B"],
        amplitude_spread: float | None = None,
    ) -> Float64[Tensor, "B R"]:
        """The posterior mean of each component, by Gaussian errors and a normal prior (the Wiener filter)."""
        columns = self._columns(self._bin_spread() if amplitude_spread is None else amplitude_spread)
        parts = []
        for rows in torch.arange(len(observation)).split(CHUNK):
            scale = amplitude[rows.to(amplitude.device), None]
            values, error, mask = (
                t[rows].to(scale.device) for t in (observation.values, observation.error, _is_measured(observation))
            )
            typical = self.noise.square() * self._noise_ratio(scale[:, 0])[:, None]
            variance = torch.where(error.isnan(), typical, (error.double() / scale).square()) + self.rest
            weight = mask / variance
            information = torch.einsum("kr,bks->brs", columns, weight[..., None] * columns)
            information = information + torch.eye(columns.shape[1], dtype=torch.float64, device=scale.device)
            right = (weight * (values.double() / scale - self.mean)) @ columns
            parts.append(torch.linalg.solve(information, right))
        return torch.cat(parts)

    def _noise_ratio(self, amplitude: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Relative variance of the noise at an amplitude, over that of all objects."""
        place = (_cells(amplitude) - 0.5).clamp(0, len(self.noise_ratio) - 1)
        low = place.floor().long().clamp(max=len(self.noise_ratio) - 2)
        return torch.lerp(self.noise_ratio[low].log(), self.noise_ratio[low + 1].log(), place - low).exp()

    def _level(self, latents: Float64[Tensor, " B"], component: int, count: int) -> Int[Tensor, " B"]:
        places = self.places[component, :count]
        return torch.searchsorted((places[1:] + places[:-1]) / 2, latents.contiguous())

    def _counts(self, quantizer: FiniteScalarQuantizer, components: Sequence[int]) -> Iterable[tuple[int, int]]:
        return zip(components, quantizer.levels.tolist(), strict=True)

    def _quantizers(self) -> list[FiniteScalarQuantizer]:
        return [q for q in self.quantizers if isinstance(q, FiniteScalarQuantizer)]

    def _offsets(self) -> list[int]:
        """Where the codes of each token of the shape begin, and the size of the vocabulary."""
        offsets = [self.settings.num_amplitudes]
        for quantizer in self._quantizers():
            offsets.append(offsets[-1] + quantizer.vocabulary_size)
        return offsets

    def _check(self, modality: Modality) -> None:
        if not self.settings.arms:
            raise ObservationError(f"{modality.name}: this tokenizer was never fitted")
        _check_arms(modality, _card(modality).arms, self.settings.arms)


def _is_measured(observation: CoefficientsObservation) -> Bool[Tensor, "B K"]:
    return observation.mask & ~observation.error.isinf()


def _card(modality: Modality) -> CoefficientSpectrograph:
    check_kind("coefficients", modality)
    assert isinstance(modality.card, CoefficientSpectrograph)  # what the kind says
    return modality.card


def _check_arms(modality: Modality, found: Sequence[Arm], expected: Sequence[Arm]) -> None:
    if tuple(found) != tuple(expected):
        raise ObservationError(
            f"{modality.name}: expected the arms that this tokenizer was fitted to, {_described(expected)}; found "
            f"{_described(found)}"
        )


def _described(arms: Sequence[Arm]) -> str:
    parts = (f"{a.name} ({a.num_coefficients} coefficients, {a.wavelength_min:g}-{a.wavelength_max:g} A)" for a in arms)
    return " + ".join(parts)


def _digits(quantizer: FiniteScalarQuantizer, codes: Int[Tensor, " B"]) -> Int[Tensor, "B Q"]:
    steps = quantizer.levels - 1
    return ((quantizer.from_codes(codes) + 1) / 2 * steps).round().long()


def _nearest(places: Float64[np.ndarray, " c"], values: Float64[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    return np.searchsorted((places[1:] + places[:-1]) / 2, values)


def _cells(amplitude: Tensor) -> Tensor:
    """Place of amplitudes among the cells of the noise, in widths of a cell."""
    return (amplitude.log10() - AMPLITUDE_RANGE[0]) / NOISE_CELL


def _num_cells() -> int:
    return math.ceil((AMPLITUDE_RANGE[1] - AMPLITUDE_RANGE[0]) / NOISE_CELL)
