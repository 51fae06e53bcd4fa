"""Cutting images into square patches of the sky, and putting pixels back.

All cameras are cut into patches of nearly the same side in arcsec, each a whole number of its pixels, so that the
object lies in the middle of one. Only where a camera's PSF is far sharper are patches smaller, by powers of two.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.instruments import ImagingInstrument
from ..data.observations import ImageObservation

SHARPEST = 0.25
"""PSF FWHM, in sides of a patch, below which patches are halved."""


def patch_pixels(card: ImagingInstrument, side: float) -> int:
    """Pixels along a patch of about `side` arcsec."""
    fwhm = min(band.psf_fwhm for band in card.bands)
    halvings = max(0, math.ceil(math.log2(SHARPEST * side / fwhm)))
    return max(1, round(side * 0.5**halvings / card.pixel_scale))


@dataclass(frozen=True)
class PatchGrid:
    """Patches of a batch of images: `rows` x `columns` of `pixels` x `pixels` each; `start` is their first pixel."""

    pixels: int
    rows: int
    columns: int
    start: Int[Tensor, "B 2"]

    @classmethod
    def of(cls, observation: ImageObservation, side: float) -> "PatchGrid":
        """The grid in which each object lies in the middle of a patch, or half a pixel off it.

        One row and one column more than the image needs make their number independent of where the object lies.
        """
        pixels = patch_pixels(observation.card, side)
        middle = torch.floor(observation.center.nan_to_num(0.0) + 1.0 - pixels / 2 + 1e-4).long()
        start = (middle % pixels) - pixels
        start = torch.where(start == -pixels, 0, start)
        rows, columns = (math.ceil(size / pixels) + 1 for size in observation.flux.shape[2:])
        return cls(pixels, rows, columns, start)

    def cut(self, pixels: Tensor) -> Tensor:
        """Images [B, C, H, W] as patches [B, P, C, S], zero beyond the image; S is `self.pixels` squared."""
        size = self.pixels
        height, width = self.rows * size, self.columns * size
        padded = F.pad(pixels, (size, width, size, height))
        at = self.start.to(pixels.device) + size
        if (at == at[0]).all():
            top, left = at[0].tolist()
            whole = padded[:, :, top : top + height, left : left + width]
        else:
            whole = torch.stack(
                [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, at.tolist(), strict=True)]
            )
        patches = whole.unflatten(3, (self.columns, size)).unflatten(2, (self.rows, size))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)

    def offsets(self, observation: ImageObservation) -> Float[Tensor, "B P 2"]:
        """(x, y) of each patch's middle from the object, arcsec."""
        middle = (self.pixels - 1) / 2
        y = self.start[:, :1] + middle + self.pixels * torch.arange(self.rows) - observation.center[:, :1]
        x = self.start[:, 1:] + middle + self.pixels * torch.arange(self.columns) - observation.center[:, 1:]
        grid = torch.stack([x[:, None, :].expand(-1, self.rows, -1), y[:, :, None].expand(-1, -1, self.columns)], -1)
        return grid.flatten(1, 2) * observation.card.pixel_scale


def place_on_patches(
    first: Float[Tensor, " B"], count: int, side: float, offset: Float[Tensor, "B I"]
) -> tuple[Int[Tensor, "B I"], Float[Tensor, "B I"], Bool[Tensor, "B I"]]:
    """For pixels at `offset` (arcsec) along one axis: their patch, their place in it from 0 to 1, whether there is one.

    `first` is the offset of the middle of the first of `count` patches.
    """
    place = (offset - first[:, None]) / side + 0.5
    # Pixels on a border between patches go to the later one whatever the rounding of their place.
    patch = torch.floor(place + 1e-4)
    inside = (patch >= 0) & (patch < count)
    patch = patch.clamp(0, count - 1)
    return patch.long(), (place - patch).clamp(0, 1), inside
