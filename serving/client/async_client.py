"""The Python client for `async` code: the served model by the method names of the local one.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        embeddings = await client.embed([images, spectra])
        async for part in client.embed_many(files, progress=True):
            ...

Requests are data (`requests.py`), and are sent by `transport.py`, again where that helps.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...data.dataset import ObservationDataset
from ...data.modalities import modality as declared_modality
from ...data.observations import Observation, ObservationError
from ...data.observe import Measurements, as_observations
from .batches import Batch, batches, objects_of
from .errors import api_error
from .jobs import (
    JobRecord,
    delete_job_call,
    embed_job_call,
    job_call,
    jobs_call,
    neighbours_job_call,
    result_call,
)
from .predictions import (
    Ask,
    Measured,
    Predictions,
    answers_to,
    entries_of,
    in_order,
    is_of_entries,
    observed,
    predictions_of,
)
from .probes import (
    ProbeRecord,
    delete_probe_call,
    fit_call,
    job_of_fit_call,
    predict_by_probe_call,
    probe_call,
    probe_file_call,
    probe_of,
    probes_call,
    upload_call,
)
from .requests import Call, RetryRules, asked_of_many, checked_url, get, object_call, predict_call
from .results import FailedObject, Neighbours, ObjectRecord, Prediction, scalar_prediction
from .search import neighbours_call
from .sources import count_objects, items_of, observe_item
from .stream import AsyncEmbeddingStream, OnError, Part, progress_bar, send_batch
from .transport import Transport

if TYPE_CHECKING:
    from ...models.embeddings import Embeddings
    from ...models.foundation import ScalarPrediction
    from ...models.generated import GeneratedObservations
    from ...models.generation import Order
    from ...models.probe_loading import AnyProbe

Answer = TypeVar("Answer")


class AsyncClient:
    """A connection to one server, for one event loop; use it in an `async with` block, or `aclose` it.

    `api_key` is sent as a bearer token. `timeout` is of one attempt, `deadline` of a request with all its attempts
    (seconds); see `RetryRules`. Requests that fail for want of room or of a connection are sent again. `num_in_flight`
    requests of one call are under way at once. `certificates` is a PEM file of the authorities to trust with https, in
    place of the usual ones. Errors are ApiError and its subclasses. Raises ValueError if `url` is no address of HTTP.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float | int = 60.0,
        deadline: float | int = 300.0,
        retries: int = 7,
        num_in_flight: int = 4,
        certificates: str | Path | None = None,
    ) -> None:
        self.rules = RetryRules(float(timeout), float(deadline), retries)
        self._transport = Transport(checked_url(url), api_key, self.rules, certificates)
        self.url = self._transport.url
        self.num_in_flight = num_in_flight
        self._limits: dict[str, int] | None = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def embed(self, observations: Measurements, space: str = "aligned", batch_size: int = 64) -> "Embeddings":
        """One vector for each object, in order of first appearance, as the local model's `embed`.

        `batch_size` objects go in one request, fewer where /v1/limits says so. Raises ApiError if any object is not
        usable, ObservationError if there is none, or one that cannot be sent.
        """
        given = as_observations(observations)
        stream = self._stream([given], lambda item, first: item, space, batch_size, len(objects_of(given)))
        return (await stream.collect()).require_all()

    def embed_many(
        self,
        source: Iterable[Any] | ObservationDataset | Observation | str | Path,
        space: str = "aligned",
        batch_size: int = 64,
        *,
        modality: str | Sequence[str] | None = None,
        on_error: OnError = "raise",
        progress: bool = False,
        num_in_flight: int | None = None,
    ) -> AsyncEmbeddingStream:
        """The embeddings of many objects as a stream: read it part by part, or `await stream.collect()`.

        `source` is a dataset or its folder (with `modality`, one or several), one observation of many objects, or an
        iterable, read in a thread as requests leave. Each of its items stands alone and is what `embed` takes, or a
        function without arguments that returns it. `on_error` "skip" lists the objects that are not usable in the
        stream's `errors` and goes on. `num_in_flight` requests are under way at once; `progress` shows a bar.
        """
        return self._stream(
            items_of(source, modality),
            observe_item,
            space,
            batch_size,
            count_objects(source, modality),
            on_error,
            progress,
            num_in_flight,
        )

    async def predict_scalar(self, observations: Measurements, target: str, batch_size: int = 64) -> "ScalarPrediction":
        """The masked model's distribution of a scalar for each object, as the local model's `predict_scalar`.

        `batch_size` objects go in one request, fewer where /v1/limits says so. Raises ApiError, LookupError for a
        scalar that is not declared.
        """
        wanted = declared_modality(target)
        given = [o for o in as_observations(observations) if o.modality.name != target]
        if not given:
            raise ObservationError(f"expected at least one observation other than {target}, found none")
        asked = {"property": target, "method": "model"}
        found = await self._predict_all(await self._measured([given], batch_size), asked)
        prediction: ScalarPrediction = scalar_prediction(wanted, found.object_id, found.items)
        return prediction

    async def neighbours(
        self,
        query: Any = None,
        k: int = 10,
        *,
        modality: str | None = None,
        target_modality: str | None = None,
        cone: Sequence[Any] | None = None,
        exclude: Sequence[str] = (),
        exclude_self: bool = True,
        with_labels: bool = False,
        collection: str = "objects",
        survey: str | None = None,
        where: Mapping[str, tuple[float | None, float | None]] | None = None,
        positive: Sequence[Any] = (),
        negative: Sequence[Any] = (),
        negative_weight: float | int = 1.0,
        exact: bool = False,
        cursor: str | None = None,
    ) -> Neighbours:
        """The k nearest neighbours of an object's id, a vector [D], or measurements of one object; best first.

        In place of `query`, `positive` and `negative` are examples, each such a query or a Neighbour: the mean of the
        positive less `negative_weight` times the mean of the negative is searched for. `modality` says which vector of
        an object in the index is meant, `target_modality` which kind of neighbour is wanted, `survey` whose neighbours.
        `cone` is (ra, dec, radius) in degrees, ICRS, or as astropy quantities; `where` has ranges of metadata,
        `{"scalar/legacysurvey_r": (17, None)}`; `exact` compares every vector. `cursor` is the `next_cursor` of the
        same search; `neighbour_pages` follows it. Raises ApiError.
        """
        call = neighbours_call(
            query,
            k,
            modality=modality,
            target_modality=target_modality,
            cone=cone,
            exclude=exclude,
            exclude_self=exclude_self,
            with_labels=with_labels,
            collection=collection,
            survey=survey,
            where=where,
            positive=positive,
            negative=negative,
            negative_weight=negative_weight,
            exact=exact,
            cursor=cursor,
        )
        return await self.send(call)

    async def neighbour_pages(self, query: Any = None, k: int = 100, **options: Any) -> AsyncIterator[Neighbours]:
        """All neighbours that one search may have, k at a time, best first; see `Client.neighbour_pages`."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.neighbours(query, k, cursor=cursor, **options)
            yield page
            cursor = page.next_cursor

    async def predict(
        self,
        property: str,
        query: Any,
        *,
        method: str = "neighbours",
        k: int | None = None,
        modality: str | None = None,
        target_modality: str | None = None,
        cone: Sequence[Any] | None = None,
        exclude_self: bool = True,
        probe: str | None = None,
    ) -> "Prediction | Predictions":
        """The value of a property (`scalar/redshift`) from the labels of the nearest neighbours; see `Client`."""
        given, is_one = observed(query)
        if not is_one:
            return await self.predict_many(
                property,
                given,
                method=method,
                k=k,
                modality=modality,
                target_modality=target_modality,
                cone=cone,
                exclude_self=exclude_self,
                probe=probe,
            )
        if probe is not None:
            return await self.send(predict_by_probe_call(probe, property, given, modality))
        return await self.send(predict_call(property, given, method, k, modality, target_modality, cone, exclude_self))

    async def predict_many(
        self,
        property: str,
        source: Any,
        *,
        method: str = "neighbours",
        k: int | None = None,
        modality: str | None = None,
        target_modality: str | None = None,
        cone: Sequence[Any] | None = None,
        exclude_self: bool = True,
        probe: str | None = None,
        on_error: OnError = "raise",
    ) -> Predictions:
        """Predictions for many objects, in as few requests as the server allows; see `Client.predict_many`."""
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', found {on_error!r}")
        if is_of_entries(source):
            asks: Iterator[Ask | FailedObject] = entries_of(source, modality, (await self.limits())["max_items"])
        elif modality is not None:
            raise ValueError("modality says which vector of an object of the index is meant; found measurements")
        else:
            asks = await self._measured(items_of(source, None))
        asked = asked_of_many(property, method, k, target_modality, cone, exclude_self)
        found = await self._predict_all(asks, asked if probe is None else {}, probe, on_error)
        if found.items and found[0].property != property:
            raise ValueError(f"probe {probe!r} tells {found[0].property!r}, not {property!r}")
        return found

    async def generate(
        self,
        observations: Measurements,
        targets: Sequence[str],
        *,
        num_samples: int = 1,
        seed: int = 0,
        order: "Order" = "maskgit",
        num_stages: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
        like: Sequence[Observation] = (),
        image_size: int | None = None,
    ) -> "dict[str, ScalarPrediction | GeneratedObservations]":
        """What other modalities of each object may look like, as the local model's `generate`; see `Client`."""
        from .generate import generate_call, generated

        wanted = [declared_modality(name) for name in targets]
        given = [o for o in as_observations(observations) if o.modality.name not in targets]
        if not given or not wanted:
            raise ObservationError(f"expected observations other than of {list(targets)}, and a target; found none")
        options: dict[str, Any] = {
            "num_samples": num_samples,
            "seed": seed,
            "order": order,
            "num_stages": num_stages,
            "temperature": temperature,
            "top_p": top_p,
        } | ({} if image_size is None else {"image_size": image_size})
        objects = objects_of(given)
        found: dict[str, ScalarPrediction | GeneratedObservations] = {}
        for target in wanted:
            if target.kind == "scalar":
                found[target.name] = await self.predict_scalar(given, target.name)
                continue
            calls = [generate_call(one, target, options, like) for one in objects]
            samples: list[tuple[Observation, ...]] = await self._together([partial(self.send, call) for call in calls])
            found[target.name] = generated(target, [one.object_id for one in objects], samples)
        return found

    async def fit_probe(
        self,
        label: str,
        objects: "Mapping[str, Any] | Embeddings",
        values: Mapping[str, Any] | Sequence[Any] | np.ndarray | None = None,
        *,
        task: str | None = None,
        unit: str | None = None,
        kind: str | None = None,
        modality: str | None = None,
        note: str | None = None,
    ) -> ProbeRecord:
        """Fit a small head to labels, on the server, where it stays; see `Client.fit_probe`."""
        options = {"task": task, "unit": unit, "kind": kind, "modality": modality, "note": note}
        answer = await self.send(fit_call(label, objects, values, options))
        while "phase" in answer:
            if answer["phase"] == "COMPLETED":
                return await self.probe(str(answer["probe_id"]))
            if answer["phase"] in ("ERROR", "ABORTED"):
                problem = answer["error"] or {"title": "The fit was aborted", "detail": f"job {answer['id']}"}
                raise api_error(problem.get("status", 409), problem)
            answer = await self.send(job_of_fit_call(answer["id"], min(20.0, self.rules.timeout / 2)))
        return probe_of(answer)

    async def probes(self) -> tuple[ProbeRecord, ...]:
        """The probes on the server, the oldest first."""
        return await self.send(probes_call())

    async def probe(self, probe_id: str) -> ProbeRecord:
        """The card of a probe. Raises NotFoundError."""
        return await self.send(probe_call(probe_id))

    async def delete_probe(self, probe_id: str) -> None:
        """Forget a probe. Raises NotFoundError, ConflictError for one that the server was started with."""
        await self.send(delete_probe_call(probe_id))

    async def download_probe(self, probe_id: str) -> "AnyProbe":
        """The probe itself, to predict with here, from embeddings. Raises NotFoundError."""
        from ...models.probe_loading import probe_from_bytes

        content = await self.send(probe_file_call(probe_id))
        return await asyncio.to_thread(probe_from_bytes, content, None, f"probe {probe_id}")

    async def upload_probe(self, probe: "AnyProbe") -> ProbeRecord:
        """Leave a probe that was fitted here, on embeddings of the served model. Raises ApiError."""
        from ...models.probe_bytes import probe_bytes

        return await self.send(upload_call(probe_bytes(probe)))

    async def start_embedding_job(
        self,
        path: str | Path,
        space: str = "aligned",
        *,
        modality: str | None = None,
        bands: str | None = None,
        zero_point: float | int | None = None,
    ) -> JobRecord:
        """Leave a file of many objects to be embedded; see `Client.start_embedding_job`."""
        options = {"space": space, "modality": modality, "bands": bands, "zero_point": zero_point}
        return await self.send(embed_job_call(path, options))

    async def start_neighbours_job(
        self,
        object_ids: Sequence[str],
        k: int = 10,
        *,
        modality: str | None = None,
        target_modality: str | None = None,
        exclude_self: bool = True,
    ) -> JobRecord:
        """Leave the search for the neighbours of many objects of the index."""
        options = {"k": k, "modality": modality, "target_modality": target_modality, "exclude_self": exclude_self}
        return await self.send(neighbours_job_call(object_ids, options))

    async def jobs(self) -> tuple[JobRecord, ...]:
        """The jobs on the server, the newest first."""
        return await self.send(jobs_call())

    async def job(self, job_id: str) -> JobRecord:
        """How far a job is. Raises NotFoundError."""
        return await self.send(job_call(job_id, 0.0))

    async def wait_for_job(self, job_id: str, progress: bool = False) -> JobRecord:
        """Wait until a job has finished, well or not; `progress` shows a bar. Raises NotFoundError."""
        with progress_bar(progress, None) as advance:
            done = 0
            while True:
                found = await self.send(job_call(job_id, min(20.0, self.rules.timeout / 2)))
                advance(found.num_done - done)
                done = found.num_done
                if found.is_finished:
                    return found

    async def delete_job(self, job_id: str) -> None:
        """Abort a job that is not finished; forget one that is. Raises NotFoundError."""
        await self.send(delete_job_call(job_id))

    async def download_result(self, job_id: str, path: str | Path) -> Path:
        """The result of a job as a file, by its suffix .parquet, .arrow or .npy; see `Client.download_result`."""
        return await self.send(result_call(job_id, path))

    async def object(self, object_id: str) -> ObjectRecord:
        """What the index knows of an object: position, modalities, labels, links. Raises NotFoundError."""
        return await self.send(object_call(object_id))

    async def modalities(self) -> list[dict[str, Any]]:
        """What can be sent: kind, unit, bands or wavelengths of each modality."""
        return await self.send(get("/v1/modalities", lambda answer: list(answer["modalities"])))

    async def models(self) -> list[dict[str, Any]]:
        """The served model: id, spaces, modalities."""
        return await self.send(get("/v1/models", lambda answer: list(answer["data"])))

    async def collections(self) -> list[dict[str, Any]]:
        """What can be searched."""
        return await self.send(get("/v1/collections", lambda answer: list(answer["collections"])))

    async def limits(self) -> dict[str, int]:
        """What one request may ask for; asked once."""
        if self._limits is not None:
            return self._limits
        limits: dict[str, int] = await self.send(get("/v1/limits", lambda answer: dict(answer)))
        self._limits = limits
        return limits

    async def model_id(self) -> str:
        """The id of the served model: a hash of its weights."""
        return str((await self.models())[0]["id"])

    async def embedding_size(self, space: str = "aligned") -> int:
        """Length of the vectors of a space. Raises ObservationError where the model has no such space."""
        spaces = (await self.models())[0]["spaces"]
        if space not in spaces:
            raise ObservationError(f"the model has no space {space!r}; it has {list(spaces)}")
        return int(spaces[space])

    async def send(self, call: Call[Answer]) -> Answer:
        """Send a request until it is answered, by the rules of `RetryRules`. Raises ApiError."""
        return await self._transport.send(call)

    async def _measured(self, items: Iterable[Any], batch_size: int | None = None) -> Iterator[Ask | FailedObject]:
        """Requests for the objects of these items, as large as they may be."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        limits = await self.limits()
        most = limits["max_items"] if batch_size is None else min(batch_size, limits["max_items"])
        parts = batches(items, observe_item, most, limits["max_body_bytes"])
        return (Measured(part) if isinstance(part, Batch) else part for part in parts)

    async def _predict_all(
        self,
        asks: Iterator[Ask | FailedObject],
        asked: Mapping[str, Any],
        probe: str | None = None,
        on_error: OnError = "raise",
    ) -> Predictions:
        max_bytes = (await self.limits())["max_body_bytes"]

        async def one(ask: Ask | FailedObject) -> list[tuple[str, Prediction | FailedObject]]:
            if not isinstance(ask, FailedObject):
                call = await asyncio.to_thread(ask.call, asked, probe, max_bytes)
                return await answers_to(ask, call, self.send, on_error)
            if on_error == "raise":
                raise ask.error
            return [(ask.object_id, ask)]

        parts = await in_order(asks, one, self.num_in_flight)
        return predictions_of(result for part in parts for result in part)

    async def _together(self, asked: Sequence[Callable[[], Coroutine[Any, Any, Answer]]]) -> list[Answer]:
        """The answers to all, in order, `num_in_flight` under way at once; the first error cancels the others."""
        slots = asyncio.Semaphore(self.num_in_flight)

        async def one(ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
            async with slots:
                return await ask()

        tasks = [asyncio.create_task(one(ask)) for ask in asked]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _stream(
        self,
        items: Iterable[Any],
        observe: Callable[[Any, int], Sequence[Observation]],
        space: str,
        batch_size: int,
        total: int | None,
        on_error: OnError = "raise",
        progress: bool = False,
        num_in_flight: int | None = None,
    ) -> AsyncEmbeddingStream:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")

        async def split() -> Iterator[Batch | FailedObject]:
            limits = await self.limits()
            return batches(items, observe, min(batch_size, limits["max_items"]), limits["max_body_bytes"])

        async def send(batch: Batch) -> Part:
            limits = await self.limits()
            return await send_batch(batch, space, limits["max_body_bytes"], self.send)

        return AsyncEmbeddingStream(
            split, send, self.num_in_flight if num_in_flight is None else num_in_flight, on_error, progress, total
        )
