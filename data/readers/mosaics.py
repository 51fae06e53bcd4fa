"""Mosaics: images of one field of the sky in several bands, left on disk and read where pixels are asked for.

Pixels come in nanomaggies. The zero point is stated by the caller or by BUNIT, never guessed. HSC coadds have 27.0,
which the shipped field bears out: with it, the scatter of point-source fluxes on empty sky gives 5-sigma depths of
27.3, 27.0 and 27.1 mag in g, r and i, against 27.4, 27.1 and 26.9 published for the Deep layer, to which its tract
10054 belongs (Aihara et al. 2022, arXiv 2108.13045).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.wcs.utils import proj_plane_pixel_scales
from jaxtyping import Float32

from ..instruments import Band, ImagingInstrument
from ..modalities import Modality, modality
from ..observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, ObservationError
from .fits_files import FitsFile, open_fits, parse_unit
from .image_noise import point_source_depth, sky_noise
from .sky_maps import celestial_map

HSC_ZERO_POINT = 27.0
"""AB magnitude of one count of a Hyper Suprime-Cam coadd (FLUXMAG0 = 6.3e10)."""

BLOCK, BLOCKS_PER_SIDE = 256, 4
"""Pixels, and number along each side, of the blocks on which the noise of a mosaic too large to be held is measured."""

_ARCSEC_PER_DEGREE = 3600.0
_AB_ZERO_FLUX = 3631 * units.Jy


@dataclass(frozen=True, eq=False)
class _Plane:
    """One band on disk: its image, and its inverse variance, or that of the sky."""

    image: FitsFile
    extension: str | int
    nanomaggies_per_unit: float
    weight: FitsFile | None
    weight_extension: str | int
    sky_inverse_variance: float

    def pixels(self, rows: slice, columns: slice) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
        """Flux and inverse variance, which is 0 where the flux is not finite."""
        scale = np.float32(self.nanomaggies_per_unit)
        flux = self.image.section(self.extension, (rows, columns)).astype(np.float32) * scale
        if self.weight is None:
            weight = np.full(flux.shape, self.sky_inverse_variance, np.float32)
        else:
            stored = self.weight.section(self.weight_extension, (rows, columns)).astype(np.float32)
            weight = stored / np.float32(self.nanomaggies_per_unit**2)
        return flux, np.where(np.isfinite(flux), weight, np.float32(0))


@dataclass(frozen=True, eq=False)
class Mosaic:
    """An open field of H x W pixels in C bands. `pixels` reads a part of it."""

    modality: Modality
    name: str
    bands: tuple[str, ...]
    shape: tuple[int, int]
    wcs: Any | None
    """astropy's WCS, or None."""
    psf_fwhm: Float32[np.ndarray, " C"]
    """Arcsec."""
    depth: Float32[np.ndarray, " C"]
    """AB magnitude of a point source at 5 sigma."""
    planes: tuple[_Plane, ...]

    def pixels(self, rows: slice, columns: slice) -> tuple[Float32[np.ndarray, "C H W"], Float32[np.ndarray, "C H W"]]:
        """Flux (nanomaggies) and inverse variance of this part of the field. Raises ObservationError."""
        parts = [plane.pixels(rows, columns) for plane in self.planes]
        return np.stack([flux for flux, _ in parts]), np.stack([weight for _, weight in parts])


@contextmanager
def open_mosaic(
    paths: Mapping[str, str | Path],
    modality_name: str,
    *,
    zero_point: float | int | None = None,
    inverse_variance: Mapping[str, str | Path] | None = None,
    psf_fwhm: Mapping[str, float] | None = None,
    extension: str | int | None = None,
    name: str = "frame",
) -> Iterator[Mosaic]:
    """Open one FITS image for each band (`paths`: band -> path) as a mosaic of the modality.

    `zero_point` is the AB magnitude of one unit of the files, and flux becomes file * 10^(0.4 (22.5 - zero_point))
    nanomaggies; it may be left out where BUNIT states a flux (nanomaggy, nJy, ...). `inverse_variance` names files of
    1 / file unit^2. Without them every pixel has the inverse variance of the sky, measured on the field: robust scatter
    about the clipped median, without the noise of the sources' own photons, and too small by 10 to 20 % where a coadd
    has correlated its neighbours. The depth is measured too (`point_source_depth`). Of a field of more than 1024 x 1024
    pixels, 16 blocks spread over it are measured. `psf_fwhm` (band -> arcsec) replaces the card's. `extension` defaults
    to the first image of each file.

    Raises ObservationError on missing, truncated or damaged files, unknown bands, images of different size or place, a
    zero point that is missing or contradicts BUNIT, and pixels of another scale than the instrument's card has.
    """
    declared = modality(modality_name)
    card = declared.card
    if not isinstance(card, ImagingInstrument):
        raise ObservationError(f"expected an image modality, found {modality_name}")
    if not paths:
        raise ObservationError(f"{modality_name}: expected at least one band, found none")
    if inverse_variance is not None and set(inverse_variance) != set(paths):
        raise ObservationError(
            f"{modality_name}: images are given in bands {sorted(paths)}, "
            f"inverse variances in {sorted(inverse_variance)}"
        )
    with ExitStack() as stack:
        planes: list[_Plane] = []
        depth: list[float] = []
        fwhm: list[float] = []
        shape: tuple[int, ...] = (0, 0)
        place: Any | None = None
        for band, path in paths.items():
            typical = _band(card, band, modality_name)
            file = stack.enter_context(open_fits(path))
            number = file.first_image() if extension is None else extension
            shape = file.image_shape(number, shape if planes else (None, None))
            wcs = _wcs(file, number, card.pixel_scale)
            if planes and not same_place(place, wcs, shape):
                raise file.error(f"must show the same place as {planes[0].image.path}, and its WCS says otherwise")
            place = wcs
            scale = _nanomaggies_per_unit(file, number, zero_point)
            weight, weight_number = None, number
            if inverse_variance is not None:
                weight = stack.enter_context(open_fits(inverse_variance[band]))
                weight_number = weight.first_image() if extension is None else extension
                weight.image_shape(weight_number, shape)
            plane = _Plane(file, number, scale, weight, weight_number, 1.0)
            fwhm.append(typical.psf_fwhm if psf_fwhm is None else psf_fwhm.get(band, typical.psf_fwhm))
            sky_weight, measured = _measured_noise(plane, shape, fwhm[-1] / card.pixel_scale)
            planes.append(_Plane(file, number, scale, weight, weight_number, sky_weight))
            depth.append(measured if np.isfinite(measured) else typical.depth)
        size = (shape[0], shape[1])
        yield Mosaic(
            declared,
            name,
            tuple(paths),
            size,
            place,
            np.array(fwhm, np.float32),
            np.array(depth, np.float32),
            tuple(planes),
        )


def _band(card: ImagingInstrument, band: str, modality_name: str) -> Band:
    try:
        return card.band(band)
    except LookupError as error:
        raise ObservationError(f"{modality_name}: {error.args[0]}") from None


def _measured_noise(plane: _Plane, shape: tuple[int, ...], psf_fwhm: float) -> tuple[float, float]:
    """Inverse variance of a sky pixel, and depth, of the whole band or of blocks spread over it."""
    side = BLOCK * BLOCKS_PER_SIDE
    if shape[0] * shape[1] <= side**2:
        places = [(slice(0, shape[0]), slice(0, shape[1]))]
    else:
        size = [min(BLOCK, length) for length in shape]
        starts = [
            np.linspace(0, length - part, BLOCKS_PER_SIDE).astype(int).tolist()
            for length, part in zip(shape, size, strict=True)
        ]
        places = [(slice(y, y + size[0]), slice(x, x + size[1])) for y in starts[0] for x in starts[1]]
    parts = [plane.pixels(*where) for where in places]
    flux, weight = np.stack([flux for flux, _ in parts]), np.stack([weight for _, weight in parts])
    good = (weight > 0) & np.isfinite(weight)
    _, sigma = sky_noise(flux, good)
    return sigma**-2 if sigma > 0 else 0.0, point_source_depth(flux, good, psf_fwhm)


def _nanomaggies_per_unit(file: FitsFile, extension: str | int, zero_point: float | int | None) -> float:
    stated: float | None = None
    unit = file.value(extension, "BUNIT")
    if unit is not None:
        try:
            per_unit = parse_unit(str(unit)).to(units.nmgy, equivalencies=units.zero_point_flux(_AB_ZERO_FLUX))
            stated = float(UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * np.log10(per_unit))
        except (ValueError, TypeError, units.UnitConversionError):
            stated = None  # counts, or text that is no unit: it says nothing about the zero point
    if zero_point is None and stated is None:
        raise file.error(f"states no flux unit (BUNIT = {unit!r}); give zero_point, the AB magnitude of one unit")
    if zero_point is not None and stated is not None and abs(zero_point - stated) > 0.01:
        raise file.error(f"BUNIT = {unit!r} means a zero point of {stated:.3f}, found zero_point = {zero_point}")
    used = stated if zero_point is None else zero_point
    assert used is not None
    return float(10 ** (0.4 * (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - used)))


def _wcs(file: FitsFile, extension: str | int, pixel_scale: float) -> Any | None:
    wcs = celestial_map(file, extension)
    if wcs is None:
        return None
    scales = proj_plane_pixel_scales(wcs) * _ARCSEC_PER_DEGREE
    if not np.allclose(scales, pixel_scale, rtol=0.02):
        raise file.error(
            f"pixels must be {pixel_scale} arcsec wide, as the instrument's card says; found {scales} by WCS"
        )
    return wcs


def same_place(first: Any | None, other: Any | None, shape: tuple[int, ...]) -> bool:
    """Whether two maps agree at the corners of the frame to a tenth of a pixel."""
    if first is None or other is None:
        return first is other
    x, y = np.array([0, shape[1] - 1, 0, shape[1] - 1]), np.array([0, 0, shape[0] - 1, shape[0] - 1])
    again = other.world_to_pixel(first.pixel_to_world(x, y))
    return bool(np.abs(np.stack(again) - np.stack([x, y])).max() < 0.1)
