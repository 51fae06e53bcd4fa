"""One loader for every kind of probe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .attentive_probe import AttentiveProbe
from .kernel_probe import KernelProbe
from .probe_bytes import read_probe_bytes
from .probe_files import ProbeError, probe_folder, read_probe, restore
from .probes import LinearProbe

AnyProbe = LinearProbe | AttentiveProbe
"""A kernel probe is a linear one, of other features."""


def load_probe(folder_or_hub_id: str | Path, model_id: str | None = None) -> AnyProbe:
    """The probe in a folder, in one file (`probe_bytes.py`), or in a repository of the Hugging Face Hub, of any kind.

    Raises ProbeError if there is none, it is damaged, or was fitted on a model other than `model_id`.
    """
    if Path(folder_or_hub_id).is_file():
        return probe_from_bytes(Path(folder_or_hub_id).read_bytes(), model_id, str(folder_or_hub_id))
    folder = probe_folder(folder_or_hub_id)
    description, arrays = read_probe(folder)
    return restore(_type_of(description, str(folder)), folder, description, arrays, model_id)


def probe_from_bytes(content: bytes, model_id: str | None = None, place: str = "the file") -> AnyProbe:
    """The probe in the bytes of one file, which errors call `place`. Raises ProbeError as `load_probe`."""
    description, arrays = read_probe_bytes(content, place)
    return restore(_type_of(description, place), place, description, arrays, model_id)


def _type_of(description: Mapping[str, Any], place: str) -> type[AnyProbe]:
    kinds: dict[str, type[AnyProbe]] = {kind.kind: kind for kind in (LinearProbe, KernelProbe, AttentiveProbe)}
    if description["kind"] not in kinds:
        raise ProbeError(f"{place}: expected a probe of a kind in {list(kinds)}, found {description['kind']!r}")
    return kinds[description["kind"]]
