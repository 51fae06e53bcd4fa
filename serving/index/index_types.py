"""The kinds of search structure, what each costs, and which is chosen for how many rows.

    flat        every vector is compared: exact
    ivf         vectors in cells (inverted lists), float32; the cells nearest to the query are searched
    ivf_sq8     the same, each number in 8 bits (scalar quantisation): a quarter of the memory, and faster for it
    ivf_rabitq  the same, each number in one bit (RaBitQ, Gao & Long 2024, arXiv 2405.12497); many candidates, which
                are compared again by the stored vectors
    hnsw        a graph (Malkov & Yashunin 2016, arXiv 1603.09320): the least latency without filters. It loses recall
                where a filter excludes most rows, so that filtered searches compare every row that passes

Each modality has its own structure: vectors of two modalities lie apart even in an aligned space, and a query from the
other one would spend its cells on its own kind.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import import_faiss
from .protocol import EmbeddingIndexError

INDEX_TYPES = ("flat", "ivf", "ivf_sq8", "ivf_rabitq", "hnsw")
FLAT_LIMIT = 50_000
"""Rows of a modality up to which every vector is compared."""
CELLS_PER_ROOT_ROW = 4
"""Cells of an IVF structure: this times the square root of the rows."""
HNSW_LINKS = 32
GPU_TYPES = ("flat", "ivf", "ivf_sq8")
"""What FAISS has for GPUs, of these; its searches there know no filters."""
MOST_ON_GPU = 2048
"""Neighbours, and cells, that FAISS takes in one search there."""
SHARE_OF_MACHINE_MEMORY = 0.5
GIGABYTE = 1e9
LISTS_SUFFIX = ".lists"
"""Of the file beside a structure that holds its lists, where these were made on disk."""


@dataclass(frozen=True)
class Choice:
    """The structure for the rows of one modality, and why. `on_disk`: lists are too big to be made in memory."""

    index_type: str
    reason: str
    on_disk: bool = False


def choose_type(
    num_rows: int, dimension: int, *, wanted: str | None = None, flat_limit: int = FLAT_LIMIT, memory: float
) -> Choice:
    """The type for `num_rows` of a modality that may take `memory` bytes; `wanted` overrules.

    Raises EmbeddingIndexError on a type that is not there.
    """
    if wanted is not None and wanted not in INDEX_TYPES:
        raise EmbeddingIndexError(f"index_type must be one of {list(INDEX_TYPES)}, found {wanted!r}")
    need = {name: float(num_rows) * bytes_per_row(name, dimension) for name in INDEX_TYPES}
    if wanted is not None:
        on_disk = wanted.startswith("ivf") and need[wanted] > memory
        return Choice(
            wanted, f"{num_rows} rows; {wanted} was asked for" + _on_disk(need[wanted], memory, on_disk), on_disk
        )
    if num_rows <= flat_limit:
        return Choice("flat", f"{num_rows} rows, at most {flat_limit}: every vector is compared, which is exact")
    above = f"{num_rows} rows, above {flat_limit}: IVF, which keeps its recall under filters, as HNSW does not"
    if need["ivf_sq8"] <= memory:
        return Choice(
            "ivf_sq8",
            f"{above}; 8 bits a number, a quarter of the memory of floats and faster: {_gb(need['ivf_sq8'])} of the "
            f"{_gb(memory)} it may take",
        )
    on_disk = need["ivf_rabitq"] > memory
    return Choice(
        "ivf_rabitq",
        f"{above}; one bit a number (RaBitQ) and candidates compared by the stored vectors, for 8 bits a number would "
        f"take {_gb(need['ivf_sq8'])}, more than the {_gb(memory)} allowed"
        + _on_disk(need["ivf_rabitq"], memory, on_disk),
        on_disk,
    )


def allowed_memory(max_memory_gb: float | None) -> float:
    """Bytes that the structures of an index may take; by default, half of the machine's."""
    if max_memory_gb is not None:
        return float(max_memory_gb) * GIGABYTE
    return SHARE_OF_MACHINE_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bytes_per_row(index_type: str, dimension: int) -> int:
    """The memory that a row takes in a structure, its id and links included."""
    sizes = {
        "flat": 4 * dimension,
        "ivf": 4 * dimension + 8,
        "ivf_sq8": dimension + 8,
        "ivf_rabitq": dimension // 8 + 8 + 8,
        "hnsw": 4 * dimension + 2 * 4 * HNSW_LINKS + 16,
    }
    return sizes[index_type]


def num_cells(num_rows: int) -> int:
    """Cells of an IVF structure of so many rows."""
    return max(1, min(num_rows, round(CELLS_PER_ROOT_ROW * math.sqrt(num_rows))))


def make_structure(index_type: str, dimension: int, cells: int) -> Any:
    """An empty, untrained FAISS index for unit vectors, by inner product."""
    faiss = import_faiss()
    metric = faiss.METRIC_INNER_PRODUCT
    if index_type == "flat":
        return faiss.IndexFlatIP(dimension)
    if index_type == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, metric)
        graph.hnsw.efConstruction = 80
        return graph
    quantizer = faiss.IndexFlatIP(dimension)
    if index_type == "ivf":
        made = faiss.IndexIVFFlat(quantizer, dimension, cells, metric)
    elif index_type == "ivf_sq8":
        made = faiss.IndexIVFScalarQuantizer(quantizer, dimension, cells, faiss.ScalarQuantizer.QT_8bit, metric)
    else:
        made = faiss.IndexIVFRaBitQ(quantizer, dimension, cells, metric)
    # Python's object must not be freed before FAISS's that points to it.
    made.own_fields = True
    quantizer.this.disown()
    return made


def search_parameters(index_type: str, effort: int, selector: Any = None) -> Any:
    """FAISS's parameters for a search of this effort among the rows of a selector."""
    faiss = import_faiss()
    options = {} if selector is None else {"sel": selector}
    if index_type == "flat":
        return faiss.SearchParameters(**options)
    if index_type == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=effort, **options)
    if index_type == "ivf_rabitq":
        return faiss.IVFRaBitQSearchParameters(nprobe=effort, **options)
    return faiss.SearchParametersIVF(nprobe=effort, **options)


def open_structure(path: Path, index_type: str, *, memory_map: bool) -> Any:
    """A saved structure; memory-mapped, its pages are read when they are needed and shared by all processes.

    Lists that were made on disk are mapped in any case.
    """
    faiss = import_faiss()
    if path.with_suffix(LISTS_SUFFIX).exists():
        return faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
    if not memory_map:
        return faiss.read_index(str(path))
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP if index_type.startswith("ivf") else faiss.IO_FLAG_MMAP_IFC)


def copy_to_gpus(structure: Any, index_type: str) -> Any:
    """The structure shared out over all GPUs, its numbers as float16.

    None without faiss-gpu or a GPU, and for types that FAISS has not there.
    """
    faiss = import_faiss()
    if index_type not in GPU_TYPES or not hasattr(faiss, "get_num_gpus") or faiss.get_num_gpus() == 0:
        return None
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    options.useFloat16 = True
    return faiss.index_cpu_to_all_gpus(structure, co=options)


def _on_disk(need: float, memory: float, on_disk: bool) -> str:
    return f"; its lists are made on disk, for {_gb(need)} is more than the {_gb(memory)} allowed" if on_disk else ""


def _gb(size: float) -> str:
    return f"{size / GIGABYTE:.3g} GB"
