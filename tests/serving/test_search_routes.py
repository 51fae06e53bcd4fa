import base64
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from fake_model import FakeModel, embedding_table, images, spectra
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.models.neighbour_prediction import NeighbourPredictor, choose_neighbours
from armillary.serving.app import create_app
from armillary.serving.index.cone import Cone
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.limits import Limits


@pytest.fixture(scope="module")
def predictor(index):
    """Calibrated on the objects of the index by leaving each out."""
    ids = [f"object-{i}" for i in range(100)]
    vectors = np.stack([index.vector(i, "image/hsc") for i in ids])
    found = index.search(vectors, 32, target_modality="image/hsc", exclude_each=ids)
    truth = np.array([index.labels_of(i)["scalar/redshift"] for i in ids])
    return choose_neighbours(
        "scalar/redshift",
        found.similarity,
        index.label_of_rows("scalar/redshift", found.row),
        truth,
        target_modality="image/hsc",
        model_id=FakeModel.model_id,
    )


@pytest.fixture
def http(model, index, predictor):
    with TestClient(create_app(model, index, {"scalar/redshift": predictor}, Limits(max_neighbours=60))) as client:
        yield client


def search(http, **body):
    return http.post("/v1/collections/objects/search", json=body)


def ids(response):
    assert response.status_code == 200, response.text
    return [neighbour["object_id"] for neighbour in response.json()["neighbours"]]


@pytest.mark.parametrize("form", ["numbers", "base64"])
def test_search_by_vector_equals_the_index(http, index, form):
    vector = np.arange(1, 9, dtype=np.float32)
    expected = index.search(vector[None], 5, target_modality="spectrum/desi", cone=Cone(12.0, 5.0, 1.5))
    given = vector.tolist() if form == "numbers" else base64.b64encode(vector.tobytes()).decode()
    found = search(
        http, vector=given, k=5, target_modality="spectrum/desi", cone={"ra": 12.0, "dec": 5.0, "radius_deg": 1.5}
    )
    assert ids(found) == expected.object_id[0].tolist()
    neighbours = found.json()["neighbours"]
    np.testing.assert_allclose([n["similarity"] for n in neighbours], expected.similarity[0])
    np.testing.assert_allclose([n["ra"] for n in neighbours], expected.ra[0])
    assert {n["modality"] for n in neighbours} == {"spectrum/desi"}


def test_search_by_object_leaves_it_out_unless_asked(http, index):
    expected = index.search(index.vector("object-5", "image/hsc")[None], 4, target_modality="image/hsc")
    body = {"object_id": "object-5", "modality": "image/hsc", "target_modality": "image/hsc"}
    assert ids(search(http, **body, k=4, exclude_self=False)) == expected.object_id[0].tolist()
    assert ids(search(http, **body, k=3)) == expected.object_id[0, 1:].tolist()
    assert expected.object_id[0, 0] == "object-5"
    dropped = expected.object_id[0, 1]
    assert dropped not in ids(search(http, **body, k=3, exclude=[dropped]))


def test_the_address_form_gives_the_same_answer(http):
    body = {"object_id": "object-5", "modality": "image/hsc", "target_modality": "image/hsc", "k": 3}
    asked = {**body, "cone": {"ra": 10.5, "dec": 5.0, "radius_deg": 0.5}, "include": ["labels"]}
    address = {**body, "ra": 10.5, "dec": 5.0, "radius_deg": 0.5, "include_labels": True}
    by_address = http.get("/v1/collections/objects/search", params=address)
    assert by_address.json() == search(http, **asked).json()
    assert by_address.json()["neighbours"][0]["labels"]["scalar/redshift"] > 0
    only_ra = http.get("/v1/collections/objects/search", params={**body, "ra": 1.0})
    assert_problem(only_ra, 422, "invalid-request", says="together")


def test_search_by_measurements_finds_the_object_itself(http):
    observation = images(120)
    found = search(http, observations=[typed_image(observation, 33)], target_modality="image/hsc", k=1)
    assert ids(found) == ["object-33"]
    assert found.json()["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    named = search(http, observations=[typed_image(observation, 33, object_id="object-33")], k=5)
    assert "object-33" not in ids(named)


def test_provenance_names_model_index_and_metric(http, model, index):
    assert search(http, object_id="object-5").json()["provenance"] == {
        "model_id": model.model_id,
        "index_id": index.manifest.index_id,
        "space": "aligned",
        "metric": "inner product of unit vectors",
    }


WRONG_SEARCHES = [
    ({}, 422, "invalid-request", "exactly one"),
    ({"vector": [1.0] * 8, "object_id": "object-1"}, 422, "invalid-request", "exactly one"),
    ({"vector": [1.0] * 7}, 422, "invalid-request", "expected 8 numbers, found 7"),
    ({"vector": [0.0] * 8}, 422, "invalid-request", "no direction"),
    ({"vector": "AAA"}, 422, "invalid-request", "base64"),
    ({"vector": [1.0] * 8, "k": 61}, 422, "invalid-request", "at most 60"),
    ({"vector": [1.0] * 8, "k": 0}, 422, "invalid-request", "/k"),
    ({"vector": [1.0] * 8, "modality": "image/hsc"}, 422, "invalid-request", "object_id alone"),
    ({"vector": [1.0] * 8, "cone": {"ra": 400, "dec": 0, "radius_deg": 1}}, 422, "invalid-request", "/cone/ra"),
    ({"vector": [1.0] * 8, "target_modality": "image/hcs"}, 404, "not-found", "'image/hsc'"),
    ({"object_id": "object-1x"}, 404, "not-found", "nearest known is 'object-1"),
    ({"object_id": "object-90", "modality": "spectrum/desi"}, 404, "not-found", "it has ['image/hsc']"),
    ({"observations": [typed_image(bands=["g", "v"])]}, 422, "invalid-observation", "unknown band"),
]


@pytest.mark.parametrize("body, status, kind, says", WRONG_SEARCHES)
def test_wrong_searches_say_what_is_wrong(http, body, status, kind, says):
    assert_problem(search(http, **body), status, kind, says=says)


def test_a_broken_measurement_is_pointed_to(http):
    wrong = search(http, observations=[typed_image(), typed_image(modality="image/legacysurvey", unit="Jy")])
    assert_problem(wrong, 422, "invalid-observation", "/observations/1/unit")


def test_unknown_collections_are_404(http, model):
    wrong = http.post("/v1/collections/galaxies/search", json={"object_id": "object-1"})
    assert_problem(wrong, 404, "not-found", says="'objects'")
    with TestClient(create_app(model)) as without:
        assert_problem(search(without, object_id="object-1"), 404, "not-found", says="no index")


def predict(http, **body):
    return http.post("/v1/predict", json={"property": "scalar/redshift", **body})


def test_prediction_comes_from_labelled_neighbours_and_is_calibrated(http, predictor):
    truth = np.linspace(0, 1, 120)[41]
    found = predict(http, object_id="object-41", modality="image/hsc")
    assert found.status_code == 200, found.text
    answer = found.json()
    assert answer["value"] == pytest.approx(truth, abs=0.05)
    assert answer["calibrated"] is True
    assert answer["unit"] == "dimensionless"
    assert [interval["level"] for interval in answer["intervals"]] == [0.68, 0.9, 0.95]
    for interval in answer["intervals"]:
        assert interval["lower"] <= answer["value"] <= interval["upper"]
    neighbours = answer["neighbours"]
    assert len(neighbours) == answer["k"] == predictor.k
    assert sum(n["weight"] for n in neighbours) == pytest.approx(1)
    assert sum(n["weight"] * n["label"] for n in neighbours) == pytest.approx(answer["value"])
    assert "object-41" not in [n["object_id"] for n in neighbours]
    # Objects 100 to 119 have no label, and no say.
    assert all(int(n["object_id"].removeprefix("object-")) < 100 for n in neighbours)


def test_an_object_counts_once_though_two_of_its_modalities_are_near(model, index):
    with TestClient(create_app(model, index)) as http:
        answer = predict(http, object_id="object-41", k=50).json()
    found = [n["object_id"] for n in answer["neighbours"]]
    assert len(found) == len(set(found)) == 50
    assert {n["modality"] for n in answer["neighbours"]} == {"image/hsc", "spectrum/desi"}


@pytest.mark.parametrize(
    "change", [{"k": 3}, {"cone": {"ra": 14.0, "dec": 5.0, "radius_deg": 2}}, {"target_modality": "spectrum/desi"}]
)
def test_a_search_other_than_the_calibrated_one_is_not_called_calibrated(http, change):
    assert predict(http, object_id="object-41", modality="image/hsc", **change).json()["calibrated"] is False


def test_prediction_from_measurements_and_without_predictor(model, index):
    with TestClient(create_app(model, index)) as http:
        answer = predict(http, observations=[typed_image(images(120), 50)], target_modality="image/hsc", k=4).json()
    assert answer["value"] == pytest.approx(50 / 119, abs=0.05)
    assert answer["calibrated"] is False


def test_wrong_predictions_say_what_is_wrong(http):
    assert_problem(
        predict(http, property="scalar/redshfit", object_id="object-1"), 404, "not-found", says="scalar/redshift"
    )
    unlabelled = predict(http, property="scalar/stellar_mass", object_id="object-1")
    assert_problem(unlabelled, 422, "no-labels", "/property")
    assert_problem(predict(http, object_id="object-1", k=61), 422, "invalid-request", "/k")
    far = {"ra": 200.0, "dec": -80.0, "radius_deg": 1.0}
    assert_problem(predict(http, object_id="object-1", cone=far), 422, "no-labels")


def test_an_object_has_position_modalities_labels_and_links(http, index):
    answer = http.get("/v1/objects/object-5").json()
    assert (answer["ra"], answer["dec"]) == (pytest.approx(10.5), 5.0)
    assert answer["modalities"] == ["image/hsc", "spectrum/desi"]
    assert answer["labels"] == {"scalar/redshift": pytest.approx(5 / 119)}
    assert "ra=10.500000&dec=5.000000" in answer["links"]["legacy_survey_viewer"]
    assert_problem(http.get("/v1/objects/object-1200"), 404, "not-found", says="nearest known is 'object-1")


def test_a_predictor_of_another_model_is_refused(model, index):
    from armillary.serving.index.embedding_index import EmbeddingIndexError

    with pytest.raises(EmbeddingIndexError, match="calibrated with model 'armillary-2'"):
        create_app(model, index, {"p": NeighbourPredictor("p", model_id="armillary-2")})


def test_neighbours_are_filtered_by_survey_and_by_ranges_inside_the_search(model):
    given, seen = images(40), spectra(20)
    magnitude = {"object_id": [f"object-{i}" for i in range(40)], "scalar/legacysurvey_r": np.linspace(16.0, 20.0, 40)}
    index = EmbeddingIndex.build(embedding_table(model, [given, seen]), metadata=magnitude)
    with TestClient(create_app(model, index)) as http:
        bright = {"scalar/legacysurvey_r": [None, 17.0]}
        found = search(http, object_id="object-30", k=40, where=bright, survey="hsc").json()["neighbours"]
        # Magnitudes up to 17.0 are those of the first ten objects.
        assert {neighbour["object_id"] for neighbour in found} == {f"object-{i}" for i in range(10)}
        assert {neighbour["modality"] for neighbour in found} == {"image/hsc"}
        found = search(http, object_id="object-3", k=40, survey="desi").json()["neighbours"]
        assert {neighbour["modality"] for neighbour in found} == {"spectrum/desi"}
        address = "/v1/collections/objects/search?object_id=object-3&k=40&survey=desi"
        assert http.get(address).json()["neighbours"] == found
        assert_problem(search(http, object_id="object-3", survey="lamost"), 404, "not-found", says="no survey 'lamost'")
        where = {"scalar/z": [0.0, 1.0]}
        assert_problem(search(http, object_id="object-3", where=where), 404, "not-found", says="it has")
        for wrong in ([1.0], ["a", 2.0], [1.0, 2.0, 3.0]):
            where = {"scalar/legacysurvey_r": wrong}
            assert search(http, object_id="object-3", where=where).status_code == 422


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_many_vectors_are_one_search_in_json_and_in_arrow(http, index):
    vectors = np.stack([index.vector(f"object-{i}", "image/hsc") for i in range(0, 60, 7)])
    expected = index.search(vectors, 4, target_modality="spectrum/desi")
    address = "/v1/collections/objects/search?k=4&target_modality=spectrum/desi"
    as_npy = {"Content-Type": "application/x-npy"}
    answer = http.post(address, content=npy(vectors), headers=as_npy).json()
    assert [[n["object_id"] for n in found] for found in answer["results"]] == expected.object_id.tolist()
    stream = http.post(
        address, content=npy(vectors), headers=as_npy | {"Accept": "application/vnd.apache.arrow.stream"}
    )
    table = pa.ipc.open_stream(stream.content).read_all()
    assert table["query"].to_pylist() == [query for query in range(len(vectors)) for _ in range(4)]
    assert table["object_id"].to_pylist() == expected.object_id.reshape(-1).tolist()
    np.testing.assert_array_equal(table["similarity"].to_numpy(), expected.similarity.reshape(-1))
    assert json.loads(table.schema.metadata[b"provenance"])["index_id"] == index.manifest.index_id


def test_fewer_rows_than_k_are_no_neighbours_of_nothing(http, index):
    vectors = np.stack([index.vector("object-0", "image/hsc")])
    headers = {"Content-Type": "application/x-npy"}
    address = "/v1/collections/objects/search?k=60&target_modality=spectrum/desi"
    (found,) = http.post(address, content=npy(vectors), headers=headers).json()["results"]
    assert len({neighbour["object_id"] for neighbour in found}) == 60


@pytest.mark.parametrize(
    ("array", "query", "status", "says"),
    [
        (np.ones(8), "", 422, "shape [queries, dimension], found [8]"),
        (np.ones((0, 8)), "", 422, "found [0, 8]"),
        (np.ones((2, 7)), "", 422, "shape [queries, 8], found [2, 7]"),
        (np.full((2, 8), np.nan), "", 422, "has no direction"),
        (np.full((2, 8), 1e300), "", 422, "has no direction"),
        (np.ones((300, 8)), "", 413, "at most 256 queries"),
        (np.ones((2, 8)), "k=0", 422, "greater than or equal to 1"),
        (np.ones((2, 8)), "k=61", 422, "at most 60"),
        (np.ones((2, 8)), "target_modality=image/x", 404, "image/hsc"),
    ],
)
def test_wrong_batches_of_vectors_are_refused(http, array, query, status, says):
    answer = http.post(
        f"/v1/collections/objects/search?{query}", content=npy(array), headers={"Content-Type": "application/x-npy"}
    )
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
