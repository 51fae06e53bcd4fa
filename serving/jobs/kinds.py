"""What jobs do: embed the objects of an upload, find the neighbours of many objects, fit a probe to many labels.

Work in chunks is a pure function of the upload, the model and the index, row by row: a job that was interrupted goes on
where it stood, and its result is that of one that was not.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from ..formats import bodies
from ..index.protocol import EmbeddingIndexError
from ..probes.fitting import fit_probe
from ..problems import ProblemError, not_found
from ..routes.search_queries import check_k, check_target
from ..schemas.jobs import NeighboursRequest
from ..schemas.probes import ProbeRequest
from ..service import EmbeddedItem, Service
from ..state_stores import stores_of
from .bulk_inputs import open_input
from .jobs import INPUT, JobRecord


@runtime_checkable
class ChunkedWork(Protocol):
    """Work whose result is a table, made a chunk of objects at a time."""

    total: int
    schema: pa.Schema
    index_id: str | None
    """Of the index that the result depends on."""

    def rows(self, start: int, stop: int) -> pa.Table:
        """The result for the objects from `start` to before `stop`."""


class EmbedWork:
    """Vectors of the objects of an upload: one row for each, `error` where one was not usable."""

    def __init__(self, service: Service, place: Path, job: JobRecord) -> None:
        query = {name: str(value) for name, value in job.parameters.items() if name != "space"}
        known = service.known_modalities()
        self._service, self._space = service, str(job.parameters["space"])
        self._input = open_input(place / INPUT, job.media_type, query, known, service.limits)
        self._dimension = service.check_space(self._space)
        self.total = self._input.count
        self.index_id: str | None = None
        provenance = service.provenance(self._space).model_dump()
        self.schema = pa.schema(
            [
                ("object_id", pa.string()),
                ("modalities", pa.list_(pa.string())),
                ("embedding", pa.list_(pa.float32(), self._dimension)),
                ("error", pa.string()),
            ],
            metadata={"provenance": json.dumps(provenance)},
        )

    def rows(self, start: int, stop: int) -> pa.Table:
        """The vectors of a part of the objects."""
        given = self._input.objects(start, stop)
        usable = {n: found for n, found in enumerate(given, start) if not isinstance(found, ProblemError)}
        found = self._service.embed_objects(usable, self._space)
        results = [found[n] if n in usable else given[n - start] for n in range(start, stop)]
        vectors = np.zeros((len(results), self._dimension), np.float32)
        good = np.array([isinstance(result, EmbeddedItem) for result in results])
        for row, result in enumerate(results):
            if isinstance(result, EmbeddedItem):
                vectors[row] = result.vector
        embedding = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), self._dimension, mask=pa.array(~good)
        )
        items = [result if isinstance(result, EmbeddedItem) else None for result in results]
        columns = [
            pa.array([_id_of(n, result, given[n - start]) for n, result in enumerate(results, start)], pa.string()),
            pa.array([None if item is None else list(item.modalities) for item in items], pa.list_(pa.string())),
            embedding,
            pa.array([r.detail if isinstance(r, ProblemError) else None for r in results], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


def _id_of(number: int, result: Any, given: Any) -> str | None:
    if isinstance(result, EmbeddedItem):
        return result.object_id
    if isinstance(given, list):
        name = str(given[0].object_id[0])
        return None if name == bodies.UNNAMED else name
    return None


class NeighboursWork:
    """Neighbours of objects of the index: `k` rows for each, the best first, or one row with an `error`."""

    def __init__(self, service: Service, place: Path, job: JobRecord) -> None:
        self._asked = bodies.parse_json(NeighboursRequest, (place / INPUT).read_bytes())
        self._index = service.only_collection()
        check_k(service, self._asked.k)
        check_target(self._index, self._asked.target_modality)
        if self._asked.modality is not None and self._asked.modality not in self._index.modalities:
            raise not_found("modality of the collection", self._asked.modality, self._index.modalities)
        self.total = len(self._asked.object_ids)
        self.index_id: str | None = self._index.manifest.index_id
        provenance = service.provenance(self._index.manifest.space).model_dump()
        self.schema = pa.schema(
            [
                ("query_id", pa.string()),
                ("rank", pa.int32()),
                ("object_id", pa.string()),
                ("modality", pa.string()),
                ("similarity", pa.float32()),
                ("ra", pa.float64()),
                ("dec", pa.float64()),
                ("error", pa.string()),
            ],
            metadata={"provenance": json.dumps(provenance)},
        )

    def rows(self, start: int, stop: int) -> pa.Table:
        """The neighbours of a part of the objects."""
        ids = self._asked.object_ids[start:stop]
        vectors: dict[int, np.ndarray] = {}
        errors: dict[int, str] = {}
        for place, name in enumerate(ids):
            try:
                vectors[place] = self._index.vector(name, self._asked.modality)
            except LookupError as error:
                errors[place] = str(error)
        rows_of: dict[int, list[dict[str, Any]]] = {
            place: [{"query_id": ids[place], "error": text}] for place, text in errors.items()
        }
        if vectors:
            try:
                found = self._index.search(
                    np.stack(list(vectors.values())),
                    self._asked.k,
                    target_modality=self._asked.target_modality,
                    exclude_each=[ids[place] for place in vectors] if self._asked.exclude_self else None,
                    exact=self._asked.exact,
                )
            except EmbeddingIndexError as error:
                raise ProblemError("invalid-request", str(error)) from None
            for query, place in enumerate(vectors):
                rows_of[place] = [
                    {
                        "query_id": ids[place],
                        "rank": rank,
                        "object_id": str(found.object_id[query, rank]),
                        "modality": str(found.modality[query, rank]),
                        "similarity": float(found.similarity[query, rank]),
                        "ra": _known(found.ra[query, rank]),
                        "dec": _known(found.dec[query, rank]),
                    }
                    for rank in range(found.row.shape[1])
                    if found.row[query, rank] >= 0
                ]
        rows = [row for place in range(len(ids)) for row in rows_of[place]]
        return pa.Table.from_pylist(rows, schema=self.schema)


def _known(coordinate: float) -> float | None:
    return None if np.isnan(coordinate) else float(coordinate)


def do_fit(service: Service, place: Path, job: JobRecord, check: Callable[[], None]) -> dict[str, Any]:
    """Fit the probe that `POST /v1/probes` asked for; its id was chosen when the job came, so it is kept once.

    `check` raises if the job was aborted meanwhile.
    """
    stores, probe_id = stores_of(service), str(job.parameters["probe_id"])
    if stores.probes.get(probe_id) is None:
        asked = bodies.parse_json(ProbeRequest, (place / INPUT).read_bytes())
        probe, record = fit_probe(service, asked, job.idempotency_key, job.fingerprint or "")
        check()
        stores.probes.add(probe, record, probe_id)
    return {"probe_id": probe_id}


CHUNKED: Mapping[str, Callable[[Service, Path, JobRecord], ChunkedWork]] = {
    "embed": EmbedWork,
    "neighbours": NeighboursWork,
}
WHOLE: Mapping[str, Callable[[Service, Path, JobRecord, Callable[[], None]], dict[str, Any]]] = {"fit": do_fit}
