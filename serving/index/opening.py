"""The index at a place, whichever engine keeps it: a folder is FAISS's, an address Milvus's."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...models.neighbour_prediction import NeighbourPredictor
from . import files as index_files
from .embedding_index import EmbeddingIndex
from .place import is_milvus
from .protocol import EmbeddingIndexError, SearchIndex


def open_index(place: str | Path) -> tuple[SearchIndex, dict[str, NeighbourPredictor]]:
    """Open an index folder, `http://HOST:19530#NAME` or `PATH.db#NAME`, with the predictors that were saved with it.

    Raises EmbeddingIndexError if there is none, ImportError if its engine is not installed.
    """
    if is_milvus(place):
        from ..milvus.milvus_index import MilvusIndex

        opened = MilvusIndex.open(place)
        return opened, opened.predictors
    index = EmbeddingIndex.load(place)
    return index, index_files.predictors_of(place, index.manifest)


def manifest_text(place: str | Path) -> str:
    """What an index is, as JSON. Raises EmbeddingIndexError if there is none."""
    if is_milvus(place):
        from ..milvus.milvus_index import MilvusIndex

        return json.dumps(asdict(MilvusIndex.open(place).manifest), indent=2) + "\n"
    return index_files.to_json(index_files.read_manifest(Path(place)))


def check_is_new(place: str | Path) -> None:
    """Raises EmbeddingIndexError if there is something at the place already."""
    if is_milvus(place):
        from ..milvus.milvus_index import MilvusIndex

        MilvusIndex.check_is_new(place)
    else:
        index_files.check_is_new(Path(place))


def build_for(place: str | Path, embeddings: Any, labels: Any = None, **options: Any) -> SearchIndex:
    """Build the index that `save_index` will bring to this place; `options` are those of its class, None = default."""
    options = {name: value for name, value in options.items() if value is not None}
    if is_milvus(place):
        from ..milvus.milvus_index import MilvusIndex

        if "max_memory_gb" in options:
            raise EmbeddingIndexError(f"{place}: max_memory_gb is of indexes in folders; a Milvus server has its own")
        return MilvusIndex.build(place, embeddings, labels, progress=_tell, **options)
    folder = Path(place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return EmbeddingIndex.build(embeddings, labels, draft_in=folder.parent, **options)


def save_index(
    built: SearchIndex, place: str | Path, predictors: Mapping[str, NeighbourPredictor] | None = None
) -> Any:
    """Save what `build_for` made for this place, whole or not at all; the manifest."""
    if isinstance(built, EmbeddingIndex):
        return built.save(place, predictors)
    from ..milvus.milvus_index import MilvusIndex

    if not isinstance(built, MilvusIndex):
        raise TypeError(f"expected an index that build_for made, found {type(built).__name__}")
    return built.publish(predictors)


def _tell(num_done: int, num_rows: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{num_done} of {num_rows} rows" + ("\n" if num_done == num_rows else ""))
