"""Measure a tokenizer of scalars or of coefficients on the objects of one modality, batch by batch."""

import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data.modalities import Modality
from ...data.observations import CoefficientsObservation, ScalarObservation
from ...tokenizers.coefficients import CoefficientsTokenizer
from ...tokenizers.quantizers import FiniteScalarQuantizer
from ...tokenizers.token_grid import TokenGrid
from .codebook import CodeCounts
from .flux_bias import median_with_error
from .pixel_scores import PixelSums, ratio_of_sums, sum_pixels

Values = ScalarObservation | CoefficientsObservation


def measure_values(tokenizer: Any, batches: Iterable[Values]) -> dict[str, Any]:
    """Scores of what batches of one modality decode to.

    R2 is over all valid values pooled; of coefficients, which differ in size by orders of magnitude, also the median of
    the R2 of each. `chi2` and `rms_error` (in units of the measurement's own error) are over the values whose error is
    known and positive; NaN where there are none.
    """
    sums = PixelSums()
    each: list[PixelSums] = []
    counts: dict[str, CodeCounts] = {}
    objects: dict[str, list[np.ndarray]] = {"chi2": [], "known": [], "tokens": [], "bits": []}
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    num_objects = num_outside = 0
    for observation in batches:
        start = time.perf_counter()
        tokens = tokenizer.encode(observation)
        middle = time.perf_counter()
        made = tokenizer.decode(tokens)
        stop = time.perf_counter()
        seconds["encode"].append((middle - start) / len(observation))
        seconds["decode"].append((stop - middle) / len(observation))
        num_objects += len(observation)
        values, others, seen, known = (
            t.view(len(observation), -1)
            for t in (
                observation.values,
                made.values,
                observation.mask & made.mask,
                observation.mask & made.mask & (observation.error > 0),
            )
        )
        precision = torch.where(known, observation.error.view(known.shape), torch.inf) ** -2
        sums += sum_pixels(values, others, precision, seen)
        parts = [sum_pixels(*(t[:, k] for t in (values, others, precision, seen))) for k in range(values.shape[1])]
        each = [a + b for a, b in zip(each, parts, strict=True)] if each else parts
        objects["chi2"].append(((others - values).double().square() * precision).sum(1).numpy())
        objects["known"].append(known.sum(1).double().numpy())
        objects["tokens"].append(tokens.mask.sum(1).double().numpy())
        objects["bits"].append(_count(tokenizer, tokens, counts).numpy())
        num_outside += int(_is_outer(tokenizer, tokens).sum())
    if not num_objects:
        raise ValueError("expected at least one batch to measure, found none")
    of = {name: np.concatenate(parts) for name, parts in objects.items()}
    chi2, chi2_error = ratio_of_sums(of["chi2"], of["known"])
    r2_of_each = np.array([part.r2 for part in each if math.isfinite(part.r2)])
    return {
        "num_objects": num_objects,
        "num_values": sums.count,
        "tokens": float(of["tokens"].mean()),
        "bits": float(of["bits"].mean()),
        "r2": sums.r2,
        "median_r2": median_with_error(r2_of_each)[0] if len(r2_of_each) else math.nan,
        "chi2": chi2,
        "chi2_error": chi2_error,
        "rms_error": math.sqrt(chi2),
        "outside": num_outside / max(sums.count, 1.0),
        "codebooks": {name: {"all": count.summary()} for name, count in counts.items()},
        "objects_per_second": {name: 1 / float(np.median(parts[1:] or parts)) for name, parts in seconds.items()},
    }


def _count(tokenizer: Any, tokens: TokenGrid, counts: dict[str, CodeCounts]) -> Float[Tensor, " B"]:
    """Count the codes of each codebook; bits of each object."""
    bits = torch.zeros(len(tokens), dtype=torch.float64)
    for name, first, size in _codebooks(tokenizer, tokens.modality):
        belong = tokens.mask & (tokens.codes >= first) & (tokens.codes < first + size)
        counts.setdefault(name, CodeCounts(size)).add(tokens.codes[belong] - first)
        bits += belong.sum(1) * math.log2(size)
    return bits


def _codebooks(tokenizer: Any, modality: Modality) -> list[tuple[str, int, int]]:
    """Name, first code and number of codes of each codebook, which lie one behind the other in the vocabulary.

    Those of a scalar's value and, if it is kept, its error; of coefficients' amplitude and each token of their shape.
    """
    total = int(tokenizer.vocabulary_size(modality))
    if isinstance(tokenizer, CoefficientsTokenizer):
        shapes = {f"shape {n}": int(q.vocabulary_size) for n, q in enumerate(_quantizers(tokenizer), start=1)}
        sizes = {"amplitude": tokenizer.settings.num_amplitudes} | shapes
    elif modality.kind == "scalar":
        of_values = len(tokenizer.bins(modality)[0])
        sizes = {"value": of_values, "error": total - of_values}
    else:
        sizes = {"code": total}
    starts = itertools.accumulate(sizes.values(), initial=0)
    return [(name, first, size) for (name, size), first in zip(sizes.items(), starts, strict=False) if size]


def _quantizers(tokenizer: CoefficientsTokenizer) -> list[FiniteScalarQuantizer]:
    return [quantizer for quantizer in tokenizer.quantizers if isinstance(quantizer, FiniteScalarQuantizer)]


def _is_outer(tokenizer: Any, tokens: TokenGrid) -> Bool[Tensor, " B"]:
    """Whether a scalar lies beyond the range that was learned, and so has one of the two outer codes."""
    if tokens.modality.kind != "scalar":
        return torch.zeros(len(tokens), dtype=torch.bool)
    last = len(tokenizer.bins(tokens.modality)[0]) - 1
    return tokens.mask[:, 0] & ((tokens.codes[:, 0] == 0) | (tokens.codes[:, 0] == last))
