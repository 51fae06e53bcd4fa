"""The Python client: the served model by the method names of the local one.

    with Client("http://127.0.0.1:8000") as client:
        embeddings = client.embed([images, spectra])
        neighbours = client.neighbours(images.select([0]), k=5, target_modality="spectrum/desi")
        redshift = client.predict("scalar/redshift", images.select([0]))

It is the AsyncClient on an event loop in a thread of its own, so that both do the same, and requests of one call are
under way together.
"""

import os
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...data.dataset import ObservationDataset
from ...data.observations import Observation
from ...data.observe import Measurements
from ...models.embeddings import Embeddings
from .async_client import AsyncClient
from .errors import (
    ApiError,
    BusyError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
)
from .jobs import JobRecord
from .loop import EmbeddingStream, LoopThread
from .predictions import Predictions
from .probes import ProbeRecord
from .results import (
    Distribution,
    EmbeddedSet,
    FailedObject,
    Interval,
    Neighbour,
    Neighbours,
    ObjectRecord,
    Prediction,
)
from .stream import OnError

if TYPE_CHECKING:
    from ...models.foundation import ScalarPrediction
    from ...models.generated import GeneratedObservations
    from ...models.generation import Order
    from ...models.probe_loading import AnyProbe

__all__ = [
    "ApiError",
    "AsyncClient",
    "BusyError",
    "Client",
    "ConflictError",
    "Distribution",
    "EmbeddedSet",
    "EmbeddingStream",
    "FailedObject",
    "Interval",
    "InvalidRequestError",
    "JobRecord",
    "Neighbour",
    "Neighbours",
    "NotFoundError",
    "ObjectRecord",
    "Prediction",
    "Predictions",
    "ProbeRecord",
    "TooLargeError",
    "UnauthorizedError",
    "UnreachableError",
]

Answer = TypeVar("Answer")


class Client:
    """A connection to one server; close it, or use it in a `with` block. Threads may share it.

    `api_key` is sent as a bearer token. `timeout` is of one attempt, `deadline` of a request with all its attempts
    (seconds); requests that fail for want of room or of a connection are sent again, with growing waits.
    `num_in_flight` requests of one call are under way at once. `certificates` is a PEM file of the authorities to trust
    with https, in place of the usual ones. Errors are ApiError and its subclasses. Raises ValueError if `url` is no
    address of HTTP.
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
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "deadline": deadline,
            "retries": retries,
            "num_in_flight": num_in_flight,
            "certificates": certificates,
        }
        self._api_key = api_key
        self._remote = AsyncClient(url, api_key, **self._options)
        self._loop = LoopThread()
        self._owner = os.getpid()
        self._is_closed = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._remote.url

    def close(self) -> None:
        """Close the connections, and leave off streams that were not read to their end."""
        if not self._is_closed and self._owner == os.getpid():
            self._loop.close(self._remote.aclose())
        self._is_closed = True

    def embed(self, observations: Measurements, space: str = "aligned", batch_size: int = 64) -> Embeddings:
        """One vector for each object, in order of first appearance, as the local model's `embed`.

        `batch_size` objects go in one request, fewer where /v1/limits says so. Raises ApiError if any object is not
        usable (its document names each), ObservationError if there is none, or one that cannot be sent.
        """
        return self._run(self._here().embed(observations, space, batch_size))

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
    ) -> EmbeddingStream:
        """The embeddings of many objects as a stream: read it part by part, or `collect()` it.

        `source` is a dataset or its folder (with `modality`, one or several), one observation of many objects, or an
        iterable, read in a thread as requests leave. Each of its items stands alone and is what `embed` takes, or a
        function without arguments that returns it. `on_error` "skip" lists the objects that are not usable in the
        stream's `errors` and goes on. `num_in_flight` requests are under way at once; `progress` shows a bar.
        """
        stream = self._here().embed_many(
            source,
            space,
            batch_size,
            modality=modality,
            on_error=on_error,
            progress=progress,
            num_in_flight=num_in_flight,
        )
        return EmbeddingStream(self._loop, stream)

    def predict_scalar(self, observations: Measurements, target: str, batch_size: int = 64) -> "ScalarPrediction":
        """The masked model's distribution of a scalar for each object, as the local model's `predict_scalar`.

        `batch_size` objects go in one request, fewer where /v1/limits says so. Raises ApiError, LookupError for a
        scalar that is not declared.
        """
        return self._run(self._here().predict_scalar(observations, target, batch_size))

    def neighbours(
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
        asked = self._here().neighbours(
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
        return self._run(asked)

    def neighbour_pages(self, query: Any = None, k: int = 100, **options: Any) -> Iterator[Neighbours]:
        """All neighbours that one search may have (`max_neighbours` of `limits()`), k at a time, best first.

        `query` and `options` are those of `neighbours`. Raises ApiError, ConflictError if the index changes meanwhile.
        """
        cursor: str | None = ""
        while cursor is not None:
            page = self.neighbours(query, k, cursor=cursor, **options)
            yield page
            cursor = page.next_cursor

    def predict(
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
        """The value of a property (`scalar/redshift`) from the labels of the nearest neighbours.

        The query is one object, by its id, a vector [D] or measurements, and the answer a `Prediction`; or several:
        ids, vectors [B, D], measurements of several objects, or a list of items of which each stands alone. Then it is
        `Predictions`, as of `predict_many`, where any object that is not usable raises.

        With method `model`, by the masked model: the query is observations, and the other options do not apply. With
        method `probe`, by the probe of this label that the server was started with; with the id of a `probe`, by that
        one. Raises ApiError, ValueError if that probe tells something else.
        """
        asked = self._here().predict(
            property,
            query,
            method=method,
            k=k,
            modality=modality,
            target_modality=target_modality,
            cone=cone,
            exclude_self=exclude_self,
            probe=probe,
        )
        return self._run(asked)

    def predict_many(
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
        """Predictions for many objects, in as few requests as the server allows, several of them at once.

        `source` is a list of ids, vectors [B, D], one observation of many objects, a dataset, or an iterable, read in
        a thread as requests leave, each of whose items stands alone and is what `embed` takes. The other options are
        those of `predict`. `on_error` "skip" lists the objects that are not usable in `errors` and goes on. Raises
        ApiError, ConflictError if the server changes its model meanwhile.
        """
        asked = self._here().predict_many(
            property,
            source,
            method=method,
            k=k,
            modality=modality,
            target_modality=target_modality,
            cone=cone,
            exclude_self=exclude_self,
            probe=probe,
            on_error=on_error,
        )
        return self._run(asked)

    def generate(
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
        """What other modalities of each object may look like, as the local model's `generate`; by `targets`.

        Each object and target is a request of its own: several targets are not drawn together here, and the samples'
        tokens stay on the server. Pixels are those of the observations in `like` (images: squares), or of the
        instrument's card; images need `image_size` else. Raises ApiError, ObservationError.
        """
        made = self._here().generate(
            observations,
            targets,
            num_samples=num_samples,
            seed=seed,
            order=order,
            num_stages=num_stages,
            temperature=temperature,
            top_p=top_p,
            like=like,
            image_size=image_size,
        )
        return self._run(made)

    def fit_probe(
        self,
        label: str,
        objects: Mapping[str, Any] | Embeddings,
        values: Mapping[str, Any] | Sequence[Any] | np.ndarray | None = None,
        *,
        task: str | None = None,
        unit: str | None = None,
        kind: str | None = None,
        modality: str | None = None,
        note: str | None = None,
    ) -> ProbeRecord:
        """Fit a small head to labels, on the server, where it stays; its `id` is for `predict(..., probe=id)`.

        `objects` are labels of objects of the index, {object_id: value}, with `modality` as in `neighbours`; or
        embeddings, with `values`, one for each. Numbers make a regression, names a classification, unless `task` says.
        `kind` is `linear` or `kernel`. A fit of many labels is waited for. Raises ApiError, ValueError.
        """
        fit = self._here().fit_probe(
            label, objects, values, task=task, unit=unit, kind=kind, modality=modality, note=note
        )
        return self._run(fit)

    def probes(self) -> tuple[ProbeRecord, ...]:
        """The probes on the server, the oldest first."""
        return self._run(self._here().probes())

    def probe(self, probe_id: str) -> ProbeRecord:
        """The card of a probe. Raises NotFoundError."""
        return self._run(self._here().probe(probe_id))

    def delete_probe(self, probe_id: str) -> None:
        """Forget a probe. Raises NotFoundError, ConflictError for one that the server was started with."""
        self._run(self._here().delete_probe(probe_id))

    def download_probe(self, probe_id: str) -> "AnyProbe":
        """The probe itself, to predict with here, from embeddings. Raises NotFoundError."""
        return self._run(self._here().download_probe(probe_id))

    def upload_probe(self, probe: "AnyProbe") -> ProbeRecord:
        """Leave a probe that was fitted here, on embeddings of the served model. Raises ApiError."""
        return self._run(self._here().upload_probe(probe))

    def start_embedding_job(
        self,
        path: str | Path,
        space: str = "aligned",
        *,
        modality: str | None = None,
        bands: str | None = None,
        zero_point: float | int | None = None,
    ) -> JobRecord:
        """Leave a file of many objects to be embedded (.safetensors, .arrow, .npy, .fits), of up to gigabytes.

        It is read as it is sent. `modality` and `bands` ("g,r,i") say what a .npy or .fits file holds. Raises ApiError,
        ValueError for another suffix.
        """
        start = self._here().start_embedding_job(path, space, modality=modality, bands=bands, zero_point=zero_point)
        return self._run(start)

    def start_neighbours_job(
        self,
        object_ids: Sequence[str],
        k: int = 10,
        *,
        modality: str | None = None,
        target_modality: str | None = None,
        exclude_self: bool = True,
    ) -> JobRecord:
        """Leave the search for the neighbours of many objects of the index."""
        start = self._here().start_neighbours_job(
            object_ids, k, modality=modality, target_modality=target_modality, exclude_self=exclude_self
        )
        return self._run(start)

    def jobs(self) -> tuple[JobRecord, ...]:
        """The jobs on the server, the newest first."""
        return self._run(self._here().jobs())

    def job(self, job_id: str) -> JobRecord:
        """How far a job is. Raises NotFoundError."""
        return self._run(self._here().job(job_id))

    def wait_for_job(self, job_id: str, progress: bool = False) -> JobRecord:
        """Wait until a job has finished, well or not; `progress` shows a bar. Raises NotFoundError."""
        return self._run(self._here().wait_for_job(job_id, progress))

    def delete_job(self, job_id: str) -> None:
        """Abort a job that is not finished; forget one that is. Raises NotFoundError."""
        self._run(self._here().delete_job(job_id))

    def download_result(self, job_id: str, path: str | Path) -> Path:
        """The result of a job as a file, in the format of its suffix: .parquet, .arrow (a stream), or .npy.

        It appears whole or not at all. Raises ConflictError if the job has no result, ValueError for another suffix.
        """
        return self._run(self._here().download_result(job_id, path))

    def object(self, object_id: str) -> ObjectRecord:
        """What the index knows of an object: position, modalities, labels, links. Raises NotFoundError."""
        return self._run(self._here().object(object_id))

    def modalities(self) -> list[dict[str, Any]]:
        """What can be sent: kind, unit, bands or wavelengths of each modality."""
        return self._run(self._here().modalities())

    def models(self) -> list[dict[str, Any]]:
        """The served model: id, spaces, modalities."""
        return self._run(self._here().models())

    def collections(self) -> list[dict[str, Any]]:
        """What can be searched."""
        return self._run(self._here().collections())

    def limits(self) -> dict[str, int]:
        """What one request may ask for; asked once."""
        return self._run(self._here().limits())

    @property
    def model_id(self) -> str:
        """The id of the served model: a hash of its weights."""
        return self._run(self._here().model_id())

    def embedding_size(self, space: str = "aligned") -> int:
        """Length of the vectors of a space. Raises ObservationError where the model has no such space."""
        return self._run(self._here().embedding_size(space))

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self._loop.run(work)

    def _here(self) -> AsyncClient:
        """The async client of this process: after a fork, connections and threads are the parent's."""
        if self._is_closed:
            raise RuntimeError("the client is closed")
        if self._owner != os.getpid():
            self._remote, self._loop = AsyncClient(self.url, self._api_key, **self._options), LoopThread()
            self._owner = os.getpid()
        return self._remote
