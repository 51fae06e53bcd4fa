"""FITS bodies (`application/fits`): uploads read in place. Nothing is written to disk, and no name in them is opened.

The body's claims are checked first (`fits_guard.py`), then astropy reads it from memory: an image and what lies beside
it (`fits_images.py`), or spectra (`fits_spectra.py`).
"""

import logging
import math
import traceback
from collections.abc import Mapping

from astropy.io.fits.hdu.compressed._compression import CfitsioException

from ...data.modalities import Modality
from ...data.observations import Observation, ObservationError
from ...data.readers.fits_bytes import FitsBytes
from ...data.readers.fits_files import FitsFile, open_fits
from ...data.readers.fits_integrity import DAMAGED
from ..limits import Limits
from ..problems import ProblemError, at, not_found
from . import bodies
from .fits_guard import check_fits
from .fits_images import image_of_fits
from .fits_query import FitsQuery
from .fits_spectra import desi_objects, named_objects, sdss_objects, survey_of

FITS = "application/fits"
FITS_TYPES = (FITS, "image/fits")
"""The media types of RFC 4047."""

_BROKEN = (*DAMAGED, CfitsioException, AssertionError, MemoryError, RecursionError)
"""What astropy raises on damaged files."""

_log = logging.getLogger(__name__)

Objects = list[list[Observation] | ProblemError]


def observations_from_fits(
    body: bytes, query: Mapping[str, str], known: Mapping[str, Modality], limits: Limits
) -> Objects:
    """For each object of a FITS file its one observation, or what is wrong with it: a bad object fails alone.

    `query` may say `modality`, `bands`, `object_id`, `ra`, `dec`, `unit`, `zero_point` and `size` (`FitsQuery`). Raises
    ProblemError if the file as a whole is wrong: 400 where it is damaged, 404 for an unknown modality, 413 for too many
    objects, 422 for what cannot be understood.
    """
    asked = bodies.parse_fields(FitsQuery, dict(query), ())
    check_fits(body, limits)
    source = FitsBytes(body)
    try:
        with open_fits(source) as file:
            return _objects(file, source, asked, known, limits)
    except ObservationError as error:
        raise ProblemError("invalid-observation", str(error), [at("/data", str(error))]) from None
    except _BROKEN as error:
        detail = f"the FITS file cannot be read: {type(error).__name__}: {str(error)[:200]}"
        # A damaged file, more likely than a fault of ours; if it is one, the log says where.
        place = traceback.extract_tb(error.__traceback__)[-1]
        _log.warning("%s (%s:%s)", detail, place.filename, place.lineno)
        raise ProblemError("malformed-body", detail) from None


def _objects(
    file: FitsFile, source: FitsBytes, asked: FitsQuery, known: Mapping[str, Modality], limits: Limits
) -> Objects:
    asked = _with_header(file, asked)
    survey = survey_of(file)
    name = asked.modality or survey
    if name is None:
        detail = "expected the modality that the file is of (DESI coadds and SDSS spectra alone say it themselves)"
        raise ProblemError("invalid-request", f"/modality: {detail}", [at("/modality", detail)])
    modality = known.get(name)
    if modality is None:
        raise not_found("modality", name, known)
    if survey is not None and name != survey:
        detail = f"the file is a {survey}, found {name!r}"
        raise ProblemError("invalid-observation", f"/modality: {detail}", [at("/modality", detail)])
    if modality.kind == "image":
        return [[image_of_fits(file, modality, asked, limits)]]
    if modality.kind != "spectrum":
        detail = f"FITS bodies hold images and spectra; {name} is of kind {modality.kind}"
        raise ProblemError("invalid-observation", f"/modality: {detail}", [at("/modality", detail)])
    if survey is None:
        return named_objects(file, modality, asked, limits)
    objects = desi_objects(file, source, limits) if survey == "spectrum/desi" else sdss_objects(file, source, limits)
    if len(objects) == 1 and asked.object_id is not None and not isinstance(objects[0], ProblemError):
        return [[observation.renamed((asked.object_id,)) for observation in objects[0]]]
    return objects


def _with_header(file: FitsFile, asked: FitsQuery) -> FitsQuery:
    """What is asked, completed by what a file that was downloaded from us says in its header (`observation_files.py`).

    Others have no MODALITY, and their OBJECT, RA and DEC may be those of a whole field.
    """
    stated = file.value(0, "MODALITY")
    if not isinstance(stated, str):
        return asked
    found: dict[str, object] = {"modality": stated}
    name = file.value(0, "OBJECT")
    if isinstance(name, str) and name:
        found["object_id"] = name
    if asked.ra is None and asked.dec is None:
        for key in ("ra", "dec"):
            value = file.value(0, key.upper())
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found[key] = float(value)
    return asked.model_copy(update={key: value for key, value in found.items() if getattr(asked, key) is None})
