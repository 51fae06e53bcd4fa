"""Forms of browsers: the same answers as with a raw body and query parameters, and forms that are none."""

import base64
import io

import numpy as np
import pytest
import safetensors.numpy
from arrow_uploads import image_table, stream
from fake_model import FakeModel, images
from fits_uploads import fits_bytes, image_hdu
from http_bodies import assert_problem
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.formats.multipart_body import MAX_FIELD_BYTES, MAX_PARTS
from armillary.serving.limits import Limits

FIELDS = {"modality": "image/hsc", "bands": "g,r"}


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def upload(http, content, name="upload.bin", media_type="application/octet-stream", fields=FIELDS, query=""):
    return http.post(f"/v1/embeddings{query}", data=fields, files={"file": (name, content, media_type)})


CONTENTS = {
    "npy": (npy(images(1).flux[0].numpy()), FIELDS, None),
    "fits": (fits_bytes(image_hdu(images(1).flux[0].numpy(), BUNIT="nanomaggy")), FIELDS, None),
    "arrow": (stream(image_table(images(1))), {}, None),
    "safetensors": (
        safetensors.numpy.save({"flux": images(1).flux.numpy()}, FIELDS),
        {},
        "application/vnd.safetensors",
    ),
}


@pytest.mark.parametrize("content, fields, media_type", CONTENTS.values(), ids=CONTENTS)
def test_a_form_gives_the_vector_of_its_file(http, content, fields, media_type):
    answer = upload(http, content, media_type=media_type or "application/octet-stream", fields=fields)
    assert answer.status_code == 200, answer.text
    (datum,) = answer.json()["data"]
    np.testing.assert_allclose([datum["embedding"]], FakeModel().embed([images(1)]).numpy(), atol=1e-6)


def test_fields_go_before_the_query_and_say_all_that_it_says(http):
    content = npy(images(1).flux[0].numpy())
    fields = {**FIELDS, "space": "encoder", "encoding_format": "base64", "object_id": "café"}
    answer = upload(http, content, fields=fields, query="?bands=r,g&space=aligned")
    (datum,) = answer.json()["data"]
    assert datum["object_id"] == "café"
    found = np.frombuffer(base64.b64decode(datum["embedding"]), "<f4")
    np.testing.assert_allclose([found], FakeModel().embed([images(1)], "encoder").numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\x00b.npy", "x" * 3000, 'a"; filename="b'])
def test_the_name_of_the_file_is_of_no_consequence(http, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert upload(http, npy(images(1).flux[0].numpy()), name=name).status_code == 200
    assert not list(tmp_path.iterdir())


def test_a_file_may_hold_what_looks_like_a_boundary(http):
    content = npy(np.frombuffer(b"\r\n--other\r\n\r\n--b" * 32, np.uint8).reshape(2, 16, 16))
    assert upload(http, content).status_code == 200


def test_a_file_of_no_known_type_is_415(http):
    assert_problem(upload(http, b"GIF89a", media_type="image/gif"), 415, "unsupported-media-type", says="'image/gif'")


def form(*parts, boundary="b", end="--b--\r\n"):
    return "".join(f"--{boundary}\r\n{part}\r\n" for part in parts).encode("latin-1") + end.encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="a.npy"\r\n\r\nabc'
FIELD = 'Content-Disposition: form-data; name="modality"\r\n\r\nimage/hsc'
NO_FORM = {
    "empty": b"",
    "no end": form(FILE, end=""),
    "no file": form(FIELD),
    "two files": form(FILE, FILE),
    "a field twice": form(FIELD, FIELD, FILE),
    "no header": form("abc"),
    "no name": form("Content-Disposition: form-data; filename=a\r\n\r\nabc"),
    "an attachment": form("Content-Disposition: attachment; name=a\r\n\r\nabc"),
    "a field too long": form(FILE, FIELD + "x" * MAX_FIELD_BYTES),
    "a header too long": form(FILE.replace("\r\n\r\n", f"\r\nX: {'x' * 5000}\r\n\r\n")),
    "too many parts": form(*[FIELD.replace("modality", f"m{n}") for n in range(MAX_PARTS)], FILE),
    "a field that is not text": form(FILE, FIELD + "\xff\xfe"),
    "only boundaries": b"--b\r\n" * 100_000,
}


@pytest.mark.parametrize("body", NO_FORM.values(), ids=NO_FORM)
def test_what_is_no_form_of_one_file_is_400(http, body):
    answer = http.post("/v1/embeddings", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert_problem(answer, 400, "malformed-body")


@pytest.mark.parametrize("tail", ["", "; boundary=", f"; boundary={'b' * 71}", "; boundary=é"])
def test_a_form_without_a_usable_boundary_is_400(http, tail):
    headers = {"content-type": f"multipart/form-data{tail}".encode()}
    assert_problem(http.post("/v1/embeddings", content=form(FILE), headers=headers), 400, "malformed-body")


def test_a_form_is_as_large_as_a_body_may_be(model):
    with TestClient(create_app(model, limits=Limits(max_body_bytes=2000))) as http:
        assert_problem(upload(http, bytes(3000)), 413, "too-large")
