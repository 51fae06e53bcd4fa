"""Probes over HTTP: fitted, kept, shared, predicted with; against the same probes fitted by hand."""

import base64
import json
import logging
import re
import threading
import time

import numpy as np
import pytest
import safetensors.numpy
import torch
from fake_model import FakeModel, images
from http_bodies import assert_problem, encoded, typed_image, typed_spectrum
from starlette.testclient import TestClient

import armillary
from armillary.models.attentive_probe import AttentiveProbe
from armillary.models.embeddings import Embeddings
from armillary.models.kernel_probe import KernelProbe
from armillary.models.probe_bytes import probe_bytes
from armillary.models.probe_files import ProbeError
from armillary.models.probe_loading import load_probe, probe_from_bytes
from armillary.models.probes import LinearProbe
from armillary.models.token_embeddings import TokenEmbeddings
from armillary.serving.app import create_app
from armillary.serving.probes import fitting as probe_fitting
from armillary.serving.probes.store import ProbeRecord, ProbeStore

REDSHIFT, HSC = "scalar/redshift", "image/hsc"
IDS = [f"object-{i}" for i in range(100)]
TRUTH = np.linspace(0, 1, 120)[:100]


@pytest.fixture
def http(model, index, tmp_path):
    with TestClient(create_app(model, index, state=tmp_path / "state")) as client:
        yield client


def by_id(**changes):
    examples = [{"object_id": name, "value": float(z)} for name, z in zip(IDS, TRUTH, strict=True)]
    return {"label": REDSHIFT, "modality": HSC, "examples": examples, **changes}


def stored_vectors(index):
    return np.stack([index.vector(name, HSC) for name in IDS])


def embeddings(vectors):
    names = ((HSC,),) * len(vectors)
    return Embeddings(tuple(IDS), torch.from_numpy(vectors), "aligned", FakeModel.model_id, names)


def finished(http, response):
    assert response.status_code == 202, response.text
    job = http.get(response.headers["location"], params={"wait": 30}).json()
    return job


# ---- fitting -----------------------------------------------------------------------------------------------------


def test_a_probe_fitted_over_http_is_the_one_fitted_by_hand(http, index):
    expected = LinearProbe(label=REDSHIFT).fit(embeddings(stored_vectors(index)), TRUTH)
    answer = http.post("/v1/probes", json=by_id(note="by eye"))
    assert answer.status_code == 201, answer.text
    card = answer.json()
    assert answer.headers["location"] == f"/v1/probes/{card['id']}" == card["links"]["self"]
    assert card["scores"] == pytest.approx(expected.scores_)
    assert (card["num_labels"], card["unit"], card["note"]) == (100, "dimensionless", "by eye")
    assert (card["model_id"], card["index_id"]) == (FakeModel.model_id, index.manifest.index_id)
    assert (card["space"], card["modalities"], card["fitted_on"]) == ("aligned", [HSC], "objects")
    assert http.get(answer.headers["location"]).json() == card
    told = http.post(card["links"]["predict"], json={"object_id": "object-110", "modality": HSC}).json()
    full = expected.predict_full(index.vector("object-110", HSC)[None])
    assert told["value"] == pytest.approx(full.value[0])
    assert told["intervals"][1]["upper"] == pytest.approx(full.upper[0, 1])
    assert told["calibrated"] is True


def test_the_coverage_on_the_card_is_measured_on_labels_that_the_fit_had_not_seen(http, index):
    rng = np.random.default_rng(5)
    noisy = TRUTH + 0.3 * rng.normal(size=100)
    examples = [{"object_id": name, "value": float(z)} for name, z in zip(IDS, noisy, strict=True)]
    card = http.post("/v1/probes", json=by_id(examples=examples)).json()
    order = np.random.default_rng(0).permutation(100)
    held, kept = order[:20], order[20:]
    vectors = stored_vectors(index)
    probe = LinearProbe(label=REDSHIFT).fit(vectors[kept], noisy[kept])
    bounds = probe.predict_interval(vectors[held], 0.9)
    inside = (bounds[:, 0] <= noisy[held]) & (noisy[held] <= bounds[:, 1])
    (measured,) = [entry for entry in card["coverage"] if entry["level"] == 0.9]
    assert measured["share"] == pytest.approx(inside.mean())
    assert measured["num_objects"] == 20
    assert measured["width"] == pytest.approx(np.median(bounds[:, 1] - bounds[:, 0]))
    assert 0.7 < measured["width"] < 1.6  # about 2 x 1.64 x 0.3 for normal noise


def test_classes_by_observations_and_by_vectors_are_told_alike(http):
    given = images(30)
    names = ["far" if z > 0.5 else "near" for z in np.linspace(0, 1, 30)]
    examples = [{"observations": [typed_image(given, i)], "value": names[i]} for i in range(30)]
    first = http.post("/v1/probes", json={"label": "distance", "space": "encoder", "examples": examples})
    assert first.status_code == 201, first.text
    vectors = FakeModel().embed([given], "encoder").numpy()
    body = {"label": "distance", "space": "encoder", "vectors": encoded(vectors), "values": names, "modality": HSC}
    second = http.post("/v1/probes", json=body)
    assert second.status_code == 201, second.text
    assert first.json()["task"] == second.json()["task"] == "classification"
    assert first.json()["classes"] == ["far", "near"]
    answers = [
        http.post(card.json()["links"]["predict"], json={"observations": [typed_image(given, 3)]}).json()
        for card in (first, second)
    ]
    assert answers[0]["value"] == answers[1]["value"] == "near"
    assert answers[0]["classes"]["probabilities"] == pytest.approx(answers[1]["classes"]["probabilities"], abs=1e-4)


def test_numbers_may_be_classes_and_kernels_bend(http, index):
    numbers = [{"object_id": name, "value": int(z > 0.4)} for name, z in zip(IDS, TRUTH, strict=True)]
    card = http.post("/v1/probes", json=by_id(examples=numbers, task="classification", label="side")).json()
    assert card["classes"] == ["0", "1"]
    assert http.post(card["links"]["predict"], json={"object_id": "object-0", "modality": HSC}).json()["value"] == "0"
    bent = http.post("/v1/probes", json=by_id(kind="kernel")).json()
    expected = KernelProbe(label=REDSHIFT).fit(embeddings(stored_vectors(index)), TRUTH)
    assert bent["kind"] == "kernel"
    assert bent["scores"] == pytest.approx(expected.scores_)


def test_attentive_probes_are_fitted_to_token_vectors(http):
    vectors = np.random.default_rng(1).normal(size=(20, 3, 4)).astype(np.float32)
    values = vectors[:, :, 0].mean(1).tolist()
    body = {"label": "mean", "kind": "attentive", "vectors": encoded(vectors), "values": values}
    answer = http.post("/v1/probes", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["space"] == "encoder tokens"
    assert_problem(http.post("/v1/probes", json=by_id(kind="attentive")), 422, "invalid-request", "/kind")


@pytest.mark.parametrize(
    ("changes", "pointer", "says"),
    [
        ({"examples": None}, "", "expected examples, or vectors and values"),
        ({"values": [1.0]}, "", "expected examples, or vectors and values"),
        ({"examples": []}, "/examples", "at least 1"),
        ({"examples": [{"object_id": "object-1", "value": "far"}], "task": "regression"}, "/examples/0/value", "far"),
        ({"examples": [{"object_id": "object-1", "value": 1.0}]}, "/examples", "minimum of 2"),
        ({"examples": [{"value": 1.0}]}, "/examples/0", "expected an object_id or observations"),
        ({"examples": [{"object_id": "object-1", "value": 0.1}] * 2}, "/examples/1/object_id", "one label"),
        ({"label": ""}, "/label", "at least 1"),
        ({"lable": "x"}, "/lable", "not permitted"),
    ],
)
def test_what_cannot_be_fitted_is_said_where_it_is(http, changes, pointer, says):
    body = {name: value for name, value in by_id(**changes).items() if value is not None}
    assert_problem(http.post("/v1/probes", json=body), 422, "invalid-request", pointer, says=says)
    assert http.get("/v1/probes").json() == {"probes": []}


def test_numbers_that_are_none_and_objects_that_are_unknown_are_refused(http):
    nan = json.dumps(by_id()).replace(f'"value": {TRUTH[7]}', '"value": NaN')
    wrong = http.post("/v1/probes", content=nan, headers={"content-type": "application/json"})
    assert_problem(wrong, 422, "invalid-request", "/examples/7/value", says="finite")
    unknown = by_id(examples=[*by_id()["examples"], {"object_id": "object-999", "value": 1.0}])
    assert_problem(http.post("/v1/probes", json=unknown), 404, "not-found", "/examples/100/object_id")
    vectors = np.ones((3, 5), np.float32)
    body = {"label": "x", "vectors": encoded(vectors), "values": [1.0, 2.0, 3.0]}
    assert_problem(http.post("/v1/probes", json=body), 422, "invalid-request", "/vectors", says="8 numbers, found 5")
    vectors = np.full((3, 8), np.nan, np.float32)
    body |= {"vectors": encoded(vectors)}
    assert_problem(http.post("/v1/probes", json=body), 422, "invalid-request", "/vectors/0", says="finite")
    assert_problem(http.post("/v1/probes", content=b"\x00" * 100), 422, "invalid-request")


def test_a_server_without_a_folder_keeps_nothing_but_lists_what_it_was_started_with(model, index):
    probe = LinearProbe(label=REDSHIFT).fit(embeddings(stored_vectors(index)), TRUTH)
    with TestClient(create_app(model, index, probes=[probe])) as http:
        assert_problem(http.post("/v1/probes", json=by_id()), 409, "no-state")
        (card,) = http.get("/v1/probes").json()["probes"]
        assert (card["fitted_on"], card["label"], card["created"]) == ("start", REDSHIFT, None)
        told = http.post(card["links"]["predict"], json={"object_id": "object-3", "modality": HSC}).json()
        assert told["value"] == pytest.approx(float(probe.predict(index.vector("object-3", HSC)[None])[0]))
        assert_problem(http.delete(card["links"]["self"]), 409, "conflict")


# ---- prediction --------------------------------------------------------------------------------------------------


def test_a_batch_is_told_as_its_objects_are_one_by_one_and_a_bad_entry_fails_alone(http, index):
    card = http.post("/v1/probes", json=by_id()).json()
    given, vector = images(4), index.vector("object-90", HSC)
    entries = [
        {"object_id": "object-90", "modality": HSC},
        {"vector": vector.tolist()},
        {"vector": base64.b64encode(vector.astype("<f4").tobytes()).decode()},
        typed_image(given, 2),
        {"observations": [typed_image(given, 2)]},
        {"object_id": "object-900"},
        {"vector": [1.0]},
        {"vector": "AAAA/"},
        {"vector": {"a": 1}},
        typed_spectrum(),
    ]
    answer = http.post(card["links"]["predict"], json={"input": entries})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [datum["index"] for datum in data] == list(range(10))
    alone = http.post(card["links"]["predict"], json=entries[0]).json()
    for datum in data[:3]:
        assert datum["value"] == pytest.approx(alone["value"], abs=1e-6)
        for found, expected in zip(datum["intervals"], alone["intervals"], strict=True):
            assert found == pytest.approx(expected, abs=1e-6)
    assert data[0]["object_id"] == "object-90"
    image = http.post(card["links"]["predict"], json={"observations": [typed_image(given, 2)]}).json()
    for datum in data[3:5]:
        assert datum["value"] == pytest.approx(image["value"], abs=1e-6)
    assert [datum["error"]["type"] for datum in data[5:9]] == ["/problems/not-found"] + 3 * [
        "/problems/invalid-request"
    ]
    assert data[6]["error"]["errors"][0]["pointer"] == "/input/6/vector"
    assert (data[9]["error"], data[9]["calibrated"]) == (None, False)
    many = http.post(card["links"]["predict"], json={"object_id": ["object-1", "object-90"], "modality": HSC}).json()
    assert many["data"][1]["value"] == pytest.approx(alone["value"], abs=1e-6)


def test_what_cannot_be_asked_of_a_probe_is_refused(http):
    card = http.post("/v1/probes", json=by_id()).json()
    ask = card["links"]["predict"]
    assert_problem(http.post(ask, json={}), 422, "invalid-request", says="exactly one of")
    assert_problem(http.post(ask, json={"input": []}), 422, "invalid-request", "/input")
    assert_problem(http.post(ask, json={"vector": [0.5] * 8, "modality": HSC}), 422, "invalid-request", "/modality")
    assert_problem(http.post(ask, json={"vector": [0.5] * 7}), 422, "invalid-request", "/vector")
    assert_problem(http.post(ask, json={"input": [{"vector": []}] * 257}), 413, "too-large")
    for strange in ("0" * 16, "%2e%2e%2fjobs", "x" * 300, "a/b"):
        assert http.post(f"/v1/probes/{strange}/predict", json={"vector": [0.5] * 8}).status_code in (404, 405)


def test_predict_finds_the_newest_stored_probe_of_a_label(http):
    body = {"property": "bright", "method": "probe", "object_id": "object-50", "modality": HSC}
    assert_problem(http.post("/v1/predict", json=body), 404, "not-found")
    http.post("/v1/probes", json=by_id(label="bright"))
    first = http.post("/v1/predict", json=body).json()["value"]
    halved = [{"object_id": name, "value": float(z) / 2} for name, z in zip(IDS, TRUTH, strict=True)]
    second = http.post("/v1/probes", json=by_id(label="bright", examples=halved)).json()
    assert http.post("/v1/predict", json=body).json()["value"] == pytest.approx(first / 2, abs=1e-3)
    assert http.delete(second["links"]["self"]).status_code == 204
    assert http.post("/v1/predict", json=body).json()["value"] == pytest.approx(first)
    assert_problem(http.get(second["links"]["self"]), 404, "not-found")


def test_a_probe_of_another_model_is_listed_but_tells_nothing(model, index, tmp_path):
    with TestClient(create_app(model, index, state=tmp_path)) as http:
        card = http.post("/v1/probes", json=by_id()).json()
        file = http.get(card["links"]["file"]).content

    class Other(FakeModel):
        model_id = "armillary-ffffffffffff"

    with TestClient(create_app(Other(), state=tmp_path)) as http:
        (found,) = http.get("/v1/probes").json()["probes"]
        assert (found["id"], found["is_usable"]) == (card["id"], False)
        asked = http.post(card["links"]["predict"], json={"vector": [0.5] * 8})
        assert_problem(asked, 409, "conflict", says=FakeModel.model_id)
        by_label = {"property": REDSHIFT, "method": "probe", "vector": [0.5] * 8}
        assert_problem(http.post("/v1/predict", json=by_label), 409, "conflict", says=FakeModel.model_id)
        sent = http.post("/v1/probes", content=file, headers={"content-type": "application/vnd.safetensors"})
        assert_problem(sent, 409, "conflict")


# ---- the file ----------------------------------------------------------------------------------------------------


def test_a_probe_is_shared_as_one_file(http, model, index, tmp_path):
    card = http.post("/v1/probes", json=by_id(kind="kernel")).json()
    answer = http.get(card["links"]["file"])
    accepted = http.get(card["links"]["self"], headers={"accept": "application/vnd.safetensors"})
    assert answer.content == accepted.content
    assert answer.headers["content-type"] == accepted.headers["content-type"] == "application/vnd.safetensors"
    path = tmp_path / "shared.safetensors"
    path.write_bytes(answer.content)
    probe = armillary.load_probe(path, FakeModel.model_id)
    vector = index.vector("object-77", HSC)[None]
    expected = http.post(card["links"]["predict"], json={"object_id": "object-77", "modality": HSC}).json()
    assert float(probe.predict(vector)[0]) == pytest.approx(expected["value"])
    with pytest.raises(ProbeError, match="not of 'armillary-2'"):
        load_probe(path, "armillary-2")
    with TestClient(create_app(model, index, state=tmp_path / "elsewhere")) as other:
        sent = other.post("/v1/probes", content=answer.content, headers={"content-type": "application/vnd.safetensors"})
        assert sent.status_code == 201, sent.text
        assert sent.json()["fitted_on"] == "upload"
        told = other.post(sent.json()["links"]["predict"], json={"object_id": "object-77", "modality": HSC}).json()
        assert told["value"] == pytest.approx(expected["value"])


def test_a_file_that_is_no_working_probe_is_refused(http, index):
    card = http.post("/v1/probes", json=by_id()).json()
    good = http.get(card["links"]["file"]).content
    tensors = safetensors.numpy.load(good)
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]
    narrow = tensors | {"coef": tensors["coef"][:, :5].copy()}
    two_labels = LinearProbe(label="both").fit(embeddings(stored_vectors(index)), np.stack([TRUTH, TRUTH], 1))
    infinite = tensors | {"coef": np.full_like(tensors["coef"], np.nan)}
    unnamed = {**header, "armillary_probe": header["armillary_probe"].replace(f'"{REDSHIFT}"', "7")}
    strange = {**header, "armillary_probe": header["armillary_probe"].replace('"linear"', '"odd"')}
    for content, status, kind in (
        (good[:-5], 400, "malformed-body"),
        (b"\xff" * 64, 400, "malformed-body"),
        (safetensors.numpy.save(tensors), 400, "malformed-body"),
        (safetensors.numpy.save(narrow, header), 409, "conflict"),
        (probe_bytes(two_labels), 400, "malformed-body"),
        (safetensors.numpy.save(infinite, header), 400, "malformed-body"),
        (safetensors.numpy.save(tensors, unnamed), 400, "malformed-body"),
        (safetensors.numpy.save(tensors, strange), 400, "malformed-body"),
    ):
        sent = http.post("/v1/probes", content=content, headers={"content-type": "application/vnd.safetensors"})
        assert_problem(sent, status, kind)
    assert len(http.get("/v1/probes").json()["probes"]) == 1


def test_an_attentive_probe_is_shared_and_sizes_that_a_file_claims_take_no_memory(http):
    vectors = np.random.default_rng(1).normal(size=(20, 3, 4)).astype(np.float32)
    values = vectors[:, :, 0].mean(1)
    tokens = TokenEmbeddings(
        tuple(map(str, range(20))),
        torch.from_numpy(vectors),
        torch.ones(20, 3, dtype=torch.bool),
        FakeModel.model_id,
        ((HSC,),) * 20,
    )
    probe = AttentiveProbe(members=2, epochs=2, width=8, num_heads=2, label="mean").fit(tokens, values)
    good = probe_bytes(probe)
    headers = {"content-type": "application/vnd.safetensors"}
    sent = http.post("/v1/probes", content=good, headers=headers)
    assert sent.status_code == 201, sent.text
    again = probe_from_bytes(http.get(sent.json()["links"]["file"]).content)
    assert np.array_equal(again.predict(vectors), probe.predict(vectors))
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]["armillary_probe"]
    for claim in ('"width": 1048576', '"num_queries": 100000000', '"members": 1000000000'):
        name = claim.split(":")[0]
        claimed = re.sub(f"{name}: \\d+", claim, header)
        assert claimed != header
        content = safetensors.numpy.save(safetensors.numpy.load(good), {"armillary_probe": claimed})
        assert_problem(http.post("/v1/probes", content=content, headers=headers), 400, "malformed-body")


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_probes_outlive_the_server_and_a_broken_one_is_passed_over(model, index, tmp_path, caplog):
    with TestClient(create_app(model, index, state=tmp_path)) as http:
        cards = [http.post("/v1/probes", json=by_id(label=name)).json() for name in ("one", "two")]
    (tmp_path / "probes" / cards[0]["id"] / "probe.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.ERROR), TestClient(create_app(model, index, state=tmp_path)) as http:
        assert http.get("/v1/probes").json()["probes"] == cards[1:]
        http.get("/v1/probes")
    assert [record.message for record in caplog.records if cards[0]["id"] in record.message]
    assert len(caplog.records) == 1


def test_another_process_sees_what_was_left_and_what_was_removed(tmp_path):
    ours, theirs = ProbeStore(tmp_path), ProbeStore(tmp_path)
    probe = LinearProbe(label="x").fit(np.random.default_rng(0).normal(size=(9, 3)), np.arange(9.0))
    kept = ours.add(probe, ProbeRecord(created="2026-01-01", fitted_on="vectors"))
    assert [found.probe_id for found in theirs.all()] == [kept.probe_id]
    again = theirs.add(LinearProbe(label="y").fit(np.eye(4), np.arange(4.0)), kept.record, kept.probe_id)
    assert again.probe.label == "x"
    assert theirs.remove(kept.probe_id)
    assert ours.get(kept.probe_id) is None
    assert not ours.remove(kept.probe_id)
    assert not ours.remove("../../etc")


def test_the_same_key_and_body_make_one_probe_across_a_restart(model, index, tmp_path):
    headers = {"Idempotency-Key": "a-word"}
    with TestClient(create_app(model, index, state=tmp_path)) as http:
        first = http.post("/v1/probes", json=by_id(), headers=headers)
        again = http.post("/v1/probes", json=by_id(), headers=headers)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json() == again.json()
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert_problem(http.post("/v1/probes", json=by_id(note="x"), headers=headers), 409, "key-reused")
    with TestClient(create_app(model, index, state=tmp_path)) as http:
        later = http.post("/v1/probes", json=by_id(), headers=headers)
        assert later.json() == first.json()
        assert len(http.get("/v1/probes").json()["probes"]) == 1
        wrong = http.post("/v1/probes", json=by_id(), headers={"Idempotency-Key": "two words"})
        assert_problem(wrong, 422, "invalid-request")


def test_a_refused_request_does_not_use_up_its_key(http):
    headers = {"Idempotency-Key": "k"}
    assert http.post("/v1/probes", json=by_id(task="odd"), headers=headers).status_code == 422
    assert http.post("/v1/probes", json=by_id(), headers=headers).status_code == 201


def test_two_requests_with_one_key_at_once_make_one_probe(model, index, tmp_path, run, monkeypatch):
    import httpx

    started, release = threading.Event(), threading.Event()
    fit = probe_fitting.training_set

    def slow(*arguments):
        started.set()
        assert release.wait(20)
        return fit(*arguments)

    monkeypatch.setattr(probe_fitting, "training_set", slow)
    with run(create_app(model, index, state=tmp_path)) as url:
        answers = []

        def post():
            answers.append(httpx.post(f"{url}/v1/probes", json=by_id(), headers={"Idempotency-Key": "k"}, timeout=30))

        first = threading.Thread(target=post)
        first.start()
        assert started.wait(20)
        post()
        assert_problem(answers[0], 409, "key-reused", says="being worked on")
        release.set()
        first.join(20)
        assert answers[1].status_code == 201
        assert len(httpx.get(f"{url}/v1/probes").json()["probes"]) == 1


# ---- many labels -------------------------------------------------------------------------------------------------


def test_many_labels_are_a_job_that_makes_the_same_probe(http, monkeypatch):
    at_once = http.post("/v1/probes", json=by_id()).json()
    monkeypatch.setitem(probe_fitting.AT_ONCE, "linear", 99)
    headers = {"Idempotency-Key": "many"}
    answer = http.post("/v1/probes", json=by_id(), headers=headers)
    job = finished(http, answer)
    assert (job["phase"], job["kind"], job["progress"]) == ("COMPLETED", "fit", {"done": 100, "total": 100})
    card = http.get(job["links"]["result"]).json()
    assert card["id"] == job["probe_id"]
    assert (card["scores"], card["coverage"]) == (at_once["scores"], at_once["coverage"])
    assert http.post("/v1/probes", json=by_id(), headers=headers).headers["idempotency-replayed"] == "true"
    assert len(http.get("/v1/probes").json()["probes"]) == 2


def test_a_caller_may_ask_for_a_job_and_what_is_wrong_ends_it_with_the_problem(http):
    unknown = by_id(examples=[*by_id()["examples"], {"object_id": "object-999", "value": 1.0}])
    job = finished(http, http.post("/v1/probes", json=unknown, headers={"Prefer": "respond-async"}))
    assert job["phase"] == "ERROR"
    assert job["error"]["type"] == "/problems/not-found"
    assert job["error"]["errors"][0]["pointer"] == "/examples/100/object_id"
    assert http.get("/v1/probes").json() == {"probes": []}


def test_an_aborted_fit_leaves_no_probe(http, monkeypatch):
    started, release = threading.Event(), threading.Event()
    fit = probe_fitting.training_set

    def slow(*arguments):
        started.set()
        assert release.wait(20)
        return fit(*arguments)

    monkeypatch.setattr(probe_fitting, "training_set", slow)
    job = http.post("/v1/probes", json=by_id(), headers={"Prefer": "respond-async"}).json()
    assert started.wait(20)
    assert http.delete(job["links"]["self"]).json()["phase"] == "ABORTED"
    release.set()
    after = http.post("/v1/probes", json=by_id(label="after"), headers={"Prefer": "respond-async"})
    assert finished(http, after)["phase"] == "COMPLETED"
    assert [probe["label"] for probe in http.get("/v1/probes").json()["probes"]] == ["after"]


def test_fits_wait_for_each_other_and_other_routes_do_not_wait_for_them(model, index, tmp_path, run, monkeypatch):
    import concurrent.futures

    import httpx

    inside, most, guard = 0, 0, threading.Lock()
    fit = probe_fitting.training_set

    def watched(*arguments):
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        found = fit(*arguments)
        with guard:
            inside -= 1
        return found

    monkeypatch.setattr(probe_fitting, "training_set", watched)
    with run(create_app(model, index, state=tmp_path)) as url, concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, f"{url}/v1/probes", json=by_id(), timeout=60) for _ in range(4)]
        assert httpx.get(f"{url}/v1/limits", timeout=10).status_code == 200
        assert [future.result().status_code for future in asked] == [201] * 4
    assert most == 1
