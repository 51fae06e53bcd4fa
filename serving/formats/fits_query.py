"""What the query of a FITS body may say: what the file is of, and what its cards leave open."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..schemas.common import Degrees


class FitsQuery(BaseModel):
    """Query parameters, or fields of a form, that go with a FITS body; others are passed over."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    modality: str | None = None
    """Needed but for DESI coadds and SDSS spectra, which say what they are."""
    bands: str | None = None
    """Of the image's planes in order: `g,r,i`; without it, as the header says."""
    object_id: str | None = None
    ra: Annotated[Degrees, Field(ge=0, lt=360)] | None = None
    dec: Annotated[Degrees, Field(ge=-90, le=90)] | None = None
    unit: str | None = None
    """The modality's unit, where the file states none."""
    zero_point: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """AB magnitude of one unit of an image."""
    size: int | None = None
    """Cut out this many pixels a side around the object."""
