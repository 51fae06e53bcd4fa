"""Retrieval across modalities: of all test objects, which one is this? Beside chance, and brightness alone.

The baseline measures light from the pixels of both sides: of an image, the flux in two apertures of each band; of a
spectrum, the mean flux in ten bins of wavelength. A linear map of these and their squares, fitted on training objects,
says what light to expect on the other side; the nearest in units of the map's scatter come first.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..data.dataset import ObservationDataset
from ..data.observations import ImageObservation, SpectrumObservation
from .objects import EvaluationObjects, Subset
from .retrieval_scores import GAIN_DEPTH, GradedRelevance, first_of_gallery, ranks_of_matches, score_ranks
from .scores import bootstrap_means, interval_of
from .vectors import VectorStore

READ = 500
"""Observations read at once."""
APERTURES = (1.0, 3.0)
"""Radii, arcsec."""
NUM_BINS = 10
"""Bins of a spectrum, of equal width in log wavelength."""
NUM_EXAMPLES = 6


def directions(objects: EvaluationObjects) -> list[tuple[Subset, Subset]]:
    """Every ordered pair of two surveys."""
    singles = [Subset(name, (name,)) for name in objects.surveys]
    return [(a, b) for a in singles for b in singles if a != b]


def measure_retrieval(
    objects: EvaluationObjects,
    vectors: VectorStore,
    query: Subset,
    target: Subset,
    relevance: GradedRelevance,
    light: dict[str, dict[str, np.ndarray]] | None,
) -> dict[str, Any]:
    """Scores of the model in each space both have, and of brightness alone, over a gallery of all test objects.

    `light` has the features of training and test objects, by modality and part.
    """
    ids, count = objects.ids["test"], objects.settings.num_bootstrap
    answer: dict[str, Any] = {"query": query.name, "target": target.name, "methods": {}}
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for space in vectors.spaces(query):
        if space in vectors.spaces(target):
            sides = (vectors.get(query, space, ids), vectors.get(target, space, ids))
            pairs[f"{space} space"] = _unit_sides(*sides) if space == "encoder" else sides
    if light is not None:
        pairs["brightness alone"] = expected_light(light[query.name], light[target.name])
    for name, (queries, gallery) in pairs.items():
        rank = ranks_of_matches(queries, gallery)
        found = first_of_gallery(queries, gallery, GAIN_DEPTH)
        graded = relevance.ndcg(found)
        samples = bootstrap_means([graded], count)[0]
        answer["methods"][name] = score_ranks(rank, len(ids), count) | {
            "ndcg_at_10": float(graded.mean()),
            "ndcg_at_10_interval": interval_of(samples),
            "ndcg_at_10_chance": relevance.chance(),
            "examples": [[ids[row], *(ids[place] for place in found[row, :5])] for row in range(NUM_EXAMPLES)],
        }
    return answer


def expected_light(query: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Test queries and gallery such that a larger dot product is a smaller distance in light.

    `query` and `target` are features [B, S] and [B, T] of the objects of `train` and `test`.

    The squared distance is taken in the whitened residuals of a linear map from query to target light.
    """
    mean, spread = query["train"].mean(0), query["train"].std(0).clip(1e-9)

    def padded(features: np.ndarray) -> np.ndarray:
        scaled = (features - mean) / spread
        return np.concatenate([scaled, np.square(scaled), np.ones((len(scaled), 1))], 1)

    inputs = padded(query["train"])
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ target["train"])
    residual = target["train"] - inputs @ weights
    covariance = np.cov(residual.T) + 1e-9 * np.eye(residual.shape[1]) * residual.var().clip(1e-12)
    whiten = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(covariance))).T
    centre = target["train"].mean(0)
    queries, gallery = (padded(query["test"]) @ weights - centre) @ whiten, (target["test"] - centre) @ whiten
    # -|q - g|^2 / 2 = q.g - |g|^2 / 2 - |q|^2 / 2, of which the last orders nothing.
    return (
        np.concatenate([queries, np.ones((len(queries), 1))], 1),
        np.concatenate([gallery, -np.square(gallery).sum(1, keepdims=True) / 2], 1),
    )


def light_of(dataset: ObservationDataset, name: str, ids: list[str]) -> Float[np.ndarray, "B S"]:
    """Light of each object as asinh of flux over a small one: a logarithm that noise below zero does not break."""
    found = []
    for start in range(0, len(ids), READ):
        observation = dataset.read(name, ids[start : start + READ])
        if isinstance(observation, ImageObservation):
            found.append(torch.asinh(_apertures(observation) / 0.1))
        elif isinstance(observation, SpectrumObservation):
            found.append(torch.asinh(_bins(observation) / 0.1))
        else:
            raise ValueError(f"surveys: expected images and spectra, found {name}")
    return torch.cat(found).double().numpy()


def _apertures(images: ImageObservation) -> torch.Tensor:
    """Flux within each aperture about the middle, nanomaggies, [B, C x apertures]."""
    height, width = images.flux.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    radius = torch.hypot(y, x) * images.card.pixel_scale
    flux = torch.where(images.mask, images.flux, 0.0)
    return torch.cat([(flux * (radius <= limit)).sum((2, 3)) for limit in APERTURES], 1)


def _bins(spectra: SpectrumObservation) -> torch.Tensor:
    """Mean flux of valid pixels in each bin, 1e-17 erg/s/cm2/A; zero where there is none."""
    grid = spectra.card.wavelength()
    edges = torch.from_numpy(np.geomspace(grid[0], grid[-1] * (1 + 1e-9), NUM_BINS + 1)[1:-1])
    index = torch.bucketize(spectra.wavelength.contiguous(), edges)
    zero = torch.zeros(len(spectra), NUM_BINS)
    total = zero.scatter_add(1, index, torch.where(spectra.mask, spectra.flux, 0.0))
    return total / zero.scatter_add(1, index, spectra.mask.float()).clamp(min=1)


def _unit_sides(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines, after the mean of each side is taken off: it says which modality it is, and nothing of the object."""
    sides = []
    for vectors in (queries, gallery):
        centred = vectors - vectors.mean(0)
        sides.append(centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12))
    return sides[0], sides[1]
