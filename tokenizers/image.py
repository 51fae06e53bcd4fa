"""The image tokenizer: any subset of bands, any size, any camera with a card.

An image is cut into patches of the sky of one angular size. What each patch holds is found by weighted least squares
under a learned prior (`patch_prior.py`), through the physics of the instrument (`light_basis.py`): so noise, masks,
absent bands and the PSF are accounted for, and the answer is about the sky. Tokens then keep, for each band of the
camera, the brightness of the object (`brightness.py`); for each patch its brightness; and details of the patch, digit
by digit, as far as the noise lets them be known (`digit_planes.py`). A small transformer over the patches sharpens what
the digits leave open, and the result is rendered as the wanted camera would see it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from ..data.instruments import ImagingInstrument
from ..data.modalities import Modality
from ..data.observations import ImageObservation, ObservationError
from ..settings import Settings, validate_settings
from .brightness import brightness_codes, measure_brightness
from .digit_planes import DigitPlanes
from .light_basis import LightBasis
from .patch_grid import PatchGrid, patch_pixels, place_on_patches
from .patch_prior import BRIGHTNESS_FLOOR, PatchPrior, Sums
from .patch_refiner import PatchRefiner
from .pretrained import device_of, load_weights, read_config, resolve_folder, save_module
from .quantizers import rank_features
from .token_grid import Reconstruction, TokenGrid, check_kind, empty_positions

MODEL_TYPE = "armillary-image-tokenizer"
PATCH_RANGE = (-14.0, 18.0)
"""Limits of asinh(brightness / BRIGHTNESS_FLOOR) of a patch: what saturates every survey, and the noise of a pixel."""
LEAST_SHARE = 0.1
"""Of the tolerance: what a latent may cost at most, by its prior, to be left out."""
CHUNK = 2**25
"""Numbers that one step of the least squares may hold."""


class ImageTokenizerSettings(Settings):
    """Sizes of an image tokenizer. Lengths on the sky in arcsec, wavelengths in angstrom."""

    patch_side: float = 2.0
    """Side of a patch; each camera takes the nearest whole number of its pixels."""
    max_frequency: PositiveInt = 8
    """Highest spatial frequency of a patch, in half cycles."""
    spectral_orders: tuple[int, int, int] = (5, 4, 3)
    """Number of functions of wavelength at low, middle and high spatial frequency."""
    wavelength_min: float = 3000.0
    wavelength_max: float = 11500.0
    num_latents: PositiveInt = 104
    num_details: PositiveInt = 64
    """Most detail tokens of one patch."""
    base: PositiveInt = 5
    digits_per_token: PositiveInt = 5
    num_levels: PositiveInt = 5
    """Digits of the most important latents."""
    tolerance: float = 0.03
    """Details end where those left out would change chi2 by less than this for each valid pixel of the patch."""
    num_patch_brightnesses: int = 1024
    num_brightnesses: int = 1024
    width: int = 128
    num_blocks: int = 2
    """Transformer blocks of the decoder."""
    num_heads: int = 4

    @model_validator(mode="after")
    def _vocabulary_fits_int16(self) -> "ImageTokenizerSettings":
        size = self.base**self.digits_per_token + self.num_patch_brightnesses + self.num_brightnesses
        if size > 2**15:
            raise ValueError(f"tokens are stored as int16: codes of all sorts must not exceed 32768, found {size}")
        return self


class ImageTokenizer(nn.Module):
    """Images to tokens and back; see the module's description."""

    kind = "image"

    def __init__(self, settings: ImageTokenizerSettings | None = None):
        super().__init__()
        self.settings = settings = settings or ImageTokenizerSettings()
        self.basis = LightBasis(
            settings.max_frequency, settings.spectral_orders, settings.wavelength_min, settings.wavelength_max
        )
        self.prior = PatchPrior(self.basis, settings.num_latents)
        self.planes = DigitPlanes(
            settings.num_latents, settings.num_details, settings.digits_per_token, settings.base, settings.num_levels
        )
        self.refiner = PatchRefiner(settings.num_latents, settings.width, settings.num_blocks, settings.num_heads)

    def vocabulary_size(self, modality: Modality) -> int:
        """Number of codes, the same for all cameras: those of details, of patches' and of objects' brightness."""
        return self._first_band_code + self.settings.num_brightnesses

    def code_features(self, modality: Modality) -> Float[Tensor, "V S"]:
        """What codes have in common: the digits of a detail, and cosines of the rank of a brightness."""
        codes = torch.arange(self.planes.vocabulary_size)
        digits = (codes[:, None] // self.planes.strides.cpu()) % self.settings.base
        details = F.one_hot(digits, self.settings.base).flatten(1).float()
        ranks = [rank_features(self.settings.num_patch_brightnesses), rank_features(self.settings.num_brightnesses)]
        return torch.block_diag(details, *ranks)

    @torch.no_grad()
    def encode(self, observation: ImageObservation) -> TokenGrid:
        """One token for each band of the camera, at its wavelength; one for each patch; then the patches' details.

        Details come as all first ones, all second ones and so on, patches row by row; what lies below the noise is
        masked, and so are bands and patches without a valid pixel. Raises ObservationError for a band out of the
        tokenizer's range, and for light brighter than any survey's.
        """
        check_kind(self.kind, observation.modality)
        grid = PatchGrid.of(observation, self.settings.patch_side)
        levels, details, patch_mask, detail_mask = (t.cpu() for t in self._codes(observation, grid))
        brightness, measured = measure_brightness(observation)
        of_bands = brightness_codes(brightness, self.settings.num_brightnesses) + self._first_band_code
        mask = torch.cat([measured, patch_mask, detail_mask.transpose(1, 2).flatten(1)], 1)
        codes = [of_bands, levels + self.planes.vocabulary_size, details.transpose(1, 2).flatten(1)]
        return TokenGrid(
            modality=observation.modality,
            object_id=tuple(observation.object_id),
            codes=torch.where(mask, torch.cat(codes, 1), 0),
            mask=mask,
            positions=self._positions(observation, grid),
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
        num_bands = len(source.bands)
        num_patches = (tokens.num_tokens - num_bands) // (1 + self.settings.num_details)
        middles = tokens.positions[:, num_bands : num_bands + num_patches, :2]
        side = patch_pixels(source, self.settings.patch_side) * source.pixel_scale
        known = tokens.mask[:, num_bands : num_bands + num_patches]
        target = _blank_image(tokens, middles[:, known.any(0)], side, target or tokens.modality)
        device = device_of(self)
        codes, mask = (
            t[:, num_bands:].to(device).unflatten(1, (1 + self.settings.num_details, -1)).transpose(1, 2)
            for t in (tokens.codes, tokens.mask)
        )
        level, patch_mask = self._levels(codes[..., 0] - self.planes.vocabulary_size), mask[..., 0]
        level = torch.where(patch_mask, level, 0.0)
        latents = self._latents(level, codes[..., 1:], mask[..., 1:], patch_mask, middles.to(device))
        flux = self._render(level, latents, middles, side, target)
        covered = _covered(patch_mask.cpu(), middles, side, target)
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

    def loss(self, observation: ImageObservation) -> Reconstruction:
        """Mean over valid pixels of the negative log likelihood, up to a constant, of the reconstruction.

        The likelihood is Gaussian with the pixels' inverse variance to five standard deviations, exponential beyond.
        """
        device = device_of(self)
        grid = PatchGrid.of(observation, self.settings.patch_side)
        with torch.no_grad():
            levels, details, patch_mask, detail_mask = self._codes(observation, grid)
        # Any number of details may be kept: of half of the objects, a random number is.
        most = self.settings.num_details * torch.rand(len(observation), device=device) ** 2 * 2
        detail_mask = detail_mask & (torch.arange(self.settings.num_details, device=device) < most[:, None, None])
        middles = grid.offsets(observation)
        level = torch.where(patch_mask, self._levels(levels), 0.0)
        latents = self._latents(level, details, detail_mask, patch_mask, middles.to(device))
        side = grid.pixels * observation.card.pixel_scale
        # Bright pixels need more digits than bf16 has.
        with torch.autocast(device.type, enabled=False):
            predicted = self._render(level, latents.float(), middles, side, observation)
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
            sums = None
            for _ in range(batches_per_round):
                found = self._expect(next(stream), patches)
                sums = found if sums is None else sums + found
            assert sums is not None
            for tensor in sums.tensors():
                add_up(tensor)
            self.prior.maximize(sums)
            yield number + 1
        grid = 1e-3 * torch.sinh(torch.linspace(-12, 12, 6001, device=device_of(self)))
        counts = torch.zeros(self.settings.num_latents, len(grid), device=grid.device)
        for _ in range(batches_per_round):
            counts += self._histogram(next(stream), grid)
        add_up(counts)
        self.planes.fit(grid, counts, self.prior.variances.float())
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

    def _positions(self, observation: ImageObservation, grid: PatchGrid) -> Float[Tensor, "B N P"]:
        """Bands at their wavelengths; patches at their middles, arcsec from the object, with the detail's number."""
        bands = [math.log(band.wavelength) for band in observation.card.bands]
        middles = grid.offsets(observation)
        num_patches, num_details = middles.shape[1], self.settings.num_details
        positions = empty_positions(len(observation), len(bands) + num_patches * (1 + num_details))
        positions[:, : len(bands), 2] = torch.tensor(bands)
        positions[:, len(bands) :, :2] = middles.repeat(1, 1 + num_details, 1)
        positions[:, len(bands) :, 3] = torch.arange(1 + num_details).repeat_interleave(num_patches)
        return positions

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

    def _chunks(self, observation: ImageObservation, grid: PatchGrid, width: int) -> Iterator[slice]:
        pixels, patches = len(observation.bands) * grid.pixels**2, grid.rows * grid.columns
        step = max(1, CHUNK // (width * (width * patches + pixels)))
        for first in range(0, len(observation), step):
            yield slice(first, first + step)

    def _patches(
        self, observation: ImageObservation, grid: PatchGrid, rows: slice
    ) -> tuple[Float[Tensor, "B P L"], Float[Tensor, "B P L"], Float[Tensor, "B C J"]]:
        """Light and inverse variance of the pixels of each patch, per square arcsec, and the response of the bands."""
        device, area = device_of(self), observation.card.pixel_scale**2
        try:
            spectral = self.basis.spectral(observation.card, tuple(observation.bands)).to(device)
        except ValueError as error:
            raise ObservationError(f"{observation.modality.name}, object {observation.object_id[0]}: {error}") from None
        part = PatchGrid(grid.pixels, grid.rows, grid.columns, grid.start[rows])
        mask = observation.mask[rows].to(device)
        weight = torch.where(mask, observation.inverse_variance[rows].to(device).double(), 0.0) * area**2
        light = torch.where(mask, observation.flux[rows].to(device).double(), 0.0) / area
        transfer = self.basis.transfer(
            observation.psf_fwhm[rows].to(device).double(), grid.pixels * observation.card.pixel_scale
        )
        return part.cut(light).flatten(2), part.cut(weight).flatten(2), self.basis.response(spectral, transfer)

    def _measure(
        self, observation: ImageObservation, grid: PatchGrid, rows: slice
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pixels' light and weight, the bands' response, and each patch's brightness (its code is taken) and scale."""
        light, weight, response = self._patches(observation, grid, rows)
        template = self.basis.design(response, self.prior.mean[:, None], grid.pixels).flatten(1)
        # The mean spectrum without structure on the sky: it is positive on every pixel that may be valid alone.
        even = torch.where(self.basis.spatial_of == 0, self.prior.mean, 0.0)
        spectrum = self.basis.design(response, even[:, None], grid.pixels).flatten(1)[:, None]
        precision = (weight * spectrum**2).sum(2)
        brightness = (weight * spectrum * light).sum(2) / precision.clamp(min=1e-12)
        codes = self._level_codes(brightness, observation, rows.start)
        return light, weight, response, template, codes

    def _codes(
        self, observation: ImageObservation, grid: PatchGrid
    ) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B P T"], Bool[Tensor, "B P"], Bool[Tensor, "B P T"]]:
        """Codes of the patches' brightness and details, and the masks of both."""
        found = []
        for rows in self._chunks(observation, grid, self.settings.num_latents):
            light, weight, response, template, codes = self._measure(observation, grid, rows)
            level = self._levels(codes).double()
            numbers, worth = self._solve(light, weight, response, template, level, grid.pixels)
            num_valid = (weight > 0).sum(2)
            details = level.new_zeros(*level.shape, self.settings.num_details, dtype=torch.long)
            count = torch.zeros_like(num_valid)
            some = numbers.any(2)
            details[some] = self.planes(numbers[some])
            cost = self.planes.errors(numbers[some], details[some]) * worth[some][:, None]
            enough = cost <= self.settings.tolerance * num_valid[some][:, None]
            # Where not even all of them are enough, all are kept.
            count[some] = torch.where(enough.any(1), enough.int().argmax(1), self.settings.num_details)
            detail_mask = torch.arange(self.settings.num_details, device=count.device) < count[..., None]
            found.append((codes, details, num_valid > 0, detail_mask))
        codes, details, patch_mask, detail_mask = (torch.cat(parts) for parts in zip(*found, strict=True))
        return codes, details, patch_mask, detail_mask

    def _solve(
        self,
        light: Float[Tensor, "B P L"],
        weight: Float[Tensor, "B P L"],
        response: Float[Tensor, "B C J"],
        template: Float[Tensor, "B L"],
        level: Float[Tensor, "B P"],
        pixels: int,
    ) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B P"]]:
        """The latents of each patch: most probable given its pixels; and the chi2 that an error of one in them costs.

        Latents too small to matter under the patch's noise stay zero, and cost no time.
        """
        scale = level.abs().clamp(min=BRIGHTNESS_FLOOR)
        worth = weight.sum(2) * scale**2
        # Latents over their prior's standard deviation: the equations are well conditioned.
        deviation = self.prior.variances.sqrt()
        mix = self.prior.latents * deviation
        design = self.basis.design(response, mix, pixels).flatten(1, 2).transpose(1, 2).contiguous()
        residual = (light - template[:, None] * level[..., None]) * weight
        limit = LEAST_SHARE * self.settings.tolerance * (weight > 0).sum(2)
        needed = (worth[..., None] * self.prior.variances > limit[..., None]).sum(2)
        numbers = level.new_zeros(*level.shape, self.settings.num_latents)
        sizes = [math.ceil(self.settings.num_latents * share) for share in (0, 0.125, 0.25, 0.5, 1)]
        for fewer, count in itertools.pairwise(sizes):
            objects, patches = torch.nonzero((needed > fewer) & (needed <= count), as_tuple=True)
            step = max(1, CHUNK // (count * design.shape[2]))
            for o, p in zip(objects.split(step), patches.split(step), strict=True):
                part = design[o, :count]
                weighted = part * weight[o, p][:, None]
                precision = weighted @ part.transpose(1, 2) * scale[o, p][:, None, None] ** 2
                precision.diagonal(dim1=1, dim2=2).add_(1.0)
                right = part @ residual[o, p][..., None] * scale[o, p][:, None, None]
                factor = torch.linalg.cholesky_ex(precision)[0]
                numbers[o, p, :count] = torch.cholesky_solve(right, factor)[..., 0] * deviation[:count]
        return numbers.float(), worth.float()

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

    def _render(
        self,
        level: Float[Tensor, "B P"],
        latents: Float[Tensor, "B P D"],
        middles: Float[Tensor, "B P 2"],
        side: float,
        target: ImageObservation,
    ) -> Float[Tensor, "B C H W"]:
        """Flux of the target's pixels, nanomaggies."""
        device = level.device
        scale = level.abs().clamp(min=BRIGHTNESS_FLOOR)
        coefficients = latents * scale[..., None] @ self.prior.latents.float().T
        coefficients = coefficients + level[..., None] * self.prior.mean.float()
        try:
            spectral = self.basis.spectral(target.card, tuple(target.bands)).float().to(device)
        except ValueError as error:
            raise ObservationError(f"{target.modality.name}, object {target.object_id[0]}: {error}") from None
        response = self.basis.response(spectral, self.basis.transfer(target.psf_fwhm.to(device), side))
        # [B, P, C, J] never exists: polynomials are summed band by band.
        waves = torch.stack(
            [
                self.basis.by_wave((coefficients * response[:, None, c])[..., None])[..., 0]
                for c in range(len(spectral))
            ],
            2,
        )
        columns = _num_columns(middles)
        grid = self.basis.to_grid(waves).unflatten(1, (-1, columns))
        area = target.card.pixel_scale**2
        objects = torch.arange(len(level), device=device)[:, None]
        (row, at_row, _), (column, at_column, _) = _places(middles, columns, side, target)
        along = torch.einsum("biscvu,biv->biscu", grid[objects, row.to(device)], self.basis.shapes(at_row.to(device)))
        pixels = torch.einsum(
            "bjicu,bju->bcij",
            along.transpose(1, 2)[objects, column.to(device)],
            self.basis.shapes(at_column.to(device)),
        )
        return pixels * area

    def _expect(self, observation: ImageObservation, most: int, chunk: int = 64) -> Sums:
        """Statistics of the patches with light, at most `most` of them."""
        grid = PatchGrid.of(observation, self.settings.patch_side)
        light, weight, response, template, codes = self._measure(observation, grid, slice(0, len(observation)))
        level = self._levels(codes).double()
        signal = level.abs() * (weight * template[:, None] ** 2).sum(2).sqrt()
        whole = (weight > 0).float().mean(2) > 0.5
        objects, patches = torch.nonzero((signal > 5) & whole, as_tuple=True)
        keep = torch.linspace(0, len(objects) - 1, min(most, len(objects)), device=objects.device).long()
        objects, patches = objects[keep], patches[keep]
        eye = torch.eye(len(self.basis), device=light.device, dtype=torch.float64)
        sums = None
        for part in torch.arange(len(objects), device=objects.device).split(chunk):
            o, p = objects[part], patches[part]
            design = self.basis.design(response[o], eye, grid.pixels).flatten(1, 2)
            found = self.prior.expect(design, light[o, p], weight[o, p], level[o, p])
            sums = found if sums is None else sums + found
        if sums is None:
            zero = torch.zeros(len(eye), dtype=eye.dtype, device=eye.device)
            return Sums(zero[0].clone(), zero.clone(), torch.diag(zero), torch.diag(zero))
        return sums

    def _histogram(self, observation: ImageObservation, points: Float[Tensor, " G"]) -> Float[Tensor, "D G"]:
        """How often each latent is near each point, among patches where it matters."""
        grid = PatchGrid.of(observation, self.settings.patch_side)
        counts = torch.zeros(self.settings.num_latents, len(points), device=points.device)
        edges = (points[1:] + points[:-1]) / 2
        for rows in self._chunks(observation, grid, self.settings.num_latents):
            light, weight, response, template, codes = self._measure(observation, grid, rows)
            level = self._levels(codes).double()
            numbers, worth = self._solve(light, weight, response, template, level, grid.pixels)
            limit = self.settings.tolerance * (weight > 0).sum(2)
            matters = worth[..., None] * self.prior.variances > limit[..., None]
            cell = torch.searchsorted(edges, numbers.contiguous())
            counts.scatter_add_(1, cell.flatten(0, 1).T, matters.flatten(0, 1).T.float())
        return counts


def _num_columns(middles: Float[Tensor, "B P 2"]) -> int:
    """Patches in a row: those of one y."""
    return int((middles[0, :, 1] == middles[0, 0, 1]).sum())


def _places(
    middles: Float[Tensor, "B P 2"], columns: int, side: float, target: ImageObservation
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`place_on_patches` for the target's rows and for its columns."""
    places = []
    for axis, first in ((0, middles[:, ::columns, 1]), (1, middles[:, :columns, 0])):
        pixels = torch.arange(target.flux.shape[2 + axis])
        offset = (pixels - target.center[:, axis, None]) * target.card.pixel_scale
        places.append(place_on_patches(first[:, 0], first.shape[1], side, offset))
    return places


def _covered(
    mask: Bool[Tensor, "B P"], middles: Float[Tensor, "B P 2"], side: float, target: ImageObservation
) -> Bool[Tensor, "B H W"]:
    """Which of the target's pixels lie on a patch that has a token."""
    columns = _num_columns(middles)
    (row, _, row_inside), (column, _, column_inside) = _places(middles, columns, side, target)
    objects = torch.arange(len(mask))[:, None, None]
    on_valid = mask.unflatten(1, (-1, columns))[objects, row[:, :, None], column[:, None]]
    return on_valid & row_inside[:, :, None] & column_inside[:, None]


def _blank_image(
    tokens: TokenGrid, middles: Float[Tensor, "B P 2"], side: float, target: Modality | ImageObservation
) -> ImageObservation:
    """An image with the grid and metadata of `target`; its pixels mean nothing.

    `middles` are those of the patches that any object has.
    """
    if isinstance(target, ImageObservation):
        if len(target) != len(tokens):
            raise ObservationError(f"expected a target of {len(tokens)} objects, found {len(target)}")
        return target
    if not isinstance(target.card, ImagingInstrument):
        raise ObservationError(f"images decode to images; found the target {target.name}")
    if not middles.shape[1]:
        raise ObservationError(
            f"{tokens.modality.name}: no object has a patch with a token; there is nothing to decode"
        )
    extent = [len(middles[0, :, axis].unique()) * side for axis in (1, 0)]
    height, width = (max(1, math.floor(n / target.card.pixel_scale + 1e-6)) for n in extent)
    bands = [band.name for band in target.card.bands]
    middle = (middles.amax(1) + middles.amin(1)) / 2
    arguments: dict[str, Any] = {
        "center": torch.tensor([(height - 1) / 2, (width - 1) / 2]) - middle.flip(-1) / target.card.pixel_scale
    }
    return ImageObservation(
        target, tokens.object_id, torch.zeros(len(tokens), len(bands), height, width), bands, **arguments
    )
