"""Entries of `input` that are asked about: measurements, objects of the index, or vectors. A bad one fails alone.

They are read first, and then all of them become vectors at once, or go to the model as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..data.modalities import Modality
from ..data.observations import Observation
from .formats import bodies
from .problems import ProblemError, at, pointer
from .schemas.common import StoredItem
from .schemas.predictions import VectorItem
from .service import EmbeddedItem, Service

Item = list[Observation] | StoredItem | VectorItem | ProblemError
"""What an entry is of, or what is wrong with it."""


def read_items(service: Service, entries: Any, *, with_vectors: bool = False) -> list[Item]:
    """The entries of a request's `input`, one or a list. Raises ProblemError where there is none, or too many."""
    entries = entries if isinstance(entries, list) else [entries]
    if not entries:
        raise _invalid(("input",), "expected at least one object, found none")
    bodies.check_count(len(entries), service.limits)
    known = service.known_modalities()
    found: list[Item] = []
    for number, entry in enumerate(entries):
        try:
            found.append(_read(service, entry, ("input", number), known, with_vectors))
        except ProblemError as problem:
            found.append(problem)
    return found


def embed_items(
    service: Service, items: Sequence[Item], space: str, width: int = 0
) -> list[EmbeddedItem | ProblemError]:
    """The vector of each item in this space, all measurements in one batch; posted vectors have `width` numbers."""
    found: dict[int, EmbeddedItem | ProblemError] = {}
    given: dict[int, list[Observation]] = {}
    for number, item in enumerate(items):
        place = ("input", number)
        try:
            if isinstance(item, ProblemError):
                found[number] = item
            elif isinstance(item, StoredItem):
                found[number] = service.stored(item, space, place)
            elif isinstance(item, VectorItem):
                found[number] = EmbeddedItem(posted_vector(item.vector, width, (*place, "vector")), None, ())
            else:
                given[number] = item
        except ProblemError as problem:
            found[number] = problem
    found |= service.embed_objects(given, space)
    return [found[number] for number in range(len(items))]


def posted_vector(given: Any, width: int, place: bodies.Place) -> Float32[np.ndarray, " D"]:
    """A vector from numbers or base64. Raises ProblemError (422) on another width and on what is not finite."""
    try:
        vector = bodies.vector_of(given, place)
    except (TypeError, ValueError):
        raise _invalid(place, "expected numbers, or base64 of float32") from None
    if vector.shape != (width,):
        raise _invalid(place, f"expected {width} numbers, found {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise _invalid(place, "expected finite numbers, found NaN or infinity")
    return vector


def no_observations(number: int, who: str) -> ProblemError:
    """What is said of an entry that is no measurement, where only these will do."""
    return _invalid(("input", number), f"{who}; found none")


def _read(service: Service, entry: Any, place: bodies.Place, known: Mapping[str, Modality], with_vectors: bool) -> Item:
    ways = {"observations", "data", "object_id", *(["vector"] if with_vectors else [])}
    if not isinstance(entry, dict) or not ways & entry.keys():
        also = ", with vector" if with_vectors else ""
        raise _invalid(place, f"expected an object with observations, with modality and data{also}, or with object_id")
    if "observations" in entry or "data" in entry:
        return bodies.observations_of(entry, place, known, service.limits)
    if "vector" in entry and with_vectors:
        return bodies.parse_fields(VectorItem, entry, place)
    return bodies.parse_fields(StoredItem, entry, place)


def _invalid(place: bodies.Place, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
