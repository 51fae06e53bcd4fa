"""What both clients leave on a server and have made there: probes and samples, against the same made by hand."""

import numpy as np
import pytest
import torch
from both_clients import KINDS, open_client
from fake_model import FakeModel, features, images, spectra
from flaky_app import FlakyApp
from generating_model import GeneratingModel

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError
from armillary.models.probes import LinearProbe
from armillary.serving.app import create_app
from armillary.serving.client.client import ApiError, ConflictError, InvalidRequestError, NotFoundError
from armillary.serving.routes import probes as routes_probes

REDSHIFT, HSC, DESI = "scalar/redshift", "image/hsc", "spectrum/desi"
TRUTH = np.linspace(0, 1, 120)
LABELS = {f"object-{i}": float(TRUTH[i]) for i in range(100)}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def served(index, tmp_path_factory):
    from live_server import running

    with running(create_app(GeneratingModel(), index, state=tmp_path_factory.mktemp("state"))) as url:
        yield url


@pytest.fixture
def client(kind, served):
    with open_client(kind, served) as client:
        yield client


def test_a_probe_of_the_index_is_fitted_kept_asked_and_forgotten(client):
    record = client.fit_probe(REDSHIFT, LABELS, modality=HSC, note="by eye")
    assert (record.label, record.task, record.num_labels, record.note) == (REDSHIFT, "regression", 100, "by eye")
    assert record.modalities == (HSC,)
    assert record.id in [one.id for one in client.probes()]
    assert client.probe(record.id) == record
    found = client.predict(REDSHIFT, images(120).select([110]), probe=record.id)
    assert found.value == pytest.approx(TRUTH[110], abs=0.1)
    assert found.method == "probe"
    assert client.predict(REDSHIFT, "object-110", probe=record.id, modality=HSC).value == pytest.approx(
        found.value, abs=0.01
    )
    with pytest.raises(ValueError, match=r"tells 'scalar/redshift', not 'scalar/stellar_mass'"):
        client.predict("scalar/stellar_mass", "object-110", probe=record.id)
    client.delete_probe(record.id)
    with pytest.raises(NotFoundError):
        client.probe(record.id)


def test_a_probe_of_embeddings_is_the_one_fitted_here(client):
    given = client.embed(images(60), "encoder")
    record = client.fit_probe(REDSHIFT, given, TRUTH[:60])
    assert record.space == "encoder"
    local = LinearProbe(label=REDSHIFT).fit(given, TRUTH[:60])
    others = client.embed(images(5, seed=3, prefix="new-"), "encoder")
    there = client.download_probe(record.id)
    np.testing.assert_allclose(there.predict_full(others).value, local.predict_full(others).value, rtol=1e-4)
    again = client.upload_probe(local)
    assert again.fitted_on == "upload"
    one = client.predict(REDSHIFT, others.vectors[0], probe=again.id)
    assert one.value == pytest.approx(float(local.predict_full(others).value[0]), rel=1e-4)


def test_names_make_a_classification(client):
    names = {f"object-{i}": "bright" if i >= 50 else "faint" for i in range(100)}
    record = client.fit_probe("brightness", names, modality=HSC)
    assert record.task == "classification"
    assert set(record.classes) == {"bright", "faint"}
    found = client.predict("brightness", images(120).select([5]), probe=record.id)
    assert found.value == "faint"
    assert found.table()["value"][0] == "faint"


def test_what_does_not_fit_together_is_said_before_it_is_sent(client):
    given = client.embed(images(4))
    with pytest.raises(ValueError, match="expected a value for each of 4 objects, found 3"):
        client.fit_probe(REDSHIFT, given, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"no value for object 'object-1' \(3 such\)"):
        client.fit_probe(REDSHIFT, given, {"object-0": 0.1})
    with pytest.raises(ValueError, match="values go with embeddings"):
        client.fit_probe(REDSHIFT, {"object-0": 0.1}, [0.1])
    with pytest.raises(ApiError, match="nobody"):
        client.fit_probe(REDSHIFT, {"nobody": 0.1, "object-1": 0.2})


def test_a_fit_that_becomes_a_job_is_waited_for(client, monkeypatch):
    monkeypatch.setattr(routes_probes, "is_bulk", lambda service, asked: True)
    record = client.fit_probe(REDSHIFT, LABELS, modality=HSC)
    assert client.probe(record.id) == record


def test_what_was_done_but_not_heard_of_is_done_once(index, run, kind, tmp_path):
    app = FlakyApp(create_app(FakeModel(), index, state=tmp_path / "state"), ["lost"], only="/v1/probes")
    with run(app) as url, open_client(kind, url) as client:
        record = client.fit_probe(REDSHIFT, LABELS, modality=HSC)
        first, second = (headers[b"idempotency-key"] for _, _, headers in app.requests[:2])
        assert first == second
        assert [one.id for one in client.probes()] == [record.id]
        app.failures = ["lost"]
        client.delete_probe(record.id)
        assert client.probes() == ()
        with pytest.raises(NotFoundError):
            client.delete_probe(record.id)


def test_a_server_that_keeps_nothing_says_so(index, run, kind):
    with run(create_app(FakeModel(), index)) as url, open_client(kind, url) as client, pytest.raises(ConflictError):
        client.fit_probe(REDSHIFT, LABELS)


def test_samples_are_those_of_the_model_for_each_object_and_target(client):
    given, brightness = images(3), [float(features(images(3), row)[-1]) for row in range(3)]
    targets = [DESI, "image/legacysurvey", "coefficients/gaia_bp_rp", REDSHIFT]
    found = client.generate([given], targets, num_samples=2, seed=5, image_size=8)
    assert list(found) == targets
    expected = np.array([[b + 5 + 0.1 * s for b in brightness] for s in range(2)])
    for name in targets[:3]:
        samples = found[name]
        assert samples.object_id == given.object_id
        values = samples.values()
        assert values.shape[:2] == (2, 3)
        np.testing.assert_allclose(values.flatten(2).mean(2), expected, rtol=1e-5)
        np.testing.assert_allclose(samples.mean().flatten(1).mean(1), expected.mean(0), rtol=1e-5)
    assert found["image/legacysurvey"].observations[0].flux.shape[2:] == (8, 8)
    assert found[DESI].observations[1].wavelength[0, 0] == modality(DESI).card.wavelength_min
    scalar = client.predict_scalar([given], REDSHIFT)
    torch.testing.assert_close(found[REDSHIFT].probabilities, scalar.probabilities)


def test_samples_have_the_pixels_of_what_they_shall_be_like(client):
    like = spectra(2, length=30)
    found = client.generate([images(2)], [DESI], like=[like])[DESI]
    torch.testing.assert_close(found.observations[0].wavelength, like.wavelength)
    with pytest.raises(ObservationError, match="`like` must have every object, but lacks object-1"):
        client.generate([images(2)], [DESI], like=[like.select([0])])
    with pytest.raises(ObservationError, match="expected observations other than"):
        client.generate([like], [DESI])
    with pytest.raises(InvalidRequestError, match="image_size"):
        client.generate([like], [HSC])


def test_a_scalar_that_the_model_does_not_know_is_said(client):
    with pytest.raises(NotFoundError, match="stellar_mass"):
        client.predict_scalar([images(3)], "scalar/stellar_mass")
    with pytest.raises(LookupError, match="nearest known is 'scalar/redshift'"):
        client.predict_scalar([images(3)], "scalar/redshfit")
