"""The image tokenizer: any subset of bands, any size, any camera with a card.

An image is cut into patches of the sky of one angular size. What each patch holds is found by weighted least squares
under a learned prior (`patch_prior.py`, `patch_context.py`), through the physics of the instrument (`light_basis.py`):
so noise, masks, absent bands and the PSF are accounted for, and the answer is about the sky. Tokens then keep, for each
band of the camera, the brightness of the object (`brightness.py`); for each patch its brightness; and details of the
patch, digit by digit, as far as the noise lets them be known (`digit_planes.py`). A small transformer over the patches
sharpens what the digits leave open, and the result is rendered as the wanted camera would see it. Bright stars are
sharper than patches can say, and have tokens of their own (`point_sources.py`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from ..data.instruments import ImagingInstrument
from ..data.modalities import Modality
from ..data.observations import ImageObservation, ObservationError
from ..settings import Settings, validate_settings
from .brightness import RANGE as BRIGHTNESS_RANGE
from .brightness import brightness_codes, brightness_of_codes, measure_brightness
from .digit_planes import DigitPlanes
from .light_basis import LightBasis
from .patch_context import brightness_softening, num_context, object_colours, patch_slopes
from .patch_fit import SeenPatches, chunks, fit_brightness, fit_latents, patch_statistics, see_patches
from .patch_grid import PatchGrid, patch_pixels
from .patch_prior import BRIGHTNESS_FLOOR, PatchPrior, Sums
from .patch_refiner import PatchRefiner
from .patch_rendering import blank_image, covered_pixels, num_columns, render_as_measured, render_for_camera
from .point_sources import (
    find_sources,
    num_details_and_sources,
    num_source_codes,
    num_source_tokens,
    render_sources,
    source_codes,
    source_features,
    source_positions,
    sources_of,
)
from .pretrained import device_of, load_weights, read_config, resolve_folder, save_module
from .quantizers import even_bins, number_features, rank_features
from .token_grid import DETAIL, LOG_WAVELENGTH, Reconstruction, TokenGrid, check_kind, empty_positions
from .token_places import TokenPlaces, code_ranges

MODEL_TYPE = "armillary-image-tokenizer"
PATCH_RANGE = (-14.0, 18.0)
"""Limits of asinh(brightness / BRIGHTNESS_FLOOR) of a patch: what saturates every survey, and the noise of a pixel."""


class ImageTokenizerSettings(Settings):
    """Sizes of an image tokenizer. Lengths on the sky in arcsec, wavelengths in angstrom."""

    patch_side: float = 2.0
    """Side of a patch; each camera takes the nearest whole number of its pixels."""
    max_frequency: PositiveInt = 9
    """Highest spatial frequency of a patch, in half cycles."""
    spectral_orders: tuple[int, int, int] = (5, 4, 3)
    """Number of functions of wavelength at low, middle and high spatial frequency."""
    wavelength_min: float = 3000.0
    wavelength_max: float = 11500.0
    num_latents: PositiveInt = 192
    num_details: PositiveInt = 128
    """Most detail tokens of one patch."""
    base: PositiveInt = 5
    digits_per_token: PositiveInt = 5
    num_levels: PositiveInt = 5
    """Digits of the most important latents."""
    tolerance: float = 0.02
    """Details end where those left out would change chi2 by less than this for each valid pixel of the patch."""
    num_point_sources: NonNegativeInt = 8
    """Most point sources of an image."""
    num_patch_brightnesses: int = 1024
    num_brightnesses: int = 1024
    width: int = 128
    num_blocks: int = 2
    """Transformer blocks of the decoder."""
    num_heads: int = 4

    @model_validator(mode="after")
    def _vocabulary_fits_int16(self) -> "ImageTokenizerSettings":
        size = self.base**self.digits_per_token + self.num_patch_brightnesses + self.num_brightnesses
        size += num_source_codes()
        if size > 2**15:
            raise ValueError(f"tokens are stored as int16: codes of all sorts must not exceed 32768, found {size}")
        return self


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Images about to be cut into patches, and the tokens that are found before: of point sources and of colours."""

    observation: ImageObservation
    grid: PatchGrid
    source_codes: Int[Tensor, "B N"]
    source_mask: Bool[Tensor, "B N"]
    stars: Float64[Tensor, "B C H W"]
    flux: Float64[Tensor, "B C H W"]
    """Light of the point sources as their tokens keep it, and what is left for the patches."""
    band_codes: Int[Tensor, "B S"]
    measured: Bool[Tensor, "B S"]
    """Of the bands of the camera, brightness of the object and whether it was measured."""
    colours: Float64[Tensor, "B M"]


class ImageTokenizer(nn.Module):
    """Images to tokens and back; see the module's description."""

    kind = "image"

    def __init__(self, settings: ImageTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or ImageTokenizerSettings()
        self.basis = LightBasis(
            settings.max_frequency, settings.spectral_orders, settings.wavelength_min, settings.wavelength_max
        )
        self.prior = PatchPrior(self.basis, settings.num_latents, num_context(self.basis))
        self.planes = DigitPlanes(
            settings.num_latents, settings.num_details, settings.digits_per_token, settings.base, settings.num_levels
        )
        self.refiner = PatchRefiner(settings.num_latents, settings.width, settings.num_blocks, settings.num_heads)

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes, the same for all cameras: the sum of `codebook_sizes`."""
        return sum(self.codebook_sizes().values())

    def codebook_sizes(self) -> dict[str, int]:
        """Number of codes of each sort of token, in the order of their codes."""
        return {
            "detail": self.planes.vocabulary_size,
            "patch brightness": self.settings.num_patch_brightnesses,
            "object brightness": self.settings.num_brightnesses,
            "point source": num_source_codes(),
        }

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """What codes have in common: the digits of a detail, and cosines of the rank of a brightness or a digit."""
        codes = torch.arange(self.planes.vocabulary_size)
        digits = (codes[:, None] // self.planes.strides.cpu()) % self.settings.base
        details = F.one_hot(digits, self.settings.base).flatten(1).float()
        ranks = [rank_features(self.settings.num_patch_brightnesses), rank_features(self.settings.num_brightnesses)]
        return torch.block_diag(details, *ranks, source_features())

    def code_numbers(self, modality: Modality) -> Float[Tensor, "V S"]:
        """The brightness of a patch, and that of a band, compressed by arcsinh."""
        of_patches = even_bins(PATCH_RANGE, self.settings.num_patch_brightnesses) / 3
        of_bands = even_bins(BRIGHTNESS_RANGE, self.settings.num_brightnesses) / 2 - 2
        numbers = torch.block_diag(number_features(of_patches), number_features(of_bands))
        after = self.vocabulary_size(modality) - self.planes.vocabulary_size - len(numbers)
        return F.pad(numbers, (0, 0, self.planes.vocabulary_size, after))

    @torch.no_grad()
    def encode(self, observation: ImageObservation) -> TokenGrid:
        """One token for each band of the camera, at its wavelength; one for each patch; then the patches' details.

        Details come as all first ones, all second ones and so on, patches row by row; what lies below the noise is
        masked, and so are bands and patches without a valid pixel. Point sources stand at the end. Raises
        ObservationError for a band out of the tokenizer's range, and for light brighter than any survey's.
        """
        check_kind(self.kind, observation.modality)
        prepared = self._prepare(observation)
        levels, details, patch_mask, detail_mask, _ = (t.cpu() for t in self._codes(prepared))
        of_bands = prepared.band_codes + self._first_band_code
        of_sources = prepared.source_codes.cpu() + self._first_source_code
        of_details = detail_mask.transpose(1, 2).flatten(1)
        mask = torch.cat([prepared.measured, patch_mask, of_details, prepared.source_mask.cpu()], 1)
        codes = [of_bands, levels + self.planes.vocabulary_size, details.transpose(1, 2).flatten(1), of_sources]
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.where(mask, torch.cat(codes, 1), 0),
            mask=mask,
            positions=self._positions(observation, prepared.grid),
            instrument=torch.from_numpy(observation.card.features()).repeat(len(observation), 1),
        )

    @torch.no_grad()
    def decode(self, tokens: TokenGrid, target: Modality | ImageObservation | None = None) -> ImageObservation:
        """Images as the target would see them, with its typical inverse variance.

        `target` is an observation, whose bands, size, PSF, depth and centre are used, or a modality, whose card's are
        used over the tokens' own extent; by default the tokens' own modality. Pixels that no token covers are masked.
        """
        check_kind(self.kind, tokens.modality)
        source = cast(ImagingInstrument, tokens.modality.card)
        num_details, num_sources = self.settings.num_details, self.settings.num_point_sources
        num_bands = len(source.bands)
        found = num_details_and_sources(tokens.positions)
        if found != (num_details, num_sources):
            raise ObservationError(
                f"{tokens.modality.name}, object {tokens.object_id[0]}: expected {num_details} details of each patch "
                f"and {num_sources} point sources, found {found[0]} and {found[1]}. Was it made by another tokenizer?"
            )
        end = tokens.num_tokens - num_source_tokens(num_sources, num_bands)
        num_patches = (end - num_bands) // (1 + num_details)
        middles = tokens.positions[:, num_bands : num_bands + num_patches, :2]
        side = patch_pixels(source, self.settings.patch_side) * source.pixel_scale
        known = tokens.mask[:, num_bands : num_bands + num_patches]
        target = blank_image(tokens, middles[:, known.any(0)], side, target or tokens.modality)
        device = device_of(self)
        codes, mask = (
            t[:, num_bands:end].to(device).unflatten(1, (1 + num_details, -1)).transpose(1, 2)
            for t in (tokens.codes, tokens.mask)
        )
        level, patch_mask = self._levels(codes[..., 0] - self.planes.vocabulary_size), mask[..., 0]
        level = torch.where(patch_mask, level, 0.0)
        latents = self._latents(level, codes[..., 1:], mask[..., 1:], patch_mask, middles.to(device))
        measured = tokens.mask[:, :num_bands]
        colours = self._colours(tokens.codes[:, :num_bands] - self._first_band_code, measured, source)
        context = self._context(colours, level, patch_mask, num_columns(middles), source)
        mean, departures = self._coefficients(level, latents, context)
        flux = render_as_measured(self.basis, mean, departures, colours, middles, side, source, measured, target)
        codes, mask = (t[:, end:].to(device) for t in (tokens.codes - self._first_source_code, tokens.mask))
        flux = flux + self._render_sources(codes, mask, source, target)
        covered = covered_pixels(patch_mask.cpu(), middles, side, target)
        return ImageObservation(
            target.modality,
            tokens.object_id,
            flux.float().cpu(),
            target.bands,
            mask=covered[:, None].expand(flux.shape),
            psf_fwhm=target.psf_fwhm,
            depth=target.depth,
            center=target.center,
            ra=target.ra,
            dec=target.dec,
        )

    def token_places(self, target: ImageObservation) -> TokenPlaces:
        """Where images on the pixels of `target` have tokens: bands and patches always, details of patches perhaps.

        Of the target, only size, centre, bands and mask are used. Point sources have no place: which stars happen to
        lie beside an object is not for another observation of it to tell.
        """
        check_kind(self.kind, target.modality)
        grid, num_details = PatchGrid.of(target, self.settings.patch_side), self.settings.num_details
        patches = grid.cut(target.mask.float()).flatten(2).any(2)
        names = [band.name for band in target.card.bands]
        bands = torch.tensor([name in target.bands for name in names]).expand(len(target), -1)
        details = patches.repeat(1, num_details)
        num_sources = num_source_tokens(self.settings.num_point_sources, len(names))
        sources = torch.zeros(len(target), num_sources, dtype=torch.bool)
        mask = torch.cat([bands, patches, details, sources], 1)
        first_level, end = self.planes.vocabulary_size, self.vocabulary_size(target.modality)
        low, high = code_ranges(
            [
                (len(names), self._first_band_code, self._first_source_code),
                (patches.shape[1], first_level, self._first_band_code),
                (details.shape[1], 0, first_level),
                (num_sources, self._first_source_code, end),
            ]
        )
        refines = torch.arange(mask.shape[1])
        first = len(names) + patches.shape[1]
        refines[first : first + details.shape[1]] -= patches.shape[1]
        tokens = TokenGrid(
            modality=target.modality,
            object_id=tuple(target.object_id),
            codes=torch.zeros(mask.shape, dtype=torch.long),
            mask=mask,
            positions=self._positions(target, grid),
            instrument=torch.from_numpy(target.card.features()).repeat(len(target), 1),
        )
        always = torch.cat([bands, patches, torch.zeros_like(details), sources], 1)
        return TokenPlaces(tokens, always, low, high, refines)

    def loss(self, observation: ImageObservation) -> Reconstruction:
        """Mean over valid pixels of the negative log likelihood, up to a constant, of the reconstruction.

        The likelihood is Gaussian with the pixels' inverse variance to five standard deviations, exponential beyond.
        """
        device = device_of(self)
        with torch.no_grad():
            prepared = self._prepare(observation)
            levels, details, patch_mask, detail_mask, context = self._codes(prepared)
        # Any number of details may be kept: of seven objects in ten, a random number is.
        most = self.settings.num_details * torch.rand(len(observation), device=device) ** 2 * 2
        detail_mask = detail_mask & (torch.arange(self.settings.num_details, device=device) < most[:, None, None])
        grid, card = prepared.grid, observation.card
        middles = grid.offsets(observation)
        level = torch.where(patch_mask, self._levels(levels), 0.0)
        latents = self._latents(level, details, detail_mask, patch_mask, middles.to(device))
        # Bright pixels need more digits than bf16 has.
        with torch.autocast(device.type, enabled=False):
            mean, departures = self._coefficients(level, latents.float(), context)
            side = grid.pixels * card.pixel_scale
            of_patches = render_for_camera(
                self.basis, mean + departures, prepared.colours, middles, side, card, observation
            )
        predicted = of_patches + prepared.stars.float()
        mask = observation.mask.to(device)
        weight = observation.inverse_variance.to(device).sqrt()
        error = ((predicted - observation.flux.to(device)) * weight)[mask]
        loss = F.huber_loss(error, torch.zeros_like(error), delta=5.0)
        on_source = (predicted.detach() * weight)[mask] > 1
        square = error.detach().square()
        parts = {
            "chi2": square.mean(),
            "chi2_on_sources": square[on_source].sum() / on_source.sum().clamp(min=1),
            "details": detail_mask.float().sum((1, 2)).mean(),
        }
        return Reconstruction(loss, parts, details.flatten(1), detail_mask.flatten(1))

    @property
    def num_learned_codes(self) -> int:
        """Codes of details, which come first."""
        return self.planes.vocabulary_size

    @staticmethod
    def num_prior_rounds(rounds: int) -> int:
        """Rounds of `learn_prior`, those for the digits included."""
        return rounds + 1

    @torch.no_grad()
    def learn_prior(
        self,
        batches: Iterable[ImageObservation],
        rounds: int = 10,
        batches_per_round: int = 64,
        patches: int = 64,
        add_up: Callable[[Tensor], None] = lambda sums: None,
        done: int = 0,
    ) -> Iterator[int]:
        """Learn the prior from images by expectation maximisation, then the digits; yields the rounds done.

        A round takes `batches_per_round` batches and at most `patches` patches of each. `add_up` adds a tensor over
        processes, in place. `done` rounds were done before.
        """
        stream = iter(batches)
        for number in range(done, rounds):
            sums = Sums.none(self.prior.regression)
            for _ in range(batches_per_round):
                prepared = self._prepare(next(stream))
                seen, codes, context = self._see(prepared, slice(0, len(prepared.observation)))
                level = self._levels(codes).double()
                sums = sums + patch_statistics(self.basis, self.prior, seen, level, context, patches)
            for tensor in sums.tensors():
                add_up(tensor)
            self.prior.maximize(sums)
            yield number + 1
        points = 1e-3 * torch.sinh(torch.linspace(-12, 12, 6001, device=device_of(self)))
        counts = torch.zeros(self.settings.num_latents, len(points), device=points.device)
        for _ in range(batches_per_round):
            counts += self._histogram(next(stream), points)
        add_up(counts)
        self.planes.fit(points, counts, self.prior.variances.float())
        yield rounds + 1

    def with_details(self, num_details: int) -> "ImageTokenizer":
        """This tokenizer with fewer detail tokens of a patch: its tokens are the first ones of this one's.

        Raises ValueError for more than there are.
        """
        if num_details > self.settings.num_details:
            raise ValueError(f"this tokenizer makes at most {self.settings.num_details} details, found {num_details}")
        fewer = ImageTokenizer(self.settings.model_copy(update={"num_details": num_details}))
        weights = self.state_dict()
        for name in ("planes.number_of", "planes.level_of"):
            weights[name] = weights[name][:num_details]
        fewer.load_state_dict(weights)
        return fewer.to(device_of(self)).train(self.training)

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

    @property
    def _first_band_code(self) -> int:
        return self.planes.vocabulary_size + self.settings.num_patch_brightnesses

    @property
    def _first_source_code(self) -> int:
        return self._first_band_code + self.settings.num_brightnesses

    def _positions(self, observation: ImageObservation, grid: PatchGrid) -> Float[Tensor, "B N P"]:
        """Bands at their wavelengths; patches at their middles, arcsec from the object, with the detail's number."""
        wavelengths = [band.wavelength for band in observation.card.bands]
        bands = [math.log(wavelength) for wavelength in wavelengths]
        middles = grid.offsets(observation)
        num_patches, num_details = middles.shape[1], self.settings.num_details
        positions = empty_positions(len(observation), len(bands) + num_patches * (1 + num_details))
        positions[:, : len(bands), LOG_WAVELENGTH] = torch.tensor(bands)
        positions[:, len(bands) :, :2] = middles.repeat(1, 1 + num_details, 1)
        positions[:, len(bands) :, DETAIL] = torch.arange(1 + num_details).repeat_interleave(num_patches)
        of_sources = source_positions(len(observation), self.settings.num_point_sources, wavelengths)
        return torch.cat([positions, of_sources], 1)

    def _prepare(self, observation: ImageObservation) -> _Prepared:
        found = find_sources(observation, self.settings.num_point_sources, device_of(self))
        codes, source_mask = source_codes(found)
        stars = self._render_sources(codes, source_mask, observation.card, observation)
        values, measured = measure_brightness(observation)
        band_codes = brightness_codes(values, self.settings.num_brightnesses)
        return _Prepared(
            observation,
            PatchGrid.of(observation, self.settings.patch_side),
            codes,
            source_mask,
            stars,
            observation.flux.to(stars.device).double() - stars,
            band_codes,
            measured,
            self._colours(band_codes, measured, observation.card),
        )

    @staticmethod
    def _render_sources(
        codes: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"], card: ImagingInstrument, target: ImageObservation
    ) -> Float64[Tensor, "B C H W"]:
        """Flux of the target's pixels from tokens of point sources that a camera saw."""
        return render_sources(sources_of(codes, mask, len(card.bands)), [b.wavelength for b in card.bands], target)

    def _levels(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Brightness of a patch, nanomaggies per square arcsec, by its code."""
        low, high = PATCH_RANGE
        count = self.settings.num_patch_brightnesses
        return BRIGHTNESS_FLOOR * torch.sinh(low + (high - low) * (codes.clamp(0, count - 1) + 0.5) / count)

    def _level_codes(
        self, brightness: Float[Tensor, "B P"], observation: ImageObservation, first: int
    ) -> Int[Tensor, "B P"]:
        low, high = PATCH_RANGE
        place = (torch.asinh(brightness / BRIGHTNESS_FLOOR) - low) / (high - low)
        outside = (place < 0) | (place >= 1)
        if outside.any():
            row, patch = outside.nonzero()[0].tolist()
            limits = [BRIGHTNESS_FLOOR * math.sinh(limit) for limit in PATCH_RANGE]
            raise ObservationError(
                f"{observation.modality.name}, object {observation.object_id[first + row]}: the mean brightness of a "
                f"patch must lie in [{limits[0]:.3g}, {limits[1]:.3g}) nanomaggies per square arcsec, found "
                f"{brightness[row, patch].item():.3g}. Pass mask=False where pixels are saturated."
            )
        return (place * self.settings.num_patch_brightnesses).long()

    def _colours(
        self, codes: Int[Tensor, "B S"], measured: Bool[Tensor, "B S"], card: ImagingInstrument
    ) -> Float64[Tensor, "B M"]:
        """`object_colours` by the tokens of the brightness in each band of a camera."""
        values = brightness_of_codes(codes, self.settings.num_brightnesses)
        return object_colours(self.basis, card, values, measured).to(device_of(self))

    def _context(
        self,
        colours: Float64[Tensor, "B M"],
        level: Float[Tensor, "B P"],
        patch_mask: Bool[Tensor, "B P"],
        columns: int,
        card: ImagingInstrument,
    ) -> Float64[Tensor, "B P F"]:
        """What the prior expects patches by: the colours of their object, and the slopes of the light about them."""
        softening = brightness_softening(self.basis, card, patch_pixels(card, self.settings.patch_side))
        slopes = patch_slopes(level, patch_mask, columns, softening)
        return torch.cat([colours[:, None].expand(-1, level.shape[1], -1), slopes], -1)

    def _seen(self, prepared: _Prepared) -> Iterator[tuple[SeenPatches, Int[Tensor, "B P"], Float64[Tensor, "B P F"]]]:
        """A few objects at a time: their patches, the codes of the patches' brightness, and the patches' context."""
        for rows in chunks(prepared.observation, prepared.grid, self.settings.num_latents):
            yield self._see(prepared, rows)

    def _see(
        self, prepared: _Prepared, rows: slice
    ) -> tuple[SeenPatches, Int[Tensor, "B P"], Float64[Tensor, "B P F"]]:
        observation, grid, colours = prepared.observation, prepared.grid, prepared.colours[rows]
        seen = see_patches(self.basis, observation, prepared.flux, colours, grid, rows)
        codes = self._level_codes(fit_brightness(self.basis, self.prior, seen), observation, rows.start)
        context = self._context(colours, self._levels(codes), seen.num_valid > 0, grid.columns, observation.card)
        return seen, codes, context

    def _fit(
        self, seen: SeenPatches, codes: Int[Tensor, "B P"], context: Float64[Tensor, "B P F"]
    ) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B P"]]:
        """`fit_latents` by the brightness that the codes keep."""
        level = self._levels(codes).double()
        return fit_latents(self.basis, self.prior, seen, level, context, self.settings.tolerance)

    def _codes(
        self, prepared: _Prepared
    ) -> tuple[
        Int[Tensor, "B P"], Int[Tensor, "B P T"], Bool[Tensor, "B P"], Bool[Tensor, "B P T"], Float64[Tensor, "B P F"]
    ]:
        """Codes of the patches' brightness and details, the masks of both, and the patches' context."""
        most = self.settings.num_details
        found = []
        for seen, codes, context in self._seen(prepared):
            numbers, worth = self._fit(seen, codes, context)
            num_valid = seen.num_valid
            details = codes.new_zeros(*codes.shape, most)
            count = torch.zeros_like(num_valid)
            some = numbers.any(2)
            details[some] = self.planes(numbers[some])
            cost = self.planes.errors(numbers[some], details[some]) * worth[some][:, None]
            enough = cost <= self.settings.tolerance * num_valid[some][:, None]
            # Where not even all of them are enough, all are kept.
            count[some] = torch.where(enough.any(1), enough.int().argmax(1), most)
            detail_mask = torch.arange(most, device=count.device) < count[..., None]
            found.append((codes, details, num_valid > 0, detail_mask, context))
        codes, details, patch_mask, detail_mask, context = (torch.cat(parts) for parts in zip(*found, strict=True))
        return codes, details, patch_mask, detail_mask, context

    def _latents(
        self,
        level: Float[Tensor, "B P"],
        details: Int[Tensor, "B P T"],
        detail_mask: Bool[Tensor, "B P T"],
        patch_mask: Bool[Tensor, "B P"],
        middles: Float[Tensor, "B P 2"],
    ) -> Float[Tensor, "B P D"]:
        """Latents from tokens: the middles of their cells, moved within these by the refiner."""
        numbers, spread = self.planes.decode(details.flatten(0, 1), detail_mask.flatten(0, 1))
        numbers, spread = (t.view(*level.shape, -1) for t in (numbers, spread))
        bright = torch.asinh(level / BRIGHTNESS_FLOOR)
        return numbers + spread * self.refiner(bright, numbers, spread, patch_mask, middles)

    def _coefficients(
        self, level: Float[Tensor, "B P"], latents: Float[Tensor, "B P D"], context: Float64[Tensor, "B P F"]
    ) -> tuple[Float[Tensor, "B P J"], Float[Tensor, "B P J"]]:
        """Coefficients of each patch: those of its brightness alone, and how it departs from them."""
        scale = level.abs().clamp(min=BRIGHTNESS_FLOOR)
        alone = self.prior.regression[:, 0].float()
        expected = (context @ self.prior.regression.T).float()
        departures = latents * scale[..., None] @ self.prior.latents.float().T
        return level[..., None] * alone, level[..., None] * (expected - alone) + departures

    def _histogram(self, observation: ImageObservation, points: Float[Tensor, " G"]) -> Float[Tensor, "D G"]:
        """How often each latent is near each point, among patches where it matters."""
        counts = torch.zeros(self.settings.num_latents, len(points), device=points.device)
        edges = (points[1:] + points[:-1]) / 2
        for seen, codes, context in self._seen(self._prepare(observation)):
            numbers, worth = self._fit(seen, codes, context)
            limit = self.settings.tolerance * seen.num_valid
            matters = worth[..., None] * self.prior.variances > limit[..., None]
            cell = torch.searchsorted(edges, numbers.contiguous())
            counts.scatter_add_(1, cell.flatten(0, 1).T, matters.flatten(0, 1).T.float())
        return counts
