"""The scores of one modality of images or spectra, as plain data, from what was gathered of it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .flux_bias import flux_bias
from .photometry import magnitudes
from .pixel_measures import SIGNAL_TO_NOISE_EDGES, PixelMeasures
from .pixel_scores import ratio_of_sums
from .redshift_probe import probe_redshift

MAGNITUDE_EDGES = (-math.inf, *(float(magnitude) for magnitude in range(15, 25)), math.inf)
FEWEST_PIXELS = 10
"""Pixels that an object needs for a chi2 of its own."""

Objects = Mapping[str, np.ndarray]


def summarise(
    measures: PixelMeasures, redshifts: Mapping[str, float], bright_magnitude: float, label_counts: Sequence[int]
) -> dict[str, Any]:
    """All scores. `redshifts` are labels by object id; objects without one are not probed."""
    of = {name: np.concatenate(parts) for name, parts in measures.objects.items()}
    return {
        "num_objects": len(measures.object_id),
        "is_simulated": measures.truth is not None,
        "source_sigma": measures.source_sigma,
        "tokens": float(of["tokens"].mean()),
        "bits": float(of["bits"].mean()),
        "decoded": float(of["pixels all"].sum() / of["valid"].sum()),
        "psnr": _median(of["psnr"][np.isfinite(of["psnr"])]),
        "scores": _scores(measures),
        "chi2": {place: _chi2(of, place) for place in ("all", "source")},
        "by_signal_to_noise": _by_signal_to_noise(measures),
        "by_band": {band: _of_band(measures, band) for band in measures.bands},
        "by_magnitude": _by_magnitude(of),
        "flux_bias": _flux_bias(measures, of, bright_magnitude),
        "mask_auc": measures.validity.area,
        "num_masked_pixels": int(measures.validity.invalid.sum()),
        "codebooks": measures.codes.summary(),
        "details": measures.codes.of_details(),
        "histogram": measures.codes.histograms(),
        "redshift": _redshift(measures, redshifts, label_counts),
        # The first batch pays for what is set up once.
        "objects_per_second": {
            name: 1 / float(np.median(seconds[1:] or seconds)) for name, seconds in measures.seconds.items()
        },
        "object_id": measures.object_id,
        "object_chi2": (of["chi2 all"] / np.maximum(of["pixels all"], 1)).tolist(),
    }


def score_of(summary: Mapping[str, Any], against: str, by: str, pixels: str = "all") -> dict[str, Any]:
    """The entry of `scores` that compares `by` with `against` at these pixels; empty if there is none."""
    for entry in summary["scores"]:
        if (entry["against"], entry["by"], entry["pixels"]) == (against, by, pixels):
            return dict(entry)
    return {}


def _scores(measures: PixelMeasures) -> list[dict[str, Any]]:
    return [
        {
            "against": key[0],
            "by": key[1],
            "pixels": key[2],
            "num_pixels": sums.count,
            "r2": sums.r2,
            "chi2": sums.mean_chi2,
        }
        for key, sums in measures.sums.items()
        if len(key) == 3
    ]


def _chi2(of: Objects, place: str) -> dict[str, float]:
    """chi2 against the observed flux: mean per pixel with its error, and the median over objects with enough pixels.

    `rms_error` is the RMS error in units of the noise against the truth, or what was observed where none is known.
    """
    mean, error = ratio_of_sums(of[f"chi2 {place}"], of[f"pixels {place}"])
    squared, _ = ratio_of_sums(of[f"error {place}"], of[f"pixels {place}"])
    enough = of[f"pixels {place}"] >= FEWEST_PIXELS
    each = of[f"chi2 {place}"][enough] / of[f"pixels {place}"][enough]
    return {
        "mean": mean,
        "mean_error": error,
        "median_of_objects": _median(each),
        "num_objects": int(enough.sum()),
        "share_of_pixels": float(of[f"pixels {place}"].sum() / max(of["pixels all"].sum(), 1)),
        "rms_error": math.sqrt(squared),
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _by_signal_to_noise(measures: PixelMeasures) -> list[dict[str, Any]]:
    bins = itertools.pairwise(SIGNAL_TO_NOISE_EDGES)
    found = []
    for number, (low, high) in enumerate(bins):
        sums = {a: measures.sums.get((a, "tokens", "bin", str(number))) for a in ("observed", "true")}
        observed, true = sums["observed"], sums["true"]
        if observed is not None and observed.count:
            entry = {"low": low, "high": high, "num_pixels": observed.count, "chi2": observed.mean_chi2}
            found.append(entry | ({} if true is None else {"rms_error": math.sqrt(true.mean_chi2)}))
    return found


def _of_band(measures: PixelMeasures, band: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place in ("all", "source"):
        for against in ("observed", "true"):
            sums = measures.sums.get((against, "tokens", "band", band, place))
            if sums is not None:
                found[f"{against} {place}"] = {"r2": sums.r2, "chi2": sums.mean_chi2, "num_pixels": sums.count}
    return found


def _by_magnitude(of: Objects) -> list[dict[str, Any]]:
    found = []
    for low, high in itertools.pairwise(MAGNITUDE_EDGES):
        chosen = (of["magnitude"] >= low) & (of["magnitude"] < high)
        if chosen.any():
            part = {name: values[chosen] for name, values in of.items()}
            entry: dict[str, Any] = {"brightest": low, "faintest": high, "num_objects": int(chosen.sum())}
            found.append(entry | {place: _chi2(part, place) for place in ("all", "source")})
    return found


def _flux_bias(measures: PixelMeasures, of: Objects, bright_magnitude: float) -> dict[str, Any]:
    """The bias by magnitude and of bright and faint sources, for all bands together and for each.

    The light of an object in a band counts as a source, with its magnitude in that band.
    """
    made, reference = of["flux made"], of["flux reference"]
    magnitude = of["magnitude"][:, None]
    if measures.bands:
        magnitude = magnitudes(torch.from_numpy(reference)).numpy()
    halves = (-math.inf, bright_magnitude, math.inf)
    return {
        "against": "observed" if measures.truth is None else "true",
        "bright_magnitude": bright_magnitude,
        "bins": _biases(made, reference, magnitude, MAGNITUDE_EDGES),
        "halves": _biases(made, reference, magnitude, halves),
        "by_band": {
            band: _biases(made[:, c], reference[:, c], magnitude[:, c], halves) for c, band in enumerate(measures.bands)
        },
    }


def _biases(made: np.ndarray, reference: np.ndarray, magnitude: np.ndarray, edges: Sequence[float]) -> list[Any]:
    return [b.as_dict() for b in flux_bias(made.ravel(), reference.ravel(), magnitude.ravel(), edges)]


def _redshift(
    measures: PixelMeasures, redshifts: Mapping[str, float], label_counts: Sequence[int]
) -> dict[str, Any] | None:
    labels = np.array([redshifts.get(name, math.nan) for name in measures.object_id], np.float64)
    # Images of several sizes have several numbers of tokens: those are not probed.
    same = {name: parts for name, parts in measures.features.items() if len({part.shape[1] for part in parts}) == 1}
    features = {name: np.concatenate(parts) for name, parts in same.items()}
    return probe_redshift(features, measures.object_id, labels, label_counts)
