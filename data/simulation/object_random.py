"""Random numbers that depend on the object alone: any rows, in any order and any batch, draw what they always draw.

Each object has a generator of its own for each purpose, seeded by the purpose's name, the sky's seed and the row.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int


def generators(purpose: str, seed: int, rows: Int[np.ndarray, " B"]) -> Iterator[np.random.Generator]:
    """One generator for each row, which nothing but purpose, seed and row decides."""
    stream = zlib.crc32(purpose.encode())
    for row in rows.tolist():
        yield np.random.default_rng([stream, seed, row])


def uniforms(purpose: str, seed: int, rows: Int[np.ndarray, " B"], count: int) -> Float[np.ndarray, "count B"]:
    """`count` numbers in [0, 1) for each row, one row of the result for each number's meaning."""
    drawn = [rng.uniform(size=count) for rng in generators(purpose, seed, rows)]
    return np.array(drawn, np.float64).reshape(len(rows), count).T


def normals(purpose: str, seed: int, rows: Int[np.ndarray, " B"], count: int) -> Float[np.ndarray, "count B"]:
    """`count` standard normal numbers for each row."""
    drawn = [rng.standard_normal(count) for rng in generators(purpose, seed, rows)]
    return np.array(drawn, np.float64).reshape(len(rows), count).T
