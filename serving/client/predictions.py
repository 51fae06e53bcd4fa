"""Predictions for several objects over the client: as few requests as the server's limits allow, answers in order."""

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload
from urllib.parse import urlencode

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from ...data.observations import Observation
from ...data.observe import as_observations
from .batches import SAFETENSORS, Batch, objects_of
from .errors import ApiError, api_error
from .requests import Call, json_of, place, post
from .results import FailedObject, Prediction, prediction_of
from .stream import OnError, all_failed, error_of_failed, model_changed, placed

Part = TypeVar("Part")
Found = TypeVar("Found")
Results = list[Prediction | FailedObject]


@dataclass(frozen=True, eq=False)
class Predictions(Sequence[Prediction]):
    """What is predicted of B objects, in order: a sequence of `Prediction`, whose values and bounds are arrays too.

    `errors` are of objects that were not usable, where the caller has let them be skipped; they have no place here.
    """

    items: tuple[Prediction, ...]
    object_id: tuple[str, ...]
    errors: tuple[FailedObject, ...] = ()

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> "Predictions": ...
    def __getitem__(self, place: int | slice) -> "Prediction | Predictions":
        if isinstance(place, slice):
            return replace(self, items=self.items[place], object_id=self.object_id[place])
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def value(self) -> np.ndarray:
        """The values [B], in the unit of each `Prediction`; names where they are classes."""
        return np.array([item.value for item in self.items])

    def interval(self, level: float) -> tuple[Float64[np.ndarray, " B"], Float64[np.ndarray, " B"]]:
        """Lower and upper bounds of this level, NaN where too few objects are known. Raises LookupError."""
        bounds = [item.interval(level) for item in self.items]
        lower, upper = (np.array([getattr(one, side) for one in bounds], np.float64) for side in ("lower", "upper"))
        return lower, upper

    def table(self) -> Any:
        """An astropy QTable with a row for each object: `Prediction.table`, with ids. Raises ValueError if empty."""
        from astropy.table import vstack

        if not self.items:
            raise ValueError("no object has a prediction")
        found = vstack([item.table() for item in self.items], metadata_conflicts="silent")
        found.add_column(np.array(self.object_id, str), index=0, name="object_id")
        return found


@dataclass(frozen=True, eq=False)
class Entries:
    """Objects of one request that are named by their ids or given as vectors; the first has this place among all."""

    first: int
    names: tuple[str, ...]
    content: tuple[dict[str, Any], ...]

    def call(self, asked: Mapping[str, Any], probe: str | None, max_bytes: int) -> Call[Results]:
        """The request; `asked` is what all objects share, of the probe of this id if one is given."""
        return post(_path(probe), {**asked, "input": self.content}, lambda answer: _read(answer, self))


@dataclass(frozen=True, eq=False)
class Measured:
    """Objects of one request that are sent: as tensors where they are alike and the address can say what is asked."""

    batch: Batch

    @property
    def first(self) -> int:
        """The place of the first object among all."""
        return self.batch.first

    @property
    def names(self) -> Sequence[str]:
        """What the objects are called."""
        return [one.object_id for one in self.batch.objects]

    def call(self, asked: Mapping[str, Any], probe: str | None, max_bytes: int) -> Call[Results]:
        """The request, as of `Entries`. Raises TooLargeError."""
        body, media_type = self.batch.body_asking(asked, max_bytes, may_be_raw=probe is None and "cone" not in asked)
        said = {name: str(value).lower() if isinstance(value, bool) else value for name, value in asked.items()}
        path = f"{_path(probe)}?{urlencode(said)}" if media_type == SAFETENSORS else _path(probe)
        return Call("POST", path, lambda answer: _read(json_of(answer), self), body, {"Content-Type": media_type})


Ask = Entries | Measured


def observed(query: Any) -> tuple[Any, bool]:
    """The query with its measurements as observations, and whether it is of one object; else it is a source.

    Of one are an id, a vector [D], and measurements of one object; of several ids, vectors [B, D], measurements of
    several, and a list of items that each stand alone.
    """
    if isinstance(query, str):
        return query, True
    if _is_array(query):
        return query, int(query.ndim) < 2
    if isinstance(query, list | tuple) and not all(isinstance(item, Observation) for item in query):
        return query, False
    given = as_observations(query)
    is_one = len(objects_of(given)) == 1
    # Measurements of several stand together: an object may have some in each observation.
    return given if is_one else [given], is_one


def is_of_entries(source: Any) -> bool:
    """Whether objects are given by vectors [B, D] or by ids, and not by measurements."""
    return _is_array(source) or (
        isinstance(source, list | tuple) and bool(source) and all(isinstance(item, str) for item in source)
    )


def entries_of(source: Any, modality: str | None, max_items: int) -> Iterator[Entries]:
    """Requests for objects given by ids or by vectors [B, D]. Raises ValueError on another shape."""
    if _is_array(source):
        vectors = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
        if vectors.ndim != 2:
            raise ValueError(f"expected vectors [objects, width], found shape {list(vectors.shape)}")
        rows = [row.tobytes() for row in np.ascontiguousarray(vectors, "<f4")]
        content = [{"vector": base64.b64encode(row).decode()} for row in rows]
        names = [str(number) for number in range(len(rows))]
    else:
        names = list(source)
        chosen = {} if modality is None else {"modality": modality}
        content = [{"object_id": name, **chosen} for name in names]
    for start in range(0, len(names), max_items):
        part = slice(start, start + max_items)
        yield Entries(start, tuple(names[part]), tuple(content[part]))


async def answers_to(
    ask: Ask, call: Call[Results], send: Callable[[Call[Results]], Awaitable[Results]], on_error: OnError
) -> list[tuple[str, Prediction | FailedObject]]:
    """The predictions of one request by the names of its objects. Raises ApiError; for an object that is not usable,
    if `on_error` is "raise", with the entries of all such in its document.
    """
    try:
        results = await send(call)
    except ApiError as error:
        # The server has told of each object, or of the request as a whole: then this raises.
        results = list(all_failed(ask.first, ask.names, error))
    failed = [result for result in results if isinstance(result, FailedObject)]
    if failed and on_error == "raise":
        raise error_of_failed(failed)
    return list(zip(ask.names, results, strict=True))


async def in_order(source: Iterator[Part], do: Callable[[Part], Awaitable[Found]], num_in_flight: int) -> list[Found]:
    """What is done of each part, in order; the source is read in a thread, and no more is under way than this."""
    waiting: deque[asyncio.Future[Found]] = deque()
    found: list[Found] = []
    try:
        while (part := await asyncio.to_thread(next, source, None)) is not None:
            if len(waiting) == num_in_flight:
                found.append(await waiting.popleft())
            waiting.append(asyncio.ensure_future(do(part)))
        while waiting:
            found.append(await waiting.popleft())
        return found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def predictions_of(results: Iterable[tuple[str, Prediction | FailedObject]]) -> Predictions:
    """The results of all requests as one. Raises ConflictError if the server changed its model between them."""
    items, names, errors = [], [], []
    for name, result in results:
        if isinstance(result, FailedObject):
            errors.append(result)
            continue
        items.append(result)
        names.append(name)
        models = [one.provenance["model_id"] for one in (items[0], result)]
        if models[0] != models[1]:
            raise model_changed(*models)
    return Predictions(tuple(items), tuple(names), tuple(errors))


def _is_array(query: Any) -> bool:
    return isinstance(query, Tensor) or (isinstance(query, np.ndarray) and not hasattr(query, "unit"))


def _path(probe: str | None) -> str:
    return "/v1/predict" if probe is None else place("v1", "probes", probe, "predict")


def _read(answer: Mapping[str, Any], ask: "Entries | Measured") -> Results:
    """The entries of an answer. Raises ApiError if they are not as many as were asked about."""
    if len(answer["data"]) != len(ask.names):
        detail = f"asked about {len(ask.names)} objects, answered about {len(answer['data'])}"
        raise ApiError(None, {"title": "Not an answer to this", "detail": detail})
    common = {"method": "probe", "neighbours": []} | {name: answer[name] for name in ("property", "unit", "provenance")}
    common |= {"method": answer["method"]} if "method" in answer else {}
    bins = answer.get("bins")
    bounds = {} if bins is None else {name: tuple(bins[name]) for name in ("low", "high")}
    results: Results = []
    for number, (name, datum) in enumerate(zip(ask.names, answer["data"], strict=True)):
        problem = datum["error"]
        if problem is not None:
            error = api_error(problem["status"], placed(problem, ask.first))
            results.append(FailedObject(ask.first + number, name, error))
            continue
        distribution = {**bounds, "probability": datum["probability"]} if bounds else None
        results.append(prediction_of({**common, **datum, "distribution": distribution}))
    return results
