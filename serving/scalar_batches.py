"""The masked model's distribution of a scalar for many objects: those that were seen in the same way share a batch."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from ..data.observations import Observation, ObservationError
from ..data.stacking import stack_objects
from ..models.foundation import ScalarPrediction
from .engine import Engine, form_of

Objects = Mapping[int, Sequence[Observation]]
Predict = Callable[[Sequence[Observation]], ScalarPrediction]
Predicted = dict[int, ScalarPrediction | ObservationError]


def predict_in_batches(engine: Engine, predict: Predict, objects: Objects) -> Predicted:
    """For each numbered object its distribution, or why there is none; the engine has turns for others in between.

    Raises as `Engine.call` does.
    """
    by_form: dict[Hashable, list[int]] = {}
    for number, observations in objects.items():
        by_form.setdefault(form_of(observations), []).append(number)
    found: Predicted = {}
    for numbers in by_form.values():
        for start in range(0, len(numbers), engine.settings.max_batch):
            found |= _predicted(engine, predict, objects, numbers[start : start + engine.settings.max_batch])
    return found


def _predicted(engine: Engine, predict: Predict, objects: Objects, numbers: list[int]) -> Predicted:
    """A batch that fails is halved until the object at fault is alone."""
    stacked = stack_objects([objects[number] for number in numbers])
    try:
        found = engine.call(lambda: predict(stacked))
    except ObservationError as error:
        middle = len(numbers) // 2
        if not middle:
            return {numbers[0]: error}
        halves = (numbers[:middle], numbers[middle:])
        return {n: r for half in halves for n, r in _predicted(engine, predict, objects, half).items()}
    row_of = {object_id: row for row, object_id in enumerate(found.object_id)}
    rows = {number: row_of[str(place)] for place, number in enumerate(numbers)}
    return {
        number: replace(found, object_id=(str(number),), probabilities=found.probabilities[row : row + 1])
        for number, row in rows.items()
    }
