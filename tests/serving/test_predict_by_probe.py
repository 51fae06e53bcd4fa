"""`POST /v1/predict` with method `probe`, and the flag of objects that lie outside, with probes and with neighbours."""

import numpy as np
import pytest
import torch
from fake_model import FakeModel, embedding_table, images, spectra
from http_bodies import assert_problem, typed_image, typed_spectrum
from starlette.testclient import TestClient

from armillary.models.attentive_probe import AttentiveProbe
from armillary.models.kernel_probe import KernelProbe
from armillary.models.neighbour_prediction import choose_neighbours
from armillary.models.probe_files import ProbeError
from armillary.models.probes import LinearProbe
from armillary.models.token_embeddings import TokenEmbeddings
from armillary.serving.app import create_app
from armillary.serving.client.client import Client
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError

REDSHIFT, COUNT = "scalar/redshift", 150


@pytest.fixture(scope="module")
def training():
    return images(COUNT), np.linspace(0, 1, COUNT)


@pytest.fixture(scope="module")
def probe(training):
    given, labels = training
    return LinearProbe(label=REDSHIFT).fit(FakeModel().embed([given], "encoder"), labels)


@pytest.fixture
def http(model, index, probe):
    with TestClient(create_app(model, index, probes=[probe])) as client:
        yield client


def predict(http, *observations, **changes):
    given = {"observations": list(observations)} if observations else {}
    return http.post("/v1/predict", json={"property": REDSHIFT, "method": "probe", **given, **changes})


def test_the_answer_is_the_probes_with_intervals_and_flag(http, probe, training):
    given, _ = training
    expected = probe.predict_full(FakeModel().embed([given.select([40])], "encoder"))
    found = predict(http, typed_image(given, 40))
    assert found.status_code == 200, found.text
    answer = found.json()
    assert answer["method"] == "probe"
    assert answer["value"] == pytest.approx(float(expected.value[0]), abs=1e-6)
    assert [interval["level"] for interval in answer["intervals"]] == [0.68, 0.9, 0.95]
    for place, interval in enumerate(answer["intervals"]):
        assert interval["lower"] == pytest.approx(float(expected.lower[0, place]), abs=1e-6)
    assert (answer["unit"], answer["calibrated"]) == ("dimensionless", True)
    assert answer["novelty"] == pytest.approx(float(expected.novelty[0]), abs=0.02)
    assert answer["is_outside"] is False
    assert answer["provenance"]["space"] == "encoder"


def test_what_it_has_not_seen_is_flagged_and_not_called_calibrated(http, training):
    bright = images(1, brightness=np.array([300.0]))
    assert predict(http, typed_image(bright, 0)).json()["is_outside"] is True
    assert predict(http, typed_spectrum(spectra(), 1)).json()["calibrated"] is False


def test_neighbours_flag_what_lies_far(model, index):
    ids = [f"object-{i}" for i in range(100)]
    vectors = np.stack([index.vector(i, "image/hsc") for i in ids])
    found = index.search(vectors, 32, target_modality="image/hsc", exclude_each=ids)
    truth = np.array([index.labels_of(i)[REDSHIFT] for i in ids])
    labels = index.label_of_rows(REDSHIFT, found.row)
    predictor = choose_neighbours(REDSHIFT, found.similarity, labels, truth, target_modality="image/hsc")
    far = -index.vector("object-41", "image/hsc")
    with TestClient(create_app(model, index, {REDSHIFT: predictor})) as http:
        near = http.post("/v1/predict", json={"property": REDSHIFT, "object_id": "object-41", "modality": "image/hsc"})
        away = http.post("/v1/predict", json={"property": REDSHIFT, "vector": far.tolist()})
        other = http.post("/v1/predict", json={"property": REDSHIFT, "vector": far.tolist(), "k": 3})
    assert near.json()["is_outside"] is False
    assert near.json()["novelty"] > 0.01
    assert away.json()["is_outside"] is True
    assert (other.json()["is_outside"], other.json()["novelty"]) == (None, None)


def test_classes_have_probabilities_and_sets(model, training, run):
    given, labels = training
    named = np.where(labels > 0.5, "far", "near")
    probe = LinearProbe("classification", label="distance", penalties=(1e-3,)).fit(
        FakeModel().embed([given], "encoder"), named
    )
    with run(create_app(model, probes=[probe])) as url, Client(url) as client:
        found = client.predict("distance", given.select([10]), method="probe")
    assert (found.value, found.intervals, found.is_outside) == ("near", (), False)
    assert sum(found.classes["probabilities"].values()) == pytest.approx(1)
    assert {"level": 0.9, "classes": ["near"]} in found.classes["sets"]


def test_attentive_probes_read_tokens_of_the_layers_they_were_fitted_on(training):
    given, labels = training

    class WithTokens(FakeModel):
        def embed_tokens(self, observations, layers=()):
            assert tuple(layers) == (0, 2)
            found = self.embed(observations, "encoder")
            vectors = found.vectors[:, None, :].repeat(1, 2, 1)
            mask = torch.ones(vectors.shape[:2], dtype=torch.bool)
            space = "encoder tokens 0+2"
            return TokenEmbeddings(found.object_id, vectors, mask, self.model_id, found.modalities, space)

    probe = AttentiveProbe(members=2, epochs=2, width=8, num_heads=2, label=REDSHIFT).fit(
        WithTokens().embed_tokens([given], (0, 2)), labels
    )
    with TestClient(create_app(WithTokens(), probes=[probe])) as http:
        answer = predict(http, typed_image(given, 5)).json()
        assert_problem(predict(http, vector=[1.0]), 422, "invalid-request", "/observations")
    assert answer["value"] == pytest.approx(
        float(probe.predict(WithTokens().embed_tokens([given], (0, 2)))[5]), abs=1e-4
    )
    with TestClient(create_app(FakeModel(), probes=[probe])) as http:
        assert_problem(predict(http, typed_image(given, 5)), 409, "conflict")


def test_probes_of_tokens_side_by_side_want_each_of_their_modalities_in_any_order(training):
    given, labels = training

    class WithTokens(FakeModel):
        def embed_tokens(self, observations, layers=()):
            each = [self.embed([observation], "encoder") for observation in observations]
            vectors = torch.stack([found.vectors for found in each], 1)
            mask = torch.ones(vectors.shape[:2], dtype=torch.bool)
            names = tuple(observation.modality.name for observation in observations)
            ids = each[0].object_id
            return TokenEmbeddings(
                ids, vectors, mask, self.model_id, (names,) * len(ids), "encoder tokens", columns=names
            )

    both = [given, spectra(COUNT)]
    tokens = WithTokens().embed_tokens(both).side_by_side()
    probe = KernelProbe(label=REDSHIFT, length_scales=(1.0,)).fit(tokens, labels)
    image, spectrum = typed_image(given, 5), typed_spectrum(both[1], 5)
    with TestClient(create_app(WithTokens(), probes=[probe])) as http:
        answers = [predict(http, image, spectrum), predict(http, spectrum, image)]
        assert_problem(
            predict(http, image), 422, "invalid-observation", "/observations", says="one observation of each"
        )
    for answer in answers:
        assert answer.json()["value"] == pytest.approx(float(probe.predict(tokens)[5]), abs=1e-4)
        assert answer.json()["calibrated"] is True


def test_stored_objects_serve_where_index_and_probe_share_their_space(model, index, http, training):
    given, labels = training
    aligned = LinearProbe(label=REDSHIFT).fit(FakeModel().embed([given]), labels)
    with TestClient(create_app(model, index, probes=[aligned])) as of_index:
        answer = predict(of_index, object_id="object-30", modality="image/hsc").json()
    assert answer["value"] == pytest.approx(float(aligned.predict(index.vector("object-30", "image/hsc")[None])[0]))
    assert_problem(predict(http, object_id="object-30"), 409, "conflict", says="send observations")


def test_what_does_not_go_with_a_probe_is_refused(http, model, probe):
    assert_problem(predict(http, typed_image(), property="scalar/redshfit"), 404, "not-found", says=REDSHIFT)
    assert_problem(predict(http, typed_image(), k=3), 422, "invalid-request", "/k")
    wrong = predict(http, typed_image(bands=["g", "v"]))
    assert_problem(wrong, 422, "invalid-observation", "/observations/0/bands")
    with pytest.raises(ProbeError, match="two probes have the label"):
        create_app(model, probes=[probe, probe])
    with pytest.raises(ProbeError, match="must have a label"):
        create_app(model, probes=[LinearProbe().fit(np.eye(5), np.arange(5.0))])

    class Other(FakeModel):
        model_id = "armillary-2"

    with pytest.raises(EmbeddingIndexError, match="fitted on model 'armillary-0123456789ab'"):
        create_app(Other(), probes=[probe])


def test_an_answer_is_of_one_index_though_another_one_comes_meanwhile(model, index, tmp_path, monkeypatch):
    table = embedding_table(FakeModel(), [images(50, brightness=np.full(50, 7.0))])
    EmbeddingIndex.build(table).save(tmp_path / "other")
    other = EmbeddingIndex.load(tmp_path / "other")
    given = images(COUNT)
    probe = LinearProbe(label=REDSHIFT).fit(FakeModel().embed([given]), np.linspace(0, 1, COUNT))
    with TestClient(create_app(model, index, probes=[probe])) as client:
        alone = predict(client, object_id="object-3").json()
        predict_full = LinearProbe.predict_full

        def swap_and_predict(self, vectors):
            client.app.state.service.swap(other, {})
            return predict_full(self, vectors)

        monkeypatch.setattr(LinearProbe, "predict_full", swap_and_predict)
        assert predict(client, object_id="object-3").json() == alone
        changed = predict(client, object_id="object-3").json()
    assert alone["provenance"]["index_id"] == index.manifest.index_id
    assert changed["provenance"]["index_id"] == other.manifest.index_id
    assert changed["value"] != alone["value"]
