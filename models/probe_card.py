"""The card of a probe (README.md): what it tells, for whose embeddings, how well, and how to use it."""

from collections.abc import Mapping
from typing import Any

_CLASSES = {"linear": "LinearProbe", "attentive": "AttentiveProbe"}


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
    use = "embed_tokens" if description["kind"] == "attentive" else "embed"
    space = "" if use == "embed_tokens" or not description["space"] else f', space="{description["space"]}"'
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
            f"found = probe.predict_full(model.{use}(observations{space}))",
            "```",
            "",
        ]
    )
