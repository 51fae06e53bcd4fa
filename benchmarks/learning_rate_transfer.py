"""The best learning rate over the width of the model, with and without the transfer of `models/width_transfer.py`.

Small masked transformers of several widths learn made-up tokens (`training/coordinate_check.py`: sine waves of an
unknown phase), with fresh objects at each step, at rates that grow by factors of two. The loss is the mean of the last
fifth of the steps. The best rate is that of a parabola through the least loss and its neighbours, in the logarithm of
the rate. With the transfer the narrowest model is the base of all. `rate_moves_with` and `rate_moves_without` are the
factors between the best rates of the narrowest and of the widest; `ratio_to_reference` is the second over the first.

    python benchmarks/learning_rate_transfer.py [--quick] [--picture FILE]
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from armillary.training.coordinate_check import made_up_tokens, small_transformer, split
from armillary.training.loop import LoopSettings, learning_rate, make_optimizer

BLOCKS, BATCH, TOKENS = 2, 16, 12


def final_loss(width: int, base_width: int | None, rate: float, steps: int, seed: int) -> float:
    """Mean loss in nats over the last fifth of the steps; the loss of a guess where training diverged."""
    transformer = small_transformer(width, BLOCKS, base_width and (base_width, BLOCKS), seed)
    settings = LoopSettings(steps=steps, learning_rate=rate, warmup_steps=steps // 10, weight_decay=0.0)
    optimizer = make_optimizer(transformer, settings)
    losses = []
    for step in range(steps):
        inputs, targets = split(made_up_tokens(BATCH, TOKENS, 10_000 * seed + step))
        loss = transformer(inputs, targets).loss
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step) * group["scale"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), settings.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    found = float(np.mean(losses[-max(1, steps // 5) :]))
    return min(found, losses[0]) if math.isfinite(found) else losses[0]


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Where a parabola through the least loss and its neighbours, over the logarithm of the rate, is least."""
    place = int(np.argmin(losses))
    if place in (0, len(rates) - 1):
        return rates[place]
    x, y = np.log(rates[place - 1 : place + 2]), np.asarray(losses[place - 1 : place + 2])
    curve = np.polyfit(x, y, 2)
    return float(np.exp(-curve[1] / (2 * curve[0]))) if curve[0] > 0 else rates[place]


def draw(path: Path, rates: Sequence[float], widths: Sequence[int], losses: dict[str, list[list[float]]]) -> None:
    """Loss over the rate for each width, without and with the transfer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, (name, of_widths) in zip(figure.subplots(1, 2, sharey=True), losses.items(), strict=True):
        for width, of_width in zip(widths, of_widths, strict=True):
            (line,) = axis.plot(rates, of_width, marker="o", markersize=3, label=f"width {width}")
            axis.axvline(best_rate(rates, of_width), color=line.get_color(), linewidth=1, linestyle=":")
        axis.set(xscale="log", title=f"{name} the transfer", xlabel="learning rate")
    figure.axes[0].set_ylabel("loss, nats")
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer widths, rates and steps")
    parser.add_argument("--picture", type=Path, help="PNG file to draw")
    options = parser.parse_args()
    widths, exponents, steps, seeds = (
        ((32, 128), range(-9, -3), 40, 1)
        if options.quick
        else (
            (64, 128, 256, 512),
            range(-12, -4),
            100,
            2,
        )
    )
    rates = [2.0**exponent for exponent in exponents]
    losses: dict[str, list[list[float]]] = {}
    for name, base in (("without", None), ("with", widths[0])):
        losses[name] = []
        for width in widths:
            if width == base:
                losses[name].append(losses["without"][0])  # they are the same
                continue
            of_rates = [[final_loss(width, base, rate, steps, seed) for seed in range(seeds)] for rate in rates]
            losses[name].append(np.mean(of_rates, 1).tolist())
            shown = ", ".join(f"{rate:.1e}: {loss:.3f}" for rate, loss in zip(rates, losses[name][-1], strict=True))
            print(f"{name} the transfer, width {width}: {shown}", flush=True)
    if options.picture is not None:
        draw(options.picture, rates, widths, losses)
    best = {name: [best_rate(rates, of_width) for of_width in of_widths] for name, of_widths in losses.items()}
    moves = {name: max(of[0] / of[-1], of[-1] / of[0]) for name, of in best.items()}
    figures = {
        "ratio_to_reference": round(moves["without"] / moves["with"], 2),
        "rate_moves_with": round(moves["with"], 2),
        "rate_moves_without": round(moves["without"], 2),
        "widths": list(widths),
        **{f"best_rate_{name}": [round(rate, 6) for rate in of] for name, of in best.items()},
        **{f"least_loss_{name}": [round(min(of), 4) for of in of_widths] for name, of_widths in losses.items()},
        "steps": steps,
        "seeds": seeds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
