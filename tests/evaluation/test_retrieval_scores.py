"""Retrieval scores against double loops and closed forms."""

import numpy as np
import pytest

from armillary.evaluation.retrieval import expected_light
from armillary.evaluation.retrieval_scores import (
    TOLERANCE,
    GradedRelevance,
    first_of_gallery,
    ranks_of_matches,
    score_ranks,
)


def views(count=70, noise=0.8, width=6):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(count, width))
    return (
        (shared + noise * rng.normal(size=shared.shape)).astype(np.float32),
        (shared + noise * rng.normal(size=shared.shape)).astype(np.float32),
    )


def test_ranks_are_those_of_sorting_every_query():
    queries, gallery = views()

    found = ranks_of_matches(queries, gallery, block=16)

    for row, query in enumerate(queries):
        order = np.argsort(-(gallery @ query), kind="stable")
        assert found[row] == 1 + np.flatnonzero(order == row)[0]


def test_equal_vectors_find_nothing():
    same = np.ones((50, 4), np.float32)

    assert (ranks_of_matches(same, same) == 50).all()


def test_scores_of_ranks_follow_their_definitions():
    rank = np.array([1, 2, 11, 150])

    scores = score_ranks(rank, 1000, 50)

    assert scores["recall_at_1"] == 0.25
    assert scores["recall_at_10"] == 0.5
    assert scores["recall_at_100"] == 0.75
    assert scores["over_chance_at_10"] == pytest.approx(50)
    assert scores["median_rank"] == 6.5
    assert scores["ndcg_identity"] == pytest.approx(np.mean([1, 1 / np.log2(3), 1 / np.log2(12), 1 / np.log2(151)]))


def test_a_random_search_scores_as_chance_says():
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(2, 800, 8)).astype(np.float32)

    scores = score_ranks(ranks_of_matches(queries, gallery), 800, 200)

    low, high = scores["recall_at_100_interval"]
    assert low <= scores["chance_at_100"] <= high
    assert scores["ndcg_identity"] == pytest.approx(scores["ndcg_identity_chance"], abs=0.01)


def test_graded_ndcg_is_that_of_a_double_loop():
    queries, gallery = views(count=40)
    labels = np.random.default_rng(2).normal(size=(40, 2))
    labels[3, 1] = np.nan
    relevance = GradedRelevance(labels)
    found = first_of_gallery(queries, gallery, 10)

    scores = relevance.ndcg(found)

    known = [row for row in range(40) if row != 3]
    scaled = labels / labels[known].std(0)
    gain = np.zeros((40, 40))
    for i in known:
        for j in known:
            gain[i, j] = np.exp(-np.mean((scaled[i] - scaled[j]) ** 2) / 2 / TOLERANCE**2)
    discount = [1 / np.log2(1 + place) for place in range(1, 11)]
    expected = [
        sum(gain[i, j] * d for j, d in zip(found[i], discount, strict=True))
        / sum(g * d for g, d in zip(sorted(gain[i], reverse=True), discount, strict=False))
        for i in known
    ]
    assert scores == pytest.approx(expected)


def test_graded_ndcg_of_the_best_order_is_one_and_of_random_orders_is_chance():
    labels = np.random.default_rng(3).normal(size=(300, 1))
    relevance = GradedRelevance(labels)
    best = np.argsort(np.abs(labels - labels.T), axis=1)[:, :10]
    rng = np.random.default_rng(4)
    random = [relevance.ndcg(rng.integers(300, size=(300, 10))).mean() for _ in range(40)]

    assert relevance.ndcg(best) == pytest.approx(1)
    assert np.mean(random) == pytest.approx(relevance.chance(), rel=0.05)


def test_expected_light_orders_the_gallery_by_distance_in_what_the_map_left_over():
    rng = np.random.default_rng(5)
    query = {part: rng.normal(size=(60, 3)) for part in ("train", "test")}
    weights = rng.normal(size=(3, 2))
    target = {part: values @ weights + [0.01, 0.5] * rng.normal(size=(60, 2)) for part, values in query.items()}

    ranks = ranks_of_matches(*expected_light(query, target))

    assert np.median(ranks) <= 3, "the component that follows from the query tells the objects apart"
