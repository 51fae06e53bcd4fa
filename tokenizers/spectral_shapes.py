"""What spectra kept as coefficients look like: the principal components of their shapes, in units of the noise.

A shape is a spectrum over its amplitude. Mean and covariance come from one pass over a stream, in closed form. The
noise's share of the variance is taken off before the components are found, and they are ordered by how much of chi2
they explain (Bailey 2012, PASP 124, 1015, is about components of noisy data).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ..data.observations import CoefficientsObservation, ObservationError

MODEL_ERROR = 0.1
"""Error granted to the components, in units of the typical noise."""


@dataclass(frozen=True, eq=False)
class SpectralShapes:
    """Shapes of K coefficients as `mean + components @ z`, where the R numbers z have unit variance, and the rest.

    Amplitudes are the root of the sum of squares of all coefficients. All but the numbers z are relative to it.
    """

    mean: Float64[Tensor, " K"]
    components: Float64[Tensor, "K R"]
    power: Float64[Tensor, " K"]
    """Mean square of each coefficient."""
    noise: Float64[Tensor, " K"]
    """Root-mean-square error of each coefficient."""
    rest: Float64[Tensor, " K"]
    """Variance of each coefficient that the components leave, and MODEL_ERROR."""


class ShapeMoments:
    """Sums over a stream of spectra: the moments of their shapes. Only complete objects count (`is_complete`)."""

    def __init__(self, num_coefficients: int):
        self.count = 0
        self.total = torch.zeros(num_coefficients, dtype=torch.float64)
        self.products = torch.zeros(num_coefficients, num_coefficients, dtype=torch.float64)
        self.noise = torch.zeros(num_coefficients, dtype=torch.float64)

    def update(self, observation: CoefficientsObservation) -> None:
        """Add the complete objects of a batch."""
        rows = is_complete(observation)
        values, error = observation.values[rows].double(), observation.error[rows].double()
        amplitude = values.square().sum(1, keepdim=True).sqrt()
        shapes = values / amplitude
        self.count += len(shapes)
        self.total += shapes.sum(0)
        self.products += shapes.T @ shapes
        self.noise += (error / amplitude).square().sum(0)

    def merge(self, other: "ShapeMoments") -> None:
        """Add what another stream gave."""
        self.count += other.count
        for name in ("total", "products", "noise"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def shapes(self, num_components: int) -> SpectralShapes:
        """Mean and principal components. Raises ObservationError for fewer objects than coefficients."""
        num_coefficients = len(self.total)
        if self.count < num_coefficients:
            raise ObservationError(
                f"expected at least {num_coefficients} objects with all their coefficients and errors to learn from, "
                f"found {self.count}"
            )
        mean, noise = self.total / self.count, (self.noise / self.count).sqrt()
        covariance = self.products / self.count - mean[:, None] * mean - torch.diag(noise.square())
        variances, directions = torch.linalg.eigh(covariance / (noise[:, None] * noise))
        variances, directions = variances.flip(0)[:num_components].clamp(min=0), directions.flip(1)[:, :num_components]
        components = noise[:, None] * directions * variances.sqrt()
        left = (covariance.diagonal() - components.square().sum(1)).clamp(min=0)
        return SpectralShapes(
            mean=mean,
            components=components,
            power=self.products.diagonal() / self.count,
            noise=noise,
            rest=left + (MODEL_ERROR * noise).square(),
        )


def is_complete(observation: CoefficientsObservation) -> Tensor:
    """Which objects have every coefficient, with a known error, and are not zero throughout [B]."""
    known = observation.mask & (observation.error > 0) & observation.error.isfinite()
    return known.all(1) & (observation.values != 0).any(1)
