"""Searches by files of measurements, as people have them."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from arrow_uploads import image_table, stream
from fake_model import images, spectra
from fits_uploads import fits_bytes, image_hdu
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.serving.app import create_app

ADDRESS = "/v1/collections/objects/search"
NPY, ARROW, SAFETENSORS = "application/x-npy", "application/vnd.apache.arrow.stream", "application/vnd.safetensors"


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def send(http, content, media_type, accept="application/json", **query):
    return http.post(ADDRESS, params=query, content=content, headers={"Content-Type": media_type, "Accept": accept})


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def ids(neighbours):
    return [n["object_id"] for n in neighbours]


def test_files_of_one_image_find_what_json_finds(http):
    image = images(120)
    flux = image.flux[33].numpy()
    wanted = http.post(ADDRESS, json={"observations": [typed_image(image, 33)], "k": 5, "include": ["labels"]}).json()
    assert ids(wanted["neighbours"])[0] == "object-33"
    about = {"modality": "image/hsc", "bands": "g,r", "k": 5, "include": "labels"}
    for content, media_type in (
        (fits_bytes(image_hdu(flux, BUNIT="nanomaggy")), "application/fits"),
        (npy(flux), NPY),
    ):
        answer = send(http, content, media_type, **about)
        assert answer.status_code == 200, answer.text
        assert ids(answer.json()["neighbours"]) == ids(wanted["neighbours"])
        assert answer.json()["neighbours"][0]["labels"] == wanted["neighbours"][0]["labels"]
    form = http.post(ADDRESS, data=about, files={"file": ("image.npy", npy(flux), "application/octet-stream")})
    assert ids(form.json()["neighbours"]) == ids(wanted["neighbours"])


def test_an_object_that_is_named_is_left_out_unless_asked(http):
    image = images(120)
    about = {"modality": "image/hsc", "bands": "g,r", "object_id": "object-33", "k": 3}
    assert "object-33" not in ids(send(http, npy(image.flux[33].numpy()), NPY, **about).json()["neighbours"])
    found = send(http, npy(image.flux[33].numpy()), NPY, **about, exclude_self="false").json()["neighbours"]
    assert ids(found)[0] == "object-33"


def test_many_objects_are_many_results_and_each_leaves_itself_out(http, index):
    image = images(120).select([3, 60])
    names = json.dumps(["object-3", "object-60"])
    content = safetensors.numpy.save(
        {"flux": image.flux.numpy()}, {"modality": "image/hsc", "bands": "g,r", "object_id": names}
    )
    answer = send(http, content, SAFETENSORS, k=4, target_modality="image/hsc").json()
    vectors = index.vectors(["object-3", "object-60"], "image/hsc")
    expected = index.search(vectors, 4, target_modality="image/hsc", exclude_each=["object-3", "object-60"])
    assert [ids(found) for found in answer["results"]] == expected.object_id.tolist()
    assert answer["errors"] == []
    refused = send(http, content, SAFETENSORS, cursor="")
    assert_problem(refused, 422, "invalid-request", "/cursor", says="one query")


def test_a_bad_object_fails_alone(http):
    flux = images(120).flux.numpy()[[33, 40, 50]].copy()
    flux[1] = np.inf
    table = image_table(images(3), object_id=pa.array(["a", "b", "c"]))
    column = pa.FixedSizeListArray.from_arrays(
        pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(flux.reshape(-1)), 8), 8), 2
    )
    content = stream(table.set_column(0, "flux", column))
    answer = send(http, content, ARROW, k=1, target_modality="image/hsc").json()
    assert [ids(found) for found in answer["results"]] == [["object-33"], [], ["object-50"]]
    (error,) = answer["errors"]
    assert (error["query"], error["type"]) == (1, "/problems/invalid-observation")
    read = pa.ipc.open_stream(send(http, content, ARROW, accept=ARROW, k=1).content).read_all()
    assert read["query"].to_pylist() == [0, 2]
    assert json.loads(read.schema.metadata[b"errors"])[0]["query"] == 1
    # A CSV file has no place to say it.
    assert_problem(send(http, content, ARROW, accept="text/csv"), 422, "invalid-observation")


def test_a_file_without_a_usable_object_is_an_error(http):
    content = npy(spectra(1).flux.numpy())
    assert_problem(send(http, content, NPY, modality="spectrum/desi"), 422, "invalid-observation", says="[3, wave")
    bright = np.stack([np.full(50, 1e7), np.ones(50), np.linspace(4000, 9000, 50)])
    wrong = send(http, npy(np.stack([bright, bright])), NPY, modality="spectrum/desi")
    assert_problem(wrong, 422, "invalid-observation", says="none of 2")


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ({"modality": "image/hcs"}, 404, "'image/hsc'"),
        ({"modality": "image/hsc", "bands": "g,r", "k": "x"}, 422, "/k"),
        ({"modality": "image/hsc", "bands": "g,r", "k": 5000}, 422, "at most 1000"),
        ({"modality": "image/hsc", "bands": "g,r", "include": "all"}, 422, "/include/0"),
        ({"modality": "image/hsc", "bands": "g,r", "model": "other"}, 404, "no model"),
        ({"modality": "image/hsc", "bands": "g,r", "space": "encoder"}, 409, "'aligned'"),
        ({"modality": "image/hsc"}, 422, "bands"),
    ],
)
def test_wrong_parameters_of_a_file_are_said(http, query, status, says):
    answer = send(http, npy(images(1).flux[0].numpy()), NPY, **query)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
