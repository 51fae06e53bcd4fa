"""Images of many sources in many bands at once: profiles, knots and the PSF are multiplied as Fourier transforms.

A profile is a sum of Gaussians (`light_profiles`), and so is a disc's structure, as many small Gaussian knots. Their
transforms are Gaussians again, those of the PSF and of a pixel have closed forms, and a place is a phase. The product
is transformed back on a grid twice as wide as the image. Gaussians so wide that they would come round the edge of that
grid are evaluated in real space. Everything runs on the device of the tensors it is given and in their precision;
float32 is within 2e-6 of the peak of float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from .light_profiles import MOFFAT_SCALE, POINT, moffat_mixture, moffat_transform, sersic_mixture

LEAST_FWHM = 2.75
"""Of the PSF, in pixels: the finest that pixels sample well, with light of 1e-3 of the peak beyond their band limit."""
PADDING = 2
"""Width of the grid of the transforms, in image sizes."""
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


@dataclass(frozen=True, eq=False)
class _Grid:
    """The padded grid, and where the sources of each image lie upon it."""

    size: int
    frequency_x: Float[Tensor, " X"]
    """Radians for each pixel; X and Y are half and all of the padded grid."""
    frequency_y: Float[Tensor, " Y"]
    row: Float[Tensor, "B E"]
    """Pixels, counted from the middle of the first."""
    column: Float[Tensor, "B E"]
    radius: Float[Tensor, "B E"]
    psf_fwhm: Float[Tensor, "B C"]

    @property
    def widest(self) -> float:
        """Sigma of the widest Gaussian that does not come round the edge."""
        return WIDEST_IN_FOURIER_SPACE * PADDING * self.size

    def is_near(self, row: Float[Tensor, "*N"], column: Float[Tensor, "*N"]) -> Bool[Tensor, "*N"]:
        """Whether light at this place stays clear of the edge."""
        middle = (self.size - 1) / 2
        return ((row - middle).abs() < REACH * self.size) & ((column - middle).abs() < REACH * self.size)


def _render_chunk(
    sources: Sources, psf_fwhm: Float[Tensor, "B C"], size: int, pixel_scale: float, knots: Knots | None
) -> Float[Tensor, "B C H W"]:
    kind = {"dtype": psf_fwhm.dtype, "device": psf_fwhm.device}
    middle = (size - 1) / 2
    grid = _Grid(
        size,
        2 * torch.pi * torch.fft.rfftfreq(PADDING * size, **kind),
        2 * torch.pi * torch.fft.fftfreq(PADDING * size, **kind),
        middle + sources.offset[..., 0] / pixel_scale,
        middle - sources.offset[..., 1] / pixel_scale,
        sources.radius / pixel_scale,
        psf_fwhm / pixel_scale,
    )
    flux, transforms, wide = _source_transforms(sources, grid)
    if knots is not None:
        flux = torch.cat([flux, knots.flux], 1)
        transforms = torch.cat([transforms, _knot_transforms(knots, sources, grid)], 1)
    mixed = torch.bmm(flux.transpose(1, 2), torch.view_as_real(transforms).flatten(2))
    bands = torch.view_as_complex(mixed.unflatten(2, (*transforms.shape[2:], 2)))

    pixel = torch.sinc(grid.frequency_x / (2 * torch.pi)) * torch.sinc(grid.frequency_y / (2 * torch.pi))[:, None]
    absolute = torch.hypot(grid.frequency_x, grid.frequency_y[:, None])
    blur = moffat_transform((MOFFAT_SCALE * grid.psf_fwhm)[..., None, None] * absolute)
    images = torch.fft.irfft2(bands * (blur * pixel), s=(PADDING * size, PADDING * size))[..., :size, :size]
    for rows, drawn in wide:
        images.index_add_(0, rows, drawn)
    return images


def _source_transforms(
    sources: Sources, grid: _Grid
) -> tuple[Float[Tensor, "B S C"], Complex[Tensor, "B S Y X"], list[tuple[Tensor, Tensor]]]:
    """Flux and transform of what is lit in each image; and what is too wide for that: which images, and its pixels."""
    is_lit = (sources.flux != 0).any(-1) & grid.is_near(grid.row, grid.column)
    slot = is_lit.cumsum(1) - 1  # only what is lit gets a place among the transforms of its image
    num_slots, num_bands = int(is_lit.sum(1).max()), sources.flux.shape[-1]
    flux = sources.flux.new_zeros(len(sources), num_slots, num_bands)
    shape = (len(sources), num_slots, len(grid.frequency_y), len(grid.frequency_x))
    transforms = flux.new_zeros(shape, dtype=flux.dtype.to_complex())
    wide: list[tuple[Tensor, Tensor]] = []
    for index in sorted(set(sources.sersic_indices)):
        weights, sigmas = (torch.from_numpy(a).to(flux) for a in sersic_mixture(index))
        of_kind = torch.tensor([i == index for i in sources.sersic_indices]).to(flux.device)
        image, place = (is_lit & of_kind).nonzero(as_tuple=True)
        flux[image, slot[image, place]] = sources.flux[image, place]
        row, column = grid.row[image, place], grid.column[image, place]
        transform = _phases(row, grid.frequency_y)[:, :, None] * _phases(column, grid.frequency_x)[:, None]
        if index == POINT:
            transforms[image, slot[image, place]] = transform
            continue
        sigma = grid.radius[image, place, None] * sigmas
        is_wide = sigma > grid.widest
        ellipse = (sources.axis_ratio[image, place], sources.position_angle[image, place])
        narrow = _sum_of_gaussians(torch.where(is_wide, 0.0, weights), sigma, _squared_frequency(grid, *ellipse))
        transforms[image, slot[image, place]] = transform * narrow
        which, gaussian = is_wide.nonzero(as_tuple=True)
        if len(which):
            rows = image[which]
            drawn = _in_real_space(
                sigma[which, gaussian],
                ellipse[0][which],
                ellipse[1][which],
                row[which],
                column[which],
                grid.psf_fwhm[rows],
                grid.size,
            )
            light = sources.flux[rows, place[which]] * weights[gaussian, None]
            wide.append((rows, drawn * light[..., None, None]))
    return flux, transforms, wide


def _knot_transforms(knots: Knots, sources: Sources, grid: _Grid) -> Complex[Tensor, "B G Y X"]:
    """Transform of each group of unit flux: the knots' phases, row by column, are a matrix product."""
    shape = (len(sources), len(knots.group_sizes), len(grid.frequency_y), len(grid.frequency_x))
    transforms = knots.flux.new_zeros(shape, dtype=knots.flux.dtype.to_complex())
    lit = (knots.flux != 0).flatten(1).any(1).nonzero()[:, 0]
    radius, axis_ratio, position_angle = (
        a[lit, knots.column] for a in (grid.radius, sources.axis_ratio, sources.position_angle)
    )
    angle = torch.deg2rad(position_angle)[:, None]
    along, across = (radius[:, None, None] * knots.position[lit]).unbind(-1)
    row = grid.row[lit, knots.column, None] + along * torch.cos(angle) + across * torch.sin(angle)
    column = grid.column[lit, knots.column, None] + across * torch.cos(angle) - along * torch.sin(angle)
    weight = torch.where(grid.is_near(row, column), knots.weight[lit], 0.0)
    phases_y = _phases(row, grid.frequency_y) * weight[..., None]
    phases_x = _phases(column, grid.frequency_x)
    squared = _squared_frequency(grid, axis_ratio, position_angle)
    variance = (knots.sigma[lit] * radius[:, None]).clamp(max=grid.widest) ** 2
    first = 0
    for group, count in enumerate(knots.group_sizes):
        members = slice(first, first + count)
        places = torch.bmm(phases_y[:, members].transpose(1, 2), phases_x[:, members])
        transforms[lit, group] = places * torch.exp(squared * (-0.5 * variance[:, group])[:, None, None])
        first += count
    return transforms


def _phases(place: Float[Tensor, "*N"], frequency: Float[Tensor, " F"]) -> Complex[Tensor, "*N F"]:
    """Transform along one axis of a unit of light at `place` (pixels)."""
    angle = -place[..., None] * frequency
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _squared_frequency(
    grid: _Grid, axis_ratio: Float[Tensor, " N"], position_angle: Float[Tensor, " N"]
) -> Float[Tensor, "N Y X"]:
    """Square of each frequency, as seen by a profile that is squeezed across its major axis."""
    angle = torch.deg2rad(position_angle)
    cosine, sine, squeezed = torch.cos(angle), torch.sin(angle), axis_ratio**2
    along_y = (cosine**2 + squeezed * sine**2)[:, None] * grid.frequency_y**2
    along_x = (sine**2 + squeezed * cosine**2)[:, None] * grid.frequency_x**2
    crossed = (2 * (squeezed - 1) * cosine * sine)[:, None] * grid.frequency_y
    return along_y[:, :, None] + (along_x[:, None] + crossed[:, :, None] * grid.frequency_x)


def _sum_of_gaussians(
    weights: Float[Tensor, "N K"], sigma: Float[Tensor, "N K"], squared_frequency: Float[Tensor, "N Y X"]
) -> Float[Tensor, "N Y X"]:
    total = torch.zeros_like(squared_frequency)
    for weight, column in zip(weights.unbind(1), sigma.unbind(1), strict=True):
        gaussian = torch.exp(squared_frequency * (-0.5 * column**2)[:, None, None])
        total += gaussian.mul_(weight[:, None, None])
    return total


def _in_real_space(
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
