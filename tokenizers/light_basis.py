"""What a patch of the sky looks like through an instrument: cosines on the sky times smooth functions of wavelength.

Light in a square patch is a sum of basis functions, each a product of two cosines across the patch, a Legendre
polynomial of log wavelength and a spectrum: the object's as far as it is known, relative to that of a typical galaxy.
A camera sees each one times its band's mean of the function of wavelength and times the modulation transfer function of
its PSF. So the coefficients belong to the sky, and everything that an instrument is (wavelength and width of the bands,
PSF, pixel scale) enters by physical law, for instruments never seen before too.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..data.instruments import ImagingInstrument

MOFFAT_BETA = 3.5
"""Exponent of the PSF's wings; Trujillo et al. 2001 (MNRAS 328, 977) find 2.5 to 4.8 for real seeing."""
MOFFAT_SCALE = 0.5 / math.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
"""Core radius of a Moffat profile of FWHM 1."""
TYPICAL_LIGHT = (
    (3000.0, 3550.0, 4000.0, 4800.0, 6200.0, 7500.0, 9000.0, 11500.0),
    (0.11, 0.16, 0.24, 0.50, 1.00, 1.40, 1.75, 2.20),
)
"""Flux density per frequency of the mean galaxy of the simulated sky at wavelengths in angstrom, one at 6200: what no
band of a camera shows is taken to follow it."""
LEAST_LIGHT = 0.1
"""Of the typical light: what an object is taken to have at any wavelength, at least."""
NUM_SLOPES = 2
SLOW = 4
"""Order of the functions that slopes and bends are multiplied by, at most."""
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
        self.num_cosines = max_frequency + 1
        self.num_shapes = self.num_cosines + NUM_SLOPES
        # A slope and a bend have about as many half cycles as the cosines of order one and two.
        order = [*range(self.num_cosines), *range(1, 1 + NUM_SLOPES)]
        waves = [(i, j) for i in range(self.num_shapes) for j in range(self.num_shapes) if self._is_wanted(i, j, order)]
        waves.sort(key=lambda wave: (math.hypot(order[wave[0]], order[wave[1]]), wave))
        self.num_orders = max(spectral_orders)
        self.range = (wavelength_min, wavelength_max)
        self.register_buffer("waves", torch.tensor(waves), persistent=False)
        half_cycles = [math.hypot(order[i], order[j]) for i, j in waves]
        self.register_buffer("half_cycles", torch.tensor(half_cycles, dtype=torch.float64), persistent=False)
        pairs = []
        for number in range(len(waves)):
            part = min(2, int(3 * half_cycles[number] / (max_frequency + 1)))
            pairs += [(number, order) for order in range(spectral_orders[part])]
        spatial, spectral = torch.tensor(pairs).T
        self.register_buffer("spatial_of", spatial, persistent=False)
        self.register_buffer("spectral_of", spectral, persistent=False)

    waves: Tensor
    half_cycles: Tensor

    def __len__(self) -> int:
        """J."""
        return len(self.spatial_of)

    def shapes(self, place: Float[Tensor, "*A"]) -> Float[Tensor, "*A k"]:
        """The one-dimensional functions, of unit mean square, at places from 0 to 1 across a patch.

        Cosines, and the Legendre polynomials of degree one and two: light that still falls at the edge of a patch is
        no sum of few cosines, whose slope is zero there.
        """
        order = torch.arange(self.num_cosines, device=place.device, dtype=place.dtype)
        cosines = torch.cos(math.pi * place[..., None] * order)
        cosines = torch.cat([cosines[..., :1], math.sqrt(2) * cosines[..., 1:]], -1)
        x = 2 * place[..., None] - 1
        return torch.cat([cosines, math.sqrt(3) * x, math.sqrt(5) * (1.5 * x**2 - 0.5)], -1)

    def _is_wanted(self, i: int, j: int, order: list[int]) -> bool:
        """Cosines within a circle of frequencies; slopes and bends with slow functions alone."""
        if max(i, j) < self.num_cosines:
            return i * i + j * j <= (self.num_cosines - 1) ** 2 + 1
        return max(order[i], order[j]) <= SLOW

    def spectral(
        self, card: ImagingInstrument, bands: tuple[str, ...], colours: Float64[Tensor, "B M"] | None = None
    ) -> Float64[Tensor, "*B C M"]:
        """Mean of each function of wavelength over each band, taken as a rectangle.

        With `colours`, of each of B objects: its spectrum, the sum of the polynomials times these numbers, takes the
        place of the typical one, which it is relative to. Raises ValueError for a band out of range.
        """
        low, high = self.range
        polynomials, light = [], []
        for band in (card.band(name) for name in bands):
            if not low <= band.wavelength <= high:
                raise ValueError(
                    f"this tokenizer reads bands from {low:.0f} to {high:.0f} A; {card.name} {band.name} lies at "
                    f"{band.wavelength:.0f} A"
                )
            wavelengths = band.wavelength + band.width * (np.arange(16) - 7.5) / 16
            x = np.log(wavelengths.clip(low, high) / low) / math.log(high / low) * 2 - 1
            polynomials.append(np.polynomial.legendre.legvander(x, self.num_orders - 1))
            light.append(np.interp(wavelengths, *TYPICAL_LIGHT) / len(wavelengths))
        of_wavelength, typical = (torch.from_numpy(np.array(part)) for part in (polynomials, light))
        if colours is None:
            return torch.einsum("cwm,cw->cm", of_wavelength, typical)
        relative = torch.einsum("cwm,bm->bcw", of_wavelength, colours.cpu()).clamp(min=LEAST_LIGHT)
        return torch.einsum("cwm,bcw->bcm", of_wavelength, typical * relative)

    def smoothest(self, spectral: Float64[Tensor, "C M"]) -> Float64[Tensor, "J J"]:
        """From coefficients to the smoothest ones that bands of these `spectral` numbers cannot tell from them.

        Beyond a camera's bands polynomials run off; light there is better taken to follow the typical spectrum. Of all
        coefficients c that the bands see alike, those of the least sum of (c_m (1 + m)^4)^2 over the orders m.
        """
        spatial_of = self.spatial_of.cpu()
        counts = torch.bincount(spatial_of)
        found = torch.zeros(len(self), len(self), dtype=torch.float64)
        for count in counts.unique().tolist():
            size = (1 + torch.arange(count, dtype=torch.float64)) ** -8
            seen = spectral[:, :count]
            gram = (seen * size) @ seen.T + 1e-6 * torch.eye(len(seen), dtype=torch.float64)
            block = size[:, None] * (seen.T @ torch.linalg.solve(gram, seen))
            for wave in (counts == count).nonzero()[:, 0].tolist():
                pairs = (spatial_of == wave).nonzero()[:, 0]
                found[pairs[:, None], pairs] = block
        return found

    def transfer(self, psf_fwhm: Float[Tensor, "B C"], patch_side: float) -> Float[Tensor, "B C K"]:
        """Modulation transfer of a PSF (arcsec) at each spatial frequency of a patch (`patch_side` arcsec)."""
        frequency = self.half_cycles.to(psf_fwhm.dtype) / (2 * patch_side)
        return moffat_transfer(psf_fwhm[..., None], frequency).clamp(min=LEAST_TRANSFER)

    def response(self, spectral: Float[Tensor, "*B C M"], transfer: Float[Tensor, "B C K"]) -> Float[Tensor, "B C J"]:
        """What each band sees of each basis function."""
        return transfer[..., self.spatial_of] * spectral[..., self.spectral_of]

    def design(
        self, response: Float[Tensor, "B C J"], mix: Float[Tensor, "J D"], pixels: int
    ) -> Float[Tensor, "B C S D"]:
        """Pixels (`pixels` x `pixels`, row by row, S of them) of a patch for each of D mixtures of basis functions."""
        shapes = self.shapes((torch.arange(pixels, device=mix.device, dtype=mix.dtype) + 0.5) / pixels)
        spatial = (shapes[:, None, self.waves[:, 0]] * shapes[None, :, self.waves[:, 1]]).flatten(0, 1)
        return spatial @ self.by_wave(response[..., None] * mix)

    def by_wave(self, of_pairs: Float[Tensor, "B C J D"]) -> Float[Tensor, "B C K D"]:
        """Sum over the polynomials of each spatial cosine."""
        sums = of_pairs.new_zeros(*of_pairs.shape[:2], len(self.waves), of_pairs.shape[-1])
        return sums.index_add_(2, self.spatial_of, of_pairs)

    def to_grid(self, of_waves: Float[Tensor, "*A K"]) -> Float[Tensor, "*A k k"]:
        """Coefficients of the K plane functions on the grid of their two numbers (along rows, along columns)."""
        place = self.waves[:, 0] * self.num_shapes + self.waves[:, 1]
        grid = of_waves.new_zeros(*of_waves.shape[:-1], self.num_shapes**2)
        return grid.index_copy(-1, place, of_waves).unflatten(-1, (self.num_shapes, self.num_shapes))


def moffat_transfer(fwhm: Float[Tensor, "*A"], frequency: Float[Tensor, "*B"]) -> Float[Tensor, "*C"]:
    """Modulation transfer of a Moffat PSF of this FWHM (arcsec) at spatial frequencies (cycles per arcsec).

    For beta = 3.5 it is exp(-x) (1 + x + x^2 / 3) with x = 2 pi f a: the Hankel transform of (1 + (r/a)^2)^-beta,
    proportional to x^(5/2) K_(5/2)(x) (Trujillo et al. 2001, eq. 7), in closed form.
    """
    x = 2 * math.pi * MOFFAT_SCALE * fwhm * frequency
    return torch.exp(-x) * (1 + x + x**2 / 3)
