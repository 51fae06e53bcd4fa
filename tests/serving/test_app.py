import pytest
from fake_model import FakeModel
from http_bodies import assert_problem, typed_image, typed_spectrum
from starlette.testclient import TestClient

from armillary.data.modalities import MODALITIES
from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndexError
from armillary.serving.limits import Limits
from armillary.serving.problems import KINDS

ROUTES = {
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/v1/limits"),
    ("get", "/v1/models"),
    ("get", "/v1/modalities"),
    ("get", "/v1/collections"),
    ("post", "/v1/embeddings"),
    ("get", "/v1/objects/{object_id}"),
    ("get", "/v1/collections/{collection}/map"),
    ("get", "/v1/collections/{collection}/map/points"),
    ("get", "/v1/objects"),
    ("get", "/v1/objects/{object_id}/observations"),
    ("get", "/v1/objects/{object_id}/observation"),
    ("get", "/v1/objects/{object_id}/image.jpg"),
    ("get", "/v1/objects/{object_id}/image.fits"),
    ("get", "/v1/objects/{object_id}/spectrum"),
    ("get", "/v1/objects/{object_id}/spectrum.fits"),
    ("post", "/v1/collections/{collection}/search"),
    ("get", "/v1/collections/{collection}/search"),
    ("post", "/v1/predict"),
    ("post", "/v1/generate"),
    ("post", "/v1/probes"),
    ("get", "/v1/probes"),
    ("get", "/v1/probes/{probe_id}"),
    ("get", "/v1/probes/{probe_id}/file"),
    ("delete", "/v1/probes/{probe_id}"),
    ("post", "/v1/probes/{probe_id}/predict"),
    ("post", "/v1/jobs"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{job_id}"),
    ("get", "/v1/jobs/{job_id}/result"),
    ("delete", "/v1/jobs/{job_id}"),
    ("get", "/problems/{kind}"),
    ("get", "/metrics"),
    ("post", "/v1/admin/reload"),
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2/models/{model}"),
    ("get", "/v2/models/{model}/ready"),
    ("post", "/v2/models/{model}/infer"),
}
WITHOUT_A_BODY = ("/v1/admin/reload",)


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def test_the_server_describes_itself(http, model, index):
    assert http.get("/livez").json() == {"status": "alive"}
    ready = http.get("/readyz").json()
    assert (ready["model_id"], ready["index_id"]) == (model.model_id, index.manifest.index_id)
    assert http.get("/v1/limits").json() == Limits().model_dump()
    entry = http.get("/v1/models").json()["data"][0]
    assert entry["spaces"] == {"encoder": 12, "aligned": 8}
    assert entry["modalities"] == [m.name for m in model.modalities]
    collection = http.get("/v1/collections").json()["collections"][0]
    assert collection["num_rows_of_modality"] == {"image/hsc": 120, "spectrum/desi": 60}
    assert collection["labels"] == ["scalar/redshift", "scalar/stellar_mass"]


def test_modalities_are_described_with_units_and_numbers(http):
    found = {entry["name"]: entry for entry in http.get("/v1/modalities").json()["modalities"]}
    assert found["image/hsc"]["trained"]
    assert found["image/hsc"]["unit"] == "nanomaggies per pixel"
    assert [band["name"] for band in found["image/hsc"]["bands"]] == ["g", "r", "i", "z", "y"]
    assert found["spectrum/desi"]["wavelength_range_angstrom"] == [3600, 9824]
    assert found["scalar/redshift"]["vocabulary"] == "scalar/redshift"
    # Every image and spectrum is taken by the numbers of its instrument; others need a tokenizer of their own.
    untrained = {m.name for m in MODALITIES if m.kind in ("image", "spectrum")} - {m.name for m in FakeModel.modalities}
    assert untrained
    assert all(not found[name]["trained"] for name in untrained)
    assert not {"scalar/sdss_u", "coefficients/gaia_bp_rp"} & set(found)


def test_until_the_model_is_loaded_it_is_alive_but_not_ready(index):
    with TestClient(create_app(None, index)) as http:
        assert http.get("/livez").status_code == 200
        for response in (
            http.get("/readyz"),
            http.get("/v1/models"),
            http.post("/v1/embeddings", json={"input": typed_image()}),
            http.post("/v1/predict", json={"property": "scalar/redshift", "observations": [typed_image()]}),
        ):
            assert_problem(response, 503, "not-ready")
            assert response.headers["retry-after"] == "2"


def test_an_index_of_another_model_is_refused(index):
    class OtherModel(FakeModel):
        model_id = "armillary-ffffffffffff"

    with pytest.raises(EmbeddingIndexError, match="armillary-ffffffffffff"):
        create_app(OtherModel(), index)


def test_every_error_is_a_problem_document(http):
    assert_problem(http.get("/v1/nothing"), 404, "not-found")
    assert_problem(http.delete("/v1/models"), 405, "method-not-allowed")
    wrong = http.get("/v1/collections/objects/search", params={"object_id": "object-1", "k": "many"})
    assert_problem(wrong, 422, "invalid-request", "/query/k")


def test_a_fault_of_the_server_is_500_and_shows_no_inside(index):
    class Broken(FakeModel):
        def embed(self, observations, space="aligned"):
            raise RuntimeError("secret path")

    with TestClient(create_app(Broken(), index), raise_server_exceptions=False) as http:
        answer = http.post("/v1/embeddings", json={"input": typed_image()})
        assert_problem(answer, 500, "internal")
        assert "secret" not in answer.text
        assert http.get("/livez").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_each_problem_type_is_explained_at_its_address(http, kind):
    answer = http.get(f"/problems/{kind}")
    assert answer.json() == {
        "type": f"/problems/{kind}",
        "title": KINDS[kind].title,
        "status": KINDS[kind].status,
        "advice": KINDS[kind].advice,
    }


def test_a_key_is_asked_for_where_one_is_set(model, index):
    with TestClient(create_app(model, index, api_key="secret")) as http:
        assert http.get("/livez").status_code == 200
        assert http.get("/readyz").status_code == 200
        assert_problem(http.get("/v1/models"), 401, "unauthorized")
        assert_problem(http.get("/v1/models", headers={"Authorization": "Bearer wrong"}), 401, "unauthorized")
        assert http.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_openapi_documents_every_route_with_example_and_errors(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert found == ROUTES
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert operation["description"], path
            if method == "post":
                if path not in WITHOUT_A_BODY:
                    content = operation["requestBody"]["content"]["application/json"]
                    assert content["examples"], path
                    assert "413" in operation["responses"], path
                answers = [answer for status, answer in operation["responses"].items() if status < "300"]
                assert all(answer["content"]["application/json"]["example"] for answer in answers), path
                assert answers, path
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, status)


def test_openapi_references_resolve(http):
    document = http.get("/openapi.json").json()

    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(document))
    assert "#/components/schemas/TypedObject" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference


def test_the_documents_own_examples_are_accepted(http):
    document = http.get("/openapi.json").json()
    examples = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for name, example in examples.items():
        answer = http.post("/v1/embeddings", json=example["value"])
        if name == "an object of the index":
            assert_problem(answer, 404, "not-found")
        else:
            assert answer.status_code == 200, answer.text


def test_a_model_may_be_given_later_if_it_is_the_indexs(index):
    class OtherModel(FakeModel):
        model_id = "armillary-ffffffffffff"

    app = create_app(None, index)
    with TestClient(app) as http:
        with pytest.raises(EmbeddingIndexError):
            app.state.service.take(OtherModel())
        assert http.get("/readyz").status_code == 503
        app.state.service.take(FakeModel())
        assert http.get("/readyz").status_code == 200


def test_a_model_of_images_alone_takes_no_spectra():
    class ImageModel(FakeModel):
        modalities = FakeModel.modalities[:1]

    with TestClient(create_app(ImageModel())) as http:
        assert_problem(http.post("/v1/embeddings", json={"input": typed_spectrum()}), 404, "not-found")
        assert http.post("/v1/embeddings", json={"input": typed_image()}).status_code == 200


def test_the_server_stays_alive_while_many_requests_wait_for_the_model(index, run):
    import concurrent.futures
    import threading

    import httpx

    started, release = threading.Event(), threading.Event()

    class Slow(FakeModel):
        def embed(self, observations, space="aligned"):
            started.set()
            assert release.wait(60)
            return super().embed(observations, space)

    with run(create_app(Slow(), index)) as url:
        pool = concurrent.futures.ThreadPoolExecutor(60)
        body = {"input": typed_image()}
        answers = [pool.submit(httpx.post, f"{url}/v1/embeddings", json=body, timeout=60) for _ in range(60)]
        assert started.wait(20)
        assert httpx.get(f"{url}/livez", timeout=5).status_code == 200
        found = httpx.get(f"{url}/v1/collections/objects/search", params={"object_id": "object-1"}, timeout=5)
        assert found.status_code == 200
        assert not any(answer.done() for answer in answers)
        release.set()
        assert [answer.result().status_code for answer in answers] == [200] * 60


def test_the_model_serves_one_request_at_a_time(index, run):
    import concurrent.futures
    import threading

    import httpx

    inside, most = 0, 0
    guard = threading.Lock()

    class Watched(FakeModel):
        def embed(self, observations, space="aligned"):
            nonlocal inside, most
            with guard:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.01)
            with guard:
                inside -= 1
            return super().embed(observations, space)

    with run(create_app(Watched(), index)) as url, concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, f"{url}/v1/embeddings", json={"input": typed_image()}) for _ in range(16)]
        assert [future.result().status_code for future in asked] == [200] * 16
    assert most == 1
