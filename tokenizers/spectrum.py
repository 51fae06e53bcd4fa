"""The spectrum tokenizer: any wavelength grid within its range, any resolution, no resampling to one big grid.

The range is cut into windows of equal width in log wavelength, one token each, so that a token has the same place for
every spectrograph. Within a window the native pixels are gathered onto a few nodes by linear weights times inverse
variance; value and weight of each node, the wavelength and the resolving power make the token. One more token, the
first, keeps the amplitude by which the spectrum was scaled. The decoder answers with values at the nodes, which are
interpolated at the wavelengths of any wanted grid.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from ..data.instruments import Spectrograph
from ..data.modalities import Modality
from ..data.observations import ObservationError, SpectrumObservation
from ..settings import Settings, validate_settings
from .blocks import Block, NumbersEmbedding, PositionEmbedding, RMSNorm, attendable
from .pretrained import device_of, load_weights, read_config, resolve_folder, save_module
from .quantizers import FiniteScalarQuantizer, rank_features
from .token_grid import TokenGrid, empty_positions

MODEL_TYPE = "armillary-spectrum-tokenizer"
AMPLITUDE_RANGE = (-4.0, 6.0)
"""Limits of log10 of the amplitude, in 1e-17 erg/s/cm2/A: fainter than any survey, brighter than any galaxy."""
MODEL_ERROR = 0.05
"""Relative error granted to the model of a bright pixel."""


class SpectrumTokenizerSettings(Settings):
    """Sizes of a spectrum tokenizer. Wavelengths in angstrom."""

    wavelength_min: float = 3500.0
    wavelength_max: float = 10500.0
    num_windows: int = 96
    num_nodes: int = 48
    """Nodes in one window."""
    width: int = 128
    num_blocks: int = 2
    """Transformer blocks of the encoder, and as many of the decoder."""
    num_heads: int = 4
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    """Levels of the quantiser; their product and `num_amplitudes` make the vocabulary."""
    num_amplitudes: int = 256

    @model_validator(mode="after")
    def _sizes_agree(self) -> "SpectrumTokenizerSettings":
        if not 0 < self.wavelength_min < self.wavelength_max:
            raise ValueError(
                f"expected 0 < wavelength_min < wavelength_max, found {self.wavelength_min, self.wavelength_max}"
            )
        if math.prod(self.levels) + self.num_amplitudes > 2**15:
            raise ValueError(
                "tokens are stored as int16: the product of levels plus num_amplitudes must not exceed 32768"
            )
        return self


class SpectrumTokenizer(nn.Module):
    """Spectra to tokens and back; see the module's description. The first token is the amplitude."""

    kind = "spectrum"

    def __init__(self, settings: SpectrumTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or SpectrumTokenizerSettings()
        width = settings.width
        self.window_width = math.log(settings.wavelength_max / settings.wavelength_min) / settings.num_windows
        self.quantizer = FiniteScalarQuantizer(settings.levels)
        self.position = PositionEmbedding(width)
        self.resolution_in = NumbersEmbedding(1, width)
        self.window_in = nn.Sequential(nn.Linear(2 * settings.num_nodes, width), nn.SiLU(), nn.Linear(width, width))
        self.encoder = nn.ModuleList(Block(width, settings.num_heads) for _ in range(settings.num_blocks))
        self.to_latent = nn.Sequential(RMSNorm(width), nn.Linear(width, len(settings.levels)))
        self.from_latent = nn.Linear(len(settings.levels), width)
        self.resolution_out = NumbersEmbedding(1, width)
        self.decoder = nn.ModuleList(Block(width, settings.num_heads) for _ in range(settings.num_blocks))
        self.window_out = nn.Sequential(
            RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, settings.num_nodes)
        )

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes, the same for all spectrographs: those of windows, then those of amplitudes."""
        return self.quantizer.vocabulary_size + self.settings.num_amplitudes

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """What codes have in common: the factors of the quantiser, and cosines of the rank of an amplitude."""
        windows = self.quantizer.code_features().cpu()
        amplitudes = rank_features(self.settings.num_amplitudes)
        return torch.block_diag(windows, amplitudes)

    @torch.no_grad()
    def encode(self, observation: SpectrumObservation) -> TokenGrid:
        """The amplitude's token and one for each window. A window without a valid pixel is masked.

        Raises ObservationError for a valid pixel outside the tokenizer's range: nothing is left out in silence.
        """
        codes, amplitude = self._amplitude(observation)
        latents, mask = self._latents(observation, amplitude)
        windows = torch.where(mask, self.quantizer(latents)[1].cpu(), 0)
        valid = torch.ones(len(observation), 1, dtype=torch.bool)
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.cat([codes[:, None] + self.quantizer.vocabulary_size, windows], 1),
            mask=torch.cat([valid, mask], 1),
            positions=self._positions(len(observation)),
            instrument=torch.from_numpy(observation.card.features()).repeat(len(observation), 1),
        )

    @torch.no_grad()
    def decode(self, tokens: TokenGrid, target: Modality | SpectrumObservation | None = None) -> SpectrumObservation:
        """Spectra on the target's wavelengths and resolution, with its typical inverse variance.

        `target` is an observation, whose grid and resolving power are used, or a modality, whose card's are; by default
        the tokens' own modality. Wavelengths that no valid token covers are masked.
        """
        target = _blank_spectrum(tokens, target or tokens.modality)
        settings = self.settings
        amplitude = self._amplitude_of(tokens.codes[:, 0] - self.quantizer.vocabulary_size)
        latents = self.quantizer.from_codes(tokens.codes[:, 1:].to(device_of(self)))
        window, place = self._windows(target, clamp=True)
        mask = tokens.mask[:, 1:]
        values = self._values(latents, mask, target, window, place).cpu()
        log_wavelength = target.wavelength.clamp(min=1.0).log() - math.log(settings.wavelength_min)
        inside = (log_wavelength >= 0) & (log_wavelength <= settings.num_windows * self.window_width)
        # Where the whole grid makes sense, masked pixels are predicted too.
        increases = (target.wavelength.diff(dim=1) > 0).all(1)
        noise = torch.from_numpy(target.card.noise_at(target.card.wavelength())).float().median()
        return SpectrumObservation(
            target.modality,
            tokens.object_id,
            torch.sinh(values) * amplitude[:, None],
            target.wavelength,
            (noise**-2).expand(values.shape),
            mask=mask.gather(1, window) & inside & (target.mask | increases[:, None]),
            resolving_power=torch.where(
                target.mask, target.resolving_power, target.resolving_power.nan_to_num(1.0).clamp(1.0)
            ),
            ra=target.ra,
            dec=target.dec,
        )

    def loss(self, observation: SpectrumObservation) -> Float[Tensor, ""]:
        """Mean Huber loss of the reconstruction's error in units of the noise, over valid pixels; and saturation.

        As for images: a bright pixel's noise is widened by MODEL_ERROR times its flux, and the error is taken in the
        compressed scale.
        """
        window, place = self._windows(observation)
        _, amplitude = self._amplitude(observation)
        latents, mask = self._latents(observation, amplitude)
        rounded, _ = self.quantizer(latents)
        predicted = self._values(rounded, mask, observation, window, place)
        flux = observation.flux / amplitude[:, None]
        variance = 1 / (observation.inverse_variance * amplitude[:, None] ** 2).clamp(min=1e-12)
        weight = torch.sqrt((1 + flux**2) / (variance + (MODEL_ERROR * flux) ** 2))
        error = (predicted - torch.asinh(flux).to(predicted.device)) * weight.to(predicted.device)
        valid = observation.mask.to(predicted.device)
        misfit = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=3.0)[valid].mean()
        return misfit + self.quantizer.saturation(latents)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors to `folder`."""
        save_module(folder, self, {"model_type": MODEL_TYPE, **self.settings.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> "SpectrumTokenizer":
        """Load from a folder or the Hub. Raises PretrainedError."""
        folder = resolve_folder(folder_or_hub_id)
        config = read_config(folder, MODEL_TYPE)
        model = cls(validate_settings(SpectrumTokenizerSettings, config, str(folder)))
        load_weights(folder, model)
        return model.eval()

    def _windows(
        self, observation: SpectrumObservation, clamp: bool = False
    ) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Each pixel's window, and its place in it from 0 to 1."""
        settings = self.settings
        place = (observation.wavelength.clamp(min=1.0).log() - math.log(settings.wavelength_min)) / self.window_width
        outside = observation.mask & ((place < 0) | (place >= settings.num_windows))
        if outside.any() and not clamp:
            row, pixel = outside.nonzero()[0].tolist()
            raise ObservationError(
                f"{observation.modality.name}, object {observation.object_id[row]}: this tokenizer reads wavelengths "
                f"from {settings.wavelength_min} to {settings.wavelength_max} A; a valid pixel lies at "
                f"{observation.wavelength[row, pixel].item():.1f} A. Pass mask=False there to leave it out."
            )
        place = place.nan_to_num(0.0).clamp(0, settings.num_windows - 1e-6)
        return place.long(), (place - place.floor()).float()

    def _amplitude(self, observation: SpectrumObservation) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """Median absolute flux of the valid pixels, as a code and as the value that the code stands for."""
        flux = torch.where(observation.mask, observation.flux.abs(), torch.nan)
        logarithm = flux.nanmedian(1).values.clamp(min=1e-30).log10()
        low, high = AMPLITUDE_RANGE
        outside = (logarithm >= high) | (logarithm < low)
        if outside.any():
            row = int(outside.nonzero()[0, 0])
            raise ObservationError(
                f"{observation.modality.name}, object {observation.object_id[row]}: the median absolute flux must lie "
                f"in [1e{low:.0f}, 1e{high:.0f}) 1e-17 erg/s/cm2/A, found {10 ** logarithm[row].item():.3g}"
            )
        codes = ((logarithm - low) / (high - low) * self.settings.num_amplitudes).long()
        return codes, self._amplitude_of(codes)

    def _amplitude_of(self, codes: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        low, high = AMPLITUDE_RANGE
        codes = codes.clamp(0, self.settings.num_amplitudes - 1)
        return 10 ** (low + (high - low) * (codes + 0.5) / self.settings.num_amplitudes)

    def _positions(self, num_objects: int) -> Float[Tensor, "B N P"]:
        positions = empty_positions(num_objects, 1 + self.settings.num_windows)
        middles = (torch.arange(self.settings.num_windows) + 0.5) * self.window_width
        positions[:, 1:, 2] = middles + math.log(self.settings.wavelength_min)
        return positions

    def _latents(
        self, observation: SpectrumObservation, amplitude: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B W Q"], Bool[Tensor, "B W"]]:
        """Latents of the windows, and which of these have a valid pixel."""
        settings, device = self.settings, device_of(self)
        window, place = (t.to(device) for t in self._windows(observation))
        valid = observation.mask.to(device)
        scale = amplitude.to(device)[:, None]
        flux = torch.asinh(observation.flux.to(device) / scale)
        weight = torch.where(valid, observation.inverse_variance.to(device) * scale**2, 0.0)
        node, share = _nodes(window, place, settings.num_nodes)
        size = settings.num_windows * settings.num_nodes
        sums = torch.zeros(2, len(observation), size, device=device)
        for step, part in ((0, 1 - share), (1, share)):
            sums[0].scatter_add_(1, node + step, weight * part * torch.where(valid, flux, 0.0))
            sums[1].scatter_add_(1, node + step, weight * part)
        value, total = sums.unflatten(-1, (settings.num_windows, settings.num_nodes))
        mean = value / total.clamp(min=1e-12)
        features = torch.cat([torch.where(total > 0, mean, 0.0), torch.log1p(total) / 5], -1)

        mask = _windows_with_a_pixel(window, valid, settings.num_windows)
        positions = self._positions(len(observation))[:, 1:].to(device)
        x = (
            self.window_in(features)
            + self.position(positions)
            + self.resolution_in(self._resolution(observation, window))
        )
        for block in self.encoder:
            x = block(x, mask)
        return self.to_latent(x).float(), mask.cpu()

    def _values(
        self,
        latents: Float[Tensor, "B W Q"],
        mask: Bool[Tensor, "B W"],
        target: SpectrumObservation,
        window: Int[Tensor, "B L"],
        place: Float[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        """Compressed, scaled flux at the target's pixels."""
        device = latents.device
        positions = self._positions(len(target))[:, 1:].to(device)
        resolution = self._resolution(target, window.to(device))
        x = self.from_latent(latents) + self.position(positions) + self.resolution_out(resolution)
        visible = attendable(mask.to(device))
        for block in self.decoder:
            x = block(x, visible)
        nodes = self.window_out(x).float().flatten(1)
        node, share = _nodes(window.to(device), place.to(device), self.settings.num_nodes)
        return nodes.gather(1, node) * (1 - share) + nodes.gather(1, node + 1) * share

    def _resolution(self, observation: SpectrumObservation, window: Int[Tensor, "B L"]) -> Float[Tensor, "B W 1"]:
        """Logarithm of the resolving power, about zero at R = 2000, mean over each window's valid pixels."""
        valid = observation.mask.to(window.device)
        power = torch.where(valid, (observation.resolving_power.to(window.device).clamp(min=1) / 2000).log(), 0.0)
        sums = torch.zeros(2, len(observation), self.settings.num_windows, device=window.device)
        sums[0].scatter_add_(1, window, power)
        sums[1].scatter_add_(1, window, valid.float())
        return (sums[0] / sums[1].clamp(min=1))[..., None]


def _nodes(window: Tensor, place: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """The node below each pixel, and the pixel's share that belongs to the node above."""
    within = place * (num_nodes - 1)
    below = within.long().clamp(max=num_nodes - 2)
    return window * num_nodes + below, within - below


def _windows_with_a_pixel(window: Tensor, valid: Tensor, num_windows: int) -> Tensor:
    counts = torch.zeros(window.shape[0], num_windows, device=window.device)
    return counts.scatter_add_(1, window, valid.float()) > 0


def _blank_spectrum(tokens: TokenGrid, target: Modality | SpectrumObservation) -> SpectrumObservation:
    """A spectrum with the grid and resolution of `target`; its flux means nothing."""
    if isinstance(target, SpectrumObservation):
        if len(target) != len(tokens):
            raise ObservationError(f"expected a target of {len(tokens)} objects, found {len(target)}")
        return target
    if not isinstance(target.card, Spectrograph):
        raise ObservationError(f"spectra decode to spectra; found the target {target.name}")
    wavelength = torch.from_numpy(target.card.wavelength())
    blank = torch.ones(len(tokens), len(wavelength))
    return SpectrumObservation(target, tokens.object_id, blank, wavelength, blank)
