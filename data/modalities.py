"""The one registry of modalities: each is declared here once, and everything else is derived from that.

A modality is one kind of measurement by one instrument, named `kind/what`: `image/hsc`, `spectrum/desi`,
`scalar/redshift`. A survey is added by an instrument card and one line below; embedding tables, masks, the API's schema
and the table in the docs follow.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .instruments import (
    Catalogue,
    CoefficientSpectrograph,
    ImagingInstrument,
    Instrument,
    Quantity,
    Spectrograph,
    instrument,
    parse_card,
)

Kind = Literal["image", "spectrum", "coefficients", "scalar"]


@dataclass(frozen=True)
class Modality:
    """One kind of measurement by one instrument. `quantity` names the number of a catalogue, for scalars alone."""

    name: str
    card: Instrument
    quantity_name: str | None = None

    @property
    def kind(self) -> Kind:
        """`image`, `spectrum`, `coefficients` or `scalar`."""
        return self.card.kind

    @property
    def vocabulary(self) -> str:
        """Whose codes its tokens are: images share one vocabulary, spectra another; every other has its own."""
        return self.kind if self.kind in ("image", "spectrum") else self.name

    @property
    def quantity(self) -> Quantity:
        """The catalogue's declaration of a scalar. Raises TypeError for images and spectra."""
        if not isinstance(self.card, Catalogue) or self.quantity_name is None:
            raise TypeError(f"{self.name} is of kind {self.kind}, and has no quantity")
        return self.card.quantity(self.quantity_name)

    @property
    def unit(self) -> str:
        """Unit of the values."""
        if isinstance(self.card, ImagingInstrument):
            return "nanomaggies per pixel"
        if isinstance(self.card, Spectrograph):
            return "1e-17 erg / s / cm2 / angstrom"
        if isinstance(self.card, CoefficientSpectrograph):
            return self.card.unit
        return self.quantity.unit

    @property
    def description(self) -> str:
        """One sentence for people."""
        return self.card.description if self.quantity_name is None else self.quantity.description

    def record(self) -> dict[str, Any]:
        """All of the declaration as plain data for JSON; `from_record` reads it back."""
        return {"modality": self.name, "quantity": self.quantity_name, "card": self.card.model_dump(mode="json")}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], source: str) -> "Modality":
        """The modality of a `record`, card included, whether this installation ships that card or not.

        Raises SettingsError that names `source`.
        """
        return cls(record["modality"], parse_card(record["card"], source), record["quantity"])


def _scalars(card_name: str, prefix: str = "") -> tuple[Modality, ...]:
    card = instrument(card_name)
    assert isinstance(card, Catalogue)  # a slip in the declarations below, not of a user
    return tuple(Modality(f"scalar/{prefix}{quantity.name}", card, quantity.name) for quantity in card.quantities)


MODALITIES: tuple[Modality, ...] = (
    Modality("image/legacysurvey", instrument("legacysurvey")),
    Modality("image/hsc", instrument("hsc")),
    Modality("image/sdss", instrument("sdss_imaging")),
    Modality("image/bass_mzls", instrument("bass_mzls")),
    Modality("spectrum/desi", instrument("desi")),
    Modality("spectrum/sdss", instrument("sdss")),
    Modality("spectrum/manga", instrument("manga")),
    Modality("spectrum/lamost", instrument("lamost")),
    Modality("coefficients/gaia_bp_rp", instrument("gaia_bp_rp")),
    *_scalars("galaxy_properties"),
    *_scalars("legacysurvey_photometry", prefix="legacysurvey_"),
    *_scalars("sdss_photometry", prefix="sdss_"),
    *_scalars("twomass_photometry", prefix="twomass_"),
    *_scalars("legacysurvey_catalogue", prefix="legacysurvey_"),
    *_scalars("hsc_photometry", prefix="hsc_"),
    *_scalars("gaia_catalogue", prefix="gaia_"),
)

_BY_NAME = {modality.name: modality for modality in MODALITIES}


def modality(name: str) -> Modality:
    """The modality called `name`. Raises LookupError that names the nearest known one."""
    found = _BY_NAME.get(name)
    if found is None:
        nearest = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        raise LookupError(f"no modality {name!r}; the nearest known is {nearest[0]!r}, all: {sorted(_BY_NAME)}")
    return found
