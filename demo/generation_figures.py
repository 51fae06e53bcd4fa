"""The pictures of what the demo's model generates from one image: spectra, redshift distributions, and their PITs."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import png


def generated_spectra(shown: list[dict[str, Any]]) -> bytes:
    """For each object its spectrum, median, intervals and two of the samples; beside it the redshift's density."""
    figure = Figure(figsize=(11, 2.6 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 2, squeeze=False, gridspec_kw={"width_ratios": [3.2, 1]})
    for (left, right), one in zip(rows, shown, strict=True):
        _draw_spectrum(left, one)
        _draw_redshift(right, one)
    rows[0, 0].legend(fontsize=8, loc="upper right", ncols=3)
    rows[-1, 0].set_xlabel("wavelength in vacuum, angstrom")
    rows[-1, 1].set_xlabel("redshift")
    return png(figure)


def pit_histograms(results: dict[str, Any]) -> bytes:
    """Counts of the probability integral transform, over their mean: flat if the model is calibrated."""
    most = list(results["spectra"])[-1]
    panels = {"redshift": results["redshift"]["pit"]}
    for stages, scores in results["spectra"].items():
        panels[f"flux, {in_stages(stages)}"] = scores["flux"]["pit"]
    panels[f"colour, {in_stages(most)}"] = results["spectra"][most]["colour"]["pit"]
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axis, (title, counts) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        share = np.array(counts) / np.mean(counts)
        axis.bar((np.arange(len(counts)) + 0.5) / len(counts), share, width=0.95 / len(counts))
        axis.axhline(1.0, color="black", lw=0.8)
        axis.set(title=title, xlabel="PIT", xlim=(0, 1))
    figure.axes[0].set_ylabel("count / mean")
    return png(figure)


def in_stages(count: str) -> str:
    """`1 stage`, `8 stages`."""
    return f"{count} stage" if count == "1" else f"{count} stages"


def _draw_spectrum(axis: Axes, one: dict[str, Any]) -> None:
    wavelength = np.array(one["wavelength"])
    axis.plot(wavelength, one["observed"], color="0.55", lw=0.5, label="observed, mean of 8 pixels")
    for level, alpha, name in (("0.95", 0.18, "95 %"), ("0.68", 0.35, "68 %")):
        low, high = one[f"low_{level}"], one[f"high_{level}"]
        axis.fill_between(wavelength, low, high, color="tab:red", alpha=alpha, lw=0, label=f"{name} of samples")
    axis.plot(wavelength, one["median"], color="tab:red", lw=1.0, label="median of samples")
    for number, colour in ((0, "tab:blue"), (1, "tab:green")):
        axis.plot(wavelength, one[f"sample_{number}"], color=colour, lw=0.5, label=f"sample {number + 1}")
    top = max(np.percentile(one["observed"], 99.5), np.percentile(one["high_0.95"], 90))
    axis.set_ylim(min(0.0, float(np.percentile(one["observed"], 0.5))), 1.25 * float(top))
    axis.set_ylabel("1e-17 erg/s/cm2/A")
    axis.set_title(f"simulated galaxy {one['object']}", fontsize=9, loc="left")


def _draw_redshift(axis: Axes, one: dict[str, Any]) -> None:
    quantiles = np.array(one["quantiles"])
    density = 1 / len(quantiles) / np.maximum(np.diff(quantiles), 1e-5)
    axis.stairs(density, quantiles, fill=True, color="tab:red", alpha=0.35)
    axis.axvline(one["redshift"], color="black", lw=1.0, label="true")
    axis.set(yticks=[], ylim=(0, 1.3 * float(np.percentile(density, 95))))
    axis.set_title("predicted redshift; line: true", fontsize=9, loc="left")
