"""Safetensors in, .npy and safetensors out: the same vectors as through JSON, and the same care for what is wrong."""

import io
import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.serving.app import create_app
from armillary.serving.formats.binary_answers import wanted_type
from armillary.serving.limits import Limits
from armillary.serving.problems import ProblemError

SAFETENSORS, NPY = "application/vnd.safetensors", "application/x-npy"
IMAGE = {"modality": "image/hsc", "bands": "g,r"}
SPECTRUM = {"modality": "spectrum/desi"}


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def post(http, tensors, metadata, accept="application/json"):
    body = tensors if isinstance(tensors, bytes) else safetensors.numpy.save(tensors, metadata)
    return http.post("/v1/embeddings", content=body, headers={"content-type": SAFETENSORS, "accept": accept})


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([datum["embedding"] for datum in response.json()["data"]], np.float32)


def spectrum_tensors():
    names = ("flux", "wavelength", "inverse_variance", "mask")
    # safetensors writes the wrong bytes of an array that is not contiguous, such as a grid expanded to all objects.
    return {name: np.ascontiguousarray(getattr(spectra(), name)) for name in names}


def test_images_spectra_and_scalars_give_the_vectors_of_the_model(http, model):
    local = images()
    found = post(http, {"flux": local.flux.numpy()}, IMAGE)
    np.testing.assert_allclose(vectors(found), FakeModel().embed([local]).numpy(), atol=1e-6)
    np.testing.assert_allclose(
        vectors(post(http, spectrum_tensors(), SPECTRUM)), FakeModel().embed([spectra()]).numpy(), atol=1e-6
    )
    redshift = ScalarObservation(modality("scalar/redshift"), ["a", "b"], [0.1, 0.2])
    given = {"values": np.array([0.1, 0.2], np.float32), "error": np.array([0.01, 0.02], np.float32)}
    scalars = post(http, given, {"modality": "scalar/redshift", "space": "encoder"})
    np.testing.assert_allclose(vectors(scalars), FakeModel().embed([redshift], "encoder").numpy(), atol=1e-6)
    assert model.num_calls == 3


def test_all_fields_arrive(index):
    seen = []

    class Watching(FakeModel):
        def embed(self, observations, space="aligned"):
            seen.extend(observations)
            return super().embed(observations, space)

    local = images(3)
    names = ("flux", "inverse_variance", "mask", "psf_fwhm", "depth", "center", "ra", "dec")
    tensors = {name: getattr(local, name).numpy().copy() for name in names}
    tensors["mask"][1, 0, 2] = False
    tensors["flux"][1, 0, 2] = np.nan
    tensors["psf_fwhm"][:] = 0.5
    tensors["ra"][2] = np.nan
    with TestClient(create_app(Watching(), index)) as http:
        answer = post(
            http, tensors, {**IMAGE, "object_id": json.dumps(["a", "b", "c"]), "unit": "nanomaggies per pixel"}
        )
    assert [datum["object_id"] for datum in answer.json()["data"]] == ["a", "b", "c"]
    (found,) = seen
    for name in set(names) - {"flux", "inverse_variance"}:
        np.testing.assert_array_equal(getattr(found, name).numpy(), tensors[name], err_msg=name)
    valid = tensors["mask"]
    np.testing.assert_array_equal(found.flux.numpy()[valid], tensors["flux"][valid])
    np.testing.assert_array_equal(found.inverse_variance.numpy()[valid], tensors["inverse_variance"][valid])


def test_one_object_without_the_leading_axis_and_a_common_grid_work(http):
    expected = FakeModel().embed([images()]).numpy()
    alone = post(http, {"flux": images().flux[2].numpy()}, {**IMAGE, "object_id": '["mine"]'})
    np.testing.assert_allclose(vectors(alone), expected[2:3], atol=1e-6)
    assert alone.json()["data"][0]["object_id"] == "mine"
    tensors = spectrum_tensors()
    tensors["wavelength"] = tensors["wavelength"][0].copy()
    np.testing.assert_allclose(
        vectors(post(http, tensors, SPECTRUM)), FakeModel().embed([spectra()]).numpy(), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_any_number_type_is_read(http, dtype):
    flux = np.round(images().flux.numpy() * 100).clip(0)
    reference = vectors(post(http, {"flux": flux}, IMAGE))
    np.testing.assert_allclose(vectors(post(http, {"flux": flux.astype(dtype)}, IMAGE)), reference, atol=1e-6)


def test_one_bad_object_fails_alone(http):
    flux = images().flux.numpy().copy()
    flux[1, 0, 0, 0] = np.inf
    data = post(http, {"flux": flux}, IMAGE).json()["data"]
    assert [datum["embedding"] is None for datum in data] == [False, True, False, False]
    assert data[1]["error"]["errors"][0]["pointer"] == "/input/1/data"


def header(content):
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw


GOOD = safetensors.numpy.save({"flux": np.zeros((2, 2, 8, 8), np.float32)}, IMAGE)
LYING = header({"flux": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}) + bytes(4)


@pytest.mark.parametrize(
    "body", [b"", b"not one", GOOD[:-1], GOOD + b"x", GOOD[:40], LYING, header([]), b"\xff" * 64], ids=range(8)
)
def test_a_body_that_is_no_safetensors_file_is_400(http, body):
    assert_problem(post(http, body, None), 400, "malformed-body")


def test_a_type_that_numpy_lacks_is_400(http):
    body = safetensors.torch.save({"flux": torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16)}, IMAGE)
    assert_problem(post(http, body, None), 400, "malformed-body", says="BF16")


FLUX = np.zeros((3, 2, 8, 8), np.float32)
WRONG = [
    ({"flux": FLUX}, {}, 422, "invalid-request", "/modality"),
    ({"flux": FLUX}, {**IMAGE, "modality": "image/hcs"}, 404, "not-found", None),
    ({"flux": FLUX}, {**IMAGE, "colour": "red"}, 422, "invalid-request", "/colour"),
    ({"flux": FLUX}, {**IMAGE, "object_id": '["\\ud800","b","c"]'}, 422, "invalid-request", "/object_id"),
    ({"flux": FLUX}, {**IMAGE, "object_id": "3"}, 422, "invalid-request", "/object_id"),
    ({"flux": FLUX}, {**IMAGE, "object_id": '["one"]'}, 422, "invalid-request", "/object_id"),
    ({"flux": FLUX}, {**IMAGE, "object_id": "one,two,three"}, 422, "invalid-request", "/object_id"),
    ({"flux": FLUX}, {**IMAGE, "space": "moon"}, 422, "invalid-request", "/space"),
    ({"flux": FLUX}, {**IMAGE, "model": "gpt"}, 404, "not-found", None),
    ({"flux": FLUX}, {"modality": "image/hsc"}, 422, "invalid-observation", "/input/0/bands"),
    ({"flux": FLUX}, {**IMAGE, "unit": "Jy"}, 422, "invalid-observation", "/input/0/unit"),
    ({"flux": FLUX, "wavelength": FLUX}, IMAGE, 422, "invalid-request", "/wavelength"),
    ({"flux": FLUX, "mask": FLUX[:2].astype(bool)}, IMAGE, 422, "invalid-request", "/mask"),
    ({"flux": FLUX, "mask": FLUX[..., :3].astype(bool)}, IMAGE, 422, "invalid-observation", "/input/0/mask"),
    ({"flux": FLUX[:0]}, IMAGE, 422, "invalid-request", "/flux"),
    ({"flux": FLUX[0, 0]}, IMAGE, 422, "invalid-request", "/flux"),
    ({"mask": FLUX}, IMAGE, 422, "invalid-request", "/flux"),
    ({"flux": FLUX[0, 0]}, SPECTRUM, 422, "invalid-observation", "/input/0/wavelength"),
    ({"flux": FLUX, "ra": np.ones((3, 2))}, IMAGE, 422, "invalid-request", "/ra"),
    ({"flux": FLUX[0], "dec": np.ones(1)}, IMAGE, 422, "invalid-request", "/dec"),
    ({"flux": FLUX, "ra": np.full(3, np.inf)}, IMAGE, 422, "invalid-request", "/input/0/ra"),
    ({"flux": FLUX, "center": np.full((3, 2), np.nan)}, IMAGE, 422, "invalid-observation", "/input/0/center"),
    ({"flux": FLUX, "psf_fwhm": np.ones(3)}, IMAGE, 422, "invalid-observation", "/input/0/psf_fwhm"),
    (
        {"values": np.ones(2), "error": np.ones((2, 2))},
        {"modality": "scalar/redshift", "space": "encoder"},
        422,
        "invalid-observation",
        "/input/0/error",
    ),
    ({"flux": FLUX, "ra": np.full(3, 400.0)}, IMAGE, 422, "invalid-observation", "/input/0/ra"),
]


@pytest.mark.parametrize("tensors, metadata, status, kind, pointer", WRONG)
def test_what_is_wrong_is_named(http, tensors, metadata, status, kind, pointer):
    assert_problem(post(http, tensors, metadata), status, kind, pointer)


def test_a_vector_that_is_not_finite_is_the_objects_problem(index):
    class Overflowing(FakeModel):
        def embed(self, observations, space="aligned"):
            found = super().embed(observations, space)
            found.vectors[-1] = torch.nan
            return found

    with TestClient(create_app(Overflowing(), index)) as http:
        data = post(http, {"flux": images().flux.numpy()}, IMAGE).json()["data"]
        assert [datum["embedding"] is None for datum in data] == [False, False, False, True]
        assert "no finite vector" in data[3]["error"]["detail"]
        alone = post(http, {"flux": images(1, seed=5).flux.numpy()}, IMAGE, accept=NPY)
        assert_problem(alone, 422, "invalid-observation", "/input/0")


def test_too_many_objects_are_413(model):
    with TestClient(create_app(model, limits=Limits(max_items=2))) as http:
        assert_problem(post(http, {"flux": FLUX}, IMAGE), 413, "too-large", says="at most 2")


def ask(http, accept, items):
    return http.post("/v1/embeddings", json={"input": items}, headers={"accept": accept})


def test_an_npy_answer_holds_the_vectors_and_provenance(http, model, index):
    answer = ask(http, NPY, [typed_image(row=row) for row in range(4)])
    assert answer.headers["content-type"] == NPY
    found = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, FakeModel().embed([images()]).numpy())
    named = [answer.headers[f"armillary-{name}"] for name in ("model-id", "index-id", "space")]
    assert named == [model.model_id, index.manifest.index_id, "aligned"]
    broken = [typed_image(), typed_image(bands=["g", "v"])]
    assert_problem(ask(http, NPY, broken), 422, "invalid-observation", "/input/1/bands")


def test_a_safetensors_answer_holds_vectors_ids_and_errors(http, model, index):
    items = [typed_image(row=0, object_id="a"), typed_image(bands=["g", "v"]), typed_image(row=2)]
    answer = ask(http, SAFETENSORS, items)
    assert answer.headers["content-type"] == SAFETENSORS
    found = safetensors.numpy.load(answer.content)["embedding"]
    expected = FakeModel().embed([images()]).numpy()
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], atol=1e-6)
    assert np.isnan(found[1]).all()
    length = int.from_bytes(answer.content[:8], "little")
    metadata = json.loads(answer.content[8 : 8 + length])["__metadata__"]
    said = {name: json.loads(value) for name, value in metadata.items()}
    assert said["object_id"] == ["a", None, None]
    assert said["modalities"] == [["image/hsc"], [], ["image/hsc"]]
    assert [(error["index"], error["status"]) for error in said["errors"]] == [(1, 422)]
    assert said["provenance"]["model_id"] == model.model_id
    assert_problem(ask(http, SAFETENSORS, [typed_image(bands=["g", "v"])]), 422, "invalid-observation")


def test_bytes_in_and_bytes_out(http):
    answer = post(http, {"flux": images().flux.numpy()}, IMAGE, accept=SAFETENSORS)
    np.testing.assert_array_equal(
        safetensors.numpy.load(answer.content)["embedding"], FakeModel().embed([images()]).numpy()
    )


@pytest.mark.parametrize(
    "accept, expected",
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html, application/x-npy;q=0.5", NPY),
        ("application/json;q=0.2, application/vnd.safetensors;q=0.9, */*;q=0.1", SAFETENSORS),
        ("*/*, application/json;q=0", NPY),
        ("Application/X-NPY", NPY),
    ],
)
def test_the_most_welcome_type_is_chosen(accept, expected):
    assert wanted_type(accept) == expected


@pytest.mark.parametrize("accept", ["text/html", "application/x-npz", "application/json;q=0", "application/json;q=x"])
def test_types_that_are_not_offered_are_406(http, accept):
    with pytest.raises(ProblemError, match="answers in application/json or"):
        wanted_type(accept)
    assert_problem(ask(http, accept, [typed_image()]), 406, "not-acceptable")
