"""Which media type is read by what: bodies that are not JSON, from bytes to the observations of each object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...data.modalities import Modality
from ...data.observations import Observation
from ..limits import Limits
from ..problems import ProblemError
from . import bodies
from .arrow_body import ARROW, observations_from_arrow, read_arrow
from .batch_metadata import MEASUREMENT_METADATA, REQUEST_METADATA
from .fits_body import FITS_TYPES, observations_from_fits
from .multipart_body import MULTIPART, read_form
from .safetensors_body import SAFETENSORS, observations_from_safetensors, read_safetensors

Query = Mapping[str, str]
Known = Mapping[str, Modality]


@dataclass(frozen=True)
class RawObjects:
    """For each object of a body its observations, or what is wrong with it; and all that was said of the request.

    `query` is the query's, and a form's fields, and what the metadata of the body say in their place.
    """

    objects: list[list[Observation] | ProblemError]
    query: Query


def _npy(body: bytes, query: Query, known: Known, limits: Limits) -> RawObjects:
    return RawObjects([*bodies.observations_from_npy(body, query, known, limits)], query)


def _fits(body: bytes, query: Query, known: Known, limits: Limits) -> RawObjects:
    return RawObjects(observations_from_fits(body, query, known, limits), query)


def _safetensors(body: bytes, query: Query, known: Known, limits: Limits) -> RawObjects:
    tensors, said = read_safetensors(body)
    metadata = _measurement(query) | said
    return RawObjects(observations_from_safetensors(tensors, metadata, known, limits), {**query, **_request(said)})


def _arrow(body: bytes, query: Query, known: Known, limits: Limits) -> RawObjects:
    table, said = read_arrow(body, limits)
    metadata = _measurement(query) | said
    return RawObjects(observations_from_arrow(table, metadata, known, limits), {**query, **_request(said)})


READERS: dict[str, Callable[[bytes, Query, Known, Limits], RawObjects]] = {
    bodies.NPY: _npy,
    SAFETENSORS: _safetensors,
    ARROW: _arrow,
    **dict.fromkeys(FITS_TYPES, _fits),
}
RAW_TYPES = (*READERS, MULTIPART)
"""Media types of bodies that `read_objects` takes."""

_FIRST_BYTES = {b"SIMPLE  =": FITS_TYPES[0], b"\x93NUMPY": bodies.NPY, b"\xff\xff\xff\xff": ARROW}


def read_objects(
    media_type: str, content_type: str, body: bytes, query: Query, known: Known, limits: Limits
) -> RawObjects:
    """The objects of a body of one of RAW_TYPES. `content_type` is the whole header, for a form's boundary.

    The file of a form is what its part says, or, where a browser does not know, what its first bytes say. Raises
    ProblemError.
    """
    if media_type == MULTIPART:
        media_type, body, fields = read_form(content_type, body)
        query = {**query, **fields}
        if media_type not in READERS:
            found = [known_type for start, known_type in _FIRST_BYTES.items() if body.startswith(start)]
            if not found:
                raise ProblemError(
                    "unsupported-media-type", f"expected a file of {' or '.join(READERS)}, found {media_type[:80]!r}"
                )
            media_type = found[0]
    return READERS[media_type](body, query, known, limits)


def _measurement(query: Query) -> dict[str, str]:
    return {name: query[name] for name in MEASUREMENT_METADATA if name in query and name != "object_id"}


def _request(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: metadata[name] for name in REQUEST_METADATA if name in metadata}
