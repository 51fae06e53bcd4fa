"""Charts of the report, from its plain data, as PNG bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from PIL import Image

from .held_out_instrument import WRONG

Results = Mapping[str, Mapping[str, Any]]
"""Summaries of modalities, by name."""


def flux_bias_chart(results: Results) -> bytes:
    """Flux bias against magnitude: pooled and median in each bin, a panel for each modality."""
    figure, axes = _panels(len(results), height=2.9)
    for axis, (name, summary) in zip(axes, results.items(), strict=True):
        bins = [b for b in summary["flux_bias"]["bins"] if b["num_sources"] > 1]
        middle = [_middle(b["brightest"], b["faintest"]) for b in bins]
        for shift, key, colour, marker in ((-0.08, "pooled", "black", "o"), (0.08, "median", "tab:red", "s")):
            axis.errorbar(
                np.array(middle) + shift,
                [100 * b[key] for b in bins],
                [100 * _number(b[f"{key}_error"]) for b in bins],
                fmt=marker,
                ms=3.5,
                color=colour,
                lw=1,
                label="sum of all" if key == "pooled" else "median",
            )
        for limit in (1, 3):
            axis.axhspan(-limit, limit, color="0.5", alpha=0.15, lw=0)
        reach = max([4.0, *(1.2 * 100 * abs(b[key]) for b in bins for key in ("pooled", "median"))])
        axis.set(
            ylim=(-reach, reach), xlabel="AB magnitude", ylabel=f"flux bias, % of {summary['flux_bias']['against']}"
        )
        axis.set_title(_titled(name, summary), fontsize=9)
    axes[0].legend(fontsize=7)
    return png(figure)


def signal_to_noise_chart(results: Results) -> bytes:
    """chi2 per valid pixel against the pixel's signal-to-noise ratio; the dashed line is what a perfect codec gets."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, summary in results.items():
        bins = summary["by_signal_to_noise"]
        places = [_middle_of_ratio(b["low"], b["high"]) for b in bins]
        axis.plot(places, [b["chi2"] for b in bins], "o-", ms=3.5, lw=1, label=_titled(name, summary))
    axis.axhline(1, color="0.5", lw=0.8, ls="--")
    axis.set(xscale="log", yscale="log", xlabel="light without noise over the pixel's noise", ylabel="chi2 per pixel")
    axis.legend(fontsize=7)
    return png(figure)


def codebook_chart(results: Results) -> bytes:
    """How often each code of the learned codebook occurs, the most frequent first, on sources and on sky."""
    figure, axes = _panels(len(results), height=2.7)
    for axis, (name, summary) in zip(axes, results.items(), strict=True):
        for place, colour in (("source", "tab:red"), ("sky", "0.5")):
            counts = np.array(summary["histogram"][place], float)
            scores = learned_codebook(summary)[place]
            if len(counts):
                label = f"{place}: perplexity {scores['perplexity']:.0f} of {scores['vocabulary']}"
                axis.step(np.arange(1, len(counts) + 1), counts / counts.sum(), color=colour, label=label)
        axis.set(xscale="log", yscale="log", xlabel="rank of the code", ylabel="share of tokens")
        axis.set_title(_titled(name, summary), fontsize=9)
        axis.legend(fontsize=7)
    return png(figure)


def economy_chart(points: Sequence[Mapping[str, Any]]) -> bytes:
    """Quality against tokens for each object: a line for each modality through its points.

    A point has `modality`, `tokens`, `rms_error`, `chi2_source`, and the redshift's R2 from reconstructions
    and from tokens (None where it was not probed).
    """
    quantities = {
        "rms_error": "RMS error of source pixels, sigma",
        "chi2_source": "chi2 per source pixel",
        "redshift_reconstruction": "redshift R2 from reconstructions",
        "redshift_tokens": "redshift R2 from tokens",
    }
    figure = Figure(figsize=(3.1 * len(quantities), 3.4), layout="constrained")
    axes = figure.subplots(1, len(quantities))
    for axis, (key, title) in zip(axes, quantities.items(), strict=True):
        for name in dict.fromkeys(point["modality"] for point in points):
            curve = sorted((p for p in points if p["modality"] == name), key=lambda p: float(p["tokens"]))
            values = [_number(point[key]) for point in curve]
            axis.plot([point["tokens"] for point in curve], values, "o-", ms=3.5, lw=1, label=name)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set(xlabel="tokens for each object", ylabel=title)
        axis.yaxis.label.set_size(8)
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    # Beside the panels, which are too full for it and for the names of the tokenizers.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return png(figure)


def held_out_chart(results: Results) -> bytes:
    """RMS error of source pixels in units of the noise, by what the tokenizer knew of the instrument."""
    figure = Figure(figsize=(7, 0.8 + 1.3 * len(results)), layout="constrained")
    axis = figure.subplots()
    order = ("trained on", "never seen", *WRONG)
    colours = ("0.6", "black", "tab:orange", "tab:purple", "tab:red")
    for number, (label, colour) in enumerate(zip(order, colours, strict=True)):
        found = [
            (n, r["variants"][label]["source"]["rms_error"])
            for n, r in enumerate(results.values())
            if label in r["variants"] and r["variants"][label]["source"]["rms_error"] is not None
        ]
        places = [place + 0.17 * (number - 2) for place, _ in found]
        axis.barh(places, [value for _, value in found], height=0.15, color=colour, label=label)
        for place, (_, value) in zip(places, found, strict=True):
            axis.text(value, place, f" {value:.2f}", va="center", fontsize=7)
    axis.set_yticks(range(len(results)), list(results))
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set(xscale="log", xlabel="RMS error of source pixels, sigma")
    axis.legend(fontsize=7)
    return png(figure)


def learned_codebook(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of a modality's learned codebook, by place."""
    return next(iter(summary["codebooks"].values()))


def png(figure: Figure, *, is_photograph: bool = False) -> bytes:
    """The figure as a small PNG: of 256 colours, or of fewer pixels where steps of grey would be seen."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=75 if is_photograph else 90)
    drawn.seek(0)
    with Image.open(drawn) as picture:
        shown = picture.convert("RGB")
        shown = shown if is_photograph else shown.quantize(256, Image.Quantize.FASTOCTREE)
        shown.save(small, format="PNG", optimize=True)
    return small.getvalue()


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    columns = min(3, max(1, count))
    rows = -(-max(1, count) // columns)
    figure = Figure(figsize=(3.7 * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _titled(name: str, summary: Mapping[str, Any]) -> str:
    return f"{name}, simulated" if summary["is_simulated"] else name


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _middle(brightest: float | None, faintest: float | None) -> float:
    """Where a bin of magnitudes is drawn; an open one half a magnitude beyond its edge."""
    low, high = (math.nan if v is None or not math.isfinite(v) else v for v in (brightest, faintest))
    if math.isnan(low):
        return high - 0.5
    return low + 0.5 if math.isnan(high) else (low + high) / 2


def _middle_of_ratio(low: float | None, high: float | None) -> float:
    """Where a bin of signal-to-noise ratios is drawn: its geometric middle; an open one beside its edge."""
    if low is None or low == -math.inf:
        return 0.5 * _number(high)
    return 2 * low if high is None or high == math.inf else math.sqrt(low * high)
