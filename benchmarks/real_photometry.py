"""Redshifts of real galaxies from their real photometry (SDSS ugriz, 2MASS jhk): probes of a checkpoint against trees.

Each predictor learns from the training galaxies alone; which of several probes is best, the validation galaxies say;
the test galaxies are asked once. Probes see the frozen encoder's vectors of the eight magnitudes: their mean, all of
them side by side (linearly, and by a kernel), and by attention, of the last layer and of others. Trees see magnitudes
and colours. Baselines: the median, and ridge regression on the magnitudes. `ratio_to_reference`: scatter of the trees
over that of the chosen probe.

    python benchmarks/real_photometry.py CHECKPOINT DATA --parts FOLDER [--quick] [--layers 0 2 4]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from armillary.data.dataset import ObservationDataset
from armillary.models.attentive_probe import AttentiveProbe
from armillary.models.foundation import FoundationModel
from armillary.models.kernel_probe import KernelProbe
from armillary.models.probes import LinearProbe
from armillary.models.token_embeddings import TokenEmbeddings

REDSHIFT = "scalar/redshift"
MAGNITUDES = (*(f"scalar/sdss_{band}" for band in "ugriz"), *(f"scalar/twomass_{band}" for band in "jhk"))
PARTS = ("train", "validation", "test")
PREFIX = "sdss-"
OUTLIER = 0.05
"""|dz| / (1 + z) above which a redshift of these nearby galaxies counts as an outlier."""
QUICK = 600
"""Training galaxies with --quick."""


def read_parts(dataset: ObservationDataset, folder: Path, most: int | None) -> dict[str, list[str]]:
    """Ids of the real galaxies of each part."""
    known = [i for i in dataset.object_ids(REDSHIFT) if i.startswith(PREFIX)]
    parts = {}
    for part in PARTS:
        members = set((folder / f"{part}.txt").read_text(encoding="utf-8").split())
        parts[part] = [i for i in known if i in members][: most if part == "train" else None]
        if not parts[part]:
            raise SystemExit(f"{folder / part}.txt: expected ids of galaxies {PREFIX}*, found none of the dataset's")
    return parts


def scores_of(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """`scatter` is 1.4826 times the median absolute deviation of dz / (1 + z)."""
    error = (predicted - true) / (1 + true)
    found = {
        "scatter": 1.4826 * np.median(np.abs(error - np.median(error))),
        "r2": 1 - np.square(predicted - true).sum() / np.square(true - true.mean()).sum(),
        "outliers": (np.abs(error) > OUTLIER).mean(),
        "bias": error.mean(),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def trees_of(train: np.ndarray, labels: np.ndarray) -> HistGradientBoostingRegressor:
    """Gradient-boosted trees for the median, with the settings of the demo."""
    trees = HistGradientBoostingRegressor(
        loss="quantile", quantile=0.5, max_iter=300, learning_rate=0.05, random_state=0
    )
    return trees.fit(train, labels)


def probes_of(
    tokens: dict[str, dict[str, TokenEmbeddings]], settings: dict[str, Any]
) -> dict[str, tuple[Any, Callable[[str], Any]]]:
    """Each probe, and what it sees of a part."""
    found: dict[str, tuple[Any, Callable[[str], Any]]] = {}
    for name, given in tokens.items():
        found[f"linear probe, mean, {name}"] = (LinearProbe(), lambda part, of=given: of[part].pooled().numpy())
        beside = {part: of_part.side_by_side() for part, of_part in given.items()}
        found[f"linear probe, side by side, {name}"] = (LinearProbe(), lambda part, of=beside: of[part])
        found[f"kernel probe, side by side, {name}"] = (KernelProbe(), lambda part, of=beside: of[part])
        found[f"attentive probe, {name}"] = (AttentiveProbe(**settings), lambda part, of=given: of[part])
    return found


def compare(checkpoint: Path, data: Path, parts_folder: Path, layers: list[int], quick: bool) -> dict[str, Any]:
    """Scores of every predictor on validation and test galaxies, and the probe that validation chooses."""
    dataset, model = ObservationDataset(data), FoundationModel.load(checkpoint)
    parts = read_parts(dataset, parts_folder, QUICK if quick else None)
    numbers = dataset.scalars()
    true = {part: np.array([numbers[REDSHIFT][i] for i in ids]) for part, ids in parts.items()}
    magnitudes = {
        part: np.array([[numbers[name].get(i, np.nan) for name in MAGNITUDES] for i in ids])
        for part, ids in parts.items()
    }
    observations = {part: [dataset.read(name, ids) for name in MAGNITUDES] for part, ids in parts.items()}
    spaces: dict[str, list[int]] = {"last layer": []} | ({f"layers {layers}": layers} if layers else {})
    tokens = {
        name: {part: model.embed_tokens(given, chosen, 512) for part, given in observations.items()}
        for name, chosen in spaces.items()
    }
    figures: dict[str, Any] = {"model_id": model.model_id, "objects": {p: len(ids) for p, ids in parts.items()}}

    def told(name: str, predict: Callable[[str], np.ndarray], seconds: float, **more: Any) -> None:
        figures[name] = {part: scores_of(predict(part), true[part]) for part in ("validation", "test")}
        figures[name] |= {"fit_s": round(seconds, 1), **more}
        print(f"{name}:", json.dumps(figures[name]), flush=True)

    told("median", lambda part: np.full(len(true[part]), np.median(true["train"])), 0.0)
    known = np.nanmedian(magnitudes["train"], 0)
    filled = {part: np.where(np.isfinite(m), m, known) for part, m in magnitudes.items()}
    ridge = LinearProbe().fit(filled["train"], true["train"])
    told("ridge on magnitudes", lambda part: ridge.predict(filled[part]), 0.0)
    trees_see = {part: np.concatenate([m, np.diff(m, axis=1)], 1) for part, m in magnitudes.items()}
    began = time.perf_counter()
    trees = trees_of(trees_see["train"], true["train"])
    told("gradient-boosted trees", lambda part: trees.predict(trees_see[part]), time.perf_counter() - began)
    settings = {"members": 2, "epochs": 5, "width": 32} if quick else {}
    probes = probes_of(tokens, settings)
    for name, (probe, seen) in probes.items():
        began = time.perf_counter()
        probe.fit(seen("train"), true["train"])
        found = probe.predict_full(seen("test"))
        inside = (found.lower <= true["test"][:, None]) & (true["test"][:, None] <= found.upper)
        coverage = {str(level): round(float(c), 3) for level, c in zip(found.levels, inside.mean(0), strict=True)}
        outside = None if found.is_outside is None else round(float(found.is_outside.mean()), 4)
        fitted, see = probe, seen
        told(
            name,
            lambda part, probe=fitted, see=see: probe.predict(see(part)),
            time.perf_counter() - began,
            coverage=coverage,
            outside=outside,
        )
    best = min(probes, key=lambda name: figures[name]["validation"]["scatter"])
    of_trees = figures["gradient-boosted trees"]["test"]["scatter"]
    figures["chosen"] = best
    figures["ratio_to_reference"] = round(of_trees / figures[best]["test"]["scatter"], 3)
    return figures


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of pretraining or alignment")
    parser.add_argument("data", type=Path, nargs="?", help="dataset with the real galaxies, as the demo makes it")
    parser.add_argument("--parts", type=Path, help="folder of train.txt, validation.txt and test.txt")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="blocks to look after, beside the last")
    parser.add_argument("--quick", action="store_true", help="fewer galaxies, short training")
    options = parser.parse_args()
    if options.checkpoint is None or options.data is None or options.parts is None:
        # `make bench` has no checkpoint at hand.
        print(json.dumps({"skipped": "needs CHECKPOINT DATA --parts FOLDER"}))
        return
    print(json.dumps(compare(options.checkpoint, options.data, options.parts, options.layers, options.quick)))


if __name__ == "__main__":
    main()
