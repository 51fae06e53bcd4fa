"""An index on Milvus is built: into a collection of its own, which readers see under its name once it is whole.

Rows go in in batches; the record says how far. Whoever runs the same build again after it was killed goes on there, for
what an engine has acknowledged it keeps; a build from other embeddings begins anew. Recall is measured, and the effort
of searches chosen, against an exact search over the same embeddings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from ..index.protocol import EmbeddingIndexError
from ..index.vectors import NearestSoFar
from .engine import MilvusEngine, num_cells
from .manifest import BUILDING, BUILT, READY, MilvusManifest
from .rows import POSITION, SKY, filter_expression, make_row, number_fields
from .search import ENGINE_TYPES, K_OF_EFFORT, nearest
from .source import MilvusSource, ObjectNumbers

METRIC = "inner product of unit vectors"
INSERT_BYTES = 8_000_000
ROWS_PER_RECORD = 50_000
"""Rows after which the record says how far a build is; as many may be written again after a kill."""
LITE_CELLS = 128
"""Of every IVF structure of milvus-lite, whatever is asked for."""
CODED_ABOVE_BYTES = 64e9
"""Vectors above which IVF keeps 8 bits a number: four times fewer machines."""
NUM_QUERIES = 200
"""Of each kind; half of them choose the effort, half measure."""
SHARES = (1.0, 0.1, 0.01)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """A type and why."""

    index_type: str
    reason: str


def choose_type(num_rows: int, dimension: int, wanted: str | None, flat_limit: int, is_lite: bool) -> Choice:
    """The type for so many rows; `wanted` overrules. Raises EmbeddingIndexError on one that Milvus has not."""
    if wanted is not None:
        if wanted not in ENGINE_TYPES:
            raise EmbeddingIndexError(f"index_type on Milvus must be one of {list(ENGINE_TYPES)}, found {wanted!r}")
        return Choice(wanted, f"{num_rows} rows; {wanted} was asked for")
    if is_lite:
        return Choice("flat", f"{num_rows} rows in milvus-lite, which is for tests and notebooks: all are compared")
    if num_rows <= flat_limit:
        return Choice("flat", f"{num_rows} rows, at most {flat_limit}: every vector is compared, which is exact")
    size = num_rows * dimension * 4
    above = f"{num_rows} rows, above {flat_limit}: IVF, which keeps its recall under filters, as HNSW does not"
    if size <= CODED_ABOVE_BYTES:
        return Choice("ivf", f"{above}; floats, for {size / 1e9:.3g} GB are at most {CODED_ABOVE_BYTES / 1e9:g} GB")
    return Choice("ivf_sq8", f"{above}; 8 bits a number, for floats take {size / 1e9:.3g} GB; hits are compared again")


def build(
    engine: MilvusEngine,
    source: MilvusSource,
    labels: ObjectNumbers,
    metadata: ObjectNumbers,
    *,
    index_type: str | None,
    flat_limit: int,
    target_recall: float,
    progress: Progress | None,
) -> MilvusManifest:
    """Write all rows into a new collection, or go on with one that was begun; the manifest, in state `built`."""
    name = engine.address.name
    plan = source.plan(labels.told, metadata.told, repr((index_type, flat_limit, target_recall)))
    num_rows = len(plan.row_id)
    if not num_rows:
        raise EmbeddingIndexError("no embeddings to index")
    strangers = labels.unknown(plan.object_hash)
    if strangers:
        raise EmbeddingIndexError(f"{len(strangers)} labelled objects have no embedding; the first: {strangers[0]!r}")
    choice = choose_type(num_rows, source.dimension, index_type, flat_limit, engine.address.is_lite)
    cells = 0
    if choice.index_type.startswith("ivf"):
        cells = LITE_CELLS if engine.address.is_lite else num_cells(num_rows, source.dimension)
    current = engine.collection_behind(name)
    generation = 1 + (-1 if current is None else int(current.rpartition("_")[2]))
    wanted = MilvusManifest(
        name=name,
        collection=f"{name}_{plan.fingerprint[:12]}_{generation}",
        model_id=source.model_id,
        space=source.space,
        metric=METRIC,
        dimension=source.dimension,
        num_rows=num_rows,
        num_objects=len(plan.object_hash),
        num_rows_of_modality=plan.num_rows_of_modality,
        labels=tuple(labels.columns),
        metadata=tuple(metadata.columns),
        index_type=choice.index_type,
        reason=choice.reason,
        num_cells=cells,
        content=plan.fingerprint,
    )
    manifest, is_resumed = _begun(engine, wanted, current)
    if manifest.state == BUILDING:
        manifest = _fill(engine, manifest, source, labels, metadata, progress, is_resumed=is_resumed)
    engine.load(manifest.collection)
    found = engine.catch_up(manifest.collection)
    if found != num_rows:
        raise EmbeddingIndexError(
            f"{engine.address}: {num_rows} rows were written and {found} are there; drop the index and build it anew"
        )
    if manifest.state == BUILDING:
        manifest = _tuned(engine, manifest, source, plan.row_id, target_recall)
        manifest = replace(manifest, state=BUILT)
        manifest.write(engine)
    return manifest


def publish(engine: MilvusEngine, manifest: MilvusManifest, predictors: dict[str, Any]) -> MilvusManifest:
    """Let readers see a built collection under its name; what was there under it before goes at the next build."""
    ready = replace(manifest, state=READY, predictors=predictors)
    ready.write(engine)
    engine.point(manifest.name, manifest.collection)
    return ready


def _begun(engine: MilvusEngine, wanted: MilvusManifest, current: str | None) -> tuple[MilvusManifest, bool]:
    """The build that was interrupted and True, if it was this one; else a new one. What others left is swept away."""
    for collection in engine.builds_of(wanted.name):
        if collection in (current, wanted.collection):
            continue
        left = MilvusManifest.read(engine, collection)
        if left is None or left.name == wanted.name:
            engine.drop(collection)
    if wanted.collection in engine.builds_of(wanted.name):
        begun = MilvusManifest.read(engine, wanted.collection)
        if begun is not None and begun.state in (BUILDING, BUILT):
            return begun, True
        engine.drop(wanted.collection)
    fields = number_fields(wanted.labels, wanted.metadata)
    engine.create(
        wanted.collection,
        wanted.dimension,
        [*POSITION, *SKY, *fields.values()],
        ENGINE_TYPES[wanted.index_type],
        wanted.num_cells,
    )
    wanted.write(engine)
    return wanted, False


def _fill(
    engine: MilvusEngine,
    manifest: MilvusManifest,
    source: MilvusSource,
    labels: ObjectNumbers,
    metadata: ObjectNumbers,
    progress: Progress | None,
    *,
    is_resumed: bool,
) -> MilvusManifest:
    fields = number_fields(manifest.labels, manifest.metadata)
    done = manifest.rows_done
    # After a kill, rows beyond those of the record may be there.
    doubtful = done + ROWS_PER_RECORD if is_resumed else 0
    step = max(1, min(5000, INSERT_BYTES // (4 * manifest.dimension + 300)))
    for block in source.blocks(step, skip=done):
        rows = []
        for place, (object_id, modality) in enumerate(zip(block.object_id, block.modality, strict=True)):
            if block.start + place < done:
                continue
            numbers = dict.fromkeys(fields.values(), float("nan"))
            for kind, given in (("label", labels), ("metadata", metadata)):
                for name, value in (given.of(object_id) or {}).items():
                    numbers[fields[f"{kind}:{name}"]] = value
            ra, dec = float(block.ra[place]), float(block.dec[place])
            rows.append(make_row(object_id, modality, ra, dec, numbers, block.vectors[place]))
        write = engine.upsert if block.start < doubtful else engine.insert
        write(manifest.collection, rows)
        stop = block.start + len(block.object_id)
        if stop - manifest.rows_done >= ROWS_PER_RECORD:
            engine.to_disk(manifest.collection)
            manifest = replace(manifest, rows_done=stop)
            manifest.write(engine)
        if progress is not None:
            progress(stop, manifest.num_rows)
    engine.finish(manifest.collection)
    return manifest


def _tuned(
    engine: MilvusEngine,
    manifest: MilvusManifest,
    source: MilvusSource,
    ids: Int64[np.ndarray, " R"],
    target: float,
) -> MilvusManifest:
    """The manifest with the least effort that finds `target` of the nearest for both kinds of query, and its recall."""
    if manifest.index_type == "flat":
        return replace(manifest, recall={"exact": True})
    trials = _make_trials(source, ids, list(manifest.num_rows_of_modality))
    whole = [trial for trial in trials if trial.share == 1]
    most = manifest.num_cells or 4096
    effort = min(2 if manifest.num_cells else 16, most)
    if not whole:  # one row
        effort = most
    while effort < most and np.nanmin([t.recall(engine, manifest, effort, 0) for t in whole]) < target:
        effort = min(2 * effort, most)
    tuned = replace(manifest, effort=effort)
    by_share: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        by_share.setdefault(str(trial.share), {}).setdefault(trial.kind, []).append(
            trial.recall(engine, tuned, None, 1)
        )
    recall = {
        "k": K_OF_EFFORT,
        "target": target,
        "num_queries": sum(len(trial.queries[1::2]) for trial in whole),
        "by_share_that_passes": {
            share: {kind: round(float(np.nanmean(v)), 4) for kind, v in kinds.items() if not np.isnan(v).all()}
            for share, kinds in by_share.items()
        },
    }
    return replace(tuned, recall=recall)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Queries of one kind for rows of one modality, of which a share passes a filter, and what they should find."""

    kind: str
    target_modality: str
    share: float
    queries: Float32[np.ndarray, "Q D"]
    own_id: Int64[np.ndarray, " Q"]
    nearest: Int64[np.ndarray, "Q K"]

    def recall(self, engine: MilvusEngine, manifest: MilvusManifest, effort: int | None, half: int) -> float:
        """The share of true neighbours that are found by the queries of one half; NaN if there are none."""
        every = slice(half, None, 2)
        expression = filter_expression([self.target_modality], [], None, [], {})
        if self.share < 1:
            expression += f" and id < {_id_below(self.share)}"
        found = nearest(engine, manifest, self.queries[every], K_OF_EFFORT + 1, expression, effort=effort)
        hits = wanted = 0
        for row, own, true in zip(found.row, self.own_id[every], self.nearest[every], strict=True):
            kept = [r for r in row.tolist() if r != own and r >= 0][:K_OF_EFFORT]
            hits += len(set(kept) & set(true[true >= 0].tolist()))
            wanted += int((true >= 0).sum())
        return hits / wanted if wanted else math.nan


def _id_below(share: float) -> int:
    """Ids are hashes, so that those below a bound are a random share of all."""
    return int(share * 2**63)


def _make_trials(source: MilvusSource, ids: Int64[np.ndarray, " R"], modalities: list[str]) -> list[_Trial]:
    """One pass for the vectors of the queries, one for their true neighbours."""
    asked = set(np.random.default_rng(0).permutation(ids)[: NUM_QUERIES * max(2, len(modalities))].tolist())
    own, kinds, vectors = [], [], []
    for block in source.blocks(4096):
        here = ids[block.start : block.start + len(block.object_id)]
        for place in np.flatnonzero([int(i) in asked for i in here]):
            own.append(int(here[place]))
            kinds.append(block.modality[place])
            vectors.append(block.vectors[place])
    queries, own_id, kind = np.stack(vectors), np.array(own, np.int64), np.array(kinds, object)
    best = {(m, share): NearestSoFar(len(queries), K_OF_EFFORT) for m in modalities for share in SHARES}
    for block in source.blocks(4096):
        here = ids[block.start : block.start + len(block.object_id)]
        similarity = queries @ block.vectors.T
        similarity[own_id[:, None] == here[None]] = -np.inf
        names = np.array(block.modality, object)
        for (modality, share), found in best.items():
            chosen = (names == modality) & (here < _id_below(share) if share < 1 else True)
            if chosen.any():
                found.update(similarity[:, chosen], here[chosen])
    trials = []
    for (modality, share), found in best.items():
        true = np.where(np.isneginf(found.similarity), -1, found.row)
        for name, mine in (("same_modality", kind == modality), ("cross_modal", kind != modality)):
            places = np.flatnonzero(mine)[:NUM_QUERIES]
            if len(places) > 1:
                trials.append(_Trial(name, modality, share, queries[places], own_id[places], true[places]))
    return trials
