"""A cone on the sky: the filter that astronomers know from every archive."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64


@dataclass(frozen=True)
class Cone:
    """All places within `radius_deg` of (`ra`, `dec`), degrees, ICRS."""

    ra: float
    dec: float
    radius_deg: float

    def contains(self, ra: Float64[np.ndarray, " R"], dec: Float64[np.ndarray, " R"]) -> Bool[np.ndarray, " R"]:
        """Which places lie inside; one that is not known (NaN) does not."""
        chord = np.linalg.norm(_unit_vectors(ra, dec) - _unit_vectors(np.array(self.ra), np.array(self.dec)), axis=-1)
        # By the chord, not the cosine, which cannot tell small angles apart.
        return chord <= 2 * math.sin(math.radians(min(self.radius_deg, 180.0)) / 2)


def _unit_vectors(ra: Float64[np.ndarray, "*R"], dec: Float64[np.ndarray, "*R"]) -> Float64[np.ndarray, "*R 3"]:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
