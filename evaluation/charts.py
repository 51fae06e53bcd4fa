"""The pictures of an evaluation's report, from its plain data, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..training.tokenizer_report.charts import png
from .accuracy import LINE, OWN, PROBE, TREES, ZERO_SHOT
from .scores import JUDGED_LEVELS

COLOURS = {PROBE: "tab:red", ZERO_SHOT: "tab:blue", TREES: "tab:green", LINE: "0.6", "ResNet-18": "black"}
MOST_POINTS = 3000


def curves_chart(curve: Mapping[str, Any], networks: Sequence[Mapping[str, Any]], label: str) -> bytes:
    """Test R2 against number of labels: mean over draws, band from the worst to the best draw."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for method, scores in curve["r2"].items():
        low, mean, high = ([float(f(of)) for of in scores] for f in (np.min, np.mean, np.max))
        axis.plot(curve["counts"], mean, "o-", ms=4, color=COLOURS[method], label=_named(method, curve["subset"]))
        axis.fill_between(curve["counts"], low, high, color=COLOURS[method], alpha=0.15, lw=0)
    if networks:
        counts = sorted({n["num_labels"] for n in networks})
        mean = [float(np.mean([n["r2"] for n in networks if n["num_labels"] == count])) for count in counts]
        axis.plot(counts, mean, "s--", color="black", ms=5, label="ResNet-18 from nothing, same images")
        axis.axhline(mean[-1], color="black", lw=0.6, ls=":")
    axis.set(xscale="log", xlabel="labels", ylabel=f"R2 of {label} on test objects", ylim=(-0.15, 1.02))
    axis.axhline(0, color="0.7", lw=0.6)
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8, loc="lower right")
    return png(figure)


def real_curves_chart(curves: Mapping[str, Any]) -> bytes:
    """Scatter and R2 of real galaxies' redshifts against number of labels: mean over draws, from worst to best draw."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, score in ((left, "scatter"), (right, "r2")):
        for method, scores in curves[score].items():
            low, mean, high = ([float(f(of)) for of in scores] for f in (np.min, np.mean, np.max))
            colour = COLOURS.get(method, "tab:red")
            axis.plot(curves["counts"], mean, "o-", ms=4, color=colour, label=method)
            axis.fill_between(curves["counts"], low, high, color=colour, alpha=0.15, lw=0)
        axis.set(xscale="log", xlabel="labels")
        axis.grid(alpha=0.2)
    left.set(ylabel="robust scatter of dz / (1 + z)", yscale="log")
    right.set(ylabel="R2", ylim=(-0.15, 1.02))
    left.legend(fontsize=8)
    return png(figure)


def training_chart(networks: Sequence[Mapping[str, Any]]) -> bytes:
    """Validation R2 of each network by step; the state that was kept is marked."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for network in networks:
        steps = [row["step"] for row in network["curve"]]
        name = f"{network['num_labels']:,} labels"
        (line,) = left.plot(steps, [row["r2"] for row in network["curve"]], ".-", lw=1, label=name)
        best = [row for row in network["curve"] if row["step"] == network["best_step"]]
        left.plot([network["best_step"]], [best[0]["r2"]] if best else [np.nan], "o", color=line.get_color(), ms=7)
        right.plot(steps, [row["loss"] for row in network["curve"]], ".-", lw=1, color=line.get_color())
    left.set(xlabel="step", ylabel="R2 on validation objects", ylim=(-0.5, 1.0))
    right.set(xlabel="step", ylabel="training loss", yscale="log")
    left.legend(fontsize=7)
    return png(figure)


def scatter_chart(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> bytes:
    """Predicted against true values; `panels` are true and predicted values by title."""
    figure = Figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
    every = np.concatenate([true for true, _ in panels.values()])
    low, high = np.quantile(every, [0.002, 0.998])
    margin = 0.05 * (high - low)
    for axis, (title, (true, predicted)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        shown = slice(None, None, max(1, len(true) // MOST_POINTS))
        axis.plot([low, high], [low, high], color="0.5", lw=0.8)
        axis.plot(true[shown], predicted[shown], ".", ms=2.5, alpha=0.5)
        limits = (low - margin, high + margin)
        axis.set(xlabel=f"true {label}", ylabel=f"predicted {label}", xlim=limits, ylim=limits)
        axis.set_title(title, fontsize=9)
    return png(figure)


def calibration_chart(subsets: Mapping[str, Any], label: str) -> bytes:
    """PIT histograms (flat if calibrated) and coverage less its level, for each subset and method."""
    methods = [m for m in (ZERO_SHOT, PROBE, OWN) if any(m in labels[label] for labels in subsets.values())]
    figure = Figure(figsize=(3.4 * len(methods), 5.2), layout="constrained")
    axes = figure.subplots(2, len(methods), squeeze=False)
    for column, method in enumerate(methods):
        for name, labels in subsets.items():
            if method not in labels[label]:
                continue
            found = labels[label][method]["calibration"]
            axes[0, column].stairs(10 * np.array(found["pit"]), np.linspace(0, 1, 11), label=name)
            gap = [100 * (found["coverage"][str(level)] - level) for level in JUDGED_LEVELS]
            axes[1, column].plot([100 * level for level in JUDGED_LEVELS], gap, "o-", ms=3, lw=1)
        axes[0, column].axhline(1, color="0.5", lw=0.8, ls="--")
        axes[0, column].set(title=method, xlabel="PIT", ylim=(0, 2.5))
        axes[1, column].axhspan(-3, 3, color="0.5", alpha=0.15, lw=0)
        axes[1, column].set(xlabel="level of the interval, %", ylabel="coverage less level, points", ylim=(-15, 15))
    axes[0, 0].legend(fontsize=6)
    axes[0, 0].set_ylabel("density")
    return png(figure)


def retrieval_chart(pairs: Sequence[Mapping[str, Any]]) -> bytes:
    """Recall at 1, 10 and 100 in every direction, beside brightness alone and chance."""
    figure = Figure(figsize=(7.5, 0.9 + 0.42 * len(pairs)), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(pairs))
    styles = {"aligned space": ("tab:blue", 0.15), "brightness alone": ("tab:green", -0.15)}
    for method, (colour, shift) in styles.items():
        for count, alpha in ((100, 0.3), (10, 0.6), (1, 1.0)):
            values = [p["methods"].get(method, {}).get(f"recall_at_{count}", np.nan) for p in pairs]
            label = f"{method}, @{count}"
            axis.barh(place + shift, values, height=0.28, color=colour, alpha=alpha, label=label)
    chance = [next(iter(p["methods"].values()))["chance_at_10"] for p in pairs]
    axis.plot(chance, place, "k|", ms=12, label="chance @10")
    axis.set_yticks(place, [f"{p['query']} to {p['target']}" for p in pairs], fontsize=7)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="recall", xlim=(max(1e-5, min(chance) / 2), 1.05))
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)


def strata_chart(subsets: Mapping[str, Any], baselines: Mapping[str, Any], label: str) -> bytes:
    """RMS error by stratum of magnitude and of redshift."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    for axis, cut in zip(figure.subplots(1, 2), ("magnitude", "redshift"), strict=True):
        rows: list[tuple[str, Any, str | None, str]] = [(TREES, baselines[label][TREES], "tab:green", "--")]
        rows += [(f"{name}, {PROBE}", labels[label][PROBE], None, "-") for name, labels in subsets.items()]
        for name, scores, colour, style in rows:
            strata = scores["strata"].get(cut, [])
            axis.plot(range(len(strata)), [s["rms_error"] for s in strata], f"o{style}", ms=3, color=colour, label=name)
        first = baselines[label][TREES]["strata"].get(cut, [])
        axis.set_xticks(range(len(first)), [s["range"] for s in first], fontsize=7)
        axis.set(xlabel=cut, ylabel=f"RMS error of {label.split('/')[1]}", yscale="log")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=6)
    return png(figure)


def _named(method: str, subset: str) -> str:
    return method if method in (TREES, LINE) else f"{method} on frozen {subset}"
