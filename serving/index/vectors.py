"""The vectors of an index as they were given, float16, on disk: what is exact in it.

FAISS's structures say where to look; these vectors say what is there. They serve exact searches of few rows, the
re-ranking of candidates whose codes are coarse, the vector of an object, and later builds. They are memory-mapped, so
that processes share them and only rows that are asked for are read.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int

BLOCK_ROWS = 16_384
"""Rows that are held as float32 at once."""


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """R vectors and one over the length of each."""

    values: Float16[np.ndarray, "R D"]
    inverse_length: Float32[np.ndarray, " R"]

    def __len__(self) -> int:
        return len(self.inverse_length)

    def unit(self, row: Int[np.ndarray, " B"] | slice) -> Float32[np.ndarray, "B D"]:
        """These rows at unit length."""
        return as_float32(self.values[row]) * self.inverse_length[row][:, None]

    def unit_blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """The rows from `start` to `stop` at unit length, in order: blocks [B, D], each with its first row's number."""
        for first in range(start, stop, BLOCK_ROWS):
            yield first, self.unit(slice(first, min(first + BLOCK_ROWS, stop)))

    def search(
        self, queries: Float32[np.ndarray, "Q D"], row: Int[np.ndarray, " S"] | range, k: int
    ) -> tuple[Float32[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
        """The `k` most similar of these rows for each unit query, best first, by comparing every one."""
        best = NearestSoFar(len(queries), k)
        for first in range(0, len(row), BLOCK_ROWS):
            block = row[first : first + BLOCK_ROWS]
            if isinstance(block, range):
                vectors, number = self.unit(slice(block.start, block.stop)), np.arange(block.start, block.stop)
            else:
                vectors, number = self.unit(block), block
            best.update(queries @ vectors.T, number)
        return best.similarity, best.row

    def similarity(
        self, queries: Float32[np.ndarray, "Q D"], row: Int[np.ndarray, "Q C"]
    ) -> Float32[np.ndarray, "Q C"]:
        """The similarity of each query to its own candidates; -inf for row -1. The same pair gives the same number."""
        found = np.empty(row.shape, np.float32)
        step = max(1, BLOCK_ROWS // max(1, row.shape[1]))
        for start in range(0, len(row), step):
            chosen = row[start : start + step]
            values = (
                torch.from_numpy(self.values[chosen.reshape(-1)])
                .float()
                .reshape(*chosen.shape, queries.shape[1])
                .numpy()
            )
            # Pair by pair: a product of matrices adds up in an order that depends on who is beside whom.
            products = np.vecdot(values, queries[start : start + step, None])
            found[start : start + step] = products * self.inverse_length[chosen]
        return np.where(row < 0, np.float32(-np.inf), found)


class NearestSoFar:
    """The K best of each of Q queries over blocks of rows that come one after another."""

    def __init__(self, num_queries: int, k: int) -> None:
        self.similarity = np.full((num_queries, k), -np.inf, np.float32)
        self.row = np.full((num_queries, k), -1, np.int64)

    def update(self, similarity: Float32[np.ndarray, "Q B"], row: Int[np.ndarray, " B"]) -> None:
        """Take in a block: the similarity of every query to every row of it."""
        k = self.similarity.shape[1]
        if similarity.shape[1] > k:
            value, place = (t.numpy() for t in torch.from_numpy(similarity).topk(k, dim=1))
        else:
            value, place = similarity, np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
        self.similarity, self.row = nearest_of(
            np.concatenate([self.similarity, value], 1), np.concatenate([self.row, row[place]], 1), k
        )


def nearest_of(
    similarity: Float32[np.ndarray, "Q C"], row: Int[np.ndarray, "Q C"], k: int
) -> tuple[Float32[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """The `k` best of each query's candidates, best first; the earlier where two are equal."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    similarity, row = arranged(order, similarity, row)
    return similarity, row


def arranged(order: Int[np.ndarray, "Q K"], *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Columns of each row in this order; for one query in a third of the time of `np.take_along_axis`."""
    row = np.arange(len(order))[:, None]
    return tuple(value[row, order] for value in values)


def as_float32(values: Float16[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The same numbers; three times faster than numpy's own way."""
    # A copy, for torch wants memory that could be written, and maps are read-only.
    return torch.from_numpy(np.array(values)).float().numpy()


class VectorWriter:
    """Writes an .npy file of float16 [R, D] row by row, in any order, without mapping it."""

    def __init__(self, path: Path, num_rows: int, dimension: int) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": (num_rows, dimension)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self._start = file.tell()
            file.truncate(self._start + num_rows * dimension * 2)
        self._row_bytes = dimension * 2
        self._file = path.open("r+b", buffering=0)

    def write(self, row: Int[np.ndarray, " B"], values: Float16[np.ndarray, "B D"]) -> None:
        """Put these vectors at these rows."""
        if not len(row):
            return
        order = np.argsort(row, kind="stable")
        row, values = row[order], values[order]
        # Neighbouring rows are written at once: a run ends where the next row is not the next number.
        ends = np.flatnonzero(np.diff(row) != 1) + 1
        for start, stop in zip([0, *ends], [*ends, len(row)], strict=True):
            content = memoryview(np.ascontiguousarray(values[start:stop], "<f2").tobytes())
            place = self._start + int(row[start]) * self._row_bytes
            while content:
                written = os.pwrite(self._file.fileno(), content, place)
                content, place = content[written:], place + written

    def __enter__(self) -> "VectorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
