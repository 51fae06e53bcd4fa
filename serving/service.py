"""What the routes share: the model behind its engine, the index, the predictors, and the work that they do together.

Everything here blocks, and runs in a worker thread; the event loop only moves bytes. The engine alone asks the model,
so that requests share batches and do not fight for memory; searches need no turn.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import anyio
import anyio.to_thread
import numpy as np
import torch
from jaxtyping import Float32

from ..data.dataset import ObservationDataset
from ..data.modalities import Modality
from ..data.observations import Observation, ObservationError
from ..data.simulation.record import simulated_prefix
from ..models.embeddings import SPACES, Embeddings
from ..models.foundation import FoundationModel, ScalarPrediction
from ..models.neighbour_prediction import NeighbourPredictor
from ..models.probe_loading import AnyProbe
from ..models.token_embeddings import TokenEmbeddings
from .engine import Engine, EngineSettings
from .formats import bodies
from .index.protocol import EmbeddingIndexError, ObjectSearch, SearchIndex
from .index.recall_sample import RecallSample, SearchSettings
from .limits import Limits
from .middleware.callers import caller
from .middleware.metrics import ServerMetrics
from .problems import ProblemError, at, not_found, pointer
from .scalar_batches import predict_in_batches
from .schemas.common import Provenance, QueryBody, StoredItem
from .token_cache import TokenCachingModel

WORKERS = 64
"""Requests with a body that are worked on at once: most of them wait in the engine's queue."""
ALIAS = "armillary"
"""The name by which a caller may ask for whatever model is served."""

Answer = TypeVar("Answer")


@runtime_checkable
class EmbeddingModel(Protocol):
    """What the service needs of a model; `models.foundation.FoundationModel` is one."""

    model_id: str
    modalities: tuple[Modality, ...]

    def embedding_size(self, space: str) -> int:
        """Length of the vectors of a space. Raises ObservationError where the model has no such space."""

    def embed(self, observations: Sequence[Observation], space: str = "aligned") -> Embeddings:
        """One vector for each object, in order of first appearance."""

    def predict_scalar(self, observations: Sequence[Observation], target: str) -> ScalarPrediction:
        """The distribution of a scalar for each object, given whatever else is observed."""


@dataclass(frozen=True)
class EmbeddedItem:
    """The vector [D] of one item, float32, and the modalities that it came from."""

    vector: np.ndarray
    object_id: str | None
    modalities: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Query:
    """A query ready to search with; `object_id` is that of the object that is asked about, where it has one.

    `modalities` are those its vector came from, none where only the vector was given.
    """

    vector: Float32[np.ndarray, "1 D"]
    object_id: str | None
    modalities: tuple[str, ...] = ()


@dataclass(eq=False)
class Service:
    """The state of a server. `model` is None while it loads. Raises EmbeddingIndexError if model and index differ."""

    loaded: EmbeddingModel | None
    index: SearchIndex | None = None
    predictors: Mapping[str, NeighbourPredictor] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    probes: Mapping[str, AnyProbe] = field(default_factory=dict)
    dataset: ObservationDataset | None = None
    """The observations behind the index, where the server was given them: pictures and spectra come from it."""
    simulated_prefix: str | None = field(init=False)
    """How the ids of simulated objects begin, by the record of the dataset; None without a dataset or a record."""
    state: Path | None = None
    """Folder of what callers leave on the server (probes, jobs); without it, they may leave nothing."""
    batching: EngineSettings = field(default_factory=EngineSettings)
    searching: SearchSettings = field(default_factory=SearchSettings)
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    is_draining: bool = False
    """Whether the server is about to stop: it answers still, but wants no new callers."""
    _slots: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(WORKERS), repr=False)
    _short_slots: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(2 * (os.cpu_count() or 1)), repr=False
    )
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _num_reading: int = field(default=0, repr=False)
    reopen: Callable[[], tuple[SearchIndex, Mapping[str, NeighbourPredictor]]] | None = None
    """Opens the index anew from where it lies, with its predictors; None where the server has none."""

    def __post_init__(self) -> None:
        self.simulated_prefix = None if self.dataset is None else simulated_prefix(self.dataset.folder)
        self.engine = Engine(
            lambda observations, space: self.model.embed(observations, space),
            self.batching,
            self.metrics,
            lambda: self._num_reading,
        )
        self.recall = RecallSample(self.searching.recall_sample, self.metrics, lambda: self.engine.num_waiting > 0)
        self._searchable = (self.index, self.predictors)
        if self.loaded is not None:
            self.take(self.loaded)

    def take(self, model: EmbeddingModel) -> None:
        """Serve this model from now on. Raises EmbeddingIndexError if index or predictors belong to another."""
        _check_searchable(self.index, self.predictors, model.model_id)
        for label, probe in self.probes.items():
            if probe.model_id_ != model.model_id:
                raise EmbeddingIndexError(
                    f"the probe of {label} was fitted on model {probe.model_id_!r}, but the model to serve is "
                    f"{model.model_id!r}"
                )
        self.engine.forget()
        max_bytes = self.batching.token_cache_mib * 2**20
        if max_bytes and isinstance(model, FoundationModel):
            model = TokenCachingModel(model, max_bytes, self.metrics)
        self.loaded = model

    def swap(self, index: SearchIndex, predictors: Mapping[str, NeighbourPredictor]) -> None:
        """Search this index from now on, with its predictors; requests in hand end with the one they began with.

        Raises EmbeddingIndexError if they belong to another model than the one served.
        """
        if self.loaded is not None:
            _check_searchable(index, predictors, self.loaded.model_id)
        self._searchable = (index, predictors)
        self.index, self.predictors = index, predictors

    def reload(self) -> SearchIndex:
        """Open the index anew and search it from now on. Raises ProblemError (409) if that cannot be done.

        Whatever goes wrong, the index that was served is served still.
        """
        if self.reopen is None:
            raise ProblemError("conflict", "this server was started without an index that can be opened again")
        try:
            index, predictors = self.reopen()
            self.swap(index, predictors)
        except (EmbeddingIndexError, OSError, ValueError) as error:
            raise ProblemError("conflict", f"the index is as before; the new one was refused: {error}") from None
        return index

    def is_simulated(self, object_id: str) -> bool | None:
        """Whether an object is of the simulated sky; None where no record says which objects are."""
        return None if self.simulated_prefix is None else object_id.startswith(self.simulated_prefix)

    @property
    def in_use(self) -> tuple[SearchIndex | None, Mapping[str, NeighbourPredictor]]:
        """The index and the predictors that belong to it, for a request those that it first asked for."""
        here = caller()
        if here.is_bulk:
            return self._searchable
        if here.begun_with is None:
            here.begun_with = self._searchable
        begun_with: tuple[SearchIndex | None, Mapping[str, NeighbourPredictor]] = here.begun_with
        return begun_with

    def searchable(self) -> tuple[SearchIndex, Mapping[str, NeighbourPredictor]]:
        """`in_use`. Raises ProblemError (404) if the server has no index."""
        index, predictors = self.in_use
        if index is None:
            raise ProblemError("not-found", "this server has no index")
        return index, predictors

    async def in_worker(self, work: Callable[[], Answer], *, is_short: bool = False) -> Answer:
        """Do blocking work in a thread of its own pool: however many requests wait, other routes have threads.

        Work that `is_short` never waits for the model. Only as many of it are done at once as there are processors:
        more threads would take turns of the interpreter from each other, and all be slow.
        """

        def one_processor() -> Answer:
            _use_one_processor()
            return work()

        if is_short:
            return await anyio.to_thread.run_sync(one_processor, limiter=self._short_slots)
        self._count(1)
        try:
            return await anyio.to_thread.run_sync(one_processor, limiter=self._slots)
        finally:
            self._count(-1)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """While a request waits for the model, it is not one that will come to it soon."""
        if caller().is_bulk:
            # Jobs are no requests that are being read.
            yield
            return
        self._count(-1)
        try:
            yield
        finally:
            self._count(1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._num_reading += change

    @property
    def model(self) -> EmbeddingModel:
        """The model. Raises ProblemError (503) while it loads."""
        if self.loaded is None:
            raise ProblemError("not-ready", "the model is still loading")
        return self.loaded

    def known_modalities(self) -> dict[str, Modality]:
        """What observations may be of, by name."""
        return bodies.known_modalities(self.model.modalities)

    def spaces(self) -> dict[str, int]:
        """The spaces that the model has, and the length of their vectors."""
        found = {}
        for space in SPACES:
            try:
                found[space] = self.model.embedding_size(space)
            except ObservationError:
                # A model that was not aligned yet has one space only.
                continue
        return found

    def check_space(self, space: str, *place: str | int) -> int:
        """The length of the space's vectors. Raises ProblemError (409) if the model has no such space."""
        spaces = self.spaces()
        if space not in spaces:
            detail = f"the model {self.model.model_id} has no space {space!r}; it has {list(spaces)}"
            raise ProblemError("conflict", detail, [at(pointer(*place), detail)] if place else [])
        return spaces[space]

    def check_model(self, name: str | None) -> None:
        """Raises ProblemError (404) if a request names another model."""
        if name not in (None, ALIAS, self.model.model_id):
            raise not_found("model", str(name), [self.model.model_id, ALIAS])

    def collection(self, name: str) -> SearchIndex:
        """The collection of this name. Raises ProblemError (404)."""
        index, _ = self.in_use
        if index is None:
            raise ProblemError("not-found", f"no collection {name!r}: this server has no index")
        if name != index.manifest.name:
            raise not_found("collection", name, [index.manifest.name])
        return index

    def only_collection(self) -> SearchIndex:
        """The index. Raises ProblemError (404) if the server has none."""
        return self.searchable()[0]

    def provenance(self, space: str, index: SearchIndex | None = None) -> Provenance:
        """What an answer in this space was made with: `index`, by default the one in use."""
        searched = self.in_use[0] if index is None else index
        if searched is None:
            return Provenance(model_id=self.model.model_id, space=space)
        manifest = searched.manifest
        return Provenance(model_id=self.model.model_id, index_id=manifest.index_id, space=space, metric=manifest.metric)

    def embed_objects(
        self, objects: Mapping[int, Sequence[Observation]], space: str
    ) -> dict[int, EmbeddedItem | ProblemError]:
        """One vector for each numbered object, all in one batch; a problem for those the model cannot embed."""
        if not objects:
            return {}
        with self._asking():
            found = self.engine.embed(list(objects.values()), space, self.model.model_id)
        results: dict[int, EmbeddedItem | ProblemError] = {}
        for (number, observations), result in zip(objects.items(), found, strict=True):
            if isinstance(result, ObservationError):
                where = pointer("input", number)
                results[number] = ProblemError("invalid-observation", f"{where}: {result}", [at(where, str(result))])
            elif isinstance(result, Exception):
                raise result
            elif not np.isfinite(result[0]).all():
                # Fluxes near the largest number: JSON has no NaN, and no search a direction.
                where, detail = pointer("input", number), "the model has no finite vector for these values"
                results[number] = ProblemError("invalid-observation", f"{where}: {detail}", [at(where, detail)])
            else:
                vector, modalities = result
                object_id = observations[0].object_id[0]
                results[number] = EmbeddedItem(vector, None if object_id == bodies.UNNAMED else object_id, modalities)
        return results

    def embed_tokens(self, observations: Sequence[Observation], layers: Sequence[int]) -> TokenEmbeddings:
        """Vectors of the tokens of the one object of these observations. Raises ProblemError."""
        if not hasattr(self.model, "embed_tokens"):
            raise ProblemError("conflict", f"the model {self.model.model_id} gives no vectors of single tokens")
        try:
            embed_tokens = self.model.embed_tokens
            with self._asking():
                found: TokenEmbeddings = self.engine.call(lambda: embed_tokens(observations, layers))
                return found
        except ObservationError as error:
            where = pointer("observations")
            raise ProblemError("invalid-observation", f"{where}: {error}", [at(where, str(error))]) from None

    def predict_scalar(self, observations: Sequence[Observation], target: str) -> ScalarPrediction:
        """The model's distribution of `target` for the one object of these observations. Raises ProblemError."""
        result = self.predict_scalars({0: observations}, target)[0]
        if isinstance(result, ObservationError):
            where = pointer("observations")
            raise ProblemError("invalid-observation", f"{where}: {result}", [at(where, str(result))])
        return result

    def predict_scalars(
        self, objects: Mapping[int, Sequence[Observation]], target: str
    ) -> dict[int, ScalarPrediction | ObservationError]:
        """The model's distribution of `target` for each numbered object, or why there is none.

        Whatever ids the caller gave, the observations of an entry are of one object. Raises ProblemError.
        """
        scalars = [modality.name for modality in self.model.modalities if modality.kind == "scalar"]
        if target not in scalars:
            raise not_found("scalar of the model", target, scalars)
        model = self.model
        with self._asking():
            return predict_in_batches(self.engine, lambda given: model.predict_scalar(given, target), objects)

    def query(self, body: QueryBody, index: SearchIndex) -> Query:
        """The query of a search or a prediction as a vector. Raises ProblemError."""
        ways = [name for name in ("vector", "object_id", "observations") if getattr(body, name) is not None]
        if len(ways) != 1:
            detail = f"expected exactly one of vector, object_id and observations; found {ways or 'none'}"
            raise ProblemError("invalid-request", detail, [at("", detail)])
        if body.modality is not None and body.object_id is None:
            detail = "goes with object_id alone, and says which of its vectors is meant"
            raise ProblemError("invalid-request", f"/modality: {detail}", [at("/modality", detail)])
        if body.vector is not None:
            vector = bodies.vector_of(body.vector, ("vector",))
            if len(vector) != index.manifest.dimension:
                detail = f"expected {index.manifest.dimension} numbers, found {len(vector)}"
                raise ProblemError("invalid-request", f"/vector: {detail}", [at("/vector", detail)])
            return Query(vector[None], None)
        if body.object_id is not None:
            vector = _stored_vector(index, body.object_id, body.modality)
            return Query(vector[None], body.object_id, _stored_modalities(index, body.object_id, body.modality))
        space = index.manifest.space
        self.check_space(space)
        observations = bodies.observations_of(
            {"observations": body.observations}, (), self.known_modalities(), self.limits
        )
        result = self.embed_objects({0: observations}, space)[0]
        if isinstance(result, ProblemError):
            raise ProblemError(result.kind, result.detail, [at("/observations", e["detail"]) for e in result.errors])
        return Query(result.vector[None], result.object_id, result.modalities)

    def stored(self, item: StoredItem, space: str, place: bodies.Place) -> EmbeddedItem:
        """The vector of an object of the index. Raises ProblemError that points to `place`."""
        index = self.only_collection()
        if space != index.manifest.space:
            detail = f"the index holds vectors of the space {index.manifest.space!r}, not {space!r}"
            raise ProblemError("conflict", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
        try:
            vector = _stored_vector(index, item.object_id, item.modality)
        except ProblemError as problem:
            where = pointer(*place, "object_id")
            raise ProblemError(problem.kind, problem.detail, [at(where, problem.detail)]) from None
        return EmbeddedItem(vector, item.object_id, _stored_modalities(index, item.object_id, item.modality))


def _check_searchable(index: SearchIndex | None, predictors: Mapping[str, NeighbourPredictor], model_id: str) -> None:
    if index is not None:
        index.require_model(model_id)
    for name, predictor in predictors.items():
        if predictor.gallery == "objects" and index is not None and not isinstance(index, ObjectSearch):
            raise EmbeddingIndexError(f"the predictor of {name} finds objects by means, which this index has not")
        if predictor.model_id not in (None, model_id):
            raise EmbeddingIndexError(
                f"the predictor of {name} was calibrated with model {predictor.model_id!r}, but the model to serve is "
                f"{model_id!r}"
            )


_OF_THREAD = threading.local()


def _use_one_processor() -> None:
    """Keep torch in this thread to one processor: the model's thread needs the others."""
    if not getattr(_OF_THREAD, "is_narrow", False):
        torch.set_num_threads(1)
        _OF_THREAD.is_narrow = True


def _stored_vector(index: SearchIndex, object_id: str, modality: str | None) -> Float32[np.ndarray, " D"]:
    try:
        return index.vector(object_id, modality)
    except LookupError as error:
        raise ProblemError("not-found", str(error)) from None


def _stored_modalities(index: SearchIndex, object_id: str, modality: str | None) -> tuple[str, ...]:
    return (modality,) if modality is not None else index.modalities_of(object_id)
