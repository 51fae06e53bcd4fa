"""Which pixels show a source: those whose light without noise exceeds some multiple of the pixel's own noise.

The light without noise is known where the sky is simulated. Elsewhere the observation stands for it, smoothed by what
the instrument cannot resolve anyway: an image by a Gaussian as wide as its PSF, a spectrum by one of SMOOTHING pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...data.observations import FWHM_PER_SIGMA, ImageObservation, SpectrumObservation

SMOOTHING = 8.0
"""Standard deviation by which a real spectrum is smoothed, pixels."""
REACH = 3.0
"""Standard deviations at which a smoothing kernel ends."""


def signal_to_noise(
    observation: ImageObservation | SpectrumObservation, truth: Float[Tensor, "B *pixels"] | None
) -> Float[Tensor, "B *pixels"]:
    """Light without noise over the standard deviation of each pixel; zero where the pixel is masked."""
    light = _smoothed(observation) if truth is None else truth
    return light * observation.inverse_variance.sqrt() * observation.mask


def _smoothed(observation: ImageObservation | SpectrumObservation) -> Float[Tensor, "B *pixels"]:
    """Mean of the valid flux under a Gaussian."""
    if isinstance(observation, SpectrumObservation):
        sums = [_smooth_along(part[:, None], [SMOOTHING], 2)[:, 0] for part in _weighted(observation)]
    else:
        sigma = (observation.psf_fwhm.mean(0) / FWHM_PER_SIGMA / observation.card.pixel_scale).tolist()
        sums = [_smooth_along(_smooth_along(part, sigma, 2), sigma, 3) for part in _weighted(observation)]
    return torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1e-12), 0.0)


def _weighted(observation: ImageObservation | SpectrumObservation) -> tuple[Tensor, Tensor]:
    return torch.where(observation.mask, observation.flux, 0.0), observation.mask.float()


def _smooth_along(pixels: Float[Tensor, "B C *pixels"], sigmas: list[float], axis: int) -> Float[Tensor, "B C *pixels"]:
    """Each channel convolved along an axis with its own Gaussian, in pixels; beyond the edge is nothing."""
    reach = max(1, round(REACH * max(sigmas)))
    steps = torch.arange(-reach, reach + 1)
    kernels = torch.exp(-0.5 * (steps / torch.tensor(sigmas)[:, None]) ** 2)
    kernels /= kernels.sum(1, keepdim=True)
    moved = pixels.movedim(axis, -1)
    smoothed = [
        F.conv1d(moved[:, channel].reshape(-1, 1, moved.shape[-1]), kernel[None, None], padding=reach)
        for channel, kernel in enumerate(kernels)
    ]
    return torch.stack([s.reshape(moved[:, 0].shape) for s in smoothed], 1).movedim(-1, axis)
