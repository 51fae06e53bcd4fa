"""Searches by examples: like these, unlike those."""

import base64

import numpy as np
import pytest
from fake_model import images
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.limits import Limits

ADDRESS = "/v1/collections/objects/search"


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index, None, Limits(max_items=6))) as client:
        yield client


def neighbours(http, **body):
    answer = http.post(ADDRESS, json=body)
    assert answer.status_code == 200, answer.text
    return [(n["object_id"], n["modality"], round(n["similarity"], 5)) for n in answer.json()["neighbours"]]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_query_is_the_mean_of_the_positive_less_that_of_the_negative(http, index, weight):
    positive = np.stack([index.vector(f"object-{i}", "image/hsc") for i in (3, 7)])
    negative = np.stack([index.vector(f"object-{i}") for i in (50, 60, 70)])
    expected = index.search((positive.mean(0) - weight * negative.mean(0))[None], 12)
    body = {
        "positive": [{"object_id": f"object-{i}", "modality": "image/hsc"} for i in (3, 7)],
        "negative": ["object-50", "object-60", "object-70"],
        "negative_weight": weight,
    }
    found = neighbours(http, **body, k=12, exclude_self=False)
    wanted = zip(expected.object_id[0], expected.modality[0], expected.similarity[0], strict=True)
    assert [one[:2] for one in found] == [(name, modality) for name, modality, _ in wanted]
    np.testing.assert_allclose([one[2] for one in found], expected.similarity[0], atol=2e-5)


def test_examples_are_no_answers_unless_asked(http):
    body = {"positive": ["object-3", "object-7"], "negative": ["object-50"], "negative_weight": 0.1, "k": 30}
    own = {"object-3", "object-7", "object-50"}
    assert own - {"object-50"} <= {name for name, _, _ in neighbours(http, **body, exclude_self=False)}
    assert not own & {name for name, _, _ in neighbours(http, **body)}


def test_an_example_may_be_given_in_every_way_that_a_query_may(http, index):
    vector = index.vector("object-33", "image/hsc")
    image = typed_image(images(120), 33)
    wanted = neighbours(http, object_id="object-33", modality="image/hsc", k=5, exclude_self=False)
    for example in (
        {"object_id": "object-33", "modality": "image/hsc"},
        {"vector": (5 * vector).astype(float).tolist()},
        {"vector": base64.b64encode(vector.tobytes()).decode()},
        {"observations": [image]},
    ):
        found = neighbours(http, positive=[example], k=5, exclude_self=False)
        assert [one[:2] for one in found] == [one[:2] for one in wanted]
    named = neighbours(http, positive=[{"observations": [image | {"object_id": "object-33"}]}], k=5)
    assert "object-33" not in {name for name, _, _ in named}


def test_the_address_form_takes_objects_as_examples(http):
    query = {"positive": ["object-3", "object-7"], "negative": "object-90", "k": 4}
    by_address = http.get(ADDRESS, params=query)
    by_body = http.post(ADDRESS, json=query | {"negative": ["object-90"]})
    assert by_address.json() == by_body.json()
    assert len(by_body.json()["neighbours"]) == 4


WRONG = [
    ({"positive": []}, 422, "/positive", "at least one"),
    ({"negative": ["object-1"]}, 422, "/positive", "at least one"),
    ({"positive": ["object-1"], "object_id": "object-2"}, 422, "/object_id", "in the place"),
    ({"positive": ["object-1"], "modality": "image/hsc"}, 422, "/modality", "in the place"),
    ({"positive": ["object-1", "object-x"]}, 404, "/positive/1", "nearest known"),
    ({"positive": ["object-1"], "negative": [{"object_id": "object-x"}]}, 404, "/negative/0/object_id", "nearest"),
    ({"positive": [{"object_id": "object-90", "modality": "spectrum/desi"}]}, 404, "/positive/0/object_id", "it has"),
    ({"positive": ["object-1", {"vector": [1.0]}]}, 422, "/positive/1/vector", "expected 8 numbers, found 1"),
    ({"positive": [{"vector": [0.0] * 8}]}, 422, "/positive/0/vector", "no direction"),
    ({"positive": [{"vector": [1.0] * 8, "object_id": "object-1"}]}, 422, "/positive/0", "exactly one"),
    ({"positive": [{}]}, 422, "/positive/0", "exactly one"),
    ({"positive": [3]}, 422, "/positive/0", "expected a JSON object"),
    ({"positive": [{"id": "object-1"}]}, 422, "/positive/0/id", "Extra"),
    ({"positive": [{"observations": []}]}, 422, "/positive/0/observations", "at least one"),
    (
        {"positive": ["object-1", {"observations": [typed_image(unit="Jy")]}]},
        422,
        "/positive/1/observations/0/unit",
        "is in",
    ),
    (
        {"positive": [{"observations": [{"modality": "scalar/redshift", "data": 0.1}]}]},
        422,
        "/positive/0/observations",
        "images and spectra",
    ),
    ({"positive": ["object-1"], "negative": ["object-1"]}, 422, "/positive", "cancel"),
    ({"positive": ["object-1"], "negative": ["object-2"], "negative_weight": 2}, 422, "/negative_weight", "less than"),
    ({"positive": ["object-1"] * 4, "negative": ["object-2"] * 3}, 413, "/positive", "at most 6 examples"),
]


@pytest.mark.parametrize("body, status, pointer, says", WRONG)
def test_what_is_wrong_with_an_example_is_pointed_to(http, body, status, pointer, says):
    answer = http.post(ADDRESS, json=body)
    kind = answer.json()["type"].removeprefix("/problems/")
    assert_problem(answer, status, kind, pointer, says)
