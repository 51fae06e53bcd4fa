"""What a patch of the sky looks like through an instrument: cosines on the sky times smooth functions of wavelength.

Light in a square patch is a sum of basis functions, each a product of two cosines across the patch and a Legendre
polynomial of log wavelength. A camera sees each one times its band's mean of the polynomial and times the modulation
transfer function of its PSF. So the coefficients belong to the sky, and everything that an instrument is (wavelength
and width of the bands, PSF, pixel scale) enters by physical law, for instruments never seen before too.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.instruments import ImagingInstrument

MOFFAT_BETA = 3.5
"""Exponent of the PSF's wings; Trujillo et al. 2001 (MNRAS 328, 977) find 2.5 to 4.8 for real seeing."""
MOFFAT_SCALE = 0.5 / math.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
"""Core radius of a Moffat profile of FWHM 1."""
LEAST_TRANSFER = 0.02
"""Floor of the transfer function: what the PSF removes wholly still has a finite coefficient."""


class LightBasis(nn.Module):
    """The basis functions: J pairs of a spatial cosine (K of them) and a spectral polynomial.

    `max_frequency` is the highest spatial frequency in half cycles per patch; `spectral_orders` the number of
    polynomials at low, middle and high spatial frequency; wavelengths in angstrom.
    """

    spatial_of: Tensor
    spectral_of: Tensor

    def __init__(
        self, max_frequency: int, spectral_orders: tuple[int, int, int], wavelength_min: float, wavelength_max: float
    ):
        super().__init__()
        limit = max_frequency**2 + 1
        waves = [(i, j) for i in range(max_frequency + 1) for j in range(max_frequency + 1) if i * i + j * j <= limit]
        waves.sort(key=lambda wave: (wave[0] ** 2 + wave[1] ** 2, wave))
        self.num_cosines = max_frequency + 1
        self.num_orders = max(spectral_orders)
        self.range = (wavelength_min, wavelength_max)
        self.register_buffer("waves", torch.tensor(waves), persistent=False)
        pairs = []
        for number, wave in enumerate(waves):
            part = min(2, int(3 * math.hypot(*wave) / (max_frequency + 1)))
            pairs += [(number, order) for order in range(spectral_orders[part])]
        spatial, spectral = torch.tensor(pairs).T
        self.register_buffer("spatial_of", spatial, persistent=False)
        self.register_buffer("spectral_of", spectral, persistent=False)

    waves: Tensor

    def __len__(self) -> int:
        """J."""
        return len(self.spatial_of)

    def cosines(self, place: Float[Tensor, "*A"]) -> Float[Tensor, "*A k"]:
        """The one-dimensional cosines, of unit mean square, at places from 0 to 1 across a patch."""
        order = torch.arange(self.num_cosines, device=place.device, dtype=place.dtype)
        norm = torch.where(order == 0, 1.0, math.sqrt(2)).to(place.dtype)
        return torch.cos(math.pi * place[..., None] * order) * norm

    def spectral(self, card: ImagingInstrument, bands: tuple[str, ...]) -> Float[Tensor, "C M"]:
        """Mean of each polynomial over each band, taken as a rectangle. Raises ValueError for one out of range."""
        low, high = self.range
        rows = []
        for band in (card.band(name) for name in bands):
            if not low <= band.wavelength <= high:
                raise ValueError(
                    f"this tokenizer reads bands from {low:.0f} to {high:.0f} A; {card.name} {band.name} lies at "
                    f"{band.wavelength:.0f} A"
                )
            wavelengths = band.wavelength + band.width * (np.arange(16) - 7.5) / 16
            x = np.log(wavelengths.clip(low, high) / low) / math.log(high / low) * 2 - 1
            rows.append(np.polynomial.legendre.legvander(x, self.num_orders - 1).mean(0))
        return torch.tensor(np.array(rows), dtype=torch.float64)

    def transfer(self, psf_fwhm: Float[Tensor, "B C"], patch_side: float) -> Float[Tensor, "B C K"]:
        """Modulation transfer of a Moffat PSF (arcsec) at each spatial frequency of a patch (`patch_side` arcsec).

        For beta = 3.5 it is exp(-x) (1 + x + x^2 / 3) with x = 2 pi f a: the Hankel transform of (1 + (r/a)^2)^-beta,
        proportional to x^(5/2) K_(5/2)(x) (Trujillo et al. 2001, eq. 7), in closed form.
        """
        frequency = self.waves.to(psf_fwhm.dtype).norm(dim=-1) / (2 * patch_side)
        x = 2 * math.pi * MOFFAT_SCALE * psf_fwhm[..., None] * frequency
        return (torch.exp(-x) * (1 + x + x**2 / 3)).clamp(min=LEAST_TRANSFER)

    def response(self, spectral: Float[Tensor, "C M"], transfer: Float[Tensor, "B C K"]) -> Float[Tensor, "B C J"]:
        """What each band sees of each basis function."""
        return transfer[..., self.spatial_of] * spectral[:, self.spectral_of]

    def design(
        self, response: Float[Tensor, "B C J"], mix: Float[Tensor, "J D"], pixels: int
    ) -> Float[Tensor, "B C S D"]:
        """Pixels (`pixels` x `pixels`, row by row, S of them) of a patch for each of D mixtures of basis functions."""
        cosines = self.cosines((torch.arange(pixels, device=mix.device, dtype=mix.dtype) + 0.5) / pixels)
        spatial = (cosines[:, None, self.waves[:, 0]] * cosines[None, :, self.waves[:, 1]]).flatten(0, 1)
        return spatial @ self.by_wave(response[..., None] * mix)

    def by_wave(self, of_pairs: Float[Tensor, "B C J D"]) -> Float[Tensor, "B C K D"]:
        """Sum over the polynomials of each spatial cosine."""
        sums = of_pairs.new_zeros(*of_pairs.shape[:2], len(self.waves), of_pairs.shape[-1])
        return sums.index_add_(2, self.spatial_of, of_pairs)

    def to_grid(self, of_waves: Float[Tensor, "*A K"]) -> Float[Tensor, "*A k k"]:
        """Coefficients of the K plane cosines on the grid of their two orders (along rows, along columns)."""
        place = self.waves[:, 0] * self.num_cosines + self.waves[:, 1]
        grid = of_waves.new_zeros(*of_waves.shape[:-1], self.num_cosines**2)
        return grid.index_copy(-1, place, of_waves).unflatten(-1, (self.num_cosines, self.num_cosines))
