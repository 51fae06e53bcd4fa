"""What the patches of images hold: least squares under the prior, through the instrument, patch by patch.

All in float64, so that what is found does not depend on how a batch is put together.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..data.modalities import Modality
from ..data.observations import ImageObservation, ObservationError
from .light_basis import LightBasis
from .patch_grid import PatchGrid
from .patch_prior import BRIGHTNESS_FLOOR, PatchPrior, Sums

LEAST_SHARE = 0.03
"""Of the tolerance: what a latent may cost at most, by its prior, to be left out."""
LEAST_SIGNAL = 5.0
"""Signal-to-noise ratio of the patches that the prior learns from."""
FREEDOM = 2.0
BROADER, BROADEST = 1.2, 4.0
"""Breadth of the prior from which a patch is solved again, and the largest: digits reach no further."""
CHUNK = 2**25
"""Numbers that one step of the least squares may hold."""


@dataclass(frozen=True, eq=False)
class SeenPatches:
    """The P patches of B images, of L pixels each (all bands), as an instrument saw them.

    `light` and `weight`, its inverse variance and zero where a pixel is masked, are per square arcsec; `response` is
    what each band sees of each basis function; `pixels` are those along a patch.
    """

    light: Float64[Tensor, "B P L"]
    weight: Float64[Tensor, "B P L"]
    response: Float64[Tensor, "B C J"]
    pixels: int

    @property
    def num_valid(self) -> Tensor:
        """Valid pixels of each patch [B, P]."""
        return (self.weight > 0).sum(2)


def chunks(observation: ImageObservation, grid: PatchGrid, num_latents: int) -> Iterator[slice]:
    """Objects of a batch, as many at a time as memory allows."""
    pixels, patches = len(observation.bands) * grid.pixels**2, grid.rows * grid.columns
    step = max(1, CHUNK // (num_latents * (num_latents * patches + pixels)))
    for first in range(0, len(observation), step):
        yield slice(first, first + step)


def see_patches(
    basis: LightBasis,
    observation: ImageObservation,
    flux: Float64[Tensor, "B C H W"],
    colours: Float64[Tensor, "B M"],
    grid: PatchGrid,
    rows: slice,
) -> SeenPatches:
    """The patches of some objects, `rows`, with `flux` in place of the observation's.

    `colours` are theirs alone (`patch_context.object_colours`). Raises ObservationError for a band out of the basis's
    range.
    """
    area, device = observation.card.pixel_scale**2, flux.device
    spectral = spectral_response(basis, observation, colours).to(device)
    part = PatchGrid(grid.pixels, grid.rows, grid.columns, grid.start[rows])
    mask = observation.mask[rows].to(device)
    weight = torch.where(mask, observation.inverse_variance[rows].to(device).double(), 0.0) * area**2
    light = torch.where(mask, flux[rows], 0.0) / area
    psf_fwhm = observation.psf_fwhm[rows].to(device).double()
    transfer = basis.transfer(psf_fwhm, grid.pixels * observation.card.pixel_scale)
    response = basis.response(spectral, transfer)
    return SeenPatches(part.cut(light).flatten(2), part.cut(weight).flatten(2), response, grid.pixels)


def spectral_response(
    basis: LightBasis, observation: ImageObservation, colours: Float64[Tensor, "B M"]
) -> Float64[Tensor, "B C M"]:
    """`LightBasis.spectral` of an observation's bands. Raises ObservationError that names modality and object."""
    modality: Modality = observation.modality
    try:
        return basis.spectral(observation.card, tuple(observation.bands), colours)
    except ValueError as error:
        raise ObservationError(f"{modality.name}, object {observation.object_id[0]}: {error}") from None


def fit_brightness(basis: LightBasis, prior: PatchPrior, seen: SeenPatches) -> Float64[Tensor, "B P"]:
    """Brightness of each patch, nanomaggies per square arcsec: amplitude of the object's spectrum; zero without pixels.

    The spectrum is that of a patch about which nothing else is known.
    """
    # Without structure on the sky: so it is positive on every pixel that may be valid alone.
    even = torch.where(basis.spatial_of == 0, prior.regression[:, 0], 0.0)
    spectrum = basis.design(seen.response, even[:, None], seen.pixels).flatten(1)[:, None]
    precision = (seen.weight * spectrum**2).sum(2)
    return (seen.weight * spectrum * seen.light).sum(2) / precision.clamp(min=1e-12)


def fit_latents(
    basis: LightBasis,
    prior: PatchPrior,
    seen: SeenPatches,
    level: Float64[Tensor, "B P"],
    context: Float64[Tensor, "B P F"],
    tolerance: float,
) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B P"]]:
    """The latents of each patch: most probable given its pixels; and the chi2 that an error of one in them costs.

    `level` is the brightness of the patch, `context` what the prior's regression takes. Latents too small to matter
    beside `tolerance` (chi2 for each valid pixel) stay zero, and cost no time. The cores of galaxies and stars hold far
    more than most patches: where a first solution is larger than its prior, the prior is taken to be as broad, as in a
    Student t distribution of FREEDOM degrees (Liu & Rubin 1995, Statistica Sinica 5, 19, eq. 5), and the patch is
    solved once more.
    """
    scale = level.abs().clamp(min=BRIGHTNESS_FLOOR)
    worth = seen.weight.sum(2) * scale**2
    # Latents over their prior's standard deviation: the equations are well conditioned.
    deviation = prior.variances.sqrt()
    mix = prior.latents * deviation
    design = basis.design(seen.response, mix, seen.pixels).flatten(1, 2).transpose(1, 2).contiguous()
    residual = (seen.light - _expected(basis, prior, seen, context) * level[..., None]) * seen.weight
    least = LEAST_SHARE * tolerance * seen.num_valid
    numbers = level.new_zeros(*level.shape, len(deviation))
    breadth = torch.ones_like(level)
    chosen = torch.ones_like(level, dtype=torch.bool)
    for _ in range(2):
        matters = (worth * breadth)[..., None] * prior.variances > least[..., None]
        needed = matters.sum(2) * chosen
        for fewer, count in itertools.pairwise(math.ceil(len(deviation) * share) for share in (0, 0.125, 0.25, 0.5, 1)):
            objects, patches = torch.nonzero((needed > fewer) & (needed <= count), as_tuple=True)
            step = max(1, CHUNK // (count * design.shape[2]))
            for o, p in zip(objects.split(step), patches.split(step), strict=True):
                part = design[o, :count]
                weighted = part * seen.weight[o, p][:, None]
                precision = weighted @ part.transpose(1, 2) * scale[o, p][:, None, None] ** 2
                precision.diagonal(dim1=1, dim2=2).add_(1 / breadth[o, p][:, None])
                right = part @ residual[o, p][..., None] * scale[o, p][:, None, None]
                factor = torch.linalg.cholesky_ex(precision)[0]
                found = torch.cholesky_solve(right, factor)[..., 0]
                numbers[o, p, :count] = found * deviation[:count]
                square = found.square().sum(1)
                # A variance is at most that of the prior: others cannot be broader.
                may = square > (BROADER - 1) * (FREEDOM + count)
                variance = torch.cholesky_inverse(factor[may]).diagonal(dim1=1, dim2=2).sum(1)
                breadth[o[may], p[may]] = ((FREEDOM + square[may] + variance) / (FREEDOM + count)).clamp(max=BROADEST)
        chosen = breadth > BROADER
    return numbers.float(), worth.float()


def patch_statistics(
    basis: LightBasis,
    prior: PatchPrior,
    seen: SeenPatches,
    level: Float64[Tensor, "B P"],
    context: Float64[Tensor, "B P F"],
    most: int,
    chunk: int = 64,
) -> Sums:
    """What the prior learns of the patches with light, at most `most` of them."""
    signal = level.abs() * (seen.weight * _expected(basis, prior, seen, context) ** 2).sum(2).sqrt()
    whole = seen.num_valid > 0.5 * seen.weight.shape[2]
    objects, patches = torch.nonzero((signal > LEAST_SIGNAL) & whole, as_tuple=True)
    keep = torch.linspace(0, len(objects) - 1, min(most, len(objects)), device=objects.device).long()
    eye = torch.eye(len(basis), device=level.device, dtype=level.dtype)
    sums = Sums.none(prior.regression)
    for o, p in zip(objects[keep].split(chunk), patches[keep].split(chunk), strict=True):
        design = basis.design(seen.response[o], eye, seen.pixels).flatten(1, 2)
        sums = sums + prior.expect(design, seen.light[o, p], seen.weight[o, p], level[o, p], context[o, p])
    return sums


def _expected(
    basis: LightBasis, prior: PatchPrior, seen: SeenPatches, context: Float64[Tensor, "B P F"]
) -> Float64[Tensor, "B P L"]:
    """The patches of brightness one that the prior expects, as the instrument sees them."""
    return context @ basis.design(seen.response, prior.regression, seen.pixels).flatten(1, 2).transpose(1, 2)
