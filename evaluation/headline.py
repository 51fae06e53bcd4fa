"""What was judged: each question in one line, with what was reached, from the results of all sections."""

from typing import Any

import numpy as np

from .accuracy import CONSTANT, LINE, OWN, PROBE, TREES, ZERO_SHOT
from .objects import EvaluationObjects
from .real_galaxies import KERNEL
from .scores import compare

COVERAGE_RANGE = (0.87, 0.93)
OVER_CHANCE = 100.0
FEW_LABELS = 100


def headlines(results: dict[str, Any], objects: EvaluationObjects) -> list[dict[str, Any]]:
    """Questions with `asked`, `found` (a sentence), and `is_reached`; None where it was not measured."""
    found = [*_network_lines(results, objects), *_real_lines(results), *_retrieval_lines(results)]
    return [*found, *_coverage_lines(results)]


def _network_lines(results: dict[str, Any], objects: EvaluationObjects) -> list[dict[str, Any]]:
    supervised = objects.settings.supervised
    if supervised is None or supervised.modality not in results["subsets"]:
        return []
    lines = []
    for label in supervised.labels:
        trained = [n for n in results["networks"] if n["label"] == label]
        most = max(n["num_labels"] for n in trained)
        whole = [n for n in trained if n["num_labels"] == most]
        network = float(np.mean([n["r2"] for n in whole]))
        ours = results["subsets"][supervised.modality].get(label)
        if ours is None:
            continue
        truth = objects.label(label, "test")[whole[0]["rows"]]
        difference = compare(
            np.array(ours[ZERO_SHOT]["predicted"]),
            np.array(whole[0]["predicted"]),
            truth,
            objects.settings.num_bootstrap,
        )
        name = label.split("/")[1].replace("_", " ")
        lines.append(
            {
                "asked": f"Zero-shot {name} R2 from {supervised.modality} at least that of a ResNet-18 trained on all "
                "the same images",
                "found": f"zero-shot {ours[ZERO_SHOT]['r2']:.3f}, linear probe {ours[PROBE]['r2']:.3f}, ResNet-18 "
                f"trained on {most:,} labels {network:.3f}; zero-shot less ResNet-18: {difference['difference']:+.3f} "
                f"({difference['interval'][0]:+.3f} to {difference['interval'][1]:+.3f})",
                "is_reached": ours[ZERO_SHOT]["r2"] >= network,
                "difference": difference,
            }
        )
        lines += _curve_lines(results["curves"].get(label), name, network, most)
    return lines


def _curve_lines(curve: dict[str, Any] | None, name: str, network: float, most: int) -> list[dict[str, Any]]:
    if curve is None:
        return []
    means = {
        method: {count: float(np.mean(of)) for count, of in zip(curve["counts"], curve["r2"][method], strict=True)}
        for method in (PROBE, ZERO_SHOT)
    }
    lines = []
    if FEW_LABELS in means[PROBE]:
        lines.append(
            {
                "asked": f"Aim: with {FEW_LABELS} labels our probe beats the ResNet-18 trained on all",
                "found": f"with {FEW_LABELS} labels our probe reaches {name} R2 {means[PROBE][FEW_LABELS]:.3f} "
                f"(zero-shot {means[ZERO_SHOT][FEW_LABELS]:.3f}); ResNet-18 trained on {most:,} reaches {network:.3f}; "
                + _first_better(means, network),
                "is_reached": means[PROBE][FEW_LABELS] > network,
            }
        )
    return lines


def _first_better(means: dict[str, dict[int, float]], network: float) -> str:
    texts = []
    for method, scores in means.items():
        better = [count for count, score in scores.items() if score > network]
        texts.append(f"our {method} passes it with {better[0]:,} labels" if better else f"our {method} never passes it")
    return ", ".join(texts)


def _real_lines(results: dict[str, Any]) -> list[dict[str, Any]]:
    methods = results["real"].get("methods")
    if methods is None:
        return []
    ours = {name: scores for name, scores in methods.items() if name not in (CONSTANT, LINE, TREES)}
    best = min(ours, key=lambda name: ours[name]["scatter"])
    difference = results["real"]["scatter_less_trees"][best]
    return [
        {
            "asked": "Real galaxies: robust redshift scatter from real photometry at most that of trees on the "
            "same labels",
            "found": f"{best} {ours[best]['scatter']:.4f}, trees {methods[TREES]['scatter']:.4f}; difference "
            f"{difference['difference']:+.4f} ({difference['interval'][0]:+.4f} to {difference['interval'][1]:+.4f}). "
            f"{best} is the best of our {len(ours)} on these test galaxies. {_fewer_labels(results['real']['curves'])}",
            "is_reached": ours[best]["scatter"] <= methods[TREES]["scatter"],
        }
    ]


def _fewer_labels(curves: dict[str, Any]) -> str:
    """The scatter of kernel probe and trees with fewer labels than all, mean over draws."""
    ours, trees = ([float(np.mean(of)) for of in curves["scatter"][name][:-1]] for name in (KERNEL, TREES))
    pairs = [f"{n:,} labels {a:.4f} and {b:.4f}" for n, a, b in zip(curves["counts"][:-1], ours, trees, strict=True)]
    return f"Means of {KERNEL} and trees: {', '.join(pairs)}" if pairs else ""


def _retrieval_lines(results: dict[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for pair in results["retrieval"]:
        if not (pair["query"].startswith("image/") and pair["target"].startswith("spectrum/")):
            continue
        space = "aligned space" if "aligned space" in pair["methods"] else "encoder space"
        scores, light = pair["methods"][space], pair["methods"]["brightness alone"]
        lines.append(
            {
                "asked": f"{pair['query']} to {pair['target']}: recall@10 at least {OVER_CHANCE:.0f} times chance",
                "found": f"recall@10 {scores['recall_at_10']:.1%} over {scores['gallery']:,} held-out pairs, "
                f"{scores['over_chance_at_10']:.0f} times chance (at most {1 / scores['chance_at_10']:.0f} here); "
                f"brightness alone {light['recall_at_10']:.1%}",
                # Of a small gallery, not even a perfect search is so far above chance.
                "is_reached": scores["over_chance_at_10"] >= OVER_CHANCE,
            }
        )
    return lines


def _coverage_lines(results: dict[str, Any]) -> list[dict[str, Any]]:
    low, high = COVERAGE_RANGE
    lines = []
    for method in (ZERO_SHOT, PROBE, OWN):
        found = {
            f"{label.split('/')[1]} from {subset}": methods[method]["calibration"]["coverage"]["0.9"]
            for subset, labels in results["subsets"].items()
            for label, methods in labels.items()
            if method in methods
        }
        if not found:
            continue
        inside = sum(low <= share <= high for share in found.values())
        least, most = min(found, key=lambda key: found[key]), max(found, key=lambda key: found[key])
        lines.append(
            {
                "asked": f"90 % intervals of the {method} hold between {low:.0%} and {high:.0%}",
                "found": f"{inside} of {len(found)} do; from {found[least]:.1%} ({least}) "
                f"to {found[most]:.1%} ({most})",
                "is_reached": inside == len(found),
            }
        )
    return lines
