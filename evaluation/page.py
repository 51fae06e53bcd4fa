"""The report of an evaluation: one HTML file with its pictures inside, from the plain data of its sections."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..data.parquet_files import replacing
from . import charts
from .accuracy import CONSTANT, LINE, OWN, PROBE, TREES, ZERO_SHOT
from .html_parts import figure, table, write_page
from .objects import EvaluationObjects
from .peers import PEERS
from .scores import JUDGED_LEVELS
from .settings import REDSHIFT


def write_report(output: Path, results: dict[str, Any], objects: EvaluationObjects) -> None:
    """Write `<output>/report.html` and `<output>/images/*.png`."""
    pictures = _pictures(results, objects)
    for name, content in pictures.items():
        (output / "images").mkdir(parents=True, exist_ok=True)
        with replacing(output / "images" / f"{name}.png") as stream:
            stream.write(content)
    tag = f" <span class='tag'>{'simulated' if objects.is_simulated else 'real'}</span>"
    parts = [
        _about(results),
        "<h2>What was judged</h2>" + _judged(results["headlines"]),
        f"<h2>Labels from each subset of modalities{tag}</h2>" + _accuracy(results, objects, pictures),
        f"<h2>How many labels{tag}</h2>" + _curves(results, objects, pictures),
        f"<h2>By magnitude and redshift{tag}</h2>" + _strata(results, pictures),
        f"<h2>Retrieval{tag}</h2>" + _retrieval(results, pictures),
        f"<h2>Calibration{tag}</h2>" + _calibration(results, objects, pictures),
        f"<h2>Transfer to another survey{tag}</h2>" + _transfer(results),
        "<h2>Real galaxies <span class='tag'>real</span></h2>" + _real(results, pictures),
        "<h2>Other data: what peers published</h2>" + _peers(),
        "<h2>Settings and times</h2>" + _settings(results),
    ]
    write_page(output / "report.html", f"Evaluation of {results['about']['model_id']}", parts)


def _pictures(results: dict[str, Any], objects: EvaluationObjects) -> dict[str, bytes]:
    label = objects.settings.labels[0]
    found = {
        "calibration": charts.calibration_chart(results["subsets"], label),
        "strata": charts.strata_chart(results["subsets"], results["baselines"], label),
        "predictions": charts.scatter_chart(_panels(results, objects, label), _short(label)),
    }
    if results["retrieval"]:
        found["retrieval"] = charts.retrieval_chart(results["retrieval"])
    if results["networks"]:
        found["network-training"] = charts.training_chart(results["networks"])
    for name, curve in results["curves"].items():
        networks = [network for network in results["networks"] if network["label"] == name]
        found[f"labels-{name.replace('/', '-')}"] = charts.curves_chart(curve, networks, _short(name))
    if "methods" in results["real"]:
        true = np.array(results["real"]["true"])
        panels = {
            name: (true, np.array(scores["predicted"]))
            for name, scores in results["real"]["methods"].items()
            if name not in (CONSTANT, LINE)
        }
        found["real-galaxies"] = charts.scatter_chart(panels, "redshift")
        found["real-labels"] = charts.real_curves_chart(results["real"]["curves"])
    return found


def _panels(results: dict[str, Any], objects: EvaluationObjects, label: str) -> dict[str, tuple[Any, Any]]:
    truth = objects.label(label, "test")
    trees = results["baselines"][label][TREES]
    panels = {TREES: (truth[trees["rows"]], np.array(trees["predicted"]))}
    names = [s.name for s in objects.subsets if s.is_single]
    for name in [*[n for n in names if n.startswith("image")][:1], *[n for n in names if n.startswith("spectrum")][:1]]:
        scores = results["subsets"][name][label][ZERO_SHOT]
        panels[f"zero-shot from {name}"] = (truth[scores["rows"]], np.array(scores["predicted"]))
    whole = [n for n in results["networks"] if n["label"] == label]
    if whole:
        last = max(whole, key=lambda n: n["num_labels"])
        panels["ResNet-18 on all images"] = (truth[last["rows"]], np.array(last["predicted"]))
    return panels


def _about(results: dict[str, Any]) -> str:
    about = results["about"]
    counts = ", ".join(f"{count:,} {part}" for part, count in about["num_objects"].items())
    kind = "simulated" if about["is_simulated"] else "real"
    return (
        f"<h1>Evaluation of {html.escape(about['model_id'])}</h1>"
        f"<p class='lead'>Checkpoint <code>{html.escape(about['checkpoint'])}</code>, "
        f"{about['num_weights'] / 1e6:.1f} M weights; {html.escape(about['machine'])}; {html.escape(about['finished'])}. "
        f"Made by <code>{html.escape(about['command'])}</code>.</p>"
        f"<p>Objects are <b>{kind}</b> unless a heading says otherwise: {counts}. Scores are of <b>test</b> objects "
        "alone, which no step has trained on and no choice has looked at; validation objects choose k, temperature, "
        "space and the network's best step. Intervals in brackets are 95 % bootstrap percentiles over test objects.</p>"
    )


def _judged(lines: list[dict[str, Any]]) -> str:
    rows = [[line["asked"], line["found"], "reached" if line["is_reached"] else "NOT reached"] for line in lines]
    return table(["asked", "found", ""], rows, "texts")


def _accuracy(results: dict[str, Any], objects: EvaluationObjects, pictures: dict[str, bytes]) -> str:
    parts = []
    for label in objects.settings.labels:
        rows = [
            [f"photometry: {name}", "", _r2(scores), "", _scatter(scores)]
            for name, scores in results["baselines"][label].items()
        ]
        for name, labels in results["subsets"].items():
            found = labels[label]
            chosen = found[ZERO_SHOT]["chosen"]
            rows.append(
                [
                    name,
                    _r2(found[ZERO_SHOT]),
                    _r2(found[PROBE]),
                    _r2(found.get(OWN)),
                    _scatter(found[ZERO_SHOT]) + (" / " + _scatter(found[PROBE]) if label == REDSHIFT else ""),
                    f"k {chosen['k']}, T {chosen['temperature']:g}, {chosen['space']}"
                    + _among(chosen["gallery"], name),
                ]
            )
        for network in results["networks"]:
            if network["label"] == label and network["num_labels"] == max(
                n["num_labels"] for n in results["networks"] if n["label"] == label
            ):
                name = f"{objects.settings.supervised.modality if objects.settings.supervised else ''}: ResNet-18, supervised"
                rows.insert(3, [name, "", _r2(network), "", "", f"{network['num_labels']:,} labels"])
        rows = [row + [""] * (6 - len(row)) for row in rows]
        spread = "scatter, zero-shot / probe" if label == REDSHIFT else ""
        head = [_short(label), "zero-shot R2", "probe or fit R2", "model's own R2", spread, "chosen on validation"]
        parts.append(table(head, rows, "numbers"))
    return (
        "<p>Zero-shot: the weighted mean of the labels of the nearest training objects; no weight is trained. Probe: "
        "ridge regression on the frozen vectors. The model's own: the median of the distribution that the masked model "
        f"predicts, for {objects.settings.num_distributions:,} test objects at most. Baselines know the magnitudes "
        f"{html.escape(', '.join(objects.settings.photometry))}.</p>"
        + "".join(parts)
        + figure(pictures["predictions"], f"{_short(objects.settings.labels[0])} of test objects, predicted and true.")
    )


def _curves(results: dict[str, Any], objects: EvaluationObjects, pictures: dict[str, bytes]) -> str:
    parts = []
    for label, curve in results["curves"].items():
        networks = [n for n in results["networks"] if n["label"] == label]
        by_count: dict[int, list[float]] = {}
        for network in networks:
            by_count.setdefault(network["num_labels"], []).append(network["r2"])
        rows = []
        for place, count in enumerate(curve["counts"]):
            cells = [_mean_and_range(curve["r2"][method][place]) for method in (PROBE, ZERO_SHOT, TREES, LINE)]
            rows.append([f"{count:,}", *cells, _mean_and_range(by_count[count]) if count in by_count else ""])
        head = ["labels", f"{PROBE} ({curve['spaces'][PROBE]})", ZERO_SHOT, TREES, LINE, "ResNet-18"]
        parts.append(
            f"<p>R2 of {_short(label)} on test objects from {html.escape(curve['subset'])}: mean, and the worst and best "
            f"of {objects.settings.seeds} draws of the labels.</p>" + table(head, rows, "numbers")
        )
        parts.append(
            figure(
                pictures[f"labels-{label.replace('/', '-')}"],
                f"R2 of {_short(label)} by number of labels; bands: draws.",
            )
        )
    if results["networks"]:
        supervised = objects.settings.supervised
        seeds = supervised.seeds if supervised is not None else 0
        most = max(results["networks"], key=lambda n: n["num_labels"])
        epochs = (
            most["steps"] * min(supervised.batch_size if supervised else 1, most["num_labels"]) / most["num_labels"]
        )
        parts.append(
            f"<p>The network: ResNet-18 from nothing on the same images, {seeds} training{'s' * (seeds > 1)} for each number "
            f"of labels; with all labels {most['steps']:,} steps, {epochs:.1f} times over the images turned and mirrored, in "
            f"{most['seconds']:.0f} s; the best state by validation R2 (dots) is the one tested.</p>"
            + figure(pictures["network-training"], "Validation R2 and training loss of the networks, by step.")
        )
    return "".join(parts)


def _strata(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    parts = [figure(pictures["strata"], "RMS error in strata of equally many test objects.")]
    label = next(iter(results["baselines"]))
    for cut in ("magnitude", "redshift"):
        first = results["baselines"][label][TREES]["strata"].get(cut, [])
        rows = [
            [name, *(f"{s['r2']:.3f} / {s['rms_error']:.3g}" for s in scores["strata"].get(cut, []))]
            for name, scores in [
                *results["baselines"][label].items(),
                *(
                    (f"{n}: {m}", labels[label][m])
                    for n, labels in results["subsets"].items()
                    for m in (ZERO_SHOT, PROBE)
                ),
            ]
        ]
        parts.append(f"<p>R2 / RMS error of {_short(label)} by {cut}:</p>")
        parts.append(table([cut, *(s["range"] for s in first)], rows, "numbers"))
    return (
        "<p>R2 within a stratum compares with the variance inside it, which is small where the stratum is narrow. The other "
        "labels are in report.json; strata of survey are the rows.</p>" + "".join(parts)
    )


def _retrieval(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    if not results["retrieval"]:
        return "<p>There is one survey: nothing to retrieve from.</p>"
    rows = []
    for pair in results["retrieval"]:
        for name, s in pair["methods"].items():
            rows.append(
                [
                    f"{pair['query']} to {pair['target']}: {name}",
                    f"{s['recall_at_1']:.1%}",
                    f"{s['recall_at_10']:.1%} ({s['recall_at_10_interval'][0]:.1%} to {s['recall_at_10_interval'][1]:.1%})",
                    f"{s['recall_at_100']:.1%}",
                    f"{s['over_chance_at_10']:.0f}x",
                    f"{s['median_rank']:,.0f}",
                    f"{s['ndcg_identity']:.3f}",
                    f"{s['ndcg_at_10']:.3f}",
                ]
            )
    first = next(iter(results["retrieval"][0]["methods"].values()))
    rows.append(
        [
            "chance",
            f"{first['chance_at_1']:.2%}",
            f"{first['chance_at_10']:.2%}",
            f"{first['chance_at_100']:.2%}",
            "1x",
            f"{(first['gallery'] + 1) / 2:,.0f}",
            f"{first['ndcg_identity_chance']:.3f}",
            f"{first['ndcg_at_10_chance']:.3f}",
        ]
    )
    head = [
        "query to target",
        "recall@1",
        "recall@10",
        "recall@100",
        "over chance @10",
        "median rank",
        "nDCG",
        "nDCG@10",
    ]
    return (
        f"<p>Each of {first['num_queries']:,} test objects asks with one view for its other among the {first['gallery']:,} of "
        "all test objects. nDCG: one relevant object, 1 / log2(1 + rank). nDCG@10, graded: gain exp(-d2 / 0.02), where d2 is "
        "the mean squared difference of the labels in standard deviations. Brightness alone: flux measured on the pixels of "
        "both sides, and a linear map between them.</p>"
        + table(head, rows, "numbers")
        + figure(pictures["retrieval"], "Recall in every direction; the stroke is chance at 10.")
    )


def _calibration(results: dict[str, Any], objects: EvaluationObjects, pictures: dict[str, bytes]) -> str:
    rows = []
    for label in objects.settings.labels:
        for name, scores in results["baselines"][label].items():
            rows.append([f"{_short(label)}, {name}", *_coverages(scores)])
        for subset, labels in results["subsets"].items():
            for method in (ZERO_SHOT, PROBE, OWN):
                if method in labels[label]:
                    rows.append([f"{_short(label)} from {subset}, {method}", *_coverages(labels[label][method])])
    head = ["intervals", *(f"{level:.0%}" for level in JUDGED_LEVELS), "90 % within", "median width of 68 %"]
    return (
        "<p>Share of test objects whose truth lies in the interval of each level.</p>"
        + figure(
            pictures["calibration"], f"{_short(objects.settings.labels[0])}: PIT, flat if calibrated, and coverage."
        )
        + f"<details><summary>Coverage of all {len(rows)}</summary>{table(head, rows, 'numbers')}</details>"
    )


def _transfer(results: dict[str, Any]) -> str:
    parts = []
    for pair in results["transfer"]:
        known = (
            "the model knows this survey" if pair["is_known_to_model"] else "the model was never trained on this survey"
        )
        labels = list(pair["labels"])
        methods = list(pair["labels"][labels[0]]["methods"])
        rows = [[m, *(_r2(pair["labels"][label]["methods"][m]) for label in labels)] for m in methods]
        rows += [[n, *(_r2(results["baselines"][label][n]) for label in labels)] for n in (TREES, CONSTANT)]
        parts.append(
            f"<p>From {pair['fitted_on']} to {pair['applied_to']} ({known}), {pair['labels'][labels[0]]['space']} space:</p>"
        )
        parts.append(table(["R2 on test objects", *map(_short, labels)], rows, "numbers"))
    return "<p>Labels are those of the first survey's training objects.</p>" + "".join(parts)


def _among(gallery: list[str], subset: str) -> str:
    if gallery == [subset]:
        return ""
    return ", among " + (gallery[0] if len(gallery) == 1 else "all surveys")


def _real(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    real = results["real"]
    if "methods" not in real:
        return f"<p>Too few real galaxies with a redshift and magnitudes: {real['num_objects']}.</p>"
    rows = [
        [
            name,
            f"{s['scatter']:.4f} ({s['scatter_interval'][0]:.4f} to {s['scatter_interval'][1]:.4f})",
            f"{s['r2']:.3f}",
            f"{s['bias']:+.4f}",
            f"{s['outliers']:.1%}",
            f"{s['calibration']['coverage']['0.9']:.1%}",
        ]
        for name, s in real["methods"].items()
    ]
    head = ["", "robust scatter", "R2", "bias", "outliers > 0.05", "in 90 % interval"]
    return (
        f"<p>{real['num_objects']['test']:,} held-out galaxies with spectroscopic redshifts; {real['num_objects']['train']:,} "
        f"train. Magnitudes: {html.escape(', '.join(real['magnitudes']))}. Scatter, bias and outliers are of dz / (1 + z).</p>"
        + table(head, rows, "numbers")
        + figure(pictures["real-galaxies"], "Predicted against spectroscopic redshift, real held-out galaxies.")
        + _real_curves(real["curves"], pictures)
    )


def _real_curves(curves: dict[str, Any], pictures: dict[str, bytes]) -> str:
    rows = []
    for place, count in enumerate(curves["counts"]):
        row = [f"{count:,}"]
        for score, form in (("scatter", ".4f"), ("r2", ".3f")):
            row += [format(np.mean(of[place]), form) for of in curves[score].values()]
        rows.append(row)
    methods = list(curves["scatter"])
    head = ["labels", *(f"scatter, {name}" for name in methods), *(f"R2, {name}" for name in methods)]
    draws = len(curves["scatter"][methods[0]][0])
    return (
        f"<p>With fewer labels, means of {draws} draws that all methods see:</p>"
        + table(head, rows, "numbers")
        + figure(
            pictures["real-labels"], "Real held-out galaxies: mean over draws, band from the worst to the best draw."
        )
    )


def _peers() -> str:
    return (
        "<p><b>Other data</b>: real surveys, other objects and other labels than above. The numbers say what is usual in the "
        "field, not who is better.</p>"
        + table(["other data", "label", "R2"], [[n, w, f"{v:.2f}"] for n, w, v in PEERS])
    )


def _settings(results: dict[str, Any]) -> str:
    times = results["seconds"]
    rows = [[name, f"{clock:.0f} s", f"{processors:.0f} s"] for name, (clock, processors) in times.items()]
    total, worked = (sum(pair[place] for pair in times.values()) for place in (0, 1))
    lines = json.dumps(results["about"]["settings"], indent=1)
    return (
        f"<p>{total:.0f} s in all sections by the clock, {worked:.0f} s of processors, when each was measured.</p>"
        f"<details><summary>Times</summary>{table(['section', 'clock', 'processors'], rows)}</details>"
        f"<details><summary>Settings</summary><pre>{html.escape(lines)}</pre></details>"
    )


def _r2(scores: dict[str, Any] | None) -> str:
    if scores is None or scores["r2"] is None:
        return ""
    low, high = scores["r2_interval"]
    return f"{scores['r2']:.3f} ({low:.2f} to {high:.2f})" if low is not None else f"{scores['r2']:.3f}"


def _scatter(scores: dict[str, Any]) -> str:
    return f"{scores['scatter']:.4f}" if "scatter" in scores else ""


def _coverages(scores: dict[str, Any]) -> list[str]:
    found = scores["calibration"]
    low, high = found["coverage_90_interval"]
    shares = [f"{found['coverage'][str(level)]:.1%}" for level in JUDGED_LEVELS]
    return [*shares, f"{low:.1%} to {high:.1%}", f"{found['width_68']:.3g}" if found["width_68"] is not None else ""]


def _mean_and_range(values: list[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _short(label: str) -> str:
    return label.split("/")[1].replace("_", " ")
