"""`armillary diagnose`: the spectra of data, of embeddings and of a probe's loss, drawn and put into words.

How many directions carry the variance of the raw numbers and of the embeddings (principal components), and how the
curvature of a probe's loss falls (eigenvalues of its Gauss-Newton matrix, by Lanczos' method where it is large), tell
which solver is worth its steps: several rates where the eigenvalues lie in groups with gaps (He, Liu & Tsai 2024, arXiv
2402.03021), the closed form or L-BFGS where they do not.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ..data.dataset import ObservationDataset
from ..models.embeddings import EmbeddingsError, read_embedding_shards
from ..models.multirate import LEAST_GAP
from ..models.probe_diagnosis import SpectrumDiagnosis, diagnose_spectrum
from ..models.probe_solvers import covariance_spectrum, curvature_spectrum, least_squares
from ..models.probes import LinearProbe

MOST_OBJECTS = 5000
"""Of more objects so many are drawn at random: a spectrum needs no more."""
FEWEST_OBJECTS = 20
MOST_NUMBERS = 2000
"""Of an object's pixels, at most so many are taken, evenly spaced."""
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b4b94", "#b8860b")


def diagnose(
    embeddings: Path,
    output: Path,
    data: Path | None = None,
    property_name: str = "scalar/redshift",
    modality: str | None = None,
) -> str:
    """Write `report.json`, `report.txt` and `spectra.png` to the folder `output`; returns the text.

    Of the embeddings of one `modality` (default: the most numerous); with a dataset `data`, also of the raw numbers of
    the same objects and of the loss of a linear probe of `property_name`. Raises EmbeddingsError where there are too
    few objects.
    """
    table = read_embedding_shards(embeddings)
    chosen = modality or Counter(table.modality).most_common(1)[0][0]
    rows = np.flatnonzero(np.asarray(table.modality) == chosen)
    if len(rows) < FEWEST_OBJECTS:
        raise EmbeddingsError(
            f"{embeddings}: expected at least {FEWEST_OBJECTS} embeddings of {chosen}, found {len(rows)}; it has "
            f"{sorted(set(table.modality))}"
        )
    if len(rows) > MOST_OBJECTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_OBJECTS, replace=False))
    vectors = table.vectors[rows].astype(np.float64)
    ids = [table.object_id[row] for row in rows]
    spectra: dict[str, np.ndarray] = {}
    penalty = None
    dataset = None if data is None else ObservationDataset(data)
    if dataset is not None:
        spectra |= _spectra_of_data(dataset, ids, chosen)
    spectra[f"embeddings of {chosen}"] = covariance_spectrum(vectors / np.sqrt(vectors.var(0).mean()))
    if dataset is not None:
        loss, penalty = _loss_spectrum(dataset, property_name, ids, vectors)
        spectra[f"loss of a linear probe of {property_name}"] = loss
    found = {name: diagnose_spectrum(values) for name, values in spectra.items()}
    text = _text(found, table.model_id, table.space, len(rows), penalty)
    report = {
        "model_id": table.model_id,
        "space": table.space,
        "modality": chosen,
        "objects": len(rows),
        "penalty": penalty,
        "spectra": {
            name: {"eigenvalues": spectra[name].tolist(), **diagnosis.as_dict(), "says": _sentences(name, diagnosis)}
            for name, diagnosis in found.items()
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "report.json", json.dumps(report, indent=2) + "\n")
    _write(output / "report.txt", text + "\n")
    _draw(output / "spectra.png", spectra, found)
    return text


def _spectra_of_data(dataset: ObservationDataset, ids: list[str], modality: str) -> dict[str, np.ndarray]:
    """Of the standardised numbers of the modality itself, and of the catalogue's scalars, where enough objects have
    them."""
    found = {}
    if modality in {m.name for m in dataset.modalities}:
        have = set(dataset.object_ids(modality))
        here = [i for i in ids if i in have]
        if len(here) >= FEWEST_OBJECTS:
            observation: Any = dataset.read(modality, here)
            values = np.where(observation.mask.numpy(), observation.flux.numpy(), 0.0).reshape(len(here), -1)
            # Of fluxes that span decades, the bright objects would be all there is to see.
            values = np.arcsinh(values[:, :: -(-values.shape[1] // MOST_NUMBERS)].astype(np.float64))
            found[f"pixels of {modality}"] = covariance_spectrum(_standardised(values))
    scalars = dataset.scalars()
    columns = {name: np.array([values.get(i, np.nan) for i in ids]) for name, values in scalars.items()}
    usable = {name: column for name, column in columns.items() if np.isfinite(column).mean() > 0.9}
    if len(usable) > 1:
        matrix = np.stack(list(usable.values()), axis=1)
        matrix = matrix[np.isfinite(matrix).all(1)]
        if len(matrix) >= FEWEST_OBJECTS:
            found[f"{len(usable)} scalars of the catalogue"] = covariance_spectrum(_standardised(matrix))
    return found


def _loss_spectrum(
    dataset: ObservationDataset, property_name: str, ids: list[str], vectors: Float[np.ndarray, "B D"]
) -> tuple[np.ndarray, float]:
    """Eigenvalues of the Gauss-Newton matrix of a ridge probe, at the penalty that `LinearProbe` chooses."""
    scalars = dataset.scalars()
    if property_name not in scalars:
        raise EmbeddingsError(f"the dataset has no {property_name!r}; it has {sorted(scalars)}")
    labels = scalars[property_name]
    rows = [row for row, object_id in enumerate(ids) if object_id in labels]
    if len(rows) < FEWEST_OBJECTS:
        raise EmbeddingsError(f"{len(rows)} of {len(ids)} objects have {property_name}, expected {FEWEST_OBJECTS}")
    features = vectors[rows] - vectors[rows].mean(0)
    features /= np.sqrt(np.mean(features**2))
    values = np.array([labels[ids[row]] for row in rows])
    penalty = float(LinearProbe(intervals="constant").fit(features, values).penalty_)
    return curvature_spectrum(least_squares(features, values - values.mean(), penalty)), penalty


def _standardised(values: Float[np.ndarray, "B M"]) -> Float[np.ndarray, "B S"]:
    spread = values.std(0)
    return (values[:, spread > 0] - values[:, spread > 0].mean(0)) / spread[spread > 0]


def _sentences(name: str, found: SpectrumDiagnosis) -> list[str]:
    """What a spectrum implies, in plain words."""
    said = [
        f"{found.num_positive} of {found.num_eigenvalues} directions vary; {found.effective_rank:.1f} of them count "
        f"(effective rank). The largest eigenvalue is {found.condition_number:.3g} times the least."
    ]
    if len(found.groups) == 1:
        said.append(
            f"There is no gap of a factor of {LEAST_GAP:g} between neighbouring eigenvalues: a descent with several "
            f"rates is plain gradient descent here, of about {found.gradient_descent:,} gradients."
        )
    else:
        sizes = ", ".join(f"{g.least:.3g} to {g.largest:.3g} ({n})" for g, n in _groups(found))
        said.append(f"Gaps part {len(found.groups)} groups of eigenvalues: {sizes}.")
        if found.has_gap:
            said.append(
                f"Descent with a rate for each group would need about {found.multirate:,} gradients, plain descent "
                f"{found.gradient_descent:,}."
            )
        else:
            said.append(
                f"A cycle through them takes {found.steps_of_a_cycle:,} gradients, since a group is itself too wide: "
                "several rates gain nothing."
            )
    if name.startswith("loss"):
        best = "multirate descent" if found.has_gap else "the closed form (logistic losses: L-BFGS)"
        said.append(
            f"L-BFGS should need about {found.lbfgs:,} gradients. Taken for this probe: {best}, on the full batch; on "
            "mini-batches several rates diverge."
        )
    elif name.startswith("embeddings") and found.effective_rank < 0.1 * found.num_eigenvalues:
        said.append("Most of the embedding's width is hardly used: a few directions carry nearly all of it.")
    return said


def _groups(found: SpectrumDiagnosis) -> Any:
    return zip(found.groups, found.group_sizes, strict=True)


def _text(
    found: dict[str, SpectrumDiagnosis], model_id: str, space: str, num_objects: int, penalty: float | None
) -> str:
    lines = [f"{num_objects} objects, embeddings of {model_id} in the space {space!r}."]
    for name, diagnosis in found.items():
        of_loss = f" (penalty {penalty:.3g})" if name.startswith("loss") and penalty is not None else ""
        lines += ["", f"{name}{of_loss}", *(f"  {sentence}" for sentence in _sentences(name, diagnosis))]
    return "\n".join(lines)


def _draw(path: Path, spectra: dict[str, np.ndarray], found: dict[str, SpectrumDiagnosis]) -> None:
    """One panel for each spectrum: eigenvalues over their rank, both logarithmic, groups in colours."""
    columns = min(2, len(spectra))
    rows = -(-len(spectra) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(spectra) :]:
        panel.set_axis_off()
    for panel, (name, values) in zip(panels.flat, spectra.items(), strict=False):
        diagnosis = found[name]
        ranks = np.arange(1, len(values) + 1)
        for number, group in enumerate(diagnosis.groups):
            inside = (values >= group.least) & (values <= group.largest)
            panel.loglog(
                ranks[inside], values[inside], ".-", color=COLOURS[number % len(COLOURS)], markersize=4, lw=0.8
            )
        for before, after in zip(diagnosis.groups[:-1], diagnosis.groups[1:], strict=True):
            panel.axhspan(after.largest, before.least, color="0.9", zorder=0)
        panel.axvline(diagnosis.effective_rank, color="0.4", ls="--", lw=1)
        panel.set_ylim(diagnosis.least / 2, diagnosis.largest * 2)
        gap = "no gap" if len(diagnosis.groups) == 1 else f"{len(diagnosis.groups)} groups"
        panel.set_title(
            f"{name}\ncondition {diagnosis.condition_number:.2g}, effective rank {diagnosis.effective_rank:.1f}, {gap}",
            fontsize=9,
        )
        panel.set_xlabel("rank")
        panel.grid(True, which="major", color="0.92")
        panel.set_ylabel("eigenvalue")
    figure.suptitle("Eigenvalues; dashed: effective rank, grey: a gap between groups", fontsize=10)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
