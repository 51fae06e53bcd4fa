"""The mapping from columns of a Hugging Face dataset to modalities, as settings (YAML).

Nothing of it is guessed: zero points, units and the meaning of True in a mask must be stated. A dot in a name leads
into a struct: `spectrum.flux`.

    object_id: targetid
    ra: ra
    dec: dec
    spectra:
    - {modality: spectrum/desi, flux: spectrum.flux, wavelength: spectrum.lambda, ivar: spectrum.ivar, unit: 1.0e-17,
       is_vacuum: true, mask: {column: spectrum.mask, true_means: bad}}
    scalars:
    - {modality: scalar/redshift, column: Z, error: ZERR, missing_values: [-99]}
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...settings import Settings
from ..instruments import ImagingInstrument
from ..modalities import modality

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MaskColumn(Settings):
    """A column of booleans, one for each pixel."""

    column: str
    true_means: Literal["valid", "bad"]


class Mapped(Settings):
    """What all four share: a modality, and the columns it comes from."""

    modality: str

    def columns(self) -> list[str]:
        """All columns that are read."""
        found: list[str] = []
        for name, value in self:
            if isinstance(value, MaskColumn):
                found.append(value.column)
            elif name not in ("modality", "bands") and isinstance(value, str):
                found.append(value)
            elif name not in ("modality", "bands") and isinstance(value, tuple):
                found += [part for part in value if isinstance(part, str)]
        return found


class WithNoise(Mapped):
    """What images and spectra share: noise and mask."""

    ivar: str | None = None
    """Inverse variance, in the inverse square of the flux's unit."""
    error: str | None = None
    """Standard deviation, in the flux's unit; instead of `ivar`."""
    mask: MaskColumn | None = None

    @model_validator(mode="after")
    def _one_noise(self) -> "WithNoise":
        if self.ivar is not None and self.error is not None:
            raise ValueError("ivar and error say the same; give one of them")
        return self


class ImageColumns(WithNoise):
    """Images: `flux` is a column of [bands][rows][columns], or one column of [rows][columns] for each band."""

    flux: str | tuple[str, ...]
    bands: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names on the modality's card, in the order of `flux`."""
    zero_point: float
    """AB magnitude of one unit of flux: 22.5 for nanomaggies, 27.0 for counts of HSC coadds, 31.4 for nJy."""
    psf_fwhm: str | None = None
    """Column of one number for each band, arcsec."""

    @model_validator(mode="after")
    def _as_many_bands_as_columns(self) -> "ImageColumns":
        if isinstance(self.flux, tuple) and len(self.flux) != len(self.bands):
            raise ValueError(f"flux names {len(self.flux)} columns, bands {len(self.bands)}")
        if isinstance(self.flux, tuple) and (self.ivar or self.error or self.mask):
            raise ValueError("noise and masks need one column of flux for all bands")
        return self


class WavelengthGrid(Settings):
    """Wavelengths that the dataset does not write down."""

    first: Positive
    """Angstrom, in vacuum."""
    step: Positive
    sampling: Literal["linear", "log10"]
    """`step` is in angstrom or in dex."""


class SpectrumColumns(WithNoise):
    """Spectra: columns of lists, of any length, equal within a row."""

    flux: str
    wavelength: str | WavelengthGrid
    """Column in angstrom, not positive where padded; or a grid that all rows share."""
    is_vacuum: Literal[True]
    """Wavelengths in air are not taken: convert them first."""
    unit: Positive
    """erg / s / cm2 / angstrom of one unit of the flux column, such as 1.0e-17."""

    @model_validator(mode="after")
    def _some_noise(self) -> "SpectrumColumns":
        if self.ivar is None and self.error is None:
            raise ValueError("spectra need ivar or error")
        return self


class ScalarColumn(Mapped):
    """One number, in the modality's unit."""

    column: str
    error: str | None = None
    missing_values: tuple[float, ...] = ()
    """Numbers that stand for none, such as -99; null and NaN do anyway."""


class CoefficientColumns(Mapped):
    """Coefficients: one column of all arms, or one for each arm in the card's order."""

    values: str | tuple[str, ...]
    error: str | tuple[str, ...] | None = None


class HuggingFaceSettings(Settings):
    """Which dataset is read, and how its columns become observations."""

    config: str | None = None
    split: str = "train"
    revision: str | None = None
    """Of a dataset on the Hub."""
    object_id: str
    ra: str | None = None
    """Degrees, ICRS; without a position objects are unplaced."""
    dec: str | None = None
    images: tuple[ImageColumns, ...] = ()
    spectra: tuple[SpectrumColumns, ...] = ()
    scalars: tuple[ScalarColumn, ...] = ()
    coefficients: tuple[CoefficientColumns, ...] = ()
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows that are read at once; 1 where images differ in size."""

    @model_validator(mode="after")
    def _modalities_are_known(self) -> "HuggingFaceSettings":
        mapped = {"image": self.images, "spectrum": self.spectra, "scalar": self.scalars}
        kinds: dict[str, Sequence[Mapped]] = {**mapped, "coefficients": self.coefficients}
        names = [one.modality for columns in kinds.values() for one in columns]
        if not names:
            raise ValueError("no modality is mapped; give images, spectra, scalars or coefficients")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"modalities may come once, found twice: {doubled}; a later one would overwrite the first")
        if (self.ra is None) != (self.dec is None):
            raise ValueError("ra and dec are given both or not at all")
        for kind, columns in kinds.items():
            for one in columns:
                try:
                    found = modality(one.modality)
                except LookupError as error:
                    raise ValueError(str(error)) from None
                if found.kind != kind:
                    raise ValueError(f"{one.modality} is of kind {found.kind}, found among those of kind {kind}")
        for image in self.images:
            card = modality(image.modality).card
            assert isinstance(card, ImagingInstrument)
            known = [band.name for band in card.bands]
            unknown = [band for band in image.bands if band not in known]
            if unknown:
                raise ValueError(f"{image.modality} has no band {unknown[0]!r}; its bands are {known}")
        return self

    def columns(self) -> list[str]:
        """All columns that are read, once each."""
        mapped: list[Mapped] = [*self.images, *self.spectra, *self.scalars, *self.coefficients]
        own = [name for name in (self.object_id, self.ra, self.dec) if name is not None]
        return list(dict.fromkeys([*own, *(name for one in mapped for name in one.columns())]))
