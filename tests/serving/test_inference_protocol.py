"""The Open Inference Protocol gives what /v1/embeddings gives, in both of its forms, and refuses what does not fit."""

import json

import numpy as np
import pytest
from fake_model import FakeModel, images, spectra
from fastapi.testclient import TestClient

from armillary.serving.app import create_app

PATH = "/v2/models/image.hsc/infer"


@pytest.fixture
def http(model):
    with TestClient(create_app(model)) as client:
        yield client


def tensor(name, array, datatype="FP32", **more):
    return {"name": name, "shape": list(array.shape), "datatype": datatype, **more}


def expected(observation, space="aligned"):
    return FakeModel().embed([observation], space).numpy()


def binary(tensors, **fields):
    """Headers and body of a request whose tensors follow the JSON."""
    inputs, tail = [], b""
    for name, array in tensors.items():
        raw = array.astype("<f4").tobytes()
        inputs.append(tensor(name, array, parameters={"binary_data_size": len(raw)}))
        tail += raw
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}, head + tail


def test_health_and_metadata_say_what_there_is(http):
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").status_code == 200
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    described = http.get("/v2/models/image.hsc").json()
    assert described["inputs"][0] == {"name": "flux", "datatype": "FP32", "shape": [-1, -1, -1, -1]}
    assert described["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}]
    assert described["versions"] == [FakeModel.model_id]
    assert http.get(f"/v2/models/image.hsc/versions/{FakeModel.model_id}/ready").json()["ready"]
    assert http.get("/v2/models/image.hcs/ready").status_code == 404
    assert http.get("/v2/models/image.hsc/versions/other").status_code == 404


def test_numbers_in_json_flat_or_nested_give_the_vectors_of_the_model(http):
    given = images(3)
    flux = given.flux.numpy()
    for data in (flux.reshape(-1).tolist(), flux.tolist()):
        body = {"id": "7", "inputs": [tensor("flux", flux, data=data)], "parameters": {"bands": "g,r"}}
        answer = http.post(PATH, json=body).json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "image.hsc", FakeModel.model_id)
        (output,) = answer["outputs"]
        assert (output["name"], output["shape"], output["datatype"]) == ("embedding", [3, 8], "FP32")
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected(given), atol=1e-6)


def test_bytes_behind_the_json_are_read_and_answered_as_bytes(http):
    given = spectra(2)
    tensors = {name: getattr(given, name).numpy() for name in ("flux", "wavelength", "inverse_variance")}
    headers, body = binary(
        tensors,
        outputs=[{"name": "embedding", "parameters": {"binary_data": True}}],
        parameters={"space": "encoder"},
    )
    answer = http.post("/v2/models/spectrum.desi/infer", headers=headers, content=body)
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    found = np.frombuffer(answer.content[length:], "<f4").reshape(output["shape"])
    assert output["parameters"] == {"binary_data_size": found.nbytes}
    np.testing.assert_allclose(found, expected(given, "encoder"), rtol=1e-4, atol=1e-4)


FLUX = np.ones((1, 2, 4, 4), np.float32)
GOOD = tensor("flux", FLUX, data=FLUX.reshape(-1).tolist())


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"inputs": []}, 422, "at least 1 item"),
        ({"inputs": [GOOD | {"datatype": "BYTES"}]}, 422, "expected one of"),
        ({"inputs": [GOOD | {"shape": [1, 2, 4, 5]}]}, 422, "40 numbers; 32 came"),
        ({"inputs": [GOOD | {"shape": [1, -2, 4, 4]}]}, 422, "greater than or equal to 0"),
        ({"inputs": [GOOD, GOOD]}, 422, "comes twice"),
        ({"inputs": [GOOD | {"data": None}]}, 422, "found none"),
        ({"inputs": [GOOD | {"data": ["a"] * 32}]}, 422, "numbers"),
        ({"inputs": [GOOD | {"name": "fluxes"}]}, 422, "fluxes"),
        ({"inputs": [GOOD | {"parameters": {"binary_data_size": 128}}]}, 422, "0 came"),
        ({"outputs": [{"name": "logits"}]}, 422, "expected one of ['embedding']"),
        ({"parameters": {"bands": "g,x"}}, 422, "x"),
        ({"parameters": {"bands": "g,r", "space": "other"}}, 409, "no space 'other'"),
        ({"shared_memory_region": "a"}, 422, "Extra inputs"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_both_protocols(http, change, status, says):
    answer = http.post(PATH, json={"inputs": [GOOD], "parameters": {"bands": "g,r"}, **change})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["error"]
    assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize("length", ["9999999", "-1", "ten", ""])
def test_a_wrong_length_of_the_json_is_refused(http, length):
    headers, body = binary({"flux": FLUX}, parameters={"bands": "g,r"})
    answer = http.post(PATH, headers=headers | {"Inference-Header-Content-Length": length}, content=body)
    assert 400 <= answer.status_code < 500


def test_bytes_too_few_or_too_many_are_refused(http):
    headers, body = binary({"flux": FLUX}, parameters={"bands": "g,r"})
    assert http.post(PATH, headers=headers, content=body).status_code == 200
    assert "127 came" in http.post(PATH, headers=headers, content=body[:-1]).json()["error"]
    assert "1 bytes follow" in http.post(PATH, headers=headers, content=body + b"x").json()["error"]


def test_an_object_that_is_not_usable_is_named(http):
    flux = images(3).flux.numpy().copy()
    flux[1] = np.nan
    body = {"inputs": [tensor("flux", flux, data=np.where(np.isnan(flux), 0, flux).reshape(-1).tolist())]}
    body["inputs"].append(tensor("mask", flux, "BOOL", data=np.isfinite(flux).reshape(-1).tolist()))
    answer = http.post(PATH, json={**body, "parameters": {"bands": "g,r"}})
    assert answer.status_code == 422
    assert "/input/1" in answer.json()["error"]
