"""The card of a probe (README.md): what it tells, for whose embeddings, how well, and how to use it."""

from collections.abc import Mapping
from typing import Any

from .token_embeddings import TOKEN_SPACE, layers_of, modalities_of


def probe_card(description: Mapping[str, Any]) -> str:
    """The card by the JSON of a probe's file."""
    task = description["parameters"]["task"]
    label = description["label"] or "a label without a name"
    unit = f", in {description['unit']}" if description["unit"] else ""
    scores = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in description["scores"].items()]
    rows = {
        "label": f"{label}{unit}",
        "task": task,
        "model": f"`{description['model_id']}`" if description["model_id"] else "not recorded (fitted on an array)",
        "space": description["space"] or "not recorded",
        "modalities of the training objects": ", ".join(description["modalities"]) or "not recorded",
        "training objects": description["num_train"],
    }
    if task == "classification":
        rows["classes"] = ", ".join(map(str, description.get("classes", [])))
    errors = "conformal intervals" if task == "regression" else "conformal sets of classes, calibrated probabilities"
    return "\n".join(
        [
            "---",
            "library_name: armillary",
            f"tags: [armillary, astronomy, probe, tabular-{task}]",
            "---",
            "",
            f"# {description['kind'].capitalize()} probe: {label}",
            "",
            f"A small supervised head on the frozen embeddings of an Armillary model, with {errors} and a flag for "
            "objects that lie outside of the training objects.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            *scores,
            "",
            "Scores are of training objects that were left out of the fit (leave-one-out, or folds). Intervals hold "
            "for objects like the training objects; others are flagged.",
            "",
            "```python",
            "import armillary",
            'model = armillary.load("the checkpoint above")',
            'probe = armillary.load_probe("this folder or Hub id", model.model_id)',
            f"found = probe.predict_full(model.{_call(description['space'])})",
            "```",
            "",
        ]
    )


def _call(space: str | None) -> str:
    """What of a model gives vectors of a space."""
    if space is None:
        return "embed(observations)"
    if not space.startswith(TOKEN_SPACE):
        return f'embed(observations, space="{space}")'
    layers = f", layers={layers_of(space)}" if layers_of(space) else ""
    return f"embed_tokens(observations{layers}){'.side_by_side()' if modalities_of(space) else ''}"
