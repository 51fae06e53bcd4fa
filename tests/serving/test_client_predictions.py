"""Predictions for several objects over both clients: as one by one, in few requests, each failing alone."""

import numpy as np
import pytest
from both_clients import KINDS, open_client
from fake_model import FakeModel, images, spectra

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, ScalarObservation
from armillary.models.probes import LinearProbe
from armillary.serving.app import create_app
from armillary.serving.client.client import InvalidRequestError, NotFoundError, Prediction, Predictions
from armillary.serving.limits import Limits

REDSHIFT, HSC = "scalar/redshift", "image/hsc"
IDS = [f"object-{i}" for i in range(30)]
GIVEN = images(30)


@pytest.fixture(scope="module")
def served(index):
    from live_server import running

    model = FakeModel()
    probe = LinearProbe(label=REDSHIFT).fit(model.embed([images(120)]), np.linspace(0, 1, 120))
    app = create_app(model, index, probes=[probe], limits=Limits(max_items=12))
    with running(app) as url:
        yield url, app.state.service


@pytest.fixture(params=KINDS)
def client(served, request):
    with open_client(request.param, served[0]) as opened:
        yield opened


@pytest.mark.parametrize("method", ["neighbours", "model", "probe"])
def test_measurements_of_many_are_told_as_one_by_one(client, method):
    found = client.predict(REDSHIFT, GIVEN, method=method)
    assert isinstance(found, Predictions)
    assert found.object_id == GIVEN.object_id
    for row in (0, 13, 29):
        alone = client.predict(REDSHIFT, GIVEN.select([row]), method=method)
        assert isinstance(alone, Prediction)
        assert found.value[row] == pytest.approx(alone.value, abs=1e-6)
        assert found[row].method == method
        assert [bound[row] for bound in found.interval(0.9)] == pytest.approx(
            [alone.interval(0.9).lower, alone.interval(0.9).upper], abs=1e-6
        )
        assert len(found[row].neighbours) == len(alone.neighbours)
        if method == "model":
            assert found[row].distribution.probability == pytest.approx(alone.distribution.probability)


def test_ids_vectors_and_what_stands_alone_are_asked_in_one_call(client, index):
    by_id = client.predict(REDSHIFT, IDS, modality=HSC, k=5)
    by_vector = client.predict(REDSHIFT, index.vectors(IDS, HSC), k=5, exclude_self=False)
    alone = client.predict(REDSHIFT, IDS[20], modality=HSC, k=5)
    assert by_id.object_id == tuple(IDS)
    assert by_id.value[20] == pytest.approx(alone.value)
    assert (len(by_vector), len(by_vector[0].neighbours)) == (30, 5)
    assert by_vector[0].neighbours[0].object_id == IDS[0]
    each = client.predict_many(REDSHIFT, ({HSC: GIVEN.select([row])} for row in range(3)), k=5)
    together = client.predict(REDSHIFT, [GIVEN.select([0, 1]), spectra(2)], k=5)
    assert (len(each), len(together)) == (3, 2)
    assert together.value[1] == pytest.approx(
        client.predict(REDSHIFT, [GIVEN.select([1]), spectra(2).select([1])], k=5).value, abs=1e-6
    )
    assert by_id[:2].table()["object_id"].tolist() == IDS[:2]
    assert by_id.table()["upper_90"].shape == (30,)


def test_many_go_in_as_few_requests_as_the_limits_allow(client, served):
    model = served[1].model
    before = model.num_predict_calls
    found = client.predict_scalar([GIVEN], REDSHIFT)
    # 30 objects, 12 in a request, all alike.
    assert model.num_predict_calls - before == 3
    local = FakeModel().predict_scalar([GIVEN], REDSHIFT)
    np.testing.assert_allclose(found.probabilities, local.probabilities)
    assert found.object_id == local.object_id
    before = model.num_predict_calls
    client.predict_scalar([GIVEN], REDSHIFT, batch_size=6)
    assert model.num_predict_calls - before == 5


def test_a_bad_object_raises_or_is_skipped(client, tmp_path):
    with pytest.raises(NotFoundError, match="object-900"):
        client.predict(REDSHIFT, ["object-1", "object-900"])
    found = client.predict_many(REDSHIFT, [*IDS[:13], "object-900", "object-2"], k=3, on_error="skip")
    assert found.object_id == (*IDS[:13], "object-2")
    ((failed),) = found.errors
    assert (failed.index, failed.object_id) == (13, "object-900")
    assert failed.error.problem["errors"][0]["pointer"] == "/input/13/object_id"
    torn = tmp_path / "torn.fits"
    torn.write_bytes(b"SIMPLE  =")
    items = [{HSC: GIVEN.select([0])}, {HSC: str(torn)}, {HSC: GIVEN.select([1])}]
    found = client.predict_many(REDSHIFT, items, on_error="skip")
    assert (len(found), found.errors[0].index) == (2, 1)
    with pytest.raises((ObservationError, OSError)):
        client.predict_many(REDSHIFT, items)
    masked = ScalarObservation(modality(REDSHIFT), ["a", "b"], [0.1, 0.2], [False, False])
    none = client.predict_many(REDSHIFT, masked, method="probe", on_error="skip")
    assert (len(none), [error.object_id for error in none.errors]) == (0, ["a", "b"])
    with pytest.raises(InvalidRequestError, match="goes with method 'neighbours' alone"):
        client.predict_many(REDSHIFT, GIVEN, method="model", k=3, on_error="skip")
    with pytest.raises(ValueError, match="found measurements"):
        client.predict_many(REDSHIFT, GIVEN, modality=HSC)


def test_a_probe_of_an_id_tells_many(client):
    (probe,) = client.probes()
    found = client.predict(REDSHIFT, GIVEN, probe=probe.id)
    np.testing.assert_allclose(found.value, client.predict(REDSHIFT, GIVEN, method="probe").value, atol=1e-6)
    assert (found[0].method, found.object_id) == ("probe", GIVEN.object_id)
    skipped = client.predict_many(REDSHIFT, ["object-1", "object-900"], probe=probe.id, on_error="skip")
    assert (skipped.object_id, skipped.errors[0].index) == (("object-1",), 1)
    with pytest.raises(ValueError, match="tells 'scalar/redshift'"):
        client.predict("scalar/stellar_mass", IDS[:2], probe=probe.id)
