"""The scalar tokenizer: bins of equal mass for each quantity, learned in one pass over a stream of values.

The lowest and the highest code are kept for values outside the range that was seen, so that these are told apart from
extremes within it. A missing value is a masked token, never a bin. The error of a measurement enters in two ways: as a
second token with bins of its own (`num_error_codes`), and as the probability of each bin (`soft_codes`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..data.modalities import Modality
from ..data.observations import ObservationError, ScalarObservation
from ..settings import Settings, validate_settings
from .equal_mass_bins import BinTable, EqualMassBins, equal_mass_bins
from .pretrained import load_weights, read_config, resolve_folder, save_module
from .quantile_sketch import QuantileSketch
from .quantizers import number_features, rank_features
from .token_grid import TokenGrid, check_codes, check_kind, detailed_positions

MODEL_TYPE = "armillary-scalar-tokenizer"


class ScalarTokenizerSettings(Settings):
    """Number of codes of every quantity, and the quantities it knows once it is fitted."""

    num_codes: Annotated[int, Field(ge=4)] = 256
    """At most, two outer codes included: a quantity of few different values has fewer."""
    num_error_codes: Annotated[int, Field(ge=0)] = 0
    """At most, of the error's token, two outer codes included; 0 for tokens of values alone."""
    modalities: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sizes_agree(self) -> "ScalarTokenizerSettings":
        if 0 < self.num_error_codes < 4:
            raise ValueError(f"num_error_codes must be 0 or at least 4, found {self.num_error_codes}")
        if self.num_codes + self.num_error_codes > 2**15:
            raise ValueError("tokens are stored as int16: num_codes plus num_error_codes must not exceed 32768")
        return self


class ScalarSketch:
    """What a tokenizer learns of one quantity: the distribution of its values and of their errors.

    Takes a stream in bounded memory; sketches of several files or processes merge (`quantile_sketch.py`).
    """

    def __init__(self) -> None:
        self.values = QuantileSketch()
        self.errors = QuantileSketch()

    def update(self, observation: ScalarObservation) -> None:
        """Add the valid values of a batch, and those of their errors that are known."""
        self.values.update(observation.values[observation.mask].numpy())
        self.errors.update(observation.error[_has_error(observation)].numpy())

    def merge(self, other: "ScalarSketch") -> None:
        """Add what another sketch has seen."""
        self.values.merge(other.values)
        self.errors.merge(other.errors)


class ScalarTokenizer(nn.Module):
    """Scalars to tokens and back. `fit`, `fit_stream` or `fit_sketches` learns the bins of each quantity."""

    kind = "scalar"

    def __init__(self, settings: ScalarTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or ScalarTokenizerSettings()
        self.value_bins = BinTable(len(settings.modalities), settings.num_codes - 2)
        self.error_bins = BinTable(len(settings.modalities), max(settings.num_error_codes - 2, 0))

    def fit(self, values: Mapping[str, Shaped[np.ndarray, " _"]]) -> "ScalarTokenizer":
        """A tokenizer whose bins hold equal shares of `values`, one array [B] for each modality name; without errors.

        Raises ObservationError for values that are not finite, or fewer than two different ones.
        """
        sketches = {name: ScalarSketch() for name in values}
        for name, sketch in sketches.items():
            try:
                sketch.values.update(values[name])
            except ObservationError as error:
                raise ObservationError(f"{name}: {error}") from None
        return self.fit_sketches(sketches)

    def fit_stream(self, observations: Iterable[ScalarObservation]) -> "ScalarTokenizer":
        """A tokenizer for the quantities of a stream of batches, which is read once. Raises as `fit` does."""
        sketches: dict[str, ScalarSketch] = {}
        for observation in observations:
            sketches.setdefault(observation.modality.name, ScalarSketch()).update(observation)
        return self.fit_sketches(sketches)

    def fit_sketches(self, sketches: Mapping[str, ScalarSketch]) -> "ScalarTokenizer":
        """A tokenizer from what was gathered of each quantity. Raises as `fit` does."""
        fitted = ScalarTokenizer(self.settings.model_copy(update={"modalities": tuple(sketches)}))
        for row, (name, sketch) in enumerate(sketches.items()):
            values, weights = sketch.values.weighted_values()
            if len(values) < 2:
                raise ObservationError(
                    f"{name}: expected at least two different values to learn from, found {values.tolist()}"
                )
            fitted.value_bins.set(row, equal_mass_bins(values, weights, self.settings.num_codes - 2))
            if self.settings.num_error_codes and len(sketch.errors):
                errors = sketch.errors.weighted_values()
                fitted.error_bins.set(row, equal_mass_bins(*errors, self.settings.num_error_codes - 2))
        return fitted

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes: of the value (its bins, one code for below and one for above), then those of the error.

        Raises ObservationError for a quantity that it was never fitted to, as do all of the following.
        """
        errors = self._error_bins(modality)
        return self._value_bins(modality).num_codes + (0 if errors is None else errors.num_codes)

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """Cosines of the rank, of values and of errors: neighbouring bins have nearly the same features."""
        errors = self._error_bins(modality)
        of_values = rank_features(self._value_bins(modality).num_codes)
        return of_values if errors is None else torch.block_diag(of_values, rank_features(errors.num_codes))

    def code_numbers(self, modality: Modality) -> Float[Tensor, "V S"]:
        """The middle of each bin, and of each bin of errors, in standard deviations of what was seen from its mean."""
        errors = self._error_bins(modality)
        of_values = number_features(self._value_bins(modality).standardised())
        return of_values if errors is None else torch.block_diag(of_values, number_features(errors.standardised()))

    def encode(self, observation: ScalarObservation) -> TokenGrid:
        """One token for each object, masked where the value is missing.

        With `num_error_codes`, a second one for the error, masked where it is not known or none was to learn from.
        """
        check_kind(self.kind, observation.modality)
        bins, errors = self._value_bins(observation.modality), self._error_bins(observation.modality)
        codes, mask = [bins.encode(observation.values)], [observation.mask]
        if self.settings.num_error_codes:
            has_error = _has_error(observation) & (errors is not None)
            codes.append(torch.zeros_like(codes[0]) if errors is None else errors.encode(observation.error))
            codes[1] = codes[1] + bins.num_codes
            mask.append(has_error)
        valid = torch.stack(mask, 1)
        card = torch.from_numpy(observation.modality.quantity.features())
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.where(valid, torch.stack(codes, 1), 0),
            mask=valid,
            positions=detailed_positions(len(observation), len(mask)),
            instrument=card.repeat(len(observation), 1),
        )

    def decode(self, tokens: TokenGrid, target: Modality | ScalarObservation | None = None) -> ScalarObservation:
        """The median of what was seen in each bin, and as error the bin's spread about it; `bins` are the intervals.

        A known error of the measurement is added in quadrature. The outer codes give the extreme value that was seen,
        with an unknown error. Raises ObservationError if `target` is another quantity, or the codes are none of this
        tokenizer.
        """
        check_kind(self.kind, tokens.modality)
        wanted = tokens.modality if target is None else target if isinstance(target, Modality) else target.modality
        if wanted.name != tokens.modality.name:
            raise ObservationError(
                f"{wanted.name}: expected tokens of this quantity, found those of {tokens.modality.name}"
            )
        bins, errors = self._value_bins(wanted), self._error_bins(wanted)
        ranges = [(0, bins.num_codes)]
        if self.settings.num_error_codes:
            ranges.append((bins.num_codes, self.vocabulary_size(wanted)))
        check_codes(tokens, ranges)
        values, spread = bins.decode(tokens.codes[:, 0])
        if errors is not None:
            measured, _ = errors.decode((tokens.codes[:, 1] - bins.num_codes).clamp(min=0))
            spread = torch.where(tokens.mask[:, 1], torch.hypot(spread, measured), spread)
        return ScalarObservation(wanted, tokens.object_id, values, mask=tokens.mask[:, 0], error=spread)

    def bins(self, modality: Modality) -> tuple[Float64[Tensor, " V"], Float64[Tensor, " V"]]:
        """Lower and upper bound of each code of the value; what a code was made of lies in [low, high) without fail.

        The outer codes reach to the least and, inclusively, the largest value that the quantity's card allows.
        """
        quantity = modality.quantity
        return self._value_bins(modality).bounds(quantity.minimum, quantity.maximum)

    def soft_codes(self, observation: ScalarObservation) -> Float[Tensor, "B V"]:
        """Probability that the true value lies in each of `bins`, given the measured one and its Gaussian error.

        An error that is zero or unknown puts all on the bin of the value; the rows of missing values are zero.
        """
        bins = self._value_bins(observation.modality)
        is_spread = _has_error(observation) & (observation.error > 0)
        error = torch.where(is_spread, observation.error, 1.0).double()[:, None]
        below = torch.special.ndtr((bins.edges - observation.values.double()[:, None]) / error)
        ends = (
            torch.zeros(len(observation), 1, dtype=torch.float64),
            torch.ones(len(observation), 1, dtype=torch.float64),
        )
        soft = torch.cat([below, ends[1]], 1).diff(dim=1, prepend=ends[0])
        hard = nn.functional.one_hot(bins.encode(observation.values), bins.num_codes).double()
        return (torch.where(is_spread[:, None], soft, hard) * observation.mask[:, None]).float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors to `folder`."""
        save_module(folder, self, {"model_type": MODEL_TYPE, **self.settings.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> "ScalarTokenizer":
        """Load from a folder or the Hub. Raises PretrainedError."""
        folder = resolve_folder(folder_or_hub_id)
        config = read_config(folder, MODEL_TYPE)
        tokenizer = cls(validate_settings(ScalarTokenizerSettings, config, str(folder)))
        load_weights(folder, tokenizer)
        return tokenizer.eval()

    def _row(self, modality: Modality) -> int:
        if modality.name not in self.settings.modalities:
            raise ObservationError(
                f"{modality.name}: this tokenizer was fitted to {list(self.settings.modalities)}, not to this quantity"
            )
        return self.settings.modalities.index(modality.name)

    def _value_bins(self, modality: Modality) -> EqualMassBins:
        bins = self.value_bins.bins(self._row(modality))
        assert bins is not None  # `fit_sketches` fills every row
        return bins

    def _error_bins(self, modality: Modality) -> EqualMassBins | None:
        return self.error_bins.bins(self._row(modality))


def _has_error(observation: ScalarObservation) -> Tensor:
    return observation.mask & observation.error.isfinite()
