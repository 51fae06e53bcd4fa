"""Levels for finite scalar quantisation where the latent dimensions are known: how many each gets, and where they lie.

A dimension's distortion falls with the square of its number of levels. Levels are given one by one where they take most
distortion away for the bits they cost, the greedy solution of bit allocation (Gersho & Gray 1992, Vector Quantization
and Signal Compression, section 8.3); their places are those of Lloyd's (1982) scalar quantiser.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

NUM_ROUNDS = 30
"""Of Lloyd's iteration."""


def allocate_levels(distortions: Sequence[float], num_tokens: int, num_codes: int) -> list[dict[int, int]]:
    """The dimensions that make up each token, with their levels: at least two, their product at most `num_codes`.

    `distortions` are those of each dimension if it is left out. A dimension stands in one token, or in none. Tokens
    that there is nothing left for are dropped.
    """
    tokens: list[dict[int, int]] = [{} for _ in range(num_tokens)]
    levels = [1] * len(distortions)
    place: list[int | None] = [None] * len(distortions)
    gains = [_gain(distortion, 1) for distortion in distortions]
    while max(gains, default=0.0) > 0:
        dimension = int(np.argmax(gains))
        fullness = [math.prod(token.values()) for token in tokens]
        own = place[dimension]
        token = int(np.argmin(fullness)) if own is None else own
        count = levels[dimension] + 1
        if fullness[token] // levels[dimension] * count > num_codes:
            gains[dimension] = 0.0  # its token is full
            continue
        place[dimension], levels[dimension] = token, count
        tokens[token][dimension] = count
        gains[dimension] = _gain(distortions[dimension], count)
    return [token for token in tokens if token]


def level_positions(
    values: Float[np.ndarray, " m"], weights: Float64[np.ndarray, " m"], count: int
) -> Float64[np.ndarray, " c"]:
    """Places of `count` levels, ascending, for values rounded to the nearest, with the least mean square error.

    `values` ascend, and each stands for as many as `weights` says. Where there are fewer values than levels, places
    come more than once.
    """
    values = values.astype(np.float64)
    if len(values) <= count:
        return np.append(values, np.full(count - len(values), values[-1]))
    # The best density of levels goes as the cube root of that of the values (Panter & Dite 1951): a good start.
    mass, edges = np.histogram(values, bins=8 * count, weights=weights)
    cumulative = np.concatenate([[0.0], np.cumsum(np.cbrt(mass))])
    places = np.interp((np.arange(count) + 0.5) / count * cumulative[-1], cumulative, edges)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    for _ in range(NUM_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(values, (places[1:] + places[:-1]) / 2), [len(values)]])
        inside = np.diff(total[ends])
        places = np.where(inside > 0, np.diff(moment[ends]) / np.where(inside > 0, inside, 1.0), places)
    return np.sort(places)


def _gain(distortion: float, count: int) -> float:
    """Distortion that one level more takes away, for each unit of information that it costs."""
    return distortion * (count**-2 - (count + 1) ** -2) / math.log((count + 1) / count)
