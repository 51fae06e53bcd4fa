"""The spectrum tokenizer: any wavelength grid within its range, any resolution, no resampling to one big grid.

The range is cut into windows of equal width in log wavelength, one token each, so that a token has the same place for
every spectrograph (`spectrum_windows.py`). A token is made of its window and a few beside it, scaled by the spectrum's
amplitude, which the first token keeps; and it says how much of the window no valid pixel covers. Narrow lines that
stand out are taken away before, into tokens of their own (`spectrum_lines.py`). The decoder gives the flux at the nodes
of all windows, as the source's spectrograph resolves it; it is read at any wavelengths, through a Gaussian where the
wanted resolution is lower. Tokens hold what their spectrograph let through: a higher resolution is not invented.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from ..data.instruments import Spectrograph
from ..data.modalities import Modality
from ..data.observations import FWHM_PER_SIGMA, ObservationError, SpectrumObservation
from ..settings import Settings, validate_settings
from .pretrained import device_of, load_weights, read_config, resolve_folder, save_module
from .quantizers import FiniteScalarQuantizer
from .spectrum_amplitude import (
    AMPLITUDE_RANGE,
    NUM_RATIOS,
    amplitude_codes,
    amplitude_features,
    amplitude_numbers,
    amplitude_of_codes,
    measure_amplitude,
    ratio_of_codes,
)
from .spectrum_lines import draw_lines, find_lines, line_features, num_line_codes
from .spectrum_networks import WindowDecoder, WindowEncoder, conditions
from .spectrum_windows import WindowedSpectrum, WindowGrid, read_blurred, read_nodes, window_spectrum
from .token_grid import DETAIL, LOG_WAVELENGTH, Reconstruction, TokenGrid, check_kind, empty_positions
from .token_places import TokenPlaces, code_ranges

MODEL_TYPE = "armillary-spectrum-tokenizer"
MODEL_ERROR = 0.01
"""Relative error granted to the model of a bright pixel."""
ROBUST_SIGMAS = 5.0
"""Error in units of the noise beyond which the loss grows linearly."""
NOISE_SPLIT = 0.5
"""Variance, in units of the noise's own, that training adds to what is encoded; see `split_noise`."""
EVENNESS = 0.1
"""Weight of the penalty (nats) that keeps all codes in use, beside a misfit of about one and a half."""
MISSING_SHARES = (0.0, 0.125, 0.625)
"""Share of a window that no valid pixel covers: none, up to a quarter, more; what each digit stands for."""


class SpectrumTokenizerSettings(Settings):
    """Sizes of a spectrum tokenizer. Wavelengths in angstrom."""

    wavelength_min: float = 3300.0
    wavelength_max: float = 10500.0
    num_windows: int = 192
    num_nodes: int = 36
    """Nodes in one window."""
    num_cells: int = 2
    """Parts of a window, each of which may have a token of a line."""
    stretch: int = 2
    """Neighbouring windows that the networks look at together: more tokens at the same cost."""
    width: int = 128
    num_mixers: int = 2
    """Convolutions of the encoder over three stretches; a token sees as many stretches to either side of its own."""
    num_blocks: int = 3
    """Transformer blocks of the decoder."""
    num_heads: int = 4
    levels: tuple[int, ...] = (5, 5, 5, 5, 5)
    """Levels of the quantiser: its codes, times the three shares that may be missing, are those of windows."""
    num_amplitudes: int = 256

    @model_validator(mode="after")
    def _sizes_agree(self) -> "SpectrumTokenizerSettings":
        if not 0 < self.wavelength_min < self.wavelength_max:
            raise ValueError(
                f"expected 0 < wavelength_min < wavelength_max, found {self.wavelength_min, self.wavelength_max}"
            )
        if self.num_windows % self.stretch:
            raise ValueError(f"num_windows must be a multiple of stretch, found {self.num_windows} and {self.stretch}")
        if self.num_nodes % self.num_cells:
            raise ValueError(f"num_nodes must be a multiple of num_cells, found {self.num_nodes} and {self.num_cells}")
        windows = len(MISSING_SHARES) * math.prod(self.levels)
        amplitudes, lines = NUM_RATIOS * self.num_amplitudes, num_line_codes(self.num_nodes // self.num_cells)
        if windows + amplitudes + lines > 2**15:
            raise ValueError(
                f"tokens are stored as int16: codes of windows ({windows}), of amplitudes ({amplitudes}) and of lines "
                f"({lines}) must not exceed 32768 together"
            )
        return self


class SpectrumTokenizer(nn.Module):
    """Spectra to tokens and back; see the module's description. The first token is the amplitude."""

    kind = "spectrum"

    def __init__(self, settings: SpectrumTokenizerSettings | None = None):
        super().__init__()
        self.settings = s = settings or SpectrumTokenizerSettings()
        self.grid = WindowGrid(s.wavelength_min, s.wavelength_max, s.num_windows, s.num_nodes)
        self.quantizer = FiniteScalarQuantizer(s.levels)
        self.encoder = WindowEncoder(s.num_nodes, s.stretch, s.width, s.num_mixers, len(s.levels))
        self.decoder = WindowDecoder(s.num_nodes, s.stretch, s.width, s.num_blocks, s.num_heads, len(s.levels))

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes, the same for all spectrographs: those of windows, then of amplitudes, then of lines."""
        return sum(self.codebook_sizes().values())

    def codebook_sizes(self) -> dict[str, int]:
        """The parts of the vocabulary in their order: numbers of codes of windows, of amplitudes and of lines."""
        return {
            "window": self._num_window_codes,
            "amplitude": NUM_RATIOS * self.settings.num_amplitudes,
            "line": num_line_codes(self._cell),
        }

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """What codes share: a window's quantised factors and missing share; `amplitude_features`; `line_features`."""
        shapes = self.quantizer.code_features().cpu()
        missing = torch.eye(len(MISSING_SHARES)).repeat_interleave(len(shapes), 0)
        windows = torch.cat([shapes.repeat(len(MISSING_SHARES), 1), missing], 1)
        amplitudes, lines = amplitude_features(self.settings.num_amplitudes), line_features(self._cell)
        return torch.block_diag(windows, amplitudes, lines)

    def code_numbers(self, modality: Modality) -> Float[Tensor, "V S"]:
        """The amplitude, as its logarithm, and the bin of the signal-to-noise ratio."""
        numbers = amplitude_numbers(self.settings.num_amplitudes)
        num_windows = len(MISSING_SHARES) * self.quantizer.vocabulary_size
        return F.pad(numbers, (0, 0, num_windows, self.vocabulary_size(modality) - num_windows - len(numbers)))

    @torch.no_grad()
    def encode(self, observation: SpectrumObservation) -> TokenGrid:
        """The amplitude's token, one for each window, and one for each cell of a window that may hold a line.

        A window without a valid pixel is masked, and a cell without a line.

        Raises ObservationError for a valid pixel outside the tokenizer's range: nothing is left out in silence.
        """
        check_kind(self.kind, observation.modality)
        spectrum = window_spectrum(observation, self.grid, device_of(self))
        first = self._first_codes(observation, spectrum)
        lines, has_line, smooth = self._without_lines(spectrum, first)
        shapes = self.quantizer(self.encoder(smooth, self._amplitudes(first)))[1]
        lines = torch.where(has_line, lines + self._first_line_code, 0)
        windows = torch.where(spectrum.is_valid, shapes + _missing_digits(spectrum) * self.quantizer.vocabulary_size, 0)
        always = torch.ones(len(observation), 1, dtype=torch.bool)
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.cat([first[:, None] + self._num_window_codes, windows, lines], 1).cpu(),
            mask=torch.cat([always, spectrum.is_valid.cpu(), has_line.cpu()], 1),
            positions=self._positions(len(observation)),
            instrument=torch.from_numpy(observation.card.features()).repeat(len(observation), 1),
        )

    @torch.no_grad()
    def decode(self, tokens: TokenGrid, target: Modality | SpectrumObservation | None = None) -> SpectrumObservation:
        """Spectra on the target's wavelengths and resolution, with its typical inverse variance.

        `target` is an observation, whose grid and resolving power are used, or a modality, whose card's are; by default
        the tokens' own modality. Wavelengths that no valid token covers are masked; `validity` says more.
        """
        check_kind(self.kind, tokens.modality)
        expected = 1 + self.settings.num_windows * (1 + self.settings.num_cells)
        if tokens.num_tokens != expected:
            raise ObservationError(
                f"{tokens.modality.name}, object {tokens.object_id[0]}: expected {expected} tokens of each object, "
                f"found {tokens.num_tokens}. Was it made by another tokenizer?"
            )
        target = _blank_spectrum(tokens, target or tokens.modality)
        device = device_of(self)
        place = self._target_places(target)
        codes, mask = tokens.codes.to(device), tokens.mask.to(device)
        end = 1 + self.settings.num_windows
        first = codes[:, 0] - self._num_window_codes
        latents = self.quantizer.from_codes(codes[:, 1:end] % self.quantizer.vocabulary_size)
        lines = draw_lines(codes[:, end:] - self._first_line_code, mask[:, end:], self._cell)
        nodes = self._nodes(latents, mask[:, 1:end], lines, first, tokens.modality) * self._amplitudes(first)[:, None]
        sigma = self._blur(target, tokens.modality)
        read = read_nodes(nodes, place.to(device)) if sigma is None else read_blurred(nodes, place.to(device), sigma)
        # Where the whole grid makes sense, masked pixels are predicted too.
        increases = (target.wavelength.diff(dim=1) > 0).all(1)
        noise = torch.from_numpy(target.card.noise_at(target.card.wavelength())).float().median()
        return SpectrumObservation(
            target.modality,
            tokens.object_id,
            read.cpu(),
            target.wavelength,
            (noise**-2).expand(target.flux.shape),
            mask=self._covered(tokens, place) & (target.mask | increases[:, None]),
            resolving_power=torch.where(
                target.mask, target.resolving_power, target.resolving_power.nan_to_num(1.0).clamp(1.0)
            ),
            ra=target.ra,
            dec=target.dec,
        )

    def token_places(self, target: SpectrumObservation) -> TokenPlaces:
        """Where spectra on the wavelengths of `target` have tokens: the amplitude and windows always, lines perhaps.

        Of the target, only wavelengths and mask are used.
        """
        check_kind(self.kind, target.modality)
        place = self._target_places(target)
        inside = target.mask & (place >= 0) & (place < self.grid.size)
        windows = torch.zeros(len(target), self.grid.num_windows, dtype=torch.long)
        windows = windows.scatter_add(1, self._window(place), inside.long()) > 0
        first = torch.ones(len(target), 1, dtype=torch.bool)
        cells = windows.repeat_interleave(self.settings.num_cells, 1)
        mask = torch.cat([first, windows, cells], 1)
        end = self._num_window_codes
        low, high = code_ranges(
            [
                (1, end, self._first_line_code),
                (windows.shape[1], 0, end),
                (cells.shape[1], self._first_line_code, self.vocabulary_size(target.modality)),
            ]
        )
        grid = TokenGrid(
            modality=target.modality,
            object_id=tuple(target.object_id),
            codes=torch.zeros(mask.shape, dtype=torch.long),
            mask=mask,
            positions=self._positions(len(target)),
            instrument=torch.from_numpy(target.card.features()).repeat(len(target), 1),
        )
        always = torch.cat([first, windows, torch.zeros_like(cells)], 1)
        # All that follows is in units of the amplitude.
        return TokenPlaces(grid, always, low, high, torch.zeros(mask.shape[1], dtype=torch.long))

    def validity(self, tokens: TokenGrid, target: Modality | SpectrumObservation | None = None) -> Float[Tensor, "B L"]:
        """Probability that each pixel of the target's grid was measured well, by what its window's token says.

        Zero where no token covers the pixel. `target` is as for `decode`.
        """
        check_kind(self.kind, tokens.modality)
        target = _blank_spectrum(tokens, target or tokens.modality)
        place = self._target_places(target)
        windows = tokens.codes[:, 1 : 1 + self.settings.num_windows]
        digits = (windows // self.quantizer.vocabulary_size).clamp(0, len(MISSING_SHARES) - 1)
        share = 1 - torch.tensor(MISSING_SHARES)[digits.cpu()]
        return torch.where(self._covered(tokens, place), share.gather(1, self._window(place)), 0.0)

    def loss(self, observation: SpectrumObservation) -> Reconstruction:
        """Misfit of the reconstruction in units of the noise, over valid pixels, and what keeps all codes in use.

        The misfit is that of a Gaussian up to ROBUST_SIGMAS and grows linearly beyond; the noise is widened by
        MODEL_ERROR times the flux. In training the noise is split, so that nothing is gained by keeping it
        (`split_noise`). `chi2` is the mean square error in units of the noise of what is compared with.
        """
        device = device_of(self)
        seen, compared = split_noise(observation, NOISE_SPLIT) if self.training else (observation, observation)
        spectrum = window_spectrum(seen, self.grid, device)
        first = self._first_codes(seen, spectrum)
        line_codes, has_line, smooth = self._without_lines(spectrum, first)
        latents = self.encoder(smooth, self._amplitudes(first))
        rounded, codes = self.quantizer(latents)
        lines = draw_lines(line_codes, has_line, self._cell)
        nodes = self._nodes(rounded, spectrum.is_valid, lines, first, observation.modality)
        predicted = read_nodes(nodes, self._target_places(observation).to(device))

        mask, scale = observation.mask.to(device), self._amplitudes(first)[:, None]
        flux = compared.flux.to(device) / scale
        variance = 1 / (compared.inverse_variance.to(device) * scale**2).clamp(min=1e-12)
        error = torch.where(mask, predicted - flux, 0.0)
        softened = error * (variance + (MODEL_ERROR * flux) ** 2).rsqrt()
        misfits = F.huber_loss(softened, torch.zeros_like(error), reduction="none", delta=ROBUST_SIGMAS)
        # In units of the noise of the spectrum itself, of which `compared` may hold more.
        misfit = misfits.sum() / mask.sum() * ((1 + 1 / NOISE_SPLIT) if self.training else 1)
        saturation = self.quantizer.saturation(latents)
        unevenness = self.quantizer.unevenness(latents, spectrum.is_valid)
        parts = {
            "misfit": misfit.detach(),
            "chi2": (error.detach().square() / variance).sum() / mask.sum(),
            "saturation": saturation.detach(),
            "unevenness": unevenness.detach(),
        }
        return Reconstruction(misfit + saturation + EVENNESS * unevenness, parts, codes, spectrum.is_valid)

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

    @property
    def num_learned_codes(self) -> int:
        """Codes of the quantiser."""
        return self.quantizer.vocabulary_size

    @property
    def _num_window_codes(self) -> int:
        return len(MISSING_SHARES) * self.quantizer.vocabulary_size

    @property
    def _cell(self) -> int:
        """Nodes of the part of a window that may have a token of a line."""
        return self.settings.num_nodes // self.settings.num_cells

    @property
    def _first_line_code(self) -> int:
        return self._num_window_codes + NUM_RATIOS * self.settings.num_amplitudes

    def _without_lines(
        self, spectrum: WindowedSpectrum, first: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"], WindowedSpectrum]:
        """Codes of lines, counted from zero, where there is one, and the spectrum with these lines taken away."""
        amplitude = self._amplitudes(first)[:, None]
        flux, weight = spectrum.flux.flatten(1), spectrum.weight.flatten(1)
        is_valid = spectrum.is_valid.repeat_interleave(self.settings.num_nodes, 1)
        codes, found = find_lines(flux / amplitude, weight * amplitude**2, is_valid, self._cell)
        left = torch.where(weight > 0, flux - draw_lines(codes, found, self._cell) * amplitude, 0.0)
        return codes, found, replace(spectrum, flux=left.view_as(spectrum.flux))

    def _nodes(
        self,
        latents: Float[Tensor, "B W Q"],
        mask: Bool[Tensor, "B W"],
        lines: Float[Tensor, "B G"],
        first: Int[Tensor, " B"],
        source: Modality,
    ) -> Float[Tensor, "B G"]:
        """Flux at the nodes over the amplitude, lines included, as the source's card resolves it."""
        assert isinstance(source.card, Spectrograph)
        middles = self.grid.middles().double().exp().numpy()
        power = torch.from_numpy(source.card.resolving_power_at(middles)).float().log()
        places = self.grid.places(torch.from_numpy(source.card.wavelength()))
        width = torch.full_like(power, float(places.diff().median()))
        told = conditions(power, width).to(latents.device).expand(len(latents), -1, -1)
        told = torch.cat([told, ratio_of_codes(first)[:, None, None].expand(-1, told.shape[1], 1)], -1)
        positions = self._positions(len(latents))[:, 1 : 1 + self.settings.num_windows].to(latents.device)
        return torch.sinh(self.decoder(latents, mask, lines, positions, told).clamp(-12, 12)) + lines

    def _first_codes(self, observation: SpectrumObservation, spectrum: WindowedSpectrum) -> Int[Tensor, " B"]:
        """Codes of the amplitudes, counted from zero. Raises ObservationError for one that is out of range."""
        amplitude, ratio = measure_amplitude(spectrum, self.grid)
        low, high = AMPLITUDE_RANGE
        outside = ~((amplitude >= 10**low) & (amplitude < 10**high))
        if outside.any():
            row = int(outside.nonzero()[0, 0])
            raise ObservationError(
                f"{observation.modality.name}, object {observation.object_id[row]}: the median absolute flux of its "
                f"windows must lie in [1e{low:.0f}, 1e{high:.0f}) 1e-17 erg/s/cm2/A, found {amplitude[row].item():.3g}"
            )
        return amplitude_codes(amplitude, ratio, self.settings.num_amplitudes)

    def _amplitudes(self, first: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        return amplitude_of_codes(first, self.settings.num_amplitudes)

    def _positions(self, num_objects: int) -> Float[Tensor, "B N P"]:
        end = 1 + self.settings.num_windows
        positions = empty_positions(num_objects, end + self.settings.num_cells * self.settings.num_windows)
        positions[:, 1:end, LOG_WAVELENGTH] = self.grid.middles()
        positions[:, end:, LOG_WAVELENGTH] = self.grid.middles(self.settings.num_cells)
        positions[:, end:, DETAIL] = 1
        return positions

    def _target_places(self, target: SpectrumObservation) -> Float[Tensor, "B L"]:
        """Places of all pixels, masked ones too; not finite becomes far outside."""
        return self.grid.places(target.wavelength.nan_to_num(1.0).clamp(min=1.0, max=1e7))

    def _window(self, place: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return (place / self.grid.num_nodes).floor().long().clamp(0, self.grid.num_windows - 1)

    def _covered(self, tokens: TokenGrid, place: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        inside = (place >= 0) & (place < self.grid.size)
        windows = tokens.mask[:, 1 : 1 + self.settings.num_windows].cpu()
        return inside & windows.gather(1, self._window(place))

    def _blur(self, target: SpectrumObservation, source: Modality) -> Float[Tensor, "B L"] | None:
        """Standard deviation (nodes) of the Gaussian from the source's resolution to the target's; None if all zero."""
        assert isinstance(source.card, Spectrograph)
        wavelength = target.wavelength.nan_to_num(1.0).clamp(min=1.0, max=1e7)
        own = torch.from_numpy(source.card.resolving_power_at(wavelength.numpy()))
        wanted = target.resolving_power.double().nan_to_num(1.0).clamp(min=1.0)
        variance = (wanted**-2 - own**-2).clamp(min=0) / (FWHM_PER_SIGMA * self.grid.node_width) ** 2
        # Beyond what rounding makes of equal resolutions.
        variance = torch.where(target.mask & (wanted < 0.999 * own), variance, 0.0)
        return variance.sqrt().to(device_of(self)) if variance.any() else None


def split_noise(observation: SpectrumObservation, share: float) -> tuple[SpectrumObservation, SpectrumObservation]:
    """Two spectra of the same signal whose noise is independent, for training without noiseless truth.

    To the first, noise of `share` times the variance is added; from the second the same noise over `share` is taken.
    Both state the inverse variance that they then have. (Recorrupted-to-Recorrupted: Pang et al. 2021, CVPR.)
    """
    error = torch.where(observation.mask, observation.inverse_variance, 1.0).rsqrt()
    noise = torch.where(observation.mask, torch.randn(error.shape) * error, 0.0)
    ivar = observation.inverse_variance
    return (
        replace(observation, flux=observation.flux + share**0.5 * noise, inverse_variance=ivar / (1 + share)),
        replace(observation, flux=observation.flux - share**-0.5 * noise, inverse_variance=ivar / (1 + 1 / share)),
    )


def _missing_digits(spectrum: WindowedSpectrum) -> Int[Tensor, "B W"]:
    """How much of each window no valid pixel covers, as indices of MISSING_SHARES; a quarter of a pixel is rounding."""
    missing = 1 - spectrum.coverage.mean(-1)
    allowed = 0.25 * spectrum.pixel_width / spectrum.coverage.shape[-1]
    return (missing > allowed).long() + (missing > 0.25).long() * (missing > allowed).long()


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
