"""`POST /v1/predict` for several objects: as one by one, in step, each failing alone; as JSON and as files."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from astropy.io import fits
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem, typed_image, typed_spectrum
from starlette.testclient import TestClient

from armillary.models.probes import LinearProbe
from armillary.serving.app import create_app
from armillary.serving.limits import Limits

REDSHIFT, HSC = "scalar/redshift", "image/hsc"
GIVEN = images(120)
BAD = typed_spectrum(spectra()) | {"unit": "mJy"}


@pytest.fixture(scope="module")
def served():
    return FakeModel()


@pytest.fixture(scope="module")
def http(served, index):
    probe = LinearProbe(label=REDSHIFT).fit(served.embed([GIVEN]), np.linspace(0, 1, 120))
    with TestClient(create_app(served, index, probes=[probe], limits=Limits(max_items=20))) as client:
        yield client


def entries(http, method, *items, **changes):
    answer = http.post("/v1/predict", json={"property": REDSHIFT, "method": method, "input": list(items), **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


def one(http, method, **query):
    answer = http.post("/v1/predict", json={"property": REDSHIFT, "method": method, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def rounded(told):
    """What was told, its numbers to five digits: a batch adds up in another order."""
    return json.loads(json.dumps(told), parse_float=lambda text: float(f"{float(text):.5g}"))


@pytest.mark.parametrize("method", ["neighbours", "probe"])
def test_entries_are_told_as_one_by_one_and_a_bad_one_fails_alone(http, index, method):
    vector = index.vector("object-90", HSC).tolist()
    image, spectrum = typed_image(GIVEN, 30), typed_spectrum(spectra(60), 7)
    queries = [
        {"object_id": "object-41", "modality": HSC},
        {"observations": [image, spectrum]},
        {"vector": vector},
        {"object_id": "object-5"},
    ]
    answer = entries(http, method, *queries, image, {"object_id": "object-900"}, {"vector": [1.0]}, BAD, 7)
    data = answer["data"]
    assert [datum["index"] for datum in data] == list(range(9))
    for datum, query in zip(data, [*queries, {"observations": [image]}], strict=False):
        alone = one(http, method, **query)
        for name in ("value", "intervals", "calibrated", "k", "gallery", "neighbours", "novelty", "is_outside"):
            assert rounded(datum[name]) == rounded(alone[name]), name
    assert answer["unit"] == alone["unit"]
    assert answer["provenance"] == one(http, method, **queries[0])["provenance"]
    assert data[0]["object_id"] == "object-41"
    assert "object-41" not in [neighbour["object_id"] for neighbour in data[0]["neighbours"]]
    pointers = [datum["error"]["errors"][0]["pointer"] for datum in data[5:]]
    assert pointers == ["/input/5/object_id", "/input/6/vector", "/input/7/unit", "/input/8"]
    assert all(datum["value"] is None for datum in data[5:])


def test_the_model_is_asked_once_for_all_that_were_seen_alike(http, served):
    items = [typed_image(GIVEN, row) for row in range(8)] + [typed_spectrum(spectra(), 1), {"object_id": "object-1"}]
    before = served.num_predict_calls
    answer = entries(http, "model", *items)
    assert served.num_predict_calls - before == 2
    for datum, item in zip(answer["data"][:9], items, strict=False):
        alone = one(http, "model", observations=[item])
        assert datum["value"] == pytest.approx(alone["value"])
        assert datum["intervals"][0] == pytest.approx(alone["intervals"][0])
        assert datum["probability"] == pytest.approx(alone["distribution"]["probability"])
        assert answer["bins"] == {name: alone["distribution"][name] for name in ("low", "high")}
    assert answer["data"][9]["error"]["errors"][0]["pointer"] == "/input/9"


def test_an_object_that_the_model_refuses_takes_no_other_with_it(http, served, monkeypatch):
    from armillary.data.observations import ObservationError

    plain = served.predict_scalar

    def moody(observations, target):
        if any((o.flux > 50).any() for o in observations):
            raise ObservationError("too bright for this model")
        return plain(observations, target)

    monkeypatch.setattr(served, "predict_scalar", moody)
    bright = typed_image(images(1, brightness=np.array([100.0])))
    data = entries(http, "model", *[typed_image(GIVEN, row) for row in range(5)], bright)["data"]
    assert [datum["error"] is None for datum in data] == [True] * 5 + [False]
    assert "too bright" in data[5]["error"]["detail"]


def test_neighbours_are_sought_once_for_all_that_are_asked_alike(http, index, monkeypatch):
    searches = []
    plain = index.search
    monkeypatch.setattr(
        index, "search", lambda *given, **named: searches.append(len(given[0])) or plain(*given, **named)
    )
    entries(http, "neighbours", *[{"object_id": f"object-{i}"} for i in range(12)], k=3)
    assert searches == [12]


@pytest.mark.parametrize(
    "body, status, pointer",
    [
        ({"input": []}, 422, "/input"),
        ({"input": [{"object_id": "object-1"}] * 21}, 413, None),
        ({"input": [{"object_id": "object-1"}], "object_id": "object-2"}, 422, "/object_id"),
        ({"input": [{"object_id": "object-1"}], "observations": []}, 422, "/observations"),
        ({"input": [{"object_id": "object-900"}]}, 404, "/input/0/object_id"),
        ({"input": [{"vector": [0.0] * 8}]}, 422, "/input/0"),
        ({"input": [{"vector": [1.0, 2.0], "k": 3}]}, 422, "/input/0/k"),
        ({"input": ["object-1", 5]}, 422, "/input/1"),
        ({"input": [{"object_id": "object-1"}], "property": "scalar/stellar_mass"}, 422, "/input/0"),
        ({"input": [{"object_id": "object-1"}], "k": 10**6}, 422, "/k"),
        ({"input": [{"object_id": "object-1"}], "target_modality": "image/hcs"}, 404, None),
        ({"input": [typed_image()], "method": "model", "k": 3}, 422, "/k"),
        ({"input": [{"object_id": "object-1"}], "method": "model"}, 422, "/input/0"),
        ({"input": [typed_image()], "method": "probe", "exact": True}, 422, "/exact"),
    ],
)
def test_what_cannot_be_meant_is_refused(http, body, status, pointer):
    answer = http.post("/v1/predict", json={"property": REDSHIFT, **body})
    kind = {404: "not-found", 413: "too-large"}.get(status, answer.json()["type"].rpartition("/")[2])
    assert_problem(answer, status, kind, pointer)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def arrow(flux):
    told = {"modality": HSC, "bands": "g,r"}
    table = pa.table({"flux": pa.array(flux.tolist())}).replace_schema_metadata(told)
    file = pa.BufferOutputStream()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue().to_pybytes()


FLUX = GIVEN.flux[[30, 60]].numpy()
TENSORS = safetensors.numpy.save({"flux": FLUX}, {"modality": HSC, "bands": "g,r"})
FITS = io.BytesIO()
fits.PrimaryHDU(FLUX[0], fits.Header({"BANDS": "gr", "BUNIT": "nanomaggy"})).writeto(FITS)
NAMED = {"modality": HSC, "bands": "g,r"}
FILES = {
    "npy": ("application/x-npy", npy(FLUX), NAMED, 2),
    "safetensors": ("application/vnd.safetensors", TENSORS, {}, 2),
    "arrow": ("application/vnd.apache.arrow.stream", arrow(FLUX), {}, 2),
    "fits": ("application/fits", FITS.getvalue(), {"modality": HSC}, 1),
}


@pytest.mark.parametrize("method", ["neighbours", "model", "probe"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_as_the_same_in_json(http, name, method):
    media_type, body, said, count = FILES[name]
    query = {"property": REDSHIFT, "method": method, **said}
    answer = http.post("/v1/predict", params=query, content=body, headers={"Content-Type": media_type})
    assert answer.status_code == 200, answer.text
    expected = entries(http, method, *[typed_image(GIVEN, row) for row in (30, 60)][:count])["data"]
    found = answer.json()["data"]
    assert [datum["value"] for datum in found] == pytest.approx([datum["value"] for datum in expected], abs=1e-6)
    assert [datum["k"] for datum in found] == [datum["k"] for datum in expected]


def test_a_form_says_in_its_fields_what_is_asked(http):
    given = {"property": REDSHIFT, "k": "3", "exclude_self": "false", **NAMED}
    answer = http.post("/v1/predict", data=given, files={"file": ("image.npy", npy(FLUX[0]), "application/x-npy")})
    (datum,) = answer.json()["data"]
    assert (datum["k"], len(datum["neighbours"])) == (3, 3)
    assert datum["value"] == pytest.approx(30 / 119, abs=0.05)


@pytest.mark.parametrize(
    "said, body, status, pointer",
    [
        ({}, npy(FLUX), 422, "/property"),
        ({"property": REDSHIFT, "k": "many"}, npy(FLUX), 422, "/k"),
        ({"property": REDSHIFT, "method": "model", "k": "3"}, npy(FLUX), 422, "/k"),
        ({"property": REDSHIFT}, b"no npy", 400, None),
        ({"property": REDSHIFT}, npy(FLUX[:0]), 422, None),
        ({"property": REDSHIFT, "model": "another"}, npy(FLUX), 404, None),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(http, said, body, status, pointer):
    headers = {"Content-Type": "application/x-npy"}
    answer = http.post("/v1/predict", params={**NAMED, **said}, content=body, headers=headers)
    assert_problem(answer, status, answer.json()["type"].rpartition("/")[2], pointer)
