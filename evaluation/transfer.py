"""Whether what was learned on one survey holds on another: a probe of one survey's vectors, asked with another's.

Labels come from the first survey's training objects alone. `recentred` takes off each survey's own mean vector, which
needs objects of the new survey, but no labels.
"""

from typing import Any

import numpy as np

from ..models.probes import LinearProbe
from .accuracy import PROBE, ZERO_SHOT
from .objects import EvaluationObjects, Subset
from .scores import score_values
from .settings import REDSHIFT
from .vectors import VectorStore
from .zero_shot import Gallery, ZeroShot


def survey_pairs(objects: EvaluationObjects) -> list[tuple[Subset, Subset]]:
    """Ordered pairs of surveys of one kind."""
    singles = [Subset(name, (name,)) for name in objects.surveys]
    return [(a, b) for a in singles for b in singles if a != b and a.name.split("/")[0] == b.name.split("/")[0]]


def measure_transfer(objects: EvaluationObjects, vectors: VectorStore, first: Subset, second: Subset) -> dict[str, Any]:
    """By label and method: R2 on `second` of what was fitted on `first`, beside what was fitted on `second` itself."""
    answer: dict[str, Any] = {
        "fitted_on": first.name,
        "applied_to": second.name,
        "is_known_to_model": second.name in {m.name for m in vectors.model.modalities},
        "labels": {},
    }
    ids = objects.ids
    for label in objects.settings.labels:
        truth = {part: objects.label(label, part) for part in ids}
        test, known = np.isfinite(truth["test"]), np.isfinite(truth["train"])
        found: dict[str, dict[str, Any]] = {}
        space = vectors.spaces(first)[-1]
        of = {
            survey.name: {part: vectors.get(survey, space, members) for part, members in ids.items()}
            for survey in (first, second)
        }
        mean = {name: parts["train"].mean(0) for name, parts in of.items()}
        probe = LinearProbe(intervals="constant").fit(of[first.name]["train"][known], truth["train"][known])
        own = LinearProbe(intervals="constant").fit(of[second.name]["train"][known], truth["train"][known])
        shifted = of[second.name]["test"] - mean[second.name] + mean[first.name]
        predicted = {
            f"{PROBE}, same survey": own.predict(of[second.name]["test"]),
            f"{PROBE}, transferred": probe.predict(of[second.name]["test"]),
            f"{PROBE}, transferred and recentred": probe.predict(shifted),
        }
        for name, fitted_on in (("same survey", second), ("transferred", first)):
            fitted = ZeroShot.fit(
                Gallery.of(of[fitted_on.name]["train"], truth["train"], space),
                of[fitted_on.name]["validation"],
                truth["validation"],
                label,
            )
            predicted[f"{ZERO_SHOT}, {name}"] = fitted.predict(of[second.name]["test"])[0]
        for name, values in predicted.items():
            found[name] = score_values(
                values[test], truth["test"][test], objects.settings.num_bootstrap, is_redshift=label == REDSHIFT
            )
        answer["labels"][label] = {"space": space, "methods": found}
    return answer
