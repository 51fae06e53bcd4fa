"""Patches as pixels of the wanted camera: the sum of their functions, through its bands and its PSF, on its grid.

A patch's functions are known as its own camera saw them. A camera with a broader PSF mixes the light of neighbouring
patches: for it the whole image is rendered as sharp as it was seen, and then smoothed from the one PSF to the other.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..data.instruments import ImagingInstrument
from ..data.modalities import Modality
from ..data.observations import ImageObservation, ObservationError
from .light_basis import LightBasis, moffat_transfer
from .patch_fit import spectral_response
from .patch_grid import place_on_patches
from .token_grid import TokenGrid

PIXELS_OF_PSF = 2.0
"""Pixels in a PSF FWHM below which smoothing takes finer ones."""


def render_patches(
    basis: LightBasis,
    coefficients: Float[Tensor, "B P J"],
    colours: Float64[Tensor, "B M"],
    middles: Float[Tensor, "B P 2"],
    side: float,
    target: ImageObservation,
) -> Float[Tensor, "B C H W"]:
    """Flux of the target's pixels, nanomaggies.

    `coefficients` of the basis functions in nanomaggies per square arcsec; `colours` of the objects
    (`patch_context.object_colours`); `middles` of the patches and their `side` in arcsec. Raises ObservationError for a
    band out of the basis's range.
    """
    device = coefficients.device
    spectral = spectral_response(basis, target, colours).float().to(device)
    response = basis.response(spectral, basis.transfer(target.psf_fwhm.to(device), side))
    # [B, P, C, J] never exists: polynomials are summed band by band.
    waves = torch.stack(
        [basis.by_wave((coefficients * response[:, None, c])[..., None])[..., 0] for c in range(spectral.shape[1])],
        2,
    )
    columns = num_columns(middles)
    grid = basis.to_grid(waves).unflatten(1, (-1, columns))
    area = target.card.pixel_scale**2
    objects = torch.arange(len(coefficients), device=device)[:, None]
    (row, at_row, _), (column, at_column, _) = _places(middles, columns, side, target)
    along = torch.einsum("biscvu,biv->biscu", grid[objects, row.to(device)], basis.shapes(at_row.to(device)))
    pixels = torch.einsum(
        "bjicu,bju->bcij",
        along.transpose(1, 2)[objects, column.to(device)],
        basis.shapes(at_column.to(device)),
    )
    return pixels * area


def render_for_camera(
    basis: LightBasis,
    coefficients: Float[Tensor, "B P J"],
    colours: Float64[Tensor, "B M"],
    middles: Float[Tensor, "B P 2"],
    side: float,
    source: ImagingInstrument,
    target: ImageObservation,
) -> Float[Tensor, "B C H W"]:
    """As `render_patches`, of patches that the camera `source` saw, for a target of any camera."""
    card = target.card
    bands = [card.band(name) for name in target.bands]
    of_source = sorted(source.bands, key=lambda band: band.wavelength)
    known = np.array([[math.log(band.wavelength), band.psf_fwhm] for band in of_source])
    sharpness = np.interp([math.log(band.wavelength) for band in bands], known[:, 0], known[:, 1])
    seen = torch.minimum(torch.from_numpy(sharpness).float(), target.psf_fwhm)
    if card == source or torch.equal(seen, target.psf_fwhm):
        return render_patches(basis, coefficients, colours, middles, side, target)
    sharpest = min(band.psf_fwhm for band in (*source.bands, *bands))
    # An odd number of finer pixels, so that a wanted pixel's middle is one of theirs.
    parts = 2 * math.ceil((PIXELS_OF_PSF * card.pixel_scale / sharpest - 1) / 2) + 1
    scale = card.pixel_scale / parts
    margin = math.ceil(1.5 * max(band.psf_fwhm for band in bands) / scale)
    height, width = (parts * size + 2 * margin for size in target.flux.shape[2:])
    fine = ImageObservation(
        Modality(target.modality.name, card.model_copy(update={"pixel_scale": scale})),
        target.object_id,
        torch.zeros(len(target), len(bands), height, width),
        target.bands,
        psf_fwhm=seen,
        center=target.center * parts + (parts - 1) / 2 + margin,
    )
    light = render_patches(basis, coefficients, colours, middles, side, fine)
    rows, columns = (torch.fft.fftfreq(height, scale), torch.fft.rfftfreq(width, scale))
    frequency = torch.hypot(rows[:, None], columns).to(light.device)
    wanted, sharp = (fwhm.to(light.device)[..., None, None] for fwhm in (target.psf_fwhm, seen))
    ratio = moffat_transfer(wanted, frequency) / moffat_transfer(sharp, frequency).clamp(min=1e-30)
    smooth = torch.fft.irfft2(torch.fft.rfft2(light) * ratio, s=(height, width))
    first = margin + (parts - 1) // 2
    return smooth[..., first : height - margin : parts, first : width - margin : parts] * parts**2


def render_as_measured(
    basis: LightBasis,
    mean: Float[Tensor, "B P J"],
    departures: Float[Tensor, "B P J"],
    colours: Float64[Tensor, "B M"],
    middles: Float[Tensor, "B P 2"],
    side: float,
    source: ImagingInstrument,
    measured: Bool[Tensor, "B S"],
    target: ImageObservation,
) -> Float[Tensor, "B C H W"]:
    """As `render_for_camera`, of coefficients `mean` and `departures` from it that only `measured` bands could tell.

    `measured` says of each of the S bands of `source` whether it saw the object. In bands of the target that lie in
    none of these the departures are the smoothest that they allow.
    """
    flux = render_for_camera(basis, mean + departures, colours, middles, side, source, target)
    wanted = [target.card.band(name).wavelength for name in target.bands]
    beyond = torch.zeros(len(mean), len(wanted), dtype=torch.bool)
    smooth = departures.clone()
    for pattern in measured.unique(dim=0):
        rows = (measured == pattern).all(1)
        # Of an object whose middle no band shows, any band may have seen the rest.
        seen = tuple(itertools.compress(source.bands, pattern.tolist())) or source.bands
        beyond[rows] = torch.tensor([not any(band.contains(wavelength) for band in seen) for wavelength in wanted])
        if beyond[rows].any():
            spectral = basis.spectral(source, tuple(band.name for band in seen))
            smooth[rows] = departures[rows] @ basis.smoothest(spectral).float().to(mean.device).T
    if beyond.any():
        of_smooth = render_for_camera(basis, mean + smooth, colours, middles, side, source, target)
        flux = torch.where(beyond.to(flux.device)[..., None, None], of_smooth, flux)
    return flux


def covered_pixels(
    mask: Bool[Tensor, "B P"], middles: Float[Tensor, "B P 2"], side: float, target: ImageObservation
) -> Bool[Tensor, "B H W"]:
    """Which of the target's pixels lie on a patch that has a token."""
    columns = num_columns(middles)
    (row, _, row_inside), (column, _, column_inside) = _places(middles, columns, side, target)
    objects = torch.arange(len(mask))[:, None, None]
    on_valid = mask.unflatten(1, (-1, columns))[objects, row[:, :, None], column[:, None]]
    return on_valid & row_inside[:, :, None] & column_inside[:, None]


def blank_image(
    tokens: TokenGrid, middles: Float[Tensor, "B P 2"], side: float, target: Modality | ImageObservation
) -> ImageObservation:
    """An image with the grid and metadata of `target`; its pixels mean nothing.

    `middles` are those of the patches that any object has, `side` that of a patch, arcsec. Raises ObservationError for
    a target of another kind or number of objects, and where there is no patch.
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


def num_columns(middles: Float[Tensor, "B P 2"]) -> int:
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
