"""The image of one object in a FITS body: its bands, pixels, noise, mask and place, as the file's own cards say them.

Pixels lie in a primary or image extension, [H, W] or [bands, H, W], or in several, one for each band. Extensions named
IVAR (or INVVAR), MASK (flags: 0 = good) and PSF_FWHM (arcsec) go with them. What a card says is believed or refused;
what none says is asked for.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning, NoConvergence, WcsError
from astropy.wcs.utils import proj_plane_pixel_scales

from ...data.instruments import ImagingInstrument
from ...data.modalities import Modality
from ...data.observations import UNITS_OF_FLUX_AT_ZERO_MAGNITUDE, Observation
from ...data.readers.fits_files import FitsFile
from ...data.readers.fits_integrity import DAMAGED
from ...data.readers.mosaics import same_place
from ...data.readers.sky_maps import sky_position
from ..limits import Limits
from ..problems import ProblemError, at, pointer
from ..schemas.common import TypedObject
from . import bodies
from .fits_query import FitsQuery
from .fits_units import nanomaggies_per

PIXEL_SCALE_TOLERANCE = 0.02
"""How far pixels may differ in size from the instrument's: the models know the card's alone."""
ZERO_POINT_CARDS = ("MAGZERO", "MAGZPT", "MAGZP", "PHOTZP", "ZEROPNT")
"""AB magnitude of one unit; FLUXMAG0 is the number of units of magnitude zero."""
BAND_CARDS = ("FILTER", "BAND")
FLUX_NAMES = ("", "PRIMARY", "SCI", "FLUX", "IMAGE", "DATA", "COADD", "COMPRESSED_IMAGE")
ROLES = {"IVAR": "inverse_variance", "INVVAR": "inverse_variance", "MASK": "mask", "PSF_FWHM": "psf_fwhm"}
"""Extensions beside the flux, by name, alone or with a band: IVAR, IVAR_G, G_IVAR."""

_AGREEMENT_MAG = 0.01
_ARCSEC_PER_DEGREE = 3600.0
_MAX_SIP_ORDER = 9
_MAP_CARDS = re.compile(
    r"(?:CTYPE|CRVAL|CRPIX|CDELT|CUNIT|CROTA)[12]|(?:CD|PC)[12]_[12]|PV[12]_\d{1,2}|LONPOLE|LATPOLE|RADESYS|RADECSYS|"
    r"EQUINOX|[AB]P?_(?:ORDER|\d_\d)"
)
_NO_MAP = (*DAMAGED, WcsError, NoConvergence, AssertionError, MemoryError)


@dataclass(frozen=True)
class _Plane:
    """One band's pixels: an extension, the place in it where it is a cube, and the band that the file says."""

    extension: int
    row: int | None
    band: str | None


def image_of_fits(file: FitsFile, modality: Modality, asked: FitsQuery, limits: Limits) -> Observation:
    """The one image of the file, or a cutout of `asked.size` pixels from it, as an observation of one object.

    Raises ProblemError (422) that says which card or parameter is missing or wrong, ObservationError where the file is
    damaged.
    """
    card = modality.card
    assert isinstance(card, ImagingInstrument)
    shapes = file.image_shapes()
    planes = _planes_by_role(file, shapes, card)
    flux = planes.get("flux", [])
    if not flux:
        raise _unusable("data", f"expected an image [height, width] or [bands, height, width], found {_names(file)}")
    bands = _bands(file, flux, asked, card, modality)
    height, width = shapes[flux[0].extension][-2:]
    for plane in flux:
        if shapes[plane.extension][-2:] != (height, width):
            found = {number: list(shapes[number]) for number in sorted({p.extension for p in flux})}
            raise _unusable("data", f"bands must have one height and width, found {found} by extension")
    sky = _map_of_all(file, flux, (height, width), card)
    center, ra, dec = _center(sky, asked, (height, width))
    corner, size = _part(center, asked, (height, width), limits)
    scale = [_nanomaggies_per_unit(file, plane.extension, asked, card, modality) for plane in flux]
    factor = np.array(scale)[:, None, None]
    pixels = _cut(file, flux, corner, size, (height, width)) * factor
    valid = np.isfinite(pixels)
    fields: dict[str, np.ndarray] = {"center": (center - corner).astype(np.float32)}
    for role in ("inverse_variance", "mask"):
        if role not in planes:
            continue
        beside = _matched(planes[role], bands, role, len(flux), shapes, (height, width))
        values = _cut(file, beside, corner, size, (height, width))
        if role == "mask":
            valid &= values == 0
        else:
            weight = values / factor**2
            valid &= np.isfinite(weight) & (weight > 0)
            fields[role] = np.where(valid, weight, 0.0).astype(np.float32)
    fields["mask"] = valid
    fields |= _seeing(file, planes.get("psf_fwhm", []), shapes, flux)
    typed = TypedObject(modality=modality.name, data=0.0, bands=bands, object_id=asked.object_id, ra=ra, dec=dec)
    with np.errstate(over="ignore"):
        values = pixels.astype(np.float32)
    return bodies.observation(modality, values, fields, typed, (), limits)


def _planes_by_role(
    file: FitsFile, shapes: Mapping[int, tuple[int, ...]], card: ImagingInstrument
) -> dict[str, list[_Plane]]:
    found: dict[str, list[_Plane]] = {}
    for number, shape in shapes.items():
        role, rest = _role(str(file.value(number, "EXTNAME") or ""), card)
        if role is None or (len(shape) not in (2, 3) and role != "psf_fwhm") or 0 in shape:
            continue
        if len(shape) != 3:
            found.setdefault(role, []).append(_Plane(number, None, _band_of_plane(file, number, rest, card)))
            continue
        if shape[0] > len(card.bands):
            names = [band.name for band in card.bands]
            raise _unusable("data", f"extension {number} has {shape[0]} planes; {card.name} has bands {names}")
        names_of_cube = _bands_of_cube(file, number, shape[0], card)
        found.setdefault(role, []).extend(_Plane(number, row, band) for row, band in enumerate(names_of_cube))
    return found


def _role(name: str, card: ImagingInstrument) -> tuple[str | None, str]:
    """What an extension of this name holds, None where that is not known, and the rest of the name: perhaps a band."""
    upper = name.upper().strip()
    for known in (*ROLES, *FLUX_NAMES):
        rest = None
        if upper == known:
            rest = ""
        elif known and upper.startswith((f"{known}_", f"{known}-", f"{known} ")):
            rest = name.strip()[len(known) + 1 :]
        elif known and upper.endswith((f"_{known}", f"-{known}", f" {known}")):
            rest = name.strip()[: -len(known) - 1]
        if rest is not None and (not rest or _band_named(rest, card) is not None):
            return ROLES.get(known, "flux"), rest
    return ("flux", name) if _band_named(name, card) is not None else (None, "")


def _bands(
    file: FitsFile, flux: Sequence[_Plane], asked: FitsQuery, card: ImagingInstrument, modality: Modality
) -> list[str]:
    if asked.bands is not None:
        given = [band.strip() for band in asked.bands.split(",")]
        if len(given) != len(flux):
            raise _unusable("bands", f"the file has {len(flux)} planes, found {len(given)} bands: {given}")
        return given
    named = [plane.band for plane in flux if plane.band is not None]
    if len(named) < len(flux):
        says = [text for plane in flux if (text := file.value(plane.extension, "FILTER"))]
        known = [band.name for band in card.bands]
        raise _unusable(
            "bands",
            f"give bands=, one for each of {len(flux)} planes: FILTER, BAND, BANDS and BANDn name none of {known}, "
            f"the bands of {modality.name}; FILTER is {says or 'not there'}",
        )
    return named


def _band_of_plane(file: FitsFile, number: int, rest: str, card: ImagingInstrument) -> str | None:
    for text in (rest, *(file.value(number, key) for key in BAND_CARDS)):
        if isinstance(text, str) and (band := _band_named(text, card)) is not None:
            return band
    return None


def _bands_of_cube(file: FitsFile, number: int, count: int, card: ImagingInstrument) -> list[str | None]:
    listed = file.value(number, "BANDS")
    if isinstance(listed, str):
        parts = [part for part in re.split(r"[,\s]+", listed.strip()) if part]
        parts = list(listed.strip()) if len(parts) == 1 and len(listed.strip()) == count else parts
        if len(parts) == count:
            return [_band_named(part, card) for part in parts]
    for key in BAND_CARDS:
        first = 0 if file.value(number, f"{key}0") is not None else 1
        values = [file.value(number, f"{key}{first + row}") for row in range(count)]
        if all(isinstance(value, str) for value in values):
            return [_band_named(str(value), card) for value in values]
    return [_band_of_plane(file, number, "", card)] if count == 1 else [None] * count


def _band_named(text: str, card: ImagingInstrument) -> str | None:
    """The card's band that a survey's name of a filter means (`g`, `HSC-G`, `g DECam SDSS c0001`), if it is one."""
    known = [band.name for band in card.bands]
    if text.strip() in known:
        return text.strip()
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", text[:80]) if word]
    found = [name for name in known if name.lower() in words]
    return found[0] if len(found) == 1 else None


def _map_of_all(file: FitsFile, flux: Sequence[_Plane], shape: tuple[int, int], card: ImagingInstrument) -> Any | None:
    """astropy's WCS of the planes, which must agree; None without one."""
    maps = {number: _sky_map(file, number, card) for number in sorted({plane.extension for plane in flux})}
    first = next(iter(maps.values()))
    for number, other in maps.items():
        try:
            agrees = same_place(first, other, shape)
        except _NO_MAP:
            agrees = False
        if not agrees:
            raise _unusable("data", f"bands must show one place on the sky; the WCS of extension {number} is another")
    return first


def _sky_map(file: FitsFile, number: int, card: ImagingInstrument) -> Any | None:
    header = file.header(number)
    if not str(file.value(number, "CTYPE1")).startswith(("RA", "GLON")):
        return None
    cards = fits.Header()
    # Tables of distortions and polynomials of any order stay out: they take memory that the header names.
    with file.decoding(number):
        for key in header:
            if _MAP_CARDS.fullmatch(key):
                cards[key] = header[key]
    for key in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
        order = cards.get(key, 0)
        if not isinstance(order, int) or not 0 <= order <= _MAX_SIP_ORDER:
            raise _unusable("data", f"{key} of extension {number} must lie from 0 to {_MAX_SIP_ORDER}, found {order!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            found = WCS(cards, naxis=2).celestial
            scales = np.asarray(proj_plane_pixel_scales(found)) * _ARCSEC_PER_DEGREE
    except _NO_MAP as error:
        raise _unusable("data", f"the WCS of extension {number} makes no sense: {str(error)[:200]}") from None
    if not np.allclose(scales, card.pixel_scale, rtol=PIXEL_SCALE_TOLERANCE):
        raise _unusable(
            "data",
            f"pixels of {card.name} are {card.pixel_scale} arcsec wide, to {PIXEL_SCALE_TOLERANCE:.0%}; by its WCS, "
            f"those of extension {number} are {np.round(scales, 4).tolist()}. Resample the image first",
        )
    return found


def _center(sky: Any | None, asked: FitsQuery, shape: tuple[int, int]) -> tuple[np.ndarray, float | None, float | None]:
    """The object's place (row, column), and its position in degrees: from the query, or by the WCS."""
    middle = (np.array(shape, np.float64) - 1) / 2
    if sky is None:
        return middle, asked.ra, asked.dec
    try:
        if asked.ra is None or asked.dec is None:
            ra, dec = sky_position(sky, middle[None])
            here = float(ra[0]), float(dec[0])
            return (middle, *here) if np.isfinite(here).all() else (middle, None, None)
        x, y = sky.world_to_pixel(SkyCoord(asked.ra * units.deg, asked.dec * units.deg, frame="icrs"))
    except _NO_MAP as error:
        raise _unusable("ra", f"the position cannot be found by the file's WCS: {str(error)[:200]}") from None
    place = np.array([float(y), float(x)])
    if not ((place >= -0.5) & (place < np.array(shape) - 0.5)).all():
        raise _unusable(
            "ra", f"ra {asked.ra}, dec {asked.dec} is not on the image of {shape[0]} x {shape[1]} pixels, by its WCS"
        )
    return place, asked.ra, asked.dec


def _part(
    center: np.ndarray, asked: FitsQuery, shape: tuple[int, int], limits: Limits
) -> tuple[np.ndarray, tuple[int, int]]:
    """The first pixel and the size of what is read."""
    if asked.size is None:
        if max(shape) > limits.max_image_side:
            raise _unusable(
                "data",
                f"at most {limits.max_image_side} pixels on a side, found {list(shape)}; `size` cuts out the object",
            )
        return np.zeros(2, np.int64), shape
    if not 1 <= asked.size <= limits.max_image_side:
        raise _unusable("size", f"expected from 1 to {limits.max_image_side} pixels, found {asked.size}")
    return np.round(center - (asked.size - 1) / 2).astype(np.int64), (asked.size, asked.size)


def _cut(
    file: FitsFile, planes: Sequence[_Plane], corner: np.ndarray, size: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """These planes of the file, float64, NaN beyond its edge."""
    found = np.full((len(planes), *size), np.nan)
    low = np.maximum(corner, 0)
    high = np.minimum(corner + size, shape)
    rows, columns = (slice(int(a), int(b)) for a, b in zip(low - corner, high - corner, strict=True))
    part = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    for place, plane in enumerate(planes):
        key = part if plane.row is None else (plane.row, *part)
        with np.errstate(invalid="ignore", over="ignore"):
            found[place, rows, columns] = file.section(plane.extension, key)
    return found


def _nanomaggies_per_unit(
    file: FitsFile, number: int, asked: FitsQuery, card: ImagingInstrument, modality: Modality
) -> float:
    """From the unit and the zero points that query and header state; all that are stated must agree."""
    stated: dict[str, float] = {}
    if asked.zero_point is not None:
        stated["zero_point"] = asked.zero_point
    if asked.unit is not None:
        if asked.unit != modality.unit:
            raise _unusable("unit", f"{modality.name} is in {modality.unit!r}, found {asked.unit!r}")
        stated["unit"] = UNITS_OF_FLUX_AT_ZERO_MAGNITUDE
    for place in (number, 0):
        for key in ZERO_POINT_CARDS:
            value = file.value(place, key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                stated.setdefault(key, float(value))
        value = file.value(place, "FLUXMAG0")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            stated.setdefault("FLUXMAG0", 2.5 * float(np.log10(float(value))))
    unit = file.value(number, "BUNIT")
    if isinstance(unit, str) and (per_unit := nanomaggies_per(unit, card.pixel_scale)) is not None:
        stated[f"BUNIT = {unit[:40]!r}"] = UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - 2.5 * float(np.log10(per_unit))
    if not stated:
        raise _unusable(
            "zero_point",
            f"extension {number} states no unit of flux (BUNIT = {unit!r}) and no zero point (MAGZERO, FLUXMAG0); give "
            f"zero_point=, the AB magnitude of one unit, or unit={modality.unit!r}",
        )
    values = list(stated.values())
    if not np.isfinite(values).all() or max(values) - min(values) > _AGREEMENT_MAG or not 0 < values[0] < 60:
        found = ", ".join(f"{name} says {value:.3f}" for name, value in stated.items())
        raise _unusable("zero_point", f"expected one zero point in AB magnitudes from 0 to 60: {found}")
    return float(10 ** (0.4 * (UNITS_OF_FLUX_AT_ZERO_MAGNITUDE - values[0])))


def _matched(
    beside: list[_Plane],
    bands: Sequence[str],
    role: str,
    count: int,
    shapes: Mapping[int, tuple[int, ...]],
    shape: tuple[int, int],
) -> list[_Plane]:
    """The planes that go with the bands: by name where all have one, else by order; one mask may be for all."""
    for plane in beside:
        if shapes[plane.extension][-2:] != shape:
            raise _unusable(role, f"expected {list(shape)} pixels as the flux, found {list(shapes[plane.extension])}")
    named = {plane.band: plane for plane in beside}
    if None not in named and set(bands) <= named.keys():
        return [named[band] for band in bands]
    if len(beside) == count:
        return beside
    if role == "mask" and len(beside) == 1:
        return beside * count
    raise _unusable(role, f"expected one plane for each of the bands {list(bands)}, found {len(beside)}")


def _seeing(
    file: FitsFile, planes: Sequence[_Plane], shapes: Mapping[int, tuple[int, ...]], flux: Sequence[_Plane]
) -> dict[str, np.ndarray]:
    """`psf_fwhm` (arcsec) and `depth` (AB mag), one for each band, where the file knows them.

    From an extension PSF_FWHM, cards PSF_FWHM of the bands' own, or the columns of a table BANDS.
    """
    if planes:
        number = planes[0].extension
        if shapes[number] != (len(flux),):
            raise _unusable(
                "psf_fwhm", f"expected {len(flux)} numbers, one for each band, found {list(shapes[number])}"
            )
        return {"psf_fwhm": file.image(number).astype(np.float32)}
    cards = [file.value(plane.extension, "PSF_FWHM") for plane in flux]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in cards):
        return {"psf_fwhm": np.array(cards, np.float32)}
    for number in file.tables():
        if str(file.value(number, "EXTNAME")).upper() == "BANDS" and file.num_rows(number) == len(flux):
            stored = {name.upper() for name in file.column_names(number)}
            names = [name for name in ("PSF_FWHM", "DEPTH") if name in stored]
            values = dict(zip(names, file.columns(number, names), strict=True))
            return {
                name.lower(): array.astype(np.float32) for name, array in values.items() if array.dtype.kind in "fiu"
            }
    return {}


def _names(file: FitsFile) -> list[str]:
    return [str(file.value(number, "EXTNAME") or number) for number in range(_count(file))]


def _count(file: FitsFile) -> int:
    number = 0
    while file.has(number):
        number += 1
    return number


def _unusable(field: str, detail: str) -> ProblemError:
    return ProblemError("invalid-observation", f"{pointer(field)}: {detail}", [at(pointer(field), detail)])
