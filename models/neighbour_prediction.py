"""Zero-shot prediction: the value of an object from the labels of its nearest neighbours in embedding space.

Neighbours are weighted by softmax(similarity / temperature). The value is their weighted mean; the interval reaches to
their weighted quantiles, stretched by a factor found on held-out objects (conformal prediction with nested sets: Gupta
et al. 2022, arXiv 1910.10562). No weight is trained. An object lies outside of what is known where its neighbours are
farther than those of nearly all held-out objects (`novelty.py`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from .conformal import LEVELS, conformal_reach, objects_needed
from .novelty import are_outside, p_values

Gallery = Literal["rows", "objects"]
"""By what a labelled object is found: by the most similar of its vectors, or by their mean."""
CANDIDATE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
CANDIDATE_TEMPERATURES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
DEFAULT_COUNT = 16
DEFAULT_TEMPERATURE = 0.1
NOVELTY_RANK = 8
"""The similarity of which nearest neighbour says how far an object lies from what is known; at most k."""
MOST_SIMILARITIES = 999
"""Of more calibration objects, the similarities of so many are kept, drawn at random."""

FLOOR_SHARE = 1e-3
"""Least half-width of an interval before stretching, in standard deviations of the labels; equal labels give zero."""


class NeighbourPredictionError(ValueError):
    """No prediction is possible from these neighbours; the message says why and for which query."""


@dataclass(frozen=True, eq=False)
class NeighbourPrediction:
    """Predictions for Q queries from K neighbours, at S levels of confidence.

    `value` is the weighted mean of the labels; `lower` and `upper` bound it; `weights` sum to one, zero where a
    neighbour has no label or is not among the nearest k. `novelty` is the share of calibration objects whose neighbours
    are as far, and `is_outside` whether it is at most 1 %; None where nothing was calibrated, or by too few objects.
    """

    value: Float[np.ndarray, " Q"]
    lower: Float[np.ndarray, "Q S"]
    upper: Float[np.ndarray, "Q S"]
    weights: Float[np.ndarray, "Q K"]
    levels: tuple[float, ...]
    novelty: Float[np.ndarray, " Q"] | None = None
    is_outside: Bool[np.ndarray, " Q"] | None = None


@dataclass(frozen=True)
class NeighbourPredictor:
    """How one property is predicted: settings chosen, and intervals calibrated, on validation objects.

    `factors` stretch the interval of each level; `floor` is the least half-width before stretching, in the label's
    unit. `target_modality` is the modality among which neighbours are sought (None: any), `gallery` how they were
    found. `num_calibration` counts the objects behind the factors; zero means that the intervals are not calibrated.
    `similarities` are those, sorted, of calibration objects to their neighbour of rank `novelty_rank`.
    """

    property_name: str
    k: int = DEFAULT_COUNT
    temperature: float = DEFAULT_TEMPERATURE
    levels: tuple[float, ...] = LEVELS
    factors: tuple[float, ...] = (1.0,) * len(LEVELS)
    floor: float = 0.0
    num_calibration: int = 0
    target_modality: str | None = None
    model_id: str | None = None
    novelty_rank: int = NOVELTY_RANK
    similarities: tuple[float, ...] = ()
    gallery: Gallery = "rows"

    def __post_init__(self) -> None:
        if self.gallery not in get_args(Gallery):
            raise ValueError(f"gallery must be one of {list(get_args(Gallery))}, found {self.gallery!r}")
        if self.k < 1 or not self.temperature > 0:
            raise ValueError(f"k must be at least 1 and temperature positive, found {self.k} and {self.temperature}")
        if len(self.factors) != len(self.levels):
            raise ValueError(f"expected one factor for each of {len(self.levels)} levels, found {len(self.factors)}")
        _check_levels(self.levels)

    def predict(self, similarities: Num[np.ndarray, "Q K"], labels: Num[np.ndarray, "Q K"]) -> NeighbourPrediction:
        """Predict from neighbours; see `predict_from_neighbours`. Says too which queries lie outside."""
        found = predict_from_neighbours(
            similarities,
            labels,
            k=self.k,
            temperature=self.temperature,
            levels=self.levels,
            factors=self.factors,
            floor=self.floor,
        )
        if not self.similarities:
            return found
        # Far is what is little similar: the scores of novelty are the similarities with the sign changed.
        distances = -_similarity_of_rank(similarities, labels, self.novelty_rank)
        novelty = p_values(-np.array(self.similarities[::-1]), distances)
        return replace(found, novelty=novelty, is_outside=are_outside(len(self.similarities), novelty))

    def to_json(self) -> str:
        """This predictor as JSON text; `from_json` reads it back to an equal object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "NeighbourPredictor":
        """Read `to_json`'s text. Raises ValueError on unknown or missing keys."""
        content = json.loads(text)
        known = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or not known.issuperset(content) or "property_name" not in content:
            raise ValueError(f"not a neighbour predictor: expected a JSON object with the keys {sorted(known)}")
        for name in ("levels", "factors", "similarities"):
            if name in content:
                content[name] = tuple(content[name])
        return cls(**content)


def predict_from_neighbours(
    similarities: Num[np.ndarray, "Q K"],
    labels: Num[np.ndarray, "Q K"],
    *,
    k: int | None = None,
    temperature: float = DEFAULT_TEMPERATURE,
    levels: Sequence[float] = LEVELS,
    factors: Sequence[float] | None = None,
    floor: float = 0.0,
) -> NeighbourPrediction:
    """Predict Q values from the labels of K neighbours each, in any order.

    A neighbour with label NaN is ignored; of the others the `k` most similar count (None: all). Without `factors` the
    intervals are the plain weighted quantiles, which are not calibrated. Raises NeighbourPredictionError where a query
    has no labelled neighbour or a labelled neighbour has no finite similarity.
    """
    if similarities.shape != labels.shape:
        raise NeighbourPredictionError(
            f"similarities and labels must have one shape [queries, neighbours], found {list(similarities.shape)} and "
            f"{list(labels.shape)}"
        )
    _check_levels(levels)
    similarity, label = similarities.astype(np.float64), labels.astype(np.float64)
    labelled = ~np.isnan(label)
    wrong = labelled & ~(np.isfinite(similarity) & np.isfinite(label))
    if wrong.any():
        raise NeighbourPredictionError(
            f"query {int(wrong.any(1).argmax())}: a neighbour with a label has similarity or label that is not finite"
        )
    if not labelled.any(1).all():
        lonely = np.flatnonzero(~labelled.any(1))
        raise NeighbourPredictionError(
            f"{len(lonely)} of {len(label)} queries (the first: {lonely[0]}) have no labelled neighbour among "
            f"{label.shape[1]}; search more neighbours, or label more objects"
        )
    used = _nearest(similarity, labelled, k)
    weights = _softmax(np.where(used, similarity, -np.inf) / temperature)
    label = np.where(used, label, 0.0)
    value = (weights * label).sum(1)
    stretch = np.ones(len(levels)) if factors is None else np.asarray(factors, np.float64)
    quantiles = _weighted_quantiles(label, weights, [(1 + side * level) / 2 for side in (-1, 1) for level in levels])
    below, above = np.split(quantiles, 2, axis=1)
    # Measured from the value outwards, so that the interval always holds the value.
    lower = value[:, None] - stretch * np.maximum(value[:, None] - below, floor)
    upper = value[:, None] + stretch * np.maximum(above - value[:, None], floor)
    return NeighbourPrediction(value, lower, upper, weights, tuple(levels))


def choose_neighbours(
    property_name: str,
    similarities: Num[np.ndarray, "Q K"],
    labels: Num[np.ndarray, "Q K"],
    truth: Num[np.ndarray, " Q"],
    *,
    counts: Sequence[int] = CANDIDATE_COUNTS,
    temperatures: Sequence[float] = CANDIDATE_TEMPERATURES,
    levels: Sequence[float] = LEVELS,
    target_modality: str | None = None,
    gallery: Gallery = "rows",
    model_id: str | None = None,
    seed: int = 0,
) -> NeighbourPredictor:
    """Choose k and temperature, and calibrate the intervals, on Q validation objects whose `truth` is known.

    The choice is by mean squared error, and falls on the most neighbours in effect among settings that these objects
    cannot tell apart (`safest`). The same objects calibrate: among so few settings it flatters the factors by less than
    can be measured (a test repeats it on 66 objects), while half the objects would calibrate half as well.
    Queries without truth or without a labelled neighbour are left out; the query itself must not be among its
    neighbours. Raises NeighbourPredictionError if too few objects remain to calibrate the highest level.
    """
    usable = np.isfinite(truth.astype(np.float64)) & (~np.isnan(labels.astype(np.float64))).any(1)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    needed = objects_needed(max(levels))
    if len(rows) < 2 * needed:
        raise NeighbourPredictionError(
            f"{property_name}: {len(rows)} validation objects have a truth and a labelled neighbour; at least "
            f"{2 * needed} are needed to calibrate intervals at level {max(levels)}"
        )
    settings = [
        (k, temperature)
        for k in sorted({min(count, labels.shape[1]) for count in counts})
        for temperature in temperatures
    ]
    known = truth[rows].astype(np.float64)
    tried = [
        predict_from_neighbours(similarities[rows], labels[rows], k=k, temperature=t, levels=levels)
        for k, t in settings
    ]
    breadths = [float((1 / np.square(found.weights).sum(1)).mean()) for found in tried]
    k, temperature = settings[safest(np.stack([np.square(found.value - known) for found in tried]), breadths)]
    floor = FLOOR_SHARE * (float(np.std(known)) or 1.0)
    # In the units of this k and temperature: a stretch found for other settings would mean nothing here.
    plain = predict_from_neighbours(
        similarities[rows], labels[rows], k=k, temperature=temperature, levels=levels, floor=floor
    )
    in_order = np.sort(_stretch_needed(plain, known), axis=0)
    rank = min(NOVELTY_RANK, k)
    of_rank = _similarity_of_rank(similarities[rows], labels[rows], rank)[:MOST_SIMILARITIES]
    return NeighbourPredictor(
        property_name=property_name,
        k=k,
        temperature=temperature,
        levels=tuple(levels),
        factors=tuple(conformal_reach(in_order[:, column], level) for column, level in enumerate(levels)),
        floor=floor,
        num_calibration=len(rows),
        target_modality=target_modality,
        model_id=model_id,
        novelty_rank=rank,
        similarities=tuple(np.sort(of_rank).tolist()),
        gallery=gallery,
    )


def safest(errors: Float[np.ndarray, "C Q"], breadths: Sequence[float | int]) -> int:
    """The candidate of greatest breadth among those that Q objects cannot tell from the best by their squared errors.

    A mean error may exceed the least by one standard error of the difference (the rule of Breiman et al. 1984,
    Classification and Regression Trees, 3.4.3). The less a prediction rests on few neighbours, the less harm does one
    that only looks alike, such as no validation object may have met.
    """
    means = errors.mean(1)
    excess = errors - errors[int(means.argmin())]
    as_good = np.flatnonzero(excess.mean(1) <= excess.std(1) / np.sqrt(errors.shape[1]))
    return int(max(as_good.tolist(), key=lambda candidate: (breadths[candidate], -means[candidate])))


def write_predictors(path: str | Path, predictors: Mapping[str, NeighbourPredictor]) -> None:
    """Write predictors, by property, as one JSON file; it appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    content = {name: asdict(predictor) for name, predictor in predictors.items()}
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_predictors(path: str | Path) -> dict[str, NeighbourPredictor]:
    """Read the file of `write_predictors`. Raises ValueError that names the file and the property."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: NeighbourPredictor.from_json(json.dumps(entry)) for name, entry in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a file of neighbour predictors: {error}") from None


def _stretch_needed(plain: NeighbourPrediction, truth: Float[np.ndarray, " Q"]) -> Float[np.ndarray, "Q S"]:
    """By how much each interval must be stretched to hold the truth."""
    centre, error = plain.value[:, None], truth[:, None] - plain.value[:, None]
    reach = np.where(error < 0, centre - plain.lower, plain.upper - centre)
    return np.abs(error) / reach


def _similarity_of_rank(
    similarities: Num[np.ndarray, "Q K"], labels: Num[np.ndarray, "Q K"], rank: int
) -> Float[np.ndarray, " Q"]:
    """Similarity of the labelled neighbour of this rank, from 1; of the last one where there are fewer."""
    labelled = ~np.isnan(labels.astype(np.float64))
    in_order = -np.sort(np.where(labelled, -similarities.astype(np.float64), np.inf), axis=1)
    places: Int[np.ndarray, " Q"] = np.minimum(labelled.sum(1), rank) - 1
    return in_order[np.arange(len(places)), places]


def _nearest(
    similarity: Float[np.ndarray, "Q K"], labelled: Bool[np.ndarray, "Q K"], k: int | None
) -> Bool[np.ndarray, "Q K"]:
    if k is None or k >= similarity.shape[1]:
        return labelled
    order = np.argsort(np.where(labelled, -similarity, np.inf), axis=1, kind="stable")
    used = np.zeros_like(labelled)
    np.put_along_axis(used, order[:, :k], True, axis=1)
    return used & labelled


def _softmax(logits: Float[np.ndarray, "Q K"]) -> Float[np.ndarray, "Q K"]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _weighted_quantiles(
    values: Float[np.ndarray, "Q K"], weights: Float[np.ndarray, "Q K"], levels: Sequence[float]
) -> Float[np.ndarray, "Q S"]:
    """The least value at which the cumulated weight reaches each level: the inverse of the weighted distribution."""
    # Weightless neighbours go to the end, where no level reaches them.
    order = np.argsort(np.where(weights > 0, values, np.inf), axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    cumulated = np.take_along_axis(weights, order, axis=1).cumsum(1)
    # The sum of the weights may fall short of one by rounding.
    cumulated /= cumulated[:, -1:]
    places = [(cumulated < level).sum(1) for level in levels]
    return np.take_along_axis(ordered, np.stack(places, axis=1), axis=1)


def _check_levels(levels: Sequence[float]) -> None:
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie between 0 and 1, found {list(levels)}")
