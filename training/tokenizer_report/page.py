"""The report as a Markdown page: tables from its plain data, each with the definition of what it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from .markdown_cells import (
    DASH,
    bias,
    listed,
    magnitude_range,
    number,
    percent,
    percent_range,
    picture,
    ratio,
    table,
    with_error,
)
from .photometry import APERTURE, FLUX_WINDOW
from .pixel_summary import score_of
from .redshift_probe import REDSHIFTS

BEGIN, END = "<!-- tokenizer-report: begin -->", "<!-- tokenizer-report: end -->"


def report_page(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page. `pictures` are paths by name; one that is absent is not shown."""
    sections = (_about, _quality, _magnitudes, _codebooks, _redshifts, _values, _economy, _held_out, _another_camera)
    parts = [section(results, pictures) for section in (*sections, _real, _examples)]
    return "\n\n".join(part for part in parts if part) + "\n"


def insert_between_markers(before: str | None, page: str, source: str) -> str:
    """The text `before` with what stands between BEGIN and END replaced; without a text, the page between markers.

    Raises ValueError that names `source` if the text has not each marker once, in this order.
    """
    made = f"{BEGIN}\n\n{page}\n{END}\n"
    if before is None:
        return f"# Tokenizers\n\n{made}"
    start, stop = before.find(BEGIN), before.find(END)
    if before.count(BEGIN) != 1 or before.count(END) != 1 or stop < start:
        raise ValueError(f"{source}: expected the lines {BEGIN} and {END}, each once; the report goes between them")
    return before[:start] + made + before[stop + len(END) :].removeprefix("\n")


def _about(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    settings = results["settings"]
    objects = "all objects" if results["held_out"] is None else "held-out objects"
    lines = [
        f"Made by `armillary tokenizer-report` on {objects}, at most {settings['num_objects']} of each modality. "
        f"Throughput: {results['machine']}, batches of {settings['batch_size']}. "
        + ", ".join(f"{kind} tokenizer `{digest}`" for kind, digest in results["tokenizers"].items())
        + "."
    ]
    seen = results["seen_objects"]
    clean = [kind for kind, count in seen.items() if count == 0]
    if clean:
        lines.append(f"By the records of their training, the tokenizers of {listed(clean)} saw none of these objects.")
    unknown = [kind for kind, count in seen.items() if count is None]
    if unknown:
        lines.append(f"What the tokenizers of {listed(unknown)} were trained on is not known here.")
    for kind, count in seen.items():
        if count:
            lines.append(f"**{count} of these objects were among those that the {kind} tokenizer was trained on.**")
    if results["unseen_instruments"]:
        names = listed(results["unseen_instruments"])
        lines.append(f"Through these instruments they saw no object at all: {names}.")
    if results["sky"] is not None:
        lines.append(
            f"The objects are simulated (to r = {results['sky']['magnitude_limit']:g}, seed {results['sky']['seed']}), "
            f"so that reconstructions are compared with the noise-free truth too."
        )
    if results["left_out"]:
        lines.append("Not measured: " + "; ".join(f"{name} ({why})" for name, why in results["left_out"].items()) + ".")
    return "\n\n".join(lines)


def _quality(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    if not results["pixels"]:
        return ""
    rows = []
    for name, s in results["pixels"].items():
        on, ceiling = score_of(s, "observed", "tokens"), score_of(s, "observed", "true")
        true = score_of(s, "true", "tokens")
        rows.append(
            [
                f"{name} ({s['num_objects']})",
                number(on.get("r2"), 4),
                number(ceiling.get("r2"), 4),
                number(true.get("r2"), 4),
                number(s["psnr"], 1),
                with_error(s["chi2"]["all"]["mean"], s["chi2"]["all"]["mean_error"], 3),
                percent(s["chi2"]["source"]["share_of_pixels"]),
                with_error(s["chi2"]["source"]["mean"], s["chi2"]["source"]["mean_error"], 3),
                number(s["chi2"]["source"]["median_of_objects"], 3),
                number(s["chi2"]["source"]["rms_error"], 2),
                number(s["mask_auc"], 3),
            ]
        )
    sigma = results["settings"]["source_sigma"]
    heads = [
        "modality (objects)",
        "R2",
        "R2 of the truth",
        "R2 against the truth",
        "PSNR, dB",
        "chi2",
        "source pixels",
        "chi2, sources",
    ]
    heads += ["median of objects", "error on sources, sigma", "mask AUC"]
    speed = table(
        ["modality", "tokens", "bits", "valid pixels decoded", "vocabulary", "encode, objects/s", "decode, objects/s"],
        [
            [
                name,
                number(s["tokens"], 1),
                number(s["bits"], 0),
                percent(s["decoded"], 2),
                " + ".join(f"{book['all']['vocabulary']} {kind}" for kind, book in s["codebooks"].items()),
                number(s["objects_per_second"]["encode"], 1),
                number(s["objects_per_second"]["decode"], 1),
            ]
            for name, s in results["pixels"].items()
        ],
    )
    return "\n\n".join(
        [
            "## Reconstruction",
            "R2 is of all valid pixels pooled, against what was observed; noise alone keeps even the truth from 1, so "
            "its own R2 stands beside. PSNR is an object's largest flux over its RMS error, the median of objects, "
            "against the truth where it is known. chi2 is per valid pixel, against what was observed: 1 for the "
            "truth, less where noise is copied. *Source* pixels are those whose light without noise (where that is not "
            f"known: the observation smoothed) exceeds {sigma:g} standard deviations of the pixel's noise; errors "
            "there are in units of that noise, against the truth where it is known. Standard errors follow from the "
            "scatter of objects. Mask AUC is the chance that the tokens give a valid pixel a higher probability of "
            "being valid than a bad one.",
            table(heads, rows),
            "The same error budget for simpler codecs: principal components of training objects, as many as an object "
            "has tokens, each coefficient a real number; and nothing at all.",
            _baselines(results),
            speed,
            picture(pictures, "signal-to-noise", "chi2 per pixel against signal-to-noise ratio"),
            _by_band(results),
        ]
    )


def _baselines(results: Mapping[str, Any]) -> str:
    rows = []
    for name, s in results["pixels"].items():
        against = "true" if s["is_simulated"] else "observed"
        row = [name]
        for by in ("tokens", "components", "zero"):
            every, source = score_of(s, against, by), score_of(s, "observed", by, "source")
            row += [number(every.get("r2"), 4), number(source.get("chi2"), 2)]
        rows.append(row)
    names = ("tokens", "components", "nothing")
    return table(["modality", *(f"{what}, {name}" for name in names for what in ("R2", "chi2 on sources"))], rows)


def _by_band(results: Mapping[str, Any]) -> str:
    rows = []
    for name, s in results["pixels"].items():
        for band, scores in s["by_band"].items():
            row = [name, band]
            for key in ("observed all", "true all"):
                row.append(number(scores.get(key, {}).get("r2"), 4))
            row += [number(scores[key]["chi2"], 3) for key in ("observed all", "observed source")]
            rows.append(row + [bias(b) for b in _halves(s["flux_bias"]["by_band"][band], s)])
    if not rows:
        return ""
    heads = ["modality", "band", "R2", "R2 against the truth", "chi2", "chi2, sources", "bias, bright", "bias, faint"]
    return table(heads, rows)


def _magnitudes(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    if not results["pixels"]:
        return ""
    rows = []
    for name, s in results["pixels"].items():
        bright, faint = _halves(s["flux_bias"]["halves"], s)
        rows.append([name, bias(bright), bias(bright, "median"), bias(faint), bias(faint, "median")])
    bins = []
    for name, s in results["pixels"].items():
        biases = {(b["brightest"], b["faintest"]): b for b in s["flux_bias"]["bins"]}
        for entry in s["by_magnitude"]:
            found = biases.get((entry["brightest"], entry["faintest"]))
            bins.append(
                [
                    name,
                    magnitude_range(entry["brightest"], entry["faintest"]),
                    str(entry["num_objects"]),
                    number(entry["all"]["mean"], 3),
                    with_error(entry["source"]["mean"], entry["source"]["mean_error"], 3),
                    bias(found),
                    bias(found, "median"),
                ]
            )
    limit = results["settings"]["bright_magnitude"]
    heads = ["modality", "magnitude", "objects", "chi2", "chi2, sources", "bias of the sum", "median bias"]
    return "\n\n".join(
        [
            "## Flux bias and error by magnitude",
            f"The flux of an image's object is that within {APERTURE:g} arcsec, in each band, of a spectrum all of it; "
            f"against the truth where it is known. Bright is below AB magnitude {limit:g} in the band at hand (of a "
            f"spectrum: from its mean flux between {FLUX_WINDOW[0]:g} and {FLUX_WINDOW[1]:g} angstrom), faint above. "
            f"Bias of the sum of all sources, and the median of each one's own, in percent with standard errors.",
            table(["modality", "bright, sum", "bright, median", "faint, sum", "faint, median"], rows),
            picture(pictures, "flux-bias", "flux bias against magnitude; bands of 1 and 3 percent"),
            "By the object's magnitude (of an image: in the band nearest 6400 angstrom; the bias is of all bands):",
            table(heads, bins),
        ]
    )


def _codebooks(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    rows = []
    for name, s in results["pixels"].items():
        for book, places in s["codebooks"].items():
            # Only tokens with a place of their own lie on sources or sky.
            for place in ("source", "sky") if places["source"]["num_tokens"] else ("all",):
                rows.append([name, book, place, *_use(places[place])])
    if not rows:
        return ""
    details = []
    for name, s in results["pixels"].items():
        shares = {detail: d["perplexity_share"] for detail, d in s["details"].items() if d["num_tokens"]}
        if shares:
            each = ", ".join(f"{detail}: {100 * share:.0f} %" for detail, share in shares.items())
            details.append(f"- {name}, each detail by itself, on sources: {each}")
    return "\n\n".join(
        [
            "## Codebooks",
            "Use is the share of codes that occur; the perplexity exp(entropy) says how many codes, equally frequent, "
            "would carry as much. A sample shows too little of it: the corrected one adds (codes seen - 1) / 2n to the "
            "entropy. Tokens on *source* have at least one source pixel nearest to them.",
            table(["modality", "codebook", "on", "tokens", "use", "perplexity", "share of codes", "corrected"], rows),
            "\n".join(details),
            picture(pictures, "codebooks", "how often each code occurs"),
        ]
    ).replace("\n\n\n\n", "\n\n")


def _use(scores: Mapping[str, Any]) -> list[str]:
    return [
        str(scores["num_tokens"]),
        percent(scores["use"]),
        number(scores["perplexity"], 0),
        percent(scores["perplexity_share"]),
        number(scores["perplexity_corrected"], 0),
    ]


def _redshifts(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    rows = []
    for name, s in results["pixels"].items():
        if s["redshift"] is None:
            continue
        for place, labels in enumerate(s["redshift"]["label_counts"]):
            row = [name, str(labels), str(s["redshift"]["num_test"])]
            for features in ("original without noise", "original", "reconstruction", "tokens"):
                scores = s["redshift"]["r2"].get(features)
                row += [DASH, DASH] if scores is None else [number(scores[p][place], 3) for p in ("ridge", "trees")]
            rows.append(row)
    if not rows:
        return ""
    heads = ["modality", "labels", "tested"]
    for features in ("no noise", "original", "reconstruction", "tokens"):
        heads += [f"{features}: ridge", "trees"]
    low, high = REDSHIFTS
    return "\n\n".join(
        [
            "## Redshift information",
            f"R2 of the redshift ({low:g} to {high:g}) by ridge regression and by gradient-boosted trees, trained on "
            f"some of the held-out objects and tested on the others. Originals and reconstructions give the same "
            f"features: of images the light in apertures and colours, of spectra the flux in bins of log wavelength. "
            f"Tokens are probed by what their codes have in common, without a decoder: reconstruction and "
            f"representation are two qualities.",
            table(heads, rows),
        ]
    )


def _values(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    if not results["values"]:
        return ""
    rows = []
    for name, s in results["values"].items():
        books = [book["all"] for book in s["codebooks"].values()]
        rows.append(
            [
                f"{name} ({s['num_objects']})",
                number(s["r2"], 6),
                number(s["median_r2"], 4),
                number(s["rms_error"], 3),
                percent(s["outside"], 2),
                number(s["tokens"], 1),
                number(s["bits"], 0),
                " + ".join(str(book["vocabulary"]) for book in books),
                percent_range([book["use"] for book in books]),
                percent_range([book["perplexity_share"] for book in books]),
                number(s["objects_per_second"]["encode"], 0),
                number(s["objects_per_second"]["decode"], 0),
            ]
        )
    heads = [
        "modality (objects)",
        "R2",
        "median R2 of each",
        "error, sigma",
        "outside",
        "tokens",
        "bits",
        "codes",
        "use",
    ]
    heads += ["perplexity", "encode, objects/s", "decode, objects/s"]
    return "\n\n".join(
        [
            "## Scalars and coefficients",
            "The error is the RMS difference from the measured value, in units of its own error where that is known; "
            "*outside* the share of values beyond the range that was learned, which outer codes stand for.",
            table(heads, rows),
        ]
    )


def _economy(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    points = results["economy"]
    if len({point["label"] for point in points}) < 2:
        return ""
    rows = [
        [
            point["modality"],
            point["label"],
            number(point["tokens"], 1),
            number(point["bits"], 0),
            number(point["rms_error"], 3),
            number(point["chi2_source"], 3),
            *(number(point[f"redshift_{of}"], 3) for of in ("original", "reconstruction", "tokens")),
        ]
        for point in sorted(points, key=lambda p: (p["modality"], p["tokens"]))
    ]
    heads = ["modality", "tokenizer", "tokens", "bits", "error on sources, sigma", "chi2, sources"]
    heads += ["redshift R2: original", "reconstruction", "tokens"]
    return "\n\n".join(
        [
            "## Token economy",
            "Tokenizers of other budgets, on the same objects; redshift R2 by the better probe with all labels.",
            table(heads, rows),
            picture(pictures, "economy", "quality against tokens for each object"),
        ]
    )


def _held_out(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    if not results["held_out_instruments"]:
        return ""
    rows, notes = [], []
    for name, s in results["held_out_instruments"].items():
        of_control = s["variants"]["trained on"]["source"]["rms_error"]
        for variant, scores in s["variants"].items():
            row = [f"{name} ({s['num_objects']})", variant]
            for place in ("all", "source"):
                row += [number(scores[place]["rms_error"], 3), number(scores[place]["chi2"], 3)]
            rows.append([*row, number(scores["all"]["r2"], 4), ratio(scores["source"]["rms_error"], of_control)])
        known = "" if s["is_known_unseen"] else " That it was never seen is not on record here."
        notes.append(f"- {name}: wrong numbers are those of the {s['wrong_metadata']}.{known}")
        notes += [f"- {name}, {variant}: refused ({why})" for variant, why in s["refused"].items()]
    heads = ["modality (objects)", "tokenizer", "error, sigma", "chi2", "error on sources", "chi2, sources", "R2"]
    heads += ["error over control's"]
    return "\n\n".join(
        [
            "## Instruments held out",
            "A tokenizer that never saw the instrument, beside a control that was trained on it too. Told the "
            "instrument's numbers wrongly, when encoding or decoding alone or throughout, a tokenizer that reads them "
            "does worse: bands get wavelength, width, PSF and depth of the next one; spectra the grid and resolution "
            "of another spectrograph, stretched over their pixels.",
            table(heads, rows),
            "\n".join(notes),
            picture(pictures, "held-out-instruments", "error by what the tokenizer knew of the instrument"),
        ]
    )


def _another_camera(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    rows = [
        [
            f"{name} ({s['num_objects']})",
            wanted,
            "sharper" if s["is_sharper"] else "broader",
            *(percent(s[key], 1) for key in ("error", "own_error", "noise")),
            f"{100 * s['bias']:+.1f}",
        ]
        for name, others in results["another_camera"].items()
        for wanted, s in others.items()
    ]
    if not rows:
        return ""
    heads = [
        "tokens of (objects)",
        "seen as",
        "its PSF is",
        "error",
        "error of its own tokens",
        "noise",
        "bias, percent",
    ]
    return "\n\n".join(
        [
            "## As another camera would see it",
            "Tokens of one camera, decoded with another's bands, PSF and pixels. Errors are RMS over the RMS flux of "
            "source pixels, against the truth where it is known, in bands whose wavelength lies in one of the "
            "camera's that was encoded, and pixels within its image by a PSF; noise is that of one observation. A "
            "sharper camera shows what the tokens' own never saw.",
            table(heads, rows),
        ]
    )


def _real(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    if not results["real"]:
        return ""
    rows, shown = [], []
    for s in results["real"]:
        if "refused" in s:
            rows.append([s["title"], s["modality"], str(s["num_objects"]), f"refused: {s['refused']}"] + [DASH] * 4)
            continue
        on = score_of(s, "observed", "tokens")
        rows.append(
            [
                s["title"],
                s["modality"],
                str(s["num_objects"]),
                number(s["tokens"], 1),
                number(on.get("r2"), 4),
                number(s["chi2"]["all"]["mean"], 3),
                number(s["chi2"]["all"]["median_of_objects"], 3),
                number(s["chi2"]["source"]["mean"], 3),
            ]
        )
        shown.append(picture(pictures, s["picture"], s["title"]))
    heads = ["real files", "modality", "objects", "tokens", "R2", "chi2", "median of objects", "chi2, sources"]
    return "\n\n".join(
        [
            "## Real observations",
            "The files that ship with Armillary, which no tokenizer was trained on. Their noise is what the survey "
            "says of it.",
            table(heads, rows),
            *filter(None, shown),
        ]
    )


def _examples(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    shown = [picture(pictures, name.replace("/", "-"), f"{name}, at quantiles of chi2") for name in results["pixels"]]
    if not any(shown):
        return ""
    intro = "Objects at quantiles of chi2 per valid pixel, from the best to the worst, chosen by that alone."
    return "\n\n".join(["## Examples", intro, *filter(None, shown)])


def _halves(halves: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> tuple[Any, Any]:
    """The entries of bright and of faint sources; None for one without a source."""
    limit = summary["flux_bias"]["bright_magnitude"]
    bright = next((b for b in halves if b["faintest"] == limit), None)
    faint = next((b for b in halves if b["brightest"] == limit), None)
    return bright, faint
