"""The order of examples: a pure function of (seed, step)."""

import numpy as np
import pytest

from armillary.training.example_order import ExampleOrder


def rows_by_group(order, num_steps, batch_size):
    seen = [[] for _ in order.group_sizes]
    for step in range(num_steps):
        seen[order.group(step)].extend(order.rows(step, batch_size).tolist())
    return seen


@pytest.mark.parametrize("batch_size", [1, 4, 7, 50])
def test_each_group_is_covered_exactly_once_in_each_epoch(batch_size):
    order = ExampleOrder([11, 30, 5], seed=1)
    for size, seen in zip(order.group_sizes, rows_by_group(order, 3000 // batch_size + 200, batch_size), strict=True):
        epochs = [seen[i : i + size] for i in range(0, len(seen) - size + 1, size)]
        assert len(epochs) > 2
        for epoch in epochs:
            assert sorted(epoch) == list(range(size))


def test_the_order_goes_on_across_the_repeat_of_the_pattern():
    order = ExampleOrder([7, 3], seed=0)
    seen = rows_by_group(order, 2500, 2)
    for size, rows in zip(order.group_sizes, seen, strict=True):
        counts = np.bincount(rows, minlength=size)
        assert counts.max() - counts.min() <= 1


def test_steps_are_a_pure_function_of_seed_and_step():
    first, again, other = ExampleOrder([40, 20], 3), ExampleOrder([40, 20], 3), ExampleOrder([40, 20], 4)
    steps = [17, 3, 900, 3]
    assert all(np.array_equal(first.rows(s, 8), again.rows(s, 8)) for s in reversed(steps))
    assert any(not np.array_equal(first.rows(s, 8), other.rows(s, 8)) for s in steps)


def test_epochs_differ():
    order = ExampleOrder([64], 0)
    assert not np.array_equal(order.rows(0, 64), order.rows(1, 64))


def test_groups_take_steps_by_their_size_or_by_weights():
    by_size = ExampleOrder([300, 100], 0)
    assert sum(by_size.group(s) == 0 for s in range(1024)) == 768
    by_weight = ExampleOrder([300, 100], 0, weights=[1.0, 1.0])
    assert sum(by_weight.group(s) == 0 for s in range(1024)) == 512
    assert {by_weight.group(s) for s in (0, 1)} == {0, 1}


def test_a_group_far_smaller_than_the_others_gets_its_turn():
    order = ExampleOrder([100_000, 5], 0)
    turns = [step for step in range(60_000) if order.group(step) == 1]
    assert 2 <= len(turns) <= 4  # 5 of 100,005 of the steps


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_an_empty_group_is_refused(sizes):
    with pytest.raises(ValueError, match="groups of at least one example"):
        ExampleOrder(sizes, 0)
