import base64
import io
import json

import numpy as np
import openai
import pytest
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem, encoded, typed_image, typed_spectrum
from starlette.testclient import TestClient

from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.serving.app import create_app
from armillary.serving.limits import Limits


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def embed(http, *items, **fields):
    return http.post("/v1/embeddings", json={"input": list(items), **fields})


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([datum["embedding"] for datum in response.json()["data"]], np.float32)


def test_vectors_equal_the_local_models(http, model):
    expected = FakeModel().embed([images()]).numpy()
    found = embed(http, *(typed_image(row=row) for row in range(4)))
    np.testing.assert_allclose(vectors(found), expected, atol=1e-6)
    answer = found.json()
    assert [datum["index"] for datum in answer["data"]] == [0, 1, 2, 3]
    assert answer["model"] == answer["provenance"]["model_id"] == model.model_id
    assert answer["provenance"]["index_id"].startswith("objects-")
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert model.num_calls == 1


def test_one_object_alone_works_with_and_without_a_list(http):
    expected = FakeModel().embed([images().select([1])]).numpy()
    np.testing.assert_allclose(vectors(embed(http, typed_image(row=1))), expected, atol=1e-6)
    alone = http.post("/v1/embeddings", json={"input": typed_image(row=1)})
    np.testing.assert_allclose(vectors(alone), expected, atol=1e-6)


def test_an_object_with_several_modalities_has_one_vector(http):
    redshift = ScalarObservation(modality("scalar/redshift"), ["object-0"], [0.3])
    expected = FakeModel().embed([images().select([0]), spectra().select([0]), redshift], "encoder").numpy()
    item = {
        "object_id": "object-0",
        "observations": [typed_image(), typed_spectrum(), {"modality": "scalar/redshift", "data": 0.3}],
    }
    found = embed(http, item, space="encoder")
    np.testing.assert_allclose(vectors(found), expected, rtol=1e-5)
    datum = found.json()["data"][0]
    assert datum["object_id"] == "object-0"
    assert datum["modalities"] == ["image/hsc", "spectrum/desi", "scalar/redshift"]
    assert found.json()["usage"]["total_tokens"] == 3


def test_a_batch_may_mix_sizes_bands_modalities_and_stored_objects(http, index):
    small, large = images(1, side=8), images(1, side=16, bands=("g", "r", "i"), seed=4)
    items = [
        typed_image(small),
        typed_spectrum(),
        {"modality": "image/hsc", "bands": ["g", "r", "i"], **encoded(large.flux[0].numpy())},
        {"object_id": "object-7", "modality": "image/hsc"},
    ]
    found = vectors(embed(http, *items))
    for row, local in ((0, small), (1, spectra().select([0])), (2, large)):
        np.testing.assert_allclose(found[row], FakeModel().embed([local]).numpy()[0], atol=1e-5)
    np.testing.assert_allclose(found[3], index.vector("object-7", "image/hsc"), atol=1e-6)


def test_equal_ids_in_a_batch_are_different_objects(http):
    found = vectors(embed(http, *(typed_image(row=row, object_id="same") for row in range(2))))
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_both_encodings_hold_the_same_vector(http, encoding_format):
    datum = embed(http, typed_image(), encoding_format=encoding_format).json()["data"][0]
    if encoding_format == "base64":
        found = np.frombuffer(base64.b64decode(datum["embedding"]), "<f4")
    else:
        found = np.array(datum["embedding"], np.float32)
    np.testing.assert_array_equal(found, FakeModel().embed([images().select([0])]).numpy()[0])


@pytest.mark.parametrize("form", ["lists", "nested object", "float64", "int16"])
def test_arrays_may_be_lists_or_base64_of_any_number_type(http, form):
    flux = np.round(images().flux[0].numpy() * 100)
    item = {"modality": "image/hsc", "bands": ["g", "r"]}
    if form == "lists":
        item["data"] = flux.tolist()
    elif form == "nested object":
        item["data"] = encoded(flux)
    else:
        item |= encoded(flux, form)
    reference = vectors(embed(http, {"modality": "image/hsc", "bands": ["g", "r"], **encoded(flux)}))
    np.testing.assert_array_equal(vectors(embed(http, item)), reference)


def test_masked_pixels_may_hold_nan(http):
    flux = images().flux[0].numpy().copy()
    mask = np.ones(flux.shape, bool)
    flux[0, 1, 2], mask[0, 1, 2] = np.nan, False
    found = embed(http, typed_image(**encoded(flux), mask=encoded(mask, "uint8")))
    assert np.isfinite(vectors(found)).all()


def test_openai_client_works(model, index, run):
    expected = FakeModel().embed([images()]).numpy()
    with run(create_app(model, index, api_key="secret")) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        items = [typed_image(row=row) for row in range(4)]
        by_default = client.embeddings.create(model="armillary", input=items)
        np.testing.assert_array_equal(np.array([d.embedding for d in by_default.data], np.float32), expected)
        as_floats = client.embeddings.create(model=model.model_id, input=items, encoding_format="float")
        np.testing.assert_array_equal(np.array([d.embedding for d in as_floats.data], np.float32), expected)
        assert [entry.id for entry in client.models.list()] == [model.model_id]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="text-embedding-3-small", input=items)
        with pytest.raises(openai.UnprocessableEntityError):
            client.embeddings.create(model="armillary", input="a galaxy")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def post_npy(http, body, **parameters):
    return http.post("/v1/embeddings", content=body, params=parameters, headers={"content-type": "application/x-npy"})


def test_raw_npy_bodies_give_the_same_vectors(http):
    flux = images().flux.numpy()
    expected = FakeModel().embed([images()]).numpy()
    for array in (flux, np.asfortranarray(flux), flux.astype(">f4"), flux.astype("f8")):
        found = vectors(post_npy(http, npy(array), modality="image/hsc", bands="g,r"))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    one = post_npy(http, npy(flux[2]), modality="image/hsc", bands="g,r", object_id="mine", encoding_format="base64")
    datum = one.json()["data"][0]
    assert datum["object_id"] == "mine"
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(datum["embedding"]), "<f4"), expected[2], atol=1e-6)
    spectrum = spectra()
    stacked = np.stack([spectrum.flux, spectrum.inverse_variance, spectrum.wavelength], axis=1)
    found = vectors(post_npy(http, npy(stacked), modality="spectrum/desi"))
    np.testing.assert_allclose(found, FakeModel().embed([spectrum]).numpy(), atol=1e-6)
    scalars = post_npy(http, npy(np.array([0.1, 0.2])), modality="scalar/redshift", space="encoder")
    assert vectors(scalars).shape == (2, 12)


def test_npy_bodies_that_lie_or_hold_objects_are_400(http):
    good = npy(np.zeros((2, 8, 8), np.float32))
    for body in (b"not npy", good[:60], good[:-1], npy(np.array([{"a": 1}], dtype=object)), b"PK\x03\x04" + good):
        assert_problem(post_npy(http, body, modality="image/hsc", bands="g,r"), 400, "malformed-body")
    lying = good.replace(b"(2, 8, 8)", b"(2,88888)")
    assert_problem(post_npy(http, lying, modality="image/hsc", bands="g,r"), 400, "malformed-body", says="bytes follow")


def test_npy_errors_name_the_parameter(http):
    good = npy(np.zeros((2, 8, 8), np.float32))
    assert_problem(post_npy(http, good, bands="g,r"), 422, "invalid-request", "/modality")
    assert_problem(post_npy(http, good, modality="image/hsc"), 422, "invalid-observation", "/bands")
    assert_problem(post_npy(http, good, modality="image/hsx", bands="g,r"), 404, "not-found", says="'image/hsc'")
    assert_problem(post_npy(http, good, modality="spectrum/desi"), 422, "invalid-observation", "/data")
    wrong_unit = post_npy(http, good, modality="image/hsc", bands="g,r", unit="Jy")
    assert_problem(wrong_unit, 422, "invalid-observation", "/unit", "nanomaggies")


def broken(value=np.nan):
    flux = images().flux[0].numpy().copy()
    flux[1, 2, 3] = value
    return typed_image(**encoded(flux))


WRONG_ITEMS = [
    (broken(), "invalid-observation", "/data", "flux must be finite"),
    (broken(np.inf), "invalid-observation", "/data", "flux must be finite"),
    (typed_image(bands=["g", "v"]), "invalid-observation", "/bands", "unknown band 'v'"),
    (typed_image(bands=["g"]), "invalid-observation", "/data", "bands = 1"),
    (typed_image(bands=None), "invalid-observation", "/bands", "needs bands"),
    (typed_image(unit="Jy"), "invalid-observation", "/unit", "nanomaggies"),
    (typed_image(shape=[2, 8, 9]), "invalid-request", "/data", "bytes"),
    (typed_image(shape=None), "invalid-request", "/data", "needs its shape"),
    (typed_image(dtype="object"), "invalid-request", "/dtype", "expected one of"),
    (typed_image(data="***"), "invalid-request", "/data", "base64"),
    (typed_image(data=[[1, 2], [3]], shape=None), "invalid-request", "/data", "ragged"),
    (typed_image(data=["a"], shape=None), "invalid-request", "/data", "expected numbers"),
    (typed_image(data=[None], shape=None), "invalid-request", "/data", "expected numbers"),
    (typed_image(fluxx=1), "invalid-request", "/fluxx", "Extra"),
    (typed_image(wavelength=[1.0]), "invalid-observation", "/wavelength", "image has no wavelength"),
    (typed_image(dec=95.0), "invalid-observation", "/dec", "dec must lie"),
    (typed_image(psf_fwhm=[1.0, -1.0]), "invalid-observation", "/psf_fwhm", "psf_fwhm must be"),
    (typed_image(**encoded(np.zeros((2, 8, 600)))), "invalid-observation", "/data", "at most 512 pixels"),
    (typed_spectrum(wavelength=None), "invalid-observation", "/wavelength", "needs wavelength"),
    (typed_spectrum(inverse_variance=None), "invalid-observation", "/inverse_variance", "needs inverse_variance"),
    (typed_spectrum(wavelength=encoded(np.zeros(50))), "invalid-observation", "/wavelength", "wavelength must be"),
    (typed_spectrum(wavelength=encoded(np.ones(50))), "invalid-observation", "/wavelength", "increase strictly"),
    (typed_spectrum(inverse_variance=encoded(-np.ones(50))), "invalid-observation", "/inverse_variance", "negative"),
    (typed_spectrum(inverse_variance=encoded(np.zeros(50))), "invalid-observation", "/data", "no valid pixel"),
    ({"modality": "scalar/redshift", "data": 99}, "invalid-observation", "/data", "value must lie"),
    ({"modality": "scalar/redshift", "data": [1, 2]}, "invalid-observation", "/data", "one number"),
    ({"modality": "scalar/redshift", "data": 0.1, "mask": [1, 1]}, "invalid-observation", "/mask", "one value"),
    ({"observations": []}, "invalid-observation", "/observations", "at least one"),
    ({"observations": [typed_image(), typed_image()]}, "invalid-observation", "/observations/1/modality", "once"),
    (
        {"observations": [typed_image(), typed_spectrum(wavelength=None)]},
        "invalid-observation",
        "/observations/1/wavelength",
        "",
    ),
    ("a galaxy", "invalid-request", "", "expected an object"),
    ({}, "invalid-request", "", "expected an object"),
]


@pytest.mark.parametrize("item, kind, pointer, says", WRONG_ITEMS)
def test_a_wrong_item_is_422_and_names_the_field(http, item, kind, pointer, says):
    assert_problem(embed(http, item), 422, kind, f"/input/0{pointer}", says)


def test_unknown_names_are_404_with_the_nearest(http):
    wrong = embed(http, typed_image(modality="image/hcs"))
    assert_problem(wrong, 404, "not-found", "/input/0/modality", "'image/hsc'")
    assert_problem(embed(http, {"object_id": "object-1190"}), 404, "not-found", says="'object-119'")
    assert_problem(embed(http, {"object_id": "object-70", "modality": "spectrum/desi"}), 404, "not-found")
    assert_problem(embed(http, typed_image(), model="gpt"), 404, "not-found", says=FakeModel.model_id)
    # A scalar that the model was not trained on has no tokenizer, unlike an image of a new survey.
    assert_problem(embed(http, {"modality": "scalar/sdss_u", "data": 17.0}), 404, "not-found")


def test_one_bad_item_of_a_batch_fails_alone_and_keeps_its_place(http, model):
    bright = typed_spectrum(**encoded(np.full(50, 1e7)))
    scalar_alone = {"modality": "scalar/redshift", "data": 0.5}
    found = embed(http, typed_image(row=0), broken(), typed_image(row=2), bright, scalar_alone)
    assert found.status_code == 200
    data = found.json()["data"]
    assert [datum["index"] for datum in data] == [0, 1, 2, 3, 4]
    assert [datum["embedding"] is None for datum in data] == [False, True, False, True, True]
    assert data[1]["error"]["type"] == "/problems/invalid-observation"
    assert data[1]["error"]["errors"][0]["pointer"] == "/input/1/data"
    assert "too bright" in data[3]["error"]["detail"]
    assert data[4]["error"]["errors"][0]["pointer"] == "/input/4"
    expected = FakeModel().embed([images()]).numpy()
    np.testing.assert_allclose([data[0]["embedding"], data[2]["embedding"]], expected[[0, 2]], atol=1e-6)


def test_a_batch_without_one_good_item_is_an_error_that_names_all(http):
    found = embed(http, broken(), typed_spectrum(wavelength=None))
    assert_problem(found, 422, "invalid-observation", "/input/0/data", "none of 2 objects")
    assert "/input/1/wavelength" in [error["pointer"] for error in found.json()["errors"]]


def test_json_that_is_none_and_json_of_another_form_are_422(http):
    headers = {"content-type": "application/json"}
    torn = http.post("/v1/embeddings", content=b'{"input": [', headers=headers)
    assert_problem(torn, 422, "invalid-request", says="expected a JSON body")
    for body in (
        {},
        {"input": []},
        {"input": [typed_image()], "colour": 1},
        {"input": [typed_image()], "space": "x"},
        [],
    ):
        assert_problem(http.post("/v1/embeddings", json=body), 422, "invalid-request")
    wrong_size = embed(http, typed_image(), dimensions=3)
    assert_problem(wrong_size, 422, "invalid-request", says="have 8, found 3")
    assert vectors(embed(http, typed_image(), dimensions=8)).shape == (1, 8)


def test_other_media_types_are_415(http):
    headers = {"content-type": "application/zip"}
    assert_problem(http.post("/v1/embeddings", content=b"PK", headers=headers), 415, "unsupported-media-type")


def test_too_many_items_are_413(model):
    with TestClient(create_app(model, limits=Limits(max_items=3))) as http:
        assert_problem(embed(http, *[typed_image()] * 4), 413, "too-large", says="at most 3")
        assert embed(http, *[typed_image()] * 3).status_code == 200
        body = npy(images(4).flux.numpy())
        assert_problem(post_npy(http, body, modality="image/hsc", bands="g,r"), 413, "too-large")


def test_a_body_without_announced_length_is_cut_off_at_the_limit(model):
    sent = []

    def chunks():
        for number in range(1000):
            sent.append(number)
            yield b" " * 1000

    with TestClient(create_app(model, limits=Limits(max_body_bytes=10_000))) as http:
        answer = http.post("/v1/embeddings", content=chunks(), headers={"content-type": "application/json"})
        assert_problem(answer, 413, "too-large", says="10000 bytes")
        announced = http.post("/v1/embeddings", content=b" " * 20_000, headers={"content-type": "application/json"})
        assert_problem(announced, 413, "too-large")


def test_too_large_a_body_is_413_over_a_real_connection(model, run):
    import httpx

    with run(create_app(model, limits=Limits(max_body_bytes=10_000))) as url:
        body = json.dumps({"input": [typed_image()] * 2000}).encode()
        assert len(body) > 1_000_000
        answer = httpx.post(f"{url}/v1/embeddings", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert httpx.get(f"{url}/livez").status_code == 200


def test_a_space_the_index_does_not_hold_is_409_for_stored_objects(http):
    assert_problem(embed(http, {"object_id": "object-1"}, space="encoder"), 409, "conflict")


def test_without_an_index_stored_objects_are_404(model):
    with TestClient(create_app(model)) as http:
        assert_problem(embed(http, {"object_id": "object-1"}), 404, "not-found", says="no index")


def test_failed_requests_change_nothing_that_is_stored(http, index_folder):
    import hashlib

    def content():
        files = [path for path in sorted(index_folder.rglob("*")) if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before, vector = content(), http.app.state.service.index.vector("object-3")
    for item, *_ in WRONG_ITEMS:
        embed(http, item)
    http.post("/v1/collections/objects/search", json={"observations": [broken()]})
    assert content() == before
    np.testing.assert_array_equal(http.app.state.service.index.vector("object-3"), vector)
