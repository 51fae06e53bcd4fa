"""Pictures of examples: what was observed, what came back of the tokens, and the difference in units of the noise."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ...data.observations import ImageObservation, SpectrumObservation
from .charts import png
from .photometry import REFERENCE_WAVELENGTH

QUANTILES = {"image": (0.02, 0.25, 0.5, 0.75, 0.95, 0.99), "spectrum": (0.02, 0.5, 0.9, 0.99)}
"""Objects are shown at these quantiles of chi2 per valid pixel, from the best to the worst."""
STRETCH = 2.0
"""Noise levels above which the stretch of images turns from linear to logarithmic."""
SMOOTHING = 9
"""Pixels of a spectrum over which the black line is the mean."""


def choose_examples(chi2: Float[np.ndarray, " B"], quantiles: Sequence[float]) -> list[int]:
    """Rows of the objects at quantiles of chi2, ascending, each once; objects without a chi2 are never chosen."""
    known = np.flatnonzero(np.isfinite(chi2))
    ordered = known[np.argsort(chi2[known], kind="stable")]
    places = [round(quantile * (len(ordered) - 1)) for quantile in quantiles] if len(ordered) else []
    return [int(ordered[place]) for place in sorted(set(places))]


def image_examples(
    observed: ImageObservation, made: ImageObservation, true: Float[Tensor, "B C H W"] | None, notes: Sequence[str]
) -> bytes:
    """One column for each object, in the band nearest 6400 A: observed, the truth where known, from tokens, residual.

    Brightness is in units of the sky's noise through arcsinh, the residual in units of each pixel's own noise.
    """
    wavelengths = np.array([observed.card.band(band).wavelength for band in observed.bands])
    band = int(np.abs(wavelengths - REFERENCE_WAVELENGTH).argmin())
    rows: dict[str, Any] = {"observed": observed.flux, "from tokens": made.flux}
    if true is not None:
        rows = {"observed": observed.flux, "truth": true, "from tokens": made.flux}
    figure = Figure(figsize=(1.75 * len(observed) + 1.1, 1.7 * (len(rows) + 1) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows) + 1, len(observed), squeeze=False)
    seen = (observed.mask & made.mask)[:, band].numpy()
    size = np.array(observed.flux.shape[2:]) * observed.card.pixel_scale / 2
    place: dict[str, Any] = {"extent": (-size[1], size[1], -size[0], size[0]), "origin": "lower"}
    colours = mpl.colormaps["gray_r"].with_extremes(bad="tab:olive")
    divergent = mpl.colormaps["RdBu_r"].with_extremes(bad="tab:olive")
    for column in range(len(observed)):
        noise = float(observed.noise()[column, band])
        for row, (label, flux) in enumerate(rows.items()):
            scaled = np.arcsinh(flux[column, band].numpy() / noise / STRETCH)
            shown = np.where(seen[column], scaled, np.nan) if label == "observed" else scaled
            axes[row, column].imshow(shown, vmin=-1, vmax=5.5, cmap=colours, **place)
            axes[row, 0].set_ylabel(label)
        sigma = observed.inverse_variance[column, band].sqrt().numpy()
        residual = (observed.flux - made.flux)[column, band].numpy() * sigma
        drawn = axes[-1, column].imshow(
            np.where(seen[column], residual, np.nan), vmin=-5, vmax=5, cmap=divergent, **place
        )
        axes[0, column].set_title(f"{observed.object_id[column]}\n{notes[column]}", fontsize=7)
    axes[-1, 0].set_ylabel("residual")
    for axis in axes.flat:
        axis.tick_params(labelsize=6)
        if axis not in axes[:, 0]:
            axis.set_yticklabels([])
        if axis not in axes[-1]:
            axis.set_xticklabels([])
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9 / len(axes), anchor=(0, 0.02), label="residual, sigma")
    bar.ax.tick_params(labelsize=6)
    figure.align_ylabels(axes[:, 0])
    figure.supxlabel("arcsec", fontsize=8)
    figure.suptitle(f"{observed.modality.name}, band {observed.bands[band]}{_origin(true)}", fontsize=10)
    return png(figure, is_photograph=True)


def spectrum_examples(
    observed: SpectrumObservation, made: SpectrumObservation, true: Float[Tensor, "B L"] | None, notes: Sequence[str]
) -> bytes:
    """Two panels for each object: the spectrum with its reconstruction, and below the residual over the noise."""
    figure = Figure(figsize=(10, 2.5 * len(observed) + 0.4), layout="constrained")
    axes = figure.subplots(2 * len(observed), 1, squeeze=False, height_ratios=[3, 1] * len(observed))[:, 0]
    for row in range(len(observed)):
        upper, lower = axes[2 * row], axes[2 * row + 1]
        seen = (observed.mask & made.mask)[row].numpy()
        wavelength = observed.wavelength[row].numpy()[seen]
        flux, back = observed.flux[row].numpy()[seen], made.flux[row].numpy()[seen]
        smooth = _smoothed(flux)
        upper.plot(wavelength, flux, color="0.82", lw=0.4, label="observed")
        upper.plot(wavelength, smooth, color="black", lw=0.6, label=f"observed, mean of {SMOOTHING} pixels")
        if true is not None:
            upper.plot(wavelength, true[row].numpy()[seen], color="tab:blue", lw=0.7, label="truth")
        upper.plot(wavelength, back, color="tab:red", lw=0.7, label="from tokens")
        low, high = np.percentile(smooth, [0.5, 99.8]) if len(smooth) else (0.0, 1.0)
        upper.set_ylim(min(0, low) - 0.1 * abs(high), 1.4 * high)
        upper.set_title(f"{observed.object_id[row]}, {notes[row]}", fontsize=8, loc="left")
        upper.set_ylabel("flux", fontsize=8)
        residual = (flux - back) * observed.inverse_variance[row].sqrt().numpy()[seen]
        lower.plot(wavelength, residual, color="0.6", lw=0.3)
        lower.plot(wavelength, _smoothed(residual), color="black", lw=0.6)
        lower.set_ylim(-5, 5)
        lower.set_ylabel("sigma", fontsize=8)
        upper.sharex(lower)
        upper.tick_params(labelbottom=False)
    axes[0].legend(fontsize=7, loc="upper right", ncols=4)
    axes[-1].set_xlabel("wavelength in vacuum, angstrom", fontsize=8)
    figure.align_ylabels(list(axes))
    figure.suptitle(f"{observed.modality.name}{_origin(true)}; flux in 1e-17 erg/s/cm2/A", fontsize=10)
    return png(figure)


def _origin(true: Any) -> str:
    return "" if true is None else ", simulated"


def _smoothed(values: np.ndarray) -> np.ndarray:
    if len(values) < SMOOTHING:
        return values
    return np.convolve(np.pad(values, SMOOTHING // 2, mode="edge"), np.ones(SMOOTHING) / SMOOTHING, "valid")
