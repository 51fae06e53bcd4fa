"""What the demo measures, on objects that no step has trained on: redshifts and retrieval."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from ..data.dataset import ObservationDataset
from ..data.observations import ImageObservation
from ..data.sky_split import PARTS, read_parts
from ..evaluation.baselines import magnitudes_and_colours
from ..models.foundation import FoundationModel
from ..models.probes import LinearProbe
from ..serving.index.embedding_index import EmbeddingIndex
from ..serving.index.files import predictors_of
from ..serving.index.labelled_neighbours import labelled_neighbours, predictor_for
from ..training.metrics_log import console
from .generation import measure_generation
from .redshift_scores import LEVELS, predict_with_trees, score, score_constant
from .settings import DemoSettings
from .supervised_network import predict_supervised

REDSHIFT = "scalar/redshift"
IMAGE, SPECTRUM = "image/legacysurvey", "spectrum/desi"
REAL_MAGNITUDES = (*(f"scalar/sdss_{band}" for band in "ugriz"), *(f"scalar/twomass_{band}" for band in "jhk"))


def evaluate(folder: Path, settings: DemoSettings) -> None:
    """Measure everything and write `<folder>/results.json`."""
    model = FoundationModel.load(folder / "align" / "checkpoint")
    dataset = ObservationDataset(folder / "data")
    parts = read_parts(folder / "parts")
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "real_redshifts": lambda: real_redshifts(model, dataset, parts),
        "simulated_redshifts": lambda: simulated_redshifts(folder, dataset, settings, parts),
        "retrieval": lambda: retrieval(folder, parts),
        "reconstruction": lambda: reconstruction(model, dataset, parts),
        "generation": lambda: measure_generation(model, dataset, settings.generation, parts),
    }
    results = {name: measure() for name, measure in track(steps.items(), description="measure", console=console)}
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "results.json")


def real_redshifts(model: FoundationModel, dataset: ObservationDataset, parts: Mapping[str, str]) -> dict[str, Any]:
    """Redshifts of real galaxies from their real photometry: constant, trees, and the masked model's distribution."""
    ids = _by_part([i for i in dataset.object_ids(REDSHIFT) if i.startswith("sdss-")], parts)
    train, true = (_scalars(dataset, REDSHIFT, ids[part]) for part in ("train", "test"))
    features = {part: magnitudes_and_colours(_magnitudes(dataset, ids[part])) for part in ("train", "test")}
    of_trees, intervals_of_trees = predict_with_trees(features["train"], train, features["test"])
    prediction = model.predict_scalar([dataset.read(name, ids["test"]) for name in REAL_MAGNITUDES], REDSHIFT)
    intervals = {}
    for level in LEVELS:
        low, high = prediction.interval(level)
        intervals[level] = (low.numpy(), high.numpy())
    of_model = prediction.median().numpy()
    return {
        "scores": [
            score_constant(train, true).as_dict(),
            score("gradient-boosted trees", of_trees, true, intervals_of_trees).as_dict(),
            score("masked model", of_model, true, intervals).as_dict(),
        ],
        "num_train": len(train),
        "true": true.tolist(),
        "of_trees": of_trees.tolist(),
        "of_model": of_model.tolist(),
        "interval_68": [bound.tolist() for bound in intervals[0.68]],
    }


def simulated_redshifts(
    folder: Path, dataset: ObservationDataset, settings: DemoSettings, parts: Mapping[str, str]
) -> dict[str, Any]:
    """Redshifts of simulated galaxies from one image: constant, supervised network, zero-shot, linear probe."""
    index = EmbeddingIndex.load(folder / "index")
    ids = _by_part([i for i in dataset.object_ids(IMAGE) if i.startswith("sim-")], parts)
    train, true = (_scalars(dataset, REDSHIFT, ids[part]) for part in ("train", "test"))
    images = {part: dataset.read(IMAGE, ids[part]) for part in ("train", "test")}
    assert isinstance(images["train"], ImageObservation)
    assert isinstance(images["test"], ImageObservation)
    supervised = predict_supervised(images["train"], train, images["test"], settings.supervised_steps)

    vectors = {part: index.vectors(ids[part], IMAGE) for part in ("train", "test")}
    predictor = predictor_for(predictors_of(folder / "index", index.manifest), REDSHIFT, [IMAGE])
    found, labels = labelled_neighbours(index, vectors["test"], REDSHIFT, predictor.k, gallery=predictor.gallery)
    zero_shot = predictor.predict(found.similarity, labels)
    intervals = {
        level: (zero_shot.lower[:, place], zero_shot.upper[:, place]) for place, level in enumerate(predictor.levels)
    }
    probe = LinearProbe().fit(vectors["train"], train)
    probe_intervals = {}
    for level in LEVELS:
        low, high = probe.predict_interval(vectors["test"], level).T
        probe_intervals[level] = (low, high)
    return {
        "scores": [
            score_constant(train, true).as_dict(),
            score("supervised network, same images", supervised, true).as_dict(),
            score("zero-shot, neighbours of the image", zero_shot.value, true, intervals).as_dict(),
            score(
                "linear probe on the aligned vector", probe.predict(vectors["test"]), true, probe_intervals
            ).as_dict(),
        ],
        "num_train": len(train),
        "k": predictor.k,
        "true": true.tolist(),
        "zero_shot": zero_shot.value.tolist(),
        "supervised": supervised.tolist(),
    }


def retrieval(folder: Path, parts: Mapping[str, str]) -> dict[str, Any]:
    """How often the other view of the same object is among the K nearest, of all simulated objects' views."""
    index = EmbeddingIndex.load(folder / "index")
    objects = dict.fromkeys(i for name in index.modalities for i in index.objects_with(name))
    simulated = [i for i in objects if i.startswith("sim-")]
    real = objects.keys() - simulated
    answers: dict[str, Any] = {"gallery": len(simulated)}
    for query, target in ((IMAGE, SPECTRUM), (SPECTRUM, IMAGE), (IMAGE, "image/hsc")):
        ids = [i for i in simulated if parts.get(i) == "test"]
        queries = index.vectors(ids, query)
        found = index.search(queries, 10, target_modality=target, exclude=real)
        hits = found.object_id == np.array(ids, dtype=object)[:, None]
        answers[f"{query} -> {target}"] = {
            "num_queries": len(ids),
            "recall_at_1": float(hits[:, :1].any(1).mean()),
            "recall_at_10": float(hits.any(1).mean()),
            "chance_at_10": 10 / len(simulated),
            "examples": [[i, *found.object_id[row, :5].tolist()] for row, i in enumerate(ids[:6])],
        }
    return answers


def reconstruction(model: FoundationModel, dataset: ObservationDataset, parts: Mapping[str, str]) -> dict[str, Any]:
    """Share of the variance of flux that reconstructions keep, and chi2 per valid pixel, on held-out objects."""
    answers = {}
    for modality in dataset.modalities:
        if modality.kind == "scalar":
            continue
        for source in ("simulated", "real"):
            ids = [
                i
                for i in dataset.object_ids(modality.name)
                if parts.get(i) == "test" and i.startswith("sim-") == (source == "simulated")
            ][:100]
            if not ids:
                continue
            observation: Any = dataset.read(modality.name, ids)
            made = model.reconstruct(observation)
            seen = observation.mask & made.mask
            flux, error = observation.flux[seen], (observation.flux - made.flux)[seen]
            chi2 = error.square() * observation.inverse_variance[seen]
            answers[f"{modality.name}, {source}"] = {
                "num_objects": len(ids),
                "tokens": float(model.tokenize(observation).mask.sum(1).float().mean()),
                "r2": float(1 - error.square().sum() / (flux - flux.mean()).square().sum()),
                "median_chi2": float(chi2.median()),
                "mean_chi2": float(chi2.mean()),
            }
    return answers


def _by_part(ids: list[str], parts: Mapping[str, str]) -> dict[str, list[str]]:
    return {part: [i for i in ids if parts.get(i) == part] for part in PARTS}


def _scalars(dataset: ObservationDataset, name: str, ids: list[str]) -> np.ndarray:
    observation: Any = dataset.read(name, ids)
    return np.where(observation.mask.numpy(), observation.values.numpy(), np.nan).astype(np.float64)


def _magnitudes(dataset: ObservationDataset, ids: list[str]) -> np.ndarray:
    return np.stack([_scalars(dataset, name, ids) for name in REAL_MAGNITUDES], 1)
