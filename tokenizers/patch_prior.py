"""What patches of the sky look like on average: mean and covariance of their coefficients, learned from noisy images.

The coefficients of a patch, over its brightness, are taken as a draw from a Gaussian, seen through the instrument with
noise, masks and missing bands. Its mean is linear in what is known of the patch before (`patch_context.py`).
Expectation maximisation gives the mean and covariance (Dempster, Laird & Rubin 1977, for factor analysis with known
noise); the leading directions of the covariance, by the light they carry, are the
latents that tokens describe. Nothing depends on which instruments the images came from.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from .light_basis import LightBasis

BRIGHTNESS_FLOOR = 0.003
"""Nanomaggies per square arcsec: patches fainter than this are scaled by it. About the noise of deep surveys."""
FEW_PATCHES = 10.0
"""As many patches without features as the regression takes for granted, but for the constant."""
LEAST_VARIANCE = 1e-7
LEAST_SEEN = 1e-6
"""Floor of the light per unit of a basis function, relative to the one seen best."""


@dataclass
class Sums:
    """Sufficient statistics of patches: they add over batches and processes."""

    count: Tensor
    gram: Float64[Tensor, "F F"]
    cross: Float64[Tensor, "J F"]
    second: Float64[Tensor, "J J"]
    metric: Float64[Tensor, "J J"]

    @classmethod
    def none(cls, like: Float64[Tensor, "J F"]) -> "Sums":
        """Of no patch yet; `like` the regression of the prior."""
        num, features = like.shape
        sizes = ((), (features, features), (num, features), (num, num), (num, num))
        return cls(*(like.new_zeros(size) for size in sizes))

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(mine + theirs for mine, theirs in zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """The sums, for instance to add them over processes in place."""
        return self.count, self.gram, self.cross, self.second, self.metric


class PatchPrior(nn.Module):
    """What coefficients over brightness are like: `regression` [J, F] on the F features of a patch's context, the first
    of them one, and covariance [J, J] about it; `latents` [J, D] and their `variances` [D].

    All in float64, so that tokens do not depend on how a batch is put together.
    """

    regression: Tensor
    covariance: Tensor
    latents: Tensor
    variances: Tensor

    def __init__(self, basis: LightBasis, num_latents: int, num_context: int = 1):
        super().__init__()
        if num_latents > len(basis):
            raise ValueError(f"at most {len(basis)} latents come from as many basis functions, found {num_latents}")
        wave = basis.half_cycles[basis.spatial_of]
        order = basis.spectral_of.double()
        # Before anything is learned: rough, smooth in space and in wavelength.
        guess = 2.0 * (1 + wave) ** -2.5 * (1 + order) ** -2
        regression = torch.zeros(len(basis), num_context, dtype=torch.float64)
        regression[0, 0] = 1.0
        self.register_buffer("regression", regression)
        self.register_buffer("covariance", torch.diag(guess))
        self.register_buffer("latents", torch.zeros(len(basis), num_latents, dtype=torch.float64))
        self.register_buffer("variances", torch.ones(num_latents, dtype=torch.float64))
        self._choose_latents(torch.eye(len(basis), dtype=torch.float64))

    @torch.no_grad()
    def expect(
        self,
        design: Float64[Tensor, "Q L J"],
        light: Float64[Tensor, "Q L"],
        weight: Float64[Tensor, "Q L"],
        brightness: Float64[Tensor, " Q"],
        context: Float64[Tensor, "Q F"],
    ) -> Sums:
        """Statistics of Q patches under the present regression and covariance.

        `light` of the pixels and `brightness` of the patches in nanomaggies per square arcsec, `weight` the inverse
        variance of `light`.
        """
        scale = brightness.abs().clamp(min=BRIGHTNESS_FLOOR)
        features = context * (brightness / scale)[:, None]
        expected = features @ self.regression.T
        # In units of the prior the equations are well conditioned: its root times unit normal numbers.
        root = torch.linalg.cholesky(self.covariance + 1e-9 * torch.eye(len(self.covariance), device=design.device))
        # Single precision is enough for a mean over many patches, and this product is most of the work.
        half = (design * weight.sqrt()[..., None] * scale[:, None, None]).float()
        precision = (half.transpose(1, 2) @ half).double()
        residual = light - (design @ expected[..., None])[..., 0] * scale[:, None]
        normal = root.T @ precision @ root
        # The sum in single precision may be off by as much as the brightest patches have of it.
        largest = normal.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        normal.diagonal(dim1=1, dim2=2).add_(1.0 + 1e-6 * largest)
        factor = torch.linalg.cholesky(normal)
        right = (design.transpose(1, 2) @ (weight * residual)[..., None]) * scale[:, None, None]
        found = root @ torch.cholesky_solve(root.T @ right, factor)
        coefficients = found[..., 0] + expected
        scatter = root @ torch.cholesky_inverse(factor).sum(0) @ root.T
        total = weight.sum(1) * scale**2
        return Sums(
            torch.tensor(float(len(light)), dtype=torch.float64, device=light.device),
            features.T @ features,
            coefficients.T @ features,
            scatter + coefficients.T @ coefficients,
            (precision / total.clamp(min=1e-30)[:, None, None]).sum(0),
        )

    @torch.no_grad()
    def maximize(self, sums: Sums) -> None:
        """Take the regression and covariance of the statistics, and choose the latents anew.

        Raises ValueError if they are of too few patches to say anything.
        """
        if sums.count < 10:
            raise ValueError(
                f"expected images with at least 10 patches brighter than their noise to learn from, found "
                f"{int(sums.count)}"
            )
        # A feature that few patches have says little.
        ridge = torch.full_like(sums.gram[0], FEW_PATCHES)
        ridge[0] = 0.0
        regression = torch.linalg.solve(sums.gram + torch.diag(ridge), sums.cross.T).T
        self.regression.copy_(regression)
        explained = regression @ sums.cross.T
        self.covariance.copy_((sums.second - (explained + explained.T) / 2) / sums.count)
        self._choose_latents(sums.metric / sums.count)

    def _choose_latents(self, metric: Float64[Tensor, "J J"]) -> None:
        """The directions in which most light varies, each of unit mean square on pixels as instruments see them."""
        # What no instrument sees well has a floor, so that it is not taken for much light.
        seen, axes = torch.linalg.eigh(metric)
        root = axes * seen.clamp(min=LEAST_SEEN * seen[-1].item()).sqrt()
        variances, directions = torch.linalg.eigh(root.T @ self.covariance @ root)
        count = self.latents.shape[1]
        mix = (root / (root**2).sum(0)) @ directions.flip(1)[:, :count]
        # A direction and its opposite are the same: choose, so that a fit can be repeated.
        largest = mix.gather(0, mix.abs().argmax(0, keepdim=True))
        self.latents.copy_(mix * largest.sign())
        self.variances.copy_(variances.flip(0)[:count].clamp(min=LEAST_VARIANCE))
