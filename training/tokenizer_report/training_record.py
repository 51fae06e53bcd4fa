"""What a tokenizer was trained on, by the settings that lie in its run folder: has it seen these objects, this camera?

A report that calls objects or instruments unseen should know it. Where settings or dataset are no longer there, it says
that it does not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...data.dataset import ObservationDataset
from ...data.observations import ObservationError
from ...settings import SettingsError, parse_yaml


@dataclass(frozen=True)
class TrainingRecord:
    """The dataset, modalities and held-out objects of a tokenizer's training."""

    dataset: ObservationDataset
    modalities: tuple[str, ...]
    held_out: frozenset[str]

    def seen_objects(self, object_ids: Iterable[str]) -> frozenset[str]:
        """Those of the objects that training may have shown to the tokenizer."""
        wanted = set(object_ids) - self.held_out
        found: set[str] = set()
        for name in self.modalities:
            if wanted:
                found |= wanted.intersection(self.dataset.sky_index(name).object_id.tolist())
        return frozenset(found)


def read_training_record(folder: str | Path, kind: str) -> TrainingRecord | None:
    """The record of the tokenizer of a kind in `folder`; None if its run's settings or its data are not there.

    Raises SettingsError if the settings are damaged.
    """
    path = Path(folder) / kind / "settings.yaml"
    if not path.is_file():
        return None
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
        names, held_out = tuple(content["modalities"]), content["held_out"]
        dataset = ObservationDataset(content["data"])
        ids = frozenset() if held_out is None else frozenset(Path(held_out).read_text(encoding="utf-8").split())
    except (ObservationError, FileNotFoundError):
        return None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: expected the settings of a tokenizer's training; {error!r}") from None
    return TrainingRecord(dataset, names or tuple(m.name for m in dataset.modalities if m.kind == kind), ids)
