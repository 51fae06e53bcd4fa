"""The pictures of the demo's report, as PNG bytes."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from ..data.dataset import ObservationDataset
from ..data.observations import ImageObservation, SpectrumObservation
from ..models.foundation import FoundationModel
from ..training.run_record import read_metrics
from .evaluation import IMAGE, SPECTRUM
from .real_observations import DESI_GALAXY, read_desi_redshift

NUM_SHOWN = 6
LINES = {
    "[O II]": 3728.5,
    "Ca K": 3934.8,
    "Hb": 4862.7,
    "[O III]": 5008.2,
    "Mg b": 5176.6,
    "Na D": 5895.6,
    "Ha": 6564.6,
}
"""Vacuum wavelengths of prominent lines, angstrom."""


def loss_curves(folder: Path) -> bytes:
    """Loss against step, for the four trainings."""
    runs = {
        "image tokenizer": folder / "tokenizers" / "image",
        "spectrum tokenizer": folder / "tokenizers" / "spectrum",
        "pretraining": folder / "pretrain",
        "alignment": folder / "align",
    }
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axis, (name, run) in zip(figure.subplots(1, len(runs)), runs.items(), strict=True):
        rows = read_metrics(run / "metrics.csv")
        axis.plot([row["step"] for row in rows], [row["loss"] for row in rows])
        axis.set(title=name, xlabel="step", ylabel="loss")
    return png(figure)


def image_reconstructions(model: FoundationModel, images: ImageObservation, band: str) -> bytes:
    """Images above, their reconstructions below, both in units of the sky's noise."""
    shown = images.select(list(range(min(NUM_SHOWN, len(images)))))
    made = model.reconstruct(shown)
    place = list(shown.bands).index(band)
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(2, NUM_SHOWN, squeeze=False)
    for column in range(len(shown)):
        noise = float(shown.noise()[column, place])
        for row, observation in enumerate((shown, made)):
            pixels = np.arcsinh(observation.flux[column, place].numpy() / noise / 2)
            axes[row, column].imshow(pixels, vmin=-1, vmax=5, cmap="inferno", origin="lower")
        axes[0, column].set_title(shown.object_id[column], fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return png(figure)


def spectrum_reconstructions(
    model: FoundationModel, spectra: SpectrumObservation, redshifts: list[float | None]
) -> bytes:
    """Spectra in grey, smoothed spectra in black, reconstructions in red; lines at each redshift, where known."""
    made = model.reconstruct(spectra)
    figure = Figure(figsize=(11, 2.5 * len(spectra)), layout="constrained")
    for row, axis in enumerate(figure.subplots(len(spectra), 1, squeeze=False)[:, 0]):
        valid = spectra.mask[row]
        wavelength, flux = spectra.wavelength[row][valid], spectra.flux[row][valid]
        axis.plot(wavelength, flux, color="0.8", lw=0.4)
        axis.plot(wavelength, _smoothed(flux.numpy()), color="black", lw=0.6, label="observed, mean of 9 pixels")
        shown = made.mask[row] & valid
        axis.plot(spectra.wavelength[row][shown], made.flux[row][shown], color="tab:red", lw=0.9, label="from tokens")
        low, high = np.percentile(_smoothed(flux.numpy()), [0.5, 99.7])
        axis.set_ylim(min(0, low), 1.35 * high)
        axis.set_ylabel("1e-17 erg/s/cm2/A")
        axis.set_title(f"{spectra.modality.name}, {spectra.object_id[row]}", fontsize=9, loc="left")
        redshift = redshifts[row]
        for name, rest in LINES.items() if redshift is not None else ():
            place = rest * (1 + float(redshift or 0))
            if wavelength[0] < place < wavelength[-1]:
                axis.axvline(place, color="tab:blue", lw=0.5, ls=":")
                axis.text(place, 1.25 * high, name, fontsize=7, color="tab:blue", ha="center")
    axis.set_xlabel("wavelength in vacuum, angstrom")
    axis.legend(fontsize=8, loc="lower right")
    return png(figure)


def real_desi_spectrum(model: FoundationModel, dataset: ObservationDataset) -> bytes:
    """The real DESI galaxy, from its file through observation and tokens to its reconstruction."""
    spectrum: Any = dataset.read(SPECTRUM, [DESI_GALAXY])
    return spectrum_reconstructions(model, spectrum, [read_desi_redshift()])


def redshift_scatter(results: dict[str, Any], panels: dict[str, str]) -> bytes:
    """Predicted against true redshift; `panels` maps a key of `results` to a title."""
    true = np.array(results["true"])
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        top = float(np.quantile(true, 0.995)) * 1.15
        axis.plot([0, top], [0, top], color="0.5", lw=0.8)
        axis.plot(true, results[key], ".", ms=3, alpha=0.6)
        axis.set(title=title, xlabel="true redshift", ylabel="predicted redshift", xlim=(0, top), ylim=(0, top))
    return png(figure)


def retrieval_examples(results: dict[str, Any], dataset: ObservationDataset) -> bytes:
    """For a few held-out images (left), the images of the objects whose spectra are nearest; the true one in green."""
    examples = results["retrieval"][f"{IMAGE} -> {SPECTRUM}"]["examples"]
    ids = list(dict.fromkeys(i for row in examples for i in row))
    images: Any = dataset.read(IMAGE, ids)
    place = {object_id: row for row, object_id in enumerate(ids)}
    figure = Figure(figsize=(8, 1.35 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), len(examples[0]), squeeze=False)
    for row, names in enumerate(examples):
        for column, object_id in enumerate(names):
            axis = axes[row, column]
            axis.imshow(_colours(images, place[object_id]), origin="lower")
            axis.set_xticks([])
            axis.set_yticks([])
            found = column > 0 and object_id == names[0]
            for spine in axis.spines.values():
                spine.set_visible(column == 0 or found)
                spine.set_color("tab:green" if found else "black")
                spine.set_linewidth(3 if found else 1)
    for column, axis in enumerate(axes[0]):
        axis.set_title("query" if column == 0 else f"nearest {column}", fontsize=8)
    return png(figure)


def _colours(images: ImageObservation, row: int) -> np.ndarray:
    """g, r and z as blue, green and red, compressed (Lupton et al. 2004, astro-ph/0312483)."""
    bands = [list(images.bands).index(band) for band in "zrg"]
    flux = torch.stack([images.flux[row, b] for b in bands], -1).numpy() * np.array([0.6, 1.0, 1.7])
    total = flux.mean(-1, keepdims=True)
    compressed = np.arcsinh(np.clip(total, 0, None) / 0.01) / 6
    return np.clip(flux / np.maximum(total, 1e-3) * compressed, 0, 1)


def _smoothed(flux: np.ndarray) -> np.ndarray:
    return np.convolve(np.pad(flux, 4, mode="edge"), np.ones(9) / 9, "valid")


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    with mpl.rc_context({"font.size": 9}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
