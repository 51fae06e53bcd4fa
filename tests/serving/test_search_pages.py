"""Pages of a search by cursors."""

import io

import numpy as np
import pytest
from fake_model import WIDTHS, FakeModel, embedding_table, images
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.models.embeddings import EmbeddingTable
from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.limits import Limits

NUM_ROWS = 5000
"""More than are all compared, so that an IVF structure is asked."""
MOST = 200
ADDRESS = "/v1/collections/objects/search"


@pytest.fixture(scope="module", params=["flat", "ivf"])
def http(request, tmp_path_factory):
    """An index in which forty rows, in no order of their ids, are the same."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(NUM_ROWS, WIDTHS["aligned"])).astype(np.float16)
    vectors[rng.choice(NUM_ROWS, 40, replace=False)] = vectors[0]
    names = tuple(f"o{i}" for i in rng.permutation(NUM_ROWS))
    nowhere = np.full(NUM_ROWS, np.nan)
    table = EmbeddingTable(names, ("image/hsc",) * NUM_ROWS, nowhere, nowhere, vectors, "aligned", FakeModel.model_id)
    folder = tmp_path_factory.mktemp("pages") / "index"
    EmbeddingIndex.build(table, index_type=request.param).save(folder)
    index = EmbeddingIndex.load(folder)
    with TestClient(create_app(FakeModel(), index, None, Limits(max_neighbours=MOST))) as client:
        client.vector = vectors[0].astype(float).tolist()
        client.index = index
        yield client


def ask(http, **body):
    answer = http.post(ADDRESS, json={"vector": http.vector, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def follow(http, cursor, **body):
    """The neighbours of all pages from this cursor on, and how long the pages were."""
    found, lengths = [], []
    while cursor is not None:
        page = ask(http, cursor=cursor, **body)
        found += page["neighbours"]
        lengths.append(len(page["neighbours"]))
        cursor = page["next_cursor"]
    return found, lengths


def test_pages_joined_are_one_big_search(http):
    whole = ask(http, k=MOST)
    assert whole["next_cursor"] is None
    assert follow(http, "", k=30) == (whole["neighbours"], [30] * 6 + [20])


def test_a_search_without_a_cursor_is_the_first_page(http):
    first = ask(http, k=25, exact=True)
    rest, _ = follow(http, first["next_cursor"], k=100, exact=True)
    assert first["neighbours"] + rest == ask(http, k=MOST, exact=True)["neighbours"]


def test_the_last_page_has_no_cursor_and_is_not_empty(http):
    names = [n["object_id"] for n in ask(http, k=MOST)["neighbours"]]
    # All but fifteen rows are left out.
    others = sorted(set(http.index.objects_with("image/hsc")) - set(names[:15]))
    found, lengths = follow(http, "", k=10, exclude=others)
    assert lengths == [10, 5]
    assert len(ask(http, k=15, exclude=others)["neighbours"]) == 15
    assert ask(http, k=15, exclude=others)["next_cursor"] is None
    assert [n["object_id"] for n in found] == names[:15]


def test_k_and_include_may_change_between_pages_and_the_address_form_goes_on(http):
    by_address = {"object_id": "o7", "k": 5}
    first = http.get(ADDRESS, params=by_address).json()
    cursor = first["next_cursor"]
    by_body = http.post(ADDRESS, json={"object_id": "o7", "k": 7, "include": ["labels"], "cursor": cursor}).json()
    longer = http.get(ADDRESS, params=by_address | {"k": 7, "cursor": cursor}).json()
    assert [n["object_id"] for n in by_body["neighbours"]] == [n["object_id"] for n in longer["neighbours"]]
    seen = {n["object_id"] for n in first["neighbours"]}
    assert len(by_body["neighbours"]) == 7
    assert not seen & {n["object_id"] for n in by_body["neighbours"]}


@pytest.mark.parametrize("cursor", ["x", "W10", "é", "MQ", "WyJhIiwgImIiLCAxZTk5OTksICJjIiwgImQiXQ", "[" * 100])
def test_what_is_no_cursor_is_refused(http, cursor):
    wrong = http.post(ADDRESS, json={"vector": http.vector, "cursor": cursor})
    assert wrong.status_code in (409, 422)
    assert [e["pointer"] for e in wrong.json()["errors"]] == ["/cursor"]


def test_a_cursor_belongs_to_its_request(http):
    cursor = ask(http, k=5)["next_cursor"]
    for change in ({"exact": True}, {"survey": "hsc"}, {"vector": [1.0] * 8}, {"exclude": ["o1"]}):
        body = {"vector": http.vector, "cursor": cursor, **change}
        assert_problem(http.post(ADDRESS, json=body), 422, "invalid-request", "/cursor", says="another request")


def test_a_cursor_ends_with_the_content_of_the_index(model, tmp_path):
    EmbeddingIndex.build(embedding_table(model, [images(20)])).save(tmp_path / "index")
    index = EmbeddingIndex.load(tmp_path / "index")
    with TestClient(create_app(model, index)) as http:
        body = {"object_id": "object-3", "k": 5}
        body["cursor"] = http.post(ADDRESS, json=body).json()["next_cursor"]
        assert http.post(ADDRESS, json=body).status_code == 200
        index.remove(["object-19"])
        assert_problem(http.post(ADDRESS, json=body), 409, "conflict", "/cursor", says="changed since")


def test_measurements_have_pages_as_json_and_as_a_file(model, index):
    image = images(120)
    file = io.BytesIO()
    np.save(file, image.flux[33].numpy())
    whole = {"observations": [typed_image(image, 33)], "k": 9}
    query = {"modality": "image/hsc", "bands": "g,r", "k": "3"}
    as_npy = {"Content-Type": "application/x-npy"}
    with TestClient(create_app(model, index)) as http:
        wanted = [n["object_id"] for n in http.post(ADDRESS, json=whole).json()["neighbours"]]
        of_json, of_file = {"k": 3, "cursor": None}, {}
        found_json, found_file = [], []
        for _ in range(3):
            page = http.post(ADDRESS, json=whole | of_json).json()
            found_json += [n["object_id"] for n in page["neighbours"]]
            of_json["cursor"] = page["next_cursor"]
            page = http.post(ADDRESS, params=query | of_file, content=file.getvalue(), headers=as_npy).json()
            found_file += [n["object_id"] for n in page["neighbours"]]
            of_file["cursor"] = page["next_cursor"]
        assert found_json == found_file == wanted
