"""One loader for every kind of probe."""

from pathlib import Path

from .attentive_probe import AttentiveProbe
from .kernel_probe import KernelProbe
from .probe_files import ProbeError, probe_folder, read_probe, restore
from .probes import LinearProbe

AnyProbe = LinearProbe | AttentiveProbe
"""A kernel probe is a linear one, of other features."""


def load_probe(folder_or_hub_id: str | Path, model_id: str | None = None) -> AnyProbe:
    """The probe in a folder, or in a repository of the Hugging Face Hub, whatever its kind.

    Raises ProbeError if there is none, it is damaged, or was fitted on a model other than `model_id`.
    """
    folder = probe_folder(folder_or_hub_id)
    description, arrays = read_probe(folder)
    kinds: dict[str, type[AnyProbe]] = {kind.kind: kind for kind in (LinearProbe, KernelProbe, AttentiveProbe)}
    if description["kind"] not in kinds:
        raise ProbeError(f"{folder}: expected a probe of a kind in {list(kinds)}, found {description['kind']!r}")
    return restore(kinds[description["kind"]], folder, description, arrays, model_id)
