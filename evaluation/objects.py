"""The objects of an evaluation: who trains, who chooses and who is tested, with their labels and magnitudes.

All sections but that of real galaxies use the same objects: those that have every modality that is compared, so that
two rows of a table never differ by whom they are about. Where a dataset holds simulated objects, these are they.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..data.dataset import ObservationDataset
from ..data.sky_split import PARTS, read_parts
from .settings import PHOTOMETRY, EvaluateSettings

LEAST = {"train": 10, "validation": 40, "test": 10}
"""Fewest objects of each part with which anything can be said; 40 calibrate intervals of 95 per cent."""


@dataclass(frozen=True)
class Subset:
    """The modalities from which something is predicted."""

    name: str
    modalities: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, photometry: Sequence[str]) -> "Subset":
        """Read `image/hsc+photometry`. Raises ValueError on a modality that comes twice."""
        found: list[str] = []
        for word in name.split("+"):
            found += photometry if word == PHOTOMETRY else [word]
        if not all(found) or not found or len(set(found)) < len(found):
            raise ValueError(f"subsets: {name!r} must name modalities joined by +, each once; found {found}")
        return cls(name, tuple(found))

    @property
    def is_single(self) -> bool:
        """Whether it is one image or spectrum alone."""
        return len(self.modalities) == 1 and self.modalities[0].split("/")[0] != "scalar"


class EvaluationObjects:
    """Objects by part, and what a catalogue says of them. Raises ValueError where too few are left to compare."""

    def __init__(self, dataset: ObservationDataset, settings: EvaluateSettings):
        self.dataset = dataset
        self.settings = settings
        self.part_of = read_parts(settings.parts)
        self.names = {modality.name for modality in dataset.modalities}
        self.subsets = [Subset.parse(name, settings.photometry) for name in settings.subsets]
        self._check_names()
        every = {i for name in sorted(self.names) for i in dataset.object_ids(name)}
        unknown = sorted(self.part_of.keys() - every)
        if unknown:
            raise ValueError(
                f"{settings.parts}: object {unknown[0]!r} and {len(unknown) - 1} more are not in {settings.data}"
            )
        simulated = {i for i in every if i.startswith(settings.simulated_prefix)}
        self.is_simulated = bool(simulated)
        self.others = every - simulated if simulated else set()
        self.surveys = self._choose_surveys(simulated or every)
        self.ids = self._choose(simulated or every)
        self._values: dict[str, dict[str, float]] = {}

    def label(self, name: str, part: str | Sequence[str]) -> Float[np.ndarray, " B"]:
        """Values of a scalar for a part, or for these ids, in the modality's unit; NaN where there is none."""
        if name not in self._values:
            self._values[name] = self.dataset.scalars([name])[name]
        ids = self.ids[part] if isinstance(part, str) else part
        return np.array([self._values[name].get(i, np.nan) for i in ids], np.float64)

    def magnitudes(self, part: str | Sequence[str], names: Sequence[str] | None = None) -> Float[np.ndarray, "B M"]:
        """Magnitudes of a part, or of these ids; NaN where there is none."""
        chosen = self.settings.photometry if names is None else names
        return np.stack([self.label(name, part) for name in chosen], 1)

    def real_galaxies(self, label: str, magnitudes: Sequence[str]) -> dict[str, list[str]]:
        """Objects that are not simulated with this label and at least one of these magnitudes, by part."""
        if label not in self.names or not magnitudes:
            return {part: [] for part in PARTS}
        labelled = set(self.dataset.object_ids(label)) & self.others
        measured = {i for name in magnitudes for i in self.dataset.object_ids(name)}
        ids = sorted(labelled & measured & self.part_of.keys())
        finite = np.isfinite(self.label(label, ids)) & np.isfinite(self.magnitudes(ids, magnitudes)).any(1)
        found: dict[str, list[str]] = {part: [] for part in PARTS}
        for object_id, is_usable in zip(ids, finite.tolist(), strict=True):
            if is_usable:
                found[self.part_of[object_id]].append(object_id)
        return found

    def _check_names(self) -> None:
        settings = self.settings
        asked: Mapping[str, Sequence[str]] = {
            "labels": settings.labels,
            "photometry": settings.photometry,
            "magnitude": [settings.magnitude],
            "subsets": [name for subset in self.subsets for name in subset.modalities],
            "surveys": settings.surveys or (),
            "supervised.modality": [] if settings.supervised is None else [settings.supervised.modality],
            "supervised.labels": [] if settings.supervised is None else settings.supervised.labels,
        }
        for key, names in asked.items():
            unknown = [name for name in names if name not in self.names]
            if unknown:
                raise ValueError(f"{key}: {settings.data} has no {unknown[0]}; it holds {sorted(self.names)}")
        if not settings.labels:
            raise ValueError("labels: expected at least one scalar, found none")
        for subset in self.subsets:
            told = sorted(set(subset.modalities) & set(settings.labels))
            if told:
                raise ValueError(f"subsets: {subset.name} holds the label {told[0]} itself")

    def _choose_surveys(self, ids: set[str]) -> tuple[str, ...]:
        """Images and spectra for retrieval and transfer."""
        if self.settings.surveys is not None:
            return self.settings.surveys
        compared = {name for subset in self.subsets for name in subset.modalities}
        kinds = [m for m in self.dataset.modalities if m.kind in ("image", "spectrum")]
        return tuple(m.name for m in kinds if m.name in compared or ids <= set(self.dataset.object_ids(m.name)))

    def _choose(self, ids: set[str]) -> dict[str, list[str]]:
        settings = self.settings
        needed = {name for subset in self.subsets for name in subset.modalities} | set(self.surveys)
        if settings.supervised is not None:
            needed.add(settings.supervised.modality)
        counts = {}
        for name in sorted(needed):
            ids = ids & set(self.dataset.object_ids(name))
            counts[name] = len(ids)
        rng = np.random.default_rng(0)
        found = {}
        for part in PARTS:
            chosen = sorted(i for i in ids if self.part_of.get(i) == part)
            most = getattr(settings, f"num_{part}")
            if most is not None and len(chosen) > most:
                chosen = sorted(chosen[row] for row in rng.permutation(len(chosen))[:most])
            if len(chosen) < LEAST[part]:
                raise ValueError(
                    f"{settings.parts}: at least {LEAST[part]} objects of {part}.txt must have every modality that is "
                    f"compared, found {len(chosen)}; objects left, modality by modality: {counts}"
                )
            found[part] = chosen
        return found

    def describe(self) -> dict[str, int]:
        """Number of objects in each part."""
        return {part: len(ids) for part, ids in self.ids.items()}


def modality_slug(name: str) -> str:
    """A name as part of a file's name."""
    return name.replace("/", "-")
