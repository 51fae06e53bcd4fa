"""The first token of a spectrum: its amplitude, by which all else is scaled, and how far it stands above the noise.

Both are lower medians over windows of the middle of the optical range, so that neither a line, nor a bad stretch, nor
where the spectrum begins and ends moves them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .quantizers import even_bins, number_features, rank_features
from .spectrum_windows import WindowedSpectrum, WindowGrid

AMPLITUDE_RANGE = (-4.0, 6.0)
"""Limits of log10 of the amplitude, in 1e-17 erg/s/cm2/A: fainter than any survey, brighter than any galaxy."""
SPAN = (5000.0, 8000.0)
"""Wavelengths (angstrom) of the windows that are asked, where a spectrum covers a third of them; else all are."""
SIGNAL_TO_NOISE = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Edges between the bins of the signal-to-noise ratio of a window's mean flux."""
NUM_RATIOS = 1 + len(SIGNAL_TO_NOISE)


def measure_amplitude(spectrum: WindowedSpectrum, grid: WindowGrid) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Amplitude (in units of flux) and signal-to-noise ratio; a window counts with its error where it has less flux."""
    total = spectrum.weight.sum(-1).clamp(min=1e-30)
    level = (spectrum.weight * spectrum.flux).sum(-1) / total
    size = torch.hypot(level, total.rsqrt())
    middles = grid.middles().exp().to(size.device)
    span = (middles > SPAN[0]) & (middles < SPAN[1])
    inner = spectrum.is_valid & span
    enough = inner.sum(1, keepdim=True) * 3 >= span.sum().clamp(min=1)
    asked = torch.where(enough, inner, spectrum.is_valid)
    amplitude, ratio = (torch.where(asked, x, torch.nan).nanmedian(1).values for x in (size, size * total.sqrt()))
    return amplitude, ratio


def amplitude_codes(
    amplitude: Float[Tensor, " B"], ratio: Float[Tensor, " B"], num_amplitudes: int
) -> Int[Tensor, " B"]:
    """The bin of the amplitude, even in its logarithm, times NUM_RATIOS, plus the bin of the signal-to-noise ratio."""
    low, high = AMPLITUDE_RANGE
    bins = ((amplitude.log10() - low) / (high - low) * num_amplitudes).long().clamp(0, num_amplitudes - 1)
    return bins * NUM_RATIOS + torch.bucketize(ratio, torch.tensor(SIGNAL_TO_NOISE, device=ratio.device))


def amplitude_of_codes(codes: Int[Tensor, " B"], num_amplitudes: int) -> Float[Tensor, " B"]:
    """The middle of each amplitude's bin; codes out of range count as the nearest."""
    low, high = AMPLITUDE_RANGE
    bins = (codes // NUM_RATIOS).clamp(0, num_amplitudes - 1)
    return 10 ** (low + (high - low) * (bins + 0.5) / num_amplitudes)


def ratio_of_codes(codes: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The signal-to-noise ratio's bin as a number of order one, rising by a half from bin to bin."""
    return (codes % NUM_RATIOS - 0.5 * len(SIGNAL_TO_NOISE)) / 2


def amplitude_numbers(num_amplitudes: int) -> Float[Tensor, "V 3"]:
    """What is read of codes: one, log10 of the amplitude, and the signal-to-noise ratio as `ratio_of_codes` has it."""
    amplitudes = number_features(even_bins(AMPLITUDE_RANGE, num_amplitudes)).repeat_interleave(NUM_RATIOS, 0)
    return torch.cat([amplitudes, ratio_of_codes(torch.arange(len(amplitudes)))[:, None]], 1)


def amplitude_features(num_amplitudes: int) -> Float[Tensor, "V S"]:
    """What codes share: cosines of the rank of the amplitude, and the bin of the signal-to-noise ratio."""
    ranks, ratios = rank_features(num_amplitudes), torch.eye(NUM_RATIOS)
    return torch.cat([ranks.repeat_interleave(NUM_RATIOS, 0), ratios.repeat(num_amplitudes, 1)], 1)
