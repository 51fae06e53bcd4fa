"""What /openapi.json says of bodies that hold measurements and are not JSON, and of the query that goes with them."""

from typing import Any

from ..formats import bodies
from ..formats.arrow_body import ARROW
from ..formats.fits_body import FITS
from ..formats.multipart_body import MULTIPART
from ..formats.safetensors_body import SAFETENSORS

BINARY = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLES = {
    bodies.NPY: ("image.npy", "modality=image/hsc&bands=g,r,i"),
    SAFETENSORS: ("objects.safetensors", ""),
    ARROW: ("objects.arrow", ""),
    FITS: ("image.fits", "modality=image/hsc&bands=g"),
    MULTIPART: ("image.fits", "modality=image/hsc&bands=g"),
}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": BINARY["schema"]},
    "additionalProperties": {"type": "string"},
}


def query_parameters(*told: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Parameters of the query that may be left out, each by its name, its type and what it is."""
    return [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}, "description": description}
        for name, kind, description in told
    ]


MEASUREMENT_PARAMETERS = query_parameters(
    ("modality", "string", "Needed with a .npy body, and with FITS but for DESI coadds and SDSS spectra"),
    ("bands", "string", "Of an image: `g,r,i,z`; FITS headers may say it"),
    ("object_id", "string", "With a body of one object"),
    ("ra", "number", "Degrees, ICRS, of one object; in a FITS image with a WCS it says where the object is"),
    ("dec", "number", "Degrees, ICRS"),
    ("unit", "string", "Checked against the modality's unit"),
    ("zero_point", "number", "Of a FITS image that does not state it: the AB magnitude of one unit"),
    ("size", "integer", "Of a FITS image: read this many pixels a side around the object"),
    ("model", "string", "The model's id"),
)


def raw_bodies(asked: str = "") -> dict[str, Any]:
    """The media types of raw bodies, each with an example whose query asks what is `asked` (`property=...`)."""
    return {
        media_type: {
            "schema": _FORM if media_type == MULTIPART else BINARY["schema"],
            "x-example": {"file": file, "query": "&".join(part for part in (asked, query) if part)},
        }
        for media_type, (file, query) in _EXAMPLES.items()
    }


RAW_BODIES = raw_bodies()
"""Without anything asked beside."""
