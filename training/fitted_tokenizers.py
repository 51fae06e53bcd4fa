"""The tokenizers that are fitted and not trained: one pass, or a few, over a dataset in bounded memory."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from rich.progress import Progress

from ..data.dataset import ObservationDataset
from ..data.observations import ScalarObservation
from ..tokenizers.coefficients import CoefficientsTokenizer, CoefficientsTokenizerSettings
from ..tokenizers.scalar import ScalarSketch, ScalarTokenizer, ScalarTokenizerSettings
from .metrics_log import console

BATCH_SIZE = 2**16
"""Objects that are read at once."""


def fit_scalars(
    settings: ScalarTokenizerSettings, dataset: ObservationDataset, names: Sequence[str], held_out: Collection[str]
) -> ScalarTokenizer:
    """A tokenizer for these quantities, from all objects that are not held out; every value is read once.

    Raises ValueError if every object is held out, and ObservationError if a quantity has no two different values.
    """
    sketches: dict[str, ScalarSketch] = {}
    for observation in _seen(dataset, names, held_out, "scalar tokenizer"):
        assert isinstance(observation, ScalarObservation)  # asked for by kind
        sketches.setdefault(observation.modality.name, ScalarSketch()).update(observation)
    return ScalarTokenizer(settings).fit_sketches(sketches)


def fit_coefficients(
    settings: CoefficientsTokenizerSettings,
    dataset: ObservationDataset,
    names: Sequence[str],
    held_out: Collection[str],
) -> CoefficientsTokenizer:
    """A tokenizer for one instrument's coefficients, from all objects that are not held out; each is read twice.

    Raises ValueError if every object is held out, and ObservationError for several instruments, or fewer objects with
    all coefficients and errors than there are coefficients.
    """
    return CoefficientsTokenizer(settings).fit(lambda: _seen(dataset, names, held_out, "coefficients tokenizer"))


def _seen(dataset: ObservationDataset, names: Sequence[str], held_out: Collection[str], title: str) -> Iterator[Any]:
    """Batches of the objects that are not held out, under a progress bar."""
    hidden, found = frozenset(held_out), False
    with Progress(console=console) as progress:
        task = progress.add_task(title, total=sum(dataset.num_objects(name) for name in names))
        for name in names:
            for observation in dataset.batches(name, BATCH_SIZE):
                rows = [row for row, object_id in enumerate(observation.object_id) if object_id not in hidden]
                if rows:
                    found = True
                    yield observation if len(rows) == len(observation) else observation.select(torch.tensor(rows))
                progress.advance(task, len(observation))
    if not found:
        raise ValueError(f"{dataset.folder}: every object of {list(names)} is held out")
