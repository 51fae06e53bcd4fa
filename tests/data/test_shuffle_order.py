"""The order of samples: every epoch whole, the same for ever, and random enough."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from armillary.data.shuffle_order import Mixture, ShuffleOrder, permutation


def splitmix64(x):
    """The finaliser of SplitMix64 in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def slow_permutation(size, *key):
    """`permutation`, written number by number."""
    golden, state = 0x9E3779B97F4A7C15, 0
    for part in key:
        state = splitmix64((state + part + golden) % 2**64)
    return sorted(range(size), key=lambda i: splitmix64((state + (i + 1) * golden) % 2**64) % 2**48)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000])
def test_a_permutation_is_what_its_definition_says_in_plain_integers(size):
    assert permutation(size, 5, 2**63 + 1).tolist() == slow_permutation(size, 5, 2**63 + 1)


def test_permutations_never_change():
    """Runs that were saved resume by these numbers: if this fails, they would lose and double samples."""
    assert permutation(8, 0).tolist() == slow_permutation(8, 0) == [2, 5, 1, 4, 3, 6, 7, 0]
    assert ShuffleOrder(np.array([3, 3, 2]), 2, 7).take(0, 8).tolist() == [7, 2, 6, 0, 1, 5, 4, 3]


@given(st.integers(0, 3000), st.lists(st.integers(-(2**63), 2**64), max_size=3))
def test_a_permutation_holds_each_number_once(size, key):
    assert np.array_equal(np.sort(permutation(size, *key)), np.arange(size))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    st.integers(1, 14),
    st.integers(0, 3),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
)
def test_every_epoch_holds_each_sample_once_however_the_stream_is_cut(sizes, window, seed, cuts):
    order = ShuffleOrder(np.array(sizes), window, seed)
    edges = np.cumsum([0, *cuts]).tolist()
    stream = np.concatenate([order.take(start, stop) for start, stop in itertools.pairwise(edges)])
    whole = ShuffleOrder(np.array(sizes), window, seed).take(0, 3 * sum(sizes))
    assert np.array_equal(stream[: len(whole)], whole[: len(stream)])
    for epoch in whole.reshape(3, -1):
        assert np.array_equal(np.sort(epoch), np.arange(sum(sizes)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 300), st.integers(1, 5))
def test_samples_are_drawn_in_the_order_of_the_disk_with_the_stretch_they_belong_to(lengths, start, window):
    order = ShuffleOrder(np.full(12, 8), window, 5)
    edges = start + np.cumsum([0, *lengths])
    samples, stretches = order.draw(edges)
    for stretch, (first, last) in enumerate(itertools.pairwise(edges.tolist())):
        assert sorted(samples[stretches == stretch]) == sorted(order.take(first, last).tolist())
    borders = [e * 96 + w for e in range(8) for w in range(0, 96, window * 8)]
    cuts = [b - start for b in borders if edges[0] < b < edges[-1]]
    for of_window in np.split(samples, cuts):
        assert (np.diff(of_window) > 0).all()


def test_the_stream_can_be_entered_anywhere():
    order = ShuffleOrder(np.full(50, 20), 4, 3)
    late = 10**12 + 17
    again = ShuffleOrder(np.full(50, 20), 4, 3)
    first = order.take(late, late + 5000)
    assert np.array_equal(np.concatenate([again.take(late + i, late + i + 1) for i in range(5000)]), first)
    assert order.take(5, 5).shape == (0,)


def test_a_window_holds_whole_blocks_and_no_block_comes_twice():
    order = ShuffleOrder(np.full(40, 16), 5, 1)
    seen = []
    for start in range(0, 640, 80):
        blocks, counts = np.unique(order.take(start, start + 80) // 16, return_counts=True)
        assert counts.tolist() == [16] * 5
        seen += blocks.tolist()
    assert sorted(seen) == list(range(40))


def test_it_is_known_where_windows_end():
    order = ShuffleOrder(np.array([4, 4, 4, 4, 4]), 2, 0)
    stops = [order.window_stop(position) for position in range(50)]
    sizes = [8, 8, 4]
    assert (
        stops
        == [
            stop
            for epoch in (0, 20, 40)
            for stop, n in zip((8, 16, 20), sizes, strict=True)
            for stop in [stop + epoch] * n
        ][:50]
    )


def test_seeds_and_epochs_give_other_orders():
    order = ShuffleOrder(np.full(10, 10), 3, 0)
    epochs = [order.take(100 * e, 100 * (e + 1)).tolist() for e in range(4)]
    other = ShuffleOrder(np.full(10, 10), 3, 1).take(0, 100).tolist()
    assert len({tuple(epoch) for epoch in [*epochs, other]}) == 5


@pytest.mark.parametrize("size", [3, 5, 8])
def test_all_permutations_are_equally_likely_at_each_place(size):
    found = np.array([permutation(size, 11, epoch) for epoch in range(4000)])
    for place in range(size):
        assert stats.chisquare(np.bincount(found[:, place], minlength=size)).pvalue > 1e-4
    if size == 3:
        _, counts = np.unique(found @ [9, 3, 1], return_counts=True)
        assert len(counts) == 6
        assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_are_torn_apart_and_places_are_even():
    order = ShuffleOrder(np.full(256, 64), 32, 0)
    epochs = [order.take(e * order.num_samples, (e + 1) * order.num_samples) for e in range(4)]
    for stream in epochs:
        steps = np.abs(np.diff(stream))
        # Of a window's 2048 samples two are neighbours of a given one, in a block of 64.
        assert np.mean(steps == 1) < 4 * 2 / 2048
        assert abs(np.corrcoef(stream[:-1], stream[1:])[0, 1]) < 0.1
        # Blocks of all parts come early and late alike: 8 windows by 16 parts, 2 blocks in each on average.
        blocks = np.histogram2d(np.arange(len(stream)), stream, bins=(8, 16))[0] / 64
        assert stats.chi2(7 * 15).sf(((blocks - 2) ** 2 / 2).sum()) > 1e-4
        # Within a window, so do samples: 8 parts of the window by 8 parts of each block.
        place, sample = np.arange(len(stream)) % 2048, stream % 64
        table = np.histogram2d(place, sample, bins=(8, 8))[0]
        assert stats.chi2(49).sf(((table - 256) ** 2 / 256).sum()) > 1e-4
    assert abs(np.corrcoef(np.argsort(epochs[0]), np.argsort(epochs[1]))[0, 1]) < 0.2


@pytest.mark.parametrize("sizes, window", [([], 1), ([0, 0], 2), ([3, -1], 2), ([3], 0)])
def test_an_order_of_nothing_is_refused(sizes, window):
    with pytest.raises(ValueError, match="expected blocks with samples"):
        ShuffleOrder(np.array(sizes, dtype=np.int64), window)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.integers(0, 10**9))
def test_a_mixture_counts_what_it_gives_out(weights, start):
    mixture = Mixture(weights)
    found = mixture.counts(np.arange(start, start + 31))
    assert found[0].sum() == start
    for place, before, after in zip(range(start, start + 30), found[:-1], found[1:], strict=True):
        assert (after - before).tolist() == [source == mixture.source(place) for source in range(len(weights))]


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=4), st.integers(0, 20_000), st.integers(1, 20_000))
def test_every_stretch_of_a_mixture_has_its_shares(weights, start, length):
    mixture = Mixture(weights)
    (found,) = np.diff(mixture.counts(np.array([start, start + length])), axis=0)
    shares = np.array(weights) / sum(weights)
    rounds = length / 4096 + 2  # a share is kept to one in each repeat of the pattern
    assert (np.abs(found - shares * length) <= len(weights) * rounds).all()


def test_a_source_far_smaller_than_the_others_has_its_turn():
    counts = Mixture([100_000.0, 5.0]).counts(np.array([60_000]))
    assert 2 <= counts[0, 1] <= 4


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -2.0], [float("nan")], [float("inf"), 1.0], [1.0, 1e-7]])
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(ValueError, match="expected positive weights, the greatest at most"):
        Mixture(weights)
