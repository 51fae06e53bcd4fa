"""The demo's report: one HTML file with its pictures inside, that opens anywhere."""

import html
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import ObservationDataset
from ..data.sky_split import read_parts
from ..evaluation.html_parts import figure, table, write_page
from ..models.foundation import FoundationModel
from . import figures, generation_figures
from .ask_server import serve_command
from .evaluation import IMAGE, SPECTRUM
from .generation_scores import NUM_BINS
from .redshift_scores import LEVELS
from .settings import DemoSettings


def write_report(folder: Path, settings: DemoSettings, seconds: dict[str, float]) -> Path:
    """Write `<folder>/report.html` from what the stages left; returns its path."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    model = FoundationModel.load(folder / "align" / "checkpoint")
    dataset = ObservationDataset(folder / "data")
    parts = [
        _introduction(folder, settings, model, dataset, seconds),
        _real_redshifts(results["real_redshifts"]),
        _simulated_redshifts(results["simulated_redshifts"]),
        _retrieval(results, dataset),
        _generated(results["generation"]),
        _reconstructions(results["reconstruction"], model, dataset, read_parts(folder / "parts")),
        "<h2>Training</h2>" + figure(figures.loss_curves(folder), "Loss of each training, by step."),
        _answers(answers),
        _use(folder),
    ]
    path = folder / "report.html"
    write_page(path, "Armillary demo", parts)
    return path


def _introduction(
    folder: Path, settings: DemoSettings, model: FoundationModel, dataset: ObservationDataset, seconds: dict[str, float]
) -> str:
    counts = {m.name: dataset.num_objects(m.name) for m in dataset.modalities}
    rows = [[name, f"{count:,}"] for name, count in counts.items()]
    times = [[name, f"{value:.0f} s"] for name, value in seconds.items()]
    num_weights = sum(p.numel() for p in model.transformer.parameters())
    return (
        "<h1>Armillary demo</h1>"
        f"<p class='lead'>Model {html.escape(model.model_id)}, {num_weights / 1e6:.1f} M weights, trained from nothing "
        f"in minutes on {html.escape(platform.machine())}, {torch.get_num_threads()} threads, torch {torch.__version__}."
        f" Made by <code>armillary demo</code>; figures from <code>demo/evaluation.py</code>.</p>"
        "<p>Real objects come from the files in <code>data/real</code> (sources and licences in its README); the others "
        "are <b>simulated</b>, and called so below. All scores are of <b>held-out</b> objects: no training step, "
        "neither of the tokenizers nor of the model, has seen them.</p>"
        f"<div style='display:flex;gap:3rem;flex-wrap:wrap'>{table(['modality', 'objects'], rows)}"
        f"{table(['stage', 'this run'], times)}</div>"
    )


def _real_redshifts(results: dict[str, Any]) -> str:
    picture = figures.redshift_scatter(results, {"of_model": "masked model", "of_trees": "gradient-boosted trees"})
    return (
        "<h2>Redshifts of real galaxies from real photometry <span class='tag'>real</span></h2>"
        f"<p>{results['scores'][0]['num_objects']} held-out SDSS galaxies with spectroscopic redshifts. The masked model "
        "sees eight magnitudes (SDSS u g r i z, 2MASS J H K where there are any) as tokens and predicts the distribution "
        f"of the redshift's token; the trees are trained for this one task, on the same {results['num_train']} galaxies "
        "and magnitudes.</p>"
        + _scores(results["scores"])
        + figure(picture, "Predicted (median) against spectroscopic redshift, real held-out galaxies.")
    )


def _simulated_redshifts(results: dict[str, Any]) -> str:
    picture = figures.redshift_scatter(
        results, {"zero_shot": "zero-shot: neighbours", "supervised": "supervised network"}
    )
    return (
        "<h2>Redshifts from one image <span class='tag'>simulated</span></h2>"
        f"<p>{results['scores'][0]['num_objects']} held-out simulated galaxies, seen as Legacy Survey images. Zero-shot: "
        f"the mean redshift of the {results['k']} nearest training objects in the aligned space, which was trained "
        "without any redshift as label; the supervised network learned redshifts from the same images.</p>"
        + _scores(results["scores"])
        + figure(picture, "Predicted against true redshift, simulated held-out galaxies.")
    )


def _retrieval(results: dict[str, Any], dataset: ObservationDataset) -> str:
    of_pair = {name: value for name, value in results["retrieval"].items() if isinstance(value, dict)}
    rows = [
        [
            name,
            str(value["num_queries"]),
            f"{value['recall_at_1']:.1%}",
            f"{value['recall_at_10']:.1%}",
            f"{value['chance_at_10']:.2%}",
            f"{value['recall_at_10'] / value['chance_at_10']:.0f}x",
        ]
        for name, value in of_pair.items()
    ]
    header = ["query -> found", "held-out queries", "recall@1", "recall@10", "chance at 10", "over chance"]
    return (
        "<h2>Retrieval across modalities <span class='tag'>simulated</span></h2>"
        "<p>How often the other view of the same object is among the nearest, of the views of all "
        f"{results['retrieval']['gallery']:,} simulated objects.</p>"
        + table(header, rows)
        + figure(
            figures.retrieval_examples(results, dataset),
            "Held-out images (left, framed) and the images of the objects whose DESI spectra lie nearest to them; a "
            "green frame marks the object itself. Simulated.",
        )
    )


def _generated(results: dict[str, Any]) -> str:
    stages = list(results["spectra"])
    named = {"redshift": results["redshift"]}
    for what, title in (("flux", "flux in bins of wavelength"), ("colour", "colour of the spectrum")):
        named |= {f"{title}, {generation_figures.in_stages(n)}": results["spectra"][n][what] for n in stages}
    rows = [
        [
            name,
            str(scores["num_objects"]),
            f"{scores['r2']:.3f}",
            *(f"{scores['coverage'][str(level)]:.1%}" for level in LEVELS),
            f"{scores['crps']:.4f}",
            f"{scores['crps_of_training']:.4f}",
        ]
        for name, scores in named.items()
    ]
    header = ["from one image", "objects", "R2", "in 68 % interval", "in 95 % interval", "CRPS", "of training objects"]
    num_samples = results["spectra"][stages[-1]]["flux"]["num_samples"]
    return (
        "<h2>Generated <span class='tag'>simulated</span></h2>"
        "<p>What <code>model.generate</code> makes of one Legacy Survey image of a held-out simulated galaxy: the "
        f"distribution of its redshift, and {num_samples} samples of its DESI spectrum, in one pass and in "
        f"{stages[-1]} stages: tokens drawn in one stage know nothing of each other. Spectra are compared in {NUM_BINS} "
        "bins of wavelength, where samples get noise as large as the observed spectrum states. CRPS (redshift; flux in "
        "1e-17 erg/s/cm2/A; red less blue flux over their sum): less is better, beside that of taking any of the "
        "training objects for this one. Narrow lines that stand out of the noise have tokens of their own, which are "
        "not generated.</p>"
        + table(header, rows)
        + figure(
            generation_figures.generated_spectra(results["shown"]),
            "Spectra and redshifts predicted from one image each, of the brightest of these galaxies, of that at the upper "
            "quartile and of that in the middle. Simulated, held out.",
        )
        + figure(
            generation_figures.pit_histograms(results),
            "Where the truth lies in the predicted distribution: flat if calibrated, high at the ends if too sure, "
            "leaning if biased. Simulated, held out.",
        )
    )


def _reconstructions(
    results: dict[str, Any], model: FoundationModel, dataset: ObservationDataset, parts: Mapping[str, str]
) -> str:
    rows = [
        [
            name,
            str(v["num_objects"]),
            f"{v['tokens']:.0f}",
            f"{v['r2']:.3f}",
            f"{v['median_chi2']:.2f}",
            f"{v['mean_chi2']:.1f}",
        ]
        for name, v in results.items()
    ]

    def held_out(name: str, real: bool, count: int) -> Any:
        ids = [i for i in dataset.object_ids(name) if parts.get(i) == "test" and i.startswith("sim-") != real]
        return dataset.read(name, ids[:count])

    simulated_spectrum = held_out(SPECTRUM, False, 1)
    redshift = dataset.scalars(["scalar/redshift"])["scalar/redshift"][simulated_spectrum.object_id[0]]
    header = ["modality", "objects", "tokens each", "R2 of flux", "median chi2", "mean chi2"]
    return (
        "<h2>Reconstructions</h2><p>Observation, tokens, and back. Chi2 is per valid pixel: the median of pure noise is "
        "0.45, its mean 1; bright cores of sources raise the mean.</p>"
        + table(header, rows)
        + figure(
            figures.real_desi_spectrum(model, dataset),
            "A real DESI galaxy: file, observation, tokens, reconstruction. Never trained on; redshift by redrock.",
        )
        + figure(
            figures.spectrum_reconstructions(model, simulated_spectrum, [redshift]),
            "A simulated DESI spectrum, held out.",
        )
        + figure(
            figures.image_reconstructions(model, held_out("image/hsc", True, figures.NUM_SHOWN), "r"),
            "Real HSC images (r band) above, from their tokens below. Never trained on.",
        )
        + figure(
            figures.image_reconstructions(model, held_out(IMAGE, False, figures.NUM_SHOWN), "r"),
            "Simulated Legacy Survey images (r band) above, from their tokens below; held out.",
        )
    )


def _answers(answers: dict[str, Any]) -> str:
    content = html.escape(json.dumps(answers, indent=2))
    real = answers["real_desi_galaxy"]
    rows = [
        [name, f"{a['value']:.3f}", "{:.3f} to {:.3f}".format(*a["intervals"][0][1:]), f"{true:.3f}"]
        for name, a, true in (
            ("redshift of the image, by neighbours", answers["zero_shot"], answers["true_redshift"]),
            ("redshift of the image, by the masked model", answers["masked_model"], answers["true_redshift"]),
            ("redshift of the real DESI spectrum, by neighbours", real, real["redshift_by_redrock"]),
        )
    ]
    return (
        "<h2>Asked over HTTP</h2><p>The server ran as a process of its own on a free loopback port; the client posted a "
        f"held-out simulated image ({html.escape(answers['object'])}, true redshift {answers['true_redshift']:.3f}) and "
        "the real DESI spectrum. The embedding it returned equals the local model's.</p>"
        + table(["asked for", "answer", "68 % interval", "true"], rows)
        + "<p>The real galaxy is faint, with strong emission lines, at a redshift that few of the simulated bright ones "
        "reach: its neighbours are a poor guide. Intervals are calibrated for queries by image alone, and the answer "
        f"to this one says so (<code>calibrated: {str(real['calibrated']).lower()}</code>).</p>"
        f"<details><summary>The answers</summary><pre>{content}</pre></details>"
    )


def _use(folder: Path) -> str:
    command = "armillary " + " ".join(serve_command(folder))
    python = (
        "import armillary\n"
        f'model = armillary.load("{folder / "align" / "checkpoint"}")\n'
        "vectors = model.embed([images])\n"
        "probe = armillary.LinearProbe().fit(vectors, redshifts)"
    )
    return f"<h2>Use it</h2><pre>{html.escape(command)}</pre><pre>{html.escape(python)}</pre>"


def _scores(scores: list[dict[str, Any]]) -> str:
    header = ["", "R2", "robust scatter", "bias", "outliers > 0.05", "in 68 % interval", "in 95 % interval"]
    rows = [
        [
            s["name"],
            f"{s['r2']:.3f}",
            f"{s['scatter']:.4f}",
            f"{s['bias']:+.4f}",
            f"{s['outliers']:.1%}",
            "" if s["coverage_68"] is None else f"{s['coverage_68']:.1%}",
            "" if s["coverage_95"] is None else f"{s['coverage_95']:.1%}",
        ]
        for s in scores
    ]
    return (
        table(header, rows)
        + "<small>Scatter (1.4826 times the median absolute deviation), bias and outliers are of dz / (1 + z).</small>"
    )
