"""`POST /v1/predict` with method `model`: the masked model's distribution, its median and intervals."""

import numpy as np
import pytest
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem, typed_image, typed_spectrum
from starlette.testclient import TestClient

from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.serving.app import create_app
from armillary.serving.client.client import ApiError, Client


@pytest.fixture
def http(model):
    with TestClient(create_app(model)) as client:
        yield client


def predict(http, *observations, **changes):
    body = {"property": "scalar/redshift", "method": "model", "observations": list(observations), **changes}
    return http.post("/v1/predict", json=body)


def test_value_intervals_and_distribution_are_the_models_without_any_index(http):
    local = FakeModel().predict_scalar([images().select([2])], "scalar/redshift")
    answer = predict(http, typed_image(row=2)).json()
    assert answer["method"] == "model"
    assert answer["value"] == pytest.approx(float(local.median()[0]))
    assert answer["unit"] == "dimensionless"
    for interval, level in zip(answer["intervals"], (0.68, 0.9, 0.95), strict=True):
        low, high = local.interval(level)
        assert interval == {"level": level, "lower": pytest.approx(float(low)), "upper": pytest.approx(float(high))}
    np.testing.assert_allclose(answer["distribution"]["probability"], local.probabilities[0])
    np.testing.assert_array_equal(answer["distribution"]["low"], local.low)
    np.testing.assert_array_equal(answer["distribution"]["high"], local.high)
    assert sum(answer["distribution"]["probability"]) == pytest.approx(1)
    assert (answer["calibrated"], answer["k"], answer["neighbours"]) == (False, None, [])
    assert answer["provenance"] == {
        "model_id": FakeModel.model_id,
        "index_id": None,
        "space": None,
        "metric": None,
    }


def test_measurements_of_one_object_count_together_whatever_their_ids(http):
    given = [images().select([1]), spectra().select([1])]
    local = FakeModel().predict_scalar(given, "scalar/redshift")
    answer = predict(http, typed_image(row=1, object_id="a"), typed_spectrum(row=1, object_id="b")).json()
    assert answer["value"] == pytest.approx(float(local.median()[0]), abs=1e-6)


def test_the_property_itself_is_not_used(http):
    known = {"modality": "scalar/redshift", "data": 0.9}
    assert predict(http, typed_image(), known).json()["value"] == predict(http, typed_image()).json()["value"]
    assert_problem(predict(http, known), 422, "invalid-observation", "/observations", "other than scalar/redshift")


def test_neighbours_remain_the_default_and_say_so(model, index):
    with TestClient(create_app(model, index)) as http:
        answer = http.post("/v1/predict", json={"property": "scalar/redshift", "object_id": "object-3"}).json()
    assert (answer["method"], answer["distribution"]) == ("neighbours", None)


@pytest.mark.parametrize(
    "change, status, kind, pointer",
    [
        ({"observations": None}, 422, "invalid-request", "/observations"),
        ({"observations": []}, 422, "invalid-observation", "/observations"),
        ({"k": 3}, 422, "invalid-request", "/k"),
        ({"vector": [1.0]}, 422, "invalid-request", "/vector"),
        ({"object_id": "object-1"}, 422, "invalid-request", "/object_id"),
        ({"target_modality": "image/hsc"}, 422, "invalid-request", "/target_modality"),
        ({"cone": {"ra": 1, "dec": 1, "radius_deg": 1}}, 422, "invalid-request", "/cone"),
        ({"property": "scalar/redshfit"}, 404, "not-found", None),
        ({"property": "image/hsc"}, 404, "not-found", None),
        ({"method": "guess"}, 422, "invalid-request", "/method"),
        ({"observations": [typed_image(bands=["g", "v"])]}, 422, "invalid-observation", "/observations/0/bands"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(http, change, status, kind, pointer):
    assert_problem(predict(http, typed_image(), **change), status, kind, pointer)


def test_a_model_that_is_loading_is_503():
    with TestClient(create_app(None)) as http:
        assert_problem(predict(http, typed_image()), 503, "not-ready")


def test_the_client_asks_the_model_too(model, run):
    observation = images().select([2])
    local = FakeModel().predict_scalar([observation], "scalar/redshift")
    with run(create_app(model)) as url, Client(url) as client:
        found = client.predict("scalar/redshift", observation, method="model")
        with pytest.raises(ApiError, match="goes with method 'neighbours' alone"):
            client.predict("scalar/redshift", "object-1", method="model")
    assert (found.method, found.calibrated, found.neighbours) == ("model", False, ())
    assert found.value == pytest.approx(float(local.median()[0]))
    np.testing.assert_allclose(found.distribution.probability, local.probabilities[0])


def test_a_scalar_can_predict_another(index):
    class TwoScalars(FakeModel):
        modalities = (*FakeModel.modalities, modality("scalar/stellar_mass"))

    mass = ScalarObservation(modality("scalar/stellar_mass"), ["a"], [10.5])
    local = TwoScalars().predict_scalar([mass], "scalar/redshift")
    with TestClient(create_app(TwoScalars())) as http:
        answer = predict(http, {"modality": "scalar/stellar_mass", "data": 10.5})
    assert answer.json()["value"] == pytest.approx(float(local.median()[0]))
