"""Sketches of a stream, against all of it sorted."""

import numpy as np
import pytest
from datasketches import kll_floats_sketch

from armillary.data.observations import ObservationError
from armillary.tokenizers.quantile_sketch import RANK_ERROR, SKETCH_SIZE, QuantileSketch


def sketch_of(*parts):
    sketch = QuantileSketch()
    for part in parts:
        sketch.update(part)
    return sketch


def rank_errors(sketch, everything):
    """Of each value that is kept: its rank by the sketch, and by numpy, as shares."""
    values, weights = sketch.weighted_values()
    found = np.cumsum(weights) / weights.sum()
    return np.abs(found - np.searchsorted(np.sort(everything), values, side="right") / len(everything))


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    return rng.permutation(np.concatenate([rng.standard_cauchy(300_000), np.full(100_000, 0.25)])).astype(np.float32)


def test_rank_error_is_the_librarys_own():
    assert pytest.approx(kll_floats_sketch(SKETCH_SIZE).normalized_rank_error(True), rel=1e-6) == RANK_ERROR


def test_few_values_are_kept_as_they_are():
    values = np.random.default_rng(1).integers(-50, 50, SKETCH_SIZE)
    sketch = sketch_of(*np.array_split(values, 7))
    assert sketch.is_exact
    kept, weights = sketch.weighted_values()
    expected, counts = np.unique(values, return_counts=True)
    assert np.array_equal(kept, expected)
    assert np.array_equal(weights, counts)


def test_ranks_of_many_values_keep_the_guarantee(stream):
    sketch = sketch_of(*np.array_split(stream, 13))
    assert not sketch.is_exact
    assert len(sketch) == len(stream)
    errors = rank_errors(sketch, stream)
    assert np.quantile(errors, 0.99) < RANK_ERROR
    assert errors.max() < 3 * RANK_ERROR


def test_smallest_and_largest_are_exact(stream):
    values, _ = sketch_of(stream).weighted_values()
    assert (values[0], values[-1]) == (stream.min(), stream.max())
    assert (np.diff(values) > 0).all()


def test_sketches_of_parts_merge_into_one_with_the_same_guarantee(stream):
    parts = [sketch_of(part) for part in np.array_split(stream, 5)]
    before = len(parts[1])
    for other in parts[1:]:
        parts[0].merge(other)
    assert len(parts[0]) == len(stream)
    assert len(parts[1]) == before
    errors = rank_errors(parts[0], stream)
    assert np.quantile(errors, 0.99) < RANK_ERROR
    assert errors.max() < 3 * RANK_ERROR


def test_memory_is_bounded(stream):
    sketch = sketch_of(*[stream] * 8)
    assert len(sketch) == 8 * len(stream)
    assert len(sketch.to_bytes()) < 3 * 4 * SKETCH_SIZE + 10_000


def test_a_sketch_travels_as_bytes(stream):
    sketch = sketch_of(stream)
    loaded = QuantileSketch.from_bytes(sketch.to_bytes())
    for first, second in zip(sketch.weighted_values(), loaded.weighted_values(), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("damage", [lambda b: b[:-1000], lambda b: b[:3], lambda b: b"", lambda b: b"\0" * len(b)])
def test_bytes_that_are_no_sketch_are_an_error(stream, damage):
    with pytest.raises(ValueError, match="expected a quantile sketch, found"):
        QuantileSketch.from_bytes(damage(sketch_of(stream).to_bytes()))


def test_a_number_that_is_not_finite_is_refused_and_adds_nothing():
    sketch = sketch_of(np.arange(3.0))
    with pytest.raises(ObservationError, match="found nan at 1"):
        sketch.update(np.array([1.0, np.nan, 2.0]))
    assert len(sketch) == 3


def test_an_empty_sketch_has_no_values():
    values, weights = sketch_of(np.empty(0)).weighted_values()
    assert len(values) == len(weights) == 0
