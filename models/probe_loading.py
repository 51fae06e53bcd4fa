"""One loader for every kind of probe."""

from pathlib import Path

from .attentive_probe import AttentiveProbe
from .probe_files import ProbeError, probe_folder, read_probe, restore
from .probes import LinearProbe

AnyProbe = LinearProbe | AttentiveProbe


def load_probe(folder_or_hub_id: str | Path, model_id: str | None = None) -> AnyProbe:
    """The probe in a folder, or in a repository of the Hugging Face Hub, whatever its kind.

    Raises ProbeError if there is none, it is damaged, or was fitted on a model other than `model_id`.
    """
    folder = probe_folder(folder_or_hub_id)
    description, arrays = read_probe(folder)
    if description["kind"] == LinearProbe.kind:
        return restore(LinearProbe, folder, description, arrays, model_id)
    if description["kind"] == AttentiveProbe.kind:
        return restore(AttentiveProbe, folder, description, arrays, model_id)
    raise ProbeError(f"{folder}: expected a linear or attentive probe, found {description['kind']!r}")
