"""How test error falls with the number of labels: our probe and neighbours, a network from nothing, and magnitudes.

Each number of labels is drawn several times; all methods see the same draws. The probe chooses its penalty by
leave-one-out and asks no validation object; neighbours choose k and temperature on validation objects, and the network
its best step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.probes import LinearProbe
from .accuracy import LINE, PROBE, TREES, ZERO_SHOT
from .baselines import fit_trees, line_values, magnitudes_and_colours
from .objects import EvaluationObjects, Subset
from .scores import bootstrap_r_squared, interval_of, r_squared
from .supervised import num_steps, read_images, train_network
from .vectors import VectorStore
from .zero_shot import Gallery, best_setting, values_for_all_settings

NETWORK = "ResNet-18"


def draw(truth: Float[np.ndarray, " A"], count: int, seed: int) -> Int[np.ndarray, " R"]:
    """Rows of `count` labelled objects at random; a smaller draw of one seed is part of a larger one."""
    known = np.flatnonzero(np.isfinite(truth))
    return np.random.default_rng(seed).permutation(known)[:count]


def counts_of(objects: EvaluationObjects, label: str, wanted: tuple[int, ...]) -> list[int]:
    """The wanted numbers of labels that are fewer than all, and all."""
    return counts_below(int(np.isfinite(objects.label(label, "train")).sum()), wanted)


def counts_below(every: int, wanted: tuple[int, ...]) -> list[int]:
    """Those of `wanted` below `every`, in order, and `every`."""
    return [*sorted({count for count in wanted if count < every}), every]


def frozen_curves(
    objects: EvaluationObjects,
    vectors: VectorStore,
    subset: Subset,
    label: str,
    spaces: dict[str, str],
    gallery: Sequence[Subset],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """R2 on test objects by method, number of labels and draw, of what is fitted on frozen vectors or on magnitudes.

    `spaces` says which vectors the probe and the neighbours take, `gallery` by what labelled neighbours are found.
    """
    truth = {part: objects.label(label, part) for part in objects.ids}
    test = np.isfinite(truth["test"])
    features = {part: magnitudes_and_colours(objects.magnitudes(part)) for part in objects.ids}
    of_probe, of_neighbours = (
        {part: vectors.get(subset, space, ids) for part, ids in objects.ids.items()}
        for space in (spaces[PROBE], spaces[ZERO_SHOT])
    )
    of_neighbours["train"] = vectors.together(gallery, spaces[ZERO_SHOT], objects.ids["train"])
    counts = counts_of(objects, label, objects.settings.label_counts)
    scores: dict[str, list[list[float]]] = {PROBE: [], ZERO_SHOT: [], TREES: [], LINE: []}
    for count in counts:
        # All labels are drawn in one way only.
        seeds = range(objects.settings.seeds if count < counts[-1] else 1)
        for found in scores.values():
            found.append([])
        for seed in seeds:
            rows = draw(truth["train"], count, seed)
            labels = truth["train"][rows]
            probe = LinearProbe(intervals="constant").fit(of_probe["train"][rows], labels)
            predicted = {
                PROBE: probe.predict(of_probe["test"]),
                ZERO_SHOT: _by_neighbours(of_neighbours, rows, truth, spaces[ZERO_SHOT]),
                TREES: fit_trees(features["train"][rows], labels).predict(features["test"]),
                LINE: line_values(features["train"][rows], labels, features["test"]),
            }
            for name, values in predicted.items():
                scores[name][-1].append(float(r_squared(values[test], truth["test"][test])))
            advance()
    return {"counts": counts, "r2": scores, "subset": subset.name, "spaces": spaces}


def _by_neighbours(
    vectors: dict[str, np.ndarray], rows: Int[np.ndarray, " R"], truth: dict[str, np.ndarray], space: str
) -> Float[np.ndarray, " B"]:
    gallery = Gallery.of(vectors["train"][rows], truth["train"][rows], space)
    usable = np.isfinite(truth["validation"])
    best = best_setting(*gallery.search(vectors["validation"][usable]), truth["validation"][usable])
    return values_for_all_settings(*gallery.search(vectors["test"]))[best]


class SupervisedRival:
    """Trains the networks; images are read once, when the first is trained."""

    def __init__(self, objects: EvaluationObjects):
        assert objects.settings.supervised is not None
        self.objects = objects
        self.settings = objects.settings.supervised
        self._images: dict[str, Float[Tensor, "B C H W"]] = {}

    def steps(self, count: int) -> int:
        """Steps of one training."""
        return num_steps(self.settings, count)

    def measure(self, label: str, count: int, seed: int, advance: Callable[[int], None]) -> dict[str, Any]:
        """R2 on test objects of a network trained on `count` labels, its curve and its predictions."""
        objects = self.objects
        truth = {part: objects.label(label, part) for part in objects.ids}
        rows = draw(truth["train"], count, seed)
        usable = np.flatnonzero(np.isfinite(truth["validation"]))
        test = np.flatnonzero(np.isfinite(truth["test"]))
        images = {part: self._of(part) for part in objects.ids}
        found = train_network(
            images["train"][torch.from_numpy(rows)],
            truth["train"][rows],
            images["validation"][torch.from_numpy(usable)],
            truth["validation"][usable],
            images["test"][torch.from_numpy(test)],
            self.settings,
            seed,
            objects.settings.device,
            advance,
        )
        true = truth["test"][test]
        samples = bootstrap_r_squared(found.predicted, true, objects.settings.num_bootstrap)
        return {
            "num_labels": count,
            "seed": seed,
            "r2": float(r_squared(found.predicted, true)),
            "r2_interval": interval_of(samples),
            **found.record(),
            "predicted": [float(f"{number:.6g}") for number in found.predicted],
            "rows": test.tolist(),
        }

    def _of(self, part: str) -> Float[Tensor, "B C H W"]:
        if part not in self._images:
            self._images[part] = read_images(self.objects.dataset, self.settings.modality, self.objects.ids[part])
        return self._images[part]
