"""What every index can do, whichever engine holds the vectors: the surface that routes, predictions and the demo use.

`embedding_index.py` implements it with FAISS on one machine, `milvus/milvus_index.py` by a Milvus server. Each class
also has `build`, and an opener of its own (`EmbeddingIndex.load(folder)`, `MilvusIndex.open(uri)`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int64

from .cone import Cone

Ranges = Mapping[str, tuple[float | None, float | None]]
"""Inclusive ranges of metadata columns, such as {"scalar/legacysurvey_r": (18.0, 19.5)}; None leaves an end open."""


class EmbeddingIndexError(ValueError):
    """An index cannot be built, read or searched so; the message says what was expected, what came, and where."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The K most similar rows for each of Q queries, best first.

    Where fewer than K rows match, the rest hold row -1, similarity -inf, an empty `object_id` and NaN positions. A row
    number means something to the index that gave it, and until that index changes.
    """

    row: Int64[np.ndarray, "Q K"]
    similarity: Float32[np.ndarray, "Q K"]
    object_id: np.ndarray
    modality: np.ndarray
    ra: Float64[np.ndarray, "Q K"]
    dec: Float64[np.ndarray, "Q K"]

    def select(self, places: Sequence[int]) -> "Neighbours":
        """Of each query, the neighbours at these places, in this order."""
        chosen = np.asarray(places, np.int64)
        return Neighbours(**{f.name: getattr(self, f.name)[:, chosen] for f in fields(self)})


@dataclass(frozen=True, eq=False)
class RowBlock:
    """B rows of an index: whose they are, where on the sky (degrees), their labels, and their unit vectors."""

    object_id: np.ndarray
    """[B] of str."""
    modality: np.ndarray
    """[B] of str."""
    ra: Float64[np.ndarray, " B"]
    dec: Float64[np.ndarray, " B"]
    labels: Mapping[str, Float64[np.ndarray, " B"]]
    vectors: Float32[np.ndarray, "B D"]


@runtime_checkable
class IndexManifest(Protocol):
    """What is told of an index."""

    @property
    def name(self) -> str:
        """The name of the collection."""

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""

    @property
    def space(self) -> str:
        """`encoder` or `aligned`."""

    @property
    def metric(self) -> str:
        """How vectors are compared."""

    @property
    def dimension(self) -> int:
        """The width of the vectors."""

    @property
    def num_rows(self) -> int:
        """Vectors that can be found."""

    @property
    def num_objects(self) -> int:
        """Objects that have one of them or more."""

    @property
    def num_rows_of_modality(self) -> dict[str, int]:
        """Vectors by modality."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns of numbers that are known of some objects and hidden for others: what is predicted."""

    @property
    def metadata(self) -> tuple[str, ...]:
        """Columns of numbers by whose ranges a search may be filtered; known of all objects, NaN where not measured."""

    @property
    def index_type(self) -> str:
        """How the vectors are kept."""

    @property
    def reason(self) -> str:
        """Why they are kept so."""

    @property
    def index_id(self) -> str:
        """Short hash: equal ids mean equal content."""


@runtime_checkable
class SearchIndex(Protocol):
    """Rows of unit vectors, one for each (object, modality), searched by cosine similarity under filters."""

    @property
    def manifest(self) -> IndexManifest:
        """What the index is."""

    @property
    def model_id(self) -> str:
        """Whose vectors these are."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the rows, sorted."""

    def __len__(self) -> int:
        """Rows that can be found."""

    def require_model(self, model_id: str) -> None:
        """Raises EmbeddingIndexError unless the vectors come from this model."""

    def search(
        self,
        vectors: Float[np.ndarray, "Q D"],
        k: int,
        *,
        target_modality: str | None = None,
        exclude: Iterable[str] = (),
        exclude_each: Sequence[str] | None = None,
        cone: Cone | None = None,
        has_label: str | None = None,
        survey: str | None = None,
        where: Ranges | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """The `k` rows most similar to each query, among those that pass every filter.

        `target_modality` keeps rows of one modality, `survey` those of one survey (the part of a modality's name after
        the slash), `exclude` drops objects for all queries, `exclude_each` drops one object for each query (itself;
        ids that are not there drop nothing), `cone` keeps objects on a part of the sky, `has_label` those that have
        this label, `where` those within ranges of metadata. Fewer than `k` columns come back where fewer rows match,
        none where none does. `exact` compares every vector. Equal similarities come in order of object id, then of
        modality, by Unicode code points. Queries need not have unit length. Raises LookupError on an unknown modality,
        survey, label or metadata column, EmbeddingIndexError on queries of wrong width, without direction, or not
        finite, and on k below 1.
        """

    def add(self, embeddings: Any, labels: Any = None, metadata: Any = None) -> None:
        """Add rows (a table, a folder of shards, or shards); an (object, modality) that is there is replaced.

        `labels` and `metadata` are tables with `object_id` and columns of numbers. On return all is on disk. Raises
        EmbeddingIndexError on another model, space or dimension, and where one call gives a row twice.
        """

    def remove(self, object_ids: Iterable[str]) -> None:
        """Remove all rows and labels of these objects. Raises LookupError, and removes none, if one is not there."""

    def vector(self, object_id: str, modality: str | None = None) -> Float32[np.ndarray, " D"]:
        """The unit vector of an object's `modality`; without one, the normalised mean over its modalities.

        Raises LookupError that names the nearest known object, or the modalities that the object has.
        """

    def vectors(self, object_ids: Sequence[str], modality: str) -> Float32[np.ndarray, "B D"]:
        """The unit vectors of many objects, in their order. Raises LookupError that names the first that has none."""

    def objects_with(self, modality: str) -> list[str]:
        """The ids of all objects that have a vector of this modality, sorted; empty if there is no such modality."""

    def row_blocks(self) -> Iterator[RowBlock]:
        """All rows that can be found, in blocks of bounded size, in no order that means anything.

        What is changed meanwhile may or may not be seen.
        """

    def modalities_of(self, object_id: str) -> tuple[str, ...]:
        """The modalities of an object, sorted; empty if it is not there."""

    def position_of(self, object_id: str) -> tuple[float, float]:
        """`ra` and `dec` in degrees, ICRS; NaN where unknown. Raises LookupError if the object is not there."""

    def nearest_id(self, object_id: str) -> str:
        """The known id that shares the longest beginning with this one."""

    def labels_of(self, object_id: str) -> dict[str, float]:
        """The known labels of an object by column; empty where it has none."""

    def label_of_rows(self, name: str, row: Int[np.ndarray, "Q K"]) -> Float64[np.ndarray, "Q K"]:
        """The label `name` of the objects in these rows, NaN where unknown and for row -1. Raises LookupError."""


@runtime_checkable
class ObjectSearch(Protocol):
    """An index that finds its labelled objects by the mean of their vectors too."""

    @property
    def num_labelled(self) -> int:
        """Objects with a label."""

    def search_objects(
        self,
        vectors: Float[np.ndarray, "Q D"],
        k: int,
        *,
        has_label: str,
        exclude: Iterable[str] = (),
        exclude_each: Sequence[str] | None = None,
        cone: Cone | None = None,
    ) -> Neighbours:
        """The `k` objects with this label whose mean of unit vectors is most similar to each query: each compared.

        `similarity` is the cosine to that mean, `modality` joins those that it is of by `+`, and `row` is one of the
        object's. Filters, filling up and errors are those of `SearchIndex.search`.
        """
