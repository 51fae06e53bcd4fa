"""Low-resolution spectra as coefficients, through every kind of body."""

import io

import numpy as np
import pytest
import safetensors.numpy
import torch
from fake_model import WIDTHS, FakeModel
from http_bodies import assert_problem, encoded
from live_server import running
from starlette.testclient import TestClient

from armillary.data.modalities import modality
from armillary.data.observations import CoefficientsObservation
from armillary.models.embeddings import Embeddings
from armillary.serving.app import create_app
from armillary.serving.client.client import Client

GAIA = modality("coefficients/gaia_bp_rp")


class Projection(FakeModel):
    """Embeds coefficients by sums that tell values, errors and mask apart."""

    modalities = (GAIA,)

    def embed(self, observations, space="aligned"):
        (observation,) = observations
        assert isinstance(observation, CoefficientsObservation)
        error = observation.error.nan_to_num(7.0) * observation.mask
        place = torch.arange(110) / 1e3
        vectors = torch.zeros(len(observation), WIDTHS[space])
        for column, values in enumerate((observation.values, error, observation.mask.float())):
            vectors[:, column] = values @ place
        names = ((GAIA.name,),) * len(observation)
        return Embeddings(observation.object_id, vectors, space, self.model_id, names)


@pytest.fixture
def http():
    with TestClient(create_app(Projection())) as client:
        yield client


@pytest.fixture(scope="module")
def stars():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 110)) > 0.2
    error = np.where(rng.random((3, 110)) > 0.1, rng.uniform(1, 2, (3, 110)), np.nan).astype(np.float32)
    return CoefficientsObservation(GAIA, "abc", rng.normal(0, 9, (3, 110)).astype(np.float32), mask, error)


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([datum["embedding"] for datum in response.json()["data"]], np.float32)


def test_the_client_sends_values_errors_and_mask(stars):
    with running(create_app(Projection())) as url, Client(url) as client:
        found = client.embed([stars], space="encoder")
    assert np.allclose(found.numpy(), Projection().embed([stars], "encoder").numpy(), atol=1e-5)


def test_json_npy_and_safetensors_say_the_same(http, stars):
    plain = CoefficientsObservation(GAIA, "abc", stars.values)
    expected = Projection().embed([plain], "encoder").numpy()
    values = plain.values.numpy()
    items = [{"modality": GAIA.name, **encoded(row)} for row in values]
    by_json = http.post("/v1/embeddings", json={"input": items, "space": "encoder"})
    assert np.allclose(vectors(by_json), expected, atol=1e-5)
    lists = [{"modality": GAIA.name, "data": row.tolist()} for row in values]
    assert np.allclose(vectors(http.post("/v1/embeddings", json={"input": lists, "space": "encoder"})), expected)
    file = io.BytesIO()
    np.save(file, values)
    query = f"/v1/embeddings?modality={GAIA.name}&space=encoder"
    by_npy = http.post(query, content=file.getvalue(), headers={"content-type": "application/x-npy"})
    assert np.allclose(vectors(by_npy), expected, atol=1e-5)
    body = safetensors.numpy.save({"values": values}, {"modality": GAIA.name, "space": "encoder"})
    by_safetensors = http.post("/v1/embeddings", content=body, headers={"content-type": "application/vnd.safetensors"})
    assert np.allclose(vectors(by_safetensors), expected, atol=1e-5)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"data": [1.0] * 95}, "[1, 110], found [1, 95]"),
        ({"data": [[1.0] * 55] * 2}, "expected shape [coefficients], found [2, 55]"),
        ({"data": [1.0] * 110, "bands": ["g"]}, "coefficients has no bands"),
    ],
)
def test_what_is_no_such_spectrum_is_a_problem_that_says_so(http, change, says):
    answer = http.post("/v1/embeddings", json={"input": [{"modality": GAIA.name, **change}]})
    assert_problem(answer, 422, "invalid-observation", says=says)


def test_the_arms_are_described(http):
    (entry,) = http.get("/v1/modalities").json()["modalities"]
    assert [arm["num_coefficients"] for arm in entry["arms"]] == [55, 55]
    assert entry["unit"] == "electrons / s"
