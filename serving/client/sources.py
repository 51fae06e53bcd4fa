"""Where the objects of `embed_many` come from: datasets, folders, one observation, or any iterable."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.dataset import ObservationDataset
from ...data.observations import Observation, ObservationError
from ...data.observe import as_observations

OBJECTS_AT_ONCE = 64
"""Read of a dataset."""


def items_of(source: Any, modality: str | Sequence[str] | None) -> Iterable[Any]:
    """The items of a source, in order, read as they are asked for.

    Raises ObservationError if it is a folder without a dataset, a dataset without `modality` (unless it has but one),
    or something that cannot be read.
    """
    dataset = _dataset(source)
    if dataset is not None:
        return _dataset_items(dataset, _modalities(dataset, modality))
    if modality is not None:
        raise ObservationError(f"modality goes with a dataset alone; found it beside {type(source).__name__}")
    if isinstance(source, Observation | Mapping):
        return [source]
    if not isinstance(source, Iterable):
        raise ObservationError(f"expected a dataset, an observation or an iterable, found {type(source).__name__}")
    return source


def observe_item(item: Any, first: int) -> Sequence[Observation]:
    """The observations of an item, or of what it returns where it is a function; `first` objects came before it."""
    given = item() if isinstance(item, Callable) and not isinstance(item, Observation) else item  # type: ignore[arg-type]
    return as_observations(given, first_number=first)


def count_objects(source: Any, modality: str | Sequence[str] | None) -> int | None:
    """How many objects the source holds, None where only reading it would tell."""
    dataset = _dataset(source)
    if dataset is not None:
        names = _modalities(dataset, modality)
        return dataset.num_objects(names[0]) if len(names) == 1 else len(_ids(dataset, names))
    if isinstance(source, Observation):
        return len(source)
    if isinstance(source, list | tuple) and all(isinstance(item, Observation) for item in source):
        return sum(len(item) for item in source)
    return None


def _dataset(source: Any) -> ObservationDataset | None:
    if isinstance(source, str | Path):
        return ObservationDataset(source)
    return source if isinstance(source, ObservationDataset) else None


def _modalities(dataset: ObservationDataset, chosen: str | Sequence[str] | None) -> list[str]:
    known = [modality.name for modality in dataset.modalities]
    names = known if chosen is None else [chosen] if isinstance(chosen, str) else list(chosen)
    if not names or (chosen is None and len(known) > 1):
        raise ObservationError(f"{dataset.folder}: say which modality to embed, one or several of {known}")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ObservationError(f"{dataset.folder}: no modality {unknown[0]!r}; it has {known}")
    return names


def _dataset_items(dataset: ObservationDataset, names: Sequence[str]) -> Iterator[Any]:
    if len(names) == 1:
        yield from dataset.batches(names[0], OBJECTS_AT_ONCE)
        return
    have = {name: set(dataset.object_ids(name)) for name in names}
    ids = _ids(dataset, names)
    for start in range(0, len(ids), OBJECTS_AT_ONCE):
        part = ids[start : start + OBJECTS_AT_ONCE]
        chosen = {name: [object_id for object_id in part if object_id in have[name]] for name in names}
        yield [dataset.read(name, found) for name, found in chosen.items() if found]


def _ids(dataset: ObservationDataset, names: Sequence[str]) -> list[str]:
    """Ids of all objects with any of the modalities, in the order of the first that has them."""
    return list(dict.fromkeys(object_id for name in names for object_id in dataset.object_ids(name)))
