"""The scalar tokenizer: bins of equal mass, one table of edges for each quantity.

The edges are quantiles of the values seen by `fit`; the lowest and the highest code are kept for values outside that
range, so that these are told apart from extremes within it. A missing value is a masked token, never a bin.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.modalities import Modality
from ..data.observations import ObservationError, ScalarObservation
from ..settings import Settings, validate_settings
from .pretrained import load_weights, read_config, resolve_folder, save_module
from .quantizers import rank_features
from .token_grid import TokenGrid, empty_positions

MODEL_TYPE = "armillary-scalar-tokenizer"


class ScalarTokenizerSettings(Settings):
    """Number of codes of every quantity, and the quantities it knows once it is fitted."""

    num_codes: int = 256
    modalities: tuple[str, ...] = ()


class ScalarTokenizer(nn.Module):
    """Scalars to tokens and back. `fit` learns the edges of each quantity."""

    kind = "scalar"
    edges: Tensor

    def __init__(self, settings: ScalarTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or ScalarTokenizerSettings()
        shape = (len(settings.modalities), settings.num_codes - 1)
        self.register_buffer("edges", torch.full(shape, torch.nan, dtype=torch.float64))

    def fit(self, values: Mapping[str, np.ndarray]) -> "ScalarTokenizer":
        """A tokenizer whose bins hold equal shares of `values`, one array [B] for each modality name.

        Raises ObservationError for values that are not finite, or fewer than two different ones.
        """
        settings = ScalarTokenizerSettings(num_codes=self.settings.num_codes, modalities=tuple(values))
        fitted = ScalarTokenizer(settings)
        for row, (name, sample) in enumerate(values.items()):
            sample = np.asarray(sample, dtype=np.float64)
            if not np.isfinite(sample).all():
                raise ObservationError(f"{name}: expected finite values to learn from, found NaN or infinity")
            if len(np.unique(sample)) < 2:
                raise ObservationError(
                    f"{name}: expected at least two different values to learn from, found {sample[:1]}"
                )
            quantiles = np.quantile(sample, np.linspace(0, 1, settings.num_codes - 1))
            fitted.edges[row] = torch.from_numpy(quantiles)
        return fitted

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes: `num_codes - 2` bins, one code for what lies below them and one for above."""
        return self.settings.num_codes

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """Cosines of the rank: neighbouring bins have nearly the same features."""
        return rank_features(self.settings.num_codes)

    def encode(self, observation: ScalarObservation) -> TokenGrid:
        """One token for each object, masked where the value is missing. Raises ObservationError if never fitted."""
        edges = self._edges(observation.modality)
        codes = torch.searchsorted(edges, observation.values.double(), right=True)
        codes = torch.where(observation.values.double() == edges[-1], len(edges) - 1, codes)
        card = torch.from_numpy(observation.modality.quantity.features())
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.where(observation.mask, codes, 0)[:, None],
            mask=observation.mask[:, None],
            positions=empty_positions(len(observation), 1),
            instrument=card.repeat(len(observation), 1),
        )

    def decode(self, tokens: TokenGrid, target: Modality | None = None) -> ScalarObservation:
        """The middle of each bin, with half the bin's width as error; the outer codes give the edge they lie beyond."""
        target = target or tokens.modality
        low, high = (bound[tokens.codes[:, 0]] for bound in self.bins(target))
        return ScalarObservation(
            target, tokens.object_id, (low + high) / 2, mask=tokens.mask[:, 0], error=(high - low) / 2
        )

    def bins(self, modality: Modality) -> tuple[Float[Tensor, " V"], Float[Tensor, " V"]]:
        """Lower and upper bound of each code, float64; for the two outer codes both are the edge they lie beyond."""
        edges = self._edges(modality)
        return torch.cat([edges[:1], edges]), torch.cat([edges, edges[-1:]])

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

    def _edges(self, modality: Modality) -> Tensor:
        if modality.name not in self.settings.modalities:
            raise ObservationError(
                f"{modality.name}: this tokenizer was fitted to {list(self.settings.modalities)}, not to this quantity"
            )
        # Observations and token grids live on the CPU, wherever the weights of the model are.
        return self.edges[self.settings.modalities.index(modality.name)].cpu()
