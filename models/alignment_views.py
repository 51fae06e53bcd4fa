"""Views: named groups of modalities that stand for an object in the aligned space, each with a pooling of its own.

A view is written as a list of kinds (`image`, `spectrum`, `coefficients`), of `photometry` (every scalar that is the
brightness of a band), of names of modalities, or of patterns (`scalar/sdss_*`). Labels, the scalars of the catalogue
`galaxy_properties`, belong to a view only where they are named in full: a redshift that slips into the space by a
pattern would answer the question for a redshift.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..data.instruments import Catalogue
from ..data.modalities import Modality

KINDS = ("image", "spectrum", "coefficients")
PHOTOMETRY = "photometry"
LABELS = "galaxy_properties"
"""The catalogue whose scalars are what people ask for."""


def parse_views(value: Any) -> Any:
    """Views as a mapping of names to members: a list of kinds becomes a view of each. Raises ValueError."""
    if isinstance(value, list | tuple):
        unknown = sorted({str(name) for name in value} - {*KINDS, PHOTOMETRY})
        if unknown or len(set(value)) < len(value):
            raise ValueError(
                f"a list of views names each of {[*KINDS, PHOTOMETRY]} at most once, found {list(value)}; "
                "other views need a name: {infrared: [scalar/twomass_*]}"
            )
        value = {name: (name,) for name in value}
    if isinstance(value, Mapping):
        value = {name: (members,) if isinstance(members, str) else members for name, members in value.items()}
        wrong = [name for name in value if not re.fullmatch(r"[a-z0-9_]+", str(name))]
        if wrong or not all(value.values()):
            raise ValueError(f"a view is a name of letters, digits and _ with at least one modality, found {value}")
    return value


Views = Annotated[dict[str, tuple[str, ...]], BeforeValidator(parse_views)]
"""Views by name, in the order of the settings."""


def view_of(views: Mapping[str, Sequence[str]], modality: Modality) -> str | None:
    """The first view that takes the modality, if one does."""
    return next((view for view, members in views.items() if any(takes(m, modality) for m in members)), None)


def takes(member: str, modality: Modality) -> bool:
    """Whether a member of a view (a kind, `photometry`, a name or a pattern) means this modality."""
    if member == modality.name:
        return True
    if modality.kind != "scalar":
        return member == modality.kind or fnmatch.fnmatchcase(modality.name, member)
    if member == PHOTOMETRY:
        return modality.quantity.wavelength is not None
    assert isinstance(modality.card, Catalogue)
    return modality.card.name != LABELS and fnmatch.fnmatchcase(modality.name, member)


def group_by_view(
    views: Mapping[str, Sequence[str]], modalities: Iterable[Modality], source: str
) -> dict[str, list[Modality]]:
    """The modalities of each view. Raises ValueError for a view that has none of them, and for one of two views."""
    known = list(modalities)
    groups = {view: [m for m in known if any(takes(member, m) for member in views[view])] for view in views}
    empty = [view for view, group in groups.items() if not group]
    if empty:
        raise ValueError(
            f"{source}: no modality of the views { ({view: list(views[view]) for view in empty}) }; "
            f"it holds {[m.name for m in known]}"
        )
    for modality in known:
        owners = [view for view, group in groups.items() if modality in group]
        if len(owners) > 1:
            raise ValueError(f"{modality.name} may belong to one view, found it in {owners}")
    return groups


def embedded_rows(views: Mapping[str, Sequence[str]], modalities: Iterable[Modality]) -> dict[str, list[Modality]]:
    """What becomes one vector of an object, by the name of its row: each image and each spectrum by itself, under the
    name of its modality; all scalars of a view together, under the name of the view."""
    rows: dict[str, list[Modality]] = {}
    for modality in modalities:
        view = view_of(views, modality)
        if view is not None:
            rows.setdefault(view if modality.kind == "scalar" else modality.name, []).append(modality)
    return rows
