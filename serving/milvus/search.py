"""A search on Milvus: how hard it looks, what it does where the engine gives too few, and the exact way.

A flat collection compares every vector, and a hit less than asked for means that no more rows match. The other types
look at a part of the rows: the fewer pass the filters, the more cells. Where they give fewer hits than rows match, all
cells are looked at; and where that is too few still (a server searches segments that are too small for its structure by
a coarse one of its own), every row that matches is read and compared here: slow, and right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from ..index.cone import Cone
from ..index.protocol import EmbeddingIndexError, Neighbours
from ..index.vectors import NearestSoFar
from .engine import MAX_HITS, MilvusEngine
from .manifest import MilvusManifest
from .rows import POSITION, decode_number

ENGINE_TYPES = {"flat": "FLAT", "ivf": "IVF_FLAT", "ivf_sq8": "IVF_SQ8", "hnsw": "HNSW"}
"""The same words as for FAISS, and Milvus's."""
K_OF_EFFORT = 10
"""Neighbours for which the effort was chosen; for more of them, more is looked at."""
FEW_ROWS = 50_000
"""Where no more rows pass, every cell is looked at."""
MOST_CANDIDATES = 4096
"""Of a graph."""
MOST_ROWS_READ = 2_000_000
"""By one exact search: minutes, for 512 numbers each."""
COLUMNS = ("object_id", "modality", *POSITION)

_SPARE_HITS = 16
_CODED_FACTOR = 2
"""Candidates for each wanted neighbour that are compared again by their stored vectors, where codes are coarse."""
_CONE_FACTOR = 2
"""A cone holds at least 0.6 of the box around it, if objects lie evenly."""


@dataclass(frozen=True, eq=False)
class Found:
    """Hits of Q queries, best first; row -1 and similarity -inf where there are fewer."""

    row: Int64[np.ndarray, "Q K"]
    similarity: Float32[np.ndarray, "Q K"]


def nearest(
    engine: MilvusEngine,
    manifest: MilvusManifest,
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    expression: str,
    cone: Cone | None = None,
    *,
    exact: bool = False,
    effort: int | None = None,
) -> Found:
    """The `k` most similar rows among those that pass; `effort` overrules what was found when the index was built.

    `expression` holds the box of the cone already.
    """
    is_flat = manifest.index_type == "flat"
    factor = max(_CODED_FACTOR if manifest.index_type == "ivf_sq8" else 1, 1 if cone is None else _CONE_FACTOR)
    wanted = k if factor == 1 else factor * k + _SPARE_HITS
    if k > MAX_HITS or (exact and not is_flat):
        return _compare_all(engine, manifest, queries, k, expression, cone)
    matches = manifest.num_rows
    if expression and not is_flat:
        matches = engine.count(manifest.collection, expression)
        if not matches:
            return _nothing(len(queries))
    parameters = _parameters(manifest, k, matches, effort)
    while True:
        limit = min(wanted, MAX_HITS)
        hits = engine.search(manifest.collection, queries, limit, expression, parameters, COLUMNS)
        short = [len(h) < limit for h in hits]
        inside = hits if cone is None else [_inside(h, cone) for h in hits]
        if not is_flat and any(len(h) < min(limit, matches) for h in hits):
            # Fewer than there are: all cells, and then all rows.
            every = _parameters(manifest, k, 1, None)
            if parameters == every:
                return _compare_all(engine, manifest, queries, k, expression, cone)
            parameters = every
            continue
        if all(is_short or len(h) >= k for is_short, h in zip(short, inside, strict=True)):
            break
        if limit == MAX_HITS:
            return _compare_all(engine, manifest, queries, k, expression, cone)
        wanted = 4 * limit
    found = _table(inside, max(map(len, inside), default=0))
    if manifest.index_type == "ivf_sq8":
        found = _compared_again(engine, manifest, queries, found)
    return Found(found.row[:, :k], found.similarity[:, :k])


def neighbours(engine: MilvusEngine, manifest: MilvusManifest, found: Found) -> Neighbours:
    """What was found, with the objects that it is."""
    ids = np.unique(found.row[found.row >= 0])
    rows = {int(row["id"]): row for row in engine.rows_by_id(manifest.collection, ids.tolist(), COLUMNS)}
    shape = found.row.shape
    # A row that was removed since the search is found no more.
    told = [rows.get(int(row)) for row in found.row.reshape(-1)]
    is_there = np.array([row is not None for row in told], bool).reshape(shape)
    text = {
        name: np.array(["" if row is None else row[name] for row in told], object).reshape(shape)
        for name in ("object_id", "modality")
    }
    place = {
        name: np.array([math.nan if row is None else decode_number(row[name]) for row in told], np.float64).reshape(
            shape
        )
        for name in POSITION
    }
    return Neighbours(
        row=np.where(is_there, found.row, -1),
        similarity=np.where(is_there, found.similarity, np.float32(-np.inf)),
        **text,
        **place,
    )


def _parameters(manifest: MilvusManifest, k: int, matches: int, effort: int | None) -> dict[str, int]:
    if manifest.index_type == "flat":
        return {}
    wanted = manifest.effort if effort is None else effort
    # The best 100 of all lie as far as the best 10 of every tenth row.
    share = max(1, matches) / max(1, manifest.num_rows) * min(1.0, K_OF_EFFORT / k)
    if manifest.index_type == "hnsw":
        least = 2 * k
        return {"ef": max(least, min(MOST_CANDIDATES, math.ceil(wanted / share)))}
    if effort is None and matches <= FEW_ROWS:
        return {"nprobe": manifest.num_cells}
    return {"nprobe": max(1, min(manifest.num_cells, math.ceil(wanted / share)))}


def _inside(hits: list[dict[str, Any]], cone: Cone) -> list[dict[str, Any]]:
    ra, dec = (np.array([decode_number(hit[name]) for hit in hits], np.float64) for name in POSITION)
    return [hit for hit, is_in in zip(hits, cone.contains(ra, dec), strict=True) if is_in]


def _table(hits: Sequence[Sequence[dict[str, Any]]], width: int) -> Found:
    row = np.full((len(hits), width), -1, np.int64)
    similarity = np.full((len(hits), width), -np.inf, np.float32)
    for query, mine in enumerate(hits):
        row[query, : len(mine)] = [hit["id"] for hit in mine]
        similarity[query, : len(mine)] = [hit["similarity"] for hit in mine]
    return Found(row, similarity)


def _nothing(num_queries: int) -> Found:
    return Found(np.full((num_queries, 0), -1, np.int64), np.full((num_queries, 0), -np.inf, np.float32))


def _compared_again(
    engine: MilvusEngine, manifest: MilvusManifest, queries: Float32[np.ndarray, "Q D"], found: Found
) -> Found:
    """The same hits, in the order of their stored vectors."""
    ids = np.unique(found.row[found.row >= 0])
    stored = stored_vectors(engine, manifest, ids.tolist())
    similarity = np.full(found.row.shape, -np.inf, np.float32)
    for query, vector in enumerate(queries):
        for place, row in enumerate(found.row[query]):
            if int(row) in stored:
                similarity[query, place] = vector @ stored[int(row)]
    order = np.argsort(-similarity, axis=1, kind="stable")
    return Found(np.take_along_axis(found.row, order, 1), np.take_along_axis(similarity, order, 1))


def stored_vectors(engine: MilvusEngine, manifest: MilvusManifest, ids: Sequence[int]) -> dict[int, np.ndarray]:
    """The unit vectors [D] of the rows that are there, by id."""
    rows = engine.rows_by_id(manifest.collection, ids, ["vector"], 8 * manifest.dimension)
    return {int(row["id"]): np.asarray(row["vector"], np.float32) for row in rows}


def _compare_all(
    engine: MilvusEngine,
    manifest: MilvusManifest,
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    expression: str,
    cone: Cone | None,
) -> Found:
    """Every row that passes is read, a block at a time, and compared here.

    Raises EmbeddingIndexError if they are too many.
    """
    num_rows = engine.count(manifest.collection, expression)
    if num_rows > MOST_ROWS_READ:
        raise EmbeddingIndexError(
            f"an exact search of {num_rows} rows on Milvus reads them all, and at most {MOST_ROWS_READ} are allowed; "
            "filter more, ask for fewer neighbours, or leave out exact"
        )
    best = NearestSoFar(len(queries), min(k, manifest.num_rows))
    row_bytes = 8 * manifest.dimension + 100
    for block in engine.every_row(manifest.collection, expression, ["vector", *POSITION], row_bytes):
        if cone is not None:
            block = _inside(block, cone)
        if block:
            vectors = np.array([row["vector"] for row in block], np.float32)
            best.update(queries @ vectors.T, np.array([int(row["id"]) for row in block], np.int64))
    row = np.where(np.isneginf(best.similarity), -1, best.row)
    width = int((row >= 0).sum(1).max(initial=0))
    return Found(row[:, :width], best.similarity[:, :width])
