"""The index against bare FAISS and against exact search, on made-up vectors: recall, queries per second, memory.

Vectors of two modalities are made up: points of a curved surface in 512 dimensions, in overlapping clusters, each
object once in either modality, with noise of its own and an offset between the modalities. They are written as float16
shards, from which `EmbeddingIndex.build` builds in a process of its own, whose peak memory is told. Queries were not
indexed. Bare FAISS searches the same structure with the same parameters in the same batches, in turns with ours.
`recall_at_10` is the lower of same-modality and cross-modal; `ratio_to_faiss` is our queries per second over FAISS's
in batches, the median of the turns.

    python benchmarks/index.py [--quick] [--rows N] [--index-type TYPE] [--max-memory-gb GB] [--folder FOLDER]
"""

import argparse
import functools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from armillary.models.embeddings import EmbeddingTable, write_embedding_shard
from armillary.serving.index.building import open_vectors
from armillary.serving.index.cone import Cone
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.index.index_types import search_parameters
from armillary.serving.index.part import SearchablePart

MODALITIES = ("image/hsc", "spectrum/desi")
LATENTS, HIDDEN, CLUSTERS = 24, 256, 2000
SCATTER, NOISE, OFFSET = 0.6, 0.3, 0.7
SHARD_ROWS = 50_000
K = 10
MAGNITUDE = "scalar/legacysurvey_r"


def make_objects(count: int, dimension: int, seed: int) -> dict[str, np.ndarray]:
    """Made-up vectors of `count` objects by modality, float16 [count, dimension], unit length."""
    fixed = np.random.default_rng(7)
    centres = fixed.normal(size=(CLUSTERS, LATENTS)).astype(np.float32)
    inward = (fixed.normal(size=(LATENTS, HIDDEN)) / np.sqrt(LATENTS)).astype(np.float32)
    outward = (fixed.normal(size=(HIDDEN, dimension)) / np.sqrt(HIDDEN)).astype(np.float32)
    offsets = fixed.normal(size=(len(MODALITIES), dimension)).astype(np.float32)
    offsets *= OFFSET / np.linalg.norm(offsets, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    latent = centres[rng.integers(0, CLUSTERS, count)] + SCATTER * rng.normal(size=(count, LATENTS)).astype(np.float32)
    made = {}
    for modality, offset in zip(MODALITIES, offsets, strict=True):
        seen = latent + 0.15 * rng.normal(size=latent.shape).astype(np.float32)
        vectors = np.tanh(1.5 * np.tanh(seen) @ inward) @ outward
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors += NOISE / np.sqrt(dimension) * rng.normal(size=vectors.shape).astype(np.float32) + offset
        made[modality] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return made


def write_shards(folder: Path, num_rows: int, dimension: int) -> dict[str, Any]:
    """Write the shards; the metadata of their objects."""
    count = num_rows // len(MODALITIES)
    for start in range(0, count, SHARD_ROWS):
        stop = min(start + SHARD_ROWS, count)
        rng = np.random.default_rng([1, start])
        ra, dec = rng.uniform(0, 360, stop - start), np.degrees(np.arcsin(rng.uniform(-1, 1, stop - start)))
        for modality, vectors in make_objects(stop - start, dimension, 100 + start).items():
            path = folder / f"{modality.replace('/', '-')}-{start:08}.parquet"
            ids = object_ids(start, stop)
            write_embedding_shard(path, ids, modality, vectors, model_id="made-up", space="aligned", ra=ra, dec=dec)
    magnitude = np.random.default_rng(2).uniform(16, 22, count)
    return {"object_id": object_ids(0, count), MAGNITUDE: magnitude}


def object_ids(start: int, stop: int) -> list[str]:
    """Ids as long as a survey's."""
    return [f"39627{number:012}" for number in range(start, stop)]


def build(shards: Path, index: Path, options: argparse.Namespace) -> dict[str, float]:
    """Build and save; the seconds, and the peak memory above what the imports take. Runs in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metadata = np.load(shards / "magnitude.npy")
    started, cpu = time.perf_counter(), time.process_time()
    built = EmbeddingIndex.build(
        shards,
        metadata={"object_id": object_ids(0, len(metadata)), MAGNITUDE: metadata},
        index_type=options.index_type,
        max_memory_gb=options.max_memory_gb,
        flat_limit=options.flat_limit,
        draft_in=index.parent,
    )
    built.save(index)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "build_s": time.perf_counter() - started,
        "build_cpu_s": time.process_time() - cpu,
        "build_peak_rss_gb": peak / 1e6,
        "imports_rss_gb": before / 1e6,
    }


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """The share of the true neighbours that was found."""
    return float((found[:, :, None] == true[:, None, :]).any(1).mean())


def rates(ours: Callable[[], Any], bare: Callable[[], Any], num_queries: int, turns: int) -> dict[str, float]:
    """Queries per second of both, in turns, and the medians of their ratios: by the clock, and by CPU seconds."""
    ours(), bare()
    seconds = np.zeros((turns, 2, 2))
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            clock, cpu = time.perf_counter(), time.process_time()
            (ours, bare)[which]()
            seconds[turn, which] = time.perf_counter() - clock, time.process_time() - cpu
    ratio = np.median(seconds[:, 1] / seconds[:, 0], axis=0)
    middle = num_queries / np.median(seconds[:, :, 0], axis=0)
    per_query = 1e3 / num_queries * np.median(seconds[:, :, 1], axis=0)
    return {
        "ours_per_s": float(middle[0]),
        "faiss_per_s": float(middle[1]),
        "ratio": float(ratio[0]),
        "ours_cpu_ms": float(per_query[0]),
        "faiss_cpu_ms": float(per_query[1]),
        "cpu_ratio": float(ratio[1]),
    }


def bare_search(part: SearchablePart, queries: np.ndarray, k: int, chosen: np.ndarray | None) -> np.ndarray:
    """FAISS alone with the parameters that ours takes."""
    import faiss

    num_chosen = len(part.rows) if chosen is None else int(chosen.sum())
    selector = None if chosen is None else faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
    effort = part.effort(k, num_chosen) if part.part.effort else 0
    parameters = search_parameters(part.part.index_type, effort, selector)
    sought = k * max(1, part.part.candidates)
    rows: np.ndarray = part.structure.search(queries, sought, params=parameters)[1]
    return rows


def measure(index: EmbeddingIndex, num_queries: int, turns: int) -> dict[str, Any]:
    """Recall and speed for queries of the same and of the other modality, alone and under filters."""
    target = MODALITIES[1]
    part = index._state.parts[target]
    queries = {
        "same_modality": make_objects(num_queries, index.manifest.dimension, 1)[target].astype(np.float32),
        "cross_modal": make_objects(num_queries, index.manifest.dimension, 2)[MODALITIES[0]].astype(np.float32),
    }
    for asked in queries.values():
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    filters: dict[str, dict[str, Any]] = {
        "none": {},
        "magnitude, 1 in 10": {"where": {MAGNITUDE: (18.0, 18.6)}},
        "magnitude, 1 in 50": {"where": {MAGNITUDE: (18.0, 18.12)}},
        "cone, 1 in 300": {"cone": Cone(180.0, 30.0, 6.6)},
    }
    results: dict[str, Any] = {}
    for name, chosen_by in filters.items():
        results[name] = {}
        for kind, asked in queries.items():
            ours = functools.partial(index.search, asked, K, target_modality=target, **chosen_by)
            mask = None
            if "where" in chosen_by:
                mask = index._state.rows.in_ranges(chosen_by["where"])[part.rows.start : part.rows.stop]
            if "cone" in chosen_by:
                mask = index._state.rows.in_cone(chosen_by["cone"])[part.rows.start : part.rows.stop]
            bare = functools.partial(bare_search, part, asked, K, mask)
            row = {"recall": recall(ours().row, ours(exact=True).row)}
            row |= rates(ours, bare, len(asked), turns if mask is None else 3)
            results[name][kind] = row
            print(f"{name:20} {kind:15}", {key: round(value, 3) for key, value in row.items()}, flush=True)
    single = queries["same_modality"][: min(num_queries, 200)]
    results["one at a time"] = rates(
        lambda: [index.search(q[None], K, target_modality=target) for q in single],
        lambda: [bare_search(part, q[None], K, None) for q in single],
        len(single),
        turns,
    )
    print("one at a time", results["one at a time"], flush=True)
    return results


def measure_changes(folder: Path, dimension: int, count: int) -> dict[str, float]:
    """Rows per second that are added in calls of `count`, and the seconds that one removal takes."""
    index = EmbeddingIndex.load(folder, verify=False)
    started = time.perf_counter()
    for call in range(4):
        ids = [f"new-{call}-{number}" for number in range(count)]
        vectors = make_objects(count, dimension, 50 + call)[MODALITIES[0]]
        unknown = np.full(count, np.nan)
        index.add(EmbeddingTable(tuple(ids), (MODALITIES[0],) * count, unknown, unknown, vectors, "aligned", "made-up"))
    added = time.perf_counter() - started
    started = time.perf_counter()
    index.remove([f"new-0-{number}" for number in range(count // 2)])
    return {"added_rows_per_s": 4 * count / added, "remove_s": time.perf_counter() - started}


def main() -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 rows of 64 numbers: whether it runs")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dimension", type=int)
    parser.add_argument("--index-type")
    parser.add_argument("--max-memory-gb", type=float)
    parser.add_argument("--flat-limit", type=int)
    parser.add_argument("--folder", type=Path, help="keep shards here, and take those that are there")
    parser.add_argument("--build-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows or (40_000 if options.quick else 1_000_000)
    options.dimension = options.dimension or (64 if options.quick else 512)
    options.flat_limit = options.flat_limit or (5_000 if options.quick else 50_000)
    if options.build_only:
        print(json.dumps(build(options.build_only / "shards", options.build_only / "index", options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "shards").exists():
            started = time.perf_counter()
            metadata = write_shards(folder / "shards", options.rows, options.dimension)
            np.save(folder / "shards" / "magnitude.npy", metadata[MAGNITUDE])
            print(f"{options.rows} made-up vectors written in {time.perf_counter() - started:.0f} s", flush=True)
        words = [sys.executable, __file__, *sys.argv[1:], "--build-only", str(folder)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        built = json.loads(done.stdout.splitlines()[-1])
        print({key: round(value, 2) for key, value in built.items()}, flush=True)
        index = EmbeddingIndex.load(folder / "index", verify=False)
        for part in index.manifest.parts:
            print(part.modality, part.index_type, part.reason, part.effort, part.candidates, json.dumps(part.recall))
        sizes = {path.suffix: 0.0 for path in (folder / "index" / "base-0").iterdir()}
        for path in (folder / "index" / "base-0").iterdir():
            sizes[path.suffix] += path.stat().st_size / 1e9
        results = measure(index, 200 if options.quick else 1000, 5 if options.quick else 9)
        changes = measure_changes(folder / "index", options.dimension, 100 if options.quick else 1000)
        vectors_gb = len(open_vectors(folder / "index" / "base-0")) * options.dimension * 2 / 1e9
        plain = results["none"]
        kinds = ("same_modality", "cross_modal")
        print(
            json.dumps(
                {
                    "recall_at_10": min(plain[kind]["recall"] for kind in kinds),
                    "ratio_to_faiss": min(plain[kind]["ratio"] for kind in kinds),
                    "cpu_ratio_to_faiss": min(plain[kind]["cpu_ratio"] for kind in kinds),
                    "num_rows": options.rows,
                    "dimension": options.dimension,
                    "index_type": index.manifest.index_type,
                    "structures_gb": sizes[".faiss"] + sizes.get(".lists", 0.0),
                    "vectors_on_disk_gb": vectors_gb,
                    **built,
                    **changes,
                    "searches": results,
                }
            )
        )
        if options.folder:
            shutil.rmtree(folder / "index")


if __name__ == "__main__":
    main()
