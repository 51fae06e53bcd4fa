"""How far off a prediction may be, from place to place: a linear model of the logarithm of absolute residuals.

Intervals that reach as far everywhere are right on average, too wide where objects are easy and too narrow where they
are hard. Residuals over this scale are nearly alike, and conformal intervals of them adapt (Papadopoulos et al. 2002;
Lei et al. 2018, arXiv 1604.04173, section 5.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .ridge import fit_ridge

FEWEST = 100
"""With fewer objects a scale of one's own for each is not to be learned."""
LEAST_GAIN = 0.01
"""Of log likelihood per object, that a local scale must bring to be taken."""
SMALLEST_SHARE = 0.005
"""Of the mean residual, is added to each before the logarithm: residuals near zero say little."""


@dataclass(frozen=True, eq=False)
class LocalScale:
    """exp(features coef + intercept), kept between the bounds that the training objects span.

    `left_out` [B] is the scale of each training object by a fit without it.
    """

    coef: Float[np.ndarray, " D"]
    intercept: float
    log_bounds: tuple[float, float]
    left_out: Float[np.ndarray, " B"]

    @classmethod
    def fit(
        cls,
        features: Float[np.ndarray, "B D"],
        residuals: Float[np.ndarray, " B"],
        penalties: Sequence[float],
        wanted: str = "auto",
    ) -> "LocalScale | None":
        """Fit to absolute residuals of objects left out. None where a constant is `wanted`, or with `auto` fits better.

        Judged by the likelihood of Laplace distributions, each object under the scale of the others.
        """
        mean = float(residuals.mean())
        if wanted == "constant" or mean == 0 or (wanted == "auto" and len(residuals) < FEWEST):
            return None
        target = np.log(residuals / mean + SMALLEST_SHARE)
        ridge = fit_ridge(features, target[:, None], penalties)
        others = target - ridge.left_out[:, 0]
        low, high = np.quantile(others, [0.005, 0.995])
        left_out = np.exp(np.clip(others, low, high))
        gain = np.log(mean) - (np.log(left_out).mean() + np.log(np.mean(residuals / left_out)))
        if wanted == "auto" and gain < LEAST_GAIN:
            return None
        return cls(ridge.coef[0], float(ridge.intercept[0]), (float(low), float(high)), left_out)

    def predict(self, features: Float[np.ndarray, "B D"]) -> Float[np.ndarray, " B"]:
        """The scale of each object."""
        return np.exp(np.clip(features @ self.coef + self.intercept, *self.log_bounds))

    def rescaled(self, centre: Float[np.ndarray, " D"], scale: float) -> "LocalScale":
        """The same for features before `(features - centre) / scale`."""
        coef = self.coef / scale
        return LocalScale(coef, self.intercept - float(coef @ centre), self.log_bounds, self.left_out)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a probe's file; without the scales of the training objects."""
        return {"coef": self.coef, "bounds": np.array([self.intercept, *self.log_bounds])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> "LocalScale | None":
        """From `arrays` of a probe's file, named with a prefix; None where there are none."""
        if f"{prefix}coef" not in arrays:
            return None
        intercept, low, high = arrays[f"{prefix}bounds"].tolist()
        return cls(arrays[f"{prefix}coef"], intercept, (low, high), np.empty(0))
