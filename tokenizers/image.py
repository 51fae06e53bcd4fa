"""The image tokenizer: any subset of bands, any size, any camera with a card.

Flux is scaled by the typical noise and compressed by arcsinh; patches of each band enter through a projection
conditioned on the band's physical numbers, are summed over the bands at hand, mixed by a small transformer, and rounded
by finite scalar quantisation. The first tokens keep the brightness in each band (`brightness.py`). The decoder is told
the numbers of the wanted bands and answers with cosine coefficients for each token, which are evaluated on the wanted
pixel grid: tokens can be rendered as another camera would see them.
"""

import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import model_validator
from torch import Tensor, nn

from ..data.instruments import BAND_FEATURES, ImagingInstrument
from ..data.modalities import Modality
from ..data.observations import ImageObservation, ObservationError
from ..settings import Settings, validate_settings
from .blocks import Block, NumbersEmbedding, PositionEmbedding, RMSNorm, attendable
from .brightness import brightness_at, brightness_codes, brightness_of_codes, measure_brightness
from .pretrained import device_of, load_weights, read_config, resolve_folder, save_module
from .quantizers import FiniteScalarQuantizer, rank_features
from .token_grid import TokenGrid, empty_positions

MODEL_TYPE = "armillary-image-tokenizer"
MODEL_ERROR = 0.05
"""Relative error granted to the model of a bright pixel, so that the cores of bright sources do not rule the loss."""


class ImageTokenizerSettings(Settings):
    """Sizes of an image tokenizer."""

    patch_size: int = 8
    """Pixels on a side of one token."""
    width: int = 128
    num_blocks: int = 2
    """Transformer blocks of the encoder, and as many of the decoder."""
    num_heads: int = 4
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    """Levels of the quantiser; their product and `num_brightnesses` make the vocabulary."""
    num_brightnesses: int = 1024

    @model_validator(mode="after")
    def _vocabulary_fits_int16(self) -> "ImageTokenizerSettings":
        if math.prod(self.levels) + self.num_brightnesses > 2**15:
            raise ValueError(
                "tokens are stored as int16: the product of levels plus num_brightnesses must not exceed 32768, found "
                f"{math.prod(self.levels)} + {self.num_brightnesses}"
            )
        return self


class ImageTokenizer(nn.Module):
    """Images to tokens and back; see the module's description."""

    kind = "image"

    def __init__(self, settings: ImageTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or ImageTokenizerSettings()
        pixels, width = settings.patch_size**2, settings.width
        self.quantizer = FiniteScalarQuantizer(settings.levels)
        self.position = PositionEmbedding(width)
        self.patch_in = nn.Linear(2 * pixels, width)
        self.band_in = NumbersEmbedding(len(BAND_FEATURES), 2 * width)
        self.mix_in = nn.Linear(width, width)
        self.encoder = nn.ModuleList(Block(width, settings.num_heads) for _ in range(settings.num_blocks))
        self.to_latent = nn.Sequential(RMSNorm(width), nn.Linear(width, len(settings.levels)))
        self.from_latent = nn.Linear(len(settings.levels), width)
        self.decoder = nn.ModuleList(Block(width, settings.num_heads) for _ in range(settings.num_blocks))
        self.decoder_norm = RMSNorm(width)
        self.mix_out = nn.Linear(width, width)
        self.band_out = NumbersEmbedding(len(BAND_FEATURES) + 1, 2 * width)
        self.patch_out = nn.Linear(width, pixels)

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes, the same for all cameras: those of patches, then those of brightness."""
        return self.quantizer.vocabulary_size + self.settings.num_brightnesses

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """What codes have in common: the factors of the quantiser, and cosines of the rank of a brightness."""
        return torch.block_diag(self.quantizer.code_features().cpu(), rank_features(self.settings.num_brightnesses))

    @torch.no_grad()
    def encode(self, observation: ImageObservation) -> TokenGrid:
        """One token for each band of the camera, at its wavelength; then one for each patch, row by row, in arcsec.

        A band that was not observed and a patch without a valid pixel are masked.
        """
        device = device_of(self)
        patches, band_mask = self._patches(observation)
        positions = self._positions(observation)
        features = observation.band_features()
        latents = self._latents(patches.to(device), band_mask.to(device), features.to(device), positions.to(device))
        brightness, measured = measure_brightness(observation)
        of_bands = brightness_codes(brightness, self.settings.num_brightnesses) + self.quantizer.vocabulary_size
        of_patches = self.quantizer(latents)[1].cpu()
        at_bands = empty_positions(*brightness.shape)
        at_bands[..., 2] = torch.tensor([math.log(band.wavelength) for band in observation.card.bands])
        mask = torch.cat([measured, band_mask.any(1)], 1)
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.where(mask, torch.cat([of_bands, of_patches], 1), 0),
            mask=mask,
            positions=torch.cat([at_bands, positions], 1),
            instrument=torch.from_numpy(observation.card.features()).repeat(len(observation), 1),
        )

    @torch.no_grad()
    def decode(self, tokens: TokenGrid, target: Modality | ImageObservation | None = None) -> ImageObservation:
        """Images as the target would see them, with its typical inverse variance.

        `target` is an observation, whose bands, size, PSF, depth and centre are used, or a modality, whose card's are
        used over the tokens' own extent; by default the tokens' own modality. Pixels that no token covers are masked.
        """
        source = cast(ImagingInstrument, tokens.modality.card)
        num_bands = len(source.bands)
        positions, mask = tokens.positions[:, num_bands:], tokens.mask[:, num_bands:]
        target = _blank_image(tokens, positions, target or tokens.modality, self.settings.patch_size)
        latents = self.quantizer.from_codes(tokens.codes[:, num_bands:].to(device_of(self)))
        of_bands = tokens.codes[:, :num_bands] - self.quantizer.vocabulary_size
        brightness = _brightness_in_bands(
            brightness_of_codes(of_bands, self.settings.num_brightnesses), tokens.mask[:, :num_bands], source, target
        )
        scaled, covered = self._render(latents, brightness, mask, positions, source.pixel_scale, target)
        noise = target.noise()[..., None, None]
        return ImageObservation(
            target.modality,
            tokens.object_id,
            torch.sinh(scaled.cpu()) * noise,
            target.bands,
            mask=covered[:, None].expand(target.flux.shape),
            psf_fwhm=target.psf_fwhm,
            depth=target.depth,
            center=target.center,
            ra=target.ra,
            dec=target.dec,
        )

    def loss(self, observation: ImageObservation) -> Float[Tensor, ""]:
        """Mean Huber loss of the reconstruction's error in units of the noise, over valid pixels; and saturation.

        The noise of a bright pixel is widened by MODEL_ERROR times its flux. The error is taken in the compressed
        scale, where it is the error in flux over the scale's slope.
        """
        device = device_of(self)
        patches, band_mask = self._patches(observation)
        positions = self._positions(observation)
        latents = self._latents(
            patches.to(device), band_mask.to(device), observation.band_features().to(device), positions.to(device)
        )
        rounded, _ = self.quantizer(latents)
        measured, is_measured = measure_brightness(observation)
        kept = brightness_of_codes(
            brightness_codes(measured, self.settings.num_brightnesses), self.settings.num_brightnesses
        )
        card = observation.card
        brightness = _brightness_in_bands(kept, is_measured, card, observation)
        predicted, _ = self._render(rounded, brightness, band_mask.any(1), positions, card.pixel_scale, observation)
        noise = observation.noise()[..., None, None]
        flux = observation.flux / noise
        variance = 1 / (observation.inverse_variance * noise**2).clamp(min=1e-12) + (MODEL_ERROR * flux) ** 2
        weight = torch.sqrt((1 + flux**2) / variance)
        error = (predicted - torch.asinh(flux).to(device)) * weight.to(device)
        mask = observation.mask.to(device)
        misfit = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=3.0)[mask].mean()
        return misfit + self.quantizer.saturation(latents)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors to `folder`."""
        save_module(folder, self, {"model_type": MODEL_TYPE, **self.settings.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> "ImageTokenizer":
        """Load from a folder or the Hub. Raises PretrainedError."""
        folder = resolve_folder(folder_or_hub_id)
        config = read_config(folder, MODEL_TYPE)
        model = cls(validate_settings(ImageTokenizerSettings, config, str(folder)))
        load_weights(folder, model)
        return model.eval()

    def _patches(self, observation: ImageObservation) -> tuple[Float[Tensor, "B C N S"], Bool[Tensor, "B C N"]]:
        """Scaled flux and relative weight of each patch's pixels, and whether it has a valid one in that band."""
        size = self.settings.patch_size
        noise = observation.noise()[..., None, None]
        flux = torch.asinh(observation.flux / noise)
        weight = (observation.inverse_variance.sqrt() * noise).clamp(max=3.0)
        pixels = torch.stack([flux, weight], 2) * observation.mask[:, :, None]
        pixels = F.pad(pixels, (0, -pixels.shape[-1] % size, 0, -pixels.shape[-2] % size))
        patches = pixels.unfold(-2, size, size).unfold(-2, size, size)  # [B, C, 2, R, S, size, size]
        patches = patches.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)
        return patches, (patches[..., size**2 :] > 0).any(-1)

    def _positions(self, observation: ImageObservation) -> Float[Tensor, "B N P"]:
        """Offsets of each patch's middle from the object, arcsec."""
        size, scale = self.settings.patch_size, observation.card.pixel_scale
        rows, columns = (math.ceil(n / size) for n in observation.flux.shape[2:])
        middles = [torch.arange(n) * size + (size - 1) / 2 for n in (rows, columns)]
        y, x = ((m - c[:, None]) * scale for m, c in zip(middles, observation.center.T, strict=True))
        positions = empty_positions(len(observation), rows * columns)
        positions[..., 0] = x[:, None, :].expand(-1, rows, -1).flatten(1)
        positions[..., 1] = y[:, :, None].expand(-1, -1, columns).flatten(1)
        return positions

    def _latents(
        self,
        patches: Float[Tensor, "B C N S"],
        band_mask: Bool[Tensor, "B C N"],
        band_features: Float[Tensor, "B C F"],
        positions: Float[Tensor, "B N P"],
    ) -> Float[Tensor, "B N Q"]:
        gain, shift = self.band_in(band_features)[:, :, None].chunk(2, -1)
        of_band = self.mix_in(F.silu(self.patch_in(patches) * (1 + gain) + shift))
        present = band_mask[..., None]
        x = torch.where(present, of_band, 0.0).sum(1) / present.sum(1).clamp(min=1).sqrt()
        x = x + self.position(positions)
        mask = attendable(band_mask.any(1))
        for block in self.encoder:
            x = block(x, mask)
        return self.to_latent(x).float()

    def _render(
        self,
        latents: Float[Tensor, "B N Q"],
        brightness: Float[Tensor, "B C"],
        mask: Bool[Tensor, "B N"],
        positions: Float[Tensor, "B N P"],
        pixel_scale: float,
        target: ImageObservation,
    ) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
        """Compressed flux of the target's pixels and which of them lie on a valid token."""
        device, size = latents.device, self.settings.patch_size
        x = self.from_latent(latents) + self.position(positions.to(device))
        visible = attendable(mask.to(device))
        for block in self.decoder:
            x = block(x, visible)
        numbers = torch.cat([target.band_features(), brightness[..., None] / 5 - 1], -1).to(device)
        gain, shift = self.band_out(numbers)[:, :, None].chunk(2, -1)
        of_band = self.patch_out(F.silu(self.mix_out(self.decoder_norm(x))[:, None] * (1 + gain) + shift))
        columns = int((positions[0, :, 1] == positions[0, 0, 1]).sum())
        coefficients = of_band.float().unflatten(-1, (size, size)).unflatten(2, (-1, columns))

        row, row_basis, row_inside = self._place(positions[:, ::columns, 1], pixel_scale, target, axis=0)
        column, column_basis, column_inside = self._place(positions[:, :columns, 0], pixel_scale, target, axis=1)
        objects = torch.arange(len(target), device=device)[:, None]
        along_rows = torch.einsum(
            "bicskl,bik->bicsl", coefficients.transpose(1, 2)[objects, row.to(device)], row_basis.to(device)
        )
        pixels = torch.einsum(
            "bjicl,bjl->bcij", along_rows.permute(0, 3, 1, 2, 4)[objects, column.to(device)], column_basis.to(device)
        )
        on_valid = mask.unflatten(1, (-1, columns))[
            torch.arange(len(target))[:, None, None], row[:, :, None], column[:, None]
        ]
        return pixels, on_valid & row_inside[:, :, None] & column_inside[:, None]

    def _place(
        self, middles: Float[Tensor, "B R"], pixel_scale: float, target: ImageObservation, axis: int
    ) -> tuple[Tensor, Float[Tensor, "B I K"], Bool[Tensor, "B I"]]:
        """For each pixel along an axis of the target: its token, the cosines at its place there, whether inside."""
        size = self.settings.patch_size
        pixels = torch.arange(target.flux.shape[2 + axis])
        offset = (pixels - target.center[:, axis, None]) * target.card.pixel_scale
        place = (offset - middles[:, :1]) / (size * pixel_scale) + 0.5
        # Pixels on a border between tokens go to the later one whatever the rounding of their place.
        token = torch.floor(place + 1e-4)
        inside = (token >= 0) & (token < middles.shape[1])
        token = token.clamp(0, middles.shape[1] - 1)
        within = (place - token).clamp(0, 1)
        basis = torch.cos(math.pi * within[..., None] * torch.arange(size))
        return token.long(), basis, inside


def _brightness_in_bands(
    values: Float[Tensor, "B S"], measured: Bool[Tensor, "B S"], source: ImagingInstrument, target: ImageObservation
) -> Float[Tensor, "B C"]:
    """Brightness of the source's bands (kept in tokens) at the wavelengths of the target's."""
    wanted = [target.card.band(name).wavelength for name in target.bands]
    return brightness_at(values, measured, [band.wavelength for band in source.bands], wanted)


def _blank_image(
    tokens: TokenGrid, positions: Float[Tensor, "B N P"], target: Modality | ImageObservation, patch_size: int
) -> ImageObservation:
    """An image with the grid and metadata of `target`; its pixels mean nothing."""
    if isinstance(target, ImageObservation):
        if len(target) != len(tokens):
            raise ObservationError(f"expected a target of {len(tokens)} objects, found {len(target)}")
        return target
    if not isinstance(target.card, ImagingInstrument):
        raise ObservationError(f"images decode to images; found the target {target.name}")
    ratio = patch_size * cast(ImagingInstrument, tokens.modality.card).pixel_scale / target.card.pixel_scale
    extent = [len(positions[0, :, axis].unique()) for axis in (1, 0)]
    height, width = (max(1, math.floor(n * ratio + 1e-6)) for n in extent)
    bands = [band.name for band in target.card.bands]
    middle = positions[..., :2].amax(1) + positions[..., :2].amin(1)
    arguments: dict[str, Any] = {
        "center": torch.tensor([(height - 1) / 2, (width - 1) / 2]) - middle.flip(-1) / 2 / target.card.pixel_scale
    }
    return ImageObservation(
        target, tokens.object_id, torch.zeros(len(tokens), len(bands), height, width), bands, **arguments
    )
