"""The arms of DESI spectra, B, R and Z, joined on one grid of wavelengths.

Each arm lies on a grid that is part of one common 0.8 A grid; neighbours overlap by 40 and 100 A. Where two arms meet,
and where several exposures of a target are combined, pixels are averaged with inverse variance weights. The format is
that of the DESI data model (https://desidatamodel.readthedocs.io).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from ..instruments import Spectrograph
from .fits_files import SPECTRUM_FLUX_UNIT, SPECTRUM_IVAR_UNIT, FitsFile

ARMS = ("B", "R", "Z")
GRID_TOLERANCE = 1e-3
"""How far, in angstrom, a wavelength may lie from the common grid."""

_FWHM_PER_SIGMA = 2.354820045


@dataclass(frozen=True, eq=False)
class JoinedSpectra:
    """Spectra of B objects on the common grid: flux and inverse variance in the units of SpectrumObservation."""

    flux: Float32[np.ndarray, "B L"]
    inverse_variance: Float32[np.ndarray, "B L"]
    mask: Bool[np.ndarray, "B L"]
    resolving_power: Float32[np.ndarray, "B L"]


@dataclass(frozen=True, eq=False)
class DesiArms:
    """The arms of one open file: their names, and where each one's pixels lie on the common grid."""

    file: FitsFile
    card: Spectrograph
    num_rows: int
    places: Mapping[str, slice]
    wavelength: Float64[np.ndarray, " L"]

    def join(
        self,
        rows: Int[np.ndarray, " N"],
        owner: Int[np.ndarray, " N"],
        used: Mapping[str, Bool[np.ndarray, " N"]] | None = None,
        *,
        rows_per_read: int,
    ) -> JoinedSpectra:
        """Combine these rows of the file: row n adds to the spectrum number `owner[n]`, which must not decrease.

        A pixel of a row counts where MASK is 0 and IVAR is positive and, with `used` (arm -> rows), only from rows
        used in that arm. A spectrum's pixel without any is masked. The width of the line spread function is averaged
        with the same weights; it comes from the resolution matrix where the file has one, else from the card. At most
        `rows_per_read` rows are held at once. Raises ObservationError on missing extensions, wrong shapes and units.
        """
        shape = (int(owner[-1]) + 1, len(self.wavelength))
        weight, weighted_flux, weighted_width = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        card_width = self.wavelength / self.card.resolving_power_at(self.wavelength)
        for start in range(0, len(rows), rows_per_read):
            part = slice(start, start + rows_per_read)
            spectra, first = np.unique(owner[part], return_index=True)
            for arm, place in self.places.items():
                is_used = np.ones(len(rows[part]), bool) if used is None else used[arm][part]
                for target, values in zip(
                    (weight, weighted_flux, weighted_width),
                    self._weighted(arm, rows[part], is_used, card_width[place]),
                    strict=True,
                ):
                    target[spectra, place] += np.add.reduceat(values, first, axis=0)
        seen = weight > 0
        norm = np.where(seen, weight, 1.0)
        width = np.where(seen, weighted_width / norm, card_width)
        return JoinedSpectra(
            (weighted_flux / norm).astype(np.float32),
            weight.astype(np.float32),
            seen,
            (self.wavelength / width).astype(np.float32),
        )

    def _weighted(
        self, arm: str, rows: np.ndarray, is_used: np.ndarray, card_width: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Inverse variance, and flux and line width times it, of these rows of one arm."""
        place = self.places[arm]
        stored = (self.num_rows, place.stop - place.start)
        flux = self.file.rows(f"{arm}_FLUX", rows, stored, SPECTRUM_FLUX_UNIT)
        ivar = self.file.rows(f"{arm}_IVAR", rows, stored, SPECTRUM_IVAR_UNIT).astype(np.float64)
        valid = (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux) & is_used[:, None]
        if self.file.has(f"{arm}_MASK"):
            valid &= self.file.rows(f"{arm}_MASK", rows, stored) == 0
        ivar = np.where(valid, ivar, 0.0)
        width = np.broadcast_to(card_width, ivar.shape)
        if self.file.has(f"{arm}_RESOLUTION"):
            bands = self.file.rows(f"{arm}_RESOLUTION", rows, (self.num_rows, None, stored[1]))
            measured = line_width(bands.astype(np.float64), self.card.step)
            width = np.where(np.isfinite(measured) & (measured > 0), measured, width)
        yield ivar
        yield ivar * np.where(valid, flux, 0.0)
        yield ivar * width


def desi_arms(file: FitsFile, card: Spectrograph, num_rows: int, arms: Sequence[str]) -> DesiArms:
    """The arms called `arms` of a file with `num_rows` spectra.

    Raises ObservationError if one is missing, if they do not lie on one grid, or if some have a mask or a resolution
    matrix and others do not. A file that ends between two extensions is cut short, and does not say so.
    """
    missing = [arm for arm in arms if not file.has(f"{arm}_WAVELENGTH")]
    if missing or not arms:
        raise file.error(
            f"expected the arms {list(arms)}, and extensions {[f'{arm}_WAVELENGTH' for arm in missing]} are missing. "
            f"Was the file cut short? Of an exposure without one of the cameras, ask for the other arms"
        )
    for name in ("MASK", "RESOLUTION"):
        with_it = [arm for arm in arms if file.has(f"{arm}_{name}")]
        if with_it and with_it != list(arms):
            lacking = [f"{arm}_{name}" for arm in arms if arm not in with_it]
            raise file.error(
                f"arms {with_it} have a {name} extension, and {lacking} are missing. Was the file cut short?"
            )
    grids = [file.image(f"{arm}_WAVELENGTH", (None,), "Angstrom").astype(np.float64) for arm in arms]
    first = min(grid[0] for grid in grids)
    places = {}
    for arm, grid in zip(arms, grids, strict=True):
        pixel = np.round(np.nan_to_num((grid - first) / card.step)).astype(np.int64)
        off = np.abs(first + pixel * card.step - grid).max()
        if not off < GRID_TOLERANCE or (np.diff(pixel) != 1).any():
            raise file.error(
                f"{arm}_WAVELENGTH must lie on a common grid of {card.step} A that starts at {first:.1f} A; it is off "
                f"by up to {off:.4f} A. Spectra not resampled to linear wavelengths are not supported"
            )
        places[arm] = slice(int(pixel[0]), int(pixel[-1]) + 1)
    wavelength = first + card.step * np.arange(max(place.stop for place in places.values()))
    return DesiArms(file, card, num_rows, places, wavelength)


def line_width(bands: Float64[np.ndarray, "B K L"], step: float) -> Float64[np.ndarray, "B L"]:
    """FWHM in angstrom of the line spread function, from the K diagonals of the resolution matrix.

    The second moment of each column of the matrix gives sigma of a Gaussian of the same width; NaN where the matrix
    is empty. The diagonals run from offset (K - 1) / 2 down to its negative, in pixels of `step` angstrom.
    """
    half = (bands.shape[1] - 1) / 2
    offset = np.linspace(half, -half, bands.shape[1])[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = bands.sum(1)
        mean = (bands * offset).sum(1) / total
        variance = (bands * offset**2).sum(1) / total - mean**2
        return _FWHM_PER_SIGMA * step * np.sqrt(variance)
