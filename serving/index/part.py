"""A part of an index: the rows of one modality in the base, their search structure, and how hard it must look.

How many cells (or candidates of a graph) are searched was chosen when the part was built, for several shares of rows
that pass a filter. A search interpolates: the fewer rows pass, the more cells. What passes may also lie together, far
from the query: then a query goes on to further cells, until it has met as many rows that pass as it would have met
were they spread evenly. Where only few pass, all are compared.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from .files import Part, import_faiss
from .index_types import MOST_ON_GPU, search_parameters
from .vectors import StoredVectors, nearest_of

K_OF_EFFORT = 10
"""Neighbours for which the effort was chosen; for more of them, more is looked at."""
EXACT_ROWS = 4096
"""Rows up to which all that pass a filter are compared."""
EXACT_SHARE = 0.005
"""Share of a part up to which they are compared too, if they are not more than MOST_EXACT_ROWS."""
MOST_EXACT_ROWS = 50_000
QUERIES_AT_ONCE = 512
"""Filtered queries whose cells are ordered at once."""

Found = tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]


@dataclass(frozen=True, eq=False)
class SearchablePart:
    """`rows` are the numbers of its rows in the index; the structure counts from 0."""

    part: Part
    structure: Any
    rows: range
    vectors: StoredVectors
    on_gpus: Any = None
    """A copy of the structure on GPUs, where there are any; filtered searches stay on the CPU."""

    def search(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        chosen: Bool[np.ndarray, " R"] | None = None,
        *,
        exact: bool = False,
        effort: int | None = None,
        wanted: int | None = None,
        is_completed: bool = True,
    ) -> Found:
        """The `k` most similar rows (numbers in the index) for each unit query, among those `chosen` of the part.

        Row -1, similarity -inf fill up where fewer are chosen. `effort` overrules what was found at build time. With
        `wanted` below k, no more is looked at than for so many neighbours, and the others are what was met beside them.
        Queries whose cells hold too few rows are answered exactly, unless `is_completed` is False.
        """
        wanted = k if wanted is None else min(k, wanted)
        num_chosen = len(self.rows) if chosen is None else int(chosen.sum())
        kind = self.part.index_type
        if num_chosen and kind == "flat" and chosen is None:
            structure = self.structure if self.on_gpus is None or k > MOST_ON_GPU else self.on_gpus
            similarity, local = structure.search(queries, k)
            return similarity, self._numbers(local)
        if exact or kind == "flat" or self.is_few(num_chosen) or (kind == "hnsw" and chosen is not None):
            return self._exact(queries, k, chosen)
        effort = self.effort(wanted, num_chosen) if effort is None else effort
        sought = min(max(k, wanted * max(1, self.part.candidates)), len(self.rows))
        similarity, local = self._search_structure(queries, k, sought, chosen, effort)
        row = self._numbers(local)
        short = np.flatnonzero((local[:, : min(wanted, num_chosen)] < 0).any(1)) if is_completed else ()
        if len(short):
            similarity[short], row[short] = self._exact(queries[short], k, chosen)
        return similarity, row

    def effort(self, k: int, num_chosen: int) -> int:
        """Cells or candidates to look at for `k` neighbours among so many rows that pass."""
        shares = {float(share): effort for share, effort in self.part.effort.items()}
        # The best 100 of all lie as far as the best 10 of every tenth row.
        share = num_chosen / len(self.rows) * min(1.0, K_OF_EFFORT / k)
        known = sorted(shares)
        if share >= known[-1] or len(known) == 1:
            found = shares[known[-1]] * max(1.0, known[-1] / share)
        elif share < known[0]:
            found = shares[known[0]] * known[0] / share
        else:
            found = math.exp(np.interp(math.log(share), np.log(known), np.log([shares[s] for s in known])))
        most = self.part.num_cells if self.part.num_cells else len(self.rows)
        return min(most, math.ceil(found - 1e-9))

    def is_few(self, num_chosen: int) -> bool:
        """Whether so many rows that pass a filter are all compared."""
        return num_chosen <= max(EXACT_ROWS, min(MOST_EXACT_ROWS, EXACT_SHARE * len(self.rows)))

    def _search_structure(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        sought: int,
        chosen: Bool[np.ndarray, " R"] | None,
        effort: int,
    ) -> Found:
        """The `k` best of `sought` candidates."""
        if chosen is not None:
            blocks = [queries[i : i + QUERIES_AT_ONCE] for i in range(0, len(queries), QUERIES_AT_ONCE)]
            found = [self._search_filtered(block, k, sought, chosen, effort) for block in blocks]
            return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
        parameters = search_parameters(self.part.index_type, effort)
        is_for_gpu = self.on_gpus is not None and max(effort, sought) <= MOST_ON_GPU
        structure = self.on_gpus if is_for_gpu else self.structure
        return self._again(queries, k, structure.search(queries, sought, params=parameters))

    def _search_filtered(
        self, queries: Float32[np.ndarray, "Q D"], k: int, sought: int, chosen: Bool[np.ndarray, " R"], effort: int
    ) -> Found:
        """Cells by their nearness, of each query as many as hold its share of the rows that pass, `effort` at least."""
        num_cells = self.part.num_cells
        num_in_cell = np.bincount(self._cell_of_row[chosen], minlength=num_cells)
        nearness, cells = self.structure.quantizer.search(queries, num_cells)
        # So many rows that pass lie in `effort` cells if they are spread evenly.
        enough = effort / num_cells * num_in_cell.sum()
        passed = np.cumsum(num_in_cell[cells], axis=1)
        num_looked_at = np.clip((passed < enough).sum(1) + 1, effort, num_cells)
        width = int(num_looked_at.max())
        # FAISS passes over cell -1: what is not needed, and cells in which no row passes.
        is_needed = (np.arange(width) < num_looked_at[:, None]) & (num_in_cell[cells[:, :width]] > 0)
        cells = np.ascontiguousarray(np.where(is_needed, cells[:, :width], -1))
        nearness, queries = np.ascontiguousarray(nearness[:, :width]), np.ascontiguousarray(queries)
        faiss = import_faiss()
        selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        parameters = search_parameters(self.part.index_type, width, selector)
        similarity = np.empty((len(queries), sought), np.float32)
        local = np.empty((len(queries), sought), np.int64)
        # FAISS's own wrapper of this call takes no parameters, and so no selector.
        into = [faiss.swig_ptr(array) for array in (cells, nearness, similarity, local)]
        self.structure.search_preassigned_c(
            len(queries), faiss.swig_ptr(queries), sought, *into, False, parameters, None
        )
        return self._again(queries, k, (similarity, local))

    @functools.cached_property
    def _cell_of_row(self) -> Int32[np.ndarray, " R"]:
        faiss = import_faiss()
        lists = self.structure.invlists
        found = np.empty(len(self.rows), np.int32)
        for cell in range(self.part.num_cells):
            size = lists.list_size(cell)
            if size:
                ids = lists.get_ids(cell)
                found[faiss.rev_swig_ptr(ids, size)] = cell
                lists.release_ids(cell, ids)
        return found

    def _again(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        candidates: tuple[Float32[np.ndarray, "Q S"], Int64[np.ndarray, "Q S"]],
    ) -> Found:
        """The best of the candidates by their stored vectors, where codes are too coarse to tell."""
        if not self.part.candidates:
            return candidates
        local = candidates[1]
        similarity = self.vectors.similarity(queries, np.where(local < 0, -1, local + self.rows.start))
        return nearest_of(similarity, local, k)

    def _exact(self, queries: Float32[np.ndarray, "Q D"], k: int, chosen: Bool[np.ndarray, " R"] | None) -> Found:
        rows = self.rows if chosen is None else np.flatnonzero(chosen) + self.rows.start
        return self.vectors.search(queries, rows, k)

    def _numbers(self, local: Int64[np.ndarray, "Q K"]) -> Int64[np.ndarray, "Q K"]:
        return local if self.rows.start == 0 else np.where(local < 0, -1, local + self.rows.start)
