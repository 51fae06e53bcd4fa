"""Redshifts of real galaxies from real photometry: ours beside trees trained on the same labels and magnitudes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.attentive_probe import AttentiveProbe
from ..models.kernel_probe import KernelProbe
from ..models.probes import LinearProbe
from ..models.token_embeddings import TokenEmbeddings
from .accuracy import CONSTANT, LINE, OWN, PROBE, TREES, ZERO_SHOT, own_prediction
from .baselines import (
    Predicted,
    fit_trees,
    line_values,
    magnitudes_and_colours,
    predict_constant,
    predict_line,
    predict_with_probe,
    predict_with_trees,
)
from .label_efficiency import counts_below, draw
from .objects import LEAST, EvaluationObjects, Subset
from .scores import compare, r_squared, redshift_scatter, score_intervals, score_values
from .settings import REDSHIFT, EvaluateSettings
from .vectors import VectorStore
from .zero_shot import Gallery, ZeroShot

ATTENTIVE = "attentive probe"
KERNEL = "kernel probe"
TREES_LOSS = "absolute_error"
"""The robust scatter asks for a median, and so do the trees."""


@dataclass(frozen=True)
class _Galaxies:
    """By part: redshifts, what trees see, and the vectors of the magnitudes' tokens; the last not of validation."""

    truth: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    tokens: dict[str, TokenEmbeddings]

    def side_by_side(self) -> dict[str, np.ndarray]:
        """The vectors of a galaxy's tokens as one."""
        return {part: tokens.side_by_side().numpy() for part, tokens in self.tokens.items()}


def measure_real_galaxies(objects: EvaluationObjects, vectors: VectorStore) -> dict[str, Any]:
    """Scores by method on test galaxies; without galaxies enough, `num_objects` says how many there are."""
    names = [name for name in objects.settings.real_photometry if name in objects.names]
    ids = objects.real_galaxies(REDSHIFT, names)
    answer: dict[str, Any] = {"num_objects": {part: len(members) for part, members in ids.items()}, "magnitudes": names}
    if any(len(members) < LEAST[part] for part, members in ids.items()):
        return answer
    subset = Subset("real photometry", tuple(names))
    galaxies = _Galaxies(
        {part: objects.label(REDSHIFT, members) for part, members in ids.items()},
        {part: magnitudes_and_colours(objects.magnitudes(members, names)) for part, members in ids.items()},
        {part: vectors.token_vectors(subset, ids[part]) for part in ("train", "test")},
    )
    true = galaxies.truth["test"]
    predicted = _predictions(vectors, subset, ids, galaxies)
    count = objects.settings.num_bootstrap
    answer["methods"] = {
        name: score_values(value, true, count, is_redshift=True)
        | {
            "calibration": score_intervals(bounds, true, count),
            "predicted": [float(f"{number:.6g}") for number in value],
        }
        for name, (value, bounds) in predicted.items()
    }
    trees = predicted[TREES][0]
    answer["scatter_less_trees"] = {
        name: compare(value, trees, true, count, redshift_scatter)
        for name, (value, _) in predicted.items()
        if name not in (CONSTANT, LINE, TREES)
    }
    answer["curves"] = _curves(galaxies, objects.settings)
    answer["true"] = [float(f"{number:.6g}") for number in true]
    return answer


def _predictions(
    vectors: VectorStore, subset: Subset, ids: dict[str, list[str]], galaxies: _Galaxies
) -> dict[str, Predicted]:
    truth, features, tokens = galaxies.truth, galaxies.features, galaxies.tokens
    of_trees = predict_with_trees(
        features["train"], truth["train"], features["validation"], truth["validation"], features["test"], TREES_LOSS
    )
    found = {
        CONSTANT: predict_constant(truth["train"], len(truth["test"])),
        LINE: predict_line(features["train"], truth["train"], features["test"]),
        TREES: of_trees,
    }
    encoded = {part: vectors.get(subset, "encoder", members) for part, members in ids.items()}
    fitted = ZeroShot.fit(
        Gallery.of(encoded["train"], truth["train"], "encoder"), encoded["validation"], truth["validation"], REDSHIFT
    )
    found[ZERO_SHOT] = fitted.predict(encoded["test"])
    found[PROBE] = predict_with_probe(LinearProbe().fit(encoded["train"], truth["train"]), encoded["test"])
    found[ATTENTIVE] = predict_with_probe(AttentiveProbe().fit(tokens["train"], truth["train"]), tokens["test"])
    beside = galaxies.side_by_side()
    found[KERNEL] = predict_with_probe(KernelProbe().fit(beside["train"], truth["train"]), beside["test"])
    if REDSHIFT in {m.name for m in vectors.model.modalities}:
        found[OWN] = own_prediction(vectors.model, vectors, subset, ids["test"], REDSHIFT)
    return found


def _curves(galaxies: _Galaxies, settings: EvaluateSettings) -> dict[str, Any]:
    """Scatter and R2 on test galaxies by method, number of labels and draw; all methods see the same draws."""
    truth, features, beside = galaxies.truth, galaxies.features, galaxies.side_by_side()
    counts = counts_below(len(truth["train"]), settings.label_counts)
    scores: dict[str, dict[str, list[list[float]]]] = {
        name: {method: [[] for _ in counts] for method in (KERNEL, TREES, LINE)} for name in ("scatter", "r2")
    }
    for place, count in enumerate(counts):
        # All labels are drawn in one way only.
        for seed in range(settings.seeds if count < counts[-1] else 1):
            rows = draw(truth["train"], count, seed)
            labels = truth["train"][rows]
            predicted = {
                KERNEL: KernelProbe(intervals="constant").fit(beside["train"][rows], labels).predict(beside["test"]),
                TREES: fit_trees(features["train"][rows], labels, TREES_LOSS).predict(features["test"]),
                LINE: line_values(features["train"][rows], labels, features["test"]),
            }
            for method, values in predicted.items():
                scores["scatter"][method][place].append(float(redshift_scatter(values, truth["test"])))
                scores["r2"][method][place].append(float(r_squared(values, truth["test"])))
    return {"counts": counts, **scores}
