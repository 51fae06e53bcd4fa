"""The distribution of a stream of numbers, in one pass and bounded memory.

A KLL sketch (Karnin, Lang & Liberty 2016, arXiv 1603.05346) as Apache DataSketches implements it: up to SKETCH_SIZE
values are kept as they are; of more, up to three times as many, each standing for 2^h. Sketches of several files
or processes merge into one with the same bound.
"""

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from ..data.observations import ObservationError

SKETCH_SIZE = 65_535
"""The largest that the library knows; a sketch keeps at most three times as many, 0.8 MB."""
RANK_ERROR = 2.446 / SKETCH_SIZE**0.9433
"""7.0e-5: with 99 % confidence, the share of values in any interval is known to this (the library's own figure)."""


class QuantileSketch:
    """Sketch of float32 numbers.

    Beyond SKETCH_SIZE of them, two sketches of the same numbers differ within RANK_ERROR: the library draws at random
    which are kept, and cannot be seeded.
    """

    def __init__(self) -> None:
        from datasketches import kll_floats_sketch  # here, for a tokenizer that is fitted does without it

        self._sketch = kll_floats_sketch(SKETCH_SIZE)

    def __len__(self) -> int:
        return self._sketch.n

    @property
    def is_exact(self) -> bool:
        """Whether every value is still kept."""
        return not self._sketch.is_estimation_mode()

    def update(self, values: Shaped[np.ndarray, " n"]) -> None:
        """Add numbers, rounded to float32. Raises ObservationError, and adds none, if one is not finite in float32."""
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(values, dtype=np.float32)
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            place = int(wrong.argmax())
            raise ObservationError(f"expected finite values to learn from, found {values[place]} at {place}")
        self._sketch.update(numbers)

    def merge(self, other: "QuantileSketch") -> None:
        """Add the numbers of another sketch, which stays as it is."""
        self._sketch.merge(other._sketch)

    def weighted_values(self) -> tuple[Float32[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
        """The distribution: different values that ascend, and how many numbers each stands for.

        Smallest and largest are those of the stream: the library keeps them apart, and where they are not among the
        values kept, each is added for one number.
        """
        if not len(self):
            return np.empty(0, np.float32), np.empty(0)
        kept = np.array(list(self._sketch))
        values, place = np.unique(kept[:, 0].astype(np.float32), return_inverse=True)
        weights = np.bincount(place, kept[:, 1])
        for extreme, end in ((self._sketch.get_min_value(), 0), (self._sketch.get_max_value(), -1)):
            if values[end] != np.float32(extreme):
                where = 0 if end == 0 else len(values)
                values = np.insert(values, where, np.float32(extreme))
                weights = np.insert(weights, where, 1.0)
        return values, weights

    def to_bytes(self) -> bytes:
        """The sketch in the format of Apache DataSketches, which its other languages read too."""
        return self._sketch.serialize()

    @classmethod
    def from_bytes(cls, content: bytes) -> "QuantileSketch":
        """A sketch from `to_bytes`. Raises ValueError if the bytes are not one, or one of another size."""
        made = cls()
        try:
            made._sketch = type(made._sketch).deserialize(content)
        except (IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"expected a quantile sketch, found {len(content)} bytes that are none: {error}") from None
        if made._sketch.k != SKETCH_SIZE:
            raise ValueError(f"expected a quantile sketch of size {SKETCH_SIZE}, found one of {made._sketch.k}")
        return made
