"""From astropy's objects to observations: CCDData and NDData, and spectra as specutils has them.

Units are converted, uncertainties of every kind become inverse variances, masks are turned round (astropy's True = bad,
ours True = valid), positions are read off celestial coordinates. Spectra are known by their attributes `spectral_axis`,
`flux`, `uncertainty`, so that specutils need not be installed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, NDUncertainty, StdDevUncertainty, VarianceUncertainty
from astropy.wcs.utils import proj_plane_pixel_scales

from .astropy_units import angstroms, flux_densities, nanomaggies_per_unit, vacuum_wavelengths
from .instruments import ImagingInstrument
from .modalities import Modality
from .modalities import modality as declared_modality
from .observations import ArrayLike, ImageObservation, ObservationError, SpectrumObservation
from .observe import numbers_of, plain_observation

PIXEL_SCALE_TOLERANCE = 0.05
"""By how much an image's pixels may differ from the camera's, as a share: the model takes them for the camera's."""
_BAND_KEYWORDS = ("FILTER", "BAND", "FILTNAM", "FILTNAM1", "FILTER1")


def from_ccddata(
    image: Any,
    modality: str | Modality,
    bands: str | Sequence[str] | None = None,
    *,
    object_id: str | Sequence[Any] | None = None,
    unit: Any = None,
    zero_point: float | int | None = None,
    mask: ArrayLike | None = None,
    inverse_variance: ArrayLike | None = None,
    psf_fwhm: ArrayLike | None = None,
    depth: ArrayLike | None = None,
    center: ArrayLike | None = None,
    ra: Any = None,
    dec: Any = None,
) -> ImageObservation:
    """Images of one object: CCDData, NDData or Quantity [H, W] or [C, H, W], or one [H, W] for each band by its name.

    The unit becomes nanomaggies (a flux, or counts with `zero_point`, the AB magnitude of one; `unit` where the object
    says none), StdDev-, Variance- and InverseVariance-uncertainty the inverse variance. Without `bands`, a header's
    FILTER may name the one. Celestial coordinates give ra and dec of the middle, and must have the camera's pixel scale
    within 5 %. `mask` (True = valid) and `inverse_variance` (nanomaggies^-2) replace the object's own. Raises
    ObservationError.
    """
    wanted = declared_modality(modality) if isinstance(modality, str) else modality
    planes = _planes(image, wanted, list(bands) if bands is not None else None)
    read = [_Plane(wanted, plane, unit, zero_point) for _, plane in planes]
    names = [name for names, _ in planes for name in names]
    shapes = sorted({plane.flux.shape[1:] for plane in read})
    if len(shapes) > 1:
        raise ObservationError(f"{wanted.name}: the bands must have one shape, found {[list(s) for s in shapes]}")
    flux = np.concatenate([plane.flux for plane in read])
    if mask is None:
        mask = np.concatenate([plane.valid for plane in read])[None]
    if inverse_variance is None:
        known = [plane.inverse_variance for plane in read if plane.inverse_variance is not None]
        if known and len(known) < len(read):
            raise ObservationError(f"{wanted.name}: all bands need an uncertainty, or none; {len(known)} of them do")
        inverse_variance = np.concatenate(known)[None] if known else None
    if ra is None and dec is None:
        ra, dec = _sky_position(planes[0][1], flux.shape[1:], center, wanted)
    options = {"bands": names, "mask": mask, "inverse_variance": inverse_variance}
    options |= {"psf_fwhm": psf_fwhm, "depth": depth, "center": center}
    fields = {name: _batched(given, wanted, name) for name, given in options.items() if given is not None}
    who = {"object_id": object_id, "ra": ra, "dec": dec}
    found = plain_observation(flux[None], wanted, fields, who)
    assert isinstance(found, ImageObservation)
    return found


def from_spectrum(
    spectrum: Any,
    modality: str | Modality,
    *,
    object_id: str | Sequence[Any] | None = None,
    unit: Any = None,
    in_air: bool | None = None,
    mask: ArrayLike | None = None,
    inverse_variance: Any = None,
    wavelength: Any = None,
    resolving_power: ArrayLike | None = None,
    ra: Any = None,
    dec: Any = None,
) -> SpectrumObservation:
    """A spectrum of specutils, or anything with `spectral_axis`, `flux` [L] or [B, L], and `uncertainty`.

    The axis may be in wavelength, frequency or energy and run either way; the flux per wavelength or per frequency.
    Wavelengths are taken to be in vacuum, refused if the header says that they are in air, and converted with
    `in_air=True`. Raises ObservationError where there is no uncertainty (or `inverse_variance`, in
    (1e-17 erg/s/cm2/A)^-2) and where a unit cannot be converted.
    """
    wanted = declared_modality(modality) if isinstance(modality, str) else modality
    flux = spectrum.flux
    if in_air is None and _says_air(getattr(spectrum, "meta", None)):
        raise ObservationError(
            f"{wanted.name}: the header says that wavelengths are in air; pass in_air=True to convert them to vacuum"
        )
    error = None
    if inverse_variance is None:
        uncertainty = getattr(spectrum, "uncertainty", None)
        if uncertainty is None:
            raise ObservationError(f"{wanted.name}: the spectrum has no uncertainty; pass inverse_variance")
        error = _standard_deviation(uncertainty, flux.unit, wanted)
    own_mask = getattr(spectrum, "mask", None)
    if mask is None and own_mask is not None:
        mask = ~np.broadcast_to(np.asarray(own_mask, bool), np.shape(flux))
    return from_flux(
        flux,
        wanted,
        wavelength=spectrum.spectral_axis if wavelength is None else wavelength,
        inverse_variance=inverse_variance,
        standard_deviation=error,
        unit=unit,
        in_air=in_air,
        mask=mask,
        resolving_power=resolving_power,
        object_id=object_id,
        ra=ra,
        dec=dec,
    )


def from_flux(
    flux: Any,
    modality: Modality,
    *,
    wavelength: Any,
    inverse_variance: Any = None,
    standard_deviation: Any = None,
    unit: Any = None,
    in_air: bool | None = None,
    mask: ArrayLike | None = None,
    resolving_power: ArrayLike | None = None,
    object_id: str | Sequence[Any] | None = None,
    ra: Any = None,
    dec: Any = None,
) -> SpectrumObservation:
    """A spectrum from flux [L] or [B, L] and `wavelength`, as quantities, or as arrays in `unit` and in angstrom.

    An inverse variance without a unit is in (1e-17 erg/s/cm2/A)^-2; `standard_deviation` is a quantity. Raises
    ObservationError.
    """
    grid = angstroms(wavelength, modality)
    values = np.asarray(getattr(flux, "value", flux), np.float64)
    fields: dict[str, Any] = {"mask": mask, "resolving_power": resolving_power}
    fields = {name: numbers_of(given, modality) for name, given in fields.items() if given is not None}
    own_unit = getattr(flux, "unit", None)
    if own_unit is not None or unit is not None:
        values = flux_densities(values, own_unit if own_unit is not None else unit, grid, modality)
    if standard_deviation is not None:
        sigma = flux_densities(standard_deviation.value, standard_deviation.unit, grid, modality)
        with np.errstate(divide="ignore"):
            fields["inverse_variance"] = 1 / sigma**2
    elif getattr(inverse_variance, "unit", None) is not None:
        with np.errstate(divide="ignore"):
            sigma = inverse_variance.value**-0.5
            fields["inverse_variance"] = 1 / flux_densities(sigma, inverse_variance.unit**-0.5, grid, modality) ** 2
    elif inverse_variance is not None:
        fields["inverse_variance"] = numbers_of(inverse_variance, modality)
    fields["wavelength"] = vacuum_wavelengths(grid) if in_air else grid
    order = np.argsort(grid[..., (0, -1)], -1)
    if grid.shape[-1] > 1 and (order[..., 0] == 1).all():
        # Frequencies and energies rise where wavelengths fall.
        values = values[..., ::-1].copy()
        fields = {name: array[..., ::-1].copy() for name, array in fields.items()}
    found = plain_observation(values, modality, fields, {"object_id": object_id, "ra": ra, "dec": dec})
    assert isinstance(found, SpectrumObservation)
    return found


def from_values(value: Any, modality: Modality, **options: Any) -> Any:
    """A plain array in a unit that is said beside it, as an image."""
    factor = nanomaggies_per_unit(options.pop("unit", None), options.pop("zero_point", None), modality)
    who = {name: options.pop(name, None) for name in ("object_id", "ra", "dec")}
    return plain_observation(numbers_of(value, modality) * factor, modality, options, who)


class _Plane:
    """One object of astropy as arrays [C, H, W] in nanomaggies."""

    def __init__(self, modality: Modality, given: Any, unit: Any, zero_point: float | int | None) -> None:
        own_unit = getattr(given, "unit", None)
        chosen = own_unit if own_unit is not None else unit
        factor = nanomaggies_per_unit(chosen, zero_point, modality)
        data = getattr(given, "data", given) if hasattr(given, "uncertainty") else getattr(given, "value", given)
        values = numbers_of(np.asarray(data), modality).astype(np.float64)
        if values.ndim not in (2, 3):
            raise ObservationError(
                f"{modality.name}: expected an image [height, width] or [bands, height, width], found shape "
                f"{list(values.shape)}"
            )
        self.flux = (values if values.ndim == 3 else values[None]) * factor
        bad = getattr(given, "mask", None)
        self.valid = np.ones(self.flux.shape, bool)
        if bad is not None:
            self.valid &= ~np.broadcast_to(np.asarray(bad, bool), self.flux.shape)
        self.inverse_variance: np.ndarray | None = None
        uncertainty = getattr(given, "uncertainty", None)
        if uncertainty is not None:
            sigma = _standard_deviation(uncertainty, chosen, modality)
            same = factor if sigma.unit == chosen else nanomaggies_per_unit(sigma.unit, zero_point, modality)
            with np.errstate(divide="ignore"):
                self.inverse_variance = np.broadcast_to((sigma.value * same) ** -2.0, self.flux.shape)


def _planes(image: Any, modality: Modality, bands: list[str] | None) -> list[tuple[list[str], Any]]:
    """Objects of astropy with the bands that each holds."""
    if isinstance(image, Mapping):
        if bands is not None and bands != list(image):
            raise ObservationError(f"{modality.name}: bands {bands} beside images of {list(image)}")
        for band, plane in image.items():
            if np.ndim(np.asarray(getattr(plane, "data", plane))) != 2:
                raise ObservationError(f"{modality.name}: band {band} must be one image [height, width]")
        return [([str(band)], plane) for band, plane in image.items()]
    if bands is None:
        assert isinstance(modality.card, ImagingInstrument)
        known = [band.name for band in modality.card.bands]
        header = getattr(image, "meta", None) or {}
        said = {str(header[key]).split()[0] for key in _BAND_KEYWORDS if str(header.get(key, "")).strip()}
        matching = [name for name in known if name in said] or [
            n for n in known if n.lower() in {s.lower() for s in said}
        ]
        if len(matching) != 1 or np.squeeze(np.empty(np.shape(getattr(image, "data", image)))).ndim != 2:
            raise ObservationError(
                f"{modality.name}: expected bands, such as {known[:3]}: the header names none of {known}"
                if not matching
                else f"{modality.name}: expected bands, one for each plane; the header names {sorted(said)}"
            )
        bands = matching
    return [(bands, image)]


def _sky_position(plane: Any, shape: Sequence[int], center: Any, modality: Modality) -> tuple[Any, Any]:
    """Ra and dec of the object, degrees, ICRS, from celestial coordinates; None where there are none."""
    wcs = getattr(plane, "wcs", None)
    if wcs is None or not getattr(wcs, "has_celestial", False):
        return None, None
    celestial = wcs.celestial
    assert isinstance(modality.card, ImagingInstrument)
    scale = float(np.mean(proj_plane_pixel_scales(celestial))) * 3600
    if abs(scale / modality.card.pixel_scale - 1) > PIXEL_SCALE_TOLERANCE:
        raise ObservationError(
            f"{modality.name}: its pixels are {modality.card.pixel_scale} arcsec, those of the image {scale:.4g}: "
            "resample it, or choose the modality of its camera"
        )
    row, column = ((shape[0] - 1) / 2, (shape[1] - 1) / 2) if center is None else np.ravel(np.asarray(center))[:2]
    sky = celestial.pixel_to_world(column, row).icrs
    return float(sky.ra.deg) % 360, float(sky.dec.deg)


def _standard_deviation(uncertainty: Any, unit: Any, modality: Modality) -> Any:
    """An uncertainty as a quantity, one standard deviation; without a unit of its own, in that of the values."""
    if not isinstance(uncertainty, NDUncertainty):
        return u.Quantity(uncertainty, getattr(uncertainty, "unit", None) or unit)
    array, own = np.asarray(uncertainty.array, np.float64), uncertainty.unit
    with np.errstate(divide="ignore"):
        if isinstance(uncertainty, StdDevUncertainty):
            return array * (unit if own is None else own)
        if isinstance(uncertainty, VarianceUncertainty):
            return np.sqrt(array) * (unit if own is None else own**0.5)
        if isinstance(uncertainty, InverseVariance):
            return array**-0.5 * (unit if own is None else own**-0.5)
    raise ObservationError(
        f"{modality.name}: expected a StdDevUncertainty, VarianceUncertainty or InverseVariance, found "
        f"{type(uncertainty).__name__}"
    )


def _says_air(meta: Any) -> bool:
    """Whether a header says that wavelengths are in air, in the ways of SDSS, ESO and FITS."""
    if not isinstance(meta, Mapping) and not hasattr(meta, "get"):
        return False
    for header in (meta, meta.get("header")):
        if header is None or not hasattr(header, "get"):
            continue
        vacuum = header.get("VACUUM")
        if str(header.get("AIRORVAC", "")).strip().lower() == "air" or (vacuum is not None and not vacuum):
            return True
        if any(str(header.get(f"CTYPE{axis}", "")).startswith("AWAV") for axis in (1, 2, 3)):
            return True
    return False


def _batched(given: Any, modality: Modality, name: str) -> Any:
    """A field of one image with a leading axis of one object; bands stay."""
    if name == "bands":
        return given
    array = numbers_of(given, modality)
    wanted = {"mask": 4, "inverse_variance": 4}.get(name, 2)
    if wanted == 4 and array.ndim == 2:
        array = array[None]
    return array[None] if array.ndim < wanted else array
