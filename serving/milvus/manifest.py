"""What is told of an index on Milvus: its record, as the engine keeps it and as routes ask for it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...models.neighbour_prediction import NeighbourPredictor
from ..index.protocol import EmbeddingIndexError
from .engine import MilvusEngine

FORMAT_VERSION = 1
BUILDING, BUILT, CHANGING, READY = "building", "built", "changing", "ready"


@dataclass(frozen=True)
class MilvusManifest:
    """An index and its state.

    `content` is a hash over what it was built from and every change since, `recall` was measured when it was built,
    `effort` is how hard a search looks (cells of IVF, candidates of HNSW) where all rows pass. `state` is `building`
    (rows_done of them are in), `built` (whole, not yet behind its name), `ready`, or `changing`: a change was begun and
    not ended, so that the counts may be wrong.
    """

    name: str
    collection: str
    model_id: str
    space: str
    metric: str
    dimension: int
    num_rows: int
    num_objects: int
    num_rows_of_modality: dict[str, int]
    labels: tuple[str, ...]
    metadata: tuple[str, ...]
    index_type: str
    reason: str
    num_cells: int
    content: str
    effort: int = 0
    recall: dict[str, Any] = field(default_factory=dict)
    predictors: dict[str, Any] = field(default_factory=dict)
    state: str = BUILDING
    rows_done: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def index_id(self) -> str:
        """Short hash: equal ids mean equal content and predictors."""
        told = json.dumps([self.content, self.predictors], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def read_predictors(self) -> dict[str, NeighbourPredictor]:
        """The calibrated predictors."""
        return {name: NeighbourPredictor.from_json(json.dumps(entry)) for name, entry in self.predictors.items()}

    def write(self, engine: MilvusEngine) -> None:
        """Keep this as the record of the collection."""
        engine.write_record(self.collection, asdict(self))

    @classmethod
    def read(cls, engine: MilvusEngine, collection: str) -> "MilvusManifest | None":
        """The manifest of a collection, None if it has none. Raises EmbeddingIndexError on one of another format."""
        record = engine.read_record(collection)
        if record is None:
            return None
        known = {f.name for f in fields(cls)}
        if record.get("format_version") != FORMAT_VERSION or set(record) != known:
            raise EmbeddingIndexError(
                f"{engine.address}: the record of {collection!r} has format_version {record.get('format_version')}; "
                f"this Armillary reads {FORMAT_VERSION}"
            )
        return cls(**{**record, "labels": tuple(record["labels"]), "metadata": tuple(record["metadata"])})


def predictor_records(predictors: Mapping[str, NeighbourPredictor] | None) -> dict[str, Any]:
    """Predictors as the record keeps them."""
    return {name: json.loads(predictor.to_json()) for name, predictor in (predictors or {}).items()}
