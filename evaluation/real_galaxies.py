"""Redshifts of real galaxies from real photometry: ours beside trees trained on the same labels and magnitudes."""

from typing import Any

import numpy as np

from ..models.attentive_probe import AttentiveProbe
from ..models.kernel_probe import KernelProbe
from ..models.probes import LinearProbe
from .accuracy import CONSTANT, LINE, OWN, PROBE, TREES, ZERO_SHOT, own_prediction
from .baselines import (
    Predicted,
    magnitudes_and_colours,
    predict_constant,
    predict_line,
    predict_with_probe,
    predict_with_trees,
)
from .objects import LEAST, EvaluationObjects, Subset
from .scores import compare, redshift_scatter, score_intervals, score_values
from .settings import REDSHIFT
from .vectors import VectorStore
from .zero_shot import Gallery, ZeroShot

ATTENTIVE = "attentive probe"
KERNEL = "kernel probe"


def measure_real_galaxies(objects: EvaluationObjects, vectors: VectorStore) -> dict[str, Any]:
    """Scores by method on test galaxies; without galaxies enough, `num_objects` says how many there are."""
    names = [name for name in objects.settings.real_photometry if name in objects.names]
    ids = objects.real_galaxies(REDSHIFT, names)
    answer: dict[str, Any] = {"num_objects": {part: len(members) for part, members in ids.items()}, "magnitudes": names}
    if any(len(members) < LEAST[part] for part, members in ids.items()):
        return answer
    truth = {part: objects.label(REDSHIFT, members) for part, members in ids.items()}
    predicted = _predictions(objects, vectors, Subset("real photometry", tuple(names)), ids, truth)
    count = objects.settings.num_bootstrap
    answer["methods"] = {
        name: score_values(value, truth["test"], count, is_redshift=True)
        | {
            "calibration": score_intervals(bounds, truth["test"], count),
            "predicted": [float(f"{number:.6g}") for number in value],
        }
        for name, (value, bounds) in predicted.items()
    }
    trees = predicted[TREES][0]
    answer["scatter_less_trees"] = {
        name: compare(value, trees, truth["test"], count, redshift_scatter)
        for name, (value, _) in predicted.items()
        if name not in (CONSTANT, LINE, TREES)
    }
    answer["true"] = [float(f"{number:.6g}") for number in truth["test"]]
    return answer


def _predictions(
    objects: EvaluationObjects,
    vectors: VectorStore,
    subset: Subset,
    ids: dict[str, list[str]],
    truth: dict[str, np.ndarray],
) -> dict[str, Predicted]:
    features = {
        part: magnitudes_and_colours(objects.magnitudes(members, subset.modalities)) for part, members in ids.items()
    }
    # The robust scatter asks for a median, and so do the trees.
    of_trees = predict_with_trees(
        features["train"],
        truth["train"],
        features["validation"],
        truth["validation"],
        features["test"],
        "absolute_error",
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
    tokens = {part: vectors.token_vectors(subset, ids[part]) for part in ("train", "test")}
    found[ATTENTIVE] = predict_with_probe(AttentiveProbe().fit(tokens["train"], truth["train"]), tokens["test"])
    beside = {part: of_part.side_by_side().numpy() for part, of_part in tokens.items()}
    found[KERNEL] = predict_with_probe(KernelProbe().fit(beside["train"], truth["train"]), beside["test"])
    if REDSHIFT in {m.name for m in vectors.model.modalities}:
        found[OWN] = own_prediction(vectors.model, vectors, subset, ids["test"], REDSHIFT)
    return found
