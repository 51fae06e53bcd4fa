"""Images of many sources in many bands at once: profiles, knots and the PSF are multiplied as Fourier transforms.

A Sersic profile is a non-negative sum of concentric Gaussians (Hogg & Lang 2013, PASP 125, 719, arXiv 1210.6563; the
sums here are our own fits), and so is a disc's structure, as many small Gaussian knots. Their transforms are
Gaussians again, those of a Moffat PSF and of a pixel have closed forms, and a place is a phase. The product is
transformed back on a grid twice as wide as the image. Gaussians so wide that they would come round the edge of that
grid are evaluated in real space. Everything runs on the device of the tensors it is given and in their precision;
float32 is within 2e-6 of the peak of float64.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.optimize import nnls
from scipy.special import gammainc, gammaincinv
from torch import Tensor

POINT = 0.0
"""In place of a Sersic index: a source without extent."""
TRUNCATION = {1.0: 6.0, 4.0: 8.0}
"""Radius, in half-light radii, beyond which each Sersic profile (by its index) has no light."""
MOFFAT_BETA = 3.5
"""Exponent of the PSF's wings, (1 + (r / a)^2)^-beta: Trujillo et al. 2001 (MNRAS 328, 977) find 2.5 to 4.8."""
# First and last sigma, in half-light radii, and number of the Gaussians offered to each fit.
_SIGMAS = {1.0: (0.05, 2.2, 10), 4.0: (0.008, 3.0, 12)}
LEAST_FWHM = 2.75
"""Of the PSF, in pixels: the finest that pixels sample well, with light of 1e-3 of the peak beyond their band limit."""
PADDING = 2
WIDEST_IN_FOURIER_SPACE = 1 / 6
"""Gaussians of a greater sigma, as a share of the padded grid, are evaluated in real space."""
REACH = 1.0
"""Sources and knots whose row or column is further from the middle than this, in image sizes, are left out: on the
padded grid their light would come round the edge."""
MAX_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Memory of one chunk of images while it is rendered; other devices take that of cuda. On a CPU, what caches hold."""


@dataclass(frozen=True, eq=False)
class Sources:
    """E sources in each of B images, column by column of one kind. A source without flux costs next to nothing."""

    sersic_indices: tuple[float, ...]
    """Of each of the E columns: 1, 4 or POINT."""
    flux: Float[Tensor, "B E C"]
    """Total flux in each band, in the unit of the image per pixel. Negative flux takes light away."""
    radius: Float[Tensor, "B E"]
    """Half-light radius along the major axis, arcsec."""
    axis_ratio: Float[Tensor, "B E"]
    position_angle: Float[Tensor, "B E"]
    """Of the major axis, degrees from up (north; rows increase upwards) through left (east)."""
    offset: Float[Tensor, "B E 2"]
    """Place (up, left), arcsec from the middle of the image."""

    def __len__(self) -> int:
        return len(self.flux)

    def select(self, rows: slice | Tensor) -> "Sources":
        """The sources of these images."""
        return Sources(
            self.sersic_indices,
            self.flux[rows],
            self.radius[rows],
            self.axis_ratio[rows],
            self.position_angle[rows],
            self.offset[rows],
        )

    def join(self, other: "Sources") -> "Sources":
        """The sources of both, in the same images: this one's columns come first."""
        return Sources(
            self.sersic_indices + other.sersic_indices,
            torch.cat([self.flux, other.flux], 1),
            torch.cat([self.radius, other.radius], 1),
            torch.cat([self.axis_ratio, other.axis_ratio], 1),
            torch.cat([self.position_angle, other.position_angle], 1),
            torch.cat([self.offset, other.offset], 1),
        )


@dataclass(frozen=True, eq=False)
class Knots:
    """Gaussian knots about one source of each image, in G groups: the knots of a group share size and colour.

    They have the source's axis ratio and position angle; lengths are in its half-light radii. Their flux is their own,
    apart from the source's.
    """

    column: int
    """About which source: a column of Sources."""
    group_sizes: tuple[int, ...]
    """Number of knots in each group; K in all."""
    position: Float[Tensor, "B K 2"]
    """On the sky from the source: along its major axis (up, at position angle 0), and across (right)."""
    weight: Float[Tensor, "B K"]
    """Share of the flux of its group; a group's sum to 1."""
    sigma: Float[Tensor, "B G"]
    """Along the major axis. On the padded grid none is wider than WIDEST_IN_FOURIER_SPACE."""
    flux: Float[Tensor, "B G C"]

    def select(self, rows: slice | Tensor) -> "Knots":
        """The knots of these images."""
        return Knots(
            self.column, self.group_sizes, self.position[rows], self.weight[rows], self.sigma[rows], self.flux[rows]
        )


def render_images(
    sources: Sources,
    psf_fwhm: Float[Tensor, "B C"],
    *,
    size: int,
    pixel_scale: float,
    knots: Knots | None = None,
    max_bytes: int | None = None,
) -> Float[Tensor, "B C H W"]:
    """Noiseless images of `size` x `size` pixels of `pixel_scale` arcsec, through a Moffat PSF of `psf_fwhm` arcsec.

    Rendered in chunks of images that take about `max_bytes` of memory, by default MAX_BYTES. An image whose PSF is
    narrower than LEAST_FWHM is rendered in finer pixels, which are then added up.
    """
    if max_bytes is None:
        max_bytes = MAX_BYTES.get(psf_fwhm.device.type, MAX_BYTES["cuda"])
    num_bands, num_groups = sources.flux.shape[-1], 0 if knots is None else len(knots.group_sizes)
    most_lit = int((sources.flux != 0).any(-1).sum(1).max()) if len(sources) else 0
    images = sources.flux.new_empty(len(sources), num_bands, size, size)
    oversampling = (LEAST_FWHM * pixel_scale / psf_fwhm.amin(1)).ceil().clamp(min=1).int()
    for times in oversampling.unique().tolist():
        members = (oversampling == times).nonzero()[:, 0]
        # Complex transforms of sources and bands on half of the padded grid, and as much again while they are made.
        transforms = 2 * (most_lit + num_groups + 2 * num_bands)
        step = max(1, max_bytes // (transforms * 8 * (PADDING * size * times) ** 2 // 2))
        for rows in members.split(step):
            chunk = None if knots is None else knots.select(rows)
            fine = _render_chunk(sources.select(rows), psf_fwhm[rows], size * times, pixel_scale / times, chunk)
            images[rows] = fine.unflatten(3, (size, times)).unflatten(2, (size, times)).sum((3, 5))
    return images


def render_galaxies(
    flux: Float[Tensor, "B P C"],
    radius: Float[Tensor, "B P"],
    axis_ratio: Float[Tensor, "B P"],
    position_angle: Float[Tensor, " B"],
    psf_fwhm: Float[Tensor, "B C"],
    *,
    sersic_indices: tuple[float, ...],
    size: int,
    pixel_scale: float,
) -> Float[Tensor, "B C H W"]:
    """`render_images` of smooth galaxies in the middle: P concentric components of one position angle."""
    angle, middle = position_angle[:, None].expand_as(radius), radius.new_zeros(*radius.shape, 2)
    sources = Sources(sersic_indices, flux, radius, axis_ratio, angle, middle)
    return render_images(sources, psf_fwhm, size=size, pixel_scale=pixel_scale)


@functools.cache
def sersic_mixture(index: float) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Weights (sum 1) and sigmas of the Gaussians that make the Sersic profile of `index` with half-light radius 1.

    The profile ends at TRUNCATION[index]; the half-light radius is that of the profile without end. A POINT is one
    Gaussian without width.
    """
    if index == POINT:
        return np.ones(1), np.zeros(1)
    shape = gammaincinv(2 * index, 0.5)
    radius = np.geomspace(1e-3, 1.5 * TRUNCATION[index], 500)
    growth = gammainc(2 * index, shape * radius ** (1 / index)) / gammainc(
        2 * index, shape * TRUNCATION[index] ** (1 / index)
    )
    return _fit_mixture(radius, np.minimum(growth, 1.0), np.geomspace(*_SIGMAS[index]))


@functools.cache
def moffat_mixture() -> tuple[Float[np.ndarray, " J"], Float[np.ndarray, " J"]]:
    """Weights (sum 1) and sigmas of the Gaussians that make a Moffat profile of FWHM 1."""
    radius = np.geomspace(1e-2, 8.0, 500)
    growth = 1 - (1 + (radius / _MOFFAT_SCALE) ** 2) ** (1 - MOFFAT_BETA)
    return _fit_mixture(radius, growth, np.geomspace(0.33, 1.8, 5))


_MOFFAT_SCALE = 0.5 / math.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
"""The radius a of a Moffat profile of FWHM 1."""


def moffat_transform(frequency: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Fourier transform of the Moffat profile of unit flux, at angular frequency times its radius a.

    In general 2^(1 - v) / Gamma(v) x^v K_v(x) with v = beta - 1; K_2.5 of our beta is elementary.
    """
    return torch.exp(-frequency) * (1 + frequency + frequency**2 / 3)


def flux_within(
    aperture: float,
    radius: Float[np.ndarray, "B P"],
    axis_ratio: Float[np.ndarray, "B P"],
    psf_fwhm: float,
    sersic_indices: tuple[float, ...],
    offset: Float[np.ndarray, "B 2"] | None = None,
) -> Float[np.ndarray, "B P"]:
    """Share of each component's flux within a circle of radius `aperture` (arcsec), seen through a PSF.

    The circle's centre is `offset` (arcsec along the major axis, and across it) from the component's, by default upon
    it. The light is summed over points of the circle, to 1e-3 of the flux.
    """
    points, areas = _circle(aperture, max(6, math.ceil(6 * aperture / psf_fwhm)))
    place = points if offset is None else points + offset[:, None]
    along, across = np.broadcast_to(place**2, (len(radius), *points.shape)).transpose(2, 0, 1)
    share = np.zeros(radius.shape)
    for component, index in enumerate(sersic_indices):
        extent = radius[:, component, None]
        for (weight, sigma), (psf_weight, psf_sigma) in itertools.product(
            zip(*sersic_mixture(index), strict=True), zip(*moffat_mixture(), strict=True)
        ):
            blur = (psf_fwhm * psf_sigma) ** 2
            major = (extent * sigma) ** 2 + blur
            minor = (extent * sigma * axis_ratio[:, component, None]) ** 2 + blur
            light = np.exp(-0.5 * (along / major + across / minor)) @ areas
            share[:, component] += weight * psf_weight * light / (2 * math.pi * np.sqrt(major * minor)[:, 0])
    return share


def _render_chunk(
    sources: Sources, psf_fwhm: Float[Tensor, "B C"], size: int, pixel_scale: float, knots: Knots | None
) -> Float[Tensor, "B C H W"]:
    grid, num_images, num_bands = size * PADDING, len(sources), sources.flux.shape[-1]
    device, dtype = sources.flux.device, sources.flux.dtype
    frequency_y = 2 * torch.pi * torch.fft.fftfreq(grid, dtype=dtype, device=device)
    frequency_x = 2 * torch.pi * torch.fft.rfftfreq(grid, dtype=dtype, device=device)
    # Pixels count from the first row and column.
    middle = (size - 1) / 2
    row, column = middle + sources.offset[..., 0] / pixel_scale, middle - sources.offset[..., 1] / pixel_scale
    radius = sources.radius / pixel_scale
    is_near = ((row - middle).abs() < REACH * size) & ((column - middle).abs() < REACH * size)
    is_lit = is_near & (sources.flux != 0).any(-1)

    # Only what is lit gets a place among the transforms of its image.
    slot = is_lit.cumsum(1) - 1
    num_slots, half = int(is_lit.sum(1).max()), len(frequency_x)
    num_groups = 0 if knots is None else len(knots.group_sizes)
    flux = sources.flux.new_zeros(num_images, num_slots, num_bands)
    transforms = flux.new_zeros(num_images, num_slots + num_groups, grid, half, dtype=dtype.to_complex())
    beyond: list[tuple[Tensor, Tensor]] = []
    for index in sorted(set(sources.sersic_indices)):
        weights, sigmas = (torch.from_numpy(a).to(sources.flux) for a in sersic_mixture(index))
        of_kind = torch.tensor([i == index for i in sources.sersic_indices]).to(device)
        image, place = (is_lit & of_kind).nonzero(as_tuple=True)
        flux[image, slot[image, place]] = sources.flux[image, place]
        sigma = radius[image, place, None] * sigmas  # [N, K] pixels
        is_wide = sigma > WIDEST_IN_FOURIER_SPACE * grid
        phase = (
            _phases(row[image, place], frequency_y)[:, :, None] * _phases(column[image, place], frequency_x)[:, None]
        )
        if index != POINT:
            quadratic = _ellipse(
                frequency_x, frequency_y, sources.axis_ratio[image, place], sources.position_angle[image, place]
            )
            phase = phase * _sum_of_gaussians(torch.where(is_wide, 0.0, weights), sigma, quadratic)
        transforms[image, slot[image, place]] = phase
        which, gaussian = is_wide.nonzero(as_tuple=True)
        if len(which):
            rows, places = image[which], place[which]
            drawn = _real_space(
                sigma[which, gaussian],
                sources.axis_ratio[rows, places],
                sources.position_angle[rows, places],
                row[rows, places],
                column[rows, places],
                psf_fwhm[rows] / pixel_scale,
                size,
            )
            beyond.append((rows, drawn * (sources.flux[rows, places] * weights[gaussian, None])[..., None, None]))
    if knots is not None:
        flux = torch.cat([flux, knots.flux], 1)
        lit = (knots.flux != 0).flatten(1).any(1).nonzero()[:, 0]
        transforms[lit, num_slots:] = _knot_transforms(
            knots.select(lit),
            radius[lit, knots.column],
            sources.axis_ratio[lit, knots.column],
            sources.position_angle[lit, knots.column],
            row[lit, knots.column],
            column[lit, knots.column],
            frequency_x,
            frequency_y,
            size,
        )

    mixed = torch.bmm(flux.transpose(1, 2), torch.view_as_real(transforms).flatten(2))
    bands = torch.view_as_complex(mixed.view(num_images, num_bands, grid, half, 2))
    pixel = torch.sinc(frequency_x / (2 * torch.pi)) * torch.sinc(frequency_y / (2 * torch.pi))[:, None]
    absolute = torch.hypot(frequency_x, frequency_y[:, None])
    blur = moffat_transform((psf_fwhm * (_MOFFAT_SCALE / pixel_scale))[..., None, None] * absolute)
    images = torch.fft.irfft2(bands * (blur * pixel), s=(grid, grid))[..., :size, :size]
    for rows, drawn in beyond:
        images.index_add_(0, rows, drawn)
    return images


def _fit_mixture(radius: np.ndarray, growth: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative least squares of the flux within each radius, relative to it; the weights are then scaled to one."""
    gaussians = -np.expm1(-0.5 * (radius[:, None] / sigmas) ** 2)
    importance = 1 / np.maximum(growth, 0.02)
    weights, _ = nnls(gaussians * importance[:, None], growth * importance, maxiter=10_000)
    kept = weights > 1e-6 * weights.sum()
    return weights[kept] / weights[kept].sum(), sigmas[kept]


def _circle(radius: float, num_rings: int) -> tuple[Float[np.ndarray, "Q 2"], Float[np.ndarray, " Q"]]:
    """Points within a circle, and the area that each stands for: Gauss-Legendre in the squared distance."""
    nodes, weights = np.polynomial.legendre.leggauss(num_rings)
    distance = radius * np.sqrt((nodes + 1) / 2)
    angle = 2 * math.pi * (np.arange(2 * num_rings) + 0.5) / (2 * num_rings)
    points = np.stack([np.outer(distance, np.cos(angle)), np.outer(distance, np.sin(angle))], -1).reshape(-1, 2)
    return points, np.repeat(weights / 2, len(angle)) * math.pi * radius**2 / len(angle)


def _phases(place: Float[Tensor, "*N"], frequency: Float[Tensor, " F"]) -> Complex[Tensor, "*N F"]:
    """Transform along one axis of a unit of light at `place` (pixels)."""
    angle = -place[..., None] * frequency
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _ellipse(
    frequency_x: Float[Tensor, " X"],
    frequency_y: Float[Tensor, " Y"],
    axis_ratio: Float[Tensor, " N"],
    position_angle: Float[Tensor, " N"],
) -> Float[Tensor, "N Y X"]:
    """Squared length of each frequency, as seen by a profile that is squeezed across its major axis."""
    angle = torch.deg2rad(position_angle)
    cosine, sine, squeezed = torch.cos(angle), torch.sin(angle), axis_ratio**2
    along_y = (cosine**2 + squeezed * sine**2)[:, None] * frequency_y**2
    along_x = (sine**2 + squeezed * cosine**2)[:, None] * frequency_x**2
    crossed = (2 * (squeezed - 1) * cosine * sine)[:, None] * frequency_y
    return along_y[:, :, None] + (along_x[:, None] + crossed[:, :, None] * frequency_x)


def _sum_of_gaussians(
    weights: Float[Tensor, "N K"], sigma: Float[Tensor, "N K"], quadratic: Float[Tensor, "N Y X"]
) -> Float[Tensor, "N Y X"]:
    total = torch.zeros_like(quadratic)
    for weight, column in zip(weights.unbind(1), sigma.unbind(1), strict=True):
        gaussian = torch.exp(quadratic * (-0.5 * column**2)[:, None, None])
        total += gaussian.mul_(weight[:, None, None])
    return total


def _knot_transforms(
    knots: Knots,
    radius: Float[Tensor, " B"],
    axis_ratio: Float[Tensor, " B"],
    position_angle: Float[Tensor, " B"],
    row: Float[Tensor, " B"],
    column: Float[Tensor, " B"],
    frequency_x: Float[Tensor, " X"],
    frequency_y: Float[Tensor, " Y"],
    size: int,
) -> Complex[Tensor, "B G Y X"]:
    """Transform of each group of unit flux: the knots' phases, row by column, are a matrix product."""
    angle = torch.deg2rad(position_angle)[:, None]
    along, across = (radius[:, None, None] * knots.position).unbind(-1)
    row = row[:, None] + along * torch.cos(angle) + across * torch.sin(angle)
    column = column[:, None] + across * torch.cos(angle) - along * torch.sin(angle)
    middle = (size - 1) / 2
    is_near = ((row - middle).abs() < REACH * size) & ((column - middle).abs() < REACH * size)
    weight = torch.where(is_near, knots.weight, 0.0)
    phases_y = _phases(row, frequency_y) * weight[..., None]
    phases_x = _phases(column, frequency_x)
    quadratic = _ellipse(frequency_x, frequency_y, axis_ratio, position_angle)
    sigma = (knots.sigma * radius[:, None]).clamp(max=WIDEST_IN_FOURIER_SPACE * PADDING * size)
    groups = []
    ends = np.cumsum(knots.group_sizes).tolist()
    for group, (end, count) in enumerate(zip(ends, knots.group_sizes, strict=True)):
        members = slice(end - count, end)
        gaussian = torch.exp(quadratic * (-0.5 * sigma[:, group] ** 2)[:, None, None])
        groups.append(torch.bmm(phases_y[:, members].transpose(1, 2), phases_x[:, members]) * gaussian)
    return torch.stack(groups, 1)


def _real_space(
    sigma: Float[Tensor, " N"],
    axis_ratio: Float[Tensor, " N"],
    position_angle: Float[Tensor, " N"],
    row: Float[Tensor, " N"],
    column: Float[Tensor, " N"],
    psf_fwhm: Float[Tensor, "N C"],
    size: int,
) -> Float[Tensor, "N C H W"]:
    """Gaussians of unit flux with major axis `sigma`; lengths are in pixels.

    The PSF is its sum of Gaussians, and a pixel adds the variance of a square.
    """
    pixels = torch.arange(size, device=sigma.device)
    up, right = (pixels - row[:, None])[:, :, None], (pixels - column[:, None])[:, None]
    angle = torch.deg2rad(position_angle)[:, None, None]
    major = ((up * torch.cos(angle) - right * torch.sin(angle)) ** 2)[:, None]
    minor = ((up * torch.sin(angle) + right * torch.cos(angle)) ** 2)[:, None]
    images = sigma.new_zeros(*psf_fwhm.shape, size, size)
    for weight, width in zip(*moffat_mixture(), strict=True):
        blur = (psf_fwhm * float(width)) ** 2 + 1 / 12
        along = (sigma**2)[:, None] + blur
        across = ((sigma * axis_ratio) ** 2)[:, None] + blur
        exponent = major * (-0.5 / along)[..., None, None] + minor * (-0.5 / across)[..., None, None]
        height = float(weight) / (2 * torch.pi * torch.sqrt(along * across))
        images += exponent.exp_().mul_(height[..., None, None])
    return images
